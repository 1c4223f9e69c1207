//! The stateless half of a window (R19): the rows of a slice become pieces, one for each share that
//! merges them. A piece is the state of a window that has seen those rows and no others.

use super::super::pieces::{batch_of_pieces, piece_schema, sealed, share_of};
use super::WindowStep;
use super::apply::Apply;
use super::prepare::Prepare;
use crate::expr::StreamSchema;
use crate::operator::{Emit, Keyed, Operator, OperatorError, Rows, Stateless};
use crate::step::Step;
use arrow::array::StringBuilder;
use quikflow_topics::catalogue::TopicKind;

/// Rows combined at once: what bounds a piece in which no two rows have a group.
const ROWS: usize = 4096;
/// A piece of several groups with more bytes is made two.
const MOST: usize = 256 << 10;
/// The step.
pub(super) struct CombineStep {
    pub(super) window: WindowStep,
    pub(super) shares: u32,
}

impl Step for CombineStep {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![StreamSchema { arrow: piece_schema(true), kind: TopicKind::Rows }]
    }

    fn build(&self) -> Operator {
        let combine = Combine { prepare: self.window.prepare(), window: self.window.clone(), shares: self.shares };
        Operator::Stateless(Box::new(combine))
    }

    fn reads(&self, input: usize) -> Option<Vec<String>> {
        self.window.reads(input)
    }

    fn passes_through(&self) -> bool {
        false
    }

    fn can_be_late(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("combines rows by window and key, for {} shares", self.shares)]
    }
}

struct Combine {
    window: WindowStep,
    prepare: Prepare,
    shares: u32,
}

impl Stateless for Combine {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut prepared = Emit::default();
        self.prepare.on_rows(rows, &mut prepared)?;
        emit.dead.append(&mut prepared.dead);
        emit.counts.dead += prepared.counts.dead;
        emit.counts.filtered += prepared.counts.filtered;
        for (_, rows) in prepared.rows {
            for from in (0..rows.batch.num_rows()).step_by(ROWS) {
                let count = ROWS.min(rows.batch.num_rows() - from);
                self.combine(Rows { source: rows.source, batch: rows.batch.slice(from, count) }, emit)?;
            }
        }
        Ok(())
    }
}

impl Combine {
    fn combine(&self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let first = rows.batch.slice(0, 1);
        let source = rows.source;
        let mut window = self.window.apply();
        window.on_rows(0, rows, emit)?;
        let mut by_share: Vec<Vec<u32>> = vec![Vec::new(); self.shares as usize];
        for slot in window.groups.all() {
            by_share[share_of(window.groups.key_hash(slot), self.shares) as usize].push(slot);
        }
        let (mut keys, mut pieces) = (StringBuilder::new(), StringBuilder::new());
        for (share, slots) in by_share.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            write(&mut window, slots, &mut |bytes| {
                keys.append_value(share.to_string());
                pieces.append_value(sealed(bytes));
            });
        }
        if let Some(batch) = batch_of_pieces(&self.window.name, &first, keys, pieces)? {
            emit.push(Rows { source, batch });
        }
        Ok(())
    }
}

/// Writes groups in pieces of bounded size.
fn write(window: &mut Apply, slots: &[u32], out: &mut dyn FnMut(&[u8])) {
    let bytes = window.write(slots, true);
    if bytes.len() <= MOST || slots.len() < 2 {
        return out(&bytes);
    }
    let (one, other) = slots.split_at(slots.len() / 2);
    write(window, one, out);
    write(window, other, out);
}
