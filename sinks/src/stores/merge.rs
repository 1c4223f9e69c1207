//! The row of `mode = "merge"`: each column holds what its newest record said.
//!
//! Pure: no SQL is spoken here. `base` is the version of the newest `create`; a column whose
//! version is higher is in `versions`. An element of a set is seen while it is newer than `base`.

use super::cells::{Cell, time_text};
use super::layout::Layout;
use super::remote::Stored;
use super::rows::{HIDDEN, Input};
use super::rules::{Rule, SetTo};
use crate::store::StoreError;
use quikflow_topics::catalogue::FieldType;
use rusqlite::types::Value;
use std::collections::BTreeMap;

/// What one record does to its row.
pub(crate) struct Change<'a> {
    /// The record's version.
    pub(crate) version: i64,
    /// Per column, what it is set to; `None`: not touched.
    pub(crate) cells: Vec<Option<Cell<'a>>>,
    create: bool,
    shows: bool,
    /// (column, element's identity, element).
    add: Option<(usize, String, serde_json::Value)>,
}

impl<'a> Change<'a> {
    /// What `rule` says of a record.
    pub(crate) fn new(
        layout: &Layout,
        rule: &Rule,
        input: &Input<'a>,
        row: usize,
        version: i64,
    ) -> Result<Change<'a>, StoreError> {
        let mut cells: Vec<Option<Cell<'a>>> = Vec::with_capacity(layout.columns.len());
        for (i, column) in layout.columns.iter().enumerate() {
            let Some(source) = &column.source else {
                let empty = if column.ty == FieldType::Json { Cell::Text("[]".into()) } else { Cell::Null };
                cells.push(rule.create.then_some(empty));
                continue;
            };
            if rule.create {
                cells.push(Some(input.cell(i, row)));
                continue;
            }
            let field = !source.starts_with('_');
            let key = layout.key_columns.contains(&i);
            let taken = key || (field && rule.columns.as_ref().is_none_or(|c| c.contains(&column.name)));
            let cell = input.cell(i, row);
            cells.push((taken && !cell.is_null()).then_some(cell));
        }
        // A row whose `create` has not come still has a place in time.
        for (name, to) in &rule.set {
            if let Some(at) = layout.column(name) {
                cells[at] = Some(match to {
                    SetTo::Bool(b) => Cell::Int(i64::from(*b)),
                    SetTo::Text(t) => Cell::Text(t.clone().into()),
                    SetTo::EventTime => Cell::Int(input.event_time(row)),
                });
            }
        }
        if rule.shows && !rule.create && cells[layout.time].is_none() {
            cells[layout.time] = Some(Cell::Int(input.event_time(row)));
        }
        if let Some(at) = rule.changes.as_ref().and_then(|c| layout.column(c))
            && let Cell::Text(text) = input.cell(at, row)
            && let Ok(serde_json::Value::Object(changes)) = serde_json::from_str(&text)
        {
            for (name, value) in changes {
                if let Some(at) = layout.column(&name).filter(|at| !layout.key_columns.contains(at)) {
                    cells[at] = Some(json_cell(layout.columns[at].ty, value));
                }
            }
        }
        let add = rule.add.as_ref().and_then(|(name, fields)| {
            let at = layout.column(name)?;
            let mut element = serde_json::Map::new();
            let mut identity = String::new();
            for field in fields {
                let column = layout.column(field)?;
                if !identity.is_empty() {
                    identity.push('\u{1f}');
                }
                if let Cell::Text(text) = input.cell(column, row) {
                    identity.push_str(&text);
                    element.insert(field.clone(), serde_json::Value::String(text.into_owned()));
                }
            }
            element.insert("at".into(), serde_json::Value::String(time_text(input.event_time(row))));
            Some((at, identity, serde_json::Value::Object(element)))
        });
        Ok(Change { version, cells, create: rule.create, shows: rule.shows, add })
    }
}

fn json_cell<'a>(ty: FieldType, value: serde_json::Value) -> Cell<'a> {
    match (ty, value) {
        (_, serde_json::Value::Null) => Cell::Null,
        (FieldType::String, serde_json::Value::String(text)) => Cell::Text(text.into()),
        (FieldType::Bool, serde_json::Value::Bool(b)) => Cell::Int(i64::from(b)),
        (FieldType::Int, serde_json::Value::Number(n)) => n.as_i64().map_or(Cell::Null, Cell::Int),
        (FieldType::Float, serde_json::Value::Number(n)) => n.as_f64().map_or(Cell::Null, Cell::Real),
        (FieldType::Timestamp, serde_json::Value::String(text)) => {
            chrono::DateTime::parse_from_rfc3339(&text).map_or(Cell::Null, |t| Cell::Int(t.timestamp_micros()))
        }
        (_, other) => Cell::Text(other.to_string().into()),
    }
}

/// By identity: the version and the element.
type Elements = BTreeMap<String, (i64, serde_json::Value)>;
type Sets = BTreeMap<usize, Elements>;

/// A row as stored.
pub(crate) struct Merged {
    /// None: not stored yet.
    pub(crate) id: Option<i64>,
    /// Version of the newest `create`; -1 before one.
    pub(crate) base: i64,
    /// Whether readers see it.
    pub(crate) shown: bool,
    /// Newest arrival, in microseconds.
    pub(crate) arrival: i64,
    /// The visible columns.
    pub(crate) values: Vec<Value>,
    versions: BTreeMap<usize, i64>,
    sets: Sets,
}

impl Merged {
    /// No row yet.
    pub(crate) fn empty(columns: usize) -> Merged {
        Merged {
            id: None,
            base: -1,
            shown: false,
            arrival: i64::MIN,
            values: vec![Value::Null; columns],
            versions: BTreeMap::new(),
            sets: Sets::new(),
        }
    }

    /// From the hidden columns and then the visible ones, in the layout's order.
    pub(crate) fn read(row: &rusqlite::Row<'_>, layout: &Layout) -> rusqlite::Result<Merged> {
        let stored = Stored {
            key: row.get(1)?,
            base: row.get(2)?,
            gone: row.get(3)?,
            arrival: row.get(4)?,
            revision: 0,
            versions: row.get(5)?,
            sets: row.get(6)?,
            values: (0..layout.columns.len()).map(|i| row.get(HIDDEN + i)).collect::<rusqlite::Result<_>>()?,
        };
        let merged = Merged::of(layout, &stored).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        Ok(Merged { id: Some(row.get(0)?), ..merged })
    }

    /// From a row as a store holds it.
    pub(crate) fn of(layout: &Layout, row: &Stored) -> serde_json::Result<Merged> {
        let versions: BTreeMap<String, i64> =
            row.versions.as_deref().map_or_else(|| Ok(BTreeMap::new()), serde_json::from_str)?;
        let sets: BTreeMap<String, Elements> = row.sets.as_deref().map_or_else(|| Ok(BTreeMap::new()), serde_json::from_str)?;
        Ok(Merged {
            id: Some(0),
            base: row.base,
            shown: !row.gone,
            arrival: row.arrival,
            versions: versions.into_iter().filter_map(|(name, v)| Some((layout.column(&name)?, v))).collect(),
            sets: sets.into_iter().filter_map(|(name, set)| Some((layout.column(&name)?, set))).collect(),
            values: row.values.clone(),
        })
    }

    /// Applies a record; false: all that it says is older than what is here.
    pub(crate) fn apply(&mut self, change: &Change<'_>, layout: &Layout) -> bool {
        let mut moved = false;
        let version_of = |this: &Merged, column: usize| this.versions.get(&column).copied().unwrap_or(this.base);
        if change.create {
            if change.version <= self.base {
                return false;
            }
            moved = true;
        }
        for (column, cell) in change.cells.iter().enumerate() {
            let Some(cell) = cell else { continue };
            if self.id.is_some() && layout.key_columns.contains(&column) {
                continue;
            }
            if change.version > version_of(self, column) {
                self.values[column] = cell.clone().into_value();
                moved = true;
                if change.create {
                    self.versions.remove(&column);
                } else {
                    self.versions.insert(column, change.version);
                }
            }
        }
        if change.create {
            self.base = change.version;
            let base = self.base;
            self.versions.retain(|_, version| *version > base);
            for elements in self.sets.values_mut() {
                elements.retain(|_, (version, _)| *version > base);
            }
        }
        if let Some((column, identity, element)) = &change.add
            && change.version > self.base
        {
            let elements = self.sets.entry(*column).or_default();
            if elements.get(identity).is_none_or(|(version, _)| change.version > *version) {
                elements.insert(identity.clone(), (change.version, element.clone()));
                moved = true;
            }
        }
        if moved {
            for (column, elements) in &self.sets {
                let list: Vec<&serde_json::Value> = elements.values().map(|(_, element)| element).collect();
                if let Ok(text) = serde_json::to_string(&list)
                    && layout.columns.len() > *column
                {
                    self.values[*column] = Value::Text(text);
                }
            }
        }
        if change.shows && !self.shown {
            self.shown = true;
            moved = true;
        }
        moved
    }

    /// `_vs`.
    pub(crate) fn versions_text(&self, layout: &Layout) -> Option<String> {
        let named: BTreeMap<&str, i64> = self.versions.iter().map(|(at, v)| (layout.columns[*at].name.as_str(), *v)).collect();
        if named.is_empty() { None } else { serde_json::to_string(&named).ok() }
    }

    /// `_sets`.
    pub(crate) fn sets_text(&self, layout: &Layout) -> Option<String> {
        let named: BTreeMap<&str, &Elements> = self
            .sets
            .iter()
            .filter(|(_, elements)| !elements.is_empty())
            .map(|(at, elements)| (layout.columns[*at].name.as_str(), elements))
            .collect();
        if named.is_empty() { None } else { serde_json::to_string(&named).ok() }
    }
}
