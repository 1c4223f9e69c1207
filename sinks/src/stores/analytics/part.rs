//! Parts: rows sorted by key, one row a key, in blocks of columns.
//!
//! The sort key is the time column first (where the key holds it), then the key's columns; so a
//! block covers a short range of time, and a range of time needs few blocks.

use super::super::cells::Cell;
use super::super::file::fault;
use super::super::layout::Layout;
use super::{bloom, codec};
use crate::store::StoreError;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, UInt32Array, new_null_array};
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows, SortField};
use quikflow_topics::schema::arrow_type;
use rusqlite::Connection;
use std::collections::VecDeque;

/// Rows in a block at most.
pub(crate) const BLOCK: usize = 8_192;
/// Compressed bytes up to which a block's columns are packed into one value.
const PACKED: usize = 48 << 10;

pub(crate) fn arrow_error(e: &arrow::error::ArrowError) -> StoreError {
    StoreError::Refused { store: "analytics", message: e.to_string() }
}

/// How a table's rows are ordered, and what is stored of them: the visible columns, then the
/// version and the arrival time.
pub(crate) struct Shape {
    /// Names of the stored columns.
    pub(crate) names: Vec<String>,
    /// Their types.
    pub(crate) types: Vec<DataType>,
    /// Stored columns by which rows are ordered.
    pub(crate) order: Vec<usize>,
    /// The time column.
    pub(crate) time: usize,
    /// Whether the key holds the time, so that all versions of a row have the same time.
    pub(crate) timed: bool,
}

impl Shape {
    pub(crate) fn new(layout: &Layout) -> Shape {
        let mut names: Vec<String> = layout.columns.iter().map(|c| c.name.clone()).collect();
        let mut types: Vec<DataType> = layout.columns.iter().map(|c| arrow_type(c.ty)).collect();
        names.extend(["_version".to_owned(), "_arrival".to_owned()]);
        types.extend([DataType::Int64, DataType::Int64]);
        let timed = layout.key_columns.contains(&layout.time);
        let mut order: Vec<usize> = if timed { vec![layout.time] } else { Vec::new() };
        order.extend(layout.key_columns.iter().filter(|c| !timed || **c != layout.time));
        Shape { names, types, order, time: layout.time, timed }
    }

    /// Place of the version.
    pub(crate) fn version(&self) -> usize {
        self.names.len() - 2
    }

    /// Place of the arrival time.
    pub(crate) fn arrival(&self) -> usize {
        self.names.len() - 1
    }

    /// A converter of keys to bytes that compare as the keys do.
    pub(crate) fn converter(&self) -> Result<RowConverter, StoreError> {
        let fields = self.order.iter().map(|c| SortField::new(self.types[*c].clone())).collect();
        RowConverter::new(fields).map_err(|e| arrow_error(&e))
    }
}

/// The version within a key: a final row wins over open ones, then the later record (R7, R13).
pub(crate) fn version(generation: u64, last: bool, offset: u64) -> Option<i64> {
    let good = generation < 1 << 18 && offset < 1 << 44;
    good.then_some((generation << 45 | u64::from(last) << 44 | offset) as i64)
}

/// Keys of columns given by their place in the stored columns.
pub(crate) fn keys(converter: &mut RowConverter, columns: &[ArrayRef]) -> Result<Rows, StoreError> {
    converter.convert_columns(columns).map_err(|e| arrow_error(&e))
}

/// Sorts rows by key and keeps the highest version of each. `None`: they are so already.
pub(crate) fn order(keys: &Rows, versions: &Int64Array) -> Option<UInt32Array> {
    let mut places: Vec<u32> = (0..keys.num_rows() as u32).collect();
    let ascending = (1..keys.num_rows()).all(|i| keys.row(i - 1) < keys.row(i));
    if ascending {
        return None;
    }
    // A stable sort finds the runs that parts are.
    places.sort_by(|a, b| {
        let (a, b) = (*a as usize, *b as usize);
        keys.row(a).cmp(&keys.row(b)).then_with(|| versions.value(b).cmp(&versions.value(a)))
    });
    places.dedup_by(|later, kept| keys.row(*later as usize) == keys.row(*kept as usize));
    Some(UInt32Array::from(places))
}

/// The rows at `places` of each column.
pub(crate) fn pick(columns: &[ArrayRef], places: &UInt32Array) -> Result<Vec<ArrayRef>, StoreError> {
    columns.iter().map(|c| take(c, places, None).map_err(|e| arrow_error(&e))).collect()
}

/// Columns of several runs, one after the other.
pub(crate) fn join(runs: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>, StoreError> {
    if let [one] = runs {
        return Ok(one.clone());
    }
    let width = runs.first().map_or(0, Vec::len);
    (0..width)
        .map(|c| {
            let arrays: Vec<&dyn Array> = runs.iter().map(|run| run[c].as_ref()).collect();
            concat(&arrays).map_err(|e| arrow_error(&e))
        })
        .collect()
}

/// A block ready to be stored.
pub(crate) struct Encoded {
    rows: usize,
    time: (i64, i64),
    arrival: (i64, i64),
    keys: Vec<u8>,
    columns: Vec<Vec<u8>>,
}

/// Encodes sorted rows (at most [`BLOCK`]).
pub(crate) fn encode(shape: &Shape, columns: &[ArrayRef]) -> Result<Encoded, StoreError> {
    let rows = columns.first().map_or(0, |c| c.len());
    let time = columns[shape.time].as_primitive::<TimestampMicrosecondType>();
    let arrival = columns[shape.arrival()].as_primitive::<Int64Type>();
    let range = |(low, high): (i64, i64), v: i64| (low.min(v), high.max(v));
    Ok(Encoded {
        rows,
        time: time.iter().flatten().fold((i64::MAX, i64::MIN), range),
        arrival: arrival.iter().flatten().fold((i64::MAX, i64::MIN), range),
        keys: bloom::encode(shape, columns),
        columns: columns.iter().map(codec::encode).collect::<Result<_, _>>()?,
    })
}

/// Cuts sorted rows into blocks and encodes them.
pub(crate) fn encode_all(shape: &Shape, columns: &[ArrayRef], blocks: &mut Vec<Encoded>) -> Result<(), StoreError> {
    let rows = columns.first().map_or(0, |c| c.len());
    let mut at = 0;
    while at < rows {
        let length = BLOCK.min(rows - at);
        let share: Vec<ArrayRef> = columns.iter().map(|c| c.slice(at, length)).collect();
        blocks.push(encode(shape, &share)?);
        at += length;
    }
    Ok(())
}

/// Stores blocks as a part of `sink`, in the caller's transaction.
pub(crate) fn store(connection: &Connection, sink: &str, shape: &Shape, blocks: &[Encoded]) -> Result<(), StoreError> {
    let at = fault("analytics");
    let (mut rows, mut time, mut arrival) = (0, (i64::MAX, i64::MIN), (i64::MAX, i64::MIN));
    for block in blocks {
        rows += block.rows;
        time = (time.0.min(block.time.0), time.1.max(block.time.1));
        arrival = (arrival.0.min(block.arrival.0), arrival.1.max(block.arrival.1));
    }
    if rows == 0 {
        return Ok(());
    }
    let count = i64::try_from(rows).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "INSERT INTO parts(sink, rows, blocks, min_time, max_time, min_arrival, max_arrival, columns)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .and_then(|mut s| {
            let names = shape.names.join("\u{1f}");
            s.execute(rusqlite::params![sink, count, blocks.len() as i64, time.0, time.1, arrival.0, arrival.1, names])
        })
        .map_err(at)?;
    let part = connection.last_insert_rowid();
    let mut put = connection
        .prepare_cached(
            "INSERT INTO blocks(part, block, rows, min_time, max_time, packed, keys) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .map_err(at)?;
    let mut put_column =
        connection.prepare_cached("INSERT INTO block_columns(part, block, col, data) VALUES(?1, ?2, ?3, ?4)").map_err(at)?;
    for (number, block) in blocks.iter().enumerate() {
        let total: usize = block.columns.iter().map(|c| c.len() + 4).sum();
        let packed: Option<Vec<u8>> = (total <= PACKED).then(|| {
            let mut out = Vec::with_capacity(total);
            for column in &block.columns {
                out.extend_from_slice(&(column.len() as u32).to_le_bytes());
                out.extend_from_slice(column);
            }
            out
        });
        let number = number as i64;
        put.execute(rusqlite::params![part, number, block.rows as i64, block.time.0, block.time.1, packed, block.keys])
            .map_err(at)?;
        if packed.is_none() {
            for (i, column) in block.columns.iter().enumerate() {
                put_column.execute(rusqlite::params![part, number, i as i64, column]).map_err(at)?;
            }
        }
    }
    Ok(())
}

/// Reads some columns of a block; those that the part does not have are null.
pub(crate) fn load(
    connection: &Connection,
    shape: &Shape,
    part: &Part,
    block: &Block,
    wanted: &[usize],
) -> Result<Vec<ArrayRef>, StoreError> {
    let at = fault("analytics");
    let rows = block.rows;
    let packed: Option<Vec<u8>> = connection
        .prepare_cached("SELECT packed FROM blocks WHERE part = ?1 AND block = ?2")
        .and_then(|mut s| s.query_row([part.id, block.number], |r| r.get(0)))
        .map_err(at)?;
    let mut places = Vec::new();
    if let Some(packed) = &packed {
        let mut rest = packed.as_slice();
        while let Some((length, tail)) = rest.split_at_checked(4) {
            let length = length.iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b));
            let short = || StoreError::Refused { store: "analytics", message: "a stored block ends too early".into() };
            let (column, tail) = tail.split_at_checked(length).ok_or_else(short)?;
            places.push(column);
            rest = tail;
        }
    }
    wanted
        .iter()
        .map(|want| {
            let ty = &shape.types[*want];
            let Some(place) = part.names.iter().position(|n| *n == shape.names[*want]) else {
                return Ok(new_null_array(ty, rows));
            };
            match places.get(place) {
                Some(bytes) => codec::decode(ty, rows, bytes),
                None => {
                    let mut select = connection
                        .prepare_cached("SELECT data FROM block_columns WHERE part = ?1 AND block = ?2 AND col = ?3")
                        .map_err(at)?;
                    let mut found = select.query([part.id, block.number, place as i64]).map_err(at)?;
                    match found.next().map_err(at)? {
                        Some(row) => codec::decode(ty, rows, row.get_ref(0).and_then(|v| Ok(v.as_blob()?)).map_err(at)?),
                        None => Err(StoreError::Refused { store: "analytics", message: "a stored block lacks a column".into() }),
                    }
                }
            }
        })
        .collect()
}

/// A stored part.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) id: i64,
    pub(crate) rows: usize,
    pub(crate) min_time: i64,
    names: Vec<String>,
}

/// A stored block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    number: i64,
    rows: usize,
}

/// The parts of a sink that a range of time touches, by their first time.
pub(crate) fn parts(connection: &Connection, sink: &str, from: i64, to: i64) -> Result<Vec<Part>, StoreError> {
    let at = fault("analytics");
    let mut select = connection
        .prepare_cached(
            "SELECT id, rows, min_time, columns FROM parts WHERE sink = ?1 AND max_time >= ?2 AND min_time <= ?3 ORDER BY min_time, id",
        )
        .map_err(at)?;
    let read = |r: &rusqlite::Row<'_>| {
        Ok(Part {
            id: r.get(0)?,
            rows: usize::try_from(r.get::<_, i64>(1)?).unwrap_or(0),
            min_time: r.get(2)?,
            names: r.get::<_, String>(3)?.split('\u{1f}').map(str::to_owned).collect(),
        })
    };
    let rows = select.query_map(rusqlite::params![sink, from, to], read).map_err(at)?;
    rows.collect::<rusqlite::Result<_>>().map_err(at)
}

/// The blocks of a part that a range of time touches and that may hold rows of these keys, in order.
pub(crate) fn blocks(
    connection: &Connection,
    shape: &Shape,
    part: i64,
    (from, to): (i64, i64),
    equals: &[(usize, String)],
) -> Result<VecDeque<Block>, StoreError> {
    let at = fault("analytics");
    let filters = if equals.is_empty() { "NULL" } else { "keys" };
    let sql =
        format!("SELECT block, rows, {filters} FROM blocks WHERE part = ?1 AND max_time >= ?2 AND min_time <= ?3 ORDER BY block");
    let mut select = connection.prepare_cached(&sql).map_err(at)?;
    let mut rows = select.query([part, from, to]).map_err(at)?;
    let mut blocks = VecDeque::new();
    while let Some(row) = rows.next().map_err(at)? {
        let filters = row.get_ref(2).and_then(|v| Ok(v.as_blob_or_null()?)).map_err(at)?;
        if filters.is_none_or(|filters| bloom::may_hold(shape, filters, equals)) {
            let length = usize::try_from(row.get::<_, i64>(1).map_err(at)?).unwrap_or(0);
            blocks.push_back(Block { number: row.get(0).map_err(at)?, rows: length });
        }
    }
    Ok(blocks)
}

/// Drops parts.
pub(crate) fn drop_parts(connection: &Connection, ids: &[i64]) -> Result<usize, StoreError> {
    let at = fault("analytics");
    let mut dropped = 0;
    for id in ids {
        dropped += connection.prepare_cached("DELETE FROM parts WHERE id = ?1").and_then(|mut s| s.execute([id])).map_err(at)?;
        for table in ["blocks", "block_columns"] {
            let sql = format!("DELETE FROM {table} WHERE part = ?1");
            connection.prepare_cached(&sql).and_then(|mut s| s.execute([id])).map_err(at)?;
        }
    }
    Ok(dropped)
}

/// A cell as a boolean.
pub(crate) fn is_true(cell: &Cell<'_>) -> bool {
    matches!(cell, Cell::Int(i) if *i != 0)
}
