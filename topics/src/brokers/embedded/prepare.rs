//! What happens on the caller's thread: partitions, hashes of ids, and for big requests sorting,
//! encoding and compression, so that the writer only assigns offsets.

use super::ids::key_of;
use super::topic::TopicState;
use crate::broker::{Answer, Appended, BrokerError, Lane, TopicRows};
use crate::chunk::rows::{self, EncodedRows};
use crate::chunk::{TARGET_ROWS, column};
use crate::dead_letter::DeadLetter;
use crate::partitioner::partition_of;
use crate::schema::{EVENT_TIME, ID, KEY, TYPE};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// From so many rows a request is encoded where it was made; smaller ones the writer joins.
pub(super) const BIG: usize = 256;

/// Rows of one topic, ready for the writer.
#[derive(Debug)]
pub(super) struct PreparedRows {
    pub(super) topic: Arc<TopicState>,
    pub(super) rows: RecordBatch,
    pub(super) partitions: Vec<u32>,
    /// (row, key, content) of rows with an id.
    pub(super) ids: Vec<(u32, [u64; 2], u32)>,
    /// The whole of `rows` in chunks, for big requests.
    pub(super) encoded: Vec<(Range<usize>, EncodedRows)>,
    /// Of each row, ascending; empty without a lane.
    pub(super) lines: Vec<u64>,
}

/// Who waits.
#[derive(Debug)]
pub(super) enum Waiting {
    Appended(Answer<Appended>),
    Unit(Answer<()>),
}

/// An append in the queue.
#[derive(Debug)]
pub(super) struct PendingAppend {
    pub(super) rows: Vec<PreparedRows>,
    pub(super) lane: Option<Lane>,
    pub(super) dead_letters: Vec<DeadLetter>,
    pub(super) want_positions: bool,
    pub(super) apart: bool,
    pub(super) bytes: usize,
    /// When a lane's batch that came early stops waiting (monotonic time); set by the writer.
    pub(super) deadline: Option<Duration>,
    pub(super) answer: Waiting,
}

impl PendingAppend {
    /// Answers with a failure.
    pub(super) fn fail(self, error: BrokerError) {
        // Nobody may be waiting any more, which is fine.
        match self.answer {
            Waiting::Appended(answer) => drop(answer.send(Err(error))),
            Waiting::Unit(answer) => drop(answer.send(Err(error))),
        }
    }
}

fn text<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a StringArray, BrokerError> {
    let column = rows.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    column.ok_or_else(|| BrokerError::Storage(format!("rows to append have no column `{name}` of text")))
}

/// The partition of each row.
pub(super) fn partitions(rows: &RecordBatch, count: u32) -> Result<Vec<u32>, BrokerError> {
    let keys = text(rows, KEY)?;
    Ok(keys.iter().map(|key| partition_of(key, count).0).collect())
}

/// The layout's numbers of the batch's columns, and where the event time is.
pub(super) fn numbers(topic: &TopicState, rows: &RecordBatch) -> Result<(Vec<u16>, usize), BrokerError> {
    let (layout, schema) = (topic.layout(), rows.schema());
    let number = |name: &String| {
        let unknown = || BrokerError::Storage(format!("topic `{}` has no column `{name}`", topic.spec().name));
        layout.id(name).ok_or_else(unknown)
    };
    let ids = schema.fields().iter().map(|f| number(f.name())).collect::<Result<Vec<_>, _>>()?;
    let time = schema.index_of(EVENT_TIME).map_err(|e| BrokerError::Storage(e.to_string()))?;
    Ok((ids, time))
}

/// Prepares rows of one topic.
pub(super) fn prepare(
    topic: Arc<TopicState>,
    rows: RecordBatch,
    principal: &str,
    lines: Vec<u64>,
) -> Result<PreparedRows, BrokerError> {
    if !lines.is_empty() && lines.len() != rows.num_rows() {
        return Err(BrokerError::Storage(format!("{} lines for {} rows", lines.len(), rows.num_rows())));
    }
    let partitions = partitions(&rows, topic.spec().partitions)?;
    let ids = id_hashes(&rows, principal)?;
    let encoded = if rows.num_rows() >= BIG { encode(&topic, &rows, &partitions)? } else { Vec::new() };
    Ok(PreparedRows { topic, rows, partitions, ids, encoded, lines })
}

/// Encodes rows in chunks of about the same size.
pub(super) fn encode(
    topic: &TopicState,
    rows: &RecordBatch,
    partitions: &[u32],
) -> Result<Vec<(Range<usize>, EncodedRows)>, BrokerError> {
    let total = rows.num_rows();
    if total == 0 {
        return Ok(Vec::new());
    }
    let (numbers, time) = numbers(topic, rows)?;
    let pieces = total.div_ceil(TARGET_ROWS);
    (0..pieces)
        .map(|piece| {
            let range = piece * total / pieces..(piece + 1) * total / pieces;
            let part = rows.slice(range.start, range.len());
            Ok((range.clone(), rows::encode(&part, &partitions[range], &numbers, time)?))
        })
        .collect()
}

/// (row, key, content hash) of each row that has an id.
fn id_hashes(rows: &RecordBatch, principal: &str) -> Result<Vec<(u32, [u64; 2], u32)>, BrokerError> {
    let ids = text(rows, ID)?;
    if ids.null_count() == ids.len() {
        return Ok(Vec::new());
    }
    let types = text(rows, TYPE)?;
    let with_id: Vec<usize> = (0..rows.num_rows()).filter(|row| ids.is_valid(*row)).collect();
    let mut contents = vec![0_u64; with_id.len()];
    let schema = rows.schema();
    for (field, array) in schema.fields().iter().zip(rows.columns()) {
        if field.name() == ID || array.null_count() == array.len() {
            continue;
        }
        let seed = xxhash_rust::xxh3::xxh3_64(field.name().as_bytes());
        let texts = array.as_string_opt::<i32>();
        for (content, row) in contents.iter_mut().zip(&with_id) {
            if array.is_null(*row) {
                continue;
            }
            let hash = match texts {
                Some(texts) => xxhash_rust::xxh3::xxh3_64_with_seed(texts.value(*row).as_bytes(), seed),
                None => xxhash_rust::xxh3::xxh3_64_with_seed(&column::encode(array.slice(*row, 1).as_ref())?, seed),
            };
            // The order of columns must not matter: a sum, not a chain.
            *content = content.wrapping_add(hash);
        }
    }
    let hashed = with_id.into_iter().zip(contents);
    Ok(hashed
        .map(|(row, content)| (row as u32, key_of(principal, types.value(row), ids.value(row)), (content >> 32) as u32))
        .collect())
}

/// The memory that rows take.
pub(super) fn size_of(rows: &[TopicRows]) -> usize {
    rows.iter().map(|r| r.rows.columns().iter().map(|c| c.get_buffer_memory_size()).sum::<usize>()).sum()
}
