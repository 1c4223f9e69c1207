//! A slice of records, decoded when asked for.

use super::record::Incoming;
use crate::broker::{BrokerError, Projection, Slice, SlicePart};
use crate::catalogue::TopicSpec;
use crate::ids::{EventTime, Offset, PartitionId};
use crate::json::{StoredDecoder, StoredRecord};
use crate::schema::{ARRIVAL_TIME, OFFSET, PARTITION};
use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array};
use std::sync::{Arc, OnceLock};

/// See [`Slice`]. Offsets have gaps where repeats were.
pub(super) struct FluvioSlice {
    topic: Arc<TopicSpec>,
    /// Sorted by partition, then offset.
    records: Vec<Incoming>,
    parts: Vec<SlicePart>,
    bytes: usize,
    whole: OnceLock<Result<RecordBatch, BrokerError>>,
}

impl FluvioSlice {
    pub(super) fn new(topic: Arc<TopicSpec>, mut records: Vec<Incoming>) -> FluvioSlice {
        records.sort_by_key(|record| (record.partition, record.offset));
        let mut parts: Vec<SlicePart> = Vec::new();
        for record in &records {
            match parts.last_mut().filter(|part| part.partition.0 == record.partition) {
                Some(part) => {
                    part.next = Offset(record.offset + 1);
                    part.rows += 1;
                    part.max_event_time = part.max_event_time.max(EventTime(record.event_time));
                    part.max_arrival_time = part.max_arrival_time.max(EventTime(record.arrival));
                }
                None => parts.push(SlicePart {
                    partition: PartitionId(record.partition),
                    first: Offset(record.offset),
                    next: Offset(record.offset + 1),
                    rows: 1,
                    max_event_time: EventTime(record.event_time),
                    max_arrival_time: EventTime(record.arrival),
                }),
            }
        }
        let bytes = records.iter().map(Incoming::size).sum();
        FluvioSlice { topic, records, parts, bytes, whole: OnceLock::new() }
    }

    /// All columns, in the order of the topic's whole schema.
    fn whole(&self) -> Result<RecordBatch, BrokerError> {
        let mut decoder = StoredDecoder::new(&self.topic);
        for record in &self.records {
            let stored = StoredRecord {
                value: &record.value,
                key: record.key.as_deref(),
                ty: record.ty.as_deref().unwrap_or("ROW"),
                event_time: record.event_time,
            };
            decoder.take(stored).map_err(|why| {
                let (topic, partition, offset) = (&self.topic.name, record.partition, record.offset);
                BrokerError::Storage(format!("fluvio: the record at `{topic}` {partition}/{offset} is none of this topic: {why}"))
            })?;
        }
        let broken = |e: arrow::error::ArrowError| BrokerError::Storage(format!("fluvio: {e}"));
        let rows = decoder.finish().map_err(broken)?;
        let schema = self.topic.schema();
        let arrival = self.records.iter().map(|r| r.arrival).collect::<Vec<_>>();
        let column = |field: &Arc<arrow::datatypes::Field>| -> ArrayRef {
            match field.name().as_str() {
                PARTITION => Arc::new(UInt32Array::from_iter_values(self.records.iter().map(|r| r.partition))),
                OFFSET => Arc::new(UInt64Array::from_iter_values(self.records.iter().map(|r| r.offset))),
                ARRIVAL_TIME => Arc::new(TimestampMicrosecondArray::from(arrival.clone()).with_timezone("UTC")),
                name => rows.column_by_name(name).cloned().unwrap_or_else(|| new_null_array(field.data_type(), rows.num_rows())),
            }
        };
        let columns = schema.fields().iter().map(column).collect();
        RecordBatch::try_new(schema, columns).map_err(broken)
    }
}

impl Slice for FluvioSlice {
    fn topic(&self) -> &Arc<TopicSpec> {
        &self.topic
    }

    fn parts(&self) -> &[SlicePart] {
        &self.parts
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn decode(&self, projection: &Projection) -> Result<RecordBatch, BrokerError> {
        let whole = self.whole.get_or_init(|| self.whole()).clone()?;
        let rows = whole.num_rows();
        let fields = projection.columns.iter().zip(projection.schema.fields());
        let columns: Vec<ArrayRef> = fields
            .map(|(name, field)| whole.column_by_name(name).cloned().unwrap_or_else(|| new_null_array(field.data_type(), rows)))
            .collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(projection.schema.clone(), columns, &options)
            .map_err(|e| BrokerError::Storage(format!("fluvio: {e}")))
    }
}
