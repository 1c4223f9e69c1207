//! Tests of the embedded broker: each rule by name.

use super::*;
use crate::broker::{Lane, StateKind, StatePiece, TopicRows};
use crate::catalogue::{FieldSpec, FieldType, TopicKind};
use crate::clock::{ManualClock, SystemClock};
use crate::ids::EventTime;
use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, UInt64Type};

pub(super) fn spec(name: &str) -> Arc<TopicSpec> {
    let mut spec = TopicSpec::new(name, TopicKind::Events);
    spec.partitions = 3;
    spec.fields = vec![FieldSpec::new("text", FieldType::String), FieldSpec::new("n", FieldType::Int)];
    Arc::new(spec)
}

/// One row: key, id, n; event time and text follow from n.
pub(super) type Row<'a> = (&'a str, Option<&'a str>, i64);

pub(super) fn rows(spec: &Arc<TopicSpec>, rows: &[Row<'_>]) -> TopicRows {
    let times = rows.iter().map(|r| r.2 * 1_000_000).collect::<Vec<_>>();
    let columns: Vec<ArrayRef> = spec
        .append_schema()
        .fields()
        .iter()
        .map(|f| -> ArrayRef {
            match f.name().as_str() {
                crate::schema::KEY => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))),
                crate::schema::EVENT_TIME => Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")),
                crate::schema::TYPE => Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "T"))),
                crate::schema::ID => Arc::new(StringArray::from_iter(rows.iter().map(|r| r.1))),
                "n" => Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2))),
                "text" => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| format!("text number {}", r.2)))),
                _ => arrow::array::new_null_array(f.data_type(), rows.len()),
            }
        })
        .collect();
    TopicRows { topic: spec.clone(), rows: RecordBatch::try_new(spec.append_schema(), columns).unwrap() }
}

pub(super) fn append(spec: &Arc<TopicSpec>, r: &[Row<'_>]) -> Append {
    Append { rows: vec![rows(spec, r)], want_positions: true, ..Append::default() }
}

pub(super) struct Log {
    pub(super) dir: tempfile::TempDir,
    pub(super) clock: Arc<ManualClock>,
}

impl Log {
    pub(super) fn new() -> Log {
        Log { dir: tempfile::tempdir().unwrap(), clock: ManualClock::at(EventTime(1_700_000_000_000_000)) }
    }

    pub(super) fn options(&self) -> EmbeddedOptions {
        EmbeddedOptions { sync: false, ..EmbeddedOptions::new(self.dir.path(), self.clock.clone()) }
    }

    pub(super) fn open(&self) -> Arc<EmbeddedBroker> {
        EmbeddedBroker::open(self.options()).unwrap()
    }
}

/// All (partition, offset, n) from `from` on, and how many slices they came in.
pub(super) fn read(broker: &EmbeddedBroker, topic: &str, from: &Positions, max: usize) -> (Vec<(u32, u64, i64)>, usize) {
    let mut reader = broker.reader(topic, from).unwrap();
    let projection = Projection::of(&broker.topic(topic).unwrap(), &["_partition", "_offset", "n"]);
    let (mut all, mut slices) = (Vec::new(), 0);
    while let Some(slice) = reader.poll(max).unwrap() {
        slices += 1;
        assert!(slice.rows() <= max);
        let batch = slice.decode(&projection).unwrap();
        assert_eq!(batch.num_rows(), slice.rows());
        let (p, o) =
            (batch.column(0).as_primitive::<arrow::datatypes::UInt32Type>(), batch.column(1).as_primitive::<UInt64Type>());
        let n = batch.column(2).as_primitive::<Int64Type>();
        let mut row = 0;
        for part in slice.parts() {
            assert_eq!(o.value(row), part.first.0);
            let times = (row..row + part.rows as usize).map(|r| n.value(r) * 1_000_000);
            assert_eq!(times.max().unwrap(), part.max_event_time.0);
            row += part.rows as usize;
            assert!(o.value(row - 1) < part.next.0);
        }
        all.extend((0..batch.num_rows()).map(|r| (p.value(r), o.value(r), n.value(r))));
    }
    (all, slices)
}

pub(super) fn many(count: i64, start: i64) -> Vec<(String, i64)> {
    (start..start + count).map(|n| (format!("key{}", n % 17), n)).collect()
}

pub(super) fn append_many(broker: &EmbeddedBroker, spec: &Arc<TopicSpec>, count: i64, start: i64) -> Appended {
    let keys = many(count, start);
    let r: Vec<Row<'_>> = keys.iter().map(|(k, n)| (k.as_str(), None, *n)).collect();
    broker.append(append(spec, &r)).unwrap().wait().unwrap()
}

#[test]
fn r10_rows_are_sorted_by_partition_and_offsets_have_no_gaps() {
    let log = Log::new();
    let broker = log.open();
    let spec = spec("t");
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    let mut start = 0;
    for count in [1, 3, 500, 1, 20_000, 7] {
        let done = append_many(&broker, &spec, count, start);
        assert_eq!(done.accepted, count as u64);
        assert_eq!(done.positions[0].len(), count as usize);
        start += count;
    }
    for max in [100_000, 1_000, 1] {
        let rows = if max == 1 { 100 } else { start };
        let from = if max == 1 {
            broker.stats("t").unwrap().end.iter().enumerate().map(|(p, e)| (PartitionId(p as u32), Offset(e - 34))).collect()
        } else {
            Positions::new()
        };
        let (mut all, slices) = read(&broker, "t", &from, max);
        assert!(slices >= all.len() / max);
        all.sort();
        for pair in all.windows(2) {
            assert!(pair[0].0 < pair[1].0 || (pair[0].1 + 1 == pair[1].1 && pair[0].2 < pair[1].2), "{pair:?}");
        }
        assert!(all.len() as i64 >= rows);
    }
    let stats = broker.stats("t").unwrap();
    assert_eq!(stats.records, start as u64);
    assert_eq!(stats.end.iter().sum::<u64>(), start as u64);
    assert_eq!(stats.start, vec![0, 0, 0]);
}

#[test]
fn an_answer_means_that_a_reopened_log_has_it() {
    let log = Log::new();
    let spec = spec("t");
    let first = {
        let broker = log.open();
        broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
        append_many(&broker, &spec, 1_000, 0)
    };
    let broker = log.open();
    assert_eq!(broker.topic("t").unwrap(), spec);
    assert_eq!(read(&broker, "t", &Positions::new(), 300).0.len(), 1_000);
    let next = append_many(&broker, &spec, 1, 1_000);
    let (partition, offset) = next.positions[0][0].unwrap();
    let before = first.positions[0].iter().flatten().filter(|(p, _)| *p == partition).count();
    assert_eq!(offset.0, before as u64);
    let record = broker.read_record("t", partition, offset).unwrap().unwrap();
    assert_eq!(record.column_by_name("n").unwrap().as_primitive::<Int64Type>().value(0), 1_000);
    assert!(broker.read_record("t", partition, Offset(offset.0 + 1)).unwrap().is_none());
}

#[test]
fn r9_one_process_owns_the_directory() {
    let log = Log::new();
    let _owner = log.open();
    let second = EmbeddedBroker::open(log.options()).unwrap_err();
    assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
    assert!(EmbeddedBroker::open_read_only(log.dir.path()).unwrap().topics().is_empty());
}

#[test]
fn r16_an_id_is_taken_once_and_another_content_is_a_conflict() {
    let log = Log::new();
    let spec = spec("t");
    let first = {
        let broker = log.open();
        broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
        let done = broker
            .append(append(&spec, &[("a", Some("1"), 1), ("b", Some("2"), 2), ("a", Some("1"), 1)]))
            .unwrap()
            .wait()
            .unwrap();
        assert_eq!((done.accepted, done.duplicates), (2, 1));
        assert_eq!(done.positions[0][0], done.positions[0][2]);
        done
    };
    let broker = log.open();
    let again = broker.append(append(&spec, &[("x", None, 9), ("b", Some("2"), 2)])).unwrap().wait().unwrap();
    assert_eq!((again.accepted, again.duplicates), (1, 1));
    assert_eq!(again.positions[0][1], first.positions[0][1]);
    let conflict = broker.append(append(&spec, &[("x", None, 10), ("b", Some("2"), 3)])).unwrap().wait().unwrap_err();
    assert!(matches!(conflict, BrokerError::IdConflict { row: 1, ref id } if id == "2"), "{conflict:?}");
    assert_eq!(broker.stats("t").unwrap().records, 3);
    let apart = Append {
        apart: true,
        ..append(&spec, &[("x", None, 11), ("b", Some("2"), 3), ("b", Some("2"), 2), ("c", Some("3"), 3)])
    };
    let done = broker.append(apart).unwrap().wait().unwrap();
    assert_eq!((done.accepted, done.duplicates), (2, 1));
    assert_eq!(done.conflicts, [crate::broker::Conflict { set: 0, row: 1, id: "2".into() }]);
    assert_eq!(done.repeated, [[2]], "what conflicts is no repeat");
    assert_eq!((done.positions[0][1], done.positions[0][2]), (None, first.positions[0][1]));
    assert_eq!(broker.stats("t").unwrap().records, 5);
    let other = Append { principal: "someone".into(), ..append(&spec, &[("b", Some("2"), 3)]) };
    assert_eq!(broker.append(other).unwrap().wait().unwrap().accepted, 1);
    log.clock.advance(Duration::from_secs(3_601));
    assert_eq!(broker.append(append(&spec, &[("b", Some("2"), 2)])).unwrap().wait().unwrap().accepted, 1);
}

fn lane_append(spec: &Arc<TopicSpec>, previous: u64, lines: &[u64], last: u64) -> Append {
    let r: Vec<Row<'_>> = lines.iter().map(|l| ("k", None, *l as i64)).collect();
    let lane = Some(Lane { producer: "file".into(), previous, last });
    Append { lane, lines: vec![lines.to_vec()], ..append(spec, &r) }
}

#[test]
fn r17_a_lane_keeps_the_files_order_and_takes_each_line_once() {
    let log = Log::new();
    let spec = spec("t");
    let broker = log.open();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    let early = broker.append(lane_append(&spec, 3, &[4, 5], 5)).unwrap();
    let first = broker.append(lane_append(&spec, 0, &[1, 2, 3], 3)).unwrap().wait().unwrap();
    assert_eq!((first.accepted, first.lane_line), (3, 3));
    assert_eq!(early.wait().unwrap().lane_line, 5);
    let overlap = broker.append(lane_append(&spec, 4, &[5, 6, 8], 9)).unwrap().wait().unwrap();
    assert_eq!((overlap.accepted, overlap.duplicates, overlap.lane_line), (2, 1, 9));
    let (all, _) = read(&broker, "t", &Positions::new(), 100);
    assert_eq!(all.iter().map(|r| r.2).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 8]);
    let mut gap = broker.append(lane_append(&spec, 20, &[21], 21)).unwrap();
    let refused = loop {
        // The writer reads the clock when it takes the batch, so it may take a second turn.
        log.clock.advance(Duration::from_secs(3));
        if let Some(answer) = gap.try_take() {
            break answer.unwrap_err();
        }
        std::thread::yield_now();
    };
    assert!(matches!(refused, BrokerError::OutOfSequence { expected: 9, previous: 20, .. }), "{refused:?}");
    assert_eq!(broker.lane_line("file").unwrap(), 9);
}

fn piece(shard: u32, shards: u32, kind: StateKind, bytes: &str) -> StatePiece {
    StatePiece { topology: "x".into(), step: "s".into(), shard, shards, kind, bytes: bytes.into() }
}

fn pieces(broker: &EmbeddedBroker) -> Vec<String> {
    let state = broker.topology_state("x").unwrap();
    state.pieces.into_iter().map(|p| String::from_utf8(p.bytes).unwrap()).collect()
}

#[test]
fn r9_an_epoch_commits_all_of_it_and_strictly_forward() {
    let log = Log::new();
    let spec = spec("out");
    {
        let broker = log.open();
        broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
        let commit = EpochCommit {
            epoch: Epoch(7),
            outputs: vec![rows(&spec, &[("a", None, 1)]), rows(&spec, &[("a", None, 2)])],
            state: vec![piece(0, 1, StateKind::Delta, "d1")],
            offsets: vec![("topology:x".into(), "out".into(), PartitionId(1), Offset(5))],
            meta: vec![("x".into(), "time".into(), vec![1, 2])],
            ..EpochCommit::default()
        };
        broker.commit_epoch(commit.clone()).unwrap().wait().unwrap();
        assert!(broker.commit_epoch(commit).unwrap().wait().is_err());
    }
    let broker = log.open();
    assert_eq!(broker.last_epoch().unwrap(), Epoch(7));
    assert_eq!(read(&broker, "out", &Positions::new(), 10).0.iter().map(|r| r.2).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(pieces(&broker), ["d1"]);
    assert_eq!(broker.topology_state("x").unwrap().meta["time"], [1, 2]);
    assert_eq!(broker.group_offsets("topology:x").unwrap()[&("out".to_owned(), PartitionId(1))], Offset(5));
    assert_eq!(broker.groups().unwrap(), ["topology:x"]);
    broker.reset_topology("x", &["out".to_owned()], ResetFrom::Earliest).unwrap();
    assert_eq!((pieces(&broker).len(), broker.generation("out").unwrap()), (0, 1));
    assert!(broker.group_offsets("topology:x").unwrap().is_empty());
    assert!(read(&broker, "out", &Positions::new(), 10).0.is_empty());
    let done = append_many(&broker, &spec, 1, 0);
    assert_eq!(done.accepted, 1);
}

#[test]
fn snapshots_of_a_new_layout_drop_the_old_one_only_when_all_shards_have_one() {
    use StateKind::{Delta, Snapshot};
    let log = Log::new();
    let broker = log.open();
    let mut epoch = 0;
    let mut commit = |state| {
        epoch += 1;
        broker.commit_epoch(EpochCommit { epoch: Epoch(epoch), state, ..EpochCommit::default() }).unwrap().wait().unwrap();
        pieces(&broker)
    };
    assert_eq!(commit(vec![piece(0, 2, Delta, "a0"), piece(1, 2, Delta, "a1")]), ["a0", "a1"]);
    assert_eq!(commit(vec![piece(0, 2, Snapshot, "A0")]), ["a1", "A0"]);
    assert_eq!(commit(vec![piece(1, 2, Snapshot, "A1")]), ["A0", "A1"]);
    assert_eq!(commit(vec![piece(0, 3, Snapshot, "B0"), piece(1, 3, Snapshot, "B1")]), ["A0", "A1", "B0", "B1"]);
    // Back to two shards: the snapshots of the first time do not count.
    assert_eq!(commit(vec![piece(0, 2, Snapshot, "C0")]), ["A0", "A1", "B0", "B1", "C0"]);
    assert_eq!(commit(vec![piece(1, 2, Snapshot, "C1")]), ["C0", "C1"]);
}

#[test]
fn r14_a_dead_letter_is_taken_once() {
    let log = Log::new();
    let broker = log.open();
    let letter = |id: &str| DeadLetter {
        id: id.into(),
        at: EventTime(5),
        cause: "decode".into(),
        code: "bad".into(),
        path: Some("payload.x".into()),
        message: "m".into(),
        topology: None,
        step: Some("s".into()),
        origin: Some(crate::dead_letter::Origin { topic: "t".into(), partition: PartitionId(1), offset: Offset(2) }),
        bytes: vec![0, 255],
        full_size: 2,
        status: DeadLetterStatus::Open,
    };
    broker.append_dead_letters(vec![letter("1"), letter("2"), letter("1")]).unwrap().wait().unwrap();
    broker.append_dead_letters(vec![letter("2")]).unwrap().wait().unwrap();
    let listed = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
    assert_eq!(listed.iter().map(|(_, l)| l.id.as_str()).collect::<Vec<_>>(), ["2", "1"]);
    assert_eq!(listed[1].1, letter("1"));
    assert_eq!(broker.mark_dead_letters(&["1".into(), "9".into()], DeadLetterStatus::Resolved).unwrap(), 1);
    let open = DeadLetterFilter { status: Some(DeadLetterStatus::Open), ..DeadLetterFilter::default() };
    assert_eq!(broker.dead_letters(&open).unwrap().len(), 1);
    // Only what is being replayed is replaced by a letter of an epoch, and marked in its commit.
    let commit = |epoch, id: &str, replayed: &[&str]| {
        let again = DeadLetter { message: "again".into(), ..letter(id) };
        let replayed = replayed.iter().map(|id| (*id).to_owned()).collect();
        let commit = EpochCommit { epoch: Epoch(epoch), dead_letters: vec![again], replayed, ..EpochCommit::default() };
        broker.commit_epoch(commit).unwrap().wait().unwrap();
        let listed = broker.dead_letters(&DeadLetterFilter::default()).unwrap();
        listed.into_iter().map(|(_, l)| (l.message, l.status)).collect::<Vec<_>>()
    };
    use DeadLetterStatus::{Open, Replayed, Replaying, Resolved};
    assert_eq!(commit(1, "2", &[]), [("m".to_owned(), Open), ("m".to_owned(), Resolved)]);
    broker.mark_dead_letters(&["1".into(), "2".into()], Replaying).unwrap();
    assert_eq!(commit(2, "2", &["1"]), [("again".to_owned(), Open), ("m".to_owned(), Replayed)]);
}

#[test]
fn a_full_queue_says_busy_and_a_full_log_says_full() {
    let log = Log::new();
    let spec = spec("t");
    let broker = EmbeddedBroker::open(EmbeddedOptions { queue_count: 0, ..log.options() }).unwrap();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    assert!(matches!(broker.append(append(&spec, &[("a", None, 1)])), Err(BrokerError::Busy(_))));
    drop(broker);
    let broker = EmbeddedBroker::open(EmbeddedOptions { max_bytes: 1, ..log.options() }).unwrap();
    broker.append_dead_letters(Vec::new()).map(|t| t.wait().unwrap()).ok();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    assert!(matches!(broker.append(append(&spec, &[("a", None, 1)])), Err(BrokerError::Full { limit: 1 })));
    broker.close();
    assert!(matches!(broker.report_progress("g", "t", &Positions::new()), Err(BrokerError::Closed)));
}

#[test]
fn r12_a_field_declared_later_is_read_from_rest() {
    let log = Log::new();
    let spec = spec("t");
    let broker = log.open();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    let mut r = rows(&spec, &[("a", None, 1), ("a", None, 2)]);
    let at = r.rows.schema().index_of(crate::schema::REST).unwrap();
    let mut columns = r.rows.columns().to_vec();
    columns[at] = Arc::new(StringArray::from(vec![Some(r#"{"payload":{"later":42,"other":[]}}"#), None]));
    r.rows = RecordBatch::try_new(r.rows.schema(), columns).unwrap();
    broker.append(Append { rows: vec![r], ..Append::default() }).unwrap().wait().unwrap();
    let mut wider = (*spec).clone();
    wider.fields.push(FieldSpec::new("later", FieldType::Int));
    let wider = Arc::new(wider);
    broker.ensure_topics(std::slice::from_ref(&wider)).unwrap();
    let slice = broker.reader("t", &Positions::new()).unwrap().poll(10).unwrap().unwrap();
    let batch = slice.decode(&Projection::of(&wider, &["later"])).unwrap();
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(42), None]);
    let mut changed = (*spec).clone();
    changed.fields[1].ty = FieldType::String;
    assert!(broker.ensure_topics(&[Arc::new(changed)]).unwrap_err().to_string().contains("another name"));
}

#[test]
fn concurrent_appends_are_all_there_once() {
    let log = Log::new();
    let spec = spec("t");
    let options = EmbeddedOptions { clock: SystemClock::shared(), ..log.options() };
    let broker = EmbeddedBroker::open(options).unwrap();
    broker.ensure_topics(std::slice::from_ref(&spec)).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (broker, spec) = (&broker, &spec);
            scope.spawn(move || {
                for i in 0..50 {
                    append_many(broker, spec, if i % 10 == 0 { 300 } else { 3 }, t * 1_000_000 + i * 1_000);
                }
            });
        }
    });
    let (all, _) = read(&broker, "t", &Positions::new(), 500);
    let distinct: BTreeSet<i64> = all.iter().map(|r| r.2).collect();
    assert_eq!((all.len(), distinct.len()), (4 * (5 * 300 + 45 * 3), 4 * (5 * 300 + 45 * 3)));
}
