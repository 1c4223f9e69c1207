//! The one sink runner: follows topics, writes batches into stores, moves offsets after the rows.
//!
//! Each sink has a thread of its own, so that a store that is down stalls only its own sinks. A
//! thread sleeps until the log moves; it never polls.
//!
//! Delivery guarantee: a row is written at least once and takes effect once (stores keep the
//! higher version, R13); a rejected row is a dead letter before the offset passes it (R14).
//!
//! * [`task`]: one sink's loop
//! * [`deliver`]: one batch: retry, per-item outcomes, bisecting, dead letters
//! * [`pace`]: how many rows a call holds, how long a pause takes, when the circuit opens
//! * [`replay`]: dead letters on their second way
//! * [`shares`]: which sinks run here, where several processes share them
//! * [`status`]: what can be seen from outside

mod deliver;
mod pace;
mod replay;
mod shares;
pub mod status;
mod task;

use crate::store::{Store, StoreError, StoreSet};
use arrow::array::{BooleanArray, RecordBatch};
use parking_lot::{Condvar, Mutex};
use quikflow_topics::broker::{Broker, BrokerError};
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::share::{Membership, Work};
use shares::Shares;
use status::{SinkStatus, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use task::Task;

/// A sink's compiled `filter`: which rows of a batch (the topic's whole schema) are wanted. Null is false.
pub type SinkFilter = Arc<dyn Fn(&RecordBatch) -> Result<BooleanArray, String> + Send + Sync>;

/// A sink to be run.
#[derive(Clone)]
pub struct SinkSetup {
    /// The sink.
    pub sink: Arc<SinkSpec>,
    /// The topic it follows.
    pub topic: Arc<TopicSpec>,
    /// Its filter; needed where the sink declares one.
    pub filter: Option<SinkFilter>,
}

/// How the runner works.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Rows a batch holds at most.
    pub max_rows: usize,
    /// Stored bytes a batch holds at most (one slice may exceed it).
    pub max_bytes: usize,
    /// How long a small batch waits for more rows.
    pub linger: Duration,
    /// How long a batch waits where rows are plenty, times what its store gathers ([`Store::gathers`]).
    pub patience: Duration,
    /// The first pause after a failure; doubles each time, with jitter.
    pub back_off: Duration,
    /// The longest pause.
    pub max_back_off: Duration,
    /// Failures in a row after which the circuit is open.
    pub breaker: u32,
    /// Retries that may be spent before the circuit opens, in a row or not; four successes earn one back.
    pub budget: u32,
    /// Rows of a try while the circuit is open, and the fewest that failures bring a batch down to.
    pub probe_rows: usize,
    /// How a pause after a failure is spent; none: by sleeping. Tests spend it in virtual time.
    pub rest: Option<Rest>,
    /// How often stores are tidied while there is something to do.
    pub housekeeping: Duration,
    /// How often dead letters to be replayed are looked for.
    pub replays: Duration,
    /// Also sinks of stores that are this process's own ([`Store::is_shared`]); without, another process has them.
    pub local: bool,
}

impl Default for RunnerOptions {
    fn default() -> RunnerOptions {
        RunnerOptions {
            max_rows: 4_096,
            max_bytes: 4 << 20,
            linger: Duration::from_millis(20),
            patience: Duration::from_millis(125),
            back_off: Duration::from_millis(50),
            max_back_off: Duration::from_secs(30),
            breaker: 5,
            budget: 20,
            probe_rows: 64,
            rest: None,
            housekeeping: Duration::from_secs(5),
            replays: Duration::from_secs(2),
            local: true,
        }
    }
}

impl RunnerOptions {
    /// The same with batches as large as the store likes them.
    fn for_store(&self, store: &dyn Store) -> RunnerOptions {
        let times = store.gathers().max(1);
        RunnerOptions {
            max_rows: self.max_rows * times as usize,
            max_bytes: self.max_bytes * times as usize,
            patience: if times == 1 { self.linger } else { self.patience * times },
            ..self.clone()
        }
    }
}

/// What is done in place of sleeping.
#[derive(Clone)]
pub struct Rest(pub Arc<dyn Fn(Duration) + Send + Sync>);

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rest")
    }
}

/// Why the runner does not start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunnerError {
    /// A store says no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A sink declares a filter, but none was compiled.
    #[error("sink `{0}` declares a filter, which was not compiled")]
    FilterMissing(String),
    /// The broker does not let this process join those who share the sinks.
    #[error("the sinks cannot be shared: {0}")]
    Shares(#[from] BrokerError),
    /// The runner needs a tokio runtime for the stores' clients.
    #[error("the sink runner was started outside a tokio runtime")]
    NoRuntime,
    /// The operating system gives no thread.
    #[error("a thread for sink `{sink}` cannot be started: {message}")]
    Thread {
        /// The sink.
        sink: String,
        /// Its reason.
        message: String,
    },
}

/// What all threads share: whether to stop, and sleeping that a stop ends.
pub(crate) struct Signal {
    stopping: AtomicBool,
    /// When draining ends, in the clock's monotonic time.
    deadline: Mutex<Duration>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Signal {
        Signal { stopping: AtomicBool::new(false), deadline: Mutex::new(Duration::MAX), changed: Condvar::new() }
    }

    /// Asks for a stop, whose draining ends at `deadline`.
    pub(crate) fn stop(&self, deadline: Duration) {
        let mut until = self.deadline.lock();
        *until = deadline;
        self.stopping.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether a stop was asked for.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether even draining has to end.
    pub(crate) fn over(&self, clock: &SharedClock) -> bool {
        self.stopping() && clock.elapsed() >= *self.deadline.lock()
    }

    /// Sleeps, or less when a stop is asked for.
    pub(crate) fn pause(&self, time: Duration) {
        let mut deadline = self.deadline.lock();
        if !self.stopping() {
            self.changed.wait_for(&mut deadline, time);
        }
    }
}

/// The running sinks.
pub struct SinkRunner {
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    signal: Arc<Signal>,
    tasks: Vec<Arc<Mutex<SinkStatus>>>,
    shares: Option<Arc<Shares>>,
    membership: Mutex<Option<Box<dyn Membership>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SinkRunner {
    /// Starts a thread for each sink, and one for housekeeping. Must be called within a tokio runtime,
    /// on which the stores' clients run; the runtime must outlive the runner.
    ///
    /// # Errors
    /// A sink without its store or its filter; no runtime; no thread.
    pub fn start(
        broker: Arc<dyn Broker>,
        stores: Arc<dyn StoreSet>,
        sinks: Vec<SinkSetup>,
        clock: SharedClock,
        options: RunnerOptions,
    ) -> Result<SinkRunner, RunnerError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| RunnerError::NoRuntime)?;
        let runner = SinkRunner {
            broker: broker.clone(),
            clock: clock.clone(),
            signal: Arc::new(Signal::new()),
            tasks: Vec::new(),
            shares: None,
            membership: Mutex::default(),
            threads: Mutex::new(Vec::new()),
        };
        let of = broker.shares(Work::Sinks);
        let log = broker.clone();
        let shares = (of > 1).then(|| Shares::new(of, move || log.wakeup().bump()));
        let mut tasks = Vec::new();
        for setup in sinks {
            if setup.sink.filter.is_some() && setup.filter.is_none() {
                return Err(RunnerError::FilterMissing(setup.sink.name.clone()));
            }
            if stores.is_elsewhere(&setup.sink) {
                continue;
            }
            let store = stores.store_of(&setup.sink)?;
            if !options.local && !store.is_shared() {
                continue;
            }
            let status = Arc::new(Mutex::new(SinkStatus::new(&setup.sink, store.name())));
            let options = options.for_store(store.as_ref());
            let shares = shares.clone().filter(|_| store.is_shared());
            tasks.push(Task {
                setup,
                store,
                shares,
                broker: broker.clone(),
                clock: clock.clone(),
                runtime: runtime.clone(),
                signal: runner.signal.clone(),
                pace: Mutex::new(pace::Pace::new(&options)),
                options,
                status,
            });
        }
        let mut runner = runner;
        runner.tasks = tasks.iter().map(|t| t.status.clone()).collect();
        runner.shares = shares.filter(|_| tasks.iter().any(|task| task.shares.is_some()));
        for task in tasks {
            let sink = task.setup.sink.name.clone();
            runner.spawn(&sink, move || task.run())?;
        }
        if let Some(shares) = &runner.shares {
            *runner.membership.lock() = broker.join(Work::Sinks, shares.clone())?;
        }
        let (signal, statuses, every) = (runner.signal.clone(), runner.tasks.clone(), options.housekeeping);
        runner.spawn("housekeeping", move || housekeep(&stores.all(), &statuses, &signal, &clock, &runtime, every))?;
        Ok(runner)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), RunnerError> {
        let spawned = std::thread::Builder::new().name(format!("sink:{name}")).spawn(work);
        match spawned {
            Ok(thread) => {
                self.threads.lock().push(thread);
                Ok(())
            }
            Err(e) => {
                self.stop(Duration::ZERO);
                Err(RunnerError::Thread { sink: name.to_owned(), message: e.to_string() })
            }
        }
    }

    /// How each sink does. Asks the broker for the topics' ends; blocking.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.tasks
            .iter()
            .map(|task| {
                let mut status = task.lock().clone();
                status.settle(self.clock.elapsed());
                if status.state == State::Elsewhere
                    && let Ok(offsets) = self.broker.group_offsets(&format!("sink:{}", status.sink))
                {
                    let of_topic = offsets.into_iter().filter(|((topic, _), _)| *topic == status.topic);
                    status.positions = of_topic.map(|((_, partition), offset)| (partition, offset)).collect();
                }
                if let Ok(stats) = self.broker.stats(&status.topic) {
                    status.lag = status.lag_behind(&stats);
                }
                status
            })
            .collect()
    }

    /// Writes what the topics hold now, for `within` at most, then ends the threads. Blocking.
    pub fn stop(&self, within: Duration) {
        self.signal.stop(self.clock.elapsed().saturating_add(within));
        if let Some(shares) = &self.shares {
            shares.wake();
        }
        self.broker.wakeup().bump();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a sink's thread ended by a panic");
            }
        }
        // The sinks have ended: others may have their shares.
        self.membership.lock().take();
    }
}

impl Drop for SinkRunner {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Tidies stores that were written since, and all of them once a minute (time-to-live).
fn housekeep(
    stores: &[Arc<dyn Store>],
    statuses: &[Arc<Mutex<SinkStatus>>],
    signal: &Signal,
    clock: &SharedClock,
    runtime: &tokio::runtime::Handle,
    every: Duration,
) {
    let written =
        |store: &str| -> u64 { statuses.iter().map(|s| s.lock()).filter(|s| s.store == store).map(|s| s.flushes).sum() };
    let mut seen: Vec<(u64, Duration)> = stores.iter().map(|_| (0, clock.elapsed())).collect();
    while !signal.stopping() {
        signal.pause(every);
        for (store, seen) in stores.iter().zip(&mut seen) {
            let (flushes, now) = (written(store.name()), clock.elapsed());
            if signal.stopping() || (flushes == seen.0 && now.saturating_sub(seen.1) < Duration::from_secs(60)) {
                continue;
            }
            *seen = (flushes, now);
            if let Err(error) = runtime.block_on(store.maintain(clock.now())) {
                tracing::warn!(store = store.name(), %error, "housekeeping failed, it will be tried again");
            }
        }
    }
}

impl State {
    /// Whether the sink has ended for good.
    pub fn is_stopped(&self) -> bool {
        matches!(self, State::Stopped { .. })
    }
}
