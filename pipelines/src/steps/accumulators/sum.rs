//! `sum` and `avg`: exact, so that the order of records never shows.
//!
//! Whole numbers are summed in 128 bits. Floats are kept as a sum of non-overlapping parts
//! (J. R. Shewchuk, Adaptive Precision Floating-Point Arithmetic, 1997) and rounded once, on
//! reading: the result is the correctly rounded sum of all values, whatever their order. A sum
//! that passes 1.8e308 on the way is infinite.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array};
use std::sync::Arc;

/// `sum` or `avg` of whole numbers.
pub(crate) struct IntSum {
    cells: Vec<(i128, u64)>,
    average: bool,
}

impl IntSum {
    pub(crate) fn new(average: bool) -> IntSum {
        IntSum { cells: Vec::new(), average }
    }
}

impl Accumulator for IntSum {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, (0, 0));
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = (0, 0);
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let values = column.and_then(|c| c.as_any().downcast_ref::<Int64Array>());
        let values = values.ok_or_else(|| unexpected("sum", column))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && values.is_valid(row) {
                let cell = &mut self.cells[*slot as usize];
                cell.0 += i128::from(values.value(row));
                cell.1 += 1;
            }
        }
        Ok(())
    }

    /// A sum that does not fit into 64 bits is null: a wrong number is never given.
    fn read(&self, slots: &[u32]) -> ArrayRef {
        let cells = slots.iter().map(|slot| self.cells[*slot as usize]);
        match self.average {
            true => Arc::new(cells.map(|(sum, n)| (n > 0).then(|| sum as f64 / n as f64)).collect::<Float64Array>()),
            false => Arc::new(cells.map(|(sum, n)| i64::try_from(sum).ok().filter(|_| n > 0)).collect::<Int64Array>()),
        }
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let (sum, n) = self.cells[*slot as usize];
            match i64::try_from(sum) {
                Ok(sum) => {
                    out.uint(n << 1);
                    out.int(sum);
                }
                Err(_) => {
                    out.uint(n << 1 | 1);
                    out.wide(sum as u128);
                }
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let n = from.uint()?;
            let sum = if n & 1 == 1 { from.wide()? as i128 } else { i128::from(from.int()?) };
            if *slot != NO_SLOT {
                let cell = &mut self.cells[*slot as usize];
                *cell = if merge { (cell.0 + sum, cell.1 + (n >> 1)) } else { (sum, n >> 1) };
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.cells.capacity() * size_of::<(i128, u64)>()
    }
}

/// The parts of one exact sum: the first in place, more of them only where values need it.
#[derive(Clone, Debug, Default)]
struct Parts {
    /// The largest part.
    high: f64,
    /// The smaller parts, from small to large.
    low: Vec<f64>,
    /// The sum of infinities and NaNs, which have no parts.
    special: f64,
    n: u64,
}

impl Parts {
    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.special += value;
            return;
        }
        let mut x = value;
        let mut kept = 0;
        for i in 0..self.low.len() {
            let (high, low) = two_sum(x, self.low[i]);
            if low != 0.0 {
                self.low[kept] = low;
                kept += 1;
            }
            x = high;
        }
        self.low.truncate(kept);
        let (high, low) = two_sum(x, self.high);
        if !high.is_finite() {
            self.special += high;
            return;
        }
        if low != 0.0 {
            self.low.push(low);
        }
        self.high = high;
    }

    /// The sum, rounded once to the nearest, ties to even.
    fn round(&self) -> f64 {
        if self.special != 0.0 || self.special.is_nan() {
            return self.special;
        }
        let mut parts = self.low.iter().rev().copied();
        let mut high = self.high;
        let mut low = 0.0;
        for part in parts.by_ref() {
            let sum = high + part;
            low = part - (sum - high);
            high = sum;
            if low != 0.0 {
                break;
            }
        }
        // A tie between two floats is decided by the sign of what lies below it.
        if let Some(below) = parts.next()
            && ((low < 0.0 && below < 0.0) || (low > 0.0 && below > 0.0))
        {
            let doubled = low * 2.0;
            let sum = high + doubled;
            if doubled == sum - high {
                return sum;
            }
        }
        high
    }
}

/// The rounded sum and what rounding lost.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let (large, small) = if a.abs() < b.abs() { (b, a) } else { (a, b) };
    let high = large + small;
    (high, small - (high - large))
}

/// `sum` or `avg` of floats.
pub(crate) struct FloatSum {
    cells: Vec<Parts>,
    average: bool,
}

impl FloatSum {
    pub(crate) fn new(average: bool) -> FloatSum {
        FloatSum { cells: Vec::new(), average }
    }
}

impl Accumulator for FloatSum {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, Parts::default());
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = Parts::default();
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let values = column.and_then(|c| c.as_any().downcast_ref::<Float64Array>());
        let values = values.ok_or_else(|| unexpected("sum", column))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && values.is_valid(row) {
                let cell = &mut self.cells[*slot as usize];
                cell.n += 1;
                cell.add(values.value(row));
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        let result = |slot: &u32| {
            let cell = &self.cells[*slot as usize];
            (cell.n > 0).then(|| if self.average { cell.round() / cell.n as f64 } else { cell.round() })
        };
        Arc::new(slots.iter().map(result).collect::<Float64Array>())
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let cell = &self.cells[*slot as usize];
            out.uint(cell.n);
            out.uint(cell.low.len() as u64);
            out.float(cell.special);
            out.float(cell.high);
            for part in &cell.low {
                out.float(*part);
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let n = from.uint()?;
            let parts = from.count()?;
            let special = from.float()?;
            let high = from.float()?;
            let low = (0..parts).map(|_| from.float()).collect::<Result<Vec<f64>, CodecError>>()?;
            if *slot == NO_SLOT {
                continue;
            }
            let cell = &mut self.cells[*slot as usize];
            if merge {
                cell.n += n;
                cell.special += special;
                low.iter().chain([&high]).for_each(|part| cell.add(*part));
            } else {
                *cell = Parts { high, low, special, n };
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let low: usize = self.cells.iter().map(|cell| cell.low.capacity() * 8).sum();
        self.cells.capacity() * size_of::<Parts>() + low
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;
    use proptest::prelude::*;

    fn sum_of(values: &[f64]) -> f64 {
        let mut parts = Parts::default();
        values.iter().for_each(|value| parts.add(*value));
        parts.round()
    }

    #[test]
    fn float_sums_are_exact() {
        assert_eq!(sum_of(&[1e100, 1.0, -1e100]), 1.0);
        assert_eq!(sum_of(&[0.1; 10]), 1.0);
        assert_eq!(sum_of(&[1e16, 1.0, 1e-16]), 10_000_000_000_000_002.0);
        assert_eq!(sum_of(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum_of(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
    }

    #[test]
    fn r6_sums_merge_and_a_sum_beyond_64_bits_is_null_until_it_fits() {
        let mut a = IntSum::new(false);
        add(&mut a, &[0, 0], Some(Arc::new(Int64Array::from(vec![i64::MAX, 1]))), &[0; 2], 0);
        assert!(a.read(&[0]).is_null(0));
        let mut b = IntSum::new(false);
        add(&mut b, &[0, 1], Some(Arc::new(Int64Array::from(vec![Some(-2), None]))), &[0; 2], 0);
        merge(&mut b, &mut a);
        assert_eq!(b.read(&[0, 1]).as_ref(), &Int64Array::from(vec![Some(i64::MAX - 1), None]));
        let mut average = IntSum::new(true);
        add(&mut average, &[0, 0], Some(Arc::new(Int64Array::from(vec![1, 2]))), &[0; 2], 0);
        assert_eq!(average.read(&[0]).as_ref(), &Float64Array::from(vec![1.5]));
    }

    proptest! {
        #[test]
        fn r6_float_sums_do_not_depend_on_order_or_merging(
            values in proptest::collection::vec((-1e300f64..1e300).prop_union(-1.0..1.0), 1..60),
            cut in 0usize..60,
        ) {
            let forward = sum_of(&values);
            let mut backward = values.clone();
            backward.reverse();
            prop_assert_eq!(forward.to_bits(), sum_of(&backward).to_bits());
            let cut = cut.min(values.len());
            let (mut left, mut right) = (FloatSum::new(false), FloatSum::new(false));
            left.grow(1);
            right.grow(1);
            let column = |values: &[f64]| Some(Arc::new(Float64Array::from(values.to_vec())) as ArrayRef);
            add(&mut left, &vec![0; cut], column(&values[..cut]), &vec![0; cut], 0);
            add(&mut right, &vec![0; values.len() - cut], column(&values[cut..]), &vec![0; values.len() - cut], 0);
            merge(&mut right, &mut left);
            let merged = right.read(&[0]);
            let wanted = Float64Array::from(vec![forward]);
            prop_assert_eq!(merged.as_ref(), &wanted);
        }
    }
}
