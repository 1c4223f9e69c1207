//! Badges and read marks: how many notifications of a user are unread.
//!
//! A count is never stored: it is the rows of the user less those with a read mark, so that a row
//! or a mark that comes twice changes nothing (R13). Marks lie apart from rows, so that rows
//! written again stay read.

use super::file::{StoreFile, fault, progress, quoted};
use super::layout::Layout;
use crate::store::{Scan, ScanRequest, StoreError};
use arrow::array::{ArrayRef, Int64Builder, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use quikflow_topics::broker::Positions;
use rusqlite::OptionalExtension;
use std::sync::Arc;

fn user_of(layout: &Layout) -> Result<String, StoreError> {
    let missing = || {
        StoreError::BadRequest(format!("sink `{}` has no column with the user; name one in the option `user`", layout.sink.name))
    };
    Ok(quoted(&layout.columns[layout.user().ok_or_else(missing)?].name))
}

/// The columns of a table of counts.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("user", DataType::Utf8, true), Field::new("unread", DataType::Int64, true)]))
}

/// The unread of one user.
pub(crate) fn unread(file: &StoreFile, layout: &Layout, user: &str) -> Result<u64, StoreError> {
    let column = user_of(layout)?;
    let sql = format!(
        "SELECT count(*) FROM {} AS t WHERE {column} = ?1 AND _gone = 0
         AND NOT EXISTS(SELECT 1 FROM _read WHERE user = ?1 AND id = t._k)",
        layout.table()
    );
    let reader = file.reader()?;
    let count: i64 =
        reader.get()?.prepare_cached(&sql).and_then(|mut s| s.query_row([user], |r| r.get(0))).map_err(fault(file.name))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Marks a notification as read; its key. None: there is none. `id` is the row's id, or the rest of
/// it where the key begins with the user.
pub(crate) fn mark(file: &StoreFile, layout: &Layout, user: &str, id: &str) -> Result<Option<String>, StoreError> {
    let whole = super::read::key_of(layout, id);
    if mark_if_there(file, layout, user, &whole)? {
        return Ok(Some(whole));
    }
    let rest = format!("{user}\u{1f}{id}");
    Ok(mark_if_there(file, layout, user, &rest)?.then_some(rest))
}

fn mark_if_there(file: &StoreFile, layout: &Layout, user: &str, key: &str) -> Result<bool, StoreError> {
    let at = fault(file.name);
    let sql = format!("SELECT 1 FROM {} WHERE _k = ?1 AND {} = ?2 AND _gone = 0", layout.table(), user_of(layout)?);
    let writer = file.writer();
    let there: Option<i64> =
        writer.prepare_cached(&sql).and_then(|mut s| s.query_row([key, user], |r| r.get(0)).optional()).map_err(at)?;
    if there.is_some() {
        mark_key(&writer, file.name, user, key)?;
    }
    Ok(there.is_some())
}

/// Marks a key as read, whether or not its row is here yet.
pub(crate) fn mark_key(writer: &rusqlite::Connection, store: &'static str, user: &str, key: &str) -> Result<(), StoreError> {
    writer
        .prepare_cached("INSERT OR IGNORE INTO _read(user, id) VALUES(?1, ?2)")
        .and_then(|mut s| s.execute([user, key]))
        .map(|_| ())
        .map_err(fault(store))
}

/// All read marks, to be brought into another store.
pub(crate) fn marks(file: &StoreFile) -> Result<Vec<(String, String)>, StoreError> {
    let at = fault(file.name);
    let reader = file.reader()?;
    let mut select = reader.get()?.prepare("SELECT user, id FROM _read").map_err(at)?;
    let rows = select.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).map_err(at)?;
    rows.collect::<rusqlite::Result<_>>().map_err(at)
}

/// The counts of all users that have any notification, over the sinks that share the table.
pub(crate) fn scan(file: &StoreFile, layouts: &[Arc<Layout>], request: &ScanRequest) -> Result<Scan, StoreError> {
    let at = fault(file.name);
    let Some(first) = layouts.first() else { return Err(StoreError::BadRequest("no such table".into())) };
    let each = layouts
        .iter()
        .map(|layout| Ok(format!("SELECT {} AS u, _k AS k FROM {} WHERE _gone = 0", user_of(layout)?, layout.table())));
    let rows = each.collect::<Result<Vec<_>, StoreError>>()?.join(" UNION ALL ");
    let sql = format!(
        "SELECT u, count(*) - count(r.id) FROM ({rows}) LEFT JOIN _read AS r ON r.user = u AND r.id = k GROUP BY 1 ORDER BY 1"
    );
    let reader = file.reader()?;
    let as_of = progress(reader.get()?, file.name, &first.sink.name)?.positions;
    let mut found: Vec<(Option<String>, i64)> = Vec::new();
    {
        let mut statement = reader.get()?.prepare_cached(&sql).map_err(at)?;
        let mut rows = statement.query([]).map_err(at)?;
        while let Some(row) = rows.next().map_err(at)? {
            found.push((row.get(0).map_err(at)?, row.get(1).map_err(at)?));
        }
    }
    table(as_of, found, request)
}

/// Counts as a scan's answer.
pub(crate) fn table(
    as_of: Positions,
    rows: impl IntoIterator<Item = (Option<String>, i64)>,
    request: &ScanRequest,
) -> Result<Scan, StoreError> {
    let bad = |e: arrow::error::ArrowError| StoreError::BadRequest(e.to_string());
    let (mut users, mut counts) = (StringBuilder::new(), Int64Builder::new());
    for (user, unread) in rows {
        users.append_option(user);
        counts.append_value(unread);
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(users.finish()), Arc::new(counts.finish())];
    let whole = RecordBatch::try_new(schema(), columns).map_err(bad)?;
    let places = match &request.columns {
        None => vec![0, 1],
        Some(names) => names.iter().map(|n| whole.schema().index_of(n)).collect::<Result<_, _>>().map_err(bad)?,
    };
    let picked: Vec<ArrayRef> = places.iter().map(|p| whole.column(*p).clone()).collect();
    let schema = Arc::new(whole.schema().project(&places).map_err(bad)?);
    let options = RecordBatchOptions::new().with_row_count(Some(whole.num_rows()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), picked, &options).map_err(bad)?;
    Ok(Scan { schema, as_of, batches: Box::new(std::iter::once(Ok(batch))) })
}
