//! Readers: from positions by partition, in the order of commits, holding no transaction between
//! polls.

use super::Pool;
use super::pins::Pins;
use super::slice::{Chunk, LogSlice, Piece, Run, header_at, read_chunks};
use super::topic::TopicState;
use crate::broker::{BrokerError, Positions, Slice, TopicReader};
use crate::chunk::header::Header;
use crate::ids::{Offset, PartitionId};
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;

/// Chunks that one slice joins at most.
const MAX_CHUNKS: usize = 64;

/// See [`TopicReader`].
pub(super) struct LogReader {
    topic: Arc<TopicState>,
    conn: Connection,
    pool: Arc<Pool>,
    pins: Arc<Pins>,
    /// All chunks up to this one have been read.
    cursor: u64,
    positions: Vec<u64>,
}

impl LogReader {
    /// A reader from `from`: a binary search by the offsets at which chunks end.
    pub(super) fn open(
        topic: Arc<TopicState>,
        conn: Connection,
        pool: Arc<Pool>,
        pins: Arc<Pins>,
        from: &Positions,
    ) -> Result<LogReader, BrokerError> {
        let mut positions = vec![0; topic.spec().partitions as usize];
        for (partition, offset) in from {
            if let Some(position) = positions.get_mut(partition.0 as usize) {
                *position = offset.0;
            }
        }
        let cursor = seek(&conn, topic.id, |header| ends_after(header, &positions))?;
        Ok(LogReader { topic, conn, pool, pins, cursor, positions })
    }

    /// The runs of a chunk that are not read yet.
    fn unread(&self, chunk: &Chunk) -> Result<Vec<Run>, BrokerError> {
        let mut start = 0;
        let mut runs = Vec::with_capacity(chunk.header.parts.len());
        for (part, p) in chunk.header.parts.iter().enumerate() {
            let position = self.positions.get(p.partition as usize).copied().unwrap_or(0);
            let end = start + p.rows as usize;
            let from = if position <= p.first {
                start
            } else if position >= p.next {
                end
            } else if p.next - p.first == u64::from(p.rows) {
                start + (position - p.first) as usize
            } else {
                start + chunk.offsets(&self.conn)?[start..end].partition_point(|offset| *offset < position)
            };
            if from < end {
                runs.push(Run { part, rows: from..end });
            }
            start = end;
        }
        Ok(runs)
    }
}

/// Whether the chunk holds something at or after the positions.
fn ends_after(header: &Header, positions: &[u64]) -> bool {
    header.ends.iter().zip(positions).any(|(end, position)| end > position)
}

/// The number before the first chunk for which `wanted` holds; it holds for all after the first.
pub(super) fn seek(conn: &Connection, topic: i64, wanted: impl Fn(&Header) -> bool) -> Result<u64, BrokerError> {
    let bounds = conn
        .prepare_cached(&format!("select (select min(id) from c{topic}), (select max(id) from c{topic})"))?
        .query_row([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)))
        .optional()?;
    let Some((Some(min), Some(max))) = bounds else { return Ok(0) };
    let (mut low, mut high) = (min as u64, max as u64 + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match header_at(conn, topic, middle)? {
            Some((id, header)) if id < high => {
                if wanted(&header) {
                    high = middle;
                } else {
                    low = id + 1;
                }
            }
            _ => high = middle,
        }
    }
    Ok(low - 1)
}

impl TopicReader for LogReader {
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError> {
        let max_rows = max_rows.max(1);
        loop {
            let version = self.pins.version();
            let (mut rows, mut count) = (0, 0);
            let chunks = read_chunks(&self.conn, &self.topic, self.cursor, |chunk| {
                rows += chunk.header.rows as usize;
                count += 1;
                rows >= max_rows || count >= MAX_CHUNKS
            })?;
            let Some(last) = chunks.last().map(|c| c.id) else { return Ok(None) };
            let ids: Vec<u64> = chunks.iter().map(|c| c.id).collect();
            let Some(pins) = self.pins.pin(self.topic.id, &ids, version) else { continue };
            let (mut pieces, mut taken) = (Vec::new(), 0);
            let mut cursor = last;
            for (chunk, pin) in chunks.into_iter().zip(pins) {
                let mut runs = self.unread(&chunk)?;
                let unread: usize = runs.iter().map(|r| r.rows.len()).sum();
                if unread == 0 {
                    continue;
                }
                if taken + unread > max_rows {
                    cursor = chunk.id - 1;
                    if !pieces.is_empty() {
                        break;
                    }
                    cut(&mut runs, unread, max_rows);
                }
                taken += runs.iter().map(|r| r.rows.len()).sum::<usize>();
                pieces.push(Piece { chunk: Arc::new(chunk), runs, _pin: Some(pin) });
                if cursor != last {
                    break;
                }
            }
            if pieces.is_empty() {
                self.cursor = cursor;
                continue;
            }
            debug_assert_eq!(taken, pieces.iter().map(Piece::rows).sum::<usize>());
            let slice = LogSlice::new(self.topic.spec(), pieces, self.pool.clone(), &self.conn)?;
            self.cursor = cursor;
            for part in slice.parts() {
                if let Some(position) = self.positions.get_mut(part.partition.0 as usize) {
                    *position = (*position).max(part.next.0);
                }
            }
            return Ok(Some(Arc::new(slice)));
        }
    }

    fn positions(&self) -> Positions {
        let positions = self.positions.iter().enumerate();
        positions.map(|(partition, offset)| (PartitionId(partition as u32), Offset(*offset))).collect()
    }
}

/// Shortens runs to `max` rows in all, each by its share, so that no partition runs ahead of the
/// others in event time.
fn cut(runs: &mut Vec<Run>, total: usize, max: usize) {
    let (mut seen, mut taken) = (0, 0);
    for run in runs.iter_mut() {
        seen += run.rows.len();
        let share = max * seen / total - taken;
        taken += share;
        run.rows.end = run.rows.start + share;
    }
    runs.retain(|run| !run.rows.is_empty());
}
