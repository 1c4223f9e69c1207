//! Lines out of order: within the declared disorder the answer is the same; beyond it exactly the
//! records that rule R1 names are late, and final and late add up.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use quikflow_topics::partitioner::partition_of;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use support::count::{Expected, csv};
use support::random::Random;
use support::{Server, both};

/// As `topologies.toml` declares them, in milliseconds.
const DISORDER: i64 = 5_000;
const WINDOW: i64 = 60_000;
const GRACE: i64 = 30_000;
const PARTITIONS: u32 = 12;
const DAY: i64 = 86_400_000;

/// A message: event time in milliseconds, its number, its channel.
#[derive(Clone, Copy)]
struct Message {
    time: i64,
    number: u64,
    channel: u64,
}

impl Message {
    fn id(&self) -> String {
        format!("m{}", self.number)
    }

    fn line(&self) -> String {
        let (number, channel) = (self.number, self.channel);
        let at = chrono::DateTime::from_timestamp_millis(self.time).unwrap();
        let at = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let payload = json!({
            "messageId": self.id(), "channelId": format!("c{channel}"), "userId": format!("u{}", number % 37),
            "content": "x".repeat(1 + (number % 211) as usize),
        });
        json!({ "type": "MESSAGE_SENT", "payload": payload, "timestamp": at }).to_string()
    }
}

/// Messages in the order of their time, forty a second; few channels have most of them.
fn messages(random: &mut Random, count: u64) -> Vec<Message> {
    let start = chrono::DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z").unwrap().timestamp_millis();
    (0..count)
        .map(|number| {
            let most = 1 + random.below(60);
            // First each channel once, so that every partition has a watermark early.
            let channel = if number < 60 { number } else { random.below(most) };
            Message { time: start + number as i64 * 25, number, channel }
        })
        .collect()
}

/// Puts messages in the order in which they come when each is on its way for `delay` milliseconds.
fn delayed(messages: &[Message], mut delay: impl FnMut() -> i64) -> Vec<Message> {
    let mut arrivals: Vec<(i64, Message)> = messages.iter().map(|m| (m.time + delay(), *m)).collect();
    arrivals.sort_by_key(|(at, m)| (*at, m.number));
    arrivals.into_iter().map(|(_, message)| message).collect()
}

/// The numbers of the late messages by rule R1: per source partition the running maximum of event
/// time before the record, less the disorder, has reached the end of the record's window and the grace.
fn late(arrived: &[Message]) -> BTreeSet<String> {
    let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
    let mut late = BTreeSet::new();
    for message in arrived {
        let partition = partition_of(Some(&format!("c{}", message.channel)), PARTITIONS).0;
        let end = message.time.div_euclid(WINDOW) * WINDOW + WINDOW;
        let before = newest.get(&partition).copied();
        if before.is_some_and(|newest| end + GRACE <= newest - DISORDER) {
            late.insert(message.id());
        }
        newest.insert(partition, before.map_or(message.time, |newest| newest.max(message.time)));
    }
    late
}

/// The least watermark over the partitions: windows that end with their grace before it are closed.
fn watermark(messages: &[Message]) -> i64 {
    let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
    for message in messages {
        let partition = partition_of(Some(&format!("c{}", message.channel)), PARTITIONS).0;
        let newest = newest.entry(partition).or_insert(message.time);
        *newest = message.time.max(*newest);
    }
    newest.values().min().unwrap() - DISORDER
}

/// When the row's window starts.
fn starts(row: &[(String, String)]) -> Option<String> {
    row.iter().find(|(name, _)| name == "window_start").map(|(_, start)| start.clone())
}

/// A server that has taken these messages in this order.
fn served(folder: &Path, name: &str, arrived: &[Message], args: &[&str]) -> Server {
    let file = folder.join(format!("{name}.jsonl"));
    let text: String = arrived.iter().map(|message| message.line() + "\n").collect();
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&folder.join(name));
    let output = server.send(&file, args).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    server.settle();
    server
}

fn expected<'a>(messages: impl Iterator<Item = &'a Message>) -> Expected {
    let lines: Vec<String> = messages.map(Message::line).collect();
    Expected::of(lines.iter().map(String::as_str))
}

/// All rows of the view, each column with its name, in the order of their keys. The epoch, which
/// says when a row was written, is left out.
async fn rows(server: &Server) -> BTreeSet<Vec<(String, String)>> {
    let (names, rows) = csv(server, "channel_activity").await;
    let row = |row: &Vec<String>| {
        let cells = names.iter().filter(|(name, _)| *name != "epoch");
        cells.map(|(name, at)| (name.clone(), row[*at].clone())).collect()
    };
    rows.iter().map(row).collect()
}

/// The ids in the topic of late records.
fn late_ids(server: &Server) -> Vec<String> {
    let output = server.command(&["topics", "read", "late.channel-activity"]);
    assert!(output.status.success(), "{}", both(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.map(|r| field(&r, "messageId").unwrap_or_else(|| panic!("no message in {r}"))).collect()
}

/// A payload's field, however deep the record holds it.
fn field(record: &Value, name: &str) -> Option<String> {
    let object = record.as_object()?;
    let own = object.iter().find(|(key, _)| key.rsplit('.').next() == Some(name)).and_then(|(_, value)| value.as_str());
    own.map(str::to_owned).or_else(|| object.values().find_map(|value| field(value, name)))
}

/// How many late records the books hold.
async fn late_in_books(server: &Server) -> u64 {
    let status = server.get("/v1/status").await;
    let topologies = status["topologies"].as_array().unwrap_or_else(|| panic!("{status}"));
    let one = topologies.iter().find(|t| t["name"] == "channel-activity").unwrap();
    one["late"].as_u64().unwrap_or_else(|| panic!("{one}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_lines_shuffled_within_the_disorder_give_the_same_answer() {
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let ordered = messages(&mut random, 20_000);
    let shuffled = delayed(&ordered, || random.below(DISORDER as u64) as i64);
    let moved = ordered.iter().zip(&shuffled).filter(|(one, other)| one.number != other.number).count();
    assert!(moved > 19_000, "only {moved} lines moved");
    assert!(late(&shuffled).is_empty());
    let expected = expected(ordered.iter());

    let server = served(folder.path(), "ordered", &ordered, &[]);
    expected.check(&server).await;
    let first = rows(&server).await;
    assert_eq!(server.stop().code(), Some(0));

    let server = served(folder.path(), "shuffled", &shuffled, &["--batch", "333", "--connections", "3"]);
    expected.check(&server).await;
    let second = rows(&server).await;
    let differ: Vec<_> = first.symmetric_difference(&second).take(4).collect();
    assert!(differ.is_empty(), "{differ:?}");
    let last = ("final".to_owned(), "true".to_owned());
    let closed: BTreeSet<_> = first.iter().filter(|row| row.contains(&last)).flat_map(|row| starts(row)).collect();
    let open: BTreeSet<_> = first.iter().filter(|row| !row.contains(&last)).flat_map(|row| starts(row)).collect();
    assert!(closed.is_disjoint(&open) && closed.len() >= 5, "closed {closed:?}, open {open:?}");
    let reached = watermark(&ordered);
    let ended =
        |start: &String| chrono::DateTime::parse_from_rfc3339(start).unwrap().timestamp_millis() + WINDOW + GRACE <= reached;
    assert!(closed.iter().all(ended) && !open.iter().any(ended), "closed {closed:?}, open {open:?}");
    assert_eq!((late_ids(&server).len(), late_in_books(&server).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_r20_beyond_the_disorder_exactly_the_late_records_are_late_and_all_add_up() {
    let seed = 20_261_125;
    println!("seed {seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut sent = messages(&mut random, 30_000);
    // From the third minute on one in a hundred tells of the day before.
    for message in sent.iter_mut().skip(4_800) {
        message.time -= if random.below(100) == 0 { DAY } else { 0 };
    }
    // One in twenty takes up to four minutes: some come in time, some just too late. A message of
    // the day before is on its way for that day, so it arrives in its place.
    let arrived = {
        let mut arrivals: Vec<(i64, Message)> = Vec::new();
        for message in &sent {
            let slow = if message.number >= 4_800 && random.below(20) == 0 {
                random.below(240_000)
            } else {
                random.below(DISORDER as u64)
            };
            arrivals.push((sent[0].time + message.number as i64 * 25 + slow as i64, *message));
        }
        arrivals.sort_by_key(|(at, m)| (*at, m.number));
        arrivals.into_iter().map(|(_, message)| message).collect::<Vec<_>>()
    };
    let late = late(&arrived);
    let old = arrived.iter().filter(|m| m.time < sent[0].time).count();
    println!("{} late, {old} of the day before", late.len());
    assert!(old > 200 && late.len() > old + 200, "{} late, {old} of the day before", late.len());

    let server = served(folder.path(), "late", &arrived, &["--batch", "500", "--connections", "2"]);
    let found = late_ids(&server);
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(found.len(), distinct.len(), "a late record stands twice");
    let differ: Vec<_> = late.symmetric_difference(&distinct).take(5).collect();
    assert!(differ.is_empty(), "{} expected, {} found: {differ:?}", late.len(), distinct.len());
    assert_eq!(late_in_books(&server).await, late.len() as u64);

    let counted = expected(arrived.iter().filter(|m| !late.contains(&m.id())));
    let activity = support::count::activity(&server).await;
    let wrong: Vec<_> = counted.activity.iter().filter(|(key, value)| activity.get(*key) != Some(value)).take(3).collect();
    assert!(wrong.is_empty(), "expected {wrong:?}, found {:?}", wrong.iter().map(|(k, _)| activity.get(*k)).collect::<Vec<_>>());
    let in_windows: u64 = activity.values().map(|(messages, _, _)| messages).sum();
    assert_eq!(in_windows + late.len() as u64, sent.len() as u64);
    assert_eq!(activity.len(), counted.activity.len());
    // Late for a window is not late for the store: all messages stand there.
    let stored = support::count::keys(&server, "messages").await;
    assert_eq!(stored.len(), sent.len());
    assert_eq!(server.stop().code(), Some(0));
}
