//! The stateless half of a window (R19): the rows of a slice become pieces, one for each share that
//! merges them. A piece is the state of a window that has seen those rows and no others.

use super::super::common::{ORIGINS, batch, broken};
use super::super::keys::hash;
use super::super::{PIECE, piece_schema};
use super::WindowStep;
use super::apply::Apply;
use super::prepare::Prepare;
use crate::expr::StreamSchema;
use crate::operator::{Emit, Keyed, Operator, OperatorError, Rows, Stateless};
use crate::step::Step;
use arrow::array::{ArrayRef, Int64Array, StringBuilder, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use quikflow_topics::catalogue::TopicKind;
use std::sync::Arc;

/// Rows combined at once: what bounds a piece in which no two rows have a group.
const ROWS: usize = 4096;
/// A piece of several groups with more bytes is made two.
const MOST: usize = 256 << 10;
/// 0001-01-01: a piece says nothing about time, its share does at the epoch's end.
const NO_TIME: i64 = -62_135_596_800_000_000;

/// The share of `shares` that merges the group of a key.
fn share_of(key_hash: u64, shares: u32) -> u32 {
    // The low bits are the key group: they divide a share's keys among workers.
    ((key_hash >> 32) % u64::from(shares.max(1))) as u32
}

/// A piece as a topic holds it: a checksum before it, so that one that others wrote is known before
/// any of it is merged.
pub(super) fn sealed(bytes: &[u8]) -> String {
    let mut all = hash(bytes).to_le_bytes().to_vec();
    all.extend_from_slice(bytes);
    STANDARD_NO_PAD.encode(all)
}

/// What [`sealed`] closed; none where it did not.
pub(super) fn opened(text: &str) -> Option<Vec<u8>> {
    let mut all = STANDARD_NO_PAD.decode(text).ok()?;
    let sum = *all.first_chunk::<8>()?;
    all.drain(..8);
    (hash(&all).to_le_bytes() == sum).then_some(all)
}

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
        let first: Vec<ArrayRef> = rows.batch.columns()[..2].iter().map(|column| column.slice(0, 1)).collect();
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
        let (keys, pieces) = (keys.finish(), pieces.finish());
        let count = arrow::array::Array::len(&keys);
        if count == 0 {
            return Ok(());
        }
        let partition = first[0].as_any().downcast_ref::<UInt32Array>().map(|column| column.value(0));
        let offset = first[1].as_any().downcast_ref::<UInt64Array>().map(|column| column.value(0));
        let (Some(partition), Some(offset)) = (partition, offset) else {
            return Err(broken(&self.window.name, "prepared rows have no origin"));
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![partition; count])),
            Arc::new(UInt64Array::from(vec![offset; count])),
            Arc::new(TimestampMicrosecondArray::from(vec![NO_TIME; count]).with_timezone("UTC")),
            Arc::new(Int64Array::from(vec![i64::MIN; count])),
            Arc::new(keys),
            Arc::new(pieces),
        ];
        debug_assert_eq!(columns.len(), ORIGINS + 2, "{PIECE}");
        emit.push(Rows { source, batch: batch(&self.window.name, &piece_schema(true), columns)? });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_was_touched_is_not_opened() {
        let text = sealed(b"a window's state");
        assert_eq!(opened(&text).as_deref(), Some(&b"a window's state"[..]));
        let mut spoilt = text.clone().into_bytes();
        spoilt[14] = if spoilt[14] == b'A' { b'B' } else { b'A' };
        assert_eq!(opened(std::str::from_utf8(&spoilt).unwrap()), None);
        let mut short = text;
        short.truncate(short.len() - 2);
        for text in ["", "AAAA", "no base64 at all", &short] {
            assert_eq!(opened(text), None, "{text}");
        }
    }

    #[test]
    fn a_share_has_keys_of_all_key_groups() {
        let hashes: Vec<u64> = (0..4000u32).map(|key| hash(&key.to_le_bytes())).collect();
        for share in 0..4 {
            let mine: std::collections::BTreeSet<u64> =
                hashes.iter().filter(|hash| share_of(**hash, 4) == share).map(|hash| hash % 128).collect();
            assert!(mine.len() > 120, "share {share} has keys in {} groups", mine.len());
        }
    }
}
