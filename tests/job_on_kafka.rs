//! The main job on a real Kafka, end to end, while processes are killed; see `support/kafka.rs` for how
//! Kafka is named.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use support::chat::Chat;
use support::count::csv;
use support::kafka::Kafka;
use support::kills::{self, settled, slow_send};
use support::random::Random;
use support::services::{empty_kafka, service};
use support::traffic::{generated, input, pause};
use support::{Server, Start, both, free_ports, harness};

crate::tests! {
    in turn:
    async the_main_job_is_exact_on_kafka,
    async r17_r19_kills_of_the_server_and_of_send_change_nothing,
    async r19_another_client_sees_each_output_once,
    async r19_a_kill_at_every_failpoint_changes_nothing,
    async r19_kafka_killed_and_frozen_changes_nothing,
    async r19_processes_come_and_go_and_the_answer_stays,
    async r19_members_are_notified_whichever_process_has_the_channel,
    async r19_a_zombie_is_refused,
    async r18_a_retry_goes_to_the_other_ingest_process,
    async r19_any_process_knows_what_all_of_them_have_done,
}

/// How long the whole of a run with kills takes, in seconds.
const RUN: usize = 40;

async fn the_main_job_is_exact_on_kafka() {
    let kafka = Kafka::named("chat");
    let folder = tempfile::tempdir().unwrap();
    let chat = Chat::take(folder.path());
    let server = kafka.start().run(&folder.path().join("data"));
    chat.send(&server);
    server.settle();
    chat.is_there(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

async fn r17_r19_kills_of_the_server_and_of_send_change_nothing() {
    let kafka = Kafka::named("kills");
    let folder = tempfile::tempdir().unwrap();
    kills::at_random_moments(kafka.start(), folder.path(), 20_261_123, RUN, 900).await;
}

/// How many of the lines are good events of the topic of messages.
fn of_messages(lines: &str) -> u64 {
    let good = lines.lines().filter(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let ty = event["type"].as_str().unwrap();
        let length = event["payload"]["content"].as_str().map(|content| content.chars().count());
        ["MESSAGE_SENT", "MESSAGE_EDITED", "MESSAGE_DELETED", "REACTION_ADDED"].contains(&ty)
            && length.is_none_or(|length| (1..=10_000).contains(&length))
    });
    good.count() as u64
}

/// Python's client, read_committed, while our process is killed in the middle of commits.
async fn r19_another_client_sees_each_output_once() {
    let kafka = Kafka::named("other");
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 40_000);
    let data = folder.path().join("data");
    let start = Start { ports: Some(free_ports()), ..kafka.start() };
    let mut send = slow_send(&file, start.ports.unwrap().0, RUN);
    for round in 0..6 {
        let mut start = start.clone();
        let place = if round % 2 == 0 { "log.commit.before" } else { "log.commit.after" };
        start.env.push(("QUIKFLOW_FAILPOINT".to_owned(), format!("{place}:{}", 20 + 7 * round)));
        let Ok(mut server) = start.try_run(&data) else { continue };
        for _ in 0..3_000 {
            if server.ended().is_some() || send.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let server = start.run(&data);
    settled(&server, send, &expected).await;
    let sent = of_messages(&std::fs::read_to_string(&file).unwrap());
    for (topic, records) in [("analytics.channel-activity", None), ("QuikApp.messages", Some(sent))] {
        let python = std::env::var("QUIKFLOW_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = std::process::Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/read_committed.py"));
        command.arg(&kafka.brokers).arg(format!("{}.{topic}", kafka.prefix)).args(records.map(|n| n.to_string()));
        let output = command.output().unwrap();
        println!("{topic}: {}", both(&output));
        if output.status.code() == Some(77) {
            harness::skip("no confluent-kafka for this Python (QUIKFLOW_TEST_PYTHON)");
        }
        assert!(output.status.success(), "{topic}: {}", both(&output));
    }
}

async fn r19_a_kill_at_every_failpoint_changes_nothing() {
    let kafka = Kafka::named("failpoints");
    let folder = tempfile::tempdir().unwrap();
    kills::at_every_failpoint(kafka.start(), folder.path()).await;
}

async fn r19_kafka_killed_and_frozen_changes_nothing() {
    empty_kafka();
    let kafka = Kafka::named("broker");
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = input(folder.path());
    let start = Start { ports: Some(free_ports()), ..kafka.start() };
    let mut server = start.run(&folder.path().join("data"));
    let send = slow_send(&file, start.ports.unwrap().0, RUN);
    for _ in 0..5 {
        pause(&mut random, 5_000);
        service("kill", "kafka");
        service("start", "kafka");
        assert_eq!(server.ended(), None, "the server ended when Kafka was killed");
    }
    pause(&mut random, 3_000);
    service("freeze", "kafka");
    std::thread::sleep(Duration::from_secs(30));
    service("thaw", "kafka");
    assert_eq!(server.ended(), None, "the server ended when Kafka was frozen");
    settled(&server, send, &expected).await;
    assert_eq!(server.stop().code(), Some(0));
}

/// A process that runs pipelines alone.
fn pipelines(kafka: &Kafka, folder: &Path, name: &str) -> Server {
    let mut start = Start { args: vec!["pipelines".to_owned()], ..kafka.start() };
    start.env.push(("QUIKFLOW_STANDBY".to_owned(), "on".to_owned()));
    start.run(&folder.join(name))
}

/// The parts that are not shared here: the embedded stores are one process's.
fn rest(kafka: &Kafka) -> Start {
    let args = ["ingest", "sinks", "query"].map(str::to_owned).to_vec();
    Start { args, ports: Some(free_ports()), ..kafka.start() }
}

async fn r19_processes_come_and_go_and_the_answer_stays() {
    let kafka = Kafka::named("many");
    let seed = 20_261_125;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 40_000);
    let rest = rest(&kafka);
    let server = rest.run(&folder.path().join("rest"));
    let mut running = vec![pipelines(&kafka, folder.path(), "p0"), pipelines(&kafka, folder.path(), "p1")];
    let send = slow_send(&file, rest.ports.unwrap().0, RUN);
    pause(&mut random, 5_000);
    running.push(pipelines(&kafka, folder.path(), "p2"));
    pause(&mut random, 5_000);
    // One is killed and does not come back: the others have its shares when its session is over.
    running.remove(0).kill();
    pause(&mut random, 5_000);
    // All roll, one after the other, by a kill or in good order.
    for index in 0..running.len() {
        let old = running.remove(0);
        match random.below(2) {
            0 => old.kill(),
            _ => assert_eq!(old.stop().code(), Some(0)),
        }
        running.push(pipelines(&kafka, folder.path(), &format!("p{}", index + 1)));
        pause(&mut random, 3_000);
    }
    settled(&server, send, &expected).await;
    for process in running {
        assert_eq!(process.stop().code(), Some(0));
    }
    assert_eq!(server.stop().code(), Some(0));
}

/// Each message once to each member of its channel but its sender, or by name to whom it names: (user, notification).
/// The members are of before all messages.
fn notified(members: &[Value], messages: &[Value]) -> BTreeSet<(String, String)> {
    let text = |event: &Value, field: &str| event["payload"][field].as_str().unwrap().to_owned();
    let mut of_channel: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for member in members {
        of_channel.entry(text(member, "channelId")).or_default().insert(text(member, "userId"));
    }
    let mut all = BTreeSet::new();
    for message in messages {
        let [id, channel, sender] = ["messageId", "channelId", "userId"].map(|field| text(message, field));
        let named = message["payload"]["mentions"].as_array().cloned().unwrap_or_default();
        let named: BTreeSet<String> = named.iter().map(|user| user.as_str().unwrap().to_owned()).collect();
        let members = of_channel.get(&channel).into_iter().flatten();
        let plain = members.filter(|user| !named.contains(*user)).map(|user| (user, "msg"));
        let both = plain.chain(named.iter().map(|user| (user, "mention"))).filter(|(user, _)| **user != sender);
        all.extend(both.map(|(user, kind)| (user.clone(), format!("{kind}:{user}:{channel}:{id}"))));
    }
    all
}

/// The table of members lies by channel and user, messages by channel: each share reads it whole and keeps its channels'.
async fn r19_members_are_notified_whichever_process_has_the_channel() {
    let kafka = Kafka::named("fan-out");
    let folder = tempfile::tempdir().unwrap();
    let made = support::command(&["generate", "--events", "9000", "--seed", "11"]).output().unwrap();
    let events: Vec<Value> = made.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let of = |ty: &str| events.iter().filter(|event| event["type"] == ty).cloned().collect::<Vec<_>>();
    let (mut members, messages) = (of("MEMBER_ADDED"), of("MESSAGE_SENT"));
    members.iter_mut().for_each(|member| member["timestamp"] = json!("2026-01-05T08:59:00.000Z"));
    let expected = notified(&members, &messages);
    assert!(expected.len() > 5_000, "{} notifications show nothing", expected.len());
    let [members, messages] = [("members", members), ("messages", messages)].map(|(name, events)| {
        let file = folder.path().join(name).with_extension("jsonl");
        let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
        std::fs::write(&file, lines).unwrap();
        file
    });
    let rest = rest(&kafka);
    let server = rest.run(&folder.path().join("rest"));
    let mut running = vec![pipelines(&kafka, folder.path(), "p0"), pipelines(&kafka, folder.path(), "p1")];
    let sent = server.send(&members, &[]).wait_with_output().unwrap();
    assert_eq!(sent.status.code(), Some(0), "{}", both(&sent));
    server.settle();
    let mut send = slow_send(&messages, rest.ports.unwrap().0, 20);
    std::thread::sleep(Duration::from_secs(4));
    running.remove(0).kill();
    std::thread::sleep(Duration::from_secs(4));
    running.push(pipelines(&kafka, folder.path(), "p0"));
    assert_eq!(send.wait().unwrap().code(), Some(0));
    server.settle();
    let (names, rows) = csv(&server, "notifications").await;
    let found: BTreeSet<(String, String)> =
        rows.iter().map(|row| (row[names["user"]].clone(), row[names["notification"]].clone())).collect();
    assert_eq!(found.len(), rows.len(), "some twice");
    let only = |a: &BTreeSet<_>, b: &BTreeSet<_>| a.difference(b).take(3).cloned().collect::<Vec<_>>();
    let (more, missing) = (only(&found, &expected), only(&expected, &found));
    assert!(found == expected, "{} of {}; more: {more:?}, missing: {missing:?}", found.len(), expected.len());
    for process in running {
        assert_eq!(process.stop().code(), Some(0));
    }
    assert_eq!(server.stop().code(), Some(0));
}

/// Waits until a topology has committed some of what is sent.
async fn committed(server: &Server) {
    for _ in 0..300 {
        let lag = server.get("/v1/lag").await;
        let of_topologies = lag["groups"].as_array().unwrap().iter();
        let mut of_topologies = of_topologies.filter(|group| group["group"].as_str().unwrap().starts_with("topology:"));
        let at_work = |group: &serde_json::Value| {
            group["partitions"].as_array().unwrap().iter().any(|partition| partition["position"].as_u64() > Some(0))
        };
        if of_topologies.any(at_work) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("no topology has committed anything");
}

async fn r19_a_zombie_is_refused() {
    let kafka = Kafka::named("zombie");
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 40_000);
    let rest = rest(&kafka);
    let server = rest.run(&folder.path().join("rest"));
    let mut zombie = pipelines(&kafka, folder.path(), "zombie");
    let send = slow_send(&file, rest.ports.unwrap().0, RUN);
    // It is at work: who has no share yet has nothing to commit late.
    committed(&server).await;
    zombie.signal("-STOP");
    let heir = pipelines(&kafka, folder.path(), "heir");
    // Longer than a session and a transaction may last.
    std::thread::sleep(Duration::from_secs(26));
    zombie.signal("-CONT");
    settled(&server, send, &expected).await;
    assert!(zombie.ended().is_none(), "the zombie ended instead of joining anew");
    let log = std::fs::read_to_string(folder.path().join("zombie.log")).unwrap();
    assert!(log.contains("starts again from the last commit") || log.contains("the engine had ended"), "{log}");
    assert_eq!(heir.stop().code(), Some(0));
    assert_eq!(zombie.stop().code(), Some(0));
    assert_eq!(server.stop().code(), Some(0));
}

/// `send` goes to one process; that is killed, and another one on the same port goes on.
async fn r18_a_retry_goes_to_the_other_ingest_process() {
    let kafka = Kafka::named("ingest");
    let seed = 20_261_126;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 40_000);
    let others = Start { args: ["pipelines", "sinks", "query"].map(str::to_owned).to_vec(), ..kafka.start() };
    let server = others.run(&folder.path().join("others"));
    let ports = free_ports();
    let door = Start { args: vec!["ingest".to_owned()], ports: Some(ports), ..kafka.start() };
    let mut open = door.run(&folder.path().join("one"));
    let send = slow_send(&file, ports.0, RUN);
    for round in 0..8 {
        pause(&mut random, 3_000);
        open.kill();
        open = door.run(&folder.path().join(if round % 2 == 0 { "two" } else { "one" }));
    }
    settled(&server, send, &expected).await;
    assert_eq!(open.stop().code(), Some(0));
    assert_eq!(server.stop().code(), Some(0));
}

/// Each part in a process of its own; the one that is asked has neither sinks nor stores.
async fn r19_any_process_knows_what_all_of_them_have_done() {
    let kafka = Kafka::named("asked");
    let folder = tempfile::tempdir().unwrap();
    let (file, expected) = generated(folder.path(), 10_000);
    let part = |name: &str, parts: &[&str], env: &[(&str, &str)]| {
        let mut start = Start { args: parts.iter().map(|part| (*part).to_owned()).collect(), ..kafka.start() };
        start.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        start.run(&folder.path().join(name))
    };
    let door = part("door", &["ingest"], &[]);
    let pipelines = part("pipelines", &["pipelines"], &[]);
    let stores = part("stores", &["sinks", "query"], &[]);
    let asked = part("asked", &["query"], &[("QUIKFLOW_EMBEDDED_STORES_URL", &stores.query)]);
    let sent = door.send(&file, &[]).wait_with_output().unwrap();
    assert_eq!(sent.status.code(), Some(0), "{}", both(&sent));
    asked.settle();
    expected.check(&asked).await;

    // Without anyone who runs the sinks, nothing is settled.
    assert_eq!(stores.stop().code(), Some(0));
    door.poke(1).await;
    let waited = asked.command(&["lag", "--wait", "--timeout", "3s"]);
    assert_eq!(waited.status.code(), Some(1), "{}", both(&waited));
    for server in [door, pipelines, asked] {
        assert_eq!(server.stop().code(), Some(0));
    }
}
