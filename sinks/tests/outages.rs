//! Real stores that stop answering, that forget, and a replica that goes away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::proxy::{Proxy, Way};
use common::{Model, Plan, harness, rows_of};
use quikflow_sinks::changes::Change;
use quikflow_sinks::runner::{RunnerOptions, SinkRunner, SinkSetup};
use quikflow_sinks::store::{ItemOutcome, Store, StoreError, StoreSet, WriteBatch};
use quikflow_sinks::stores::Stores;
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SystemClock;
use std::sync::Arc;
use std::time::Duration;

const REAL: [&str; 5] = ["real:mongodb", "real:elasticsearch", "real:clickhouse", "real:redis", "real:mysql"];

/// Long enough for a call on a busy machine, and less than what clients wait by themselves.
const LONGEST: Duration = Duration::from_secs(4);

crate::tests! {
    each REAL: async r13_a_write_that_hangs_is_given_up_and_made_again,
    each REAL: async a_store_that_hangs_at_the_start_is_waited_for_once,
    r14_redis_that_forgot_is_written_again,
    async who_follows_reads_again_after_redis_was_away,
    async reads_go_to_the_primary_while_the_replica_is_away,
}

/// A store behind a proxy.
async fn behind(store: &'static str, seed: u64) -> (Plan, Proxy) {
    common::need(store);
    let mut plan = Plan::new(store, seed);
    let url = common::url_of(&mut plan.urls, store);
    let (proxy, through) = Proxy::before(url.as_deref().expect("a URL")).await;
    *url = Some(through);
    plan.urls.longest_call = Some(LONGEST);
    (plan, proxy)
}

/// Writes until it is taken; a connection that was lost meanwhile is found out by the first try.
async fn write(target: &Arc<dyn Store>, batch: &WriteBatch) {
    let mut last = None;
    for _ in 0..5 {
        match target.write(batch.clone()).await {
            Ok(outcomes) => {
                assert!(outcomes.iter().all(|o| matches!(o, ItemOutcome::Written | ItemOutcome::Older)), "{outcomes:?}");
                return;
            }
            Err(error @ StoreError::Unavailable { .. }) => last = Some(error),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it was never taken: {last:?}");
}

/// R13: a server that is frozen in the middle of a batch holds nobody up for longer than is set, and
/// what was half done is done again.
async fn r13_a_write_that_hangs_is_given_up_and_made_again(store: &'static str) {
    let (plan, proxy) = behind(store, 11).await;
    let clock = SystemClock::shared();
    let stores = plan.open();
    let target = stores.store_of(&plan.sink).expect("a store");
    let mut model = Model::default();
    for (number, batch) in plan.batches().into_iter().enumerate() {
        model.apply(&batch.rows);
        if number == 3 {
            proxy.set(Way::Held);
            let started = clock.elapsed();
            let error = target.write(batch.clone()).await.expect_err("no answer");
            let took = clock.elapsed() - started;
            assert!(matches!(&error, StoreError::Unavailable { .. }), "{error}");
            assert!(took >= LONGEST && took < 2 * LONGEST, "given up after {took:?}: {error}");
            assert!(error.to_string().contains("no answer within 4s"), "{error}");
            // Reads are bounded as well.
            let read = read_all(&stores, &plan).await.expect_err("no answer");
            assert!(matches!(&read, StoreError::Unavailable { .. }), "{read}");
            proxy.set(Way::Open);
        }
        if number == 6 {
            proxy.set(Way::Cut);
            let error = target.write(batch.clone()).await.expect_err("no server");
            assert!(matches!(&error, StoreError::Unavailable { .. }), "{error}");
            proxy.set(Way::Open);
        }
        write(&target, &batch).await;
    }
    assert_eq!(rows_of(&stores.read_side(), &plan.sink.table), model.rows(), "{store}");
}

/// What a reader of the table is told.
async fn read_all(stores: &Stores, plan: &Plan) -> Result<(), StoreError> {
    let (side, table) = (stores.read_side(), plan.sink.table.clone());
    let read = move || {
        for batch in side.tables.scan(&table, &quikflow_sinks::store::ScanRequest::default())?.batches {
            batch?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(read).await.expect("it ends")
}

/// The start waits for a server that does not answer once, not once a sink; its sinks catch up later.
async fn a_store_that_hangs_at_the_start_is_waited_for_once(store: &'static str) {
    let (plan, proxy) = behind(store, 12).await;
    proxy.set(Way::Held);
    let clock = SystemClock::shared();
    let sinks: Vec<(Arc<SinkSpec>, Arc<TopicSpec>)> = ["s", "t", "u", "v"]
        .map(|name| (Arc::new(SinkSpec { name: name.into(), table: name.into(), ..(*plan.sink).clone() }), plan.topic.clone()))
        .into();
    let started = clock.elapsed();
    let stores = {
        let (dir, sinks, urls) = (plan.dir().to_owned(), sinks.clone(), plan.urls.clone());
        let open = move || Stores::open_with(&dir, SystemClock::shared(), &sinks, &urls);
        tokio::task::spawn_blocking(open).await.expect("it ends").expect("it starts")
    };
    let took = clock.elapsed() - started;
    assert!(took < 2 * LONGEST, "the start took {took:?}");
    proxy.set(Way::Open);
    for (sink, _) in &sinks {
        let target = stores.store_of(sink).expect("a store");
        let batch = WriteBatch { sink: sink.clone(), ..plan.batch(&[common::row(0, 1, "k", 60, 1, true)]) };
        write(&target, &batch).await;
        assert_eq!(rows_of(&stores.read_side(), &sink.table), vec![("k".to_owned(), 60_000_000, 1)], "{store}");
    }
}

/// R14: an offset never outlives its rows. A Redis that was emptied, or that began again without its
/// data, is written again from the start, whether or not new records come.
fn r14_redis_that_forgot_is_written_again() {
    if !cfg!(feature = "redis") {
        harness::skip("built without the feature `redis`");
    }
    let mut server = common::redis::OwnRedis::start(&[]);
    let mut plan = Plan::new("redis", 1);
    plan.urls.redis = Some(server.url(""));
    let clock = SystemClock::shared();
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::new(plan.dir(), clock.clone()) };
    let broker = EmbeddedBroker::open(options).expect("a log");
    broker.ensure_topics(std::slice::from_ref(&plan.topic)).expect("topics");
    let stores = Arc::new(plan.open());
    let setup = SinkSetup { sink: plan.sink.clone(), topic: plan.topic.clone(), filter: None };
    let options = RunnerOptions {
        linger: Duration::ZERO,
        max_back_off: Duration::from_millis(100),
        replays: Duration::from_millis(20),
        ..RunnerOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let runner = {
        let _entered = runtime.enter();
        SinkRunner::start(broker.clone(), stores.clone(), vec![setup], clock, options).expect("a runner")
    };
    let append = |values| common::append(&*broker, &plan.topic, values, |_| 60_000_000);
    let holds = |wanted: i64, when: &str| {
        let mut found = Vec::new();
        for _ in 0..500 {
            let seen = broker.wakeup().version();
            let scan = stores.read_side().tables.scan("t", &quikflow_sinks::store::ScanRequest::default());
            // It may be away just now.
            found = scan.map_or_else(|_| Vec::new(), |_| rows_of(&stores.read_side(), "t"));
            if found.iter().map(|(_, _, value)| *value).eq(0..wanted) {
                return;
            }
            broker.wakeup().wait(seen, Duration::from_millis(20));
        }
        panic!("{when}: {} rows of {wanted}, {:?}", found.len(), runner.status());
    };
    append(0..300);
    holds(300, "written");
    // Emptied while nothing comes.
    assert_eq!(server.tell(&["FLUSHALL"]), "+OK\r\n");
    holds(300, "emptied");
    // Emptied while something comes.
    append(300..400);
    assert_eq!(server.tell(&["FLUSHALL"]), "+OK\r\n");
    append(400..500);
    holds(500, "emptied under way");
    // Killed, and without its data after that; nothing comes.
    server.kill();
    server.start_again();
    holds(500, "begun again");
    server.kill();
    append(500..600);
    server.start_again();
    holds(600, "begun again under way");
    assert!(runner.status().iter().all(|status| status.dead == 0 && !status.state.is_stopped()), "{:?}", runner.status());
    runner.stop(Duration::from_secs(5));
}

/// What was published while nobody was connected cannot be heard.
async fn who_follows_reads_again_after_redis_was_away() {
    if !cfg!(feature = "redis") {
        harness::skip("built without the feature `redis`");
    }
    let mut server = common::redis::OwnRedis::start(&[]);
    let mut plan = Plan::new("redis", 1);
    plan.urls.redis = Some(server.url(""));
    let stores = plan.open();
    let target = stores.store_of(&plan.sink).expect("a store");
    let mut follower = stores.read_side().changes.follow("t").expect("a follower");
    for round in 1..3 {
        assert_eq!(common::next_change(&mut follower).await, Change::Missed, "round {round}");
        // As a sink does with a server that was started anew; the first try finds out that the connection is gone.
        let mut progress = target.progress("s").await;
        for _ in 0..4 {
            if progress.is_err() {
                progress = target.progress("s").await;
            }
        }
        progress.expect("its progress");
        write(&target, &plan.batch(&[common::row(0, round, "k", 60, 1, false)])).await;
        let told = common::next_change(&mut follower).await;
        assert!(matches!(&told, Change::Keys(keys) if keys.len() == 1), "round {round}: {told:?}");
        server.kill();
        server.start_again();
    }
}

/// Reads go to the replica, `as_of` included; while it is away or slow, to the primary; then to it again.
async fn reads_go_to_the_primary_while_the_replica_is_away() {
    common::need("real:mysql");
    let mut plan = Plan::new("real:mysql", 13);
    let space = plan.urls.mysql.as_ref().and_then(|url| url.rsplit_once('/')).map(|(_, space)| space.to_owned());
    let replica = format!("{}/{}", harness::server("QUIKFLOW_TEST_MYSQL_REPLICA"), space.expect("a database"));
    let (proxy, through) = Proxy::before(&replica).await;
    plan.urls.mysql_replica = Some(through);
    let stores = Arc::new(plan.open());
    let target = stores.store_of(&plan.sink).expect("a store");
    let rows: Vec<_> = (0..50).map(|i| common::row(0, i, &format!("k{i:02}"), 60, i as i64, true)).collect();
    target.write(plan.batch(&rows)).await.expect("written");
    let count = || {
        let stores = stores.clone();
        async move {
            let read = move || rows_of(&stores.read_side(), "t").len();
            tokio::task::spawn_blocking(read).await.expect("it ends")
        }
    };
    // The replica follows: its answer is whole in a while, and it is its answer.
    let mut before;
    let mut tries = 0;
    loop {
        before = proxy.passed();
        if count().await == 50 && proxy.passed() > before {
            break;
        }
        tries += 1;
        assert!(tries < 1_000, "the replica never had the rows");
    }
    for way in [Way::Cut, Way::Held] {
        proxy.set(way);
        before = proxy.passed();
        assert_eq!(count().await, 50, "{way:?}");
        assert_eq!(proxy.passed(), before, "{way:?}: the primary answered");
        // It is left alone for a while: no read waits for it.
        let clock = SystemClock::shared();
        let started = clock.elapsed();
        assert_eq!(count().await, 50, "{way:?}");
        assert!(clock.elapsed() - started < Duration::from_secs(3), "{way:?}");
        proxy.set(Way::Open);
        let mut answers = 0;
        while proxy.passed() == before {
            assert_eq!(count().await, 50, "{way:?}, open again");
            answers += 1;
            assert!(clock.elapsed() - started < Duration::from_secs(60), "{way:?}: not asked again in {answers} reads");
        }
    }
}
