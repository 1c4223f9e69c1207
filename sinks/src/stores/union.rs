//! Several sinks' rows as one table: columns by name, absent ones null.

use super::layout::Layout;
use super::read;
use crate::store::{Scan, ScanRequest, StoreError};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use std::sync::Arc;

/// Whether two sinks can share a table: columns of one name have one type.
pub(crate) fn fits(one: &Layout, other: &Layout) -> bool {
    let (one, other) = (read::schema(one), read::schema(other));
    one.fields().iter().all(|f| {
        other.field_with_name(f.name()).is_ok_and(|o| o.data_type() == f.data_type()) || other.field_with_name(f.name()).is_err()
    })
}

/// All columns, those of the first sink first.
pub(crate) fn schema(layouts: &[Arc<Layout>]) -> SchemaRef {
    let mut fields: Vec<FieldRef> = Vec::new();
    for layout in layouts {
        for field in read::schema(layout).fields() {
            if !fields.iter().any(|f| f.name() == field.name()) {
                fields.push(field.clone());
            }
        }
    }
    Arc::new(Schema::new(fields))
}

/// Scans one sink after the other. `as_of` is that of the first.
pub(crate) fn scan(
    layouts: &[Arc<Layout>],
    request: &ScanRequest,
    one: impl Fn(&Arc<Layout>, &ScanRequest) -> Result<Scan, StoreError>,
) -> Result<Scan, StoreError> {
    let whole = schema(layouts);
    let out: SchemaRef = match &request.columns {
        None => whole,
        Some(names) => {
            let fields: Result<Vec<FieldRef>, _> =
                names.iter().map(|n| whole.field_with_name(n).map(|f| Arc::new(f.clone()))).collect();
            Arc::new(Schema::new(fields.map_err(|e| StoreError::BadRequest(e.to_string()))?))
        }
    };
    let mut scans = Vec::new();
    for layout in layouts {
        let has = |name: &String| layout.column(name).is_some_and(|at| at < layout.visible);
        if !request.equals.iter().all(|(name, _)| has(name)) {
            continue;
        }
        let columns = out.fields().iter().map(|f| f.name().clone()).filter(has).collect();
        scans.push(one(layout, &ScanRequest { columns: Some(columns), ..request.clone() })?);
    }
    let as_of = scans.first().map(|s| s.as_of.clone()).unwrap_or_default();
    let target = out.clone();
    let batches = scans.into_iter().flat_map(|s| s.batches).map(move |batch| widen(&batch?, &target));
    Ok(Scan { schema: out, as_of, batches: Box::new(batches) })
}

fn widen(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, StoreError> {
    let rows = batch.num_rows();
    let null = |ty| new_null_array(ty, rows);
    let columns: Vec<ArrayRef> =
        schema.fields().iter().map(|f| batch.column_by_name(f.name()).cloned().unwrap_or_else(|| null(f.data_type()))).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|e| StoreError::BadRequest(e.to_string()))
}
