//! The stored form of a window's state.
//!
//! A piece: format, closed horizon, the keys of its groups, each once, then the groups (window,
//! key), then each aggregate's cells. A delta holds the groups that changed, whole but for
//! distinct values, of which it holds the new ones; that windows closed follows from the horizon.
//! Pieces of several shards may be read in any order between shards: a group is in one shard only,
//! and the horizon is the largest that any of them names.

use super::super::accumulators::NO_SLOT;
use super::super::codec::{CodecError, Reader, Writer};
use super::super::keys::hash;
use super::apply::Apply;
use crate::operator::KEY_GROUPS;
use hashbrown::HashMap;

/// The first byte of every piece.
const FORMAT: u8 = 1;

impl Apply {
    /// Writes some groups.
    pub(super) fn write(&mut self, slots: &[u32], whole: bool) -> Vec<u8> {
        self.moved = false;
        let mut out = Writer::new(FORMAT);
        out.long(self.closed_until as u64);
        let mut placed: Vec<(i64, u64, u32)> =
            slots.iter().map(|slot| (self.groups.start(*slot), self.groups.key_hash(*slot), *slot)).collect();
        placed.sort_unstable();
        let slots: Vec<u32> = placed.into_iter().map(|(_, _, slot)| slot).collect();
        let mut numbers: HashMap<u32, u64> = HashMap::with_capacity(slots.len());
        let mut keys = Writer::default();
        let mut members = Writer::default();
        let mut before = 0;
        for slot in &slots {
            let next = numbers.len() as u64;
            let number = *numbers.entry(self.groups.key_number(*slot)).or_insert_with(|| {
                keys.slice(self.groups.key(*slot));
                next
            });
            let start = self.groups.start(*slot);
            members.int(start.wrapping_sub(before));
            before = start;
            members.uint(number);
        }
        out.uint(numbers.len() as u64);
        out.bytes.extend_from_slice(&keys.bytes);
        out.uint(slots.len() as u64);
        out.bytes.extend_from_slice(&members.bytes);
        let starts: Vec<i64> = slots.iter().map(|slot| self.groups.start(*slot)).collect();
        for (accumulator, _) in &mut self.accumulators {
            accumulator.write(&slots, &starts, whole, &mut out);
        }
        out.bytes
    }

    /// Reads a piece of its own state.
    pub(super) fn read(&mut self, bytes: &[u8], owns: &dyn Fn(u32) -> bool) -> Result<(), CodecError> {
        self.load(bytes, owns, false)?;
        // What was restored has been emitted and written before.
        self.groups.take_touched();
        self.groups.take_unwritten();
        let closing = self.groups.closing(|start| self.windows.end(start) <= self.closed_until);
        self.drop_windows(&closing);
        Ok(())
    }

    /// Merges what another window combined; returns whether some of it came after its window had closed.
    pub(super) fn merge(&mut self, bytes: &[u8]) -> Result<bool, CodecError> {
        self.load(bytes, &|_| true, true)
    }

    fn load(&mut self, bytes: &[u8], owns: &dyn Fn(u32) -> bool, merge: bool) -> Result<bool, CodecError> {
        let mut from = Reader::new(bytes, FORMAT)?;
        self.closed_until = self.closed_until.max(from.long()? as i64);
        let mut keys: Vec<Option<(&[u8], u64)>> = Vec::new();
        for _ in 0..from.count()? {
            let key = from.slice()?;
            let hash = hash(key);
            keys.push(owns((hash % u64::from(KEY_GROUPS)) as u32).then_some((key, hash)));
        }
        let (mut slots, mut starts, mut closed) = (Vec::new(), Vec::new(), false);
        let mut start = 0i64;
        for _ in 0..from.count()? {
            start = start.wrapping_add(from.int()?);
            let number = usize::try_from(from.uint()?).unwrap_or(usize::MAX);
            let key = *keys.get(number).ok_or_else(|| from.error("a group has no key"))?;
            starts.push(start);
            slots.push(match key {
                Some((key, hash)) if self.windows.end(start) > self.closed_until => self.groups.touch(start, key, hash),
                // Of stored state: by what another shard has seen, whose own later pieces say the same.
                Some(_) => {
                    closed = true;
                    NO_SLOT
                }
                None => NO_SLOT,
            });
        }
        for (accumulator, _) in &mut self.accumulators {
            accumulator.grow(self.groups.slots());
            accumulator.load(&slots, &starts, merge, &mut from)?;
        }
        if !from.done() {
            return Err(from.error("something follows the last aggregate"));
        }
        Ok(closed)
    }
}
