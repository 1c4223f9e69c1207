//! `count(distinct x)`, exact but for collisions of a 128-bit hash.
//!
//! One set of (group, hash) pairs a window, dropped with it; the first hash of a group lies in the
//! group's own cell, so that a group of one value (the usual one in short windows) needs no entry.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, Decimal128Array, Int64Array};
use hashbrown::{HashMap, HashTable};
use std::sync::Arc;

#[derive(Clone, Copy, Default)]
struct Cell {
    first: [u64; 2],
    count: u32,
    /// The first hash has not been written yet.
    fresh: bool,
}

/// The second and later hashes of the groups of one window, in the order in which they came.
#[derive(Default)]
struct Pairs {
    pairs: Vec<(u32, [u64; 2])>,
    table: HashTable<u32>,
    /// So many of `pairs` have been written.
    written: usize,
}

impl Pairs {
    fn insert(&mut self, slot: u32, hash: [u64; 2]) -> bool {
        let Pairs { pairs, table, .. } = self;
        let mixed = mix(slot, hash);
        if table.find(mixed, |i| pairs[*i as usize] == (slot, hash)).is_some() {
            return false;
        }
        let Ok(index) = u32::try_from(pairs.len()) else { return false };
        pairs.push((slot, hash));
        table.insert_unique(mixed, index, |i| {
            let (slot, hash) = pairs[*i as usize];
            mix(slot, hash)
        });
        true
    }
}

fn mix(slot: u32, hash: [u64; 2]) -> u64 {
    hash[0] ^ u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Distinct non-null values of a group, by their 128-bit hashes.
#[derive(Default)]
pub(crate) struct Distinct {
    cells: Vec<Cell>,
    windows: HashMap<i64, Pairs>,
    position: Vec<u32>,
}

impl Distinct {
    fn insert(&mut self, slot: u32, start: i64, hash: [u64; 2]) {
        let cell = &mut self.cells[slot as usize];
        if cell.count == 0 {
            *cell = Cell { first: hash, count: 1, fresh: true };
        } else if cell.first != hash && self.windows.entry(start).or_default().insert(slot, hash) {
            cell.count += 1;
        }
    }
}

fn split(value: i128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

impl Accumulator for Distinct {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, Cell::default());
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = Cell::default();
    }

    fn drop_window(&mut self, start: i64) {
        self.windows.remove(&start);
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let hashes = column.and_then(|c| c.as_any().downcast_ref::<Decimal128Array>());
        let hashes = hashes.ok_or_else(|| unexpected("count(distinct)", column))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && hashes.is_valid(row) {
                self.insert(*slot, touch.starts[row], split(hashes.value(row)));
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(slots.iter().map(|slot| i64::from(self.cells[*slot as usize].count))))
    }

    fn write(&mut self, slots: &[u32], starts: &[i64], whole: bool, out: &mut Writer) {
        self.position.resize(self.cells.len(), NO_SLOT);
        for (position, slot) in (0u32..).zip(slots) {
            self.position[*slot as usize] = position;
            let cell = &mut self.cells[*slot as usize];
            let written = cell.count > 0 && (whole || cell.fresh);
            out.byte(u8::from(written));
            if written {
                out.long(cell.first[0]);
                out.long(cell.first[1]);
            }
            cell.fresh = false;
        }
        let mut windows: Vec<i64> = starts.to_vec();
        windows.sort_unstable();
        windows.dedup();
        let mut tail = Writer::default();
        let mut count = 0u64;
        for start in windows {
            let Some(pairs) = self.windows.get_mut(&start) else { continue };
            let from = if whole { 0 } else { pairs.written };
            for (slot, hash) in &pairs.pairs[from..] {
                // A pair's group was touched, so it is among `slots`.
                if let Some(position) = self.position.get(*slot as usize).filter(|p| **p != NO_SLOT) {
                    count += 1;
                    tail.uint(u64::from(*position));
                    tail.long(hash[0]);
                    tail.long(hash[1]);
                }
            }
            pairs.written = pairs.pairs.len();
        }
        out.uint(count);
        out.bytes.extend_from_slice(&tail.bytes);
        for slot in slots {
            self.position[*slot as usize] = NO_SLOT;
        }
    }

    /// Pairs are added in both modes: what was written before came before.
    fn load(&mut self, slots: &[u32], starts: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for (slot, start) in slots.iter().zip(starts) {
            if from.byte()? == 1 {
                let hash = [from.long()?, from.long()?];
                if *slot != NO_SLOT {
                    self.insert(*slot, *start, hash);
                }
            }
        }
        for _ in 0..from.count()? {
            let position = usize::try_from(from.uint()?).unwrap_or(usize::MAX);
            let hash = [from.long()?, from.long()?];
            let slot = slots.get(position).ok_or_else(|| from.error("a pair belongs to no group"))?;
            if *slot != NO_SLOT {
                self.insert(*slot, starts[position], hash);
            }
        }
        if !merge {
            // What was restored has been written before.
            for (slot, start) in slots.iter().zip(starts).filter(|(slot, _)| **slot != NO_SLOT) {
                self.cells[*slot as usize].fresh = false;
                if let Some(pairs) = self.windows.get_mut(start) {
                    pairs.written = pairs.pairs.len();
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let pairs: usize = self.windows.values().map(|p| p.pairs.capacity() * 24 + p.table.capacity() * 5 + 120).sum();
        self.cells.capacity() * size_of::<Cell>() + self.position.capacity() * 4 + pairs
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;

    fn hashes(values: &[Option<i128>]) -> Option<ArrayRef> {
        Some(Arc::new(Decimal128Array::from(values.to_vec())))
    }

    #[test]
    fn r6_distinct_values_are_counted_once_and_null_is_none() {
        let mut a = Distinct::default();
        add(&mut a, &[0, 0, 0, 1, 0], hashes(&[Some(1), Some(1), None, Some(1), Some(-2)]), &[0; 5], 0);
        assert_eq!(a.read(&[0, 1]).as_ref(), &Int64Array::from(vec![2, 1]));
        let mut b = Distinct::default();
        add(&mut b, &[0, 0], hashes(&[Some(7), Some(-2)]), &[0; 2], 0);
        merge(&mut b, &mut a);
        merge(&mut b, &mut a);
        assert_eq!(b.read(&[0]).as_ref(), &Int64Array::from(vec![3]));
    }

    #[test]
    fn r6_a_delta_of_distinct_values_holds_only_new_pairs() {
        let mut a = Distinct::default();
        add(&mut a, &[0, 0, 0], hashes(&[Some(1), Some(2), Some(3)]), &[0; 3], 0);
        let mut first = Writer::new(1);
        a.write(&[0], &[0], false, &mut first);
        add(&mut a, &[0, 0], hashes(&[Some(3), Some(4)]), &[0; 2], 3);
        let mut second = Writer::new(1);
        a.write(&[0], &[0], false, &mut second);
        assert!(second.bytes.len() < first.bytes.len(), "{} < {}", second.bytes.len(), first.bytes.len());
        let mut b = Distinct::default();
        b.grow(1);
        for piece in [&first, &second] {
            b.load(&[0], &[0], false, &mut Reader::new(&piece.bytes, 1).unwrap()).unwrap();
        }
        assert_eq!(b.read(&[0]).as_ref(), &Int64Array::from(vec![4]));
    }
}
