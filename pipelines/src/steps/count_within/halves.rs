//! The step in halves (R19): the first decides who is late and gathers the times of a slice's events by key, the
//! second counts.

use super::super::codec::{CodecError, Reader, Writer};
use super::super::common::Origin;
use super::super::halves::{Combine, Divisible, Fate, Made, Merge, Place};
use super::super::keyed::keys_of;
use super::super::pieces::share_of;
use super::{Apply, CountWithin, Event, Fired};
use crate::operator::{Emit, EpochTime, Keyed, LateRow, OperatorError, Rows, Stateless};

/// The first byte of every piece.
const FORMAT: u8 = 1;

impl Divisible for CountWithin {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&self) -> Box<dyn Stateless> {
        Box::new(self.prepare())
    }

    fn combine(&self, shares: u32) -> Box<dyn Combine> {
        Box::new(Gathering { name: self.name.clone(), time: self.time, shares })
    }

    fn merge(&self) -> Box<dyn Merge> {
        Box::new(Merging { apply: self.apply(), waiting: Vec::new() })
    }

    fn combines(&self) -> &'static str {
        "gathers the times of events by key"
    }
}

struct Gathering {
    name: String,
    /// Microseconds.
    time: i64,
    shares: u32,
}

impl Combine for Gathering {
    fn combine(&mut self, rows: Rows, made: &mut Made, emit: &mut Emit) -> Result<(), OperatorError> {
        let origin = Origin::of(&self.name, &rows.batch)?;
        let (keys, hashes) = keys_of(&self.name, &rows)?;
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
        for (share, events) in by_share.iter().enumerate().filter(|(_, events)| !events.is_empty()) {
            let mut out = Writer::new(FORMAT);
            out.uint(events.len() as u64);
            for row in events {
                out.int(origin.event_time[*row]);
                out.slice(keys.value(*row));
            }
            made.push(share, &out.bytes);
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

struct Merging {
    apply: Apply,
    /// Pieces that wait for their epoch's end.
    waiting: Vec<(Place, Vec<(i64, Vec<u8>)>)>,
}

impl Merge for Merging {
    fn piece(&mut self, place: Place, bytes: &[u8]) -> Result<Fate, OperatorError> {
        let Ok(events) = events(bytes) else { return Ok(Fate::Foreign) };
        self.waiting.push((place, events));
        Ok(Fate::Waits)
    }

    fn state(&self) -> &dyn Keyed {
        &self.apply
    }

    fn state_mut(&mut self) -> &mut dyn Keyed {
        &mut self.apply
    }

    /// A writer's pieces lie in its order: of a key whose events come from one partition they are in the log's.
    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_unstable_by_key(|(place, _)| *place);
        let mut fired: Vec<Fired> = Vec::new();
        for (place, events) in waiting {
            let (source, partition, offset) = place;
            let mut fate = Fate::Applied;
            for (at, key) in events {
                // Another share's records of long ago, the first ever of theirs: what they belong to is forgotten.
                if self.apply.horizon.late(at, i64::MIN) {
                    fate = Fate::Late;
                    continue;
                }
                let event = Event { source, partition, offset, at, watermark: i64::MIN };
                fired.extend(self.apply.take(event, &key));
            }
            fate.tell(place, emit);
        }
        self.apply.end(&fired, time, emit)
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
