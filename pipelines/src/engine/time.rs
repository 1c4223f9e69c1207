//! Event time of a topology: per source partition how far it has come, and what that closes.
//!
//! Pure: it is told what was read (headers of slices) and what the clocks show, and decides. Its
//! whole state is part of the epoch (R4), so that a restore continues where the epoch stood, and a
//! decision once taken by the clock is never taken again.
//!
//! * Lateness is a matter of a record and its own partition (R1): [`watermark_column`].
//! * Windows close by [`TopologyTime::watermark`], the minimum over partitions that are not idle and
//!   hold a record; a partition with records that were not read yet holds everything back.
//! * Only live partitions become idle or are advanced by the clock (R2), by the time they were
//!   silent while this process was up and had read them to the end.

use quikflow_topics::broker::SlicePart;
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{Epoch, EventTime, PartitionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::operator::{Due, EpochTime};

/// Microseconds of a duration.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A partition that holds at least one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTime {
    /// Largest event time read.
    pub max_event: EventTime,
    /// Largest arrival time read.
    pub max_arrival: EventTime,
    /// No longer holds windows open.
    pub idle: bool,
    /// How far the clock has moved it beyond `max_event`, in microseconds.
    pub advance: i64,
    /// What `advance` was when the present silence began to be measured.
    #[serde(skip)]
    silent_from: i64,
    /// Since when, in monotonic time, it has been silent and read to its end.
    #[serde(skip)]
    silent_since: Option<Duration>,
}

/// A source's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTime {
    /// The topic.
    pub topic: String,
    /// Never goes back.
    pub watermark: EventTime,
    /// Partitions that hold a record.
    pub partitions: BTreeMap<PartitionId, PartitionTime>,
    #[serde(skip)]
    rules: Rules,
}

/// What the topic declares, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rules {
    disorder: i64,
    idle_after: i64,
    live_within: i64,
}

/// A topology's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyTime {
    /// Never goes back.
    pub watermark: EventTime,
    /// By the topology's sources.
    pub sources: Vec<SourceTime>,
}

impl PartitionTime {
    fn is_live(&self, rules: &Rules) -> bool {
        self.max_arrival.0.saturating_sub(self.max_event.0) <= rules.live_within
    }

    fn watermark(&self, rules: &Rules) -> EventTime {
        self.max_event.plus(self.advance).minus(rules.disorder)
    }
}

impl SourceTime {
    /// A source that has read nothing.
    pub fn new(topic: &TopicSpec) -> SourceTime {
        let mut source = SourceTime {
            topic: topic.name.clone(),
            watermark: EventTime::MIN,
            partitions: BTreeMap::new(),
            rules: Rules::default(),
        };
        source.adopt(topic);
        source
    }

    /// Takes the topic's declared times, which are not stored.
    fn adopt(&mut self, topic: &TopicSpec) {
        self.rules = Rules {
            disorder: micros(topic.disorder),
            idle_after: micros(topic.idle_after),
            live_within: micros(topic.live_within),
        };
        for partition in self.partitions.values_mut() {
            partition.silent_from = partition.advance;
        }
    }

    /// Notes that a slice was read, and returns for each of its parts the largest event time read
    /// from that partition before it: where [`watermark_column`] starts.
    pub fn read(&mut self, parts: &[SlicePart]) -> Vec<EventTime> {
        parts
            .iter()
            .map(|part| {
                let partition = self.partitions.entry(part.partition).or_insert(PartitionTime {
                    max_event: EventTime::MIN,
                    max_arrival: EventTime::MIN,
                    idle: false,
                    advance: 0,
                    silent_from: 0,
                    silent_since: None,
                });
                let before = partition.max_event;
                partition.max_event = before.max(part.max_event_time);
                partition.max_arrival = partition.max_arrival.max(part.max_arrival_time);
                partition.idle = false;
                partition.advance = 0;
                partition.silent_from = 0;
                partition.silent_since = None;
                before
            })
            .collect()
    }

    /// Lets the clock decide (R2). `at_end`: all partitions have been read to their ends.
    fn tick(&mut self, elapsed: Duration, at_end: bool) {
        let rules = self.rules;
        for partition in self.partitions.values_mut() {
            if !at_end || !partition.is_live(&rules) {
                partition.silent_since = None;
                partition.silent_from = partition.advance;
                continue;
            }
            let since = *partition.silent_since.get_or_insert(elapsed);
            let silent = micros(elapsed.saturating_sub(since));
            partition.advance = partition.silent_from.saturating_add(silent);
            partition.idle = partition.advance >= rules.idle_after;
        }
    }

    fn settle(&mut self, unread: bool) {
        if unread {
            return;
        }
        let rules = self.rules;
        let lowest = |idle: bool| self.partitions.values().filter(|p| p.idle == idle).map(|p| p.watermark(&rules)).min();
        if let Some(now) = lowest(false).or_else(|| lowest(true)) {
            self.watermark = self.watermark.max(now);
        }
    }

    /// In how long the clock alone would bring the watermark to `goal`; `None` when it never would.
    fn reaches(&self, goal: EventTime) -> Option<Duration> {
        let mut needed = 0;
        for partition in self.partitions.values() {
            let missing = goal.0.saturating_sub(partition.watermark(&self.rules).0);
            if missing <= 0 || partition.idle {
                continue;
            }
            if !partition.is_live(&self.rules) {
                return None;
            }
            needed = needed.max(missing.min(self.rules.idle_after.saturating_sub(partition.advance).max(0)));
        }
        if needed == 0 {
            // Only idle partitions are left: the last of them still moves with the clock.
            let missing = self.partitions.values().map(|p| goal.0.saturating_sub(p.watermark(&self.rules).0)).max()?;
            needed = missing.max(0);
        }
        Some(Duration::from_micros(u64::try_from(needed).unwrap_or(0)))
    }
}

/// What the driver knows of a source when it lets the clock decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceView {
    /// All partitions have been read to their ends.
    pub at_end: bool,
    /// Some partition of which nothing was read yet holds records.
    pub unread: bool,
}

impl TopologyTime {
    /// Before the first record.
    pub fn new(topics: &[&TopicSpec]) -> TopologyTime {
        TopologyTime { watermark: EventTime::MIN, sources: topics.iter().map(|topic| SourceTime::new(topic)).collect() }
    }

    /// What the last committed epoch recorded; sources are matched by their topics.
    ///
    /// # Errors
    /// Bytes that [`TopologyTime::to_bytes`] did not make.
    pub fn restore(bytes: &[u8], topics: &[&TopicSpec]) -> Result<TopologyTime, serde_json::Error> {
        let mut stored: TopologyTime = serde_json::from_slice(bytes)?;
        let sources = topics
            .iter()
            .map(|topic| {
                let mut source = stored
                    .sources
                    .iter()
                    .position(|source| source.topic == topic.name)
                    .map_or_else(|| SourceTime::new(topic), |at| stored.sources.remove(at));
                source.adopt(topic);
                source
            })
            .collect();
        Ok(TopologyTime { watermark: stored.watermark, sources })
    }

    /// For the epoch's meta.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Lets the clock decide, and brings the watermarks up to date. `views` is by source.
    /// Returns whether any watermark moved.
    pub fn tick(&mut self, elapsed: Duration, views: &[SourceView]) -> bool {
        let before: (EventTime, Vec<EventTime>) = (self.watermark, self.sources.iter().map(|s| s.watermark).collect());
        for (source, view) in self.sources.iter_mut().zip(views) {
            source.tick(elapsed, view.at_end);
            source.settle(view.unread);
        }
        let holding = self.sources.iter().zip(views).filter(|(source, view)| view.unread || !source.partitions.is_empty());
        if let Some(now) = holding.map(|(source, _)| source.watermark).min() {
            self.watermark = self.watermark.max(now);
        }
        before.0 != self.watermark || self.sources.iter().zip(&before.1).any(|(source, before)| source.watermark != *before)
    }

    /// In how long the clock alone would give an operator that waits for `due` something to do.
    pub fn wait_for(&self, due: &Due, now: EventTime) -> Option<Duration> {
        let by_watermark = due.watermark.filter(|_| self.sources.iter().any(|s| !s.partitions.is_empty())).and_then(|goal| {
            if goal == EventTime::MIN {
                // Every movement counts: once a second is often enough.
                return self
                    .sources
                    .iter()
                    .any(|s| s.partitions.values().any(|p| p.is_live(&s.rules)))
                    .then(|| Duration::from_secs(1));
            }
            let mut longest = Duration::ZERO;
            for source in self.sources.iter().filter(|s| !s.partitions.is_empty()) {
                longest = longest.max(source.reaches(goal)?);
            }
            Some(longest)
        });
        let by_clock = due.wall_clock.map(|at| Duration::from_micros(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or(0)));
        by_watermark.into_iter().chain(by_clock).min()
    }

    /// For operators.
    pub fn epoch_time(&self, epoch: Epoch, wall_clock: EventTime) -> EpochTime {
        EpochTime { epoch, watermark: self.watermark, sources: self.sources.iter().map(|s| s.watermark).collect(), wall_clock }
    }
}

/// The watermark of each row's partition as it was just before it (R1): the running maximum of
/// event time less `disorder`. `starts` holds the maximum before each part; `i64::MIN` where a
/// partition had no record.
pub fn watermark_column(parts: &[SlicePart], starts: &[EventTime], event_times: &[i64], disorder: Duration) -> Vec<i64> {
    let disorder = micros(disorder);
    let mut column = Vec::with_capacity(event_times.len());
    let mut rows = event_times;
    for (part, start) in parts.iter().zip(starts) {
        let (mine, rest) = rows.split_at((part.rows as usize).min(rows.len()));
        rows = rest;
        let mut max = start.0;
        for time in mine {
            column.push(if max == i64::MIN { i64::MIN } else { max.saturating_sub(disorder) });
            max = max.max(*time);
        }
    }
    column
}

#[cfg(test)]
#[path = "time_tests.rs"]
mod tests;
