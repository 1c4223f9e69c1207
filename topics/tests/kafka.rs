//! The same calls, the same answers: the embedded broker and a real Kafka.
//!
//! `QUIKFLOW_TEST_KAFKA=127.0.0.1:9092 cargo test --workspace --features kafka --test kafka`; each
//! test takes a prefix of its own, so that a broker may be used again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;
#[path = "../../tests/support/harness.rs"]
mod harness;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use common::{conformance, lane, read, rows, spec};
use quikflow_topics::broker::{Append, Broker, BrokerError, EpochCommit, Positions, Projection, ResetFrom, TopologyFigures};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions};
use quikflow_topics::catalogue::{Cleanup, TopicKind, TopicSpec};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::dead_letter::DeadLetterFilter;
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use quikflow_topics::schema;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::sync::Arc;
use std::time::Duration;

crate::tests! {
    r18_r19_the_same_calls_have_the_same_answers_on_kafka,
    r18_a_lane_moves_to_another_process_and_doubles_nothing,
    r18_what_others_wrote_wrongly_is_a_dead_letter,
    r18_a_repeat_by_id_is_not_known,
    r1_what_a_transaction_does_not_show_yet_is_unread,
    r18_what_retention_took_before_it_was_read_is_counted_once,
    what_an_aborted_transaction_left_is_nobodys_lag,
    r2_a_topic_that_is_written_all_the_time_is_read_to_its_end,
    r19_a_zombies_epoch_is_refused,
    r19_what_a_topology_has_come_to_is_seen_by_all_processes,
    what_does_not_fit_is_said_at_the_start,
}

/// A fresh prefix on the Kafka that the environment names.
fn url(test: &str) -> String {
    let brokers = harness::server("QUIKFLOW_TEST_KAFKA");
    let stamp = SystemClock::shared().now().0;
    format!("kafka://{brokers}/{test}-{stamp}")
}

fn kafka(url: &str) -> Arc<KafkaBroker> {
    KafkaBroker::open(KafkaOptions::from_url(url, SystemClock::shared()).unwrap()).unwrap()
}

fn r18_r19_the_same_calls_have_the_same_answers_on_kafka() {
    let url = url("same");
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::new(dir.path(), SystemClock::shared()) };
    let embedded = EmbeddedBroker::open(options).unwrap();
    let expected = conformance(embedded.as_ref());
    let broker = kafka(&url);
    let found = conformance(broker.as_ref());
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());

    // Another process finds all of it.
    let before = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
    broker.close();
    let again = kafka(&url);
    again.ensure_topics(&[spec("events", TopicKind::Events), spec("out", TopicKind::Rows)]).unwrap();
    assert_eq!(again.last_epoch().unwrap(), Epoch(3));
    assert_eq!(again.generation("out").unwrap(), 1);
    assert_eq!(again.lane_line("file:run").unwrap(), 106);
    assert_eq!(again.dead_letters(&DeadLetterFilter::default()).unwrap(), before);
}

/// Two ingest processes: a retry that goes to the other one doubles nothing.
fn r18_a_lane_moves_to_another_process_and_doubles_nothing() {
    let url = url("lanes");
    let events = spec("events", TopicKind::Events);
    let (one, two) = (kafka(&url), kafka(&url));
    for broker in [&one, &two] {
        broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    }
    let send = |broker: &Arc<KafkaBroker>, previous: u64, lines: &[u64]| loop {
        match broker.append(lane(&events, previous, lines)).unwrap().wait() {
            Err(BrokerError::Busy(_)) => {}
            other => return other.unwrap(),
        }
    };
    assert_eq!(send(&one, 0, &[1, 2, 3]).accepted, 3);
    // The answer was lost: the same batch goes to the other process, then the next to the first.
    let repeated = send(&two, 0, &[1, 2, 3]);
    assert_eq!((repeated.accepted, repeated.duplicates, repeated.lane_line), (0, 3, 3));
    assert_eq!(send(&two, 3, &[4, 5]).accepted, 2);
    let back = send(&one, 3, &[4, 5]);
    assert_eq!((back.accepted, back.duplicates), (0, 2));
    assert_eq!(send(&one, 5, &[6]).accepted, 1);
    assert_eq!(in_time(one.as_ref(), "events", 6), [1, 2, 3, 4, 5, 6]);
}

/// A record that is no event of its topic stops nobody.
fn r18_what_others_wrote_wrongly_is_a_dead_letter() {
    let url = url("foreign");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let (brokers, prefix) = url.trim_start_matches("kafka://").split_once('/').unwrap();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let event = |n: &str| format!(r#"{{"type":"T","timestamp":"2026-01-01T00:00:00Z","payload":{{"text":"a","n":{n}}}}}"#);
    for value in [event("1"), "no JSON".to_owned(), event("\"one\""), event("2"), event("3")] {
        let topic = format!("{prefix}.events");
        producer.send(BaseRecord::to(&topic).key("k").partition(1).payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    for _ in 0..2 {
        let mut reader = broker.reader("events", &Positions::new()).unwrap();
        let (mut numbers, mut rows) = (Vec::new(), 0);
        while let Some(slice) = reader.poll(3).unwrap() {
            let batch = slice.decode(&Projection::all(slice.topic())).unwrap();
            numbers.extend(batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().iter().copied());
            let (all, bad) = slice.decode_all(&Projection::all(slice.topic())).unwrap();
            assert_eq!((all.num_rows(), all.num_rows() - bad.len()), (slice.rows(), batch.num_rows()));
            rows += slice.rows();
        }
        assert_eq!((numbers, rows), (vec![1, 2, 3], 5));
        let mut letters = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
        letters.reverse();
        let found: Vec<_> =
            letters.iter().map(|(_, l)| (l.origin.clone().unwrap().offset.0, l.bytes.clone(), l.cause.as_str())).collect();
        assert_eq!(found, [(1, b"no JSON".to_vec(), "decoding"), (2, event("\"one\"").into_bytes(), "decoding")]);
    }
}

/// Ids without a lane are not looked up, and the answer does not pretend to know.
fn r18_a_repeat_by_id_is_not_known() {
    let url = url("ids");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let send = |id: Option<&str>| {
        let mut made = rows(&events, &[1]);
        let at = made.rows.schema().index_of(schema::ID).unwrap();
        let mut columns = made.rows.columns().to_vec();
        columns[at] = Arc::new(StringArray::from(vec![id]));
        made.rows = RecordBatch::try_new(made.rows.schema(), columns).unwrap();
        broker.append(Append { rows: vec![made], ..Append::default() }).unwrap().wait().unwrap()
    };
    assert!(!send(None).duplicates_unknown);
    for _ in 0..2 {
        let appended = send(Some("one"));
        assert!(appended.duplicates_unknown && appended.accepted == 1 && appended.duplicates == 0, "{appended:?}");
    }
    assert_eq!(read(broker.as_ref(), "events", &Positions::new()).0.len(), 3);
}

/// A partition's first records may stand in a transaction that other partitions show already; what was
/// aborted holds nobody back for ever.
fn r1_what_a_transaction_does_not_show_yet_is_unread() {
    let url = url("hidden");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let (brokers, prefix) = url.trim_start_matches("kafka://").split_once('/').unwrap();
    let mut settings = ClientConfig::new();
    let settings = settings.set("bootstrap.servers", brokers).set("transactional.id", format!("{prefix}.other"));
    let producer: BaseProducer = settings.create().unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    let topic = format!("{prefix}.events");
    let write = || {
        producer.begin_transaction().unwrap();
        let event = r#"{"type":"T","timestamp":"2026-01-01T00:00:00Z","payload":{"text":"a","n":1}}"#;
        producer.send(BaseRecord::to(&topic).key("k").partition(1).payload(event)).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
    };
    let mut reader = broker.reader("events", &Positions::new()).unwrap();
    let mut read = || {
        let mut rows = 0;
        while let Some(slice) = reader.poll(100).unwrap() {
            rows += slice.rows();
        }
        (rows, reader.positions())
    };
    let unread = |positions: &Positions, partition: u32| {
        let from = positions.iter().filter(|(of, _)| of.0 == partition).map(|(of, at)| (*of, *at)).collect();
        broker.unread("events", &from, true).unwrap()
    };
    // In how many looks, a tenth of a second apart, it is settled.
    let mut until = |wanted: usize| {
        let mut rows = 0;
        let settled = (0..100).find(|_| {
            broker.wakeup().wait(broker.wakeup().version(), Duration::from_millis(100));
            let (more, positions) = read();
            rows += more;
            rows == wanted && !unread(&positions, 1)
        });
        assert!(settled.is_some(), "{rows} of {wanted} records, and it still waits");
        read().1
    };
    let start = until(0);
    write();
    assert!(unread(&start, 1), "the open transaction's record is not waited for");
    assert!(!unread(&start, 0) && !unread(&start, 2), "empty partitions are waited for");
    producer.abort_transaction(Duration::from_secs(20)).unwrap();
    let aborted = until(0);
    write();
    assert!(unread(&aborted, 1));
    producer.commit_transaction(Duration::from_secs(20)).unwrap();
    assert!(unread(&aborted, 1), "it is not read yet");
    until(1);
}

/// The client tells the end of a partition when a fetch comes back empty, which never happens where a
/// record comes every few milliseconds: whoever reads must not wait for it.
fn r2_a_topic_that_is_written_all_the_time_is_read_to_its_end() {
    let url = url("trickle");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let append = || broker.append(Append { rows: vec![rows(&events, &[1])], ..Append::default() }).unwrap().wait().unwrap();
    append();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                append();
            }
        });
        let mut reader = broker.reader("events", &Positions::new()).unwrap();
        let clock = SystemClock::shared();
        let started = clock.elapsed();
        let mut read = 0;
        while let Some(slice) = reader.poll(100).unwrap() {
            read += slice.rows();
            if clock.elapsed() - started > Duration::from_secs(10) {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        let taken = clock.elapsed() - started;
        assert!(read > 0 && taken < Duration::from_secs(10), "no end within {taken:?}, {read} records");
    });
}

/// A zombie's late commit is fenced: nothing of it is seen.
fn r19_a_zombies_epoch_is_refused() {
    let url = url("zombie");
    let out = spec("out", TopicKind::Rows);
    let commit =
        |epoch: u64| EpochCommit { epoch: Epoch(epoch), outputs: vec![rows(&out, &[epoch as i64])], ..EpochCommit::default() };
    let zombie = kafka(&url);
    zombie.ensure_topics(std::slice::from_ref(&out)).unwrap();
    assert_eq!(zombie.last_epoch().unwrap(), Epoch(0));
    zombie.commit_epoch(commit(1)).unwrap().wait().unwrap();
    let heir = kafka(&url);
    heir.ensure_topics(std::slice::from_ref(&out)).unwrap();
    assert_eq!(heir.last_epoch().unwrap(), Epoch(1));
    let refused = zombie.commit_epoch(commit(2)).unwrap().wait().unwrap_err().to_string();
    assert!(refused.contains("another process has taken over"), "{refused}");
    assert!(matches!(zombie.commit_epoch(commit(3)).unwrap().wait(), Err(BrokerError::Closed)));
    heir.commit_epoch(commit(2)).unwrap().wait().unwrap();
    assert_eq!(in_time(heir.as_ref(), "out", 2), [1, 2]);
}

/// The numbers of a topic's records in order, when so many are shown: a commit shows in one partition after the other.
fn in_time(broker: &dyn Broker, topic: &str, count: usize) -> Vec<i64> {
    let clock = SystemClock::shared();
    let began = clock.elapsed();
    loop {
        let seen = broker.wakeup().version();
        let mut numbers: Vec<i64> = read(broker, topic, &Positions::new()).0.iter().map(|row| row.1).collect();
        if numbers.len() >= count || clock.elapsed() - began > Duration::from_secs(20) {
            numbers.sort_unstable();
            return numbers;
        }
        broker.wakeup().wait(seen, Duration::from_millis(100));
    }
}

/// Mistakes of configuration say what to change.
fn what_does_not_fit_is_said_at_the_start() {
    let url = url("misfit");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let more = Arc::new(TopicSpec { partitions: 5, ..(*events).clone() });
    let message = broker.ensure_topics(&[more]).unwrap_err().to_string();
    assert!(message.contains("has 3 partitions and 5 are declared"), "{message}");
    let compact = Arc::new(TopicSpec { cleanup: Cleanup::Compact, ..(*events).clone() });
    let message = broker.ensure_topics(&[compact]).unwrap_err().to_string();
    assert!(message.contains("cleanup.policy=delete and compact is declared"), "{message}");
    let age = Arc::new(TopicSpec { retention: Some(Duration::from_secs(60)), ..(*events).clone() });
    let message = broker.ensure_topics(&[age]).unwrap_err().to_string();
    assert!(message.contains("retention.ms=-1 and 60000 is declared"), "{message}");
    for wrong in ["kafka://", "kafka://host", "kafka://u:p@h:1", "http://h:1", "kafka://h:1/a b"] {
        assert!(KafkaOptions::from_url(wrong, SystemClock::shared()).is_err(), "{wrong}");
    }
}

/// A reader that comes back where nothing is any more: how much it missed is said, and it goes on.
fn r18_what_retention_took_before_it_was_read_is_counted_once() {
    let url = url("retention");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let mut last = 0;
    for _ in 0..4 {
        let lines: Vec<u64> = (last + 1..=last + 4_000).collect();
        broker.append(lane(&events, last, &lines)).unwrap().wait().unwrap();
        last += 4_000;
    }
    let read: Positions = (0..events.partitions).map(|partition| (PartitionId(partition), Offset(1))).collect();
    broker.reset_topology("t", &["events".to_owned()], ResetFrom::Earliest).unwrap();
    let lines: Vec<u64> = (last + 1..=last + 50).collect();
    broker.append(lane(&events, last, &lines)).unwrap().wait().unwrap();
    let start = broker.stats("events").unwrap().start;
    let missed: u64 = start.iter().map(|start| start.saturating_sub(1)).sum();
    assert!(missed > 15_000 && start.iter().any(|start| *start > 1_100), "{start:?}");
    let (mut found, mut at) = (0, read);
    while found < lines.len() {
        let (rows, next) = common::read(broker.as_ref(), "events", &at);
        (found, at) = (found + rows.len(), next);
    }
    assert_eq!((found, broker.lost().get("events").copied()), (lines.len(), Some(missed)));
}

/// However many records it had: a zombie's last epoch may have been a large one.
fn what_an_aborted_transaction_left_is_nobodys_lag() {
    let url = url("aborted");
    let events = spec("events", TopicKind::Events);
    let broker = kafka(&url);
    broker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    broker.append(lane(&events, 0, &[1, 2, 3])).unwrap().wait().unwrap();
    let (brokers, prefix) = url.trim_start_matches("kafka://").split_once('/').unwrap();
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("transactional.id", format!("{prefix}.other"));
    let other: BaseProducer = settings.create().unwrap();
    other.init_transactions(Duration::from_secs(20)).unwrap();
    other.begin_transaction().unwrap();
    for number in 0..3_000 {
        let (topic, key) = (format!("{prefix}.events"), format!("k{}", number % 40));
        other.send(BaseRecord::to(&topic).key(&key).payload("{}")).unwrap();
    }
    other.flush(Duration::from_secs(20)).unwrap();
    other.abort_transaction(Duration::from_secs(20)).unwrap();
    // One that reads nothing of the topic, as a process that runs no pipelines.
    let clock = SystemClock::shared();
    let looker = kafka(&url);
    looker.ensure_topics(std::slice::from_ref(&events)).unwrap();
    let began = clock.elapsed();
    let mut found = looker.stats("events").unwrap();
    while found.records > 3 && clock.elapsed() - began < Duration::from_secs(20) {
        let seen = looker.wakeup().version();
        looker.wakeup().wait(seen, Duration::from_millis(100));
        found = looker.stats("events").unwrap();
    }
    assert_eq!(found.records, 3, "{found:?}");
}

fn r19_what_a_topology_has_come_to_is_seen_by_all_processes() {
    let url = url("figures");
    let worker = kafka(&url);
    assert_eq!(worker.last_epoch().unwrap(), Epoch(0));
    let figures = |at, late| TopologyFigures { watermark: Some(EventTime(at)), late, dead: 1, read: 10, state_bytes: 100 };
    let of_shares = vec![("t@0".to_owned(), figures(70, 2)), ("t@1".to_owned(), figures(50, 3)), ("u".to_owned(), figures(9, 0))];
    worker.commit_epoch(EpochCommit { epoch: Epoch(1), figures: of_shares, ..EpochCommit::default() }).unwrap().wait().unwrap();
    // The newest of each share count.
    let later = vec![("t@1".to_owned(), figures(60, 4))];
    worker.commit_epoch(EpochCommit { epoch: Epoch(2), figures: later, ..EpochCommit::default() }).unwrap().wait().unwrap();
    let other = kafka(&url).topology_figures().unwrap();
    assert_eq!(other["t"], TopologyFigures { watermark: Some(EventTime(60)), late: 6, dead: 2, read: 20, state_bytes: 200 });
    assert_eq!(other["u"], figures(9, 0));
}
