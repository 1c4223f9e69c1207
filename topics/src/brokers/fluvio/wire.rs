//! What leaders of partitions are asked and answer, in Fluvio's own words (feature `fluvio`).
//!
//! The client's streams are not used: each leaves a task behind in the server for as long as the connection lasts,
//! and brings records of one partition only. One request asks for records of many partitions, and its answer says
//! where each begins and ends.

use super::endpoint::{Bounds, Fault, Found, Portion, Raw};
use ::fluvio::Isolation;
use ::fluvio::dataplane::link::ErrorCode;
use ::fluvio::dataplane::record::{Batch, ProducerBatchHeader, RawRecords, Record, RecordKey, RecordSet};
use fluvio_spu_schema::fetch::{FetchPartition, FetchRequest, FetchableTopic};
use fluvio_spu_schema::produce::{DefaultPartitionRequest, DefaultProduceRequest, DefaultTopicRequest};
use fluvio_spu_schema::server::fetch_offset::{
    FetchOffsetPartition, FetchOffsetPartitionResponse, FetchOffsetTopic, FetchOffsetTopicResponse, FetchOffsetsRequest,
};
use std::time::Duration;

/// Bytes of records after which a new batch is begun: a batch is read whole or not at all.
const BATCH: usize = 256 << 10;

/// A question for records, which come as they are stored.
pub(super) type Fetch = FetchRequest<RecordSet<RawRecords>>;

/// What an answer's code means; none where all went well. Whoever leads a partition may change, a topic that was
/// made a moment ago may not be led yet: all but a few is worth another try.
pub(super) fn fault(code: &ErrorCode) -> Option<Fault> {
    match code {
        ErrorCode::None => None,
        ErrorCode::PermissionDenied | ErrorCode::MessageTooLarge | ErrorCode::CompressionError => {
            Some(Fault::Refused(code.to_string()))
        }
        _ => Some(Fault::Lost(code.to_string())),
    }
}

/// Asks for so many bytes of each partition, from an offset on. What `alone` one server has is replicated when it is
/// written, also where that server does not know it any more: it notes how far with delay, and after a kill it would
/// hide records that it has answered, until the next is written.
pub(super) fn fetch(topic: &str, from: &[(u32, u64)], bytes: u32, alone: bool) -> Fetch {
    let max_bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    let partition = |(index, from): &(u32, u64)| FetchPartition {
        partition_index: *index,
        fetch_offset: i64::try_from(*from).unwrap_or(i64::MAX),
        max_bytes,
        ..FetchPartition::default()
    };
    let topic = FetchableTopic { name: topic.to_owned(), fetch_partitions: from.iter().map(partition).collect() };
    let isolation_level = if alone { Isolation::ReadUncommitted } else { Isolation::ReadCommitted };
    FetchRequest { max_bytes, isolation_level, topics: vec![topic], ..FetchRequest::default() }
}

/// A partition's answer.
pub(super) enum Fetched {
    /// What came whole; nothing may have, where a batch is larger than what was asked for.
    Portion(Portion),
    /// Retention has taken the offset.
    Evicted,
}

/// Takes an answer apart, in the order asked.
pub(super) fn fetched(
    answer: <Fetch as ::fluvio::dataplane::api::Request>::Response,
    from: &[(u32, u64)],
) -> Result<Vec<Fetched>, Fault> {
    let mut answers: Vec<_> = answer.topics.into_iter().flat_map(|topic| topic.partitions).collect();
    let mut all = Vec::with_capacity(from.len());
    for (partition, from) in from {
        let Some(at) = answers.iter().position(|answer| answer.partition_index == *partition) else {
            return Err(Fault::Lost(format!("partition {partition} has not answered")));
        };
        let answer = answers.swap_remove(at);
        if let ErrorCode::OffsetEvicted { .. } | ErrorCode::OffsetOutOfRange = answer.error_code {
            all.push(Fetched::Evicted);
            continue;
        }
        fault(&answer.error_code).map_or(Ok(()), Err)?;
        let mut portion =
            Portion { first: number(answer.log_start_offset), end: number(answer.high_watermark), ..Portion::default() };
        // The last batch is cut off where the bytes end.
        for batch in answer.records.batches.into_iter().filter(Batch::validate_decoding) {
            let broken =
                |e: &dyn std::fmt::Display| Fault::Refused(format!("a batch of partition {partition} cannot be read: {e}"));
            let batch = <Batch>::try_from(batch).map_err(|e| broken(&e))?;
            for record in batch.into_consumer_records_iter(*partition).filter(|record| number(record.offset()) >= *from) {
                portion.records.push(Found {
                    offset: number(record.offset()),
                    arrival: record.timestamp().saturating_mul(1000),
                    key: record.key().map(<[u8]>::to_vec),
                    value: record.record.into_value().into_vec(),
                });
            }
        }
        portion.end = portion.end.max(portion.records.last().map_or(0, |last| last.offset + 1));
        all.push(Fetched::Portion(portion));
    }
    Ok(all)
}

fn number(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

/// Asks where partitions begin and end.
pub(super) fn offsets(topic: &str, partitions: &[u32]) -> FetchOffsetTopic {
    let partitions = partitions.iter().map(|index| FetchOffsetPartition { partition_index: *index }).collect();
    FetchOffsetTopic { name: topic.to_owned(), partitions }
}

/// The question with these topics.
pub(super) fn offsets_request(topics: Vec<FetchOffsetTopic>) -> FetchOffsetsRequest {
    FetchOffsetsRequest { topics, ..FetchOffsetsRequest::default() }
}

/// A topic's answer: partitions in the order asked.
pub(super) fn bounds(answer: FetchOffsetTopicResponse) -> Result<Bounds, Fault> {
    let of = |partition: FetchOffsetPartitionResponse| match fault(&partition.error_code) {
        Some(fault) => Err(fault),
        None => Ok((number(partition.start_offset), number(partition.last_stable_offset))),
    };
    answer.partitions.into_iter().map(of).collect()
}

/// Records to be written to a partition, in batches.
pub(super) fn produce(
    topic: &str,
    partition: u32,
    records: &[Raw],
    now_millis: i64,
    timeout: Duration,
) -> Result<DefaultProduceRequest, anyhow::Error> {
    let mut batches = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0);
    for (at, raw) in records.iter().enumerate() {
        let key = raw.key.as_ref().map_or(RecordKey::NULL, |key| RecordKey::from(key.as_bytes()));
        bytes += raw.value.len();
        open.push(Record::new_key_value(key, raw.value.as_slice()));
        if bytes >= BATCH || at + 1 == records.len() {
            let mut batch = <Batch>::default();
            batch.add_records(&mut open);
            batch.get_mut_header().set_first_timestamp(now_millis);
            batch.get_mut_header().set_max_time_stamp(now_millis);
            batches.push(Batch::<RawRecords>::try_from(batch)?);
            bytes = 0;
        }
    }
    let partition = DefaultPartitionRequest { partition_index: partition, records: RecordSet { batches } };
    let topic = DefaultTopicRequest { name: topic.to_owned(), partitions: vec![partition], ..DefaultTopicRequest::default() };
    // Answered when it is replicated.
    let isolation = Isolation::ReadCommitted;
    Ok(DefaultProduceRequest { isolation, timeout, topics: vec![topic], ..DefaultProduceRequest::default() })
}
