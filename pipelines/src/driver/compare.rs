//! Expected rows against what is in a topic.

use super::run::VirtualEngine;
use crate::engine::EngineError;
use crate::memory::MemoryBroker;
use crate::topology::cases::{ExpectedRow, TestCase, parse_time};
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray, new_null_array,
};
use quikflow_topics::catalogue::{FieldType, TopicSpec};
use quikflow_topics::ids::EventTime;
use quikflow_topics::schema::{EVENT_TIME, KEY, TYPE, arrow_type};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// A row by its columns; times are microseconds.
pub type Row = BTreeMap<String, Json>;

/// What differs, line by line; empty when nothing does.
pub(super) fn compare(engine: &VirtualEngine, broker: &MemoryBroker, case: &TestCase) -> Result<String, EngineError> {
    let mut diff = String::new();
    let plan = engine.plan();
    let Some(at) = plan.topologies.iter().position(|topology| topology.name == case.topology) else {
        return Ok(format!("unknown topology `{}`\n", case.topology));
    };
    let topology = &plan.topologies[at];
    let books = &engine.books()[at];
    for (what, expected, found) in
        [("late records", case.expect_late, books.late), ("dead letters", case.expect_dead, books.dead)]
    {
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            line(&mut diff, format_args!("expected {expected} {what}, found {found}"));
        }
    }
    for wrong in engine.unbalanced() {
        line(&mut diff, format_args!("the accounts do not balance: {wrong}"));
    }
    let mut names: Vec<&str> = match &case.expect_to {
        Some(topic) => vec![topic],
        None => topology.outputs.iter().map(|output| output.topic.name.as_str()).collect(),
    };
    names.sort_unstable();
    names.dedup();
    let counted_only = case.expect.is_empty() && (case.expect_late.is_some() || case.expect_dead.is_some());
    if counted_only {
        return Ok(diff);
    }
    let mut found = Vec::new();
    for name in &names {
        found.extend(rows_of(&broker.records(name)?));
    }
    let mut missing: Vec<&ExpectedRow> = Vec::new();
    let mut wanted: Vec<&ExpectedRow> = case.expect.iter().collect();
    // The most particular first, so that a vague one does not take its row.
    wanted.sort_by_key(|row| std::cmp::Reverse(row.columns.len()));
    for row in wanted {
        match found.iter().position(|found| fits(row, found)) {
            Some(at) => drop(found.remove(at)),
            None => missing.push(row),
        }
    }
    if missing.is_empty() && found.is_empty() {
        return Ok(diff);
    }
    line(&mut diff, format_args!("in {}:", names.join(", ")));
    let columns: Vec<&str> = case.expect.iter().flat_map(|row| row.columns.iter().map(|(name, _)| name.as_str())).collect();
    for row in missing {
        let cells: Vec<String> = row.columns.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        line(&mut diff, format_args!("- {}", cells.join(", ")));
    }
    for row in found {
        let shown = |name: &str| columns.is_empty() && !name.starts_with('_') || columns.contains(&name);
        let cells: Vec<String> = row.iter().filter(|(name, _)| shown(name)).map(|(name, value)| cell(name, value)).collect();
        line(&mut diff, format_args!("+ {}", cells.join(", ")));
    }
    Ok(diff)
}

fn line(diff: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    writeln!(diff, "{text}").ok();
}

fn cell(name: &str, value: &Json) -> String {
    let time = name == EVENT_TIME || name.ends_with("_start") || name.ends_with("_end") || name.ends_with("_time");
    match value.as_i64().filter(|_| time).and_then(chrono::DateTime::from_timestamp_micros) {
        Some(time) => format!("{name} = \"{}\"", time.format("%Y-%m-%dT%H:%M:%S%.fZ")),
        None => format!("{name} = {value}"),
    }
}

fn fits(expected: &ExpectedRow, found: &Row) -> bool {
    expected.columns.iter().all(|(name, value)| {
        let system = match name.as_str() {
            "key" => KEY,
            "type" => TYPE,
            "event_time" => EVENT_TIME,
            other => other,
        };
        let found = found.get(name).or_else(|| found.get(system)).unwrap_or(&Json::Null);
        same(value, found)
    })
}

fn same(expected: &Json, found: &Json) -> bool {
    match (expected, found) {
        (Json::Number(a), Json::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0),
            _ => a == b,
        },
        (Json::String(text), Json::Number(micros)) => parse_time(text).is_some_and(|time| micros.as_i64() == Some(time.0)),
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Object(_) | Json::Array(_), Json::String(text)) => {
            serde_json::from_str::<Json>(text).is_ok_and(|found| found == *expected)
        }
        _ => expected == found,
    }
}

/// The rows of a topic. Where rows are updates of windows (they have `final`), each window's and
/// key's last one.
pub fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let schema = batch.schema();
    let rows = (0..batch.num_rows()).map(|row| {
        let cells = schema.fields().iter().zip(batch.columns());
        cells.map(|(field, column)| (field.name().clone(), value(column, row))).collect::<Row>()
    });
    if schema.field_with_name("final").is_err() || schema.field_with_name("window_start").is_err() {
        return rows.collect();
    }
    let mut last: BTreeMap<(String, String), Row> = BTreeMap::new();
    for row in rows {
        let name = |column: &str| row.get(column).map(ToString::to_string).unwrap_or_default();
        last.insert((name("window_start"), name(KEY)), row);
    }
    last.into_values().collect()
}

fn value(column: &ArrayRef, row: usize) -> Json {
    if column.is_null(row) {
        return Json::Null;
    }
    let any = column.as_any();
    if let Some(column) = any.downcast_ref::<StringArray>() {
        column.value(row).into()
    } else if let Some(column) = any.downcast_ref::<Int64Array>() {
        column.value(row).into()
    } else if let Some(column) = any.downcast_ref::<Float64Array>() {
        column.value(row).into()
    } else if let Some(column) = any.downcast_ref::<BooleanArray>() {
        column.value(row).into()
    } else if let Some(column) = any.downcast_ref::<TimestampMicrosecondArray>() {
        column.value(row).into()
    } else if let Some(column) = any.downcast_ref::<ListArray>() {
        let items = column.value(row);
        (0..items.len()).map(|item| value(&items, item)).collect()
    } else {
        // Partitions and offsets.
        arrow::util::display::array_value_to_string(column, row)
            .ok()
            .and_then(|text| text.parse().ok().map(|n: u64| n.into()))
            .unwrap_or(Json::Null)
    }
}

/// One row of a topic of rows, in its `append_schema`, from its columns as JSON.
pub(super) fn row_of(topic: &TopicSpec, at: EventTime, columns: &Map<String, Json>) -> Result<RecordBatch, String> {
    if let Some(unknown) = columns.keys().find(|name| topic.field(name).is_none()) {
        return Err(format!("topic `{}` has no column `{unknown}`", topic.name));
    }
    let schema = topic.append_schema();
    let cells: Result<Vec<ArrayRef>, String> = schema
        .fields()
        .iter()
        .map(|field| -> Result<ArrayRef, String> {
            match (field.name().as_str(), topic.field(field.name())) {
                (EVENT_TIME, _) => Ok(Arc::new(TimestampMicrosecondArray::from(vec![at.0]).with_timezone("UTC"))),
                (TYPE, _) => Ok(Arc::new(StringArray::from(vec![crate::engine::output::ROW]))),
                (name, Some(spec)) => {
                    let value = columns.get(name).unwrap_or(&Json::Null);
                    column_of(spec.ty, value).ok_or_else(|| format!("column `{name}` cannot be {value}"))
                }
                _ => Ok(new_null_array(field.data_type(), 1)),
            }
        })
        .collect();
    RecordBatch::try_new(schema, cells?).map_err(|error| error.to_string())
}

fn column_of(ty: FieldType, value: &Json) -> Option<ArrayRef> {
    if value.is_null() {
        return Some(new_null_array(&arrow_type(ty), 1));
    }
    Some(match ty {
        FieldType::String => Arc::new(StringArray::from(vec![value.as_str()?])),
        FieldType::Json => Arc::new(StringArray::from(vec![value.to_string()])),
        FieldType::Int => Arc::new(Int64Array::from(vec![value.as_i64()?])),
        FieldType::Float => Arc::new(Float64Array::from(vec![value.as_f64()?])),
        FieldType::Bool => Arc::new(BooleanArray::from(vec![value.as_bool()?])),
        FieldType::Timestamp => {
            Arc::new(TimestampMicrosecondArray::from(vec![parse_time(value.as_str()?)?.0]).with_timezone("UTC"))
        }
        FieldType::StringList => {
            let mut list = ListBuilder::new(StringBuilder::new());
            for item in value.as_array()? {
                list.values().append_value(item.as_str()?);
            }
            list.append(true);
            Arc::new(list.finish())
        }
    })
}
