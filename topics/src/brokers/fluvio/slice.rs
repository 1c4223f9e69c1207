//! A slice of records, decoded when asked for.

use super::Shared;
use super::record::Incoming;
use crate::broker::{BrokerError, Projection, Slice, SlicePart};
use crate::catalogue::TopicSpec;
use crate::dead_letter::{DeadLetter, DeadLetterStatus, Origin};
use crate::ids::{EventTime, Offset, PartitionId};
use crate::json::{StoredDecoder, StoredRecord};
use crate::schema::{ARRIVAL_TIME, OFFSET, PARTITION};
use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array};
use std::sync::{Arc, OnceLock, Weak};

/// Bytes of a record that its dead letter keeps.
const KEPT: usize = 64 << 10;

/// See [`Slice`]. Offsets have gaps where repeats were.
pub(super) struct FluvioSlice {
    topic: Arc<TopicSpec>,
    /// Sorted by partition, then offset.
    records: Vec<Incoming>,
    parts: Vec<SlicePart>,
    bytes: usize,
    whole: OnceLock<Result<(RecordBatch, Vec<u32>), BrokerError>>,
    /// Where records that are none of the topic are reported.
    shared: Weak<Shared>,
}

impl FluvioSlice {
    pub(super) fn new(shared: &Arc<Shared>, topic: Arc<TopicSpec>, mut records: Vec<Incoming>) -> FluvioSlice {
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
        FluvioSlice { topic, records, parts, bytes, whole: OnceLock::new(), shared: Arc::downgrade(shared) }
    }

    /// All columns, in the order of the topic's whole schema, and the rows that say nothing. The dead
    /// letters of these are stored when this returns.
    fn whole(&self) -> Result<(RecordBatch, Vec<u32>), BrokerError> {
        let mut decoder = StoredDecoder::new(&self.topic);
        let (mut bad, mut letters) = (Vec::new(), Vec::new());
        for (row, record) in (0_u32..).zip(&self.records) {
            let stored = StoredRecord {
                value: &record.value,
                key: record.key.as_deref(),
                ty: record.ty.as_deref().unwrap_or("ROW"),
                event_time: record.event_time,
            };
            if let Err(why) = decoder.take(stored) {
                decoder.skip(record.event_time);
                bad.push(row);
                letters.push(self.letter(record, why));
            }
        }
        if !letters.is_empty() {
            let shared = self.shared.upgrade().ok_or(BrokerError::Closed)?;
            tracing::warn!(topic = self.topic.name, records = letters.len(), "fluvio: records that are none of this topic");
            let letters = letters.iter().map(super::dead::encode).collect::<Result<Vec<_>, _>>()?;
            shared.write_letters(&letters, &[])?;
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
        Ok((RecordBatch::try_new(schema, columns).map_err(broken)?, bad))
    }

    /// One letter a record, whoever reads it first.
    fn letter(&self, record: &Incoming, why: String) -> DeadLetter {
        let topic = &self.topic.name;
        let bytes = record.value.get(..record.value.len().min(KEPT)).unwrap_or_default().to_vec();
        DeadLetter {
            id: format!("record:{topic}:{}:{}", record.partition, record.offset),
            at: EventTime(record.arrival),
            cause: "decoding".to_owned(),
            code: "not_an_event".to_owned(),
            path: None,
            message: why,
            topology: None,
            step: None,
            origin: Some(Origin {
                topic: topic.clone(),
                partition: PartitionId(record.partition),
                offset: Offset(record.offset),
            }),
            bytes,
            full_size: record.value.len() as u64,
            status: DeadLetterStatus::Open,
        }
    }

    fn columns(&self, whole: &RecordBatch, projection: &Projection) -> Result<RecordBatch, BrokerError> {
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
        let (rows, bad) = self.decode_all(projection)?;
        if bad.is_empty() {
            return Ok(rows);
        }
        let good = UInt32Array::from_iter_values((0..rows.num_rows() as u32).filter(|row| bad.binary_search(row).is_err()));
        arrow::compute::take_record_batch(&rows, &good).map_err(|e| BrokerError::Storage(format!("fluvio: {e}")))
    }

    fn decode_all(&self, projection: &Projection) -> Result<(RecordBatch, Vec<u32>), BrokerError> {
        let (whole, bad) = self.whole.get_or_init(|| self.whole()).clone()?;
        Ok((self.columns(&whole, projection)?, bad))
    }
}
