//! Tests of event time: R1, R2 and R4.

use super::*;
use proptest::prelude::*;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::ids::Offset;

const SECOND: i64 = 1_000_000;

fn topic() -> TopicSpec {
    let mut topic = TopicSpec::new("t", TopicKind::Events);
    topic.disorder = Duration::from_secs(5);
    topic.idle_after = Duration::from_secs(10);
    topic.live_within = Duration::from_secs(300);
    topic
}

fn part(partition: u32, event: i64, arrival: i64) -> SlicePart {
    SlicePart {
        partition: PartitionId(partition),
        first: Offset(0),
        next: Offset(1),
        rows: 1,
        max_event_time: EventTime(event),
        max_arrival_time: EventTime(arrival),
    }
}

fn end() -> [SourceView; 1] {
    [SourceView { at_end: true, unread: false }]
}

#[test]
fn r1_a_record_is_judged_by_its_own_partition() {
    let parts = [SlicePart { rows: 3, ..part(0, 50, 0) }, SlicePart { rows: 2, ..part(7, 9, 0) }];
    let column = watermark_column(&parts, &[EventTime(20), EventTime::MIN], &[50, 10, 30, 9, 4], Duration::from_micros(5));
    assert_eq!(column, [15, 45, 45, i64::MIN, 4]);
}

#[test]
fn r2_a_live_partition_moves_with_its_silence_and_then_holds_nothing() {
    let mut time = TopologyTime::new(&[&topic()]);
    time.sources[0].read(&[part(0, 100 * SECOND, 101 * SECOND), part(1, 200 * SECOND, 200 * SECOND)]);
    assert!(time.tick(Duration::from_secs(1000), &end()));
    assert_eq!(time.watermark, EventTime(95 * SECOND));
    assert!(time.tick(Duration::from_secs(1003), &end()));
    assert_eq!(time.watermark, EventTime(98 * SECOND), "its maximum and three seconds of silence, not the clock's time");
    time.sources[0].read(&[part(1, 201 * SECOND, 202 * SECOND)]);
    assert!(time.tick(Duration::from_secs(1010), &end()));
    assert!(time.sources[0].partitions[&PartitionId(0)].idle);
    assert_eq!(time.watermark, EventTime(196 * SECOND), "the silent partition no longer holds windows open");
}

#[test]
fn r2_a_replay_never_becomes_idle() {
    let mut time = TopologyTime::new(&[&topic()]);
    time.sources[0].read(&[part(0, 0, 9_000 * SECOND), part(1, 50 * SECOND, 9_000 * SECOND)]);
    time.tick(Duration::ZERO, &end());
    time.tick(Duration::from_secs(100_000), &end());
    assert_eq!(time.watermark, EventTime(-5 * SECOND));
    assert_eq!(time.wait_for(&Due { watermark: Some(EventTime(SECOND)), wall_clock: None }, EventTime(0)), None);
}

#[test]
fn r2_silence_counts_only_at_the_end_of_the_log() {
    let mut time = TopologyTime::new(&[&topic()]);
    time.sources[0].read(&[part(0, 100 * SECOND, 100 * SECOND)]);
    time.tick(Duration::ZERO, &[SourceView { at_end: false, unread: false }]);
    time.tick(Duration::from_secs(60), &[SourceView { at_end: false, unread: false }]);
    assert_eq!(time.watermark, EventTime(95 * SECOND));
    time.tick(Duration::from_secs(70), &end());
    time.tick(Duration::from_secs(72), &end());
    assert_eq!(time.watermark, EventTime(97 * SECOND));
}

#[test]
fn r2_the_wait_for_a_window_is_known_to_the_microsecond() {
    let mut time = TopologyTime::new(&[&topic()]);
    time.sources[0].read(&[part(0, 100 * SECOND, 100 * SECOND)]);
    time.tick(Duration::from_secs(1), &end());
    let due = Due { watermark: Some(EventTime(99 * SECOND)), wall_clock: None };
    let wait = time.wait_for(&due, EventTime(0));
    assert_eq!(wait, Some(Duration::from_secs(4)));
    time.tick(Duration::from_secs(1) + wait.unwrap_or_default(), &end());
    assert_eq!(time.watermark, EventTime(99 * SECOND));
}

#[test]
fn r1_partitions_with_unread_records_hold_everything_and_empty_ones_nothing() {
    let mut time = TopologyTime::new(&[&topic()]);
    time.sources[0].read(&[part(0, 100 * SECOND, 9_000 * SECOND)]);
    time.tick(Duration::ZERO, &[SourceView { at_end: false, unread: true }]);
    assert_eq!(time.watermark, EventTime::MIN);
    time.tick(Duration::ZERO, &end());
    assert_eq!(time.watermark, EventTime(95 * SECOND));
}

#[test]
fn r4_time_is_restored_and_silence_goes_on_from_what_was_recorded() {
    let spec = topic();
    let mut time = TopologyTime::new(&[&spec]);
    time.sources[0].read(&[part(0, 100 * SECOND, 100 * SECOND)]);
    time.tick(Duration::from_secs(1), &end());
    time.tick(Duration::from_secs(4), &end());
    let mut again = TopologyTime::restore(&time.to_bytes(), &[&spec]).unwrap();
    assert_eq!(again.watermark, EventTime(98 * SECOND));
    again.tick(Duration::from_secs(50_000), &end());
    assert_eq!(again.watermark, EventTime(98 * SECOND), "time while the process was down does not count");
    again.tick(Duration::from_secs(50_001), &end());
    assert_eq!(again.watermark, EventTime(99 * SECOND));
}

/// Feeds the records in cuts; yields each record's watermark and the last watermark of all.
fn fed(records: &[(u32, i64)], cuts: &[usize]) -> (BTreeMap<(u32, usize), i64>, EventTime) {
    let mut time = TopologyTime::new(&[&topic()]);
    let mut lateness = BTreeMap::new();
    let mut counted: BTreeMap<u32, usize> = BTreeMap::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([records.len()]) {
        let to = cut.clamp(from, records.len());
        let mut rows = records[from..to].to_vec();
        rows.sort_by_key(|row| row.0);
        let mut parts: Vec<SlicePart> = Vec::new();
        for (partition, event) in &rows {
            match parts.last_mut() {
                Some(last) if last.partition.0 == *partition => {
                    last.rows += 1;
                    last.max_event_time = last.max_event_time.max(EventTime(*event));
                }
                _ => parts.push(part(*partition, *event, 1_000_000 * SECOND)),
            }
        }
        let starts = time.sources[0].read(&parts);
        let times: Vec<i64> = rows.iter().map(|row| row.1).collect();
        let column = watermark_column(&parts, &starts, &times, topic().disorder);
        for ((partition, _), watermark) in rows.iter().zip(column) {
            let place = counted.entry(*partition).or_insert(0);
            lateness.insert((*partition, *place), watermark);
            *place += 1;
        }
        let unread = records[to..].iter().any(|record| records[..to].iter().all(|before| before.0 != record.0));
        time.tick(Duration::ZERO, &[SourceView { at_end: to == records.len(), unread }]);
        from = to;
    }
    (lateness, time.watermark)
}

proptest! {
    /// R4: the same input cut at random places is late in the same places and closes the same windows.
    #[test]
    fn r4_cuts_never_change_an_outcome(
        records in prop::collection::vec((0u32..4, 0i64..100 * SECOND), 0..80),
        mut cuts in prop::collection::vec(0usize..80, 0..10),
    ) {
        cuts.sort_unstable();
        let (lateness, watermark) = fed(&records, &cuts);
        let (whole, closed) = fed(&records, &[]);
        prop_assert_eq!(lateness, whole);
        prop_assert_eq!(watermark, closed);
    }
}
