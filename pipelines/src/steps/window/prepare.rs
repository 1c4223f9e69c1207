//! Runs where the rows are: computes the group's key and the aggregates' arguments once, and keeps
//! nothing else.

use super::super::common::{ORIGINS, batch, broken, evaluate, is_true};
use super::super::keys::{KeyCodec, hash, hash_wide};
use crate::expr::Expr;
use crate::operator::{Emit, KEY_HASH, OperatorError, Rows, Stateless};
use arrow::array::{Array, ArrayRef, BinaryBuilder, Decimal128Array, UInt64Array};
use arrow::compute::{is_not_null, nullif};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use std::sync::Arc;

/// What becomes of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// True where it is not null.
    Present,
    /// A 128-bit hash of the value, null where it is null.
    Hash,
    /// The value itself.
    Value,
}

/// A column for one or more aggregates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    /// Which expression; none for `count(*) filter (…)`.
    pub(crate) expr: Option<usize>,
    /// Which expression decides whether the row takes part.
    pub(crate) filter: Option<usize>,
    /// What becomes of it.
    pub(crate) form: Form,
}

/// Rows → origin columns, `_group` (the key's bytes), arguments, `_key_hash`.
#[derive(Clone)]
pub(crate) struct Prepare {
    step: String,
    /// The group columns' expressions, then the arguments', then the filters', each once.
    exprs: Vec<Expr>,
    keys: usize,
    codec: KeyCodec,
    arguments: Vec<Argument>,
    schema: Arc<Schema>,
}

impl Prepare {
    /// `exprs` begins with the group columns, whose types are the codec's.
    pub(crate) fn new(step: &str, exprs: Vec<Expr>, codec: KeyCodec, arguments: Vec<Argument>) -> Prepare {
        let mut fields: Vec<FieldRef> = [
            quikflow_topics::schema::PARTITION,
            quikflow_topics::schema::OFFSET,
            quikflow_topics::schema::EVENT_TIME,
            quikflow_topics::schema::WATERMARK,
        ]
        .map(|name| Arc::new(quikflow_topics::schema::system_field(name)))
        .to_vec();
        fields.push(Arc::new(Field::new("_group", DataType::Binary, false)));
        for (index, argument) in arguments.iter().enumerate() {
            let ty = match (argument.form, argument.expr) {
                (Form::Present, _) | (_, None) => DataType::Boolean,
                (Form::Hash, _) => Decimal128Array::from(Vec::<Option<i128>>::new()).data_type().clone(),
                (Form::Value, Some(expr)) => exprs[expr].data_type.clone(),
            };
            fields.push(Arc::new(Field::new(format!("_argument_{index}"), ty, true)));
        }
        fields.push(Arc::new(Field::new(KEY_HASH, DataType::UInt64, false)));
        let keys = codec.types().len();
        Prepare { step: step.to_owned(), exprs, keys, codec, arguments, schema: Arc::new(Schema::new(fields)) }
    }

    fn argument(&self, argument: &Argument, values: &[ArrayRef]) -> Result<ArrayRef, OperatorError> {
        let failed = |e| broken(&self.step, e);
        let filter = argument.filter.map(|filter| is_true(&self.step, &values[filter])).transpose()?;
        let Some(expr) = argument.expr else {
            return filter.map(|f| Arc::new(f) as ArrayRef).ok_or_else(|| broken(&self.step, "an argument without a value"));
        };
        let mut value = values[expr].clone();
        if let Some(filter) = filter {
            let left_out = arrow::compute::not(&filter).map_err(failed)?;
            value = nullif(&value, &left_out).map_err(failed)?;
        }
        Ok(match argument.form {
            Form::Present => Arc::new(is_not_null(&value).map_err(failed)?) as ArrayRef,
            Form::Value => value,
            Form::Hash => {
                let codec = KeyCodec::new(vec![value.data_type().clone()]);
                let columns = [value];
                let encoder = codec.encoder(&columns).map_err(|e| broken(&self.step, e))?;
                let mut bytes = Vec::new();
                let hashes = (0..columns[0].len()).map(|row| {
                    columns[0].is_valid(row).then(|| {
                        bytes.clear();
                        encoder.encode(row, &mut bytes);
                        hash_wide(&bytes) as i128
                    })
                });
                Arc::new(hashes.collect::<Decimal128Array>())
            }
        })
    }
}

impl Stateless for Prepare {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let exprs: Vec<&Expr> = self.exprs.iter().collect();
        let (rows, values) = evaluate(&self.step, &exprs, rows, emit)?;
        let total = rows.batch.num_rows();
        if total == 0 {
            return Ok(());
        }
        let encoder = self.codec.encoder(&values[..self.keys]).map_err(|e| broken(&self.step, e))?;
        let mut groups = BinaryBuilder::with_capacity(total, total * 16);
        let mut hashes = Vec::with_capacity(total);
        let mut key = Vec::new();
        for row in 0..total {
            key.clear();
            encoder.encode(row, &mut key);
            hashes.push(hash(&key));
            groups.append_value(&key);
        }
        let mut columns: Vec<ArrayRef> = rows.batch.columns()[..ORIGINS].to_vec();
        columns.push(Arc::new(groups.finish()));
        for argument in &self.arguments {
            columns.push(self.argument(argument, &values)?);
        }
        columns.push(Arc::new(UInt64Array::from(hashes)));
        // Rows that only move on are nobody's output: no `Emit::push`, which counts.
        emit.rows.push((0, Rows { source: rows.source, batch: batch(&self.step, &self.schema, columns)? }));
        Ok(())
    }
}
