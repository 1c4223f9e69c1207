//! `count(*)`, `count(x)`, and both with a filter.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array};
use std::sync::Arc;

/// How many rows; with a Boolean column, how many true ones.
#[derive(Default)]
pub(crate) struct Count {
    cells: Vec<u64>,
}

impl Accumulator for Count {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, 0);
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = 0;
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let Some(column) = column else {
            for slot in touch.slots.iter().filter(|slot| **slot != NO_SLOT) {
                self.cells[*slot as usize] += 1;
            }
            return Ok(());
        };
        let counts = column.as_any().downcast_ref::<BooleanArray>().ok_or_else(|| unexpected("count", Some(column)))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && counts.is_valid(row) && counts.value(row) {
                self.cells[*slot as usize] += 1;
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        let counts = slots.iter().map(|slot| i64::try_from(self.cells[*slot as usize]).unwrap_or(i64::MAX));
        Arc::new(Int64Array::from_iter_values(counts))
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            out.uint(self.cells[*slot as usize]);
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let count = from.uint()?;
            if *slot != NO_SLOT {
                let cell = &mut self.cells[*slot as usize];
                *cell = if merge { *cell + count } else { count };
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.cells.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;

    #[test]
    fn r6_counts_are_read_without_consuming_and_merge() {
        let mut a = Count::default();
        add(&mut a, &[0, 0, 1, NO_SLOT], None, &[0; 4], 0);
        let valid: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        add(&mut a, &[0, 0, 0], Some(valid), &[0; 3], 4);
        for _ in 0..2 {
            assert_eq!(a.read(&[1, 0]).as_ref(), &Int64Array::from(vec![1, 3]));
        }
        let mut b = Count::default();
        merge(&mut b, &mut a);
        merge(&mut b, &mut a);
        assert_eq!(b.read(&[0]).as_ref(), &Int64Array::from(vec![6]));
        b.reset(0);
        assert_eq!(b.read(&[0]).as_ref(), &Int64Array::from(vec![0]));
    }
}
