//! The engine: runs a plan on timely workers, epoch by epoch, exactly once.
//!
//! * [`time`]: event time by source partition, what closes windows (R1–R4); pure
//! * [`graph`]: who follows whom
//! * [`core`]: one worker's operators; the test driver runs the same
//! * [`reading`], [`source`]: what is read together is decoded once
//! * [`schedule`]: when an epoch is made, and of what; pure but for the log it reads
//! * [`drive`]: the thread that makes epochs and hands them to the workers
//! * [`pace`]: how many records an epoch takes
//! * [`worker`], [`shell`]: timely
//! * [`commit`]: what a complete epoch did becomes one commit
//! * [`recover`]: what the last epoch left, and whether the plan may go on from it (R12)
//! * [`shuffle`]: between the halves of a topology, where processes share the work (R19)
//! * [`replay`]: dead letters on their second way (R14)
//! * [`supervise`]: an engine for the shares of the work that this process has
//! * [`books`]: the accounts (R20)
//! * [`accounts`]: the accounts against the log, offline
//!
//! **Invariant**: an effect of an epoch is visible only after its one commit; what was computed and
//! not committed is computed again after a restart.

pub mod accounts;
pub mod books;
pub mod commit;
pub mod core;
mod drive;
pub mod graph;
pub mod original;
pub mod output;
pub mod pace;
pub mod parcel;
pub mod reading;
pub mod recover;
pub mod replay;
pub mod schedule;
mod shell;
pub mod shuffle;
pub mod source;
pub mod status;
pub mod supervise;
pub mod time;
mod worker;

use crate::operator::OperatorError;
use crate::plan::{Plan, SourcePlan};
use quikflow_topics::broker::{Broker, BrokerError, TopicStats};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::PartitionId;
use status::{EngineStatus, Watch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
pub use worker::Hooks;

/// What ends the engine, or keeps it from starting.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The log refused.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// An operator failed; no record is to blame.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// Columns that do not fit: a mistake of the plan or of a step.
    #[error("columns do not fit the plan: {0}")]
    Columns(String),
    /// A worker panicked; restart goes on from the last committed epoch.
    #[error("a worker panicked: {0}; restart to go on from the last committed epoch")]
    Panicked(String),
    /// The stored state is of another plan (R12); says which topology and step, and the remedy.
    #[error("{0}")]
    Incompatible(String),
    /// Stored time or accounts cannot be read.
    #[error(
        "the stored {what} of topology `{topology}` cannot be read: {message}; `quikflow reset --topology {topology}` rebuilds it"
    )]
    Stored {
        /// The topology.
        topology: String,
        /// `time`, `books`, `fingerprint`.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// A mistake of the engine itself.
    #[error("the engine failed: {0}")]
    Internal(String),
}

impl From<arrow::error::ArrowError> for EngineError {
    fn from(error: arrow::error::ArrowError) -> EngineError {
        EngineError::Columns(error.to_string())
    }
}

/// How the engine runs.
#[derive(Clone)]
pub struct EngineOptions {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// How often an epoch is made while records come in slowly.
    pub epoch_interval: Duration,
    /// Most records of an epoch; with more to read, the next epoch follows at once.
    pub max_epoch_rows: usize,
    /// Most stored bytes of an epoch.
    pub max_epoch_bytes: usize,
    /// Most records decoded at once.
    pub slice_rows: usize,
    /// Most epochs that are not committed (R5).
    pub max_uncommitted: usize,
    /// Most stored bytes of slices in epochs that are not committed (R5).
    pub in_flight_bytes: usize,
    /// Called when the engine has ended, asked to or not.
    pub on_end: Option<Arc<dyn Fn() + Send + Sync>>,
    /// For tests.
    pub hooks: Hooks,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            workers: 1,
            epoch_interval: Duration::from_millis(100),
            max_epoch_rows: 65_536,
            max_epoch_bytes: 16 << 20,
            slice_rows: 16_384,
            max_uncommitted: 3,
            in_flight_bytes: 48 << 20,
            on_end: None,
            hooks: Hooks::default(),
        }
    }
}

/// A running engine. Dropping it stops it without draining, as a crash would.
pub struct Engine {
    inbox: std::sync::mpsc::Sender<worker::Report>,
    driver: Option<std::thread::JoinHandle<()>>,
    watch: Arc<Watch>,
    broker: Arc<dyn Broker>,
    graph: Arc<graph::Graph>,
}

impl Engine {
    /// Brings back what the last committed epoch left and starts.
    ///
    /// # Errors
    /// A plan that the stored state does not fit (R12), a log that cannot be read.
    pub fn start(
        plan: Arc<Plan>,
        broker: Arc<dyn Broker>,
        clock: SharedClock,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        Engine::start_shares(plan, broker, clock, options, None)
    }

    /// The same for these shares of the work; all where absent.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_shares(
        plan: Arc<Plan>,
        broker: Arc<dyn Broker>,
        clock: SharedClock,
        options: EngineOptions,
        shares: Option<&[u32]>,
    ) -> Result<Engine, EngineError> {
        let watch = Arc::new(Watch::default());
        let started = drive::start(plan, broker.clone(), clock, options, watch.clone(), shares)?;
        Ok(Engine { inbox: started.inbox, driver: Some(started.driver), watch, broker, graph: started.graph })
    }

    /// How every topology stands.
    pub fn status(&self) -> EngineStatus {
        let mut status = self.watch.status();
        let mut ends: BTreeMap<&str, TopicStats> = BTreeMap::new();
        for (shown, topology) in status.topologies.iter_mut().zip(&self.graph.topologies) {
            let sources: BTreeMap<&str, &SourcePlan> =
                topology.plan.sources.iter().map(|source| (source.topic.name.as_str(), source)).collect();
            for (topic, source) in &sources {
                let topic = *topic;
                if !ends.contains_key(topic) {
                    match self.broker.stats(topic) {
                        Ok(stats) => ends.insert(topic, stats),
                        Err(error) => {
                            tracing::warn!(%error, topic, "no figures of this topic");
                            continue;
                        }
                    };
                }
                let Some(stats) = ends.get(topic) else { continue };
                let read = shown.positions.get(topic);
                let mine = topology.partitions(source);
                let ends = stats.end.iter().enumerate().filter(|(partition, _)| mine.contains(&(*partition as u32)));
                shown.lag += ends.fold(0, |lag, (partition, end)| {
                    let start = stats.start.get(partition).copied().unwrap_or(0);
                    let read =
                        read.and_then(|read| read.get(&PartitionId(partition as u32))).map_or(start, |read| read.0.max(start));
                    lag + end.saturating_sub(read)
                });
            }
        }
        status.join_shares();
        status
    }

    /// Blocks until everything that is in the log now has been read and committed, the engine has ended, or the
    /// time is over; returns whether it had caught up.
    pub fn wait_caught_up(&self, timeout: Duration) -> bool {
        self.watch.wait_caught_up(self.broker.wakeup().version(), timeout)
    }

    /// Why the engine ended by itself, if it did.
    pub fn failure(&self) -> Option<EngineError> {
        self.watch.failure()
    }

    /// Finishes and commits what is in flight, then ends.
    ///
    /// # Errors
    /// Why the engine had ended before, if it had.
    pub fn stop(mut self) -> Result<(), EngineError> {
        self.watch.ask_to_stop(true);
        self.end();
        self.watch.failure().map_or(Ok(()), Err)
    }

    fn end(&mut self) {
        // An inbox that nobody reads any more belongs to an engine that has ended.
        self.inbox.send(worker::Report::Stop).ok();
        if let Some(driver) = self.driver.take()
            && let Err(panic) = driver.join()
        {
            self.watch.fail(EngineError::Panicked(worker::message_of(panic.as_ref())));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.watch.ask_to_stop(false);
        self.end();
    }
}
