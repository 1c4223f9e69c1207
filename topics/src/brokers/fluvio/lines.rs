//! The lines that lanes have reached, and the batches that are on their way: an own topic of one partition.
//!
//! A batch is written to its partitions one after the other, and whoever reads one of them may close a window
//! before another has its part. So a batch of several partitions is announced before its first record; it is over
//! with the line that it brings the lane to. What the door writes together without a lane is announced in the
//! process's own name, by its number.

use super::Shared;
use super::endpoint::Raw;
use crate::broker::{BrokerError, Positions};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// So long after its announcement a batch is waited for: whoever sends it is gone if it is not there then.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A record of the topic.
#[derive(Serialize, Deserialize)]
struct Line {
    lane: String,
    /// All up to here is written.
    line: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coming: Option<Coming>,
}

/// A batch on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Coming {
    /// The line that it ends with.
    pub(super) upto: u64,
    /// Where to.
    pub(super) to: BTreeMap<String, Vec<u32>>,
}

/// What the topic says, as far as it was read.
#[derive(Default)]
pub(super) struct Lines {
    next: u64,
    lines: HashMap<String, u64>,
    /// By lane, and when it was announced, in microseconds.
    coming: HashMap<String, (Coming, i64)>,
}

impl Lines {
    fn catch_up(&mut self, shared: &Shared) -> Result<(), BrokerError> {
        shared.cluster.follow(&shared.own("lanes"), &mut self.next, |record| {
            let line: Line = serde_json::from_slice(&record.value)
                .map_err(|e| BrokerError::Corrupt(format!("the lane's line at {} cannot be read: {e}", record.offset)))?;
            let known = self.lines.entry(line.lane.clone()).or_default();
            *known = (*known).max(line.line);
            // An announcement may be written late, or again, when the batch is there already.
            match line.coming.filter(|coming| coming.upto > *known) {
                Some(coming) => drop(self.coming.insert(line.lane, (coming, record.arrival))),
                None if self.coming.get(&line.lane).is_some_and(|(coming, _)| coming.upto <= *known) => {
                    self.coming.remove(&line.lane);
                }
                None => {}
            }
            Ok(())
        })
    }

    /// The highest line of a lane.
    pub(super) fn of(&mut self, shared: &Shared, producer: &str) -> Result<u64, BrokerError> {
        self.catch_up(shared)?;
        Ok(self.lines.get(producer).copied().unwrap_or(0))
    }

    /// Whether a batch is on its way to one of these partitions.
    pub(super) fn any_coming(&mut self, shared: &Shared, topic: &str, from: &Positions) -> Result<bool, BrokerError> {
        self.catch_up(shared)?;
        let oldest = shared.cluster.clock().now().0 - i64::try_from(PATIENCE.as_micros()).unwrap_or(i64::MAX);
        self.coming.retain(|_, (_, announced)| *announced > oldest);
        let here = |(coming, _): &(Coming, i64)| {
            coming.to.get(topic).is_some_and(|to| from.keys().any(|partition| to.contains(&partition.0)))
        };
        Ok(self.coming.values().any(here))
    }
}

/// Writes that a lane has come to a line, or that a batch behind it is on its way.
pub(super) fn write(shared: &Shared, lane: &str, line: u64, coming: Option<Coming>) -> Result<(), BrokerError> {
    let line = Line { lane: lane.to_owned(), line, coming };
    let value = serde_json::to_vec(&line).map_err(|e| BrokerError::Storage(format!("fluvio: {e}")))?;
    shared.cluster.produce(&shared.own("lanes"), 0, &[Raw { key: None, value }]).map(drop)
}

/// Announces a batch, where it goes to more than one partition; whether it did.
pub(super) fn announce<'k>(
    shared: &Shared,
    lane: &str,
    line: u64,
    upto: u64,
    places: impl Iterator<Item = &'k (String, u32)>,
) -> Result<bool, BrokerError> {
    let mut to: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (topic, partition) in places {
        to.entry(topic.clone()).or_default().push(*partition);
    }
    if to.values().all(|partitions| partitions.len() < 2) {
        return Ok(false);
    }
    write(shared, lane, line, Some(Coming { upto, to })).map(|()| true)
}
