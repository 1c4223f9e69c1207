//! `approx_percentile_cont`: a sketch of logarithmic buckets (after DDSketch, Masson, Rim, Lee 2019).
//!
//! A value falls into the bucket whose bounds are powers of γ = (1+α)/(1−α), α = 0.99 %, so any
//! value given for the bucket's middle is off by at most α. A bucket that has seen one value only,
//! however often, gives that value exactly. What the sketch holds is a function of the multiset of
//! values: order, batching, merging and restoring never show. Percentiles between two values are
//! interpolated, as SQL's `percentile_cont` does.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array};
use std::sync::Arc;

/// The largest relative error.
const ALPHA: f64 = 0.0099;
/// Values nearer to zero than this are zero.
const SMALLEST: f64 = 1e-12;
/// Added to a positive value's exponent, so that zero's bucket 0 lies between the signs.
const BIAS: i32 = 1 << 16;

/// A bucket, how many values fell into it, and the value if they are all the same (else NaN).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    index: i32,
    count: u32,
    value: f64,
}

impl Bucket {
    fn add(&mut self, other: Bucket) {
        self.count = self.count.saturating_add(other.count);
        if self.value != other.value {
            self.value = f64::NAN;
        }
    }

    fn estimate(&self, log_gamma: f64) -> f64 {
        match self.index {
            _ if !self.value.is_nan() => self.value,
            0 => 0.0,
            index => {
                let exponent = f64::from(index.abs() - BIAS);
                let middle = (exponent * log_gamma).exp() * (1.0 - ALPHA);
                if index > 0 { middle } else { -middle }
            }
        }
    }
}

/// The first bucket lies in place; more of them, sorted by index, only where there are more.
#[derive(Clone, Default)]
#[allow(clippy::box_collection, reason = "most cells hold one bucket: a cell is a pointer shorter by two words")]
struct Cell {
    one: Bucket,
    more: Option<Box<Vec<Bucket>>>,
}

impl Cell {
    fn buckets(&self) -> &[Bucket] {
        match &self.more {
            Some(more) => more,
            None if self.one.count == 0 => &[],
            None => std::slice::from_ref(&self.one),
        }
    }

    fn add(&mut self, bucket: Bucket) {
        let Some(more) = &mut self.more else {
            if self.one.count == 0 {
                self.one = bucket;
            } else if self.one.index == bucket.index {
                self.one.add(bucket);
            } else {
                let mut more = Vec::with_capacity(4);
                more.extend([self.one, bucket]);
                more.sort_unstable_by_key(|b| b.index);
                self.more = Some(Box::new(more));
            }
            return;
        };
        match more.binary_search_by_key(&bucket.index, |b| b.index) {
            Ok(at) => more[at].add(bucket),
            Err(at) => more.insert(at, bucket),
        }
    }
}

/// One percentile of each group.
pub(crate) struct Percentile {
    cells: Vec<Cell>,
    /// From 0 to 1.
    fraction: f64,
    log_gamma: f64,
}

impl Percentile {
    /// `fraction` from 0 to 1.
    pub(crate) fn new(fraction: f64) -> Percentile {
        Percentile { cells: Vec::new(), fraction, log_gamma: ((1.0 + ALPHA) / (1.0 - ALPHA)).ln() }
    }

    /// The bucket of one value; none for NaN.
    fn bucket(&self, value: f64) -> Option<Bucket> {
        let size = value.abs();
        if value.is_nan() {
            return None;
        }
        if size < SMALLEST {
            return Some(Bucket { index: 0, count: 1, value: 0.0 });
        }
        let size = size.min(f64::MAX);
        let index = (size.ln() / self.log_gamma).ceil() as i32 + BIAS;
        Some(Bucket { index: if value > 0.0 { index } else { -index }, count: 1, value })
    }

    fn each(&mut self, touch: &Touch<'_>, column: &ArrayRef, value: impl Fn(usize) -> f64) {
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT
                && column.is_valid(row)
                && let Some(bucket) = self.bucket(value(row))
            {
                self.cells[*slot as usize].add(bucket);
            }
        }
    }

    fn result(&self, cell: &Cell) -> Option<f64> {
        let buckets = cell.buckets();
        let total: u64 = buckets.iter().map(|b| u64::from(b.count)).sum();
        let last = total.checked_sub(1)?;
        let rank = self.fraction * last as f64;
        let below = rank.floor();
        let at = |rank: u64| {
            let mut seen = 0;
            let bucket = buckets.iter().find(|b| {
                seen += u64::from(b.count);
                seen > rank
            });
            bucket.map(|b| b.estimate(self.log_gamma))
        };
        let low = at(below as u64)?;
        let high = at((below as u64 + 1).min(last))?;
        Some(if low == high { low } else { low + (high - low) * (rank - below) })
    }
}

impl Accumulator for Percentile {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, Cell::default());
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = Cell::default();
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let column = column.ok_or_else(|| unexpected("a percentile", None))?;
        if let Some(values) = column.as_any().downcast_ref::<Int64Array>() {
            self.each(touch, column, |row| values.value(row) as f64);
        } else if let Some(values) = column.as_any().downcast_ref::<Float64Array>() {
            self.each(touch, column, |row| values.value(row));
        } else {
            return Err(unexpected("a percentile", Some(column)));
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        Arc::new(slots.iter().map(|slot| self.result(&self.cells[*slot as usize])).collect::<Float64Array>())
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let buckets = self.cells[*slot as usize].buckets();
            out.uint(buckets.len() as u64);
            let mut before = 0;
            for bucket in buckets {
                out.int(i64::from(bucket.index) - before);
                before = i64::from(bucket.index);
                // Whole numbers, the usual values, take a byte or two; others eight.
                let whole = bucket.value.fract() == 0.0 && bucket.value.abs() < 1e15;
                let form = if bucket.value.is_nan() { 0 } else { 1 + u64::from(whole) };
                out.uint(u64::from(bucket.count) * 3 + form);
                match form {
                    1 => out.float(bucket.value),
                    2 => out.int(bucket.value as i64),
                    _ => {}
                }
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            if *slot != NO_SLOT && !merge {
                self.reset(*slot);
            }
            let mut index = 0;
            for _ in 0..from.count()? {
                index += from.int()?;
                let count = from.uint()?;
                let value = match count % 3 {
                    1 => from.float()?,
                    2 => from.int()? as f64,
                    _ => f64::NAN,
                };
                let index = i32::try_from(index).map_err(|_| from.error("a bucket is out of range"))?;
                let count = u32::try_from(count / 3).map_err(|_| from.error("a count is out of range"))?;
                if *slot != NO_SLOT {
                    self.cells[*slot as usize].add(Bucket { index, count, value });
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let more: usize = self.cells.iter().filter_map(|cell| cell.more.as_ref()).map(|m| m.capacity() * 16 + 40).sum();
        self.cells.capacity() * size_of::<Cell>() + more
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;
    use proptest::prelude::*;

    fn filled(values: &[f64], fraction: f64) -> Percentile {
        let mut sketch = Percentile::new(fraction);
        sketch.grow(1);
        let column: ArrayRef = Arc::new(Float64Array::from(values.to_vec()));
        add(&mut sketch, &vec![0; values.len()], Some(column), &vec![0; values.len()], 0);
        sketch
    }

    fn exact(values: &[f64], fraction: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = fraction * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
        low + (high - low) * (rank - rank.floor())
    }

    #[test]
    fn few_values_are_exact() {
        let sketch = filled(&[5.0], 0.95);
        assert_eq!(sketch.result(&sketch.cells[0]), Some(5.0));
        let sketch = filled(&[10.0, 20.0, 20.0, 40.0], 0.5);
        assert_eq!(sketch.result(&sketch.cells[0]), Some(20.0));
        let sketch = filled(&[], 0.5);
        assert_eq!(sketch.result(&sketch.cells[0]), None);
        let sketch = filled(&[f64::NAN, 0.0, -3.0], 0.0);
        assert_eq!(sketch.result(&sketch.cells[0]), Some(-3.0));
    }

    proptest! {
        #[test]
        fn r6_a_percentile_is_within_one_percent_whatever_the_order_and_merging(
            values in proptest::collection::vec((1.0f64..1e6).prop_union(1e-6..10.0), 1..300),
            fraction in 0.0f64..1.0,
            cut in 0usize..300,
        ) {
            let whole = filled(&values, fraction);
            let result = whole.result(&whole.cells[0]).unwrap();
            let wanted = exact(&values, fraction);
            prop_assert!((result - wanted).abs() <= 0.01 * wanted.abs(), "{} is not near {}", result, wanted);
            let cut = cut.min(values.len());
            let mut left = filled(&values[cut..], fraction);
            let mut right = filled(&values[..cut], fraction);
            merge(&mut left, &mut right);
            prop_assert_eq!(left.result(&left.cells[0]).unwrap().to_bits(), result.to_bits());
        }
    }
}
