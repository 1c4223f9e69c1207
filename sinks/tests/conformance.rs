//! One suite for every store: the same calls, the same answers.
//!
//! Runs against all embedded twins, and against each real store of which a test server is named
//! (`QUIKFLOW_TEST_MONGODB`, …); the others are skipped, and count as ignored.
//! Seeds are printed; `QUIKFLOW_SEED` repeats one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{Model, Plan, harness, row, rows_of};
use quikflow_sinks::changes::Change;
use quikflow_sinks::store::{ItemOutcome, ScanRequest, StoreError, StoreSet};
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use std::sync::Arc;
use std::time::Duration;

/// The embedded twins, then the real stores.
const STORES: [&str; 12] = [
    "mongodb",
    "elasticsearch",
    "clickhouse",
    "redis",
    "mysql",
    "audit",
    "outbox",
    "real:mongodb",
    "real:elasticsearch",
    "real:clickhouse",
    "real:redis",
    "real:mysql",
];

/// Those that keep the newest row of each key; the audit log keeps every row.
const NEWEST: [&str; 11] = [
    "mongodb",
    "elasticsearch",
    "clickhouse",
    "redis",
    "mysql",
    "outbox",
    "real:mongodb",
    "real:elasticsearch",
    "real:clickhouse",
    "real:redis",
    "real:mysql",
];

/// Those that tell what changes.
const TELLING: [&str; 2] = ["redis", "real:redis"];

/// Those that know open and final rows.
const VIEWS: [&str; 2] = ["clickhouse", "real:clickhouse"];

crate::tests! {
    each NEWEST: async r13_batches_in_any_order_and_number_give_the_same_rows,
    each VIEWS: async r7_a_final_row_wins_over_open_ones,
    each STORES: async r14_the_offset_waits_for_rejected_rows,
    each STORES: async r14_what_offsets_have_passed_can_be_read,
    each STORES: async r13_a_cleared_sink_has_neither_rows_nor_offsets,
    each STORES: async r10_rows_expire_by_arrival,
    each STORES: async scans_give_what_was_asked_for,
    each STORES: async r12_a_table_of_another_form_is_refused,
    each STORES: async r10_progress_is_stored_with_its_generation,
    each NEWEST: async r13_two_writers_at_once_give_the_same_rows,
    each TELLING: async changes_are_told_to_who_follows,
    async elasticsearch_goes_on_with_an_index_that_was_made_anew,
}

fn seed() -> u64 {
    let seed = std::env::var("QUIKFLOW_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_2026);
    println!("seed {seed}");
    seed
}

/// R13: whatever the order and the repetition in which batches come, the table is the newest row of each key.
async fn r13_batches_in_any_order_and_number_give_the_same_rows(store: &'static str) {
    let seed = seed();
    common::need(store);
    for round in 0..3 {
        let plan = Plan::new(store, seed.wrapping_add(round));
        let open = plan.open();
        let target = open.store_of(&plan.sink).expect("a store");
        let mut model = Model::default();
        for batch in plan.shuffled_batches() {
            let outcomes = target.write(batch.clone()).await.expect("written");
            assert!(outcomes.iter().all(|o| matches!(o, ItemOutcome::Written | ItemOutcome::Older)), "{store}: {outcomes:?}");
            model.apply(&batch.rows);
        }
        target.maintain(EventTime(0)).await.expect("tidied");
        let found = rows_of(&open.read_side(), &plan.sink.table);
        assert_eq!(found, model.rows(), "{store}, seed {}", seed.wrapping_add(round));
        // Asked for one key, the same rows of it and of no version before; rows of other keys are allowed.
        for wanted in found.iter().step_by(7) {
            let asked = common::rows_where(&open.read_side(), &plan.sink.table, &wanted.0);
            let of_key: Vec<_> = found.iter().filter(|row| row.0 == wanted.0).cloned().collect();
            assert_eq!(asked, of_key, "{store}, seed {}", seed.wrapping_add(round));
        }
        assert!(common::rows_where(&open.read_side(), &plan.sink.table, "no such key").is_empty(), "{store}");
        // Once more from the start: nothing changes.
        for batch in plan.batches() {
            target.write(batch).await.expect("written again");
        }
        assert_eq!(rows_of(&open.read_side(), &plan.sink.table), model.rows(), "{store}, written twice");
        drop((target, open));
        // And after the process ended.
        assert_eq!(rows_of(&plan.open().read_side(), &plan.sink.table), model.rows(), "{store}, opened again");
    }
}

/// R7: of a window's rows the final one wins, even over open ones of later records.
async fn r7_a_final_row_wins_over_open_ones(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 1);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    for (offset, value, last) in [(5, 50, true), (7, 70, false), (3, 30, false)] {
        target.write(plan.batch(&[common::row(0, offset, "k", 60, value, last)])).await.expect("written");
    }
    assert_eq!(rows_of(&open.read_side(), &plan.sink.table), vec![("k".to_owned(), 60_000_000, 50)]);
    target.write(plan.batch(&[common::row(0, 9, "k", 60, 90, true)])).await.expect("written");
    assert_eq!(rows_of(&open.read_side(), &plan.sink.table), vec![("k".to_owned(), 60_000_000, 90)]);
}

/// R14: no offset passes a rejected row: it has to be a dead letter first.
async fn r14_the_offset_waits_for_rejected_rows(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 2);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    let good = common::row(0, 0, "a", 60, 1, true);
    let bad = common::Row { key: None, ..common::row(0, 1, "", 60, 2, true) };
    let mut batch = plan.batch(&[good, bad]);
    batch.next = [(PartitionId(0), Offset(2))].into();
    let outcomes = target.write(batch.clone()).await.expect("an answer");
    assert_eq!(outcomes[0], ItemOutcome::Written, "{store}");
    assert!(matches!(&outcomes[1], ItemOutcome::Rejected { code, .. } if code == "null_key"), "{store}: {outcomes:?}");
    assert!(target.progress(&plan.sink.name).await.expect("progress").positions.is_empty(), "{store}");
    batch.rows = batch.rows.slice(0, 0);
    target.write(batch.clone()).await.expect("an answer");
    assert_eq!(target.progress(&plan.sink.name).await.expect("progress").positions, batch.next, "{store}");
}

/// R14: a batch that goes in several calls can be read whole as soon as its offsets are stored.
async fn r14_what_offsets_have_passed_can_be_read(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 3);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    for round in 1..=2 {
        let offsets = (round - 1) * 1_500..round * 1_500;
        let rows: Vec<_> = offsets.map(|i| common::row(0, i, &format!("key{i}"), 60, i as i64, true)).collect();
        let mut batch = plan.batch(&rows);
        batch.next = [(PartitionId(0), Offset(round * 1_500))].into();
        target.write(batch.clone()).await.expect("written");
        assert_eq!(target.progress(&plan.sink.name).await.expect("progress").positions, batch.next, "{store}");
        assert_eq!(rows_of(&open.read_side(), &plan.sink.table).len() as u64, round * 1_500, "{store}");
    }
}

/// R13: rows and offsets are of one generation; a cleared sink starts anew.
async fn r13_a_cleared_sink_has_neither_rows_nor_offsets(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 3);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    let mut batch = plan.batch(&[common::row(0, 900, "a", 60, 1, true)]);
    batch.next = [(PartitionId(0), Offset(901))].into();
    target.write(batch.clone()).await.expect("written");
    target.clear(&plan.sink.name).await.expect("cleared");
    assert!(rows_of(&open.read_side(), &plan.sink.table).is_empty(), "{store}");
    assert!(target.progress(&plan.sink.name).await.expect("progress").positions.is_empty(), "{store}");
    // A lower offset of a higher generation is newer.
    let mut next = plan.batch(&[common::row(0, 1, "a", 60, 2, true)]);
    next.generation = 1;
    target.write(batch).await.expect("written");
    if store != "audit" {
        target.write(next).await.expect("written");
        assert_eq!(rows_of(&open.read_side(), &plan.sink.table), vec![("a".to_owned(), 60_000_000, 2)], "{store}");
    }
}

/// R10: time-to-live counts from arrival, not from event time.
async fn r10_rows_expire_by_arrival(store: &'static str) {
    common::need(store);
    let plan = Plan::with_ttl(store, Duration::from_secs(100));
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    // Arrival is 1,000 s + offset.
    target
        .write(plan.batch(&[common::row(0, 0, "old", 5_000, 1, true), common::row(0, 50, "new", 10, 2, true)]))
        .await
        .expect("written");
    target.maintain(EventTime(1_120_000_000)).await.expect("tidied");
    assert_eq!(rows_of(&open.read_side(), &plan.sink.table), vec![("new".to_owned(), 10_000_000, 2)], "{store}");
}

/// Columns in the order asked for, a range of time, and errors that name what is there.
async fn scans_give_what_was_asked_for(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 4);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    let rows: Vec<_> = (0..100).map(|i| common::row(0, i, &format!("k{i:03}"), i as i64, i as i64, true)).collect();
    target.write(plan.batch(&rows)).await.expect("written");
    let tables = open.read_side().tables;
    let request = ScanRequest {
        columns: Some(vec!["value".into(), "k".into()]),
        from: Some(EventTime(10_000_000)),
        to: Some(EventTime(20_000_000)),
        ..ScanRequest::default()
    };
    let scan = tables.scan(&plan.sink.table, &request).expect("a scan");
    assert_eq!(scan.schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["value", "k"], "{store}");
    let count: usize = scan.batches.map(|b| b.expect("a batch").num_rows()).sum();
    assert_eq!(count, 10, "{store}");
    let missing = ScanRequest { columns: Some(vec!["nothing".into()]), ..ScanRequest::default() };
    assert!(matches!(tables.scan(&plan.sink.table, &missing), Err(StoreError::BadRequest(m)) if m.contains("value")), "{store}");
    assert!(
        matches!(tables.scan("nowhere", &missing), Err(StoreError::BadRequest(m)) if m.contains(&plan.sink.table)),
        "{store}"
    );
}

/// A key that changes, or a column of another type, would mix old rows with new ones (R12).
async fn r12_a_table_of_another_form_is_refused(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 5);
    drop(plan.open());
    let mut sink = (*plan.sink).clone();
    sink.key = vec!["k".into()];
    let opened = plan.open_as(Arc::new(sink));
    assert!(matches!(opened.err(), Some(StoreError::Refused { message, .. }) if message.contains("key")), "{store}");
}

/// Notes of progress are of one sink, and say the generation.
async fn r10_progress_is_stored_with_its_generation(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 6);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    let mut batch = plan.batch(&[common::row(2, 7, "a", 60, 1, true)]);
    batch.generation = 3;
    batch.next = [(PartitionId(0), Offset(4)), (PartitionId(2), Offset(8))].into();
    target.write(batch.clone()).await.expect("written");
    drop((target, open));
    let open = plan.open();
    let progress = open.store_of(&plan.sink).expect("a store").progress(&plan.sink.name).await.expect("progress");
    assert_eq!((progress.positions, progress.generation), (batch.next.clone(), 3), "{store}");
    let scan = open.read_side().tables.scan(&plan.sink.table, &ScanRequest::default()).expect("a scan");
    assert_eq!(scan.as_of, batch.next, "{store}");
}

/// R13: two writers of one sink (a process that was thought dead) change nothing.
async fn r13_two_writers_at_once_give_the_same_rows(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 7);
    let (one, other) = (plan.open(), plan.open());
    let (first, second) = (one.store_of(&plan.sink).expect("a store"), other.store_of(&plan.sink).expect("a store"));
    let mut model = Model::default();
    for (batch, twin) in plan.batches().into_iter().zip(plan.shuffled_batches()) {
        model.apply(&batch.rows);
        model.apply(&twin.rows);
        let (a, b) = tokio::join!(first.write(batch), second.write(twin));
        a.expect("written");
        b.expect("written");
    }
    assert_eq!(rows_of(&one.read_side(), &plan.sink.table), model.rows(), "{store}");
}

/// An operator makes a sink's index anew (more shards, another server's disk): it has the form of the first
/// by the template, and takes its place behind the alias with all versions.
async fn elasticsearch_goes_on_with_an_index_that_was_made_anew() {
    common::need("real:elasticsearch");
    let plan = Plan::new("real:elasticsearch", 1);
    let open = plan.open();
    let target = open.store_of(&plan.sink).expect("a store");
    let batch = |offset, value| plan.batch(&[common::row(0, offset, "k", 60, value, true)]);
    target.write(batch(5, 50)).await.expect("written");
    let url = plan.urls.elasticsearch.clone().expect("a URL");
    let (host, space) = url.trim_start_matches("http://").split_once('/').expect("a host");
    let (first, second) = (format!("{space}-s-000001"), format!("{space}-s-000002"));
    let ask = async |method: &str, path: &str, body: String| {
        let (status, answer) = common::old::ask(method, host, path, &body).await;
        assert!([200, 201].contains(&status), "{method} {path}: {status} {answer}");
        answer
    };
    ask("PUT", &format!("/{second}"), r#"{"settings":{"number_of_shards":2}}"#.to_owned()).await;
    let found = ask("POST", &format!("/{first}/_search"), r#"{"version":true}"#.to_owned()).await;
    // One chunk with its length around it.
    let object = found.find('{').zip(found.rfind('}')).and_then(|(from, to)| found.get(from..=to)).unwrap_or_default();
    let found: serde_json::Value = serde_json::from_str(object).expect("JSON");
    for hit in found["hits"]["hits"].as_array().expect("hits") {
        let (id, version) = (hit["_id"].as_str().expect("an id"), &hit["_version"]);
        let path = format!("/{second}/_doc/{id}?version={version}&version_type=external&refresh=true");
        ask("PUT", &path, hit["_source"].to_string()).await;
    }
    let alias = format!(r#"{{"add":{{"index":"{second}","alias":"{space}-s","is_write_index":true}}}}"#);
    let swap = format!(r#"{{"actions":[{alias},{{"remove_index":{{"index":"{first}"}}}}]}}"#);
    ask("POST", "/_aliases", swap).await;
    assert_eq!(target.write(batch(4, 40)).await.expect("an answer"), vec![ItemOutcome::Older]);
    assert_eq!(rows_of(&open.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 50)]);
    assert_eq!(target.write(batch(6, 60)).await.expect("an answer"), vec![ItemOutcome::Written]);
    assert_eq!(rows_of(&open.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 60)]);
    target.clear(&plan.sink.name).await.expect("cleared");
    assert!(rows_of(&open.read_side(), "t").is_empty());
    target.write(batch(1, 10)).await.expect("written");
    assert_eq!(rows_of(&open.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 10)]);
}

/// Whoever follows is told to read first, then each change once; from Redis also what another process wrote.
async fn changes_are_told_to_who_follows(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 1);
    let open = plan.open();
    let afar = store.starts_with("real:").then(|| plan.open());
    let side = afar.as_ref().unwrap_or(&open).read_side();
    let target = open.store_of(&plan.sink).expect("a store");
    let mut follower = side.changes.follow("t").expect("a follower");
    assert_eq!(common::next_change(&mut follower).await, Change::Missed);

    let ids = |told: Change| match told {
        Change::Keys(keys) => keys.to_vec(),
        Change::Missed => panic!("{store}: a change was missed"),
    };
    let write = async |rows: &[common::Row]| target.write(plan.batch(rows)).await.expect("written");
    write(&[row(0, 1, "a", 60, 1, false), row(0, 2, "b", 60, 1, false)]).await;
    let both = ids(common::next_change(&mut follower).await);
    let page = side.documents.list("t", &[], None, None, None, 9).await.expect("a page");
    let mut there: Vec<&str> = page.items.iter().filter_map(|item| item["_id"].as_str()).collect();
    there.sort_unstable();
    assert!(both == there && both.len() == 2, "{store}: {both:?} are not {there:?}");
    // What is no change is not told: the next is of the other row.
    write(&[row(0, 1, "a", 60, 0, false)]).await;
    write(&[row(0, 3, "b", 60, 2, false)]).await;
    assert_eq!(ids(common::next_change(&mut follower).await), &there[1..], "{store}");
    target.clear("s").await.expect("cleared");
    assert_eq!(common::next_change(&mut follower).await, Change::Missed);

    // A process that does not write an embedded store does not know when it changes.
    open.only_reads();
    assert_eq!(open.read_side().changes.follow("t").is_ok(), afar.is_some(), "{store}");
    let unknown = side.changes.follow("u").expect_err("followed");
    assert!(unknown.to_string().contains("unknown table `u`"), "{unknown}");
    let silent = Plan::new("mongodb", 1);
    let refused = silent.open().read_side().changes.follow("t").expect_err("followed");
    assert!(refused.to_string().contains("cannot be followed"), "{refused}");
}
