//! kill -9 of the server and of `send` while `send` is under way, the same over every broker.

use super::count::Expected;
use super::random::Random;
use super::traffic::{generated, input, pause, spawn_send};
use super::{Server, Start, free_ports};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// Where the process is ended on purpose; each place is hit at its first and at its third time.
const FAILPOINTS: [&str; 14] = [
    "log.append.begin",
    "log.write.before",
    "log.commit.before",
    "log.commit.after",
    "log.answer.before",
    "log.answer.after",
    "log.epoch.before",
    "log.epoch.after",
    "ingest.answer.before",
    "engine.epoch.before_commit",
    "engine.epoch.after_commit",
    "sink.flush.before",
    "sink.flush.after",
    "sink.offset.after",
];

/// `send` so slow that it is under way for about so many seconds.
pub fn slow_send(file: &Path, port: u16, seconds: usize) -> Child {
    let lines = std::fs::read_to_string(file).unwrap().lines().count();
    spawn_send(file, port, Some(lines / seconds))
}

/// Waits until `send` has ended and all of it has settled, and checks the answer.
pub async fn settled(server: &Server, mut send: Child, expected: &Expected) -> ExitStatus {
    let status = send.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "send ended with {status}");
    server.settle();
    expected.check(server).await;
    status
}

/// Kills the server 25 times and `send`, which takes about `seconds`, 5 times, at random moments at
/// most `longest` milliseconds apart; the answer is exact, and the server stops in order.
pub async fn at_random_moments(start: Start, folder: &Path, seed: u64, seconds: usize, longest: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let (file, expected) = input(folder);
    let data = folder.join("data");
    let start = Start { ports: Some(free_ports()), ..start };
    let port = start.ports.unwrap().0;
    let mut server = start.run(&data);
    let mut send = slow_send(&file, port, seconds);
    let mut send_kills = 0;
    for kill in 0..25 {
        pause(&mut random, longest);
        if kill % 5 == 2 && send.try_wait().unwrap().is_none() {
            send.kill().unwrap();
            send.wait().unwrap();
            send_kills += 1;
            send = slow_send(&file, port, seconds);
            pause(&mut random, 100);
        }
        server.kill();
        server = start.run(&data);
    }
    assert_eq!(send_kills, 5, "send was done before it could be killed");
    settled(&server, send, &expected).await;
    assert_eq!(server.stop().code(), Some(0));
}

/// Ends the server at each failpoint, each hit proven by the log of hits; the answer is exact. How
/// `send` ended.
pub async fn at_every_failpoint(start: Start, folder: &Path) -> ExitStatus {
    let (file, expected) = generated(folder, 12_000);
    let data = folder.join("data");
    let start = Start { ports: Some(free_ports()), ..start };
    let log = folder.join("hits");
    let mut send = None;
    let mut hits = 0;
    for nth in [1, 3] {
        for name in FAILPOINTS {
            let mut start = start.clone();
            start.env.push(("QUIKFLOW_FAILPOINT".to_owned(), format!("{name}:{nth}")));
            start.env.push(("QUIKFLOW_FAILPOINT_LOG".to_owned(), log.to_string_lossy().into_owned()));
            let Ok(mut server) = start.try_run(&data) else {
                hits += 1;
                continue;
            };
            // It goes on over all rounds, so that every place sees traffic.
            let child = send.get_or_insert_with(|| spawn_send(&file, start.ports.unwrap().0, None));
            for _ in 0..3_000 {
                if server.ended().is_some() {
                    break;
                }
                if child.try_wait().unwrap().is_some() {
                    server.poke(nth).await;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(server.ended().is_some(), "{name} was not hit {nth} times");
            hits += 1;
        }
    }
    let logged = std::fs::read_to_string(&log).unwrap();
    assert_eq!(logged.lines().count(), hits, "{logged}");
    settled(&start.run(&data), send.unwrap(), &expected).await
}
