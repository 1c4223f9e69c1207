//! Bursts across minutes, out of order, once a burst; what is forgotten and what is late.

use crate::steps::testing::{Event, SECOND, Shards, event, mistakes, plan};

const STEP: &str = r#"{ count_within = { n = 5, time = "60s" }, by = { who = "payload.a" }, name = "c" }"#;

/// Runs events cut into two epochs at each place, restored between; the rows are the same.
fn fires(seconds: &[i64]) -> Vec<String> {
    let step = plan(STEP);
    let events: Vec<Event> = (0..).zip(seconds).map(|(offset, at)| event(offset, *at, "u1")).collect();
    let run = |cut: usize| {
        let mut shards = Shards::new(step.as_ref(), 2);
        shards.events(&events[..cut]);
        let mut rows = shards.end(0);
        let mut shards = shards.restore(step.as_ref(), 1 + cut % 3);
        let (left, right) = events[cut..].split_at((events.len() - cut) / 2);
        shards.events(right);
        shards.events(left);
        rows.extend(shards.end(0));
        rows
    };
    let rows = run(0);
    for cut in 1..=events.len() {
        assert_eq!(run(cut), rows, "R4: cut at {cut}");
    }
    rows.iter().map(|row| row.replace("1970-01-01T", "").replace("_key=u1 who=u1 ", "")).collect()
}

#[test]
fn four_at_59_and_one_at_01_fire_across_the_minute() {
    assert_eq!(fires(&[59, 59, 59, 59, 61]), ["count=5 first_time=00:00:59Z last_time=00:01:01Z"]);
}

#[test]
fn the_span_is_inclusive_and_order_within_the_disorder_means_nothing() {
    assert_eq!(fires(&[0, 10, 20, 30, 60]).len(), 1);
    assert_eq!(fires(&[0, 10, 20, 30, 61]).len(), 0);
    assert_eq!(fires(&[60, 10, 30, 0, 20]), ["count=5 first_time=00:00:00Z last_time=00:01:00Z"]);
}

#[test]
fn a_burst_fires_once_and_a_later_one_again() {
    let burst: Vec<i64> = (0..50).collect();
    assert_eq!(fires(&burst), ["count=5 first_time=00:00:00Z last_time=00:00:04Z"]);
    assert_eq!(fires(&[0, 1, 2, 3, 4, 100, 101, 102, 103, 104]).len(), 2);
    let long: Vec<i64> = (0..70).collect();
    assert_eq!(fires(&long).len(), 2, "a burst that goes on fires again after `time`");
}

#[test]
fn r6_events_are_forgotten_by_the_watermark_and_older_ones_are_late() {
    let step = plan(STEP);
    let mut shards = Shards::new(step.as_ref(), 1);
    for minute in 0..100i64 {
        let watermark = (minute * 60 - 5) * SECOND;
        shards.events(&[Event { watermark, ..event(minute as u64, minute * 60, "u1") }]);
        shards.end(watermark);
    }
    assert!(shards.apply[0].snapshot().len() < 100);
    shards.events(&[Event { watermark: 99 * 60 * SECOND, ..event(200, 60, "u1") }]);
    shards.end(0);
    assert_eq!(shards.late, [(0, 200)]);
}

#[test]
fn events_without_a_key_are_left_out_and_mistakes_are_named() {
    let step = plan(STEP);
    let mut shards = Shards::new(step.as_ref(), 1);
    shards.events(&[Event { a: None, ..event(0, 1, "") }]);
    shards.end(0);
    assert_eq!(shards.counts.filtered, 1);
    assert!(
        mistakes(r#"{ count_within = { n = 0, time = "60s" }, by = { who = "payload.a" }, name = "c" }"#)
            .contains("from 1 to 100000")
    );
    assert!(
        mistakes(r#"{ count_within = { n = 5, time = "60s" }, by = { count = "payload.a" }, name = "c" }"#)
            .contains("the step itself writes")
    );
}
