//! Documents of real stores kept in Redis: they spare the store, and are never older than what was written before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::proxy::{Proxy, Way};
use common::{Plan, Row, harness, row};
use quikflow_sinks::store::{ItemOutcome, StoreSet};
use quikflow_sinks::stores::Stores;
use quikflow_topics::catalogue::SinkSpec;
use quikflow_topics::clock::SystemClock;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Stores whose documents are kept.
const CACHED: [&str; 2] = ["real:mysql", "real:mongodb"];

crate::tests! {
    each CACHED: async a_document_is_read_once_until_it_changes,
    each CACHED: async nobody_reads_what_was_before_a_write_that_has_ended,
    async a_cache_that_is_away_is_done_without,
}

/// A sink whose documents are kept for so long; its store, and Redis, behind proxies.
async fn plan(store: &'static str, keep: Duration) -> (Plan, Proxy, Proxy) {
    common::need(store);
    common::need("real:redis");
    let mut plan = Plan::new(store, 21);
    plan.urls.redis = common::urls_for(plan.dir(), &["real:redis".to_owned()]).redis;
    plan.sink = Arc::new(SinkSpec { key: vec!["k".to_owned()], cache: Some(keep), ..(*plan.sink).clone() });
    let (of_store, through) = Proxy::before(common::url_of(&mut plan.urls, store).as_deref().unwrap()).await;
    *common::url_of(&mut plan.urls, store) = Some(through);
    let (of_cache, through) = Proxy::before(plan.urls.redis.as_deref().unwrap()).await;
    plan.urls.redis = Some(through);
    plan.urls.longest_call = Some(Duration::from_secs(4));
    (plan, of_store, of_cache)
}

async fn write(plan: &Plan, stores: &Stores, rows: &[Row]) {
    let outcomes = stores.store_of(&plan.sink).unwrap().write(plan.batch(rows)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == ItemOutcome::Written), "{outcomes:?}");
}

async fn value(stores: &Stores, key: &str) -> Option<i64> {
    let found = stores.read_side().documents.get("t", key).await.unwrap();
    found.map(|document| document["value"].as_i64().unwrap())
}

/// Reads until an answer comes without the store: after a change that takes as long as a replica is given.
async fn kept(stores: &Stores, of_store: &Proxy, key: &str, expected: i64) {
    let clock = SystemClock::shared();
    let began = clock.elapsed();
    loop {
        let before = of_store.passed();
        assert_eq!(value(stores, key).await, Some(expected));
        if of_store.passed() == before {
            return;
        }
        assert!(clock.elapsed() - began < Duration::from_secs(20), "it is never kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_document_is_read_once_until_it_changes(store: &'static str) {
    let (plan, of_store, _of_cache) = plan(store, Duration::from_secs(60)).await;
    let stores = plan.open();
    assert_eq!(value(&stores, "a").await, None);
    write(&plan, &stores, &[row(0, 1, "a", 60, 1, false), row(0, 2, "b", 60, 2, false)]).await;
    assert_eq!(value(&stores, "b").await, Some(2));
    kept(&stores, &of_store, "a", 1).await;
    // Another process has it as well, while the store is away.
    of_store.set(Way::Cut);
    assert_eq!(value(&stores, "a").await, Some(1));
    of_store.set(Way::Open);
    let other = plan.open();
    write(&plan, &other, &[row(0, 3, "a", 60, 3, false)]).await;
    assert_eq!((value(&stores, "a").await, value(&other, "a").await), (Some(3), Some(3)));
    kept(&stores, &of_store, "a", 3).await;
    // What is not there any more is not kept either.
    other.store_of(&plan.sink).unwrap().clear("s").await.unwrap();
    assert_eq!((value(&stores, "a").await, value(&stores, "b").await), (None, None));
}

/// Readers take documents into the cache at the place where a writer is about to change them: whoever asks after a
/// write has ended reads what it wrote.
async fn nobody_reads_what_was_before_a_write_that_has_ended(store: &'static str) {
    const KEYS: usize = 400;
    let (plan, of_store, _of_cache) = plan(store, Duration::from_secs(60)).await;
    let stores = Arc::new(plan.open());
    let first: Vec<Row> = (0..KEYS).map(|at| row(0, at as u64 + 1, &format!("k{at}"), 60, 1, false)).collect();
    write(&plan, &stores, &first).await;
    // From here on nothing was changed a moment ago.
    kept(&stores, &of_store, "k0", 1).await;
    let written = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..4)
        .map(|of| {
            let (stores, written) = (stores.clone(), written.clone());
            tokio::spawn(async move {
                let mut read = [0, 0];
                loop {
                    let done = written.load(Ordering::SeqCst);
                    if done == KEYS {
                        return read;
                    }
                    let at = (done + of).saturating_sub(1).min(KEYS - 1);
                    let found = value(&stores, &format!("k{at}")).await.unwrap();
                    assert!(found == 2 || at >= done, "k{at} was written, and read as it was before");
                    read[usize::from(found == 2)] += 1;
                }
            })
        })
        .collect();
    for at in 0..KEYS {
        write(&plan, &stores, &[row(0, (KEYS + at) as u64 + 1, &format!("k{at}"), 60, 2, false)]).await;
        written.store(at + 1, Ordering::SeqCst);
    }
    for reader in readers {
        let [before, after] = reader.await.unwrap();
        assert!(before + after > KEYS / 4, "{before} and {after} reads");
    }
}

async fn a_cache_that_is_away_is_done_without() {
    let keep = Duration::from_secs(7);
    let (plan, of_store, of_cache) = plan("real:mysql", keep).await;
    let stores = plan.open();
    write(&plan, &stores, &[row(0, 1, "a", 60, 1, false)]).await;
    kept(&stores, &of_store, "a", 1).await;
    let clock = SystemClock::shared();
    for (number, way) in [(2, Way::Held), (3, Way::Cut)] {
        of_cache.set(way);
        // The store has it, the cache is not told, and nobody waits for long.
        let began = clock.elapsed();
        write(&plan, &stores, &[row(0, number, "a", 60, number as i64, false)]).await;
        assert_eq!(value(&stores, "a").await, Some(number as i64), "{way:?}");
        assert!(clock.elapsed() - began < Duration::from_secs(7), "{way:?}: {:?}", clock.elapsed() - began);
        of_cache.set(Way::Open);
        // It may be older for as long as is declared, and no longer.
        let began = clock.elapsed();
        while value(&stores, "a").await != Some(number as i64) {
            assert!(clock.elapsed() - began < keep + Duration::from_secs(3), "{way:?}: still what was before");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
