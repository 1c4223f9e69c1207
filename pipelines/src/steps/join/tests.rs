//! R8: joins with tables are as of event time.

use crate::operator::{EpochTime, Rows};
use crate::step::Step;
use crate::steps::testing::{Event, SECOND, Shards, batch, event, plan_on, stream};
use quikflow_topics::ids::{Epoch, EventTime};

fn join(kind: &str, key: &str) -> Box<dyn Step> {
    let text = format!(
        r#"{{ join = {{ table = "topic.1", on = "payload.a", table_on = "payload.a", {key} table_delete = "payload.n = 0", select = {{ seen = "payload.b" }}, kind = "{kind}", max_wait = "1s" }}, name = "j" }}"#
    );
    plan_on(&text, vec![stream(), stream()]).unwrap_or_else(|m| panic!("{}", m[0]))
}

fn row(offset: u64, at: i64, a: &str, b: &str, n: i64) -> Event {
    Event { b: Some(b.to_owned()), n: Some(n), ..event(offset, at, a) }
}

fn time(table: i64, all: i64, clock: i64) -> EpochTime {
    let second = |s: i64| EventTime(s.saturating_mul(SECOND));
    EpochTime { epoch: Epoch(0), watermark: second(all), sources: vec![second(all), second(table)], wall_clock: second(clock) }
}

fn table(shards: &mut Shards, rows: &[Event]) {
    assert!(shards.rows(1, Rows { source: 1, batch: batch(rows) }).is_empty());
}

fn seen(rows: &[String]) -> Vec<String> {
    let mut seen: Vec<String> = rows.iter().map(|row| row.rsplit(' ').next().unwrap().to_owned()).collect();
    seen.sort();
    seen
}

#[test]
fn r8_a_record_sees_the_table_as_it_was_at_its_time_and_waits_for_it() {
    let step = join("inner", "");
    for workers in 1..4 {
        let mut shards = Shards::new(step.as_ref(), 2);
        table(&mut shards, &[row(0, 10, "k", "old", 1), row(1, 20, "k", "new", 1)]);
        shards.events(&[event(0, 15, "k"), event(1, 25, "k")]);
        // The table is known up to 16 s.
        assert_eq!(seen(&shards.end_at(time(16, 16, 100))), ["seen=old"]);
        assert_eq!(shards.apply.iter().map(|a| a.in_flight()).sum::<u64>(), 1);
        let mut shards = shards.restore(step.as_ref(), workers);
        assert_eq!(shards.apply.iter().map(|a| a.in_flight()).sum::<u64>(), 1);
        // A change that comes later, of an earlier time, is seen.
        table(&mut shards, &[row(2, 24, "k", "newest", 1), row(3, 26, "k", "too new", 1)]);
        assert_eq!(seen(&shards.end_at(time(30, 16, 100))), ["seen=newest"]);
        let mut shards = shards.restore(step.as_ref(), 1);
        assert!(shards.end_at(time(31, 31, 200)).is_empty());
        assert_eq!((shards.counts.applied, shards.counts.filtered), (6, 0));
    }
}

#[test]
fn r5_of_two_rows_without_an_origin_of_their_own_the_one_that_waits_stays() {
    // As rows of windows are: partition 0, offset 0, whatever records they were made of.
    let step = join("left", "");
    let mut shards = Shards::new(step.as_ref(), 1);
    table(&mut shards, &[row(0, 1, "k", "here", 1)]);
    shards.events(&[event(0, 10, "k"), event(0, 20, "k")]);
    assert!(shards.end_at(time(5, 5, 100)).is_empty());
    let mut shards = shards.restore(step.as_ref(), 1);
    assert_eq!(shards.end_at(time(15, 15, 100)).len(), 1, "the first of them");
    let mut shards = shards.restore(step.as_ref(), 2);
    assert_eq!(shards.apply.iter().map(|a| a.in_flight()).sum::<u64>(), 1);
    assert_eq!(shards.end_at(time(25, 25, 100)).len(), 1, "the other one");
}

#[test]
fn r8_a_wait_is_over_by_the_recorded_clock() {
    let step = join("left", "");
    let mut shards = Shards::new(step.as_ref(), 1);
    table(&mut shards, &[row(0, 1, "k", "here", 1)]);
    shards.events(&[event(0, 50, "k"), event(1, 50, "other")]);
    assert!(shards.end_at(time(1, 1, 100)).is_empty());
    let due = shards.apply[0].due();
    assert_eq!(due.wall_clock, Some(EventTime(101 * SECOND)));
    let mut shards = shards.restore(step.as_ref(), 2);
    assert!(shards.end_at(time(1, 1, 100)).is_empty());
    let rows = shards.end_at(time(1, 1, 101));
    assert_eq!(rows.len(), 2);
    assert_eq!(rows.iter().filter(|row| row.ends_with("seen=here")).count(), 1);
    assert!(shards.apply.iter().all(|a| a.due().wall_clock.is_none()));
}

#[test]
fn r8_many_rows_and_deletions_match_as_of_the_records_time() {
    let step = join("inner", r#"table_key = ["payload.b"],"#);
    let mut shards = Shards::new(step.as_ref(), 2);
    table(&mut shards, &[row(0, 1, "k", "u1", 1), row(1, 2, "k", "u2", 1), row(2, 5, "k", "u1", 0)]);
    shards.events(&[event(0, 4, "k"), event(1, 5, "k"), event(2, 6, "nobody")]);
    let rows = shards.end_at(time(i64::MAX, i64::MAX, 0));
    assert_eq!(seen(&rows), ["seen=u1", "seen=u2", "seen=u2"]);
    assert_eq!(shards.counts.filtered, 1);
}

#[test]
fn a_table_without_any_record_is_not_waited_for() {
    let step = join("left", "");
    let mut shards = Shards::new(step.as_ref(), 1);
    shards.events(&[event(0, 50, "k")]);
    let at = EpochTime { sources: vec![EventTime(45 * SECOND), EventTime::MIN], ..time(0, 45, 0) };
    assert_eq!(shards.end_at(at).len(), 1);
}

#[test]
fn r8_old_versions_are_trimmed_and_older_records_are_late() {
    let step = join("inner", "");
    let mut shards = Shards::new(step.as_ref(), 1);
    for hour in 0..50i64 {
        table(&mut shards, &[row(hour as u64, hour * 3600, "k", "v", 1)]);
        shards.end_at(time(hour * 3600, hour * 3600, 0));
    }
    assert!(shards.apply[0].snapshot().len() < 200, "{}", shards.apply[0].snapshot().len());
    shards.events(&[event(0, 3600, "k"), event(1, 49 * 3600 - 1, "k")]);
    assert_eq!(shards.end_at(time(49 * 3600, 49 * 3600, 0)).len(), 1);
    assert_eq!(shards.late, [(0, 0)]);
}
