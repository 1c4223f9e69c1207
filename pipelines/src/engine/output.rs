//! Rows of a stream become rows of a topic.

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use quikflow_topics::schema::TYPE;
use std::sync::Arc;

/// The type of records that are rows.
pub const ROW: &str = "ROW";

/// Turns a stream's rows into `schema` (a topic's `append_schema`): columns by name, `_type` is
/// `ROW` where the stream has none, what the stream lacks is null.
///
/// # Errors
/// A column that must not be null and is absent, or whose type cannot become the topic's.
pub fn to_topic(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns: Result<Vec<ArrayRef>, ArrowError> = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
            Some(column) => cast(column, field.data_type()),
            None if field.name() == TYPE => {
                let rows: ArrayRef = Arc::new(StringArray::from_iter_values((0..batch.num_rows()).map(|_| ROW)));
                Ok(rows)
            }
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns?)
}
