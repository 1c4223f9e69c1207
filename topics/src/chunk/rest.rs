//! A field declared later than a chunk was written is read from the chunk's `_rest` (R12).

use crate::catalogue::FieldType;
use crate::schema::arrow_type;
use arrow::array::{
    Array, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringArray, StringBuilder,
    TimestampMicrosecondBuilder,
};
use serde_json::Value;
use std::sync::Arc;

/// The column `name` of type `ty` out of `_rest` objects `{"payload":{…}}`. A value of another
/// type gives null: it stays in `_rest`.
pub fn column_from_rest(rest: &StringArray, name: &str, ty: FieldType) -> ArrayRef {
    let values: Vec<Option<Value>> = (0..rest.len())
        .map(|row| {
            if rest.is_null(row) {
                return None;
            }
            let mut object: Value = serde_json::from_str(rest.value(row)).ok()?;
            object.get_mut("payload")?.as_object_mut()?.shift_remove(name)
        })
        .collect();
    build(&values, ty)
}

fn build(values: &[Option<Value>], ty: FieldType) -> ArrayRef {
    let values = values.iter().map(Option::as_ref);
    match ty {
        FieldType::String => Arc::new(values.map(|v| v.and_then(Value::as_str)).collect::<StringArray>()),
        FieldType::Json => Arc::new(values.map(|v| v.map(Value::to_string)).collect::<StringArray>()),
        FieldType::Int => {
            let mut out = Int64Builder::new();
            values.for_each(|v| out.append_option(v.and_then(Value::as_i64)));
            Arc::new(out.finish())
        }
        FieldType::Float => {
            let mut out = Float64Builder::new();
            values.for_each(|v| out.append_option(v.and_then(Value::as_f64)));
            Arc::new(out.finish())
        }
        FieldType::Bool => {
            let mut out = BooleanBuilder::new();
            values.for_each(|v| out.append_option(v.and_then(Value::as_bool)));
            Arc::new(out.finish())
        }
        FieldType::Timestamp => {
            let mut out = TimestampMicrosecondBuilder::new().with_data_type(arrow_type(ty));
            values.for_each(|v| {
                let time = v.and_then(Value::as_str).and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok());
                out.append_option(time.map(|t| t.timestamp_micros()));
            });
            Arc::new(out.finish())
        }
        FieldType::StringList => {
            let mut out = ListBuilder::new(StringBuilder::new());
            for value in values {
                let items = value.and_then(Value::as_array).filter(|items| items.iter().all(Value::is_string));
                for item in items.into_iter().flatten() {
                    out.values().append_option(item.as_str());
                }
                out.append(items.is_some());
            }
            Arc::new(out.finish())
        }
    }
}
