//! The sink runner over the embedded log, with a store that fails in all the ways it may.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::Int64Type;
use common::{rows_of, sink};
use parking_lot::Mutex;
use quikflow_sinks::runner::status::{Circuit, State};
use quikflow_sinks::runner::{Rest, RunnerOptions, SinkRunner, SinkSetup};
use quikflow_sinks::store::{ItemOutcome, SinkProgress, Store, StoreError, StoreSet, WriteBatch};
use quikflow_sinks::stores::EmbeddedStores;
use quikflow_topics::broker::{Broker, ResetFrom};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::catalogue::{FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::clock::{Clock, ManualClock, SharedClock, SystemClock};
use quikflow_topics::dead_letter::{DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::EventTime;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong.
#[derive(Default)]
struct Faults {
    /// So many calls find the store away.
    away: u32,
    /// A batch with this value is refused as a whole.
    poison: Option<i64>,
    /// So many batches have their first row busy.
    busy: u32,
    /// Until when (by this clock) nothing is answered, and how many calls found that.
    down: Option<(Arc<ManualClock>, Duration)>,
    in_vain: u32,
    /// The password is wrong.
    refuses: bool,
    /// How many usual batches the store likes to take as one; none: one.
    gathers: Option<u32>,
    /// Sizes of the batches written.
    sizes: Vec<usize>,
}

struct Flaky {
    inner: Arc<dyn Store>,
    faults: Arc<Mutex<Faults>>,
}

#[async_trait::async_trait]
impl Store for Flaky {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    async fn ensure(&self, sink: &SinkSpec, topic: &TopicSpec) -> Result<(), StoreError> {
        self.inner.ensure(sink, topic).await
    }
    async fn progress(&self, sink: &str) -> Result<SinkProgress, StoreError> {
        self.inner.progress(sink).await
    }
    async fn write(&self, mut batch: WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let mut busy = false;
        {
            let mut faults = self.faults.lock();
            if faults.refuses {
                return Err(StoreError::Refused { store: "flaky", message: "wrong password, look at QUIKFLOW_FLAKY_URL".into() });
            }
            if faults.down.as_ref().is_some_and(|(clock, until)| clock.elapsed() < *until) {
                faults.in_vain += 1;
                return Err(StoreError::Unavailable { store: "flaky", message: "down".into(), retry_after: None });
            }
            if faults.away > 0 {
                faults.away -= 1;
                return Err(StoreError::Unavailable { store: "flaky", message: "away".into(), retry_after: None });
            }
            let values = batch.rows.column_by_name("value").expect("values").as_primitive::<Int64Type>();
            if values.iter().flatten().any(|v| Some(v) == faults.poison) {
                return Err(StoreError::BadRequest("a row cannot be taken".into()));
            }
            if faults.busy > 0 && batch.rows.num_rows() > 0 {
                faults.busy -= 1;
                busy = true;
            }
            faults.sizes.push(batch.rows.num_rows());
        }
        if busy {
            // As if the first row was not written: no offset with it.
            batch.next = self.inner.progress(&batch.sink.name).await?.positions;
            batch.rows = batch.rows.slice(1, batch.rows.num_rows() - 1);
            let mut outcomes = self.inner.write(batch).await?;
            outcomes.insert(0, ItemOutcome::Busy);
            return Ok(outcomes);
        }
        self.inner.write(batch).await
    }
    fn gathers(&self) -> u32 {
        self.faults.lock().gathers.unwrap_or(1)
    }
    async fn clear(&self, sink: &str) -> Result<(), StoreError> {
        self.inner.clear(sink).await
    }
    async fn maintain(&self, now: EventTime) -> Result<(), StoreError> {
        self.inner.maintain(now).await
    }
}

struct Set {
    stores: Arc<EmbeddedStores>,
    faults: Arc<Mutex<Faults>>,
}

impl StoreSet for Set {
    fn store_of(&self, sink: &SinkSpec) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(Flaky { inner: self.stores.store_of(sink)?, faults: self.faults.clone() }))
    }
    fn all(&self) -> Vec<Arc<dyn Store>> {
        self.stores.all()
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
    broker: Arc<EmbeddedBroker>,
    stores: Arc<EmbeddedStores>,
    faults: Arc<Mutex<Faults>>,
    setup: SinkSetup,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a folder");
        let clock = SystemClock::shared();
        let broker = EmbeddedBroker::open(EmbeddedOptions { sync: false, ..EmbeddedOptions::new(dir.path(), clock.clone()) })
            .expect("a log");
        let mut topic = TopicSpec::new("rows", TopicKind::Rows);
        topic.partitions = 3;
        topic.fields = vec![
            FieldSpec::new("k", FieldType::String),
            FieldSpec::new("window_start", FieldType::Timestamp),
            FieldSpec::new("value", FieldType::Int),
        ];
        let topic = Arc::new(topic);
        broker.ensure_topics(std::slice::from_ref(&topic)).expect("topics");
        let sink = Arc::new(sink("s", "rows", "mongodb", "t", &["k"]));
        let stores = Arc::new(EmbeddedStores::open(dir.path(), clock, &[(sink.clone(), topic.clone())]).expect("stores"));
        let setup = SinkSetup { sink, topic, filter: None };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        World { runtime, _dir: dir, broker, stores, faults: Arc::default(), setup }
    }

    fn append(&self, values: std::ops::Range<i64>) {
        common::append(&*self.broker, &self.setup.topic, values, |v| 1_700_000_000_000_000 + v);
    }

    fn start(&self, setup: SinkSetup) -> SinkRunner {
        let options = RunnerOptions {
            linger: Duration::ZERO,
            back_off: Duration::from_millis(1),
            max_back_off: Duration::from_millis(4),
            replays: Duration::from_millis(5),
            ..RunnerOptions::default()
        };
        self.start_with(setup, SystemClock::shared(), options)
    }

    fn start_with(&self, setup: SinkSetup, clock: SharedClock, options: RunnerOptions) -> SinkRunner {
        let _entered = self.runtime.enter();
        let set = Arc::new(Set { stores: self.stores.clone(), faults: self.faults.clone() });
        SinkRunner::start(self.broker.clone(), set, vec![setup], clock, options).expect("a runner")
    }

    /// Waits for the log to move, or a little, until it holds.
    fn until(&self, runner: &SinkRunner, holds: impl Fn(&SinkRunner) -> bool) {
        for _ in 0..4_000 {
            let seen = self.broker.wakeup().version();
            if holds(runner) {
                return;
            }
            self.broker.wakeup().wait(seen, Duration::from_millis(5));
        }
        panic!("it never held: {:?}", runner.status());
    }

    fn values(&self) -> Vec<i64> {
        rows_of(&self.stores.read_side(), "t").into_iter().map(|(_, _, value)| value).collect()
    }
}

/// R13, R14: away, busy, poisoned: everything else arrives once, the poisoned row is a dead letter, and its
/// replay writes it once.
#[test]
fn r14_faults_cost_no_row_and_a_poisoned_one_becomes_a_dead_letter() {
    let world = World::new();
    *world.faults.lock() = Faults { away: 7, poison: Some(77), busy: 3, ..Faults::default() };
    world.append(0..200);
    let runner = world.start(world.setup.clone());
    world.until(&runner, |r| r.status()[0].lag == 0);
    assert_eq!(runner.status()[0].dead, 1);
    assert_eq!(runner.status()[0].state, State::Running);
    assert!(world.faults.lock().sizes.len() > 5, "the batch was cut into halves");
    let all = |skip: Option<i64>| (0..200).filter(|v| Some(*v) != skip).collect::<Vec<_>>();
    assert_eq!(world.values(), all(Some(77)));
    let letters = world.broker.dead_letters(&DeadLetterFilter::default()).expect("letters");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].1;
    let origin = letter.origin.as_ref().expect("an origin");
    assert_eq!(letter.id, format!("sink:s:rows:{}:{}", origin.partition, origin.offset));
    assert_eq!((letter.cause.as_str(), letter.step.as_deref()), ("sink", Some("s")));
    // Still poisoned: the replay opens it again. Then healed: written, marked.
    let ids = [letter.id.clone()];
    world.broker.mark_dead_letters(&ids, DeadLetterStatus::Replaying).expect("marked");
    let status = |of: DeadLetterStatus| {
        let filter = DeadLetterFilter { status: Some(of), ..DeadLetterFilter::default() };
        world.broker.dead_letters(&filter).expect("letters").len()
    };
    world.until(&runner, |_| status(DeadLetterStatus::Open) == 1);
    world.faults.lock().poison = None;
    world.broker.mark_dead_letters(&ids, DeadLetterStatus::Replaying).expect("marked");
    world.until(&runner, |_| status(DeadLetterStatus::Replayed) == 1);
    assert_eq!(world.values(), all(None));
    let progress = world.broker.group_offsets("sink:s").expect("offsets");
    assert_eq!(progress.values().map(|o| o.0).sum::<u64>(), 200, "retention knows how far the sink is");
    runner.stop(Duration::from_secs(10));
}

/// A store that likes several batches as one is given them where there are as many, and no more than that.
#[test]
fn several_batches_go_as_one_while_a_sink_is_behind() {
    for (gathers, largest) in [(None, 50), (Some(4), 200)] {
        let world = World::new();
        world.faults.lock().gathers = gathers;
        world.append(0..450);
        let options = RunnerOptions { max_rows: 50, linger: Duration::ZERO, ..RunnerOptions::default() };
        let runner = world.start_with(world.setup.clone(), SystemClock::shared(), options);
        world.until(&runner, |r| r.status()[0].lag == 0);
        assert_eq!(world.values(), (0..450).collect::<Vec<_>>());
        let sizes = world.faults.lock().sizes.clone();
        assert_eq!(sizes[0], largest, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= largest), "{sizes:?}");
        runner.stop(Duration::from_secs(10));
    }
}

/// A stop drains what the topic holds; the next start goes on from the store's own offsets.
#[test]
fn a_stop_drains_and_a_start_goes_on() {
    let world = World::new();
    for part in 0..4 {
        world.append(part * 50..(part + 1) * 50);
        let runner = world.start(world.setup.clone());
        runner.stop(Duration::from_secs(30));
        assert_eq!(world.values(), (0..(part + 1) * 50).collect::<Vec<_>>());
        assert_eq!(runner.status()[0].written, 50, "none twice");
        assert_eq!(runner.status()[0].state, State::Stopped { error: None });
    }
}

/// R13: a reset topic's records replace the rows of the old ones.
#[test]
fn r13_a_reset_topic_starts_its_sink_anew() {
    let world = World::new();
    world.append(0..100);
    let runner = world.start(world.setup.clone());
    world.until(&runner, |_| world.values().len() == 100);
    world.broker.reset_topology("t", &["rows".into()], ResetFrom::Earliest).expect("reset");
    world.append(500..510);
    world.until(&runner, |_| world.values() == (500..510).collect::<Vec<_>>());
    runner.stop(Duration::from_secs(10));
}

/// A refusal ends the sink and says which setting; a filter keeps rows out, and its failures are dead letters.
#[test]
fn refusals_stop_and_filters_filter() {
    let world = World::new();
    world.append(0..20);
    world.faults.lock().refuses = true;
    let runner = world.start(world.setup.clone());
    world.until(&runner, |r| r.status()[0].state.is_stopped());
    assert!(matches!(&runner.status()[0].state, State::Stopped { error: Some(e) } if e.contains("QUIKFLOW_FLAKY_URL")));
    runner.stop(Duration::ZERO);
    world.faults.lock().refuses = false;
    let mut setup = world.setup.clone();
    setup.filter = Some(Arc::new(|rows: &RecordBatch| {
        let values = rows.column_by_name("value").expect("values").as_primitive::<Int64Type>();
        if values.iter().any(|v| v == Some(13)) {
            Err("thirteen".into())
        } else {
            Ok(values.iter().map(|v| v.map(|v| v % 2 == 1)).collect::<BooleanArray>())
        }
    }));
    let runner = world.start(setup);
    runner.stop(Duration::from_secs(10));
    assert_eq!(world.values(), (0..20).filter(|v| v % 2 == 1 && *v != 13).collect::<Vec<_>>());
    let status = &runner.status()[0];
    assert_eq!((status.written, status.filtered, status.dead, status.lag), (9, 10, 1, 0));
    let letters = world.broker.dead_letters(&DeadLetterFilter::default()).expect("letters");
    assert_eq!(letters[0].1.cause, "expression");
}

/// An hour in virtual time: what came before and during it arrives, once, and the store was not called more often
/// than the pauses allow.
#[test]
fn a_store_that_is_down_for_an_hour_loses_nothing_and_catches_up() {
    let world = World::new();
    let hour = Duration::from_secs(3_600);
    let clock = ManualClock::at(EventTime(1_700_000_000_000_000));
    world.faults.lock().down = Some((clock.clone(), hour));
    world.append(0..400);
    let (half_time, at_half_time) = (Mutex::new(Some(std::sync::mpsc::channel::<()>())), clock.clone());
    let more = half_time.lock().as_ref().map(|(sender, _)| sender.clone()).expect("a sender");
    let rest = Rest(Arc::new(move |pause| {
        at_half_time.advance(pause);
        // Time stands still at half time until more has come in.
        if at_half_time.elapsed() > hour / 2
            && let Some((_, came)) = half_time.lock().take()
        {
            came.recv().expect("more");
        }
    }));
    let options = RunnerOptions { linger: Duration::ZERO, rest: Some(rest), ..RunnerOptions::default() };
    let runner = world.start_with(world.setup.clone(), clock.clone(), options);
    world.until(&runner, |r| r.status()[0].circuit != Circuit::Closed && clock.elapsed() > hour / 2);
    let status = runner.status().remove(0);
    assert!(matches!(&status.state, State::BackingOff { error, failures } if error == "down" && *failures > 5), "{status:?}");
    assert_eq!((status.lag, status.batch_rows, world.values().len()), (400, 64, 0));
    world.append(400..900);
    more.send(()).expect("the sink waits");
    world.until(&runner, |r| r.status()[0].lag == 0);
    let status = runner.status().remove(0);
    assert_eq!((status.state, status.circuit, status.written, status.dead), (State::Running, Circuit::Closed, 900, 0));
    assert!(status.batch_rows > 64, "batches grow again: {}", status.batch_rows);
    assert_eq!(world.values(), (0..900).collect::<Vec<_>>());
    let faults = world.faults.lock();
    assert!((120..260).contains(&faults.in_vain), "{} calls in an hour", faults.in_vain);
    assert_eq!(faults.sizes[0], 64, "the first batch after an hour is a small one");
    drop(faults);
    runner.stop(Duration::from_secs(10));
}

/// Of several processes one has the files: the others leave their sinks to it.
#[test]
fn a_store_of_its_own_is_left_to_another_process_where_that_is_wished() {
    let world = World::new();
    world.append(0..10);
    let clock = ManualClock::at(EventTime(1_700_000_000_000_000));
    let options = RunnerOptions { local: false, linger: Duration::ZERO, ..RunnerOptions::default() };
    let without = world.start_with(world.setup.clone(), clock.clone(), options);
    assert!(without.status().is_empty(), "{:?}", without.status());
    without.stop(Duration::from_secs(10));
    assert!(world.values().is_empty());
    let with = world.start_with(world.setup.clone(), clock, RunnerOptions::default());
    world.until(&with, |runner| runner.status()[0].lag == 0);
    with.stop(Duration::from_secs(10));
    assert_eq!(world.values(), (0..10).collect::<Vec<_>>());
}
