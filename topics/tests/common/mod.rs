//! Calls of a broker, and what is said back: the same on every broker.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType, UInt32Type, UInt64Type};
use quikflow_topics::broker::{
    Append, Broker, EpochCommit, Lane, Positions, Projection, ResetFrom, StateKind, StatePiece, TopicRows,
};
use quikflow_topics::catalogue::{FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use quikflow_topics::partitioner::partition_of;
use quikflow_topics::schema;
use std::sync::Arc;

pub fn spec(name: &str, kind: TopicKind) -> Arc<TopicSpec> {
    let mut spec = TopicSpec::new(name, kind);
    spec.partitions = 3;
    spec.fields = vec![FieldSpec::new("text", FieldType::String), FieldSpec::new("n", FieldType::Int)];
    Arc::new(spec)
}

/// Rows by n: key `k<n % 5>`, event time and text follow from n.
pub fn rows(spec: &Arc<TopicSpec>, numbers: &[i64]) -> TopicRows {
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

pub type Read = (u32, i64, String, i64, Option<String>, Option<String>);

/// All that is there from `from`: partition, n, key, event time, text, rest; by partition and offset.
pub fn read(broker: &dyn Broker, topic: &str, from: &Positions) -> (Vec<Read>, Positions) {
    let (rows, positions, bad) = read_good(broker, topic, from);
    assert_eq!(bad, 0, "records that are none of the topic");
    (rows, positions)
}

/// The rows of the records that are of the topic, the positions after, and how many records are not.
pub fn read_good(broker: &dyn Broker, topic: &str, from: &Positions) -> (Vec<Read>, Positions, usize) {
    let mut bad = 0;
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
        assert!(slice.rows() >= batch.num_rows());
        bad += slice.rows() - batch.num_rows();
        for row in 0..batch.num_rows() {
            let some = |array: &StringArray| arrow::array::Array::is_valid(array, row).then(|| array.value(row).to_owned());
            let values = (keys.value(row).to_owned(), times.value(row), some(&texts), some(&rest));
            let place = (partitions.value(row), offsets.value(row));
            found.push((place, (place.0, numbers.value(row), values.0, values.1, values.2, values.3)));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    (found.into_iter().map(|(_, row)| row).collect(), reader.positions(), bad)
}

pub fn lane(spec: &Arc<TopicSpec>, previous: u64, lines: &[u64]) -> Append {
    let numbers: Vec<i64> = lines.iter().map(|line| *line as i64).collect();
    Append {
        rows: vec![rows(spec, &numbers)],
        lines: vec![lines.to_vec()],
        lane: Some(Lane { producer: "file:run".to_owned(), previous, last: *lines.last().unwrap() }),
        ..Append::default()
    }
}

pub fn letter(id: &str, bytes: &[u8]) -> DeadLetter {
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

pub fn piece(shard: u32, kind: StateKind, bytes: Vec<u8>) -> StatePiece {
    StatePiece { topology: "t".to_owned(), step: "s".to_owned(), shard, shards: 2, kind, bytes }
}

/// What both brokers have to answer alike, in words.
pub fn conformance(broker: &dyn Broker) -> Vec<String> {
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
        ..EpochCommit::default()
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
