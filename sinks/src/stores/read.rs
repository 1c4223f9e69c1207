//! The read side of a table of rows: scans as Arrow, documents as JSON.
//!
//! One read is one SQLite snapshot; its `as_of` comes from the same snapshot (R7).

use super::cells::{Builder, to_json};
use super::file::{self, Reader, StoreFile, fault, quoted};
use super::layout::Layout;
use crate::store::{Scan, ScanRequest, StoreError};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use quikflow_topics::catalogue::FieldType;
use quikflow_topics::ids::EventTime;
use quikflow_topics::schema::arrow_type;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;

/// Rows a batch of a scan holds at most.
const BATCH: usize = 4_096;

/// The Arrow schema of a table's visible columns.
pub(crate) fn schema(layout: &Layout) -> SchemaRef {
    Arc::new(Schema::new(
        layout.columns.iter().take(layout.visible).map(|c| Field::new(&c.name, arrow_type(c.ty), true)).collect::<Vec<_>>(),
    ))
}

/// The columns wanted, as indices.
pub(crate) fn wanted(layout: &Layout, columns: Option<&[String]>) -> Result<Vec<usize>, StoreError> {
    let Some(names) = columns else { return Ok((0..layout.visible).collect()) };
    let find = |name: &String| {
        layout.column(name).filter(|at| *at < layout.visible).ok_or_else(|| {
            StoreError::BadRequest(format!("table `{}` has no column `{name}`; {}", layout.sink.table, known(layout)))
        })
    };
    names.iter().map(find).collect()
}

fn known(layout: &Layout) -> String {
    let names: Vec<&str> = layout.columns.iter().take(layout.visible).map(|c| c.name.as_str()).collect();
    format!("it has {}", names.join(", "))
}

/// Condition and parameters of a `column = text`.
fn equal(layout: &Layout, name: &str, text: &str, values: &mut Vec<Value>) -> Result<String, StoreError> {
    let at = wanted(layout, Some(&[name.to_owned()]))?[0];
    let column = quoted(&layout.columns[at].name);
    let hole = format!("?{}", values.len() + 1);
    Ok(match layout.columns[at].ty {
        FieldType::Int => match text.parse::<i64>() {
            Ok(number) => {
                values.push(Value::Integer(number));
                format!("{column} = {hole}")
            }
            Err(_) => "0".into(),
        },
        FieldType::Bool => {
            values.push(Value::Integer(i64::from(text == "true")));
            format!("{column} = {hole}")
        }
        FieldType::Timestamp => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(time) => {
                values.push(Value::Integer(time.timestamp_micros()));
                format!("{column} = {hole}")
            }
            Err(_) => "0".into(),
        },
        FieldType::Float => match text.parse::<f64>() {
            Ok(number) => {
                values.push(Value::Real(number));
                format!("{column} = {hole}")
            }
            Err(_) => "0".into(),
        },
        FieldType::StringList => {
            values.push(Value::Text(text.to_owned()));
            format!("EXISTS(SELECT 1 FROM json_each({column}) WHERE value = {hole})")
        }
        FieldType::String | FieldType::Json => {
            values.push(Value::Text(text.to_owned()));
            format!("{column} = {hole}")
        }
    })
}

/// All conditions of a read, joined by `AND`.
pub(crate) fn conditions(
    layout: &Layout,
    equals: &[(String, String)],
    from: Option<EventTime>,
    to: Option<EventTime>,
    values: &mut Vec<Value>,
) -> Result<String, StoreError> {
    let mut all = vec!["_gone = 0".to_owned()];
    let time = quoted(&layout.columns[layout.time].name);
    for (bound, sign) in [(from, ">="), (to, "<")] {
        if let Some(bound) = bound {
            values.push(Value::Integer(bound.0));
            all.push(format!("{time} {sign} ?{}", values.len()));
        }
    }
    for (name, text) in equals {
        all.push(equal(layout, name, text, values)?);
    }
    Ok(all.join(" AND "))
}

/// Reads a table as batches.
pub(crate) fn scan(store: &StoreFile, layout: &Arc<Layout>, request: &ScanRequest) -> Result<Scan, StoreError> {
    let columns = wanted(layout, request.columns.as_deref())?;
    let reader = store.reader()?;
    let as_of = file::progress(reader.get()?, store.name, &layout.sink.name)?.positions;
    let mut values = Vec::new();
    let condition = conditions(layout, &request.equals, request.from, request.to, &mut values)?;
    let mut names = vec!["_id".to_owned()];
    names.extend(columns.iter().map(|c| quoted(&layout.columns[*c].name)));
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} AND _id > ?{} ORDER BY _id LIMIT {BATCH}",
        names.join(", "),
        layout.table(),
        values.len() + 1
    );
    let whole = schema(layout);
    let out = Arc::new(whole.project(&columns).map_err(|e| StoreError::BadRequest(e.to_string()))?);
    let types = columns.iter().map(|c| layout.columns[*c].ty).collect();
    let rows = RowIter { reader, store: store.name, sql, values, types, schema: out.clone(), after: Some(i64::MIN) };
    Ok(Scan { schema: out, as_of, batches: Box::new(rows) })
}

struct RowIter {
    reader: Reader,
    store: &'static str,
    sql: String,
    values: Vec<Value>,
    types: Vec<FieldType>,
    schema: SchemaRef,
    after: Option<i64>,
}

impl RowIter {
    fn batch(&mut self, after: i64) -> Result<Option<RecordBatch>, StoreError> {
        let at = fault(self.store);
        let mut builders: Vec<Builder> = self.types.iter().map(|ty| Builder::new(*ty)).collect();
        let mut statement = self.reader.get()?.prepare_cached(&self.sql).map_err(at)?;
        let all = self.values.iter().cloned().chain([Value::Integer(after)]);
        let mut rows = statement.query(rusqlite::params_from_iter(all)).map_err(at)?;
        let (mut count, mut last) = (0, after);
        while let Some(row) = rows.next().map_err(at)? {
            last = row.get(0).map_err(at)?;
            for (i, builder) in builders.iter_mut().enumerate() {
                builder.push(row.get_ref(i + 1).map_err(at)?);
            }
            count += 1;
        }
        self.after = (count == BATCH).then_some(last);
        if count == 0 {
            return Ok(None);
        }
        let arrays: Vec<ArrayRef> = builders.into_iter().map(Builder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map(Some)
            .map_err(|e| StoreError::BadRequest(e.to_string()))
    }
}

impl Iterator for RowIter {
    type Item = Result<RecordBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let after = self.after.take()?;
        self.batch(after).transpose()
    }
}

/// The SQL list of a document's columns: id, key, time, whether read, then the visible ones.
fn document_columns(layout: &Layout) -> String {
    let time = quoted(&layout.columns[layout.time].name);
    let read = match layout.user() {
        Some(user) if layout.sink.store == "outbox" => {
            format!("EXISTS(SELECT 1 FROM _read WHERE user = t.{} AND id = t._k)", quoted(&layout.columns[user].name))
        }
        _ => "NULL".into(),
    };
    let names: Vec<String> = layout.columns.iter().map(|c| quoted(&c.name)).collect();
    format!("_id, _k, {time}, {read}, {}", names.join(", "))
}

/// A document: the columns that are not null, and `_id`.
pub(crate) fn document(layout: &Layout, row: &rusqlite::Row<'_>) -> rusqlite::Result<serde_json::Value> {
    let mut fields = serde_json::Map::new();
    fields.insert("_id".into(), serde_json::Value::String(row.get::<_, String>(1)?.replace('\u{1f}', "/")));
    if let Some(read) = row.get::<_, Option<bool>>(3)? {
        fields.insert("read".into(), serde_json::Value::Bool(read));
    }
    for (i, column) in layout.columns.iter().enumerate() {
        let value = to_json(column.ty, row.get_ref(i + 4)?);
        if !value.is_null() {
            fields.insert(column.name.clone(), value);
        }
    }
    Ok(serde_json::Value::Object(fields))
}

/// A key as given by a reader: joined by U+001F or by `/`.
pub(crate) fn key_of(layout: &Layout, id: &str) -> String {
    if layout.key.len() > 1 && !id.contains('\u{1f}') { id.replacen('/', "\u{1f}", layout.key.len() - 1) } else { id.to_owned() }
}

/// One document.
pub(crate) fn get(store: &StoreFile, layout: &Layout, id: &str) -> Result<Option<serde_json::Value>, StoreError> {
    let at = fault(store.name);
    let reader = store.reader()?;
    let sql = format!("SELECT {} FROM {} AS t WHERE _k = ?1 AND _gone = 0", document_columns(layout), layout.table());
    let mut statement = reader.get()?.prepare_cached(&sql).map_err(at)?;
    statement.query_row([key_of(layout, id)], |row| document(layout, row)).optional().map_err(at)
}

/// Documents by row ids, in that order, each with its id; rows that have gone are left out.
pub(crate) fn by_ids(
    connection: &Connection,
    store: &'static str,
    layout: &Layout,
    ids: &[i64],
) -> Result<Vec<(i64, serde_json::Value)>, StoreError> {
    let at = fault(store);
    let sql = format!("SELECT {} FROM {} AS t WHERE _id = ?1 AND _gone = 0", document_columns(layout), layout.table());
    let mut statement = connection.prepare_cached(&sql).map_err(at)?;
    let mut one = |id: &i64| statement.query_row([id], |row| Ok((*id, document(layout, row)?))).optional().map_err(at);
    ids.iter().filter_map(|id| one(id).transpose()).collect()
}

/// Where a document stands in a list: time, place of its sink among those of the table, row.
pub(crate) type Place = (i64, usize, i64);

/// A place as a cursor.
pub(crate) fn cursor_text(place: Place) -> String {
    format!("{}.{}.{}", place.0, place.1, place.2)
}

/// A cursor as a place.
pub(crate) fn cursor_place(text: &str) -> Result<Place, StoreError> {
    let mut parts = text.splitn(3, '.');
    let mut next = || parts.next().and_then(|p| p.parse::<i64>().ok());
    let place = (|| Some((next()?, usize::try_from(next()?).ok()?, next()?)))();
    place.ok_or_else(|| StoreError::BadRequest("`cursor` is not one that a page gave".into()))
}

/// Documents of one sink (the `rank`-th of its table), newest first, after a place.
pub(crate) fn list(
    store: &StoreFile,
    layout: &Layout,
    rank: usize,
    equals: &[(String, String)],
    range: (Option<EventTime>, Option<EventTime>),
    after: Option<Place>,
    limit: usize,
) -> Result<Vec<(Place, serde_json::Value)>, StoreError> {
    let at = fault(store.name);
    let reader = store.reader()?;
    let mut values = Vec::new();
    let mut condition = conditions(layout, equals, range.0, range.1, &mut values)?;
    let time = quoted(&layout.columns[layout.time].name);
    if let Some((after, of, id)) = after {
        // Of one time, sinks follow each other from the last to the first.
        let id = match rank.cmp(&of) {
            std::cmp::Ordering::Equal => id,
            std::cmp::Ordering::Less => i64::MAX,
            std::cmp::Ordering::Greater => i64::MIN,
        };
        values.push(Value::Integer(after));
        values.push(Value::Integer(id));
        condition.push_str(&format!(" AND ({time}, _id) < (?{}, ?{})", values.len() - 1, values.len()));
    }
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {condition} ORDER BY {time} DESC, _id DESC LIMIT {limit}",
        document_columns(layout),
        layout.table(),
    );
    let mut statement = reader.get()?.prepare_cached(&sql).map_err(at)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values)).map_err(at)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(at)? {
        let time = row.get::<_, Option<i64>>(2).map_err(at)?.unwrap_or(i64::MIN);
        let place = (time, rank, row.get::<_, i64>(0).map_err(at)?);
        found.push((place, document(layout, row).map_err(at)?));
    }
    Ok(found)
}
