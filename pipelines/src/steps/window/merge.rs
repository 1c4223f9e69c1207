//! The stateful half of a window (R19): merges the pieces that the shares of the first half combined.
//!
//! A share's pieces and state go to one worker; several topologies go to several.

use super::super::common::{Origin, broken};
use super::super::keys::hash;
use super::super::pieces::{PIECE, Pieces, no_piece, opened, pieces};
use super::WindowStep;
use super::apply::Apply;
use crate::expr::StreamSchema;
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, Operator, OperatorError, Rows};
use crate::step::Step;
use arrow::array::Array;
use std::collections::BTreeSet;

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
        let prepare = Pieces::new(&self.window.name, place);
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

struct Merge {
    apply: Apply,
    place: u64,
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
                emit.dead.push(no_piece(source, partition, offset));
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
