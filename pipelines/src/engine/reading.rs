//! Which columns of a topic are decoded, once for all topologies that read it together.

use super::EngineError;
use super::graph::Graph;
use super::time::watermark_column;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    UInt32Array, new_null_array,
};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use quikflow_topics::broker::{Projection, Slice, SlicePart};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{EventTime, PartitionId};
use quikflow_topics::partitioner::partition_of;
use quikflow_topics::schema::{EVENT_TIME, WATERMARK};
use std::ops::Range;
use std::sync::Arc;

/// A topology's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index in the plan.
    pub topology: usize,
    /// Index in the topology's sources.
    pub source: usize,
}

/// Where a column of a member's rows comes from.
enum Column {
    Decoded(usize),
    Watermark,
    Null,
}

/// The readers of a topic that stand at the same place.
pub struct Reading {
    /// The topic.
    pub topic: Arc<TopicSpec>,
    /// Who reads.
    pub members: Vec<Member>,
    projection: Projection,
    event_time: usize,
    columns: Vec<(SchemaRef, Vec<Column>)>,
    /// By member: the partitions that it takes.
    ranges: Vec<Range<u32>>,
    /// By member: which rows of those it keeps, where not all.
    kept: Vec<Option<Keep>>,
}

/// Rows by a column whose text, as a key, lies in some partitions.
struct Keep {
    column: usize,
    partitions: u32,
    mine: Range<u32>,
}

impl Keep {
    fn of(graph: &Graph, member: &Member) -> Option<Keep> {
        let topology = &graph.topologies[member.topology];
        let source = &topology.plan.sources[member.source];
        let (kept, mine) = topology.kept(source)?;
        let column = source.schema.arrow.index_of(&kept.column).ok()?;
        Some(Keep { column, partitions: kept.partitions, mine })
    }

    fn rows(&self, rows: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let keys = rows.column(self.column).as_any().downcast_ref::<StringArray>();
        let keys = keys.ok_or_else(|| EngineError::Internal("the key of a table read whole is no text".to_owned()))?;
        let mine = |key: Option<&str>| Some(self.mine.contains(&partition_of(key, self.partitions).0));
        let mask: BooleanArray = keys.iter().map(mine).collect();
        Ok(filter_record_batch(rows, &mask)?)
    }
}

impl Reading {
    /// The union of what `members` need of `topic`.
    pub fn new(graph: &Graph, topic: &Arc<TopicSpec>, members: Vec<Member>) -> Reading {
        let mut names: Vec<&str> = vec![EVENT_TIME];
        for member in &members {
            for name in &graph.topologies[member.topology].plan.sources[member.source].projection.columns {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        let projection = Projection::of(topic, &names);
        let columns = members
            .iter()
            .map(|member| {
                let source = &graph.topologies[member.topology].plan.sources[member.source];
                let schema = source.schema.arrow.clone();
                let columns = schema.fields().iter().map(|field| {
                    if field.name() == WATERMARK {
                        return Column::Watermark;
                    }
                    let decoded = projection.columns.iter().position(|name| name == field.name());
                    decoded.filter(|_| source.projection.columns.contains(field.name())).map_or(Column::Null, Column::Decoded)
                });
                let columns = columns.collect();
                (schema, columns)
            })
            .collect();
        let event_time = projection.columns.iter().position(|name| name == EVENT_TIME).unwrap_or(0);
        let range = |member: &Member| {
            let topology = &graph.topologies[member.topology];
            topology.partitions(&topology.plan.sources[member.source])
        };
        let ranges = members.iter().map(range).collect();
        let kept = members.iter().map(|member| Keep::of(graph, member)).collect();
        Reading { topic: topic.clone(), members, projection, event_time, columns, ranges, kept }
    }

    /// The parts of a slice that a member takes, neighbours all, and the rows before them.
    pub fn parts<'s>(&self, member: usize, slice: &'s dyn Slice) -> (&'s [SlicePart], usize) {
        let (parts, range) = (slice.parts(), &self.ranges[member]);
        let first = parts.partition_point(|part| part.partition.0 < range.start);
        let end = parts.partition_point(|part| part.partition.0 < range.end).max(first);
        (&parts[first..end], parts[..first].iter().map(|part| part.rows as usize).sum())
    }

    /// Whether a member takes rows of a partition.
    pub fn takes(&self, member: usize, partition: PartitionId) -> bool {
        self.ranges[member].contains(&partition.0)
    }

    /// Decodes a slice once, and yields each member's rows with their `_watermark` (R1). `starts`
    /// is by member, by the parts that it takes; members that stand at the same time share the column.
    ///
    /// # Errors
    /// A damaged slice; columns that do not fit the plan.
    pub fn decode(&self, slice: &dyn Slice, starts: &[Arc<Vec<EventTime>>]) -> Result<Vec<(Member, RecordBatch)>, EngineError> {
        let (batch, bad) = slice.decode_all(&self.projection)?;
        let rows = batch.num_rows();
        let times = batch.column(self.event_time).as_any().downcast_ref::<TimestampMicrosecondArray>();
        let times =
            times.ok_or_else(|| EngineError::Internal(format!("topic `{}` has event times of another type", self.topic.name)))?;
        let mut made: Option<(usize, usize, &Arc<Vec<EventTime>>, ArrayRef)> = None;
        let mut read = Vec::with_capacity(self.members.len());
        for (index, ((member, (schema, columns)), starts)) in self.members.iter().zip(&self.columns).zip(starts).enumerate() {
            let (parts, first) = self.parts(index, slice);
            let count = parts.iter().map(|part| part.rows as usize).sum();
            if count == 0 {
                continue;
            }
            let watermark = match &made {
                Some((from, rows, of, column)) if *from == first && *rows == count && *of == starts => column.clone(),
                _ => {
                    let times = &times.values()[first..first + count];
                    let column = watermark_column(parts, starts, times, self.topic.disorder);
                    let column: ArrayRef = Arc::new(Int64Array::from(column));
                    made = Some((first, count, starts, column.clone()));
                    column
                }
            };
            let columns = columns.iter().zip(schema.fields()).map(|(column, field)| match column {
                Column::Decoded(index) if count == rows => batch.column(*index).clone(),
                Column::Decoded(index) => batch.column(*index).slice(first, count),
                Column::Watermark => watermark.clone(),
                Column::Null => new_null_array(field.data_type(), count),
            });
            let options = RecordBatchOptions::new().with_row_count(Some(count));
            let rows = RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options)?;
            let rows = without(rows, &bad, first)?;
            match &self.kept[index] {
                Some(keep) => read.push((*member, keep.rows(&rows)?)),
                None => read.push((*member, rows)),
            }
        }
        Ok(read)
    }
}

/// Without the rows that are no records of the topic; `bad` counts from `first` rows before.
fn without(rows: RecordBatch, bad: &[u32], first: usize) -> Result<RecordBatch, EngineError> {
    if bad.is_empty() {
        return Ok(rows);
    }
    let good = (0..rows.num_rows() as u32).filter(|row| bad.binary_search(&(row + first as u32)).is_err());
    Ok(take_record_batch(&rows, &UInt32Array::from_iter_values(good))?)
}
