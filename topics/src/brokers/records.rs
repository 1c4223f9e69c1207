//! What brokers of records share, who know no columns: a record as it came in, and a slice of them,
//! decoded when asked for.

use crate::broker::{BrokerError, Projection, Slice, SlicePart};
use crate::catalogue::TopicSpec;
use crate::dead_letter::{DeadLetter, DeadLetterStatus, Origin};
use crate::ids::{EventTime, Offset, PartitionId};
use crate::json::{StoredDecoder, StoredRecord};
use crate::schema::{ARRIVAL_TIME, OFFSET, PARTITION};
use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array, new_null_array};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Bytes of a record that its dead letter keeps.
const KEPT: usize = 64 << 10;

/// A record as it came in.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    pub(super) partition: u32,
    pub(super) offset: u64,
    /// Microseconds.
    pub(super) arrival: i64,
    /// Microseconds.
    pub(super) event_time: i64,
    /// UTF-8.
    pub(super) key: Option<Bytes>,
    pub(super) ty: Option<Arc<str>>,
    /// Canonical JSON, or whatever someone else wrote.
    pub(super) value: Bytes,
}

impl Incoming {
    /// The memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + 96
    }

    fn key(&self) -> Option<&str> {
        self.key.as_ref().and_then(|key| std::str::from_utf8(key).ok())
    }
}

/// The time in an event that someone else wrote.
pub(super) fn own_time(value: &[u8]) -> Option<i64> {
    let found = sonic_rs::get(std::str::from_utf8(value).ok()?, ["timestamp"]).ok()?;
    let text = sonic_rs::JsonValueTrait::as_str(&found)?;
    crate::json::time::read_time(text).map(|time| time.micros)
}

/// The broker that a slice came from, as far as it needs it.
pub(super) trait Origins: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Stores the dead letters of records that are none of their topic, each id once; durable when
    /// this returns.
    fn store_letters(self: Arc<Self>, letters: &[DeadLetter]) -> Result<(), BrokerError>;
}

/// The columns asked for, them, and the rows that are none of the topic.
type Decoded = (Vec<String>, RecordBatch, Vec<u32>);

/// See [`Slice`]. Offsets may have gaps: transactions' markers, tombstones, compaction, repeats.
pub(super) struct RecordSlice {
    topic: Arc<TopicSpec>,
    /// Sorted by partition, then offset.
    records: Vec<Incoming>,
    parts: Vec<SlicePart>,
    bytes: usize,
    /// What was decoded last: mostly all that is ever asked for.
    decoded: Mutex<Option<Decoded>>,
    /// Where records that are none of the topic are reported.
    from: Weak<dyn Origins>,
    broker: &'static str,
}

impl RecordSlice {
    pub(super) fn new(from: &Arc<impl Origins + 'static>, topic: Arc<TopicSpec>, mut records: Vec<Incoming>) -> RecordSlice {
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
        let broker = from.name();
        let from: Weak<dyn Origins> = Arc::downgrade(from) as Weak<dyn Origins>;
        RecordSlice { topic, records, parts, bytes, decoded: Mutex::default(), from, broker }
    }

    /// The columns, and the rows that say nothing. The dead letters of these are stored when this returns.
    fn read(&self, projection: &Projection) -> Result<(RecordBatch, Vec<u32>), BrokerError> {
        let mut decoder = StoredDecoder::new(&self.topic, &projection.columns);
        let (mut bad, mut letters) = (Vec::new(), Vec::new());
        for (row, record) in (0_u32..).zip(&self.records) {
            let stored = StoredRecord {
                value: &record.value,
                key: record.key(),
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
            let from = self.from.upgrade().ok_or(BrokerError::Closed)?;
            tracing::warn!(
                topic = self.topic.name,
                records = letters.len(),
                "{}: records that are none of this topic",
                self.broker
            );
            from.store_letters(&letters)?;
        }
        let broken = |e| self.broken(&e);
        let rows = decoder.finish().map_err(broken)?;
        let column = |(name, field): (&String, &Arc<arrow::datatypes::Field>)| -> ArrayRef {
            match name.as_str() {
                PARTITION => Arc::new(UInt32Array::from_iter_values(self.records.iter().map(|r| r.partition))),
                OFFSET => Arc::new(UInt64Array::from_iter_values(self.records.iter().map(|r| r.offset))),
                ARRIVAL_TIME => {
                    let arrival = self.records.iter().map(|r| r.arrival).collect::<Vec<_>>();
                    Arc::new(TimestampMicrosecondArray::from(arrival).with_timezone("UTC"))
                }
                name => rows.column_by_name(name).cloned().unwrap_or_else(|| new_null_array(field.data_type(), rows.num_rows())),
            }
        };
        let columns = projection.columns.iter().zip(projection.schema.fields()).map(column).collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(self.records.len()));
        Ok((RecordBatch::try_new_with_options(projection.schema.clone(), columns, &options).map_err(broken)?, bad))
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

    fn broken(&self, error: &arrow::error::ArrowError) -> BrokerError {
        BrokerError::Storage(format!("{}: {error}", self.broker))
    }
}

impl Slice for RecordSlice {
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
        arrow::compute::take_record_batch(&rows, &good).map_err(|e| self.broken(&e))
    }

    fn decode_all(&self, projection: &Projection) -> Result<(RecordBatch, Vec<u32>), BrokerError> {
        let mut decoded = self.decoded.lock();
        if let Some((_, rows, bad)) = decoded.as_ref().filter(|(columns, ..)| *columns == projection.columns) {
            return Ok((rows.clone(), bad.clone()));
        }
        let (rows, bad) = self.read(projection)?;
        *decoded = Some((projection.columns.clone(), rows.clone(), bad.clone()));
        Ok((rows, bad))
    }
}
