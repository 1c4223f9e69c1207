//! Rows as JSON objects.

use crate::cells::{Cells, quote};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

/// `[{"name":…,"type":…,"nullable":…}, …]`
pub fn columns(schema: &SchemaRef) -> serde_json::Value {
    let one = |f: &arrow::datatypes::FieldRef| serde_json::json!({"name": f.name(), "type": type_name(f.data_type()), "nullable": f.is_nullable()});
    schema.fields().iter().map(one).collect()
}

fn type_name(ty: &DataType) -> String {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "int".to_owned(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => "int".to_owned(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "float".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::List(field) => format!("list<{}>", type_name(field.data_type())),
        DataType::Dictionary(_, value) => type_name(value),
        other => other.to_string().to_lowercase(),
    }
}

/// Appends a batch's rows as objects, separated by commas (with one before the first when `more`).
///
/// # Errors
/// Arrow's, when a value cannot be shown.
pub fn rows(batch: &RecordBatch, more: bool, out: &mut String) -> Result<(), ArrowError> {
    let cells: Result<Vec<Cells>, ArrowError> = batch.columns().iter().map(|c| Cells::of(c.as_ref())).collect();
    let cells = cells?;
    let names: Vec<String> = batch
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let mut name = String::new();
            quote(field.name(), &mut name);
            name
        })
        .collect();
    for row in 0..batch.num_rows() {
        out.push_str(if more || row > 0 { ",\n{" } else { "\n{" });
        for (i, (name, cell)) in names.iter().zip(&cells).enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(name);
            out.push(':');
            cell.json(row, out)?;
        }
        out.push('}');
    }
    Ok(())
}
