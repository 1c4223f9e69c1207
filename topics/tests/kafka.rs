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

#[path = "../../tests/support/harness.rs"]
mod harness;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType, UInt32Type, UInt64Type};
use quikflow_topics::broker::{
    Append, Broker, BrokerError, EpochCommit, Lane, Positions, Projection, ResetFrom, StateKind, StatePiece, TopicRows,
};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions};
use quikflow_topics::catalogue::{Cleanup, FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use quikflow_topics::partitioner::partition_of;
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
    r19_a_zombies_epoch_is_refused,
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

fn spec(name: &str, kind: TopicKind) -> Arc<TopicSpec> {
    let mut spec = TopicSpec::new(name, kind);
    spec.partitions = 3;
    spec.fields = vec![FieldSpec::new("text", FieldType::String), FieldSpec::new("n", FieldType::Int)];
    Arc::new(spec)
}

/// Rows by n: key `k<n % 5>`, event time and text follow from n.
fn rows(spec: &Arc<TopicSpec>, numbers: &[i64]) -> TopicRows {
    let ty = if spec.kind == TopicKind::Rows { "ROW" } else { "T" };
    let column = |field: &Arc<arrow::datatypes::Field>| -> ArrayRef {
        match field.name().as_str() {
            schema::KEY => Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| format!("k{}", n % 5)))),
            schema::EVENT_TIME => {
                let times = numbers.iter().map(|n| n * 1_000_000 + 7).collect::<Vec<_>>();
                Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
            }
            schema::TYPE => Arc::new(StringArray::from_iter_values(numbers.iter().map(|_| ty))),
            schema::REST if spec.kind == TopicKind::Events => {
                let rest = |n: &i64| (n % 2 == 0).then_some("{\"extra\":1.50,\"payload\":{\"more\":null}}");
                Arc::new(StringArray::from_iter(numbers.iter().map(rest)))
            }
            "n" => Arc::new(Int64Array::from_iter_values(numbers.iter().copied())),
            "text" => Arc::new(StringArray::from_iter(numbers.iter().map(|n| (n % 3 != 0).then(|| format!("\"{n}\" ü\n"))))),
            _ => arrow::array::new_null_array(field.data_type(), numbers.len()),
        }
    };
    let columns = spec.append_schema().fields().iter().map(column).collect();
    TopicRows { topic: spec.clone(), rows: RecordBatch::try_new(spec.append_schema(), columns).unwrap() }
}

type Read = (u32, i64, String, i64, Option<String>, Option<String>);

/// All that is there from `from`: partition, n, key, event time, text, rest; by partition and offset.
fn read(broker: &dyn Broker, topic: &str, from: &Positions) -> (Vec<Read>, Positions) {
    let mut reader = broker.reader(topic, from).unwrap();
    let mut found = Vec::new();
    while let Some(slice) = reader.poll(7).unwrap() {
        let batch = slice.decode(&Projection::all(slice.topic())).unwrap();
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let partitions = batch.column_by_name(schema::PARTITION).unwrap().as_primitive::<UInt32Type>().clone();
        let offsets = batch.column_by_name(schema::OFFSET).unwrap().as_primitive::<UInt64Type>().clone();
        let times = batch.column_by_name(schema::EVENT_TIME).unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        let numbers = batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().clone();
        let (keys, texts, rest) = (text(schema::KEY), text("text"), text(schema::REST));
        assert_eq!(slice.rows(), batch.num_rows());
        for row in 0..batch.num_rows() {
            let some = |array: &StringArray| arrow::array::Array::is_valid(array, row).then(|| array.value(row).to_owned());
            let values = (keys.value(row).to_owned(), times.value(row), some(&texts), some(&rest));
            let place = (partitions.value(row), offsets.value(row));
            found.push((place, (place.0, numbers.value(row), values.0, values.1, values.2, values.3)));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    (found.into_iter().map(|(_, row)| row).collect(), reader.positions())
}

fn lane(spec: &Arc<TopicSpec>, previous: u64, lines: &[u64]) -> Append {
    let numbers: Vec<i64> = lines.iter().map(|line| *line as i64).collect();
    Append {
        rows: vec![rows(spec, &numbers)],
        lines: vec![lines.to_vec()],
        lane: Some(Lane { producer: "file:run".to_owned(), previous, last: *lines.last().unwrap() }),
        ..Append::default()
    }
}

fn letter(id: &str, bytes: &[u8]) -> DeadLetter {
    DeadLetter {
        id: id.to_owned(),
        at: EventTime(5),
        cause: "validation".to_owned(),
        code: "max_length".to_owned(),
        path: None,
        message: "too long".to_owned(),
        topology: Some("t".to_owned()),
        step: None,
        origin: None,
        bytes: bytes.to_vec(),
        full_size: bytes.len() as u64,
        status: DeadLetterStatus::Open,
    }
}

fn piece(shard: u32, kind: StateKind, bytes: Vec<u8>) -> StatePiece {
    StatePiece { topology: "t".to_owned(), step: "s".to_owned(), shard, shards: 2, kind, bytes }
}

/// What both brokers have to answer alike, in words.
fn conformance(broker: &dyn Broker) -> Vec<String> {
    let mut said = Vec::new();
    let (events, out) = (spec("events", TopicKind::Events), spec("out", TopicKind::Rows));
    broker.ensure_topics(&[events.clone(), out.clone()]).unwrap();
    broker.ensure_topics(&[events.clone(), out.clone()]).unwrap();
    said.push(format!("{:?}", read(broker, "events", &Positions::new()).0));
    said.push(format!("{:?}", broker.reader("nowhere", &Positions::new()).err().map(|e| e.to_string())));

    let numbers: Vec<i64> = (1..=40).collect();
    let append = Append { rows: vec![rows(&events, &numbers)], want_positions: true, ..Append::default() };
    let appended = broker.append(append).unwrap().wait().unwrap();
    said.push(format!("{} {} {:?}", appended.accepted, appended.duplicates, appended.positions));
    let (all, positions) = read(broker, "events", &Positions::new());
    assert!(all.iter().all(|row| row.0 == partition_of(Some(&row.2), 3).0));
    said.push(format!("{all:?} {positions:?}"));
    let stats = broker.stats("events").unwrap();
    said.push(format!("{:?} {:?} {}", stats.start, stats.end, stats.records));
    let one = broker.read_record("events", PartitionId(0), Offset(0)).unwrap();
    said.push(format!("{:?}", one.map(|batch| batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().value(0))));

    // R17, R18: a lane's lines are taken once, in order.
    for (previous, lines) in [(0, vec![101, 102]), (0, vec![101, 102]), (102, vec![103, 105]), (102, vec![103, 104, 105, 106])] {
        let done = broker.append(lane(&events, previous, &lines)).unwrap().wait().unwrap();
        said.push(format!("lane {} {} {}", done.accepted, done.duplicates, done.lane_line));
    }
    let early = broker.append(lane(&events, 200, &[201])).unwrap().wait().unwrap_err();
    said.push(format!("{early}"));
    said.push(format!("{} {}", broker.lane_line("file:run").unwrap(), broker.lane_line("other").unwrap()));
    said.push(format!("{:?}", read(broker, "events", &Positions::new()).0.len()));

    // R9, R19: an epoch is one commit.
    said.push(format!("{}", broker.last_epoch().unwrap()));
    let commit = |epoch: u64, kind: StateKind, bytes: Vec<u8>| EpochCommit {
        epoch: Epoch(epoch),
        outputs: vec![rows(&out, &[epoch as i64, epoch as i64 + 1])],
        state: vec![piece(0, kind, bytes.clone()), piece(1, kind, bytes)],
        offsets: vec![("topology:t".to_owned(), "events".to_owned(), PartitionId(1), Offset(epoch))],
        meta: vec![("t".to_owned(), "time".to_owned(), vec![epoch as u8; 3])],
        dead_letters: vec![letter("step:t:1", b"{\"a\":1}"), letter(&format!("step:t:{epoch}"), &[0, 255, 10])],
        replayed: Vec::new(),
    };
    broker.commit_epoch(commit(1, StateKind::Delta, vec![1; 4])).unwrap().wait().unwrap();
    broker.commit_epoch(commit(2, StateKind::Delta, vec![2; 2_500_000])).unwrap().wait().unwrap();
    let describe = || {
        let state = broker.topology_state("t").unwrap();
        let pieces: Vec<_> =
            state.pieces.iter().map(|p| (p.shard, p.shards, p.kind, p.bytes.first().copied(), p.bytes.len())).collect();
        format!("{pieces:?} {:?} {:?} {}", state.meta, broker.group_offsets("topology:t").unwrap(), broker.last_epoch().unwrap())
    };
    said.push(describe());
    broker.commit_epoch(commit(3, StateKind::Snapshot, vec![3])).unwrap().wait().unwrap();
    said.push(describe());
    said.push(format!("{:?}", read(broker, "out", &Positions::new()).0));
    let stats = broker.stats("out").unwrap();
    said.push(format!("{}", stats.records >= 6));

    // R14: a dead letter is taken once.
    broker.append_dead_letters(vec![letter("door:x", b"bytes"), letter("step:t:2", b"other")]).unwrap().wait().unwrap();
    let list = || broker.dead_letters(&DeadLetterFilter::default()).unwrap();
    said.push(format!("{:?}", list().iter().map(|(_, l)| (l.id.clone(), l.bytes.clone(), l.status)).collect::<Vec<_>>()));
    let marked = broker.mark_dead_letters(&["step:t:2".to_owned(), "none".to_owned()], DeadLetterStatus::Resolved).unwrap();
    said.push(format!("{marked} {:?}", list().iter().map(|(_, l)| l.status).collect::<Vec<_>>()));
    let pages = DeadLetterFilter { limit: 2, ..DeadLetterFilter::default() };
    let first = broker.dead_letters(&pages).unwrap();
    let next = DeadLetterFilter { before_seq: first.last().map(|l| l.0), ..pages };
    said.push(format!("{:?}", broker.dead_letters(&next).unwrap().iter().map(|(_, l)| l.id.clone()).collect::<Vec<_>>()));

    // R12, R13: a reset forgets the state and raises the generation of what it wrote.
    said.push(format!("{}", broker.generation("out").unwrap()));
    broker.reset_topology("t", &["out".to_owned()], ResetFrom::Earliest).unwrap();
    said.push(format!("{} {}", broker.generation("out").unwrap(), describe()));
    said.push(format!("{:?}", read(broker, "out", &Positions::new()).0));
    said
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
    let mut numbers: Vec<i64> = read(one.as_ref(), "events", &Positions::new()).0.iter().map(|row| row.1).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
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
    let numbers: Vec<i64> = read(heir.as_ref(), "out", &Positions::new()).0.iter().map(|row| row.1).collect();
    assert_eq!(numbers.len(), 2, "{numbers:?}");
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
