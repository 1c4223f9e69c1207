//! Values on their way: Arrow cells into SQLite, SQLite values into Arrow columns and JSON.

use crate::store::StoreError;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, Int64Array, Int64Builder, ListArray,
    ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, TimestampMicrosecondBuilder, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType, UInt32Type, UInt64Type};
use chrono::{DateTime, SecondsFormat};
use quikflow_topics::catalogue::FieldType;
use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use std::borrow::Cow;
use std::sync::Arc;

/// A value to be bound.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    /// Null.
    Null,
    /// Integers, booleans (0, 1), times in microseconds.
    Int(i64),
    /// Floats.
    Real(f64),
    /// Texts, JSON, lists as JSON.
    Text(Cow<'a, str>),
}

impl Cell<'_> {
    /// Whether there is no value.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Cell::Null)
    }

    /// As SQLite's own owned value.
    pub(crate) fn into_value(self) -> Value {
        match self {
            Cell::Null => Value::Null,
            Cell::Int(i) => Value::Integer(i),
            Cell::Real(r) => Value::Real(r),
            Cell::Text(t) => Value::Text(t.into_owned()),
        }
    }
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Cell::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Cell::Int(i) => ToSqlOutput::Borrowed(ValueRef::Integer(*i)),
            Cell::Real(r) => ToSqlOutput::Borrowed(ValueRef::Real(*r)),
            Cell::Text(t) => ToSqlOutput::Borrowed(ValueRef::Text(t.as_bytes())),
        })
    }
}

/// A column of a batch, typed once.
pub(crate) enum Col<'a> {
    /// The batch has no such column.
    None,
    Text(&'a StringArray),
    Int(&'a Int64Array),
    Small(&'a UInt32Array),
    Big(&'a UInt64Array),
    Real(&'a Float64Array),
    Bool(&'a BooleanArray),
    Time(&'a TimestampMicrosecondArray),
    List(&'a ListArray),
}

impl<'a> Col<'a> {
    /// The column `name` of `batch`.
    pub(crate) fn of(batch: &'a RecordBatch, name: &str) -> Result<Col<'a>, StoreError> {
        let Some(array) = batch.column_by_name(name) else { return Ok(Col::None) };
        Ok(match array.data_type() {
            DataType::Utf8 => Col::Text(array.as_string::<i32>()),
            DataType::Int64 => Col::Int(array.as_primitive::<Int64Type>()),
            DataType::UInt32 => Col::Small(array.as_primitive::<UInt32Type>()),
            DataType::UInt64 => Col::Big(array.as_primitive::<UInt64Type>()),
            DataType::Float64 => Col::Real(array.as_primitive::<Float64Type>()),
            DataType::Boolean => Col::Bool(array.as_boolean()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Col::Time(array.as_primitive::<TimestampMicrosecondType>()),
            DataType::List(_) => Col::List(array.as_list::<i32>()),
            other => return Err(StoreError::BadRequest(format!("column `{name}` has the type {other}, which no store takes"))),
        })
    }

    /// The value of a row.
    pub(crate) fn cell(&self, row: usize) -> Cell<'a> {
        let null = match self {
            Col::None => true,
            Col::Text(a) => a.is_null(row),
            Col::Int(a) => a.is_null(row),
            Col::Small(a) => a.is_null(row),
            Col::Big(a) => a.is_null(row),
            Col::Real(a) => a.is_null(row),
            Col::Bool(a) => a.is_null(row),
            Col::Time(a) => a.is_null(row),
            Col::List(a) => a.is_null(row),
        };
        if null {
            return Cell::Null;
        }
        match self {
            Col::None => Cell::Null,
            Col::Text(a) => Cell::Text(Cow::Borrowed(a.value(row))),
            Col::Int(a) => Cell::Int(a.value(row)),
            Col::Small(a) => Cell::Int(i64::from(a.value(row))),
            Col::Big(a) => Cell::Int(i64::try_from(a.value(row)).unwrap_or(i64::MAX)),
            Col::Real(a) => Cell::Real(a.value(row)),
            Col::Bool(a) => Cell::Int(i64::from(a.value(row))),
            Col::Time(a) => Cell::Int(a.value(row)),
            Col::List(a) => {
                let items = a.value(row);
                let texts: Vec<Option<&str>> = items.as_string_opt::<i32>().map_or_else(Vec::new, |i| i.iter().collect());
                Cell::Text(Cow::Owned(serde_json::to_string(&texts).unwrap_or_else(|_| "[]".into())))
            }
        }
    }

    /// Appends the value as text to a key; false where it is null.
    pub(crate) fn key_text(&self, row: usize, out: &mut String) -> bool {
        match self.cell(row) {
            Cell::Null => return false,
            Cell::Text(t) => out.push_str(&t),
            Cell::Int(i) if matches!(self, Col::Bool(_)) => out.push_str(if i == 0 { "false" } else { "true" }),
            Cell::Int(i) if matches!(self, Col::Time(_)) => out.push_str(&time_text(i)),
            Cell::Int(i) => out.push_str(&i.to_string()),
            Cell::Real(r) => out.push_str(&r.to_string()),
        }
        true
    }
}

/// Microseconds as RFC 3339 in UTC.
pub(crate) fn time_text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(|| micros.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// A stored value as JSON.
pub(crate) fn to_json(ty: FieldType, value: ValueRef<'_>) -> serde_json::Value {
    use serde_json::Value as Json;
    match (ty, value) {
        (_, ValueRef::Null | ValueRef::Blob(_)) => Json::Null,
        (FieldType::Bool, ValueRef::Integer(i)) => Json::Bool(i != 0),
        (FieldType::Timestamp, ValueRef::Integer(i)) => Json::String(time_text(i)),
        (_, ValueRef::Integer(i)) => Json::from(i),
        (_, ValueRef::Real(r)) => Json::from(r),
        (FieldType::Json | FieldType::StringList, ValueRef::Text(t)) => {
            serde_json::from_slice(t).unwrap_or_else(|_| Json::String(String::from_utf8_lossy(t).into_owned()))
        }
        (_, ValueRef::Text(t)) => Json::String(String::from_utf8_lossy(t).into_owned()),
    }
}

/// Builds one Arrow column from stored values.
pub(crate) enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Real(Float64Builder),
    Bool(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
    List(ListBuilder<StringBuilder>),
}

impl Builder {
    /// An empty column.
    pub(crate) fn new(ty: FieldType) -> Builder {
        match ty {
            FieldType::String | FieldType::Json => Builder::Text(StringBuilder::new()),
            FieldType::Int => Builder::Int(Int64Builder::new()),
            FieldType::Float => Builder::Real(Float64Builder::new()),
            FieldType::Bool => Builder::Bool(BooleanBuilder::new()),
            FieldType::Timestamp => Builder::Time(TimestampMicrosecondBuilder::new()),
            FieldType::StringList => Builder::List(ListBuilder::new(StringBuilder::new())),
        }
    }

    /// Takes a value; one of another type is null.
    pub(crate) fn push(&mut self, value: ValueRef<'_>) {
        match self {
            Builder::Text(b) => b.append_option(value.as_str_or_null().ok().flatten()),
            Builder::Int(b) => b.append_option(value.as_i64_or_null().ok().flatten()),
            Builder::Bool(b) => b.append_option(value.as_i64_or_null().ok().flatten().map(|i| i != 0)),
            Builder::Time(b) => b.append_option(value.as_i64_or_null().ok().flatten()),
            Builder::Real(b) => b.append_option(match value {
                ValueRef::Real(r) => Some(r),
                ValueRef::Integer(i) => Some(i as f64),
                _ => None,
            }),
            Builder::List(b) => {
                let items: Option<Vec<Option<String>>> =
                    value.as_str_or_null().ok().flatten().and_then(|t| serde_json::from_str(t).ok());
                for item in items.iter().flatten() {
                    b.values().append_option(item.as_deref());
                }
                b.append(items.is_some());
            }
        }
    }

    /// The column.
    pub(crate) fn finish(self) -> ArrayRef {
        match self {
            Builder::Text(mut b) => Arc::new(b.finish()),
            Builder::Int(mut b) => Arc::new(b.finish()),
            Builder::Real(mut b) => Arc::new(b.finish()),
            Builder::Bool(mut b) => Arc::new(b.finish()),
            Builder::Time(mut b) => Arc::new(b.finish().with_timezone("UTC")),
            Builder::List(mut b) => Arc::new(b.finish()),
        }
    }
}
