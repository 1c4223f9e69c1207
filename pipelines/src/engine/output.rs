//! Rows of a stream become rows of a topic.

use super::EngineError;
use super::core::{AT_THE_END, OutRows};
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, UInt32Array, UInt64Array, new_null_array};
use arrow::compute::{cast, concat_batches, take_record_batch};
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

/// Batches as one.
///
/// # Errors
/// None at all; columns that do not fit.
pub fn joined(mut batches: Vec<RecordBatch>) -> Result<RecordBatch, EngineError> {
    match batches.len() {
        1 => Ok(batches.remove(0)),
        0 => Err(EngineError::Internal("rows for a topic without any".to_owned())),
        _ => Ok(concat_batches(&batches[0].schema(), &batches)?),
    }
}

/// An epoch's rows for a topic, sorted by `seq` and `nth`, in the order in which they are written.
/// What several workers emitted at the epoch's end is brought together in the log's order, and the
/// order of each worker stays: so the order of a key holds, wherever its rows went through.
///
/// # Errors
/// Columns that do not fit.
pub fn in_order(rows: Vec<OutRows>) -> Result<RecordBatch, EngineError> {
    let mut workers: Vec<u64> = rows.iter().map(|rows| rows.seq).filter(|seq| *seq >= AT_THE_END).collect();
    workers.dedup();
    if workers.len() < 2 {
        return joined(rows.into_iter().map(|rows| rows.batch).collect());
    }
    let wrong = || EngineError::Internal("rows without their partition and offset".to_owned());
    let mut place: Vec<(u32, u32, u64)> = Vec::new();
    // Where in `place` each worker's rows at the end begin.
    let mut runs: Vec<usize> = Vec::new();
    let mut last = 0;
    for rows in &rows {
        if rows.seq >= AT_THE_END && rows.seq != last {
            runs.push(place.len());
        }
        last = rows.seq;
        let partitions = rows.places[0].as_any().downcast_ref::<UInt32Array>().ok_or_else(wrong)?;
        let offsets = rows.places[1].as_any().downcast_ref::<UInt64Array>().ok_or_else(wrong)?;
        place.extend(partitions.values().iter().zip(offsets.values()).map(|(p, o)| (rows.source, *p, *o)));
    }
    let all = joined(rows.into_iter().map(|rows| rows.batch).collect())?;
    let ends: Vec<usize> = runs.iter().skip(1).copied().chain([place.len()]).collect();
    let mut order: Vec<u32> = (0..runs[0] as u32).collect();
    let mut heads = runs;
    while let Some(next) = (0..heads.len()).filter(|run| heads[*run] < ends[*run]).min_by_key(|run| (place[heads[*run]], *run)) {
        order.push(heads[next] as u32);
        heads[next] += 1;
    }
    Ok(take_record_batch(&all, &UInt32Array::from(order))?)
}
