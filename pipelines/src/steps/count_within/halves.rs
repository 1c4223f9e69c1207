//! Both halves of the step where processes share the work and its key is not the records' (R19): the first decides
//! who is late and sends a slice's events to the shares of their keys, the second counts.

use super::super::common::{Origin, broken};
use super::super::keyed::{KeyPrepare, keys_of};
use super::super::pieces::{PIECE, Pieces, batch_of_pieces, no_piece, opened, piece_schema, pieces, sealed, share_of};
use super::{Apply, CodecError, CountWithin, Event, Fired, Reader, Writer, hash};
use crate::expr::StreamSchema;
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, Operator, OperatorError, Rows, Stateless};
use crate::step::Step;
use arrow::array::{Array, StringBuilder};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::ids::{Offset, PartitionId};
use std::collections::BTreeSet;

/// The first byte of every piece.
const FORMAT: u8 = 1;
/// Events of a piece at most.
const MOST: usize = 4_096;

/// The first half.
pub(super) struct Divide {
    pub(super) step: CountWithin,
    pub(super) shares: u32,
}

impl Step for Divide {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![StreamSchema { arrow: piece_schema(true), kind: TopicKind::Rows }]
    }

    fn build(&self) -> Operator {
        let (prepare, shares) = (self.step.prepare(), self.shares);
        Operator::Stateless(Box::new(Dividing { name: self.step.name.clone(), time: self.step.time, prepare, shares }))
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
        vec![format!("gathers the times of events by key, for {} shares", self.shares)]
    }
}

struct Dividing {
    name: String,
    /// Microseconds.
    time: i64,
    prepare: KeyPrepare,
    shares: u32,
}

impl Stateless for Dividing {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut prepared = Emit::default();
        self.prepare.on_rows(rows, &mut prepared)?;
        emit.dead.append(&mut prepared.dead);
        emit.counts.dead += prepared.counts.dead;
        emit.counts.filtered += prepared.counts.filtered;
        for (_, rows) in prepared.rows {
            for from in (0..rows.batch.num_rows()).step_by(MOST) {
                let count = MOST.min(rows.batch.num_rows() - from);
                self.divide(&Rows { source: rows.source, batch: rows.batch.slice(from, count) }, emit)?;
            }
        }
        Ok(())
    }
}

impl Dividing {
    fn divide(&self, rows: &Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let origin = Origin::of(&self.name, &rows.batch)?;
        let (keys, hashes) = keys_of(&self.name, rows)?;
        let mut by_share: Vec<Vec<usize>> = vec![Vec::new(); self.shares as usize];
        for row in 0..rows.batch.num_rows() {
            emit.counts.input += 1;
            if origin.event_time[row].saturating_add(self.time) < origin.watermark[row] {
                let (partition, offset) = origin.place(row);
                emit.counts.late += 1;
                emit.late.push(LateRow { source: rows.source, partition, offset });
                continue;
            }
            emit.counts.applied += 1;
            by_share[share_of(hashes[row], self.shares) as usize].push(row);
        }
        let (mut to, mut made) = (StringBuilder::new(), StringBuilder::new());
        for (share, events) in by_share.iter().enumerate().filter(|(_, events)| !events.is_empty()) {
            let mut out = Writer::new(FORMAT);
            out.uint(events.len() as u64);
            for row in events {
                out.int(origin.event_time[*row]);
                out.slice(keys.value(*row));
            }
            to.append_value(share.to_string());
            made.append_value(sealed(&out.bytes));
        }
        if let Some(batch) = batch_of_pieces(&self.name, &rows.batch.slice(0, 1), to, made)? {
            emit.push(Rows { source: rows.source, batch });
        }
        Ok(())
    }
}

/// Time and key of each event of a piece.
fn events(bytes: &[u8]) -> Result<Vec<(i64, Vec<u8>)>, CodecError> {
    let mut from = Reader::new(bytes, FORMAT)?;
    let count = from.count()?;
    (0..count).map(|_| Ok((from.int()?, from.slice()?.to_vec()))).collect()
}

/// The second half.
pub(super) struct Merge {
    pub(super) step: CountWithin,
}

impl Step for Merge {
    fn outputs(&self) -> Vec<StreamSchema> {
        self.step.outputs()
    }

    fn build(&self) -> Operator {
        let place = hash(self.step.name.as_bytes());
        let apply = Merging { apply: self.step.apply(), place, waiting: Vec::new() };
        Operator::Keyed { prepare: vec![Box::new(Pieces::new(&self.step.name, place))], apply: Box::new(apply) }
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

/// A piece that waits for its epoch's end, by where it lies.
type Waiting = ((u32, PartitionId, Offset), Vec<(i64, Vec<u8>)>);

struct Merging {
    apply: Apply,
    place: u64,
    waiting: Vec<Waiting>,
}

impl Keyed for Merging {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let step = self.apply.step.clone();
        let origin = Origin::of(&step, &rows.batch)?;
        let pieces = pieces(&step, &rows.batch)?;
        emit.counts.input += pieces.len() as u64;
        for row in 0..pieces.len() {
            let (partition, offset) = origin.place(row);
            match opened(pieces.value(row)).map(|bytes| events(&bytes)) {
                Some(Ok(events)) => self.waiting.push(((rows.source, partition, offset), events)),
                Some(Err(_)) | None => {
                    emit.counts.dead += 1;
                    emit.dead.push(no_piece(rows.source, partition, offset));
                }
            }
        }
        Ok(())
    }

    /// A writer's pieces lie in its order: of a key whose events come from one partition they are in the log's.
    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable_by_key(|(place, _)| *place);
        let mut fired: Vec<Fired> = Vec::new();
        for ((source, partition, offset), events) in waiting {
            let mut late = false;
            for (at, key) in events {
                // Another share's records of long ago, the first ever of theirs: what they belong to is forgotten.
                if self.apply.horizon.late(at, i64::MIN) {
                    late = true;
                    continue;
                }
                let event = Event { source, partition, offset, at, watermark: i64::MIN };
                fired.extend(self.apply.take(event, &key));
            }
            if late {
                emit.counts.late += 1;
                emit.late.push(LateRow { source, partition, offset });
            } else {
                emit.counts.applied += 1;
            }
        }
        self.apply.end(&fired, time, emit)
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        self.apply.delta()
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.apply.snapshot()
    }

    fn restore(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        let mine = owns((self.place % u64::from(KEY_GROUPS)) as u32);
        self.apply.read(bytes, snapshot, &|_| mine).map_err(|e| broken(&self.apply.step, e))
    }

    fn due(&self) -> Due {
        self.apply.due()
    }

    fn state_bytes(&self) -> usize {
        self.apply.state_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_gives_back_the_events_it_was_made_of_and_a_cut_one_none() {
        let mut out = Writer::new(FORMAT);
        out.uint(2);
        for (at, key) in [(-5, &b"u1"[..]), (i64::MAX, b"")] {
            out.int(at);
            out.slice(key);
        }
        assert_eq!(events(&out.bytes).unwrap(), [(-5, b"u1".to_vec()), (i64::MAX, Vec::new())]);
        for cut in 0..out.bytes.len() {
            assert!(events(&out.bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
