//! kill -9 of the server and of `send`, at random moments and at every failpoint: after the
//! restarts nothing is lost and nothing doubled, in no store and no view.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use std::time::Duration;
use support::random::Random;
use support::traffic::{generated, input, pause, spawn_send};
use support::{Start, both, free_ports};

#[tokio::test(flavor = "multi_thread")]
async fn r9_r17_twenty_five_kills_of_the_server_and_five_of_send_change_nothing() {
    let seed = 20_261_122;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = input(folder.path());
    let data = folder.path().join("data");
    let start = Start { ports: Some(free_ports()), ..Start::default() };
    let port = start.ports.unwrap().0;
    let mut server = start.run(&data);
    // Slow enough to be under way for as long as the kills take.
    let rate = Some(std::fs::read_to_string(&file).unwrap().lines().count() / 20);
    let mut send = spawn_send(&file, port, rate);
    let mut send_kills = 0;
    for kill in 0..25 {
        pause(&mut random, 700);
        if kill % 5 == 2 && send.try_wait().unwrap().is_none() {
            send.kill().unwrap();
            send.wait().unwrap();
            send_kills += 1;
            send = spawn_send(&file, port, rate);
            pause(&mut random, 100);
        }
        server.kill();
        server = start.run(&data);
    }
    assert_eq!(send_kills, 5, "send was done before it could be killed");
    let status = send.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "send ended with {status}");
    server.settle();
    expected.check(&server).await;
    assert_eq!(server.stop().code(), Some(0));
    let verified = support::command(&["verify", "--data", data.to_str().unwrap()]).output().unwrap();
    assert!(verified.status.success(), "{}", both(&verified));
}

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

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_kill_at_every_failpoint_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 12_000);
    let data = folder.path().join("data");
    let ports = free_ports();
    let log = folder.path().join("hits");
    let mut send = None;
    let mut hits = 0;
    for nth in [1, 3] {
        for name in FAILPOINTS {
            let env = vec![
                ("QUIKFLOW_FAILPOINT".to_owned(), format!("{name}:{nth}")),
                ("QUIKFLOW_FAILPOINT_LOG".to_owned(), log.to_string_lossy().into_owned()),
            ];
            let start = Start { env, ports: Some(ports), ..Start::default() };
            let Ok(mut server) = start.try_run(&data) else {
                hits += 1;
                continue;
            };
            // Each round sends the file's copy of its own, so that every place sees traffic.
            let child = send.get_or_insert_with(|| spawn_send(&file, ports.0, None));
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
    let server = Start { ports: Some(ports), ..Start::default() }.run(&data);
    let status = send.unwrap().wait().unwrap();
    assert!(status.success(), "send ended with {status}");
    server.settle();
    expected.check(&server).await;
}
