//! The ids accepted within the window (R16): 28 bytes an id in the order of arrival, and an index
//! of 4 bytes (5 to 10 with its free places) that finds an entry by the id's hash.
//!
//! An id's key is a 128-bit hash of (principal, type, id); beside it stand 32 bits of the
//! content's hash and the record's place. A commit's entries are one row of the table `ids`.

use crate::ids::{Offset, PartitionId};
use hashbrown::HashTable;
use std::collections::VecDeque;

/// Entries a block.
const BLOCK: usize = 1 << 14;

/// An id that came in, with its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdEntry {
    pub(super) key: [u64; 2],
    pub(super) content: u32,
    /// topic number (10 bits), partition (14), offset (40); `u64::MAX` where it does not fit.
    pub(super) place: u64,
}

/// Bytes of a stored entry.
const STORED: usize = 28;

#[derive(Clone, Copy, Debug)]
struct Packed([u32; 7]);

impl Packed {
    fn of(entry: &IdEntry) -> Packed {
        let [a, b] = entry.key;
        let p = entry.place;
        Packed([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32, entry.content, p as u32, (p >> 32) as u32])
    }

    fn entry(self) -> IdEntry {
        let wide = |i: usize| u64::from(self.0[i]) | u64::from(self.0[i + 1]) << 32;
        IdEntry { key: [wide(0), wide(2)], content: self.0[4], place: wide(5) }
    }
}

/// Packs a record's place.
pub(super) fn place(topic: i64, partition: u32, offset: u64) -> u64 {
    match u64::try_from(topic) {
        Ok(topic) if topic < 1 << 10 && partition < 1 << 14 && offset < (1 << 40) - 1 => {
            topic << 54 | u64::from(partition) << 40 | offset
        }
        _ => u64::MAX,
    }
}

/// The place again: topic number, partition, offset.
pub(super) fn unpack(place: u64) -> Option<(i64, PartitionId, Offset)> {
    let known = place != u64::MAX;
    known.then_some(((place >> 54) as i64, PartitionId((place >> 40) as u32 & 0x3fff), Offset(place & ((1 << 40) - 1))))
}

/// The hash of an id in its scope.
pub(super) fn key_of(principal: &str, ty: &str, id: &str) -> [u64; 2] {
    let mut bytes = Vec::with_capacity(principal.len() + ty.len() + id.len() + 16);
    for part in [principal, ty] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(id.as_bytes());
    let hash = xxhash_rust::xxh3::xxh3_128(&bytes);
    [hash as u64, (hash >> 64) as u64]
}

/// The ids within the window.
#[derive(Debug)]
pub(super) struct IdWindow {
    blocks: VecDeque<Vec<Packed>>,
    index: HashTable<u32>,
    /// Number of the first entry of the first block, and of the first entry not expired.
    base: u64,
    first: u64,
    next: u64,
    /// (number after the commit's last entry, arrival time)
    commits: VecDeque<(u64, i64)>,
    span: i64,
    limit: u64,
}

impl IdWindow {
    /// A window of `span` microseconds and at most `limit` ids.
    pub(super) fn new(span: i64, limit: u64) -> IdWindow {
        let limit = limit.min(1 << 31);
        IdWindow {
            blocks: VecDeque::new(),
            index: HashTable::new(),
            base: 0,
            first: 0,
            next: 0,
            commits: VecDeque::new(),
            span,
            limit,
        }
    }

    fn at(&self, number: u64) -> Option<IdEntry> {
        let at = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.blocks.get(at / BLOCK)?.get(at % BLOCK).map(|p| p.entry())
    }

    /// Numbers are kept modulo 2^32, which is unambiguous for the at most 2^31 entries alive.
    fn widen(&self, low: u32) -> u64 {
        self.base + u64::from(low.wrapping_sub(self.base as u32))
    }

    /// The entry of `key`.
    pub(super) fn find(&self, key: [u64; 2]) -> Option<IdEntry> {
        let found = self.index.find(key[0], |low| self.at(self.widen(*low)).is_some_and(|e| e.key == key));
        found.and_then(|low| self.at(self.widen(*low)))
    }

    /// Where the window stands, for [`rewind`](Self::rewind).
    pub(super) fn mark(&self) -> u64 {
        self.next
    }

    /// Adds an entry that is not there yet.
    pub(super) fn insert(&mut self, entry: &IdEntry) {
        if self.blocks.back().is_none_or(|b| b.len() == BLOCK) {
            self.blocks.push_back(Vec::with_capacity(BLOCK));
        }
        if let Some(block) = self.blocks.back_mut() {
            block.push(Packed::of(entry));
        }
        let (blocks, base) = (&self.blocks, self.base);
        let hash = |low: &u32| {
            let at = low.wrapping_sub(base as u32) as usize;
            blocks.get(at / BLOCK).and_then(|b| b.get(at % BLOCK)).map_or(0, |p| p.entry().key[0])
        };
        self.index.insert_unique(entry.key[0], self.next as u32, hash);
        self.next += 1;
    }

    /// Takes back what was added since `mark`: its transaction failed.
    pub(super) fn rewind(&mut self, mark: u64) {
        while self.next > mark {
            self.next -= 1;
            self.unindex(self.next);
            if let Some(block) = self.blocks.back_mut() {
                block.pop();
                if block.is_empty() {
                    self.blocks.pop_back();
                }
            }
        }
    }

    fn unindex(&mut self, number: u64) {
        if let Some(entry) = self.at(number)
            && let Ok(found) = self.index.find_entry(entry.key[0], |low| *low == number as u32)
        {
            found.remove();
        }
    }

    /// What was added since `mark`, as it is stored.
    pub(super) fn encode_since(&self, mark: u64) -> Vec<u8> {
        let entries = (mark..self.next).filter_map(|n| self.at(n)).map(|e| Packed::of(&e));
        entries.flat_map(|p| p.0).flat_map(u32::to_le_bytes).collect()
    }

    /// Adds a stored segment, at open. An id that is there already stays as it is.
    pub(super) fn load(&mut self, data: &[u8], arrival: i64) {
        for stored in data.chunks_exact(STORED) {
            let mut words = [0_u32; 7];
            for (word, bytes) in words.iter_mut().zip(stored.chunks_exact(4)) {
                *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            let entry = Packed(words).entry();
            if self.find(entry.key).is_none() {
                self.insert(&entry);
            }
        }
        self.seal(arrival);
    }

    /// What was added since the last seal arrived then.
    pub(super) fn seal(&mut self, arrival: i64) {
        if self.commits.back().map_or(self.first, |c| c.0) < self.next {
            self.commits.push_back((self.next, arrival));
        }
    }

    /// Forgets what is older than the window or more than it holds.
    pub(super) fn expire(&mut self, now: i64) {
        while let Some((end, arrival)) = self.commits.front().copied() {
            if arrival.saturating_add(self.span) > now && self.next - self.first <= self.limit {
                break;
            }
            for number in self.first..end {
                self.unindex(number);
            }
            self.first = end;
            self.commits.pop_front();
            while self.first - self.base >= BLOCK as u64 && !self.blocks.is_empty() {
                self.blocks.pop_front();
                self.base += BLOCK as u64;
            }
        }
    }

    /// The oldest arrival time still in the window.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.commits.front().map(|c| c.1)
    }
}
