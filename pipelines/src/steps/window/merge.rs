//! The stateful half of a window (R19): merges the pieces that the shares of the first half combined.
//!
//! A share's pieces and state go to one worker; several topologies go to several.

use super::super::common::{ORIGINS, Origin, batch, broken};
use super::super::keys::hash;
use super::WindowStep;
use super::apply::Apply;
use super::combine::opened;
use crate::expr::StreamSchema;
use crate::operator::{
    DeadRow, Due, Emit, EpochTime, KEY_GROUPS, KEY_HASH, Keyed, LateRow, Operator, OperatorError, Rows, Stateless,
};
use crate::step::Step;
use crate::steps::{PIECE, piece_schema};
use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The step.
pub(super) struct MergeStep {
    pub(super) window: WindowStep,
}

impl Step for MergeStep {
    fn outputs(&self) -> Vec<StreamSchema> {
        self.window.outputs()
    }

    fn build(&self) -> Operator {
        let place = hash(self.window.name.as_bytes());
        let mut fields: Vec<FieldRef> = piece_schema(false).fields().to_vec();
        fields.push(Arc::new(Field::new(KEY_HASH, DataType::UInt64, false)));
        let prepare = Pieces { step: self.window.name.clone(), place, schema: Arc::new(Schema::new(fields)) };
        Operator::Keyed { prepare: vec![Box::new(prepare)], apply: Box::new(Merge { apply: self.window.apply(), place }) }
    }

    fn fingerprint(&self) -> Option<String> {
        self.window.fingerprint().map(|window| format!("merged {window}"))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(vec![PIECE.to_owned()])
    }

    fn passes_through(&self) -> bool {
        false
    }

    fn can_be_late(&self) -> bool {
        true
    }

    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        self.window.key_columns(input)
    }

    fn describe(&self) -> Vec<String> {
        self.window.describe()
    }
}

/// Rows that only say how far time has come have no piece and stop here.
struct Pieces {
    step: String,
    place: u64,
    schema: Arc<Schema>,
}

impl Stateless for Pieces {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let pieces = rows.batch.column(ORIGINS);
        let there: BooleanArray = (0..pieces.len()).map(|row| Some(pieces.is_valid(row))).collect();
        let kept = filter_record_batch(&rows.batch, &there).map_err(|e| broken(&self.step, e))?;
        emit.counts.filtered += (rows.batch.num_rows() - kept.num_rows()) as u64;
        if kept.num_rows() == 0 {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = kept.columns().to_vec();
        columns.push(Arc::new(UInt64Array::from(vec![self.place; kept.num_rows()])));
        emit.rows.push((0, Rows { source: rows.source, batch: batch(&self.step, &self.schema, columns)? }));
        Ok(())
    }
}

struct Merge {
    apply: Apply,
    place: u64,
}

fn pieces<'a>(step: &str, batch: &'a RecordBatch) -> Result<&'a StringArray, OperatorError> {
    let column = batch.column(ORIGINS).as_any().downcast_ref::<StringArray>();
    column.ok_or_else(|| broken(step, format!("column `{PIECE}` is no text")))
}

impl Keyed for Merge {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let step = self.apply.step.clone();
        let origin = Origin::of(&step, &rows.batch)?;
        let pieces = pieces(&step, &rows.batch)?;
        emit.counts.input += pieces.len() as u64;
        for row in 0..pieces.len() {
            let (source, (partition, offset)) = (rows.source, origin.place(row));
            let Some(bytes) = opened(pieces.value(row)) else {
                emit.counts.dead += 1;
                emit.dead.push(DeadRow {
                    source,
                    partition,
                    offset,
                    cause: "validation",
                    code: "piece".to_owned(),
                    path: Some(PIECE.to_owned()),
                    message: "not a piece that this version combined, or a damaged one".to_owned(),
                });
                continue;
            };
            // A window of it had closed: another share's records of long ago, the first ever of theirs. What is
            // open of it is merged.
            if self.apply.merge(&bytes).map_err(|e| broken(&step, e))? {
                emit.counts.late += 1;
                emit.late.push(LateRow { source, partition, offset });
            } else {
                emit.counts.applied += 1;
            }
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        self.apply.on_epoch_end(time, emit)
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        self.apply.delta()
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.apply.snapshot()
    }

    fn restore(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        let mine = owns((self.place % u64::from(KEY_GROUPS)) as u32);
        self.apply.restore(bytes, snapshot, &|_| mine)
    }

    fn due(&self) -> Due {
        self.apply.due()
    }

    fn state_bytes(&self) -> usize {
        self.apply.state_bytes()
    }
}
