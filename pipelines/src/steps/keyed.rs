//! What the keyed steps share: preparing rows by their key, putting an epoch's rows in order,
//! and forgetting by time.

use super::codec::{CodecError, Reader, Writer};
use super::common::{ORIGINS, Origin, batch, broken, evaluate};
use super::keys::{KeyCodec, hash};
use crate::expr::Expr;
use crate::operator::{Emit, KEY_HASH, OperatorError, Rows, Stateless};
use arrow::array::{ArrayRef, BinaryArray, BinaryBuilder, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The column that holds a prepared row's key.
const GROUP: &str = "_group";

/// Rows → some of their columns (the origin columns or all), computed ones, `_group`, `_key_hash`.
#[derive(Clone)]
pub(crate) struct KeyPrepare {
    step: String,
    keys: Vec<Expr>,
    codec: KeyCodec,
    kept: usize,
    more: Vec<Expr>,
    schema: Arc<Schema>,
    /// Rows whose key is null in every column are left out and counted as filtered.
    skip_null: bool,
}

impl KeyPrepare {
    /// Keeps the origin columns, or `all` of the input's.
    pub(crate) fn new(step: &str, input: &Schema, all: bool, keys: Vec<Expr>, more: Vec<Expr>, skip_null: bool) -> KeyPrepare {
        let kept = if all { input.fields().len() } else { ORIGINS };
        let mut fields: Vec<FieldRef> = input.fields()[..kept].to_vec();
        let computed =
            more.iter().enumerate().map(|(i, expr)| Field::new(format!("_computed_{i}"), expr.data_type.clone(), true));
        fields.extend(computed.map(Arc::new));
        fields.push(Arc::new(Field::new(GROUP, DataType::Binary, false)));
        fields.push(Arc::new(Field::new(KEY_HASH, DataType::UInt64, false)));
        let codec = KeyCodec::new(keys.iter().map(|key| key.data_type.clone()).collect());
        KeyPrepare { step: step.to_owned(), keys, codec, kept, more, schema: Arc::new(Schema::new(fields)), skip_null }
    }

    /// The schema of prepared rows.
    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }
}

impl Stateless for KeyPrepare {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let exprs: Vec<&Expr> = self.keys.iter().chain(&self.more).collect();
        let (mut rows, mut values) = evaluate(&self.step, &exprs, rows, emit)?;
        let failed = |e: String| broken(&self.step, e);
        if self.skip_null {
            let encoder = self.codec.encoder(&values[..self.keys.len()]).map_err(failed)?;
            let keep: arrow::array::BooleanArray = (0..rows.batch.num_rows()).map(|row| Some(!encoder.all_null(row))).collect();
            let left_out = keep.len() - keep.true_count();
            if left_out > 0 {
                emit.counts.filtered += left_out as u64;
                let arrow_failed = |e| broken(&self.step, e);
                rows.batch = arrow::compute::filter_record_batch(&rows.batch, &keep).map_err(arrow_failed)?;
                for value in &mut values {
                    *value = arrow::compute::filter(value, &keep).map_err(arrow_failed)?;
                }
            }
        }
        let total = rows.batch.num_rows();
        if total == 0 {
            return Ok(());
        }
        let encoder = self.codec.encoder(&values[..self.keys.len()]).map_err(failed)?;
        let mut groups = BinaryBuilder::with_capacity(total, total * 16);
        let mut hashes = Vec::with_capacity(total);
        let mut key = Vec::new();
        for row in 0..total {
            key.clear();
            encoder.encode(row, &mut key);
            hashes.push(hash(&key));
            groups.append_value(&key);
        }
        let mut columns: Vec<ArrayRef> = rows.batch.columns()[..self.kept].to_vec();
        columns.extend(values.drain(self.keys.len()..));
        columns.push(Arc::new(groups.finish()));
        columns.push(Arc::new(UInt64Array::from(hashes)));
        emit.rows.push((0, Rows { source: rows.source, batch: batch(&self.step, &self.schema, columns)? }));
        Ok(())
    }
}

/// The keys of a prepared batch and their hashes.
pub(crate) fn keys_of<'a>(step: &str, rows: &'a Rows) -> Result<(&'a BinaryArray, &'a [u64]), OperatorError> {
    let columns = rows.batch.num_columns();
    let keys = rows.batch.column(columns - 2).as_any().downcast_ref::<BinaryArray>();
    let keys = keys.ok_or_else(|| broken(step, "the key is missing"))?;
    let hashes = super::common::values::<arrow::datatypes::UInt64Type>(step, &rows.batch, columns - 1)?;
    Ok((keys, hashes))
}

/// The rows of an epoch's batches in the order of the log: (batch, row), by source, partition, offset.
/// Rows with one origin keep the order in which they came.
pub(crate) fn in_log_order(step: &str, batches: &[Rows]) -> Result<Vec<(usize, usize)>, OperatorError> {
    let mut order = Vec::with_capacity(batches.iter().map(|rows| rows.batch.num_rows()).sum());
    for (index, rows) in batches.iter().enumerate() {
        let origin = Origin::of(step, &rows.batch)?;
        order.extend((0..rows.batch.num_rows()).map(|row| (rows.source, origin.partition[row], origin.offset[row], index, row)));
    }
    order.sort_unstable();
    Ok(order.into_iter().map(|(_, _, _, index, row)| (index, row)).collect())
}

/// Batches of an epoch in the log's order, one a source: what a step emits at the epoch's end has to be,
/// so that workers' rows can be merged. Rows that come from a keyed step before come
/// in a batch of each of its workers.
pub(crate) fn in_one_order(step: &str, batches: Vec<Rows>) -> Result<Vec<Rows>, OperatorError> {
    let mut by_source: BTreeMap<u32, Vec<Rows>> = BTreeMap::new();
    for rows in batches {
        by_source.entry(rows.source).or_default().push(rows);
    }
    let mut ordered = Vec::with_capacity(by_source.len());
    for (source, mut batches) in by_source {
        if batches.len() > 1 {
            let mut starts = vec![0];
            starts.extend(batches.iter().map(|rows| rows.batch.num_rows()).scan(0, |end, rows| {
                *end += rows;
                Some(*end)
            }));
            let order = in_log_order(step, &batches)?;
            let order = order.into_iter().map(|(index, row)| (starts[index] + row) as u32);
            let all = concat_batches(&batches[0].batch.schema(), batches.iter().map(|rows| &rows.batch));
            let batch = all.and_then(|all| take_record_batch(&all, &UInt32Array::from_iter_values(order)));
            batches = vec![Rows { source, batch: batch.map_err(|e| broken(step, e))? }];
        }
        ordered.append(&mut batches);
    }
    Ok(ordered)
}

/// Things by the time after which they can be forgotten, roughly (a sixteenth of the span).
#[derive(Debug)]
pub(crate) struct Expiry<K> {
    grain: i64,
    buckets: BTreeMap<i64, Vec<K>>,
}

impl<K> Expiry<K> {
    /// `span` in microseconds.
    pub(crate) fn new(span: i64) -> Expiry<K> {
        Expiry { grain: (span / 16).max(1), buckets: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, time: i64, thing: K) {
        self.buckets.entry(time.div_euclid(self.grain)).or_default().push(thing);
    }

    /// Takes what belongs to times that all lie before `before`.
    pub(crate) fn take(&mut self, before: i64) -> Vec<K> {
        let whole = before.div_euclid(self.grain);
        let mut due = Vec::new();
        while let Some(bucket) = self.buckets.first_entry().filter(|bucket| *bucket.key() < whole) {
            due.extend(bucket.remove());
        }
        due
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.capacity() * size_of::<K>() + 48).sum()
    }
}

/// Up to where time has come for a step that remembers `reach` back: part of its state (R4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Horizon {
    /// Microseconds.
    pub(crate) reach: i64,
    /// The largest watermark of an epoch's end.
    pub(crate) watermark: i64,
    /// It has moved since state was last written.
    pub(crate) moved: bool,
}

impl Horizon {
    pub(crate) fn new(reach: i64) -> Horizon {
        Horizon { reach, watermark: i64::MIN, moved: false }
    }

    /// An epoch ends with this watermark.
    pub(crate) fn advance(&mut self, watermark: i64) {
        if watermark > self.watermark {
            self.watermark = watermark;
            self.moved = true;
        }
    }

    /// Whether a record at `time` is older than what is remembered, by the watermark of its own
    /// partition (R1) or the step's horizon.
    pub(crate) fn late(&self, time: i64, own_watermark: i64) -> bool {
        time.saturating_add(self.reach) < own_watermark.max(self.watermark)
    }

    /// What lies before this can matter to no record that is not late.
    pub(crate) fn forgotten(&self) -> i64 {
        match self.watermark {
            i64::MIN | i64::MAX => self.watermark,
            watermark => watermark.saturating_sub(self.reach).saturating_sub(self.reach),
        }
    }

    pub(crate) fn write(&mut self, out: &mut Writer) {
        self.moved = false;
        out.long(self.watermark as u64);
    }

    pub(crate) fn read(&mut self, from: &mut Reader<'_>) -> Result<(), CodecError> {
        self.watermark = self.watermark.max(from.long()? as i64);
        Ok(())
    }
}
