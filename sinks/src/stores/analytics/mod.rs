//! The analytics store: columnar parts in SQLite, merged as ClickHouse's ReplacingMergeTree does.
//!
//! A write appends a part; parts of like size are merged, eight into one. Of the rows of a key the
//! highest version stays: a final row wins over open ones, then the later record (R7, R13). Readers
//! merge what is not merged yet, so that they see one row a key.
//!
//! * [`codec`] — a column as bytes
//! * [`part`] — a part's rows and blocks
//! * [`bloom`] — which blocks cannot hold a key
//! * [`merge`] — several parts as one
//! * [`scan`] — reading

mod bloom;
mod codec;
mod merge;
mod part;
mod scan;

use super::file::{StoreFile, begin, fault};
use super::layout::Layout;
use super::rows::Input;
use crate::store::{ItemOutcome, StoreError, WriteBatch};
use arrow::array::{Array, ArrayRef, Int64Array, UInt32Array, new_null_array};
use arrow::compute::cast;
use merge::Merge;
use part::Shape;
#[cfg(feature = "clickhouse")]
pub(crate) use part::version;
use quikflow_topics::ids::EventTime;
use rusqlite::Connection;
pub(crate) use scan::scan;

/// Parts of like size that make a merge.
const FAN: usize = 8;
/// Rows up to which parts are merged as they are written.
const SMALL: usize = 8_192;
/// Rows that a merge takes at most.
const MOST: usize = 1 << 20;

/// Creates the tables of the store.
pub(crate) fn create(connection: &Connection, store: &'static str) -> Result<(), StoreError> {
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS parts(id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, rows INTEGER NOT NULL,
                blocks INTEGER NOT NULL, min_time INTEGER NOT NULL, max_time INTEGER NOT NULL,
                min_arrival INTEGER NOT NULL, max_arrival INTEGER NOT NULL, columns TEXT NOT NULL);
             CREATE INDEX IF NOT EXISTS parts_by_sink ON parts(sink, min_time);
             CREATE TABLE IF NOT EXISTS blocks(part INTEGER NOT NULL, block INTEGER NOT NULL, rows INTEGER NOT NULL,
                min_time INTEGER NOT NULL, max_time INTEGER NOT NULL, packed BLOB, keys BLOB, PRIMARY KEY(part, block)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS block_columns(part INTEGER NOT NULL, block INTEGER NOT NULL, col INTEGER NOT NULL,
                data BLOB NOT NULL, PRIMARY KEY(part, block, col));",
        )
        .map_err(fault(store))?;
    // A file of before filters were kept: its blocks have none, so they are read.
    let there =
        connection.prepare("SELECT 1 FROM pragma_table_info('blocks') WHERE name = 'keys'").and_then(|mut s| s.exists([]));
    if there.map_err(fault(store))? {
        return Ok(());
    }
    connection.execute_batch("ALTER TABLE blocks ADD COLUMN keys BLOB").map_err(fault(store))
}

/// Whether the analytics store can hold a table.
pub(crate) fn check(layout: &Layout) -> Result<(), StoreError> {
    if layout.key_columns.len() == layout.key.len() {
        return Ok(());
    }
    Err(StoreError::BadRequest(format!("sink `{}`: `key` names a column that the table does not show", layout.sink.name)))
}

/// Appends a part in the caller's transaction.
pub(crate) fn write(
    connection: &Connection,
    _store: &'static str,
    layout: &Layout,
    batch: &WriteBatch,
) -> Result<Vec<ItemOutcome>, StoreError> {
    let input = Input::new(layout, &batch.rows, batch.generation)?;
    let rows = batch.rows.num_rows();
    let shape = Shape::new(layout);
    let closed = layout.final_column.as_ref().and_then(|name| layout.column(name));
    let mut outcomes = Vec::with_capacity(rows);
    let (mut good, mut versions, mut arrivals) = (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::with_capacity(rows));
    for row in 0..rows {
        let null = layout.key_columns.iter().position(|c| input.cell(*c, row).is_null());
        if let Some(at) = null {
            let message = format!("the key column `{}` is null, so the row cannot be told apart", layout.sink.key[at]);
            outcomes.push(ItemOutcome::Rejected { code: "null_key".into(), message });
            continue;
        }
        let last = closed.is_some_and(|c| part::is_true(&input.cell(c, row)));
        let Some(version) = part::version(batch.generation, last, input.offset(row)) else {
            let message = "the offset or the topic's generation is out of range".to_owned();
            outcomes.push(ItemOutcome::Rejected { code: "offset_range".into(), message });
            continue;
        };
        outcomes.push(ItemOutcome::Written);
        good.push(row as u32);
        versions.push(version);
        arrivals.push(input.arrival(row));
    }
    if good.is_empty() {
        return Ok(outcomes);
    }
    let whole = good.len() == rows;
    let places = UInt32Array::from(good);
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(shape.names.len());
    for (column, ty) in layout.columns.iter().zip(&shape.types) {
        let source = column.source.as_ref().and_then(|s| batch.rows.column_by_name(s));
        let array = match source {
            Some(array) if array.data_type() == ty => array.clone(),
            Some(array) => cast(array, ty).map_err(|e| part::arrow_error(&e))?,
            None => new_null_array(ty, rows),
        };
        columns.push(if whole { array } else { part::pick(&[array], &places)?.remove(0) });
    }
    let versions = Int64Array::from(versions);
    columns.push(std::sync::Arc::new(versions.clone()));
    columns.push(std::sync::Arc::new(Int64Array::from(arrivals)));
    let order: Vec<ArrayRef> = shape.order.iter().map(|c| columns[*c].clone()).collect();
    let keys = part::keys(&mut shape.converter()?, &order)?;
    if let Some(places) = part::order(&keys, &versions) {
        columns = part::pick(&columns, &places)?;
    }
    let mut blocks = Vec::new();
    part::encode_all(&shape, &columns, &mut blocks)?;
    part::store(connection, &layout.sink.name, &shape, &blocks)?;
    Ok(outcomes)
}

/// Forgets a sink's rows.
pub(crate) fn clear(connection: &Connection, _store: &'static str, layout: &Layout) -> Result<(), StoreError> {
    let all = part::parts(connection, &layout.sink.name, i64::MIN, i64::MAX)?;
    part::drop_parts(connection, &all.iter().map(|p| p.id).collect::<Vec<_>>()).map(|_| ())
}

/// Parts of like size that are worth a merge, of at most `limit` rows each.
fn candidates(connection: &Connection, layout: &Layout, limit: usize) -> Result<Option<Vec<part::Part>>, StoreError> {
    let mut levels: std::collections::BTreeMap<u32, Vec<part::Part>> = std::collections::BTreeMap::new();
    for part in part::parts(connection, &layout.sink.name, i64::MIN, i64::MAX)? {
        if part.rows <= limit {
            levels.entry((part.rows / 1_024 + 1).ilog2() / 3).or_default().push(part);
        }
    }
    for mut parts in levels.into_values().filter(|parts| parts.len() >= FAN) {
        // Those that lie together in time overlap most.
        let mut total = 0;
        parts.retain(|p| {
            total += p.rows;
            total <= MOST
        });
        if parts.len() >= 2 {
            return Ok(Some(parts));
        }
    }
    Ok(None)
}

fn merged(
    connection: &Connection,
    layout: &Layout,
    parts: &[part::Part],
    expired: Option<EventTime>,
) -> Result<Vec<part::Encoded>, StoreError> {
    let shape = Shape::new(layout);
    let all: Vec<usize> = (0..shape.names.len()).collect();
    let mut merge = Merge::new(layout, parts.to_vec(), &all, (i64::MIN, i64::MAX), &[])?;
    let mut blocks = Vec::new();
    let mut held: Vec<Vec<ArrayRef>> = Vec::new();
    let mut rows = 0;
    while let Some(columns) = merge.step(connection)? {
        let columns = scan::unexpired(columns, shape.arrival(), expired.map_or(i64::MIN, |e| e.0))?;
        rows += columns[0].len();
        held.push(columns);
        if rows >= part::BLOCK {
            let joined = part::join(&held)?;
            let whole = rows / part::BLOCK * part::BLOCK;
            let share: Vec<ArrayRef> = joined.iter().map(|c| c.slice(0, whole)).collect();
            part::encode_all(&shape, &share, &mut blocks)?;
            held = vec![joined.iter().map(|c| c.slice(whole, rows - whole)).collect()];
            rows -= whole;
        }
    }
    if rows > 0 {
        part::encode_all(&shape, &part::join(&held)?, &mut blocks)?;
    }
    Ok(blocks)
}

fn replace(
    writer: &mut Connection,
    store: &'static str,
    layout: &Layout,
    parts: &[part::Part],
    blocks: &[part::Encoded],
) -> Result<(), StoreError> {
    let tx = begin(store, writer)?;
    let ids: Vec<i64> = parts.iter().map(|p| p.id).collect();
    // A part that went meanwhile (a cleared sink) must not come back.
    if part::drop_parts(&tx, &ids)? == ids.len() {
        part::store(&tx, &layout.sink.name, &Shape::new(layout), blocks)?;
        tx.commit().map_err(fault(store))?;
    }
    Ok(())
}

/// Merges small parts, right after a write.
pub(crate) fn merge_small(writer: &mut Connection, store: &'static str, layout: &Layout) -> Result<(), StoreError> {
    while let Some(parts) = candidates(writer, layout, SMALL)? {
        let blocks = merged(writer, layout, &parts, None)?;
        replace(writer, store, layout, &parts, &blocks)?;
    }
    Ok(())
}

/// Merges larger parts and takes away expired ones; writers wait only for the exchange.
pub(crate) fn maintain(file: &StoreFile, layout: &Layout, expired: Option<EventTime>) -> Result<(), StoreError> {
    let at = fault(file.name);
    if let Some(before) = expired {
        let mut writer = file.writer();
        let tx = begin(file.name, &mut writer)?;
        let sink = &layout.sink.name;
        tx.execute(
            "UPDATE _sinks SET expired_before = max(expired_before, ?2) WHERE name = ?1",
            rusqlite::params![sink, before.0],
        )
        .map_err(at)?;
        let ids: Vec<i64> = {
            let mut select = tx.prepare_cached("SELECT id FROM parts WHERE sink = ?1 AND max_arrival < ?2").map_err(at)?;
            let rows = select.query_map(rusqlite::params![sink, before.0], |r| r.get(0)).map_err(at)?;
            rows.collect::<rusqlite::Result<_>>().map_err(at)?
        };
        part::drop_parts(&tx, &ids)?;
        tx.commit().map_err(at)?;
    }
    // A bounded number of merges each time: parts of a level are at most a merge apart.
    for _ in 0..4 {
        let reader = file.reader()?;
        let Some(parts) = candidates(reader.get()?, layout, MOST / 2)? else { return Ok(()) };
        let blocks = merged(reader.get()?, layout, &parts, expired)?;
        drop(reader);
        replace(&mut file.writer(), file.name, layout, &parts, &blocks)?;
    }
    Ok(())
}
