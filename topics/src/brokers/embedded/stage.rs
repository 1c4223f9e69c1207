//! What a transaction has written so far: offsets given, chunks added. It takes effect in memory
//! when the transaction has committed, and is forgotten when it failed.

use super::prepare::{self, PreparedRows};
use super::topic::{ChunkMeta, TopicState};
use crate::broker::BrokerError;
use crate::chunk::TARGET_ROWS;
use crate::chunk::header::{Column, Header, Part};
use crate::chunk::rows::EncodedRows;
use crate::ids::{Offset, PartitionId};
use arrow::array::{BooleanArray, RecordBatch};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Columns together no larger than this stay in the chunk's own row.
const INLINE_TOTAL: usize = 40 << 10;
/// In larger chunks, columns up to this size do.
const INLINE_COLUMN: usize = 512;

/// A topic within the transaction.
struct StagedTopic {
    state: Arc<TopicState>,
    /// Next offsets as written, and as given to rows that wait to be joined.
    written: Vec<u64>,
    given: Vec<u64>,
    next_chunk: u64,
    added: Vec<(u64, ChunkMeta)>,
    waiting: Vec<(RecordBatch, Vec<u32>)>,
    waiting_rows: usize,
}

/// All topics touched by the transaction.
#[derive(Default)]
pub(super) struct Staged {
    topics: BTreeMap<i64, StagedTopic>,
}

impl Staged {
    fn topic(&mut self, state: &Arc<TopicState>) -> &mut StagedTopic {
        self.topics.entry(state.id).or_insert_with(|| {
            let extent = state.extent.lock();
            StagedTopic {
                state: state.clone(),
                written: extent.ends.clone(),
                given: extent.ends.clone(),
                next_chunk: extent.next_chunk,
                added: Vec::new(),
                waiting: Vec::new(),
                waiting_rows: 0,
            }
        })
    }

    /// Writes rows, or those that `keep` says; returns the place of each (none: not kept).
    pub(super) fn append(
        &mut self,
        conn: &Connection,
        arrival: i64,
        rows: PreparedRows,
        keep: Option<&[bool]>,
    ) -> Result<Vec<Option<(PartitionId, Offset)>>, BrokerError> {
        let staged = self.topic(&rows.topic);
        let mut places = Vec::with_capacity(rows.partitions.len());
        for (row, partition) in rows.partitions.iter().enumerate() {
            places.push(keep.is_none_or(|k| k[row]).then(|| {
                let next = &mut staged.given[*partition as usize];
                *next += 1;
                (PartitionId(*partition), Offset(*next - 1))
            }));
        }
        match keep {
            None if !rows.encoded.is_empty() => {
                staged.flush(conn, arrival)?;
                for (_, encoded) in &rows.encoded {
                    staged.write(conn, arrival, encoded)?;
                }
            }
            None => staged.wait(rows.rows, rows.partitions),
            Some(keep) => {
                let mask = BooleanArray::from(keep.to_vec());
                let kept =
                    arrow::compute::filter_record_batch(&rows.rows, &mask).map_err(|e| BrokerError::Storage(e.to_string()))?;
                let partitions = rows.partitions.iter().zip(keep).filter(|(_, k)| **k).map(|(p, _)| *p).collect();
                staged.wait(kept, partitions);
            }
        }
        if staged.waiting_rows >= TARGET_ROWS {
            staged.flush(conn, arrival)?;
        }
        Ok(places)
    }

    /// Writes what waits to be joined.
    pub(super) fn flush(&mut self, conn: &Connection, arrival: i64) -> Result<(), BrokerError> {
        self.topics.values_mut().try_for_each(|topic| topic.flush(conn, arrival))
    }

    /// Bytes of the chunks added.
    pub(super) fn bytes(&self) -> u64 {
        self.topics.values().flat_map(|t| &t.added).map(|(_, meta)| meta.bytes).sum()
    }

    /// The transaction has committed.
    pub(super) fn apply(self) {
        for topic in self.topics.into_values() {
            let mut extent = topic.state.extent.lock();
            extent.ends = topic.written;
            extent.next_chunk = topic.next_chunk;
            extent.chunks.extend(topic.added);
        }
    }
}

impl StagedTopic {
    fn wait(&mut self, rows: RecordBatch, partitions: Vec<u32>) {
        self.waiting_rows += partitions.len();
        if !partitions.is_empty() {
            self.waiting.push((rows, partitions));
        }
    }

    fn flush(&mut self, conn: &Connection, arrival: i64) -> Result<(), BrokerError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_rows = 0;
        let Some((first, _)) = waiting.first() else { return Ok(()) };
        let rows = if waiting.len() == 1 {
            first.clone()
        } else {
            arrow::compute::concat_batches(&first.schema(), waiting.iter().map(|(rows, _)| rows))
                .map_err(|e| BrokerError::Storage(e.to_string()))?
        };
        let partitions: Vec<u32> = waiting.into_iter().flat_map(|(_, partitions)| partitions).collect();
        for (_, encoded) in prepare::encode(&self.state, &rows, &partitions)? {
            self.write(conn, arrival, &encoded)?;
        }
        Ok(())
    }

    fn write(&mut self, conn: &Connection, arrival: i64, encoded: &EncodedRows) -> Result<(), BrokerError> {
        let mut parts = Vec::with_capacity(encoded.runs.len());
        for run in &encoded.runs {
            let next = &mut self.written[run.partition as usize];
            let first = *next;
            *next += u64::from(run.rows);
            parts.push(Part {
                partition: run.partition,
                first,
                next: *next,
                rows: run.rows,
                max_event_time: run.max_event_time,
                max_arrival_time: arrival,
            });
        }
        let header = Header {
            known: self.state.layout().known(),
            rows: encoded.rows,
            arrival,
            parts,
            ends: self.written.clone(),
            columns: Vec::new(),
        };
        let meta = insert_chunk(conn, self.state.id, self.next_chunk, header, encoded)?;
        self.added.push((self.next_chunk, meta));
        self.next_chunk += 1;
        Ok(())
    }
}

/// Inserts a chunk under `id`; fills in the header's columns.
pub(super) fn insert_chunk(
    conn: &Connection,
    topic: i64,
    id: u64,
    mut header: Header,
    encoded: &EncodedRows,
) -> Result<ChunkMeta, BrokerError> {
    let all_inline = encoded.bytes() <= INLINE_TOTAL;
    let mut body = Vec::new();
    for column in &encoded.columns {
        let mut entry = Column { id: column.id, at: None, len: column.bytes.len() as u32, checksum: column.checksum };
        if all_inline || column.bytes.len() <= INLINE_COLUMN {
            entry.at = Some(body.len() as u32);
            body.extend_from_slice(&column.bytes);
        } else {
            let mut statement = conn.prepare_cached(&format!("insert into d{topic}(id, data) values(?1, ?2)"))?;
            statement.execute((data_id(id, column.id), &column.bytes))?;
        }
        header.columns.push(entry);
    }
    let bytes = header.encode();
    let meta = ChunkMeta { rows: header.rows, bytes: (bytes.len() + encoded.bytes()) as u64, arrival: header.max_arrival() };
    let sql = format!("insert into c{topic}(id, rows, bytes, arrival, header, body) values(?1, ?2, ?3, ?4, ?5, ?6)");
    conn.prepare_cached(&sql)?.execute((id as i64, meta.rows, meta.bytes as i64, meta.arrival, bytes, body))?;
    Ok(meta)
}

/// The row of a chunk's big column.
pub(super) fn data_id(chunk: u64, column: u16) -> i64 {
    (chunk << 16 | u64::from(column)) as i64
}
