//! Both halves of a stateful step where processes share the work and its key is not the records' (R19): the first
//! makes pieces of a slice's rows, one or more for each share of the second, which merges them.
//!
//! A share's pieces and state go to one worker; several topologies go to several.

use super::common::Origin;
use super::keys::hash;
use super::pieces::{PIECE, Pieces, batch_of_pieces, no_piece, opened, piece_schema, pieces, sealed};
use crate::expr::StreamSchema;
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, Operator, OperatorError, Rows, Stateless};
use crate::step::Step;
use arrow::array::{Array, StringBuilder};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::ids::{Offset, PartitionId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows combined at once: what bounds a piece.
const ROWS: usize = 4_096;

/// A step that can be divided.
pub(crate) trait Divisible: Step + Clone + 'static {
    /// Its name.
    fn name(&self) -> &str;
    /// Keys and arguments, where the rows are.
    fn prepare(&self) -> Box<dyn Stateless>;
    /// What makes pieces of prepared rows.
    fn combine(&self, shares: u32) -> Box<dyn Combine>;
    /// What merges them.
    fn merge(&self) -> Box<dyn Merge>;
    /// What the first half does, for `explain`.
    fn combines(&self) -> &'static str;
}

/// Makes pieces of prepared rows.
pub(crate) trait Combine: Send {
    /// Of at most [`ROWS`] rows. Counts and late rows are its own to tell.
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn combine(&mut self, rows: Rows, made: &mut Made, emit: &mut Emit) -> Result<(), OperatorError>;
}

/// The pieces made of a slice, each with its share.
#[derive(Default)]
pub(crate) struct Made {
    shares: StringBuilder,
    pieces: StringBuilder,
}

impl Made {
    /// One more for a share.
    pub(crate) fn push(&mut self, share: usize, bytes: &[u8]) {
        self.shares.append_value(share.to_string());
        self.pieces.append_value(sealed(bytes));
    }
}

/// Where a piece lies: source, partition, offset.
pub(crate) type Place = (u32, PartitionId, Offset);

/// What became of a piece.
pub(crate) enum Fate {
    /// It is in the state.
    Applied,
    /// Some of it, or all, came too late.
    Late,
    /// It waits for the epoch's end, which counts it.
    Waits,
    /// No version of this step made it.
    Foreign,
}

impl Fate {
    /// Counts it.
    pub(crate) fn tell(self, (source, partition, offset): Place, emit: &mut Emit) {
        match self {
            Fate::Applied => emit.counts.applied += 1,
            Fate::Late => {
                emit.counts.late += 1;
                emit.late.push(LateRow { source, partition, offset });
            }
            Fate::Waits => {}
            Fate::Foreign => {
                emit.counts.dead += 1;
                emit.dead.push(no_piece(source, partition, offset));
            }
        }
    }
}

/// Merges pieces into the state of the step's own operator.
pub(crate) trait Merge: Send {
    /// Takes a piece whose checksum is right.
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn piece(&mut self, place: Place, bytes: &[u8]) -> Result<Fate, OperatorError>;

    /// The operator that holds the state.
    fn state(&self) -> &dyn Keyed;

    /// The same, to change.
    fn state_mut(&mut self) -> &mut dyn Keyed;

    /// The epoch is complete.
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        self.state_mut().on_epoch_end(time, emit)
    }
}

/// Both halves of a step.
pub(crate) fn halves(step: &impl Divisible, shares: u32) -> (Arc<dyn Step>, Arc<dyn Step>) {
    (Arc::new(First { step: step.clone(), shares }), Arc::new(Second { step: step.clone() }))
}

struct First<S> {
    step: S,
    shares: u32,
}

impl<S: Divisible> Step for First<S> {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![StreamSchema { arrow: piece_schema(true), kind: TopicKind::Rows }]
    }

    fn build(&self) -> Operator {
        let (prepare, combine) = (self.step.prepare(), self.step.combine(self.shares));
        Operator::Stateless(Box::new(Combining { step: self.step.name().to_owned(), prepare, combine }))
    }

    fn reads(&self, input: usize) -> Option<Vec<String>> {
        self.step.reads(input)
    }

    fn passes_through(&self) -> bool {
        false
    }

    fn can_be_late(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("{}, for {} shares", self.step.combines(), self.shares)]
    }
}

struct Combining {
    step: String,
    prepare: Box<dyn Stateless>,
    combine: Box<dyn Combine>,
}

impl Stateless for Combining {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut prepared = Emit::default();
        self.prepare.on_rows(rows, &mut prepared)?;
        emit.dead.append(&mut prepared.dead);
        emit.counts.dead += prepared.counts.dead;
        emit.counts.filtered += prepared.counts.filtered;
        for (_, Rows { source, batch }) in prepared.rows {
            for from in (0..batch.num_rows()).step_by(ROWS) {
                let slice = batch.slice(from, ROWS.min(batch.num_rows() - from));
                let (first, mut made) = (slice.slice(0, 1), Made::default());
                self.combine.combine(Rows { source, batch: slice }, &mut made, emit)?;
                if let Some(batch) = batch_of_pieces(&self.step, &first, made.shares, made.pieces)? {
                    emit.push(Rows { source, batch });
                }
            }
        }
        Ok(())
    }
}

struct Second<S> {
    step: S,
}

impl<S: Divisible> Step for Second<S> {
    fn outputs(&self) -> Vec<StreamSchema> {
        self.step.outputs()
    }

    fn build(&self) -> Operator {
        let step = self.step.name().to_owned();
        let place = hash(step.as_bytes());
        let prepare = Pieces::new(&step, place);
        Operator::Keyed { prepare: vec![Box::new(prepare)], apply: Box::new(Merging { step, place, merge: self.step.merge() }) }
    }

    fn fingerprint(&self) -> Option<String> {
        self.step.fingerprint().map(|step| format!("merged {step}"))
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
        self.step.key_columns(input)
    }

    fn describe(&self) -> Vec<String> {
        self.step.describe()
    }
}

struct Merging {
    step: String,
    /// The key hash of all its pieces and state.
    place: u64,
    merge: Box<dyn Merge>,
}

impl Keyed for Merging {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let origin = Origin::of(&self.step, &rows.batch)?;
        let pieces = pieces(&self.step, &rows.batch)?;
        emit.counts.input += pieces.len() as u64;
        for row in 0..pieces.len() {
            let (partition, offset) = origin.place(row);
            let place = (rows.source, partition, offset);
            let fate = match opened(pieces.value(row)) {
                Some(bytes) => self.merge.piece(place, &bytes)?,
                None => Fate::Foreign,
            };
            fate.tell(place, emit);
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        self.merge.on_epoch_end(time, emit)
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        self.merge.state_mut().delta()
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.merge.state_mut().snapshot()
    }

    fn restore(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        let mine = owns((self.place % u64::from(KEY_GROUPS)) as u32);
        self.merge.state_mut().restore(bytes, snapshot, &|_| mine)
    }

    fn due(&self) -> Due {
        self.merge.state().due()
    }

    fn state_bytes(&self) -> usize {
        self.merge.state().state_bytes()
    }
}
