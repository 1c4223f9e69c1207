//! Reading the log in memory: a slice is (a part of) a commit.

use super::{State, column, known, storage};
use arrow::array::{RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::compute::take_record_batch;
use parking_lot::Mutex;
use quikflow_topics::broker::{BrokerError, Positions, Projection, Slice, SlicePart, TopicReader};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use quikflow_topics::schema::{ARRIVAL_TIME, EVENT_TIME, OFFSET, PARTITION};
use std::sync::Arc;

struct MemorySlice {
    topic: Arc<TopicSpec>,
    parts: Vec<SlicePart>,
    batch: RecordBatch,
}

impl MemorySlice {
    fn new(topic: Arc<TopicSpec>, batch: RecordBatch) -> Result<MemorySlice, BrokerError> {
        let partitions: &UInt32Array = column(&batch, PARTITION)?;
        let offsets: &UInt64Array = column(&batch, OFFSET)?;
        let events: &TimestampMicrosecondArray = column(&batch, EVENT_TIME)?;
        let arrivals: &TimestampMicrosecondArray = column(&batch, ARRIVAL_TIME)?;
        let mut parts: Vec<SlicePart> = Vec::new();
        for row in 0..batch.num_rows() {
            let (partition, offset) = (PartitionId(partitions.value(row)), offsets.value(row));
            let (event, arrival) = (EventTime(events.value(row)), EventTime(arrivals.value(row)));
            match parts.last_mut().filter(|part| part.partition == partition) {
                Some(part) => {
                    part.next = Offset(offset + 1);
                    part.rows += 1;
                    part.max_event_time = part.max_event_time.max(event);
                    part.max_arrival_time = part.max_arrival_time.max(arrival);
                }
                None => parts.push(SlicePart {
                    partition,
                    first: Offset(offset),
                    next: Offset(offset + 1),
                    rows: 1,
                    max_event_time: event,
                    max_arrival_time: arrival,
                }),
            }
        }
        Ok(MemorySlice { topic, parts, batch })
    }
}

impl Slice for MemorySlice {
    fn topic(&self) -> &Arc<TopicSpec> {
        &self.topic
    }

    fn parts(&self) -> &[SlicePart] {
        &self.parts
    }

    fn bytes(&self) -> usize {
        self.batch.get_array_memory_size()
    }

    fn decode(&self, projection: &Projection) -> Result<RecordBatch, BrokerError> {
        let indices: Result<Vec<usize>, _> = projection.columns.iter().map(|name| self.batch.schema().index_of(name)).collect();
        self.batch.project(&indices.map_err(storage)?).map_err(storage)
    }
}

/// Reads a topic's commits.
pub(super) struct MemoryReader {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) topic: String,
    pub(super) from: Positions,
    pub(super) commit: usize,
    pub(super) row: usize,
    pub(super) positions: Positions,
}

impl TopicReader for MemoryReader {
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError> {
        let state = self.state.lock();
        let topic = known(&state, &self.topic)?;
        while let Some(commit) = topic.commits.get(self.commit) {
            let rest = commit.num_rows() - self.row;
            if rest == 0 {
                self.commit += 1;
                self.row = 0;
                continue;
            }
            let taken = commit.slice(self.row, rest.min(max_rows));
            self.row += taken.num_rows();
            let partitions: &UInt32Array = column(&taken, PARTITION)?;
            let offsets: &UInt64Array = column(&taken, OFFSET)?;
            let wanted: Vec<u32> = (0..taken.num_rows())
                .filter(|row| {
                    let from = self.from.get(&PartitionId(partitions.value(*row))).copied().unwrap_or_default();
                    Offset(offsets.value(*row)) >= from
                })
                .map(|row| row as u32)
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let slice =
                MemorySlice::new(topic.spec.clone(), take_record_batch(&taken, &UInt32Array::from(wanted)).map_err(storage)?)?;
            for part in &slice.parts {
                self.positions.insert(part.partition, part.next);
            }
            return Ok(Some(Arc::new(slice)));
        }
        Ok(None)
    }

    fn positions(&self) -> Positions {
        self.positions.clone()
    }
}
