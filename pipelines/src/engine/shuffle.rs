//! Between the halves of a topology (R19): how pieces find their share, what is said about time, and
//! whether the other half still has something to say.

use super::EngineError;
use super::graph::TopologyGraph;
use super::output::ROW;
use super::source::group;
use crate::plan::Half;
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array};
use quikflow_topics::broker::{Broker, Positions, TopicRows};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use quikflow_topics::partitioner::key_in;
use quikflow_topics::schema::{EVENT_TIME, KEY, TYPE};
use quikflow_topics::share::Share;
use std::sync::Arc;

/// The partition of what share `from` writes for share `to`, of `shares`.
fn partition(to: u32, from: u32, shares: u32) -> PartitionId {
    PartitionId(to * shares + from)
}

/// The share that writes a partition.
pub fn writer(partition: PartitionId, shares: u32) -> u32 {
    partition.0 % shares.max(1)
}

/// One share of a half that combines: where it writes, and what it said last.
pub struct Route {
    topic: Arc<TopicSpec>,
    /// By share: the key whose partition is the one that this share writes for it.
    keys: Vec<String>,
    told: EventTime,
}

impl Route {
    /// None where the topology combines nothing.
    pub fn of(topology: &TopologyGraph) -> Option<Route> {
        let (Some(Half::Combines(topic)), Some(Share { index, of })) = (&topology.plan.half, topology.share) else { return None };
        let keys = (0..of).map(|to| key_in(partition(to, index, of), topic.partitions)).collect();
        Some(Route { topic: topic.clone(), keys, told: EventTime::MIN })
    }

    /// Whether rows of this topic are pieces.
    pub fn is(&self, topic: &TopicSpec) -> bool {
        topic.name == self.topic.name
    }

    /// Rows whose `_key` names a share, under the key of the partition for it.
    ///
    /// # Errors
    /// Rows that name no share.
    pub fn address(&self, rows: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let wrong = || EngineError::Internal(format!("rows for `{}` name no share", self.topic.name));
        let (at, _) = rows.schema_ref().column_with_name(KEY).ok_or_else(wrong)?;
        let shares = rows.column(at).as_any().downcast_ref::<StringArray>().ok_or_else(wrong)?;
        let key = |share: Option<&str>| share?.parse().ok().and_then(|share: usize| self.keys.get(share));
        let keys: Option<Vec<&String>> = shares.iter().map(key).collect();
        let mut columns = rows.columns().to_vec();
        columns[at] = Arc::new(StringArray::from_iter_values(keys.ok_or_else(wrong)?));
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    }

    /// The last rows of an epoch: to every share, how far time has come in this one. None where it has not moved.
    ///
    /// # Errors
    /// Columns that do not fit.
    pub fn tell(&mut self, watermark: EventTime) -> Result<Option<TopicRows>, EngineError> {
        if watermark <= self.told {
            return Ok(None);
        }
        self.told = watermark;
        let count = self.keys.len();
        let schema = self.topic.append_schema();
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match field.name().as_str() {
                KEY => Arc::new(StringArray::from_iter_values(&self.keys)),
                TYPE => Arc::new(StringArray::from(vec![ROW; count])),
                EVENT_TIME => Arc::new(TimestampMicrosecondArray::from(vec![watermark.0; count]).with_timezone("UTC")),
                _ => new_null_array(field.data_type(), count),
            }
        });
        let rows = RecordBatch::try_new(schema.clone(), columns.collect())?;
        Ok(Some(TopicRows { topic: self.topic.clone(), rows }))
    }
}

/// The other half, as the one that merges sees it.
#[derive(Clone)]
pub struct Upstream {
    combining: String,
    reads: Vec<Arc<TopicSpec>>,
    /// Into how many shares both are divided.
    pub shares: u32,
}

impl Upstream {
    /// None where the topology merges nothing.
    pub fn of(topology: &TopologyGraph) -> Option<Upstream> {
        let Some(Half::Merges { combining, reads, shares }) = &topology.plan.half else { return None };
        Some(Upstream { combining: combining.clone(), reads: reads.clone(), shares: *shares })
    }

    /// By share: whether it has not committed yet what was written before this call, and may still say
    /// something about it.
    ///
    /// # Errors
    /// Storage errors.
    pub fn behind(&self, broker: &Arc<dyn Broker>) -> Result<Vec<bool>, EngineError> {
        let committed = broker.group_offsets(&group(&self.combining))?;
        let mut behind = vec![false; self.shares as usize];
        for topic in &self.reads {
            // Asked for first: what the figures find out about the ends of logs is known afterwards.
            let start = broker.stats(&topic.name)?.start;
            for (share, behind) in (0..self.shares).zip(&mut behind) {
                let place = |index: u32| {
                    let first = Offset(start.get(index as usize).copied().unwrap_or(0));
                    let next = committed.get(&(topic.name.clone(), PartitionId(index))).copied();
                    (PartitionId(index), next.unwrap_or(first).max(first))
                };
                let partitions = Share { index: share, of: self.shares }.partitions(topic.partitions);
                let from: Positions = partitions.map(place).collect();
                *behind |= !from.is_empty() && broker.unread(&topic.name, &from, false)?;
            }
        }
        Ok(behind)
    }
}
