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

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;
use support::count::Expected;
use support::harness::shared_file;
use support::random::Random;
use support::{QUIKFLOW, Server, Start, both, free_ports};

/// Made-up events of all types but members: fan-out to each member writes a file a push, which is
/// not what is looked at here.
fn generated(folder: &Path, events: u64) -> (PathBuf, Expected) {
    let output = support::command(&["generate", "--events", &events.to_string(), "--seed", "7"]).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    let file = folder.join("events.jsonl");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("MEMBER_ADDED")).collect();
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    (file, Expected::of(lines.into_iter()))
}

/// The real chat data where it is, else made-up events.
fn input(folder: &Path) -> (PathBuf, Expected) {
    let Some(packed) = shared_file("data/chat-messages.jsonl.gz") else { return generated(folder, 60_000) };
    let mut text = String::new();
    let file = std::fs::File::open(packed).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
    let file = folder.join("chat.jsonl");
    std::fs::write(&file, &text).unwrap();
    (file, Expected::of(text.lines()))
}

fn spawn_send(file: &Path, port: u16, rate: Option<usize>) -> Child {
    let mut command = std::process::Command::new(QUIKFLOW);
    command.arg("send").arg(file).args(["--url", &format!("http://127.0.0.1:{port}"), "--batch", "500"]);
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let quiet = std::process::Stdio::null;
    command.stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().unwrap()
}

fn pause(random: &mut Random, upto: u64) {
    std::thread::sleep(Duration::from_millis(20 + random.below(upto)));
}

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
                    poke(&server, nth).await;
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

/// One event that a sink follows and no count here looks at, so that a process without traffic gets to its failpoint.
async fn poke(server: &Server, number: u64) {
    let event = format!(
        r#"{{"type":"USER_TYPING","payload":{{"userId":"poke-{number}","channelId":"c"}},"timestamp":"2026-01-01T00:00:00Z"}}"#
    );
    let answer =
        support::client().post(format!("{}/v1/events", server.ingest)).header("content-type", "application/json").body(event);
    // The server may be killed before it answers: that is what the failpoint is for.
    if let Ok(answer) = answer.send().await {
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}
