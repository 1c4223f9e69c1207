//! The main job on real stores: every view and store is exact, also when our process, the broker's and
//! the stores' are killed at random moments, and when each store is frozen for a while.
//!
//! `tests/services/run` starts the servers and names them in `QUIKFLOW_TEST_…`; a test runs on those
//! that are there, and is ignored where there is none. `QUIKFLOW_STORES_EVENTS` bounds the events.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::count::Expected;
use support::harness::{self, shared_file, skip};
use support::random::Random;
use support::{Server, Start, both, free_ports};

crate::tests! {
    each BROKERS: async the_main_job_is_exact_on_real_stores,
    each BROKERS: async r13_r17_kills_of_every_process_and_frozen_stores_change_nothing,
}

/// What is beneath; Kafka where a test server is named.
const BROKERS: [&str; 2] = ["embedded", "kafka"];

/// The stores: name, the variable of the test server, the setting.
const STORES: [(&str, &str, &str); 5] = [
    ("mongodb", "QUIKFLOW_TEST_MONGODB", "QUIKFLOW_MONGODB_URL"),
    ("elasticsearch", "QUIKFLOW_TEST_ELASTICSEARCH", "QUIKFLOW_ELASTICSEARCH_URL"),
    ("clickhouse", "QUIKFLOW_TEST_CLICKHOUSE", "QUIKFLOW_CLICKHOUSE_URL"),
    ("redis", "QUIKFLOW_TEST_REDIS", "QUIKFLOW_REDIS_URL"),
    ("mysql", "QUIKFLOW_TEST_MYSQL", "QUIKFLOW_MYSQL_URL"),
];

/// Real stores, and a broker, for one process: its environment, and the services' names.
struct Beneath {
    env: Vec<(String, String)>,
    services: Vec<&'static str>,
}

/// Namespaces of its own on every server that is named here; skips the test where there is none.
fn beneath(broker: &str, folder: &Path) -> Beneath {
    let name = folder.file_name().unwrap().to_string_lossy().to_ascii_lowercase();
    let space = format!("quikflow_job_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let mut found = Beneath { env: Vec::new(), services: Vec::new() };
    if !cfg!(all(
        feature = "mongodb",
        feature = "elasticsearch",
        feature = "clickhouse",
        feature = "redis",
        feature = "mysql",
        feature = "kafka"
    )) {
        skip("built without `--features full`");
    }
    for (store, variable, setting) in STORES {
        let Some(url) = std::env::var(variable).ok().filter(|url| !url.is_empty()) else { continue };
        let (scheme, rest) = url.split_once("://").unwrap();
        let (host, query) = rest.split_once('?').unwrap_or((rest, ""));
        let host = host.trim_end_matches('/');
        let value = match store {
            "redis" => format!("{scheme}://{host}/0?prefix={space}"),
            _ if query.is_empty() => format!("{scheme}://{host}/{space}"),
            _ => format!("{scheme}://{host}/{space}?{query}"),
        };
        found.env.push((setting.to_owned(), value));
        found.services.push(store);
    }
    if found.services.is_empty() {
        skip("no QUIKFLOW_TEST_… variable names a store");
    }
    if broker == "kafka" {
        let hosts = support::harness::server("QUIKFLOW_TEST_KAFKA");
        found.env.push(("QUIKFLOW_BROKER".to_owned(), format!("kafka://{hosts}/{space}")));
        found.services.push("kafka");
    }
    println!("{broker}: real stores: {}", found.services.join(", "));
    found
}

/// The command that starts, kills and freezes the servers; skips the test where it did not start them.
fn service(action: &str, name: &str) {
    let Ok(command) = std::env::var("QUIKFLOW_TEST_SERVICES") else {
        skip("QUIKFLOW_TEST_SERVICES names no command that kills servers (tests/services/run does)")
    };
    let output = Command::new(command).args([action, name]).output().unwrap();
    assert!(output.status.success(), "{action} {name}: {}", both(&output));
}

/// The first events of the real chat where it is, else made-up ones.
fn input(folder: &Path, most: usize) -> (PathBuf, Expected) {
    let most = std::env::var("QUIKFLOW_STORES_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(most);
    let text = match shared_file("data/chat-messages.jsonl.gz") {
        Some(packed) => {
            let mut text = String::new();
            let file = std::fs::File::open(packed).unwrap();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
            text
        }
        None => {
            let output = support::command(&["generate", "--events", "60000", "--seed", "7"]).output().unwrap();
            assert!(output.status.success(), "{}", both(&output));
            String::from_utf8(output.stdout).unwrap()
        }
    };
    // Fan-out to each member writes a file a push, which is not what is looked at here.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("MEMBER_ADDED")).take(most).collect();
    let file = folder.join("events.jsonl");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    (file, Expected::of(lines.into_iter()))
}

async fn the_main_job_is_exact_on_real_stores(broker: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let beneath = beneath(broker, folder.path());
    let (file, expected) = input(folder.path(), usize::MAX);
    let server = Start { env: beneath.env, ..Start::default() }.run(&folder.path().join("data"));
    let clock = quikflow_topics::clock::SystemClock::shared();
    let started = clock.elapsed();
    let sent = server.send(&file, &[]).wait_with_output().unwrap();
    assert!(matches!(sent.status.code(), Some(0 | 1)), "{}", both(&sent));
    let taken = clock.elapsed();
    server.settle();
    println!("{broker}: sent in {:?}, settled after {:?}", taken - started, clock.elapsed() - started);
    expected.check(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

/// Waits for real time: what is killed and frozen lives outside.
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn r13_r17_kills_of_every_process_and_frozen_stores_change_nothing(broker: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let beneath = beneath(broker, folder.path());
    service("start", beneath.services[0]);
    let seed = std::env::var("QUIKFLOW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_123);
    println!("seed {seed}");
    let mut random = Random(seed);
    let (file, expected) = input(folder.path(), 60_000);
    let data = folder.path().join("data");
    let start = Start { env: beneath.env, ports: Some(free_ports()), ..Start::default() };
    let mut server = start.run(&data);
    // Slow enough to be under way for as long as the kills take.
    let lines = std::fs::read_to_string(&file).unwrap().lines().count();
    let send = server.send(&file, &["--batch", "500", "--rate", &(lines / 60).to_string()]);
    // Every process at least once: ours, then each service's, then as drawn.
    let mut order: Vec<Option<&str>> = std::iter::once(None).chain(beneath.services.iter().map(|s| Some(*s))).collect();
    while order.len() < 25 {
        let at = random.below(beneath.services.len() as u64 + 2) as usize;
        order.push(beneath.services.get(at).copied());
    }
    for victim in order {
        pause(Duration::from_millis(50 + random.below(1_500))).await;
        match victim {
            None => {
                server.kill();
                server = start.run(&data);
            }
            Some(name) => {
                service("kill", name);
                pause(Duration::from_millis(random.below(1_000))).await;
                service("start", name);
            }
        }
        if server.ended().is_some() {
            // An epoch that the broker refused ends the process, which goes on from the last one.
            assert_eq!(broker, "kafka", "the process ended by itself");
            server = start.run(&data);
        }
    }
    let frozen = Duration::from_secs(std::env::var("QUIKFLOW_FROZEN_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(30));
    for name in &beneath.services {
        service("freeze", name);
        pause(frozen).await;
        service("thaw", name);
        if server.ended().is_some() {
            assert_eq!(broker, "kafka", "the process ended by itself while {name} was frozen");
            server = start.run(&data);
        }
    }
    let sent = send.wait_with_output().unwrap();
    assert!(matches!(sent.status.code(), Some(0 | 1)), "{}", both(&sent));
    settle(&server);
    expected.check(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

/// Waits until everything is in its store, and says what is not.
fn settle(server: &Server) {
    let output = server.command(&["lag", "--wait", "--timeout", "180s"]);
    assert!(output.status.success(), "lag --wait: {}", both(&output));
}
