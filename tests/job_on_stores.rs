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

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::count::{Expected, csv};
use support::harness::{self, shared_file, skip};
use support::random::Random;
use support::services::{empty_kafka, service};
use support::{Server, Start, both, free_ports};

crate::tests! {
    in turn:
    each BROKERS: async the_main_job_is_exact_on_real_stores,
    each SHARING: async r13_r19_processes_share_the_sinks_and_come_and_go,
    each BROKERS: async r13_r17_kills_of_every_process_and_frozen_stores_change_nothing,
}

/// What is beneath; Kafka where a test server is named.
const BROKERS: [&str; 2] = ["embedded", "kafka"];

/// Where several processes share the sinks.
const SHARING: [&str; 1] = ["kafka"];

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

/// The first `most` events of the real chat where it is, then made-up ones of all types.
fn input(most: usize) -> Vec<String> {
    let most = std::env::var("QUIKFLOW_STORES_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(most);
    let mut text = String::new();
    if let Some(packed) = shared_file("data/chat-messages.jsonl.gz") {
        let file = std::fs::File::open(packed).unwrap();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
    }
    let mut lines: Vec<String> = text.lines().take(most).map(str::to_owned).collect();
    // They are younger than the chat: nothing comes too late.
    let time = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["timestamp"].as_str().map(str::to_owned);
    let from = lines.iter().filter_map(time).max().unwrap_or_else(|| "2026-01-05T09:00:00Z".to_owned());
    let made_up = if lines.is_empty() { most.min(60_000) } else { (most / 5).min(10_000) };
    let generate = ["generate", "--events", &made_up.to_string(), "--seed", "7", "--from", &from];
    let output = support::command(&generate).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    lines.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned));
    lines
}

/// What must stand in the stores of MySQL and Redis, told from the lines themselves.
#[derive(Debug, Default, PartialEq)]
struct Entities {
    /// User → (deleted, banned).
    users: BTreeMap<String, (bool, bool)>,
    /// (channel, user)
    members: BTreeSet<(String, String)>,
    /// User → online, offline, or neither known.
    presence: BTreeMap<String, String>,
}

impl Entities {
    fn of(lines: &[String]) -> Entities {
        let mut found = Entities::default();
        for line in lines {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| event["payload"][name].as_str().unwrap_or_default().to_owned();
            match event["type"].as_str().unwrap() {
                "USER_CREATED" => {
                    found.users.insert(text("userId"), (false, false));
                }
                "USER_UPDATED" => {
                    found.users.entry(text("userId")).or_default();
                }
                "USER_DELETED" => found.users.entry(text("userId")).or_default().0 = true,
                "USER_BANNED" => found.users.entry(text("userId")).or_default().1 = true,
                "MEMBER_ADDED" => {
                    found.members.insert((text("channelId"), text("userId")));
                }
                "MEMBER_REMOVED" => {
                    found.members.remove(&(text("channelId"), text("userId")));
                }
                "USER_ONLINE" => {
                    found.presence.insert(text("userId"), "online".to_owned());
                }
                "USER_OFFLINE" => {
                    found.presence.insert(text("userId"), "offline".to_owned());
                }
                "USER_TYPING" | "STATUS_CHANGED" => {
                    found.presence.entry(text("userId")).or_default();
                }
                _ => {}
            }
        }
        found
    }

    async fn in_stores(server: &Server) -> Entities {
        let (names, rows) = csv(server, "users").await;
        let users = rows.iter().map(|row| {
            let is = |name: &str| row[names[name]] == "true";
            (row[names["userId"]].clone(), (is("deleted"), is("banned")))
        });
        let users = users.collect();
        let (names, rows) = csv(server, "members").await;
        let members = rows.iter().map(|row| (row[names["channelId"]].clone(), row[names["userId"]].clone())).collect();
        let (names, rows) = csv(server, "presence").await;
        let presence = rows.iter().map(|row| (row[names["userId"]].clone(), row[names["state"]].clone())).collect();
        Entities { users, members, presence }
    }
}

/// Everything that the stores must hold.
async fn check(server: &Server, lines: &[String]) {
    Expected::of(lines.iter().map(String::as_str)).check(server).await;
    let (wanted, found) = (Entities::of(lines), Entities::in_stores(server).await);
    assert!(!wanted.users.is_empty() && !wanted.members.is_empty() && !wanted.presence.is_empty());
    assert_eq!(found, wanted);
    // Nobody has read anything: each user's badge is the number of the notifications that the inbox holds.
    let (names, rows) = csv(server, "notifications").await;
    let mut unread: BTreeMap<String, u64> = BTreeMap::new();
    rows.iter().for_each(|row| *unread.entry(row[names["user"]].clone()).or_default() += 1);
    let (names, rows) = csv(server, "badges").await;
    let badges = rows.iter().map(|row| (row[names["user"]].clone(), row[names["unread"]].parse().unwrap()));
    let badges: BTreeMap<String, u64> = badges.collect();
    assert!(!unread.is_empty(), "nobody was notified");
    assert_eq!(badges, unread);
}

/// Whether `send` did its work: 1 says that some lines were refused.
fn sent(output: &std::process::Output) {
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", both(output));
}

async fn the_main_job_is_exact_on_real_stores(broker: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let beneath = beneath(broker, folder.path());
    let lines = input(30_000);
    let file = folder.path().join("events.jsonl");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    let server = Start { env: beneath.env, ..Start::default() }.run(&folder.path().join("data"));
    let clock = quikflow_topics::clock::SystemClock::shared();
    let started = clock.elapsed();
    sent(&server.send(&file, &[]).wait_with_output().unwrap());
    let taken = clock.elapsed();
    settle(&server);
    println!("{broker}: {} events sent in {:?}, settled after {:?}", lines.len(), taken - started, clock.elapsed() - started);
    check(&server, &lines).await;
    assert_eq!(server.stop().code(), Some(0));
}

/// Waits until another process has (or none has) some of the sinks.
async fn until_elsewhere(server: &Server, some: bool) {
    for _ in 0..600 {
        let report = server.get("/v1/lag").await;
        let elsewhere = report["sinks"].as_array().unwrap().iter().filter(|sink| sink["state"] == "elsewhere").count();
        if (elsewhere > 0) == some {
            println!("{elsewhere} sinks run elsewhere");
            return;
        }
        pause(Duration::from_millis(100)).await;
    }
    panic!("sinks run elsewhere: {some} was waited for; {}", server.get("/v1/lag").await["sinks"]);
}

/// One process has all parts; others come and take some of the sinks, are killed, frozen, stopped.
async fn r13_r19_processes_share_the_sinks_and_come_and_go(broker: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let beneath = beneath(broker, folder.path());
    let lines = evenly(input(10_000));
    let file = folder.path().join("events.jsonl");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    let start = Start { env: beneath.env, ..Start::default() };
    let server = start.run(&folder.path().join("data"));
    // The files of the audit log and the outbox are the first one's.
    let sinks = |name: &str| {
        let mut start = Start { args: vec!["sinks".to_owned()], ..start.clone() };
        start.env.push(("QUIKFLOW_LOCAL_SINKS".to_owned(), "off".to_owned()));
        start.run(&folder.path().join(name))
    };
    let send = server.send(&file, &["--batch", "50", "--rate", &(lines.len() / 60).to_string()]);
    let killed = sinks("killed");
    until_elsewhere(&server, true).await;
    killed.kill();
    until_elsewhere(&server, false).await;
    let frozen = sinks("frozen");
    until_elsewhere(&server, true).await;
    frozen.signal("-STOP");
    until_elsewhere(&server, false).await;
    frozen.signal("-CONT");
    until_elsewhere(&server, true).await;
    sent(&send.wait_with_output().unwrap());
    assert_eq!(frozen.stop().code(), Some(0));
    settle(&server);
    check(&server, &lines).await;
    let sent = |of: &str| std::fs::read_dir(folder.path().join(of).join("outbox/push")).unwrap().count();
    assert!(sent("data") > 0 && sent("frozen") == 0 && sent("killed") == 0);
    assert_eq!(server.stop().code(), Some(0));
}

/// A server that is frozen until this goes, however the test ends.
struct Frozen(&'static str);

impl Frozen {
    fn now(name: &'static str) -> Frozen {
        service("freeze", name);
        Frozen(name)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        service("thaw", self.0);
    }
}

/// Waits for real time: what is killed and frozen lives outside.
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The running process, and a share of the events on its way into it.
struct Traffic<'a> {
    start: Start,
    data: PathBuf,
    server: Server,
    shares: std::iter::Enumerate<std::slice::Chunks<'a, String>>,
}

impl Traffic<'_> {
    /// Sends the next share, evenly over about so long.
    fn send(&mut self, over: Duration) -> std::process::Child {
        let (number, share) = self.shares.next().unwrap();
        let file = self.data.with_extension(format!("{number}.jsonl"));
        std::fs::write(&file, share.join("\n") + "\n").unwrap();
        let rate = (share.len() as f64 / over.as_secs_f64()).ceil() as u64;
        self.server.send(&file, &["--batch", "50", "--rate", &rate.to_string()])
    }

    fn start_again(&mut self) {
        self.server = self.start.run(&self.data);
    }

    /// Waits until a share is sent; nothing that befalls the others ends our process.
    async fn sent(&mut self, mut send: std::process::Child) {
        while send.try_wait().unwrap().is_none() {
            if let Some(status) = self.server.ended() {
                send.kill().unwrap();
                panic!("the process ended by itself: {status}");
            }
            pause(Duration::from_millis(20)).await;
        }
        sent(&send.wait_with_output().unwrap());
    }

    /// Records that sinks of a store have not written yet.
    async fn lag_of(&self, store: &str) -> u64 {
        let report = self.server.get("/v1/lag").await;
        let of = |sink: &serde_json::Value| (sink["store"] == store).then(|| format!("sink:{}", sink["sink"].as_str().unwrap()));
        let groups: Vec<String> = report["sinks"].as_array().unwrap().iter().filter_map(of).collect();
        let all = report["groups"].as_array().unwrap().iter();
        all.filter(|row| groups.iter().any(|group| row["group"] == group.as_str())).filter_map(|row| row["lag"].as_u64()).sum()
    }
}

async fn r13_r17_kills_of_every_process_and_frozen_stores_change_nothing(broker: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let beneath = beneath(broker, folder.path());
    if broker == "kafka" {
        // It is killed: with all that other tests have left in it, it would take minutes to be back.
        empty_kafka();
    }
    service("start", beneath.services[0]);
    let seed = std::env::var("QUIKFLOW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_123);
    println!("seed {seed}");
    let mut random = Random(seed);
    // Each store sees traffic in each share.
    let lines = evenly(input(20_000));
    let shares = 25 + beneath.services.len();
    let data = folder.path().join("data");
    let start = Start { env: beneath.env, ports: Some(free_ports()), ..Start::default() };
    let server = start.run(&data);
    let share = lines.len().div_ceil(shares);
    let mut traffic = Traffic { start, data, server, shares: lines.chunks(share).enumerate() };
    // Every process at least once: ours, then each service's, then as drawn.
    let mut order: Vec<Option<&str>> = std::iter::once(None).chain(beneath.services.iter().map(|s| Some(*s))).collect();
    while order.len() < 25 {
        let at = random.below(beneath.services.len() as u64 + 2) as usize;
        order.push(beneath.services.get(at).copied());
    }
    for victim in order {
        let send = traffic.send(Duration::from_millis(1_500));
        pause(Duration::from_millis(50 + random.below(1_500))).await;
        match victim {
            None => {
                traffic.server.end();
                traffic.start_again();
            }
            Some(name) => {
                service("kill", name);
                pause(Duration::from_millis(random.below(1_000))).await;
                service("start", name);
            }
        }
        traffic.sent(send).await;
    }
    let frozen = std::env::var("QUIKFLOW_FROZEN_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(30);
    for name in &beneath.services {
        let ice = Frozen::now(name);
        let send = traffic.send(Duration::from_secs(frozen) / 2);
        pause(Duration::from_secs(frozen)).await;
        if *name != "kafka" {
            assert!(traffic.lag_of(name).await > 0, "{name} was frozen, and its sinks wrote");
        }
        drop(ice);
        traffic.sent(send).await;
    }
    assert!(traffic.shares.next().is_none(), "some events were not sent");
    settle(&traffic.server);
    check(&traffic.server, &lines).await;
    assert_eq!(traffic.server.stop().code(), Some(0));
}

/// The same lines, those about users spread evenly over the others; of each kind in their order. They
/// are of other topics than messages, so that no message comes too late by it.
fn evenly(lines: Vec<String>) -> Vec<String> {
    let of_users = |line: &String| ["\"USER_", "\"STATUS_CHANGED", "\"MEMBER_"].iter().any(|kind| line.contains(kind));
    let (users, others): (Vec<String>, Vec<String>) = lines.into_iter().partition(of_users);
    let (all, every) = (users.len() + others.len(), users.len());
    let (mut users, mut others) = (users.into_iter(), others.into_iter());
    let of_users = |at: usize| (at + 1) * every / all > at * every / all;
    (0..all).filter_map(|at| if of_users(at) { users.next() } else { others.next() }).collect()
}

/// Waits until everything is in its store, and says what is not.
fn settle(server: &Server) {
    let output = server.command(&["lag", "--wait", "--timeout", "400s"]);
    assert!(output.status.success(), "lag --wait: {}", both(&output));
}
