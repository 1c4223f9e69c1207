//! The write side of a table of rows: one SQLite row a key.
//!
//! Hidden columns: `_k` the key's text, `_v` the version of the record that made the row, `_gone`
//! whether readers see it, `_arr` the newest arrival, `_vs` the versions of columns set by later
//! records than `_v`, `_sets` the elements of sets with theirs.

use super::cells::{Cell, Col};
use super::file::{fault, quoted};
use super::layout::{Layout, Mode};
use super::merge::{Change, Merged};
use super::rules::Rule;
use crate::store::{ItemOutcome, StoreError, WriteBatch};
use arrow::array::RecordBatch;
use quikflow_topics::schema;
use rusqlite::Connection;

/// Hidden columns before the visible ones.
pub(crate) const HIDDEN: usize = 7;

/// The version of a record: its topic's generation, then its offset (R13).
pub(crate) fn version(generation: u64, offset: u64) -> Option<i64> {
    (generation < 1 << 19 && offset < 1 << 44).then_some(((generation << 44) | offset) as i64)
}

/// What a row's change means for an index beside the table.
pub(crate) struct Changed {
    /// The row's id.
    pub(crate) id: i64,
    /// Whether the row was there before.
    pub(crate) existed: bool,
    /// Whether this record alone made the row, as a whole.
    pub(crate) created: bool,
}

/// Creates the table, or adds columns declared since.
pub(crate) fn create(connection: &Connection, store: &'static str, layout: &Layout) -> Result<(), StoreError> {
    let at = fault(store);
    let table = layout.table();
    let columns: Vec<String> = layout.columns.iter().map(|c| format!("{} {}", quoted(&c.name), sql_type(c.ty))).collect();
    let mut sql = format!(
        "CREATE TABLE IF NOT EXISTS {table}(_id INTEGER PRIMARY KEY, _k TEXT NOT NULL UNIQUE, _v INTEGER NOT NULL,
         _gone INTEGER NOT NULL, _arr INTEGER NOT NULL, _vs TEXT, _sets TEXT, {});",
        columns.join(", ")
    );
    connection.execute_batch(&sql).map_err(at)?;
    let mut there = Vec::new();
    {
        let mut names = connection
            .prepare(&format!("SELECT name FROM pragma_table_info('{}')", layout.table().trim_matches('"').replace('\'', "''")))
            .map_err(at)?;
        let mut rows = names.query([]).map_err(at)?;
        while let Some(row) = rows.next().map_err(at)? {
            there.push(row.get::<_, String>(0).map_err(at)?);
        }
    }
    sql.clear();
    for column in &layout.columns {
        if !there.contains(&column.name) {
            sql.push_str(&format!("ALTER TABLE {table} ADD COLUMN {} {};", quoted(&column.name), sql_type(column.ty)));
        }
    }
    let time = quoted(&layout.columns[layout.time].name);
    let name = |of: &str| quoted(&format!("by_{of}:{}", layout.sink.name));
    sql.push_str(&format!("CREATE INDEX IF NOT EXISTS {} ON {table}({time});", name("time")));
    for &at in &layout.index {
        let column = &layout.columns[at].name;
        sql.push_str(&format!("CREATE INDEX IF NOT EXISTS {} ON {table}({}, {time});", name(column), quoted(column)));
    }
    if layout.sink.ttl.is_some() {
        sql.push_str(&format!("CREATE INDEX IF NOT EXISTS {} ON {table}(_arr);", name("arrival")));
    }
    connection.execute_batch(&sql).map_err(at)
}

fn sql_type(ty: quikflow_topics::FieldType) -> &'static str {
    use quikflow_topics::FieldType as T;
    match ty {
        T::String | T::Json | T::StringList => "TEXT",
        T::Int | T::Bool | T::Timestamp => "INTEGER",
        T::Float => "REAL",
    }
}

/// A batch's columns, typed once.
pub(crate) struct Input<'a> {
    key: Vec<Col<'a>>,
    offset: Col<'a>,
    kind: Col<'a>,
    named_kind: Col<'a>,
    arrival: Col<'a>,
    event_time: Col<'a>,
    columns: Vec<Col<'a>>,
    generation: u64,
}

impl<'a> Input<'a> {
    pub(crate) fn new(layout: &Layout, rows: &'a RecordBatch, generation: u64) -> Result<Input<'a>, StoreError> {
        let of = |name: &str| Col::of(rows, name);
        Ok(Input {
            key: layout.key.iter().map(|k| of(k)).collect::<Result<_, _>>()?,
            offset: of(schema::OFFSET)?,
            kind: of(schema::TYPE)?,
            named_kind: of("type")?,
            arrival: of(schema::ARRIVAL_TIME)?,
            event_time: of(schema::EVENT_TIME)?,
            columns: layout.columns.iter().map(|c| c.source.as_deref().map_or(Ok(Col::None), of)).collect::<Result<_, _>>()?,
            generation,
        })
    }

    /// The row's version.
    pub(crate) fn version(&self, row: usize) -> Option<i64> {
        match self.offset.cell(row) {
            Cell::Int(offset) => version(self.generation, u64::try_from(offset).ok()?),
            _ => None,
        }
    }

    /// The row's offset.
    pub(crate) fn offset(&self, row: usize) -> u64 {
        u64::try_from(self.int(&self.offset, row)).unwrap_or(u64::MAX)
    }

    /// The row's key; the place in the key of what is null otherwise.
    pub(crate) fn key(&self, row: usize) -> Result<String, usize> {
        let mut text = String::with_capacity(48);
        for (i, column) in self.key.iter().enumerate() {
            if i > 0 {
                text.push('\u{1f}');
            }
            if !column.key_text(row, &mut text) {
                return Err(i);
            }
        }
        Ok(text)
    }

    /// The event type; of topics of rows, what their column `type` says.
    pub(crate) fn kind(&self, row: usize) -> String {
        let text = |cell| if let Cell::Text(t) = cell { t.into_owned() } else { String::new() };
        let kind = text(self.kind.cell(row));
        if kind == "ROW" && !self.named_kind.cell(row).is_null() { text(self.named_kind.cell(row)) } else { kind }
    }

    pub(crate) fn int(&self, column: &Col<'_>, row: usize) -> i64 {
        if let Cell::Int(i) = column.cell(row) { i } else { 0 }
    }

    pub(crate) fn event_time(&self, row: usize) -> i64 {
        self.int(&self.event_time, row)
    }

    pub(crate) fn arrival(&self, row: usize) -> i64 {
        self.int(&self.arrival, row)
    }

    /// The value of a visible column.
    pub(crate) fn cell(&self, column: usize, row: usize) -> Cell<'a> {
        self.columns[column].cell(row)
    }
}

/// What a table is told of each row that changed.
pub(crate) type OnChange<'f> = dyn FnMut(&Connection, &Changed, &Input<'_>, usize) -> Result<(), StoreError> + 'f;

/// Writes a batch's rows within the caller's transaction.
pub(crate) fn write(
    connection: &Connection,
    store: &'static str,
    layout: &Layout,
    batch: &WriteBatch,
    changed: &mut OnChange<'_>,
) -> Result<Vec<ItemOutcome>, StoreError> {
    let input = Input::new(layout, &batch.rows, batch.generation)?;
    let writer = Writer { connection, store, layout, input: &input, insert: insert_sql(layout) };
    (0..batch.rows.num_rows())
        .map(|row| {
            let key = match input.key(row) {
                Ok(key) => key,
                Err(at) => {
                    let column = &layout.sink.key[at];
                    let message = format!("the key column `{column}` is null, so the row cannot be told apart");
                    return Ok(ItemOutcome::Rejected { code: "null_key".into(), message });
                }
            };
            let Some(version) = input.version(row) else {
                let message = "the offset or the topic's generation is out of range".to_owned();
                return Ok(ItemOutcome::Rejected { code: "offset_range".into(), message });
            };
            match writer.row(row, &key, version)? {
                Some(change) => {
                    changed(connection, &change, &input, row)?;
                    Ok(ItemOutcome::Written)
                }
                None => Ok(ItemOutcome::Older),
            }
        })
        .collect()
}

fn insert_sql(layout: &Layout) -> String {
    let table = layout.table();
    let names: Vec<String> = layout.columns.iter().map(|c| quoted(&c.name)).collect();
    let holes: Vec<String> = (0..names.len()).map(|i| format!("?{}", i + 7)).collect();
    let action = match layout.mode {
        Mode::Append | Mode::Merge(_) => "DO NOTHING".to_owned(),
        Mode::Upsert { .. } => {
            let sets: Vec<String> = names.iter().map(|n| format!("{n} = excluded.{n}")).collect();
            format!(
                "DO UPDATE SET _v = excluded._v, _gone = excluded._gone, _arr = excluded._arr, {} WHERE excluded._v > {table}._v",
                sets.join(", ")
            )
        }
    };
    format!(
        "INSERT INTO {table}(_k, _v, _gone, _arr, _vs, _sets, {}) VALUES(?1, ?2, ?3, ?4, ?5, ?6, {}) ON CONFLICT(_k) {action}",
        names.join(", "),
        holes.join(", ")
    )
}

struct Writer<'a> {
    connection: &'a Connection,
    store: &'static str,
    layout: &'a Layout,
    input: &'a Input<'a>,
    insert: String,
}

impl Writer<'_> {
    fn row(&self, row: usize, key: &str, version: i64) -> Result<Option<Changed>, StoreError> {
        match &self.layout.mode {
            Mode::Append => self.insert_plain(row, key, version, false),
            Mode::Upsert { delete } => {
                let gone = !delete.is_empty() && delete.contains(&self.input.kind(row));
                self.insert_plain(row, key, version, gone)
            }
            Mode::Merge(rules) => {
                let whole = Rule { create: true, shows: true, ..Rule::default() };
                let kind = self.input.kind(row);
                let other = Rule { shows: true, ..Rule::default() };
                let rule = rules.get(&kind).unwrap_or(if rules.is_empty() || kind == "ROW" { &whole } else { &other });
                let change = Change::new(self.layout, rule, self.input, row, version)?;
                if rule.create && rule.add.is_none() && self.insert_cells(key, version, false, row, &change)? {
                    return Ok(Some(Changed { id: self.connection.last_insert_rowid(), existed: false, created: true }));
                }
                self.merge(key, &change, row)
            }
        }
    }

    fn insert_plain(&self, row: usize, key: &str, version: i64, gone: bool) -> Result<Option<Changed>, StoreError> {
        let at = fault(self.store);
        let mut statement = self.connection.prepare_cached(&self.insert).map_err(at)?;
        self.bind_hidden(&mut statement, key, version, gone, row)?;
        for column in 0..self.layout.columns.len() {
            statement.raw_bind_parameter(column + HIDDEN, self.input.cell(column, row)).map_err(at)?;
        }
        let count = statement.raw_execute().map_err(at)?;
        Ok((count > 0).then(|| Changed { id: self.connection.last_insert_rowid(), existed: false, created: true }))
    }

    fn bind_hidden(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        key: &str,
        version: i64,
        gone: bool,
        row: usize,
    ) -> Result<(), StoreError> {
        let at = fault(self.store);
        statement.raw_bind_parameter(1, key).map_err(at)?;
        statement.raw_bind_parameter(2, version).map_err(at)?;
        statement.raw_bind_parameter(3, gone).map_err(at)?;
        statement.raw_bind_parameter(4, self.input.arrival(row)).map_err(at)?;
        statement.raw_bind_parameter(5, rusqlite::types::Null).map_err(at)?;
        statement.raw_bind_parameter(6, rusqlite::types::Null).map_err(at)?;
        Ok(())
    }

    /// A row made by a `create`, where there is none yet.
    fn insert_cells(&self, key: &str, version: i64, gone: bool, row: usize, change: &Change<'_>) -> Result<bool, StoreError> {
        let at = fault(self.store);
        let mut statement = self.connection.prepare_cached(&self.insert).map_err(at)?;
        self.bind_hidden(&mut statement, key, version, gone, row)?;
        for (column, cell) in change.cells.iter().enumerate() {
            statement.raw_bind_parameter(column + HIDDEN, cell.as_ref().unwrap_or(&Cell::Null)).map_err(at)?;
        }
        Ok(statement.raw_execute().map_err(at)? > 0)
    }

    /// Reads the row, changes it, writes it back.
    fn merge(&self, key: &str, change: &Change<'_>, row: usize) -> Result<Option<Changed>, StoreError> {
        let at = fault(self.store);
        let table = self.layout.table();
        let names: Vec<String> = self.layout.columns.iter().map(|c| quoted(&c.name)).collect();
        let mut merged = {
            let sql = format!("SELECT _id, _k, _v, _gone, _arr, _vs, _sets, {} FROM {table} WHERE _k = ?1", names.join(", "));
            let mut select = self.connection.prepare_cached(&sql).map_err(at)?;
            let mut rows = select.query([key]).map_err(at)?;
            match rows.next().map_err(at)? {
                Some(row) => Merged::read(row, self.layout).map_err(at)?,
                None => Merged::empty(self.layout.columns.len()),
            }
        };
        if !merged.apply(change, self.layout) {
            return Ok(None);
        }
        merged.arrival = merged.arrival.max(self.input.arrival(row));
        let holes: Vec<String> = (0..names.len()).map(|i| format!("?{}", i + 8)).collect();
        let sql = format!(
            "INSERT OR REPLACE INTO {table}(_id, _k, _v, _gone, _arr, _vs, _sets, {}) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, {})",
            names.join(", "),
            holes.join(", ")
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(at)?;
        statement.raw_bind_parameter(1, merged.id).map_err(at)?;
        statement.raw_bind_parameter(2, key).map_err(at)?;
        statement.raw_bind_parameter(3, merged.base).map_err(at)?;
        statement.raw_bind_parameter(4, !merged.shown).map_err(at)?;
        statement.raw_bind_parameter(5, merged.arrival).map_err(at)?;
        statement.raw_bind_parameter(6, merged.versions_text(self.layout)).map_err(at)?;
        statement.raw_bind_parameter(7, merged.sets_text(self.layout)).map_err(at)?;
        for (column, value) in merged.values.iter().enumerate() {
            statement.raw_bind_parameter(column + 8, value).map_err(at)?;
        }
        statement.raw_execute().map_err(at)?;
        let existed = merged.id.is_some();
        Ok(Some(Changed { id: merged.id.unwrap_or_else(|| self.connection.last_insert_rowid()), existed, created: false }))
    }
}
