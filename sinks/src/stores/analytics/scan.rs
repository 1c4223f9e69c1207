//! Reading a table: columns wanted, blocks that the range of time touches, one row a key.

use super::super::file::{Reader, StoreFile, progress};
use super::super::layout::Layout;
use super::super::read::{schema, wanted};
use super::merge::Merge;
use super::part;
use crate::store::{Scan, ScanRequest, StoreError};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use std::sync::Arc;

/// The rows that arrived at `before` or later.
pub(crate) fn unexpired(columns: Vec<ArrayRef>, arrival: usize, before: i64) -> Result<Vec<ArrayRef>, StoreError> {
    if before == i64::MIN {
        return Ok(columns);
    }
    let keep: BooleanArray =
        columns[arrival].as_primitive::<Int64Type>().iter().map(|a| Some(a.is_some_and(|a| a >= before))).collect();
    keep_rows(columns, &keep)
}

fn keep_rows(columns: Vec<ArrayRef>, keep: &BooleanArray) -> Result<Vec<ArrayRef>, StoreError> {
    if keep.true_count() == keep.len() {
        return Ok(columns);
    }
    columns.iter().map(|c| filter(c, keep).map_err(|e| part::arrow_error(&e))).collect()
}

/// Reads a table.
pub(crate) fn scan(file: &StoreFile, layout: &Arc<Layout>, request: &ScanRequest) -> Result<Scan, StoreError> {
    let columns = wanted(layout, request.columns.as_deref())?;
    let reader = file.reader()?;
    let connection = reader.get()?;
    let as_of = progress(connection, file.name, &layout.sink.name)?.positions;
    let expired: i64 = connection
        .prepare_cached("SELECT expired_before FROM _sinks WHERE name = ?1")
        .and_then(|mut s| s.query_row([&layout.sink.name], |r| r.get(0)))
        .map_err(super::fault(file.name))?;
    let shape = part::Shape::new(layout);
    let from = request.from.map_or(i64::MIN, |t| t.0);
    let to = request.to.map_or(i64::MAX, |t| t.0.saturating_sub(1));
    // Where the key does not hold the time, a newer version may lie outside the range.
    let range = if shape.timed { (from, to) } else { (i64::MIN, i64::MAX) };
    let mut read = columns.clone();
    let expires = layout.sink.ttl.is_some() && expired > 0;
    if expires {
        read.push(shape.arrival());
    }
    let merge = Merge::new(layout, part::parts(connection, &layout.sink.name, range.0, range.1)?, &read, range, &request.equals)?;
    let place = |stored: usize| merge.read.iter().position(|c| *c == stored).unwrap_or(0);
    let (time, arrival) = (place(shape.time), place(shape.arrival()));
    let out = Arc::new(schema(layout).project(&columns).map_err(|e| part::arrow_error(&e))?);
    let bounded = request.from.is_some() || request.to.is_some();
    let batches = ScanIter {
        reader,
        merge,
        width: columns.len(),
        schema: out.clone(),
        range: bounded.then_some((from, to)),
        time,
        expired: expires.then_some((arrival, expired)),
        rest: None,
        done: false,
    };
    Ok(Scan { schema: out, as_of, batches: Box::new(batches) })
}

struct ScanIter {
    reader: Reader,
    merge: Merge,
    width: usize,
    schema: SchemaRef,
    range: Option<(i64, i64)>,
    time: usize,
    expired: Option<(usize, i64)>,
    rest: Option<RecordBatch>,
    done: bool,
}

impl ScanIter {
    fn step(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        loop {
            if let Some(rest) = self.rest.take() {
                if rest.num_rows() > part::BLOCK {
                    self.rest = Some(rest.slice(part::BLOCK, rest.num_rows() - part::BLOCK));
                    return Ok(Some(rest.slice(0, part::BLOCK)));
                }
                return Ok(Some(rest));
            }
            let Some(mut columns) = self.merge.step(self.reader.get()?)? else { return Ok(None) };
            if let Some((arrival, before)) = self.expired {
                columns = unexpired(columns, arrival, before)?;
            }
            if let Some((from, to)) = self.range {
                let times = columns[self.time].as_primitive::<TimestampMicrosecondType>();
                let keep: BooleanArray = times.iter().map(|t| Some(t.is_some_and(|t| t >= from && t <= to))).collect();
                columns = keep_rows(columns, &keep)?;
            }
            let rows = columns.first().map_or(0, |c| c.len());
            if rows > 0 {
                columns.truncate(self.width);
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
                self.rest = Some(batch.map_err(|e| part::arrow_error(&e))?);
            }
        }
    }
}

impl Iterator for ScanIter {
    type Item = Result<RecordBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.step().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
