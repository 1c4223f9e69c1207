//! How the engine stands: for the status page, `lag`, `top` and metrics.

use super::EngineError;
use super::books::TopologyBooks;
use parking_lot::{Condvar, Mutex};
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use quikflow_topics::share::note_last;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How many epochs the figures look back.
const RECENT: usize = 300;

/// A topology's figures as of its last committed epoch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TopologyStatus {
    /// Its name.
    pub name: String,
    /// The next offset to read, by source topic.
    pub positions: BTreeMap<String, BTreeMap<PartitionId, Offset>>,
    /// Records in the log that it has not committed, over all sources. Filled by `Engine::status`.
    pub lag: u64,
    /// Everything before has been counted; none before the first record.
    pub watermark: Option<EventTime>,
    /// The accounts (R20).
    pub books: TopologyBooks,
    /// What does not balance in them; empty when all is well.
    pub unbalanced: Vec<String>,
    /// Bytes of memory that its state holds.
    pub state_bytes: usize,
}

/// The engine's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineStatus {
    /// The last committed epoch.
    pub epoch: Epoch,
    /// In the plan's order.
    pub topologies: Vec<TopologyStatus>,
    /// From making an epoch to its commit, over the last few hundred: half of them took no longer.
    pub epoch_p50: Duration,
    /// 99 of 100 took no longer.
    pub epoch_p99: Duration,
    /// Records a second over the same epochs.
    pub rows_per_second: f64,
    /// Records committed since the start, each counted once however many topologies read it.
    pub rows: u64,
    /// Epochs that are not committed.
    pub in_flight: usize,
    /// Everything in the log has been read and committed.
    pub caught_up: bool,
    /// A step holds records back until a time by the clock (`max_wait`): what becomes of them is
    /// still to be written, though they have been read.
    pub holding: bool,
    /// Why the engine has ended, if it has.
    pub failure: Option<String>,
}

impl EngineStatus {
    /// One line a topology: what its shares here have done together.
    pub(crate) fn join_shares(&mut self) {
        let mut joined: Vec<TopologyStatus> = Vec::new();
        for share in std::mem::take(&mut self.topologies) {
            let Some(all) = joined.iter_mut().find(|shown| shown.name == share.name) else {
                joined.push(share);
                continue;
            };
            for (topic, positions) in share.positions {
                let known = all.positions.entry(topic).or_default();
                for (partition, next) in positions {
                    note_last(known, partition, next);
                }
            }
            all.lag += share.lag;
            // A share that has read nothing yet holds nobody back.
            all.watermark = all.watermark.into_iter().chain(share.watermark).min();
            all.books.add(&share.books);
            for (mine, theirs) in all.books.steps.iter_mut().zip(&share.books.steps) {
                mine.in_flight += theirs.in_flight;
            }
            all.unbalanced.extend(share.unbalanced);
            all.state_bytes += share.state_bytes;
        }
        self.topologies = joined;
    }
}

#[derive(Default)]
struct State {
    status: EngineStatus,
    /// (committed at, took, rows) of recent epochs, in monotonic time.
    recent: VecDeque<(Duration, Duration, usize)>,
    failure: Option<EngineError>,
    ended: bool,
    stop: Option<bool>,
    /// The version of the log with which it had caught up last.
    caught_up_with: u64,
}

/// Shared by the engine's threads and whoever asks.
#[derive(Default)]
pub struct Watch {
    state: Mutex<State>,
    moved: Condvar,
}

impl Watch {
    /// The figures.
    pub fn status(&self) -> EngineStatus {
        let state = self.state.lock();
        let mut status = state.status.clone();
        let mut took: Vec<Duration> = state.recent.iter().map(|(_, took, _)| *took).collect();
        took.sort_unstable();
        let at =
            |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1))).copied().unwrap_or_default();
        status.epoch_p50 = at(50);
        status.epoch_p99 = at(99);
        if let (Some((first, _, _)), Some((last, _, _))) = (state.recent.front(), state.recent.back()) {
            let seconds = last.saturating_sub(*first).as_secs_f64();
            let rows: usize = state.recent.iter().skip(1).map(|(_, _, rows)| rows).sum();
            status.rows_per_second = if seconds > 0.0 { rows as f64 / seconds } else { 0.0 };
        }
        status.failure = state.failure.as_ref().map(ToString::to_string);
        status
    }

    /// Changes the figures.
    pub(crate) fn update(&self, change: impl FnOnce(&mut EngineStatus)) {
        change(&mut self.state.lock().status);
        self.moved.notify_all();
    }

    /// Notes whether everything up to a version of the log has been read and committed.
    pub(crate) fn caught_up(&self, all: bool, version: u64, holding: bool) {
        let mut state = self.state.lock();
        state.status.caught_up = all;
        state.status.holding = holding;
        if all {
            state.caught_up_with = version;
        }
        drop(state);
        self.moved.notify_all();
    }

    /// Notes a committed epoch.
    pub(crate) fn committed(&self, at: Duration, took: Duration, rows: usize) {
        let mut state = self.state.lock();
        state.status.rows += rows as u64;
        state.recent.push_back((at, took, rows));
        if state.recent.len() > RECENT {
            state.recent.pop_front();
        }
        drop(state);
        self.moved.notify_all();
    }

    /// Ends the engine with an error; the first one stays.
    pub(crate) fn fail(&self, error: EngineError) {
        let mut state = self.state.lock();
        tracing::error!(%error, "the engine has failed");
        state.failure.get_or_insert(error);
        drop(state);
        self.moved.notify_all();
    }

    /// Why it ended, if it did.
    pub fn failure(&self) -> Option<EngineError> {
        self.state.lock().failure.clone()
    }

    pub(crate) fn ended(&self) {
        self.state.lock().ended = true;
        self.moved.notify_all();
    }

    /// `drain`: finish and commit what is in flight first.
    pub(crate) fn ask_to_stop(&self, drain: bool) {
        let mut state = self.state.lock();
        state.stop = Some(state.stop.unwrap_or(true) && drain);
    }

    pub(crate) fn stopping(&self) -> Option<bool> {
        self.state.lock().stop
    }

    /// Blocks until everything has been read and committed, the engine has ended, or the time is over.
    #[allow(clippy::disallowed_methods, reason = "a wait of a caller, no time of a record")]
    pub(crate) fn wait_caught_up(&self, version: u64, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.state.lock();
        loop {
            if state.ended || state.failure.is_some() {
                return false;
            }
            if state.status.caught_up && state.caught_up_with >= version {
                return true;
            }
            if self.moved.wait_until(&mut state, until).timed_out() {
                return state.status.caught_up && state.caught_up_with >= version;
            }
        }
    }
}
