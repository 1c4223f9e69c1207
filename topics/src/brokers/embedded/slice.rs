//! Slices: runs of rows of one or more chunks, decoded column by column when asked.

use super::Pool;
use super::pins::Pin;
use super::stage::data_id;
use super::topic::TopicState;
use crate::broker::{BrokerError, Projection, Slice, SlicePart};
use crate::catalogue::TopicSpec;
use crate::chunk::header::Header;
use crate::chunk::{ARRIVAL_COLUMN, Damaged, OFFSET_COLUMN, checksum, column, rest};
use crate::ids::{EventTime, Offset, PartitionId};
use crate::schema::{self, ARRIVAL_TIME, EVENT_TIME, OFFSET, PARTITION, REST};
use arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType, UInt64Type};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A chunk read from the file, without its big columns.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) topic: Arc<TopicState>,
    pub(super) id: u64,
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
}

impl Chunk {
    /// Calls `with` on a column's bytes once their checksum has been compared.
    pub(super) fn with_column<T>(
        &self,
        conn: &Connection,
        id: u16,
        with: impl FnOnce(&[u8]) -> Result<T, Damaged>,
    ) -> Result<Option<T>, BrokerError> {
        let Some(entry) = self.header.column(id) else { return Ok(None) };
        let checked = |bytes: &[u8]| {
            if bytes.len() != entry.len as usize || checksum(bytes) != entry.checksum {
                return Err(Damaged(format!(
                    "chunk {} of topic {}: column {id} does not match its checksum",
                    self.id, self.topic.id
                )));
            }
            with(bytes)
        };
        if let Some(at) = entry.at {
            let bytes = self.body.get(at as usize..at as usize + entry.len as usize);
            return Ok(Some(checked(bytes.ok_or_else(|| Damaged::new("a column beyond its chunk"))?)?));
        }
        let mut statement = conn.prepare_cached(&format!("select data from d{} where id = ?1", self.topic.id))?;
        let result = statement
            .query_row([data_id(self.id, id)], |row| Ok(checked(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)))
            .optional()?;
        match result {
            Some(result) => Ok(Some(result?)),
            None => Err(BrokerError::Storage(format!(
                "a column of chunk {} of topic `{}` is gone: the topic was reset or cleaned up while it was read",
                self.id,
                self.topic.spec().name
            ))),
        }
    }

    /// A column by its name, of all the chunk's rows.
    pub(super) fn column(&self, conn: &Connection, name: &str, ty: &DataType) -> Result<ArrayRef, BrokerError> {
        let rows = self.header.rows as usize;
        match name {
            PARTITION => {
                let parts = self.header.parts.iter();
                let values = parts.flat_map(|p| std::iter::repeat_n(p.partition, p.rows as usize));
                return Ok(Arc::new(UInt32Array::from_iter_values(values)));
            }
            OFFSET => return Ok(Arc::new(UInt64Array::from(self.offsets(conn)?))),
            ARRIVAL_TIME => {
                let decode = |bytes: &[u8]| column::decode(bytes, rows, &schema::time_type());
                if let Some(times) = self.with_column(conn, ARRIVAL_COLUMN, decode)? {
                    return Ok(times);
                }
                let times = TimestampMicrosecondArray::from_value(self.header.arrival, rows).with_timezone("UTC");
                return Ok(Arc::new(times));
            }
            _ => {}
        }
        let layout = self.topic.layout();
        let Some(id) = layout.id(name) else {
            return Err(BrokerError::Storage(format!("topic `{}` has no column `{name}`", self.topic.spec().name)));
        };
        if id >= self.header.known {
            // Declared later than this chunk was written (R12).
            let field = layout.columns[usize::from(id)].1;
            let rest = self.column(conn, REST, &DataType::Utf8)?;
            return Ok(rest::column_from_rest(rest.as_string::<i32>(), name, field));
        }
        let decoded = self.with_column(conn, id, |bytes| column::decode(bytes, rows, ty))?;
        Ok(decoded.unwrap_or_else(|| column::all_null(rows, ty)))
    }

    /// Every row's offset.
    pub(super) fn offsets(&self, conn: &Connection) -> Result<Vec<u64>, BrokerError> {
        let rows = self.header.rows as usize;
        let stored = self.with_column(conn, OFFSET_COLUMN, |bytes| column::decode(bytes, rows, &DataType::UInt64))?;
        Ok(match stored {
            Some(offsets) => offsets.as_primitive::<UInt64Type>().values().to_vec(),
            None => self.header.parts.iter().flat_map(|p| p.first..p.first + u64::from(p.rows)).collect(),
        })
    }
}

/// A run of one partition's rows within a chunk: `rows` are row numbers of the chunk.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) part: usize,
    pub(super) rows: Range<usize>,
}

/// A chunk and the runs of it that belong to the slice.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) chunk: Arc<Chunk>,
    pub(super) runs: Vec<Run>,
    pub(super) _pin: Option<Pin>,
}

impl Piece {
    pub(super) fn rows(&self) -> usize {
        self.runs.iter().map(|r| r.rows.len()).sum()
    }
}

/// See [`Slice`].
#[derive(Debug)]
pub(super) struct LogSlice {
    spec: Arc<TopicSpec>,
    pieces: Vec<Piece>,
    parts: Vec<SlicePart>,
    bytes: usize,
    pool: Arc<Pool>,
}

impl LogSlice {
    /// Puts pieces together; needs `conn` only where a run is not a whole part.
    pub(super) fn new(
        spec: Arc<TopicSpec>,
        pieces: Vec<Piece>,
        pool: Arc<Pool>,
        conn: &Connection,
    ) -> Result<LogSlice, BrokerError> {
        let mut parts: BTreeMap<u32, SlicePart> = BTreeMap::new();
        let mut bytes = 0;
        for piece in &pieces {
            let header = &piece.chunk.header;
            bytes +=
                piece.chunk.body.len() + header.columns.iter().filter(|c| c.at.is_none()).map(|c| c.len as usize).sum::<usize>();
            for run in &piece.runs {
                let part = cut_part(&piece.chunk, run, conn)?;
                let merged = parts.entry(part.partition.0).or_insert(SlicePart { rows: 0, ..part });
                merged.next = part.next;
                merged.rows += part.rows;
                merged.max_event_time = merged.max_event_time.max(part.max_event_time);
                merged.max_arrival_time = merged.max_arrival_time.max(part.max_arrival_time);
            }
        }
        Ok(LogSlice { spec, pieces, parts: parts.into_values().collect(), bytes, pool })
    }
}

/// What a run is, exactly: times of a cut part are looked up.
fn cut_part(chunk: &Chunk, run: &Run, conn: &Connection) -> Result<SlicePart, BrokerError> {
    let part = &chunk.header.parts[run.part];
    let mut cut = SlicePart {
        partition: PartitionId(part.partition),
        first: Offset(part.first),
        next: Offset(part.next),
        rows: run.rows.len() as u32,
        max_event_time: EventTime(part.max_event_time),
        max_arrival_time: EventTime(part.max_arrival_time),
    };
    if cut.rows == part.rows || run.rows.is_empty() {
        return Ok(cut);
    }
    let start: usize = chunk.header.parts[..run.part].iter().map(|p| p.rows as usize).sum();
    let end = start + part.rows as usize;
    let offsets = chunk.offsets(conn)?;
    cut.first = Offset(offsets[run.rows.start]);
    if run.rows.end < end {
        cut.next = Offset(offsets[run.rows.end]);
    }
    for (name, max) in [(EVENT_TIME, &mut cut.max_event_time), (ARRIVAL_TIME, &mut cut.max_arrival_time)] {
        let times = chunk.column(conn, name, &schema::time_type())?;
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        *max = EventTime(times[run.rows.clone()].iter().copied().max().unwrap_or(i64::MIN));
    }
    Ok(cut)
}

impl Slice for LogSlice {
    fn topic(&self) -> &Arc<TopicSpec> {
        &self.spec
    }

    fn parts(&self) -> &[SlicePart] {
        &self.parts
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn decode(&self, projection: &Projection) -> Result<RecordBatch, BrokerError> {
        let conn = self.pool.take()?;
        let decoded = self.decode_with(&conn, projection);
        self.pool.give(conn);
        decoded
    }
}

impl LogSlice {
    fn decode_with(&self, conn: &Connection, projection: &Projection) -> Result<RecordBatch, BrokerError> {
        // Rows in the order of the slice: by partition, then by chunk.
        let mut order: Vec<(u32, usize, &Range<usize>)> = Vec::new();
        for (at, piece) in self.pieces.iter().enumerate() {
            order.extend(piece.runs.iter().map(|run| (piece.chunk.header.parts[run.part].partition, at, &run.rows)));
        }
        order.sort_by_key(|(partition, at, _)| (*partition, *at));
        let whole = self.pieces.len() == 1 && order.windows(2).all(|w| w[0].2.end == w[1].2.start);
        let mut columns = Vec::with_capacity(projection.columns.len());
        for (name, field) in projection.columns.iter().zip(projection.schema.fields()) {
            let decode = |piece: &Piece| -> Result<ArrayRef, BrokerError> {
                let array = piece.chunk.column(conn, name, as_stored(field.data_type()))?;
                if array.data_type() == field.data_type() { Ok(array) } else { as_wanted(name, &array, field.data_type()) }
            };
            let arrays = self.pieces.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
            let runs = order.iter().map(|(_, at, rows)| arrays[*at].slice(rows.start, rows.len())).collect::<Vec<_>>();
            columns.push(match (whole, order.first(), order.last()) {
                (true, Some((_, _, first)), Some((_, _, last))) => arrays[0].slice(first.start, last.end - first.start),
                _ => {
                    let runs: Vec<&dyn Array> = runs.iter().map(AsRef::as_ref).collect();
                    arrow::compute::concat(&runs).map_err(|e| BrokerError::Storage(e.to_string()))?
                }
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows()));
        RecordBatch::try_new_with_options(projection.schema.clone(), columns, &options)
            .map_err(|e| BrokerError::Corrupt(e.to_string()))
    }
}

/// Columns are decoded in the type that the topic's schema has; a caller may want a time as Int64.
fn as_stored(wanted: &DataType) -> &DataType {
    wanted
}

fn as_wanted(name: &str, array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, BrokerError> {
    if wanted == &DataType::Int64
        && let Some(times) = array.as_primitive_opt::<TimestampMicrosecondType>()
    {
        return Ok(Arc::new(times.reinterpret_cast::<Int64Type>()));
    }
    Err(BrokerError::Storage(format!("column `{name}` is {}, {wanted} was asked for", array.data_type())))
}

/// Reads chunks after `cursor`, oldest first, until `enough` says so.
pub(super) fn read_chunks(
    conn: &Connection,
    topic: &Arc<TopicState>,
    cursor: u64,
    mut enough: impl FnMut(&Chunk) -> bool,
) -> Result<Vec<Chunk>, BrokerError> {
    let sql = format!("select id, header, body from c{} where id > ?1 order by id", topic.id);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query([cursor as i64])?;
    let mut chunks = Vec::new();
    while let Some(row) = rows.next()? {
        let header = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let id = row.get::<_, i64>(0)? as u64;
        let header = Header::decode(header)
            .map_err(|e| BrokerError::Corrupt(format!("chunk {id} of topic `{}`: {e}", topic.spec().name)))?;
        let chunk = Chunk { topic: topic.clone(), id, header, body: row.get(2)? };
        let stop = enough(&chunk);
        chunks.push(chunk);
        if stop {
            break;
        }
    }
    Ok(chunks)
}

/// The header of the first chunk whose number is at least `from`.
pub(super) fn header_at(conn: &Connection, topic: i64, from: u64) -> Result<Option<(u64, Header)>, BrokerError> {
    let mut statement = conn.prepare_cached(&format!("select id, header from c{topic} where id >= ?1 order by id limit 1"))?;
    let found: Option<(i64, Vec<u8>)> = statement.query_row([from as i64], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    found.map(|(id, header)| Ok((id as u64, Header::decode(&header)?))).transpose()
}
