//! `approx_distinct`: HyperLogLog with 2^14 registers (standard error 0.81 %), as a list of the
//! registers in use while they are few.
//!
//! The estimate is a function of the registers alone, so it is the same for both forms, and the
//! registers are a function of the set of values: order, merging and restoring never show. The
//! estimator is the improved one of O. Ertl (2017), which needs no tables.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, Decimal128Array, Int64Array};
use std::sync::Arc;

const BITS: u32 = 14;
const REGISTERS: usize = 1 << BITS;
/// Ranks run from 0 (unused) to 64 − BITS + 1.
const MOST: usize = 64 - BITS as usize;
/// More registers in use than this: an array of all.
const FEW: usize = 2048;

#[derive(Clone)]
enum Cell {
    /// (register, rank), sorted by register.
    Few(Vec<(u16, u8)>),
    All(Box<[u8]>),
}

impl Default for Cell {
    fn default() -> Cell {
        Cell::Few(Vec::new())
    }
}

impl Cell {
    fn offer(&mut self, register: u16, rank: u8) {
        match self {
            Cell::All(ranks) => {
                let old = &mut ranks[usize::from(register)];
                *old = (*old).max(rank);
            }
            Cell::Few(used) => match used.binary_search_by_key(&register, |(r, _)| *r) {
                Ok(at) => used[at].1 = used[at].1.max(rank),
                Err(at) if used.len() < FEW => used.insert(at, (register, rank)),
                Err(_) => {
                    let mut ranks = vec![0; REGISTERS].into_boxed_slice();
                    used.iter().for_each(|(register, rank)| ranks[usize::from(*register)] = *rank);
                    ranks[usize::from(register)] = rank;
                    *self = Cell::All(ranks);
                }
            },
        }
    }

    fn used(&self) -> Vec<(u16, u8)> {
        match self {
            Cell::Few(used) => used.clone(),
            Cell::All(ranks) => (0u16..).zip(ranks.iter().copied()).filter(|(_, rank)| *rank > 0).collect(),
        }
    }

    fn estimate(&self) -> i64 {
        let mut counts = [0u32; MOST + 2];
        match self {
            Cell::Few(used) => {
                counts[0] = (REGISTERS - used.len()) as u32;
                used.iter().for_each(|(_, rank)| counts[usize::from(*rank).min(MOST + 1)] += 1);
            }
            Cell::All(ranks) => ranks.iter().for_each(|rank| counts[usize::from(*rank).min(MOST + 1)] += 1),
        }
        let m = REGISTERS as f64;
        let mut z = m * tau(1.0 - f64::from(counts[MOST + 1]) / m);
        for rank in (1..=MOST).rev() {
            z = 0.5 * (z + f64::from(counts[rank]));
        }
        z += m * sigma(f64::from(counts[0]) / m);
        (m * m / (2.0 * std::f64::consts::LN_2 * z)).round() as i64
    }
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

/// About how many distinct non-null values a group has.
#[derive(Default)]
pub(crate) struct ApproxDistinct {
    cells: Vec<Cell>,
}

impl Accumulator for ApproxDistinct {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, Cell::default());
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = Cell::default();
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let hashes = column.and_then(|c| c.as_any().downcast_ref::<Decimal128Array>());
        let hashes = hashes.ok_or_else(|| unexpected("approx_distinct", column))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && hashes.is_valid(row) {
                let hash = hashes.value(row) as u64;
                let register = (hash >> (64 - BITS)) as u16;
                let rank = ((hash << BITS).leading_zeros().min(MOST as u32) + 1) as u8;
                self.cells[*slot as usize].offer(register, rank);
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(slots.iter().map(|slot| self.cells[*slot as usize].estimate())))
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let used = self.cells[*slot as usize].used();
            out.uint(used.len() as u64);
            for (register, rank) in used {
                out.uint(u64::from(register) << 6 | u64::from(rank));
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            if *slot != NO_SLOT && !merge {
                self.reset(*slot);
            }
            for _ in 0..from.count()? {
                let entry = from.uint()?;
                let register = u16::try_from(entry >> 6).ok().filter(|r| usize::from(*r) < REGISTERS);
                let register = register.ok_or_else(|| from.error("a register is out of range"))?;
                if *slot != NO_SLOT {
                    self.cells[*slot as usize].offer(register, (entry & 63) as u8);
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let held: usize = self
            .cells
            .iter()
            .map(|cell| match cell {
                Cell::Few(used) => used.capacity() * 4,
                Cell::All(_) => REGISTERS,
            })
            .sum();
        self.cells.capacity() * size_of::<Cell>() + held
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;
    use xxhash_rust::xxh3::xxh3_128;

    fn column(values: std::ops::Range<u64>) -> (Vec<u32>, Option<ArrayRef>, Vec<i64>) {
        let hashes: Decimal128Array = values.map(|v| Some(xxh3_128(&v.to_le_bytes()) as i128)).collect();
        let rows = hashes.len();
        (vec![0; rows], Some(Arc::new(hashes)), vec![0; rows])
    }

    #[test]
    fn r6_estimates_are_near_and_do_not_depend_on_merging() {
        for (n, within) in [(0u64, 0.0), (1, 0.0), (10, 0.0), (1_000, 0.02), (50_000, 0.025)] {
            let mut whole = ApproxDistinct::default();
            let (slots, hashes, times) = column(0..n);
            whole.grow(1);
            add(&mut whole, &slots, hashes, &times, 0);
            let found = whole.cells[0].estimate();
            assert!((found - n as i64).abs() as f64 <= within * n as f64, "{found} for {n}");
            let mut other = ApproxDistinct::default();
            let (slots, hashes, times) = column(n / 2..n);
            other.grow(1);
            add(&mut other, &slots, hashes, &times, 0);
            merge(&mut other, &mut whole);
            assert_eq!(other.cells[0].estimate(), found);
        }
    }
}
