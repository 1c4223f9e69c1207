//! What can be seen of a sink from outside.

use quikflow_topics::broker::{Positions, TopicStats};
use quikflow_topics::catalogue::SinkSpec;
use quikflow_topics::ids::{EventTime, PartitionId};
use std::collections::VecDeque;
use std::time::Duration;

/// What a sink is doing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// Following its topic.
    Running,
    /// Another process has its share, or will have it.
    Elsewhere,
    /// The store (or the log) does not answer: trying again.
    BackingOff {
        /// What it last said; never a secret.
        error: String,
        /// Failures in a row.
        failures: u32,
    },
    /// Ended: a setting must change, or a stop was asked for (no `error` then).
    Stopped {
        /// Why.
        error: Option<String>,
    },
}

/// Whether calls go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// They do.
    Closed,
    /// Failing for some time: only a try now and then.
    Open,
    /// Such a try is under way.
    HalfOpen,
}

/// One sink's figures.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SinkStatus {
    /// The sink.
    pub sink: String,
    /// Its store.
    pub store: String,
    /// The topic it follows.
    pub topic: String,
    /// What it is doing.
    #[serde(flatten)]
    pub state: State,
    /// Whether calls go through.
    pub circuit: Circuit,
    /// The next offset to read, by partition.
    pub positions: Positions,
    /// Rows that the next call may hold: fewer while the store is slow or failing.
    pub batch_rows: usize,
    /// Records not yet taken.
    pub lag: u64,
    /// Rows that took effect.
    pub written: u64,
    /// Rows of which the store held this or a newer version.
    pub older: u64,
    /// Rows that the filter kept out.
    pub filtered: u64,
    /// Rows that became dead letters.
    pub dead: u64,
    /// Dead letters written on their second way.
    pub replayed: u64,
    /// Batches.
    pub flushes: u64,
    /// Rows taken a second, over the last ten seconds.
    pub rows_per_second: f64,
    /// When a batch was last written.
    pub last_flush: Option<EventTime>,
    #[serde(skip)]
    recent: VecDeque<(Duration, u64)>,
}

const WINDOW: Duration = Duration::from_secs(10);

impl SinkStatus {
    pub(crate) fn new(sink: &SinkSpec, store: &str) -> SinkStatus {
        SinkStatus {
            sink: sink.name.clone(),
            store: store.to_owned(),
            topic: sink.from.clone(),
            state: State::Running,
            circuit: Circuit::Closed,
            positions: Positions::new(),
            batch_rows: 0,
            lag: 0,
            written: 0,
            older: 0,
            filtered: 0,
            dead: 0,
            replayed: 0,
            flushes: 0,
            rows_per_second: 0.0,
            last_flush: None,
            recent: VecDeque::new(),
        }
    }

    /// A batch of `rows` was taken.
    pub(crate) fn took(&mut self, rows: u64, elapsed: Duration, now: EventTime) {
        self.flushes += 1;
        self.last_flush = Some(now);
        match self.recent.back_mut() {
            Some(last) if elapsed.saturating_sub(last.0) < Duration::from_millis(200) => last.1 += rows,
            _ => self.recent.push_back((elapsed, rows)),
        }
        self.settle(elapsed);
    }

    /// Forgets what is older than the window.
    pub(crate) fn settle(&mut self, elapsed: Duration) {
        while self.recent.front().is_some_and(|(at, _)| elapsed.saturating_sub(*at) > WINDOW) {
            self.recent.pop_front();
        }
        let rows: u64 = self.recent.iter().map(|(_, rows)| rows).sum();
        self.rows_per_second = rows as f64 / WINDOW.as_secs_f64();
    }

    /// How many records the topic holds that were not taken.
    pub(crate) fn lag_behind(&self, stats: &TopicStats) -> u64 {
        let ends = stats.end.iter().zip(&stats.start).zip(0..);
        ends.map(|((end, start), p)| {
            let next = self.positions.get(&PartitionId(p)).map_or(*start, |o| o.0.max(*start));
            end.saturating_sub(next)
        })
        .sum()
    }
}
