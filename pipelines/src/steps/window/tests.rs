//! Windows by their rules: R1, R4, R6, R7, R12, R20, and answers that others publish.

use crate::steps::testing::{Event, SECOND, Shards, event, mistakes, plan};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const ACTIVITY: &str = r#"{ window = { tumbling = "1m", grace = "30s" }, group_by = { who = "payload.a" }, aggregate = {
    messages = "count(*)", authors = "count(distinct payload.b)", total = "sum(payload.n)", p50 = "approx_percentile_cont(payload.n, 0.5)",
    mean = "avg(payload.x)", least = "min(payload.x)", first = "first_value(payload.b)", last = "last_value(payload.b)",
    near = "approx_distinct(payload.b)", big = "count(*) filter (where payload.n > 5)" }, name = "w" }"#;

#[test]
fn r7_changed_groups_are_emitted_once_an_epoch_and_final_ones_when_the_window_closes() {
    let step = plan(
        r#"{ window = { tumbling = "1m", grace = "30s" }, group_by = { who = "payload.a" }, aggregate = { messages = "count(*)" }, name = "w" }"#,
    );
    let mut shards = Shards::new(step.as_ref(), 1);
    shards.events(&[event(0, 1, "u1"), event(1, 2, "u1")]);
    shards.events(&[event(2, 59, "u1"), event(3, 60, "u1")]);
    let row = |start: &str, end: &str, n: u32, last: bool, epoch: u32| {
        format!(
            "_key=u1 window_start=1970-01-01T00:{start}Z window_end=1970-01-01T00:{end}Z who=u1 messages={n} final={last} epoch={epoch}"
        )
    };
    assert_eq!(shards.end(60 * SECOND), [row("00:00", "01:00", 3, false, 1), row("01:00", "02:00", 1, false, 1)]);
    assert!(shards.end(89 * SECOND).is_empty(), "nothing has changed");
    assert_eq!(shards.end(90 * SECOND), [row("00:00", "01:00", 3, true, 3)]);
    shards.events(&[event(4, 61, "u1")]);
    assert_eq!(shards.end(i64::MAX), [row("01:00", "02:00", 2, true, 4)]);
    assert!(shards.end(i64::MAX).is_empty());
}

#[test]
fn r1_lateness_is_judged_by_the_records_own_watermark_or_by_the_closed_horizon() {
    let step = plan(r#"{ window = { tumbling = "1m", grace = "30s" }, aggregate = { n = "count(*)" }, name = "w" }"#);
    let mut shards = Shards::new(step.as_ref(), 2);
    let with = |offset, at, watermark: i64| Event { watermark: watermark * SECOND, ..event(offset, at, "a") };
    // Its own partition has passed 01:30; one microsecond before it has not.
    shards.events(&[with(0, 59, 90), Event { watermark: 90 * SECOND - 1, ..event(1, 59, "a") }]);
    shards.end(90 * SECOND);
    // The window has closed: late whatever the watermark of its own, idle partition.
    shards.events(&[with(2, 59, 0), with(3, 60, 0)]);
    shards.end(90 * SECOND);
    assert_eq!(shards.late, [(0, 0), (0, 2)]);
    assert_eq!((shards.counts.late, shards.counts.applied), (2, 2));
    // The horizon is part of the state.
    let mut shards = shards.restore(step.as_ref(), 1);
    shards.events(&[with(4, 59, 0)]);
    shards.end(90 * SECOND);
    assert_eq!(shards.late.last(), Some(&(0, 4)));
}

#[test]
fn tumbling_sums_and_offsets_agree_with_flinks_documentation() {
    // Facts from apache/flink, docs/content/docs/dev/table/sql/queries/window-tvf.md (Apache-2.0).
    let prices = [(5, 4.0), (7, 2.0), (9, 5.0), (11, 3.0), (13, 1.0), (17, 6.0)];
    let midnight = 1_586_937_600 * SECOND; // 2020-04-15T08:00:00Z
    for (offset, expected) in [
        ("0s", [("08:00", "08:10", 11.0), ("08:10", "08:20", 10.0)]),
        ("1m", [("08:01", "08:11", 11.0), ("08:11", "08:21", 10.0)]),
    ] {
        let step = plan(&format!(
            r#"{{ window = {{ tumbling = "10m", offset = "{offset}" }}, aggregate = {{ price = "sum(payload.x)" }}, name = "w" }}"#
        ));
        let mut shards = Shards::new(step.as_ref(), 1);
        let bids: Vec<Event> = (0..)
            .zip(prices)
            .map(|(i, (minute, x))| Event { at: midnight + minute * 60 * SECOND, x: Some(x), ..event(i, 0, "a") })
            .collect();
        shards.events(&bids);
        let rows = shards.end(i64::MAX);
        let wanted: Vec<String> = expected
            .iter()
            .map(|(start, end, sum)| {
                format!(
                    "_key= window_start=2020-04-15T{start}:00Z window_end=2020-04-15T{end}:00Z price={sum:?} final=true epoch=1"
                )
            })
            .collect();
        assert_eq!(rows, wanted);
    }
}

#[test]
fn window_starts_with_an_offset_agree_with_flinks_documentation() {
    let at = 1_625_011_204 * SECOND; // 2021-06-30T00:00:04Z
    let cases = [
        ("-16m", "29T23:54"),
        ("-6m", "29T23:54"),
        ("-4m", "29T23:56"),
        ("0m", "30T00:00"),
        ("4m", "29T23:54"),
        ("6m", "29T23:56"),
        ("16m", "29T23:56"),
    ];
    for (offset, start) in cases {
        let step = plan(&format!(
            r#"{{ window = {{ tumbling = "10m", offset = "{offset}" }}, aggregate = {{ n = "count(*)" }}, name = "w" }}"#
        ));
        let mut shards = Shards::new(step.as_ref(), 1);
        shards.events(&[Event { at, ..event(0, 0, "a") }]);
        let rows = shards.end(i64::MAX);
        assert!(rows[0].contains(&format!("window_start=2021-06-{start}:00Z")), "{offset}: {}", rows[0]);
    }
}

#[test]
fn a_failing_argument_kills_its_record_only() {
    let step = plan(r#"{ window = { tumbling = "1m" }, aggregate = { n = "sum(10 / payload.n)" }, name = "w" }"#);
    let mut shards = Shards::new(step.as_ref(), 1);
    let with = |offset, n| Event { n: Some(n), ..event(offset, 1, "a") };
    shards.events(&[with(0, 1), with(1, 0), with(2, 5)]);
    let rows = shards.end(i64::MAX);
    assert!(rows[0].contains(" n=12 "), "{}", rows[0]);
    assert_eq!(shards.dead.len(), 1);
    assert_eq!(
        (shards.dead[0].offset.0, shards.dead[0].cause, shards.dead[0].code.as_str()),
        (1, "expression", "divide_by_zero")
    );
}

#[test]
fn mistakes_say_what_is_there() {
    let bad = |aggregate: &str| {
        mistakes(&format!(r#"{{ window = {{ tumbling = "1m" }}, aggregate = {{ n = "{aggregate}" }}, name = "w" }}"#))
    };
    assert!(bad("stddev(payload.n)").contains("available: count, count(distinct"), "{}", bad("stddev(payload.n)"));
    assert!(bad("sum(payload.a)").contains("`sum` needs a number"), "{}", bad("sum(payload.a)"));
    assert!(bad("sum(distinct payload.n)").contains("only count takes distinct"));
    assert!(bad("approx_percentile_cont(payload.n, payload.x)").contains("constant from 0 to 1"));
    let twice = mistakes(
        r#"{ window = { tumbling = "1m" }, group_by = { epoch = "payload.a" }, aggregate = { n = "count(*)" }, name = "w" }"#,
    );
    assert!(twice.contains("`epoch` is there twice"), "{twice}");
    let hopping = mistakes(r#"{ window = { hopping = "1m" }, aggregate = { n = "count(*)" }, name = "w" }"#);
    assert!(hopping.contains("unknown field `hopping`") && hopping.contains("available: tumbling"), "{hopping}");
}

#[test]
fn r12_the_fingerprint_is_of_what_the_state_means() {
    let print = |window: &str, sum: &str| {
        let text = format!(
            r#"{{ window = {{ {window} }}, group_by = {{ who = "payload.a" }}, aggregate = {{ n = "{sum}" }}, name = "w" }}"#
        );
        plan(&text).fingerprint().unwrap()
    };
    let first = print(r#"tumbling = "1m", grace = "30s""#, "sum(payload.n)");
    assert_eq!(first, print(r#"tumbling = "60s", grace = "30000ms""#, "  sum(payload.n)  "));
    assert_ne!(first, print(r#"tumbling = "2m", grace = "30s""#, "sum(payload.n)"));
    assert_ne!(first, print(r#"tumbling = "1m", grace = "30s""#, "avg(payload.n)"));
}

#[test]
fn r6_state_of_another_version_is_refused() {
    let step = plan(ACTIVITY);
    let mut shards = Shards::new(step.as_ref(), 1);
    shards.events(&[event(0, 1, "a")]);
    shards.end(0);
    let mut piece = shards.apply[0].snapshot();
    let fresh = |bytes: &[u8]| Shards::new(step.as_ref(), 1).apply[0].restore(bytes, true, &|_| true);
    assert!(fresh(&piece).is_ok());
    assert!(fresh(&piece[..piece.len() - 1]).is_err());
    piece[0] = 99;
    assert!(fresh(&piece).is_err_and(|e| e.to_string().contains("another version")));
}

/// Some events, and where epochs end.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = (0u32..3, 0i64..300, 0u8..4, 0u8..6, proptest::option::of(-20i64..20), -1e9f64..1e9);
    proptest::collection::vec(one, 1..80).prop_map(|events| {
        let mut maximum = BTreeMap::new();
        let event = |(offset, (partition, at, a, b, n, x)): (u64, (u32, i64, u8, u8, Option<i64>, f64))| {
            let maximum = maximum.entry(partition).or_insert(i64::MIN);
            let watermark = if *maximum == i64::MIN { i64::MIN } else { *maximum - 40 * SECOND };
            *maximum = (*maximum).max(at * SECOND);
            let b = (b > 0).then(|| format!("user {b}"));
            Event { partition, watermark, b, n, x: Some(x), ..event(offset, at, &format!("key {a}")) }
        };
        (0..).zip(events).map(event).collect()
    })
}

/// The last row of each group: the answer.
fn answer(rows: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
    let mut last = BTreeMap::new();
    for row in rows {
        let group: Vec<&str> = row.split(' ').take_while(|cell| !cell.starts_with("messages=")).collect();
        let values = row.rsplit_once(" epoch=").unwrap().0.to_owned();
        last.insert(group.join(" "), values);
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn r4_cuts_workers_and_restores_at_every_epoch_never_change_the_answer(
        events in events(),
        cuts in proptest::collection::btree_set(0usize..80, 0..12),
        workers in proptest::collection::vec(1usize..4, 12),
    ) {
        let step = plan(ACTIVITY);
        let mut whole = Shards::new(step.as_ref(), 1);
        whole.events(&events);
        let mut rows = whole.end(i64::MIN);
        rows.extend(whole.end(i64::MAX));
        let wanted = answer(rows);

        let mut cuts: BTreeSet<usize> = cuts.into_iter().filter(|cut| *cut < events.len()).collect();
        cuts.insert(events.len());
        let mut shards = Shards::new(step.as_ref(), workers[0]);
        let mut rows = Vec::new();
        let mut from = 0;
        for (to, workers) in cuts.into_iter().zip(workers.into_iter().cycle()) {
            // Partitions may come in any order, and in batches of any size.
            for partition in [2, 0, 1] {
                let part: Vec<Event> = events[from..to].iter().filter(|e| e.partition == partition).cloned().collect();
                part.chunks(7).for_each(|part| drop(shards.events(part)));
            }
            from = to;
            // No partition is idle, so the minimum is never ahead of a record's own watermark.
            let next = |partition| events[to..].iter().find(|e| e.partition == partition).map_or(i64::MIN, |e| e.watermark);
            let watermark = (0..3).map(next).min().unwrap_or(i64::MIN);
            rows.extend(shards.end(watermark));
            shards = shards.restore(step.as_ref(), workers);
        }
        rows.extend(shards.end(i64::MAX));
        prop_assert_eq!(answer(rows), wanted);
        prop_assert_eq!(shards.counts.late, whole.counts.late);
    }
}
