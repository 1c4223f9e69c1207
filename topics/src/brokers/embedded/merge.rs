//! Merging small chunks into bigger ones behind the writer, and compaction by key (R10).
//!
//! Reading, sorting and encoding happen on a thread of their own; the writer only replaces: the
//! old chunks go and the new one comes in one transaction, under the number of the last old one.
//! Offsets never change, and a reader that stands between two of the old chunks finds the new one
//! and leaves out what its positions say it has read. Chunks that a slice points at are left for
//! the next time.

use super::Shared;
use super::slice::{Chunk, read_chunks};
use super::stage::insert_chunk;
use super::topic::{ChunkMeta, TopicState};
use super::upkeep::{delete_chunk, slowest};
use super::writer::Writer;
use crate::broker::BrokerError;
use crate::catalogue::Cleanup;
use crate::chunk::header::{Header, Part};
use crate::chunk::rows::{self, EncodedRows};
use crate::chunk::{ARRIVAL_COLUMN, OFFSET_COLUMN, TARGET_ROWS};
use crate::failpoint;
use crate::schema::{self, ARRIVAL_TIME, EVENT_TIME, KEY};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// The same while nothing comes.
const QUIET: Duration = Duration::from_secs(60);
/// Stored bytes that one merge takes at most (one chunk may be larger).
const MAX_BYTES: u64 = 4 << 20;
/// Chunks of so many stored bytes stay as they are: reading them costs no more than reading bigger
/// ones, and writing them again would cost as much as writing them did.
const GOOD_BYTES: u64 = 128 << 10;
/// Chunks that one merge takes at most.
const MAX_CHUNKS: usize = 1_024;
/// Records that a compacted topic gets beyond twice what its last compaction left, before the next.
const COMPACT_AFTER: u64 = 1_024;

/// Works until the queue is closed.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut kept: HashMap<i64, u64> = HashMap::new();
    while !shared.queue.wait_closed(EVERY) {
        let seen = shared.wakeup.version();
        // A close after this look moves the version.
        if shared.queue.is_closed() {
            break;
        }
        let topics = shared.topics.read().clone();
        for topic in topics.values() {
            if let Err(error) = tend(shared, topic, &mut kept)
                && !matches!(error, BrokerError::Closed)
            {
                tracing::warn!(topic = topic.spec().name, %error, "chunks could not be merged; it is tried again");
            }
        }
        shared.wakeup.wait(seen, QUIET);
    }
}

fn tend(shared: &Arc<Shared>, topic: &Arc<TopicState>, kept: &mut HashMap<i64, u64>) -> Result<(), BrokerError> {
    loop {
        // In a statement of its own: the lock must be free while the writer works.
        let planned = plan(&topic.extent.lock().chunks);
        let Some(chunks) = planned else { break };
        if shared.queue.is_closed() || !merge(shared, topic, &chunks, None)? {
            return Ok(());
        }
    }
    if topic.spec().cleanup == Cleanup::Compact {
        let records: u64 = topic.extent.lock().chunks.values().map(|c| u64::from(c.rows)).sum();
        if records > kept.get(&topic.id).copied().unwrap_or(0) * 2 + COMPACT_AFTER {
            compact(shared, topic)?;
            let records = topic.extent.lock().chunks.values().map(|c| u64::from(c.rows)).sum();
            kept.insert(topic.id, records);
        }
    }
    Ok(())
}

/// Which chunks to merge next: neighbours, each small, that together make a chunk of the next
/// size; the largest sizes first. So a record is merged three times at most.
fn plan(chunks: &BTreeMap<u64, ChunkMeta>) -> Option<Vec<u64>> {
    let target = TARGET_ROWS as u64;
    [(target / 2, target), (256, 4_096), (16, 256)].into_iter().find_map(|(below, enough)| {
        let (mut run, mut rows, mut bytes) = (Vec::new(), 0, 0);
        for (id, meta) in chunks {
            if u64::from(meta.rows) >= below || meta.bytes >= GOOD_BYTES {
                (rows, bytes) = (0, 0);
                run.clear();
                continue;
            }
            run.push(*id);
            rows += u64::from(meta.rows);
            bytes += meta.bytes;
            if run.len() > 1 && (rows >= enough.min(target) || bytes >= MAX_BYTES || run.len() >= MAX_CHUNKS) {
                // Take what may still come along, up to the target.
                let last = *run.last()?;
                for (id, meta) in chunks.range(last + 1..) {
                    rows += u64::from(meta.rows);
                    bytes += meta.bytes;
                    if u64::from(meta.rows) >= below
                        || meta.bytes >= GOOD_BYTES
                        || rows > target
                        || bytes > MAX_BYTES
                        || run.len() >= MAX_CHUNKS
                    {
                        break;
                    }
                    run.push(*id);
                }
                return Some(run);
            }
        }
        None
    })
}

/// Merges `chunks`, neighbours; with `newest`, without the records that it says are superseded.
/// False when they are in use.
fn merge(shared: &Arc<Shared>, topic: &Arc<TopicState>, chunks: &[u64], newest: Option<&Newest>) -> Result<bool, BrokerError> {
    let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return Ok(true) };
    let conn = shared.pool.take()?;
    let read = read_chunks(&conn, topic, first - 1, |chunk| chunk.id >= *last)?;
    if !read.iter().map(|c| c.id).eq(chunks.iter().copied()) {
        return Ok(false);
    }
    let merged = join(&conn, topic, &read, newest)?;
    shared.pool.give(conn);
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let (topic, chunks) = (topic.clone(), chunks.to_vec());
    shared.queue.push_task(Box::new(move |writer| drop(sender.send(replace(writer, &topic, &chunks, merged)))))?;
    receiver.recv().unwrap_or(Err(BrokerError::Closed))
}

/// On the writer's thread.
fn replace(
    writer: &mut Writer,
    topic: &Arc<TopicState>,
    chunks: &[u64],
    merged: Option<(Header, EncodedRows)>,
) -> Result<bool, BrokerError> {
    let Some(last) = chunks.last().copied() else { return Ok(true) };
    let still_there = chunks.iter().all(|id| topic.extent.lock().chunks.contains_key(id));
    if !still_there || !writer.shared.pins.release(topic.id, chunks) {
        return Ok(false);
    }
    failpoint::hit("log.merge.before");
    let done = writer.transaction(|writer, _, _| {
        chunks.iter().try_for_each(|id| delete_chunk(&writer.conn, topic.id, *id))?;
        merged.map(|(header, encoded)| insert_chunk(&writer.conn, topic.id, last, header, &encoded)).transpose()
    });
    failpoint::hit("log.merge.after");
    if let Ok(meta) = &done {
        let mut extent = topic.extent.lock();
        for id in chunks {
            extent.chunks.remove(id);
        }
        extent.chunks.extend(meta.map(|meta| (last, meta)));
        writer.upkeep.written += meta.map_or(0, |m| m.bytes);
    }
    writer.shared.pins.settle(topic.id, chunks);
    done.map(|_| true)
}

/// Puts chunks together; none when no record is left.
fn join(
    conn: &Connection,
    topic: &Arc<TopicState>,
    chunks: &[Chunk],
    newest: Option<&Newest>,
) -> Result<Option<(Header, EncodedRows)>, BrokerError> {
    let storage = |e: arrow::error::ArrowError| BrokerError::Storage(e.to_string());
    let layout = topic.layout();
    let together = |name: &str, ty: &DataType| -> Result<ArrayRef, BrokerError> {
        let arrays = chunks.iter().map(|c| c.column(conn, name, ty)).collect::<Result<Vec<_>, _>>()?;
        arrow::compute::concat(&arrays.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>()).map_err(storage)
    };
    let (mut fields, mut columns, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |id: u16, name: &str, array: ArrayRef| {
        fields.push(Field::new(name, array.data_type().clone(), true));
        columns.push(array);
        ids.push(id);
    };
    for (id, (name, ty)) in layout.columns.iter().enumerate() {
        add(id as u16, name, together(name, &schema::arrow_type(*ty))?);
    }
    add(ARRIVAL_COLUMN, ARRIVAL_TIME, together(ARRIVAL_TIME, &schema::time_type())?);
    add(OFFSET_COLUMN, schema::OFFSET, together(schema::OFFSET, &DataType::UInt64)?);
    let partitions = chunks.iter().flat_map(|c| &c.header.parts).flat_map(|p| std::iter::repeat_n(p.partition, p.rows as usize));
    let mut partitions: Vec<u32> = partitions.collect();
    let mut batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(storage)?;
    if let Some(newest) = newest {
        let offsets = batch.column(batch.num_columns() - 1).as_primitive::<arrow::datatypes::UInt64Type>().clone();
        let keys = batch.column_by_name(KEY).and_then(|c| c.as_string_opt::<i32>()).cloned();
        let keep = |row: usize| keys.as_ref().is_none_or(|k| k.is_null(row) || newest.holds(k.value(row), offsets.value(row)));
        let mask: BooleanArray = (0..batch.num_rows()).map(|row| Some(keep(row))).collect();
        partitions = partitions.into_iter().enumerate().filter(|(row, _)| mask.value(*row)).map(|(_, p)| p).collect();
        batch = arrow::compute::filter_record_batch(&batch, &mask).map_err(storage)?;
    }
    let Some(last) = chunks.last().filter(|_| batch.num_rows() > 0) else { return Ok(None) };
    let parts = parts(chunks, &batch, &partitions);
    let arrivals = batch.column(batch.num_columns() - 2).as_primitive::<TimestampMicrosecondType>().values().clone();
    let same_arrival = arrivals.iter().all(|a| *a == arrivals[0]);
    let dense = parts.iter().all(|p| p.next - p.first == u64::from(p.rows));
    let event_time = batch.schema().index_of(EVENT_TIME).map_err(storage)?;
    let mut encoded = rows::encode(&batch, &partitions, &ids, event_time)?;
    encoded.columns.retain(|c| !(c.id == ARRIVAL_COLUMN && same_arrival || c.id == OFFSET_COLUMN && dense));
    let times: BTreeMap<u32, i64> = encoded.runs.iter().map(|r| (r.partition, r.max_event_time)).collect();
    let header = Header {
        known: layout.known(),
        rows: encoded.rows,
        arrival: arrivals.iter().copied().min().unwrap_or(0),
        parts: parts
            .into_iter()
            .map(|p| Part { max_event_time: times.get(&p.partition).copied().unwrap_or(p.max_event_time), ..p })
            .collect(),
        ends: last.header.ends.clone(),
        columns: Vec::new(),
    };
    Ok(Some((header, encoded)))
}

/// The runs of the merged chunk.
fn parts(chunks: &[Chunk], batch: &RecordBatch, partitions: &[u32]) -> Vec<Part> {
    let offsets: Option<&UInt64Array> = batch.column(batch.num_columns() - 1).as_primitive_opt();
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for part in chunks.iter().flat_map(|c| &c.header.parts) {
        let merged = parts.entry(part.partition).or_insert(Part { rows: 0, first: u64::MAX, ..*part });
        merged.next = part.next;
        merged.max_event_time = merged.max_event_time.max(part.max_event_time);
        merged.max_arrival_time = merged.max_arrival_time.max(part.max_arrival_time);
    }
    for (row, partition) in partitions.iter().enumerate() {
        if let Some(part) = parts.get_mut(partition) {
            part.rows += 1;
            part.first = part.first.min(offsets.map_or(0, |o| o.value(row)));
        }
    }
    parts.into_values().filter(|p| p.rows > 0).collect()
}

/// The newest offset of each key, by the key's 128-bit hash. A key is in one partition only.
#[derive(Default)]
struct Newest(HashMap<u128, u64>);

impl Newest {
    fn holds(&self, key: &str, offset: u64) -> bool {
        self.0.get(&xxhash_rust::xxh3::xxh3_128(key.as_bytes())).is_none_or(|newest| *newest == offset)
    }
}

/// Leaves the newest record of each key, among those that every group has read. The last chunk
/// stays as it is: it says where the partitions end.
fn compact(shared: &Arc<Shared>, topic: &Arc<TopicState>) -> Result<(), BrokerError> {
    let conn = shared.pool.take()?;
    let slowest = slowest(shared, &conn, &topic.spec())?;
    let metas: Vec<(u64, ChunkMeta)> = topic.extent.lock().chunks.iter().map(|(id, meta)| (*id, *meta)).collect();
    let mut newest = Newest::default();
    let mut eligible = Vec::new();
    for (at, (id, meta)) in metas.iter().enumerate() {
        let Some(chunk) = read_chunks(&conn, topic, id - 1, |_| true)?.into_iter().find(|c| c.id == *id) else { break };
        let (keys, offsets) = (chunk.column(&conn, KEY, &DataType::Utf8)?, chunk.offsets(&conn)?);
        for (key, offset) in keys.as_string::<i32>().iter().zip(offsets) {
            if let Some(key) = key {
                newest.0.insert(xxhash_rust::xxh3::xxh3_128(key.as_bytes()), offset);
            }
        }
        let read = chunk.header.parts.iter().all(|p| slowest.get(p.partition as usize).is_some_and(|s| p.next <= *s));
        if read && at + 1 < metas.len() && eligible.len() == at {
            eligible.push((*id, *meta));
        }
    }
    shared.pool.give(conn);
    let (mut group, mut bytes) = (Vec::new(), 0);
    for (id, meta) in eligible {
        if bytes + meta.bytes > MAX_BYTES && !group.is_empty() {
            merge(shared, topic, &std::mem::take(&mut group), Some(&newest))?;
            bytes = 0;
        }
        group.push(id);
        bytes += meta.bytes;
    }
    merge(shared, topic, &group, Some(&newest))?;
    Ok(())
}
