//! `min` and `max`.

use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use std::sync::Arc;

/// The accumulator for values of type `ty` (one that edges carry).
pub(crate) fn extreme(ty: &DataType, max: bool) -> Option<Box<dyn Accumulator>> {
    match ty {
        DataType::Utf8 => Some(Box::new(TextExtreme { cells: Vec::new(), max })),
        DataType::Int64 | DataType::Float64 | DataType::Boolean | DataType::Timestamp(..) => {
            Some(Box::new(NumberExtreme { cells: Vec::new(), ty: ty.clone(), max }))
        }
        _ => None,
    }
}

/// Numbers, times and Booleans, as integers of the same order.
struct NumberExtreme {
    cells: Vec<Option<i64>>,
    ty: DataType,
    max: bool,
}

/// Maps floats to integers of the same total order (NaN is the largest); its own inverse.
fn ordered(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

impl NumberExtreme {
    fn offer(&mut self, slot: u32, value: i64) {
        let cell = &mut self.cells[slot as usize];
        *cell = Some(match *cell {
            Some(old) if self.max => old.max(value),
            Some(old) => old.min(value),
            None => value,
        });
    }

    fn each(&mut self, touch: &Touch<'_>, column: &ArrayRef, value: impl Fn(usize) -> i64) {
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && column.is_valid(row) {
                self.offer(*slot, value(row));
            }
        }
    }
}

impl Accumulator for NumberExtreme {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, None);
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = None;
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let column = column.ok_or_else(|| unexpected("min or max", None))?;
        let any = column.as_any();
        if let Some(values) = any.downcast_ref::<Int64Array>() {
            self.each(touch, column, |row| values.value(row));
        } else if let Some(values) = any.downcast_ref::<Float64Array>() {
            self.each(touch, column, |row| ordered((values.value(row) + 0.0).to_bits() as i64));
        } else if let Some(values) = any.downcast_ref::<TimestampMicrosecondArray>() {
            self.each(touch, column, |row| values.value(row));
        } else if let Some(values) = any.downcast_ref::<BooleanArray>() {
            self.each(touch, column, |row| i64::from(values.value(row)));
        } else {
            return Err(unexpected("min or max", Some(column)));
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        let cells = slots.iter().map(|slot| self.cells[*slot as usize]);
        match &self.ty {
            DataType::Float64 => {
                Arc::new(cells.map(|cell| cell.map(|v| f64::from_bits(ordered(v) as u64))).collect::<Float64Array>())
            }
            DataType::Boolean => Arc::new(cells.map(|cell| cell.map(|v| v != 0)).collect::<BooleanArray>()),
            DataType::Timestamp(_, zone) => {
                let times: TimestampMicrosecondArray = cells.collect();
                Arc::new(times.with_timezone_opt(zone.clone()))
            }
            _ => Arc::new(cells.collect::<Int64Array>()),
        }
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let cell = self.cells[*slot as usize];
            out.byte(u8::from(cell.is_some()));
            if let Some(value) = cell {
                out.int(value);
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let value = if from.byte()? == 1 { Some(from.int()?) } else { None };
            if *slot == NO_SLOT {
                continue;
            }
            match value {
                Some(value) if merge => self.offer(*slot, value),
                value if !merge => self.cells[*slot as usize] = value,
                _ => {}
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.cells.capacity() * 16
    }
}

/// Text, by its bytes.
struct TextExtreme {
    cells: Vec<Option<Box<str>>>,
    max: bool,
}

impl TextExtreme {
    fn offer(&mut self, slot: u32, value: &str) {
        let cell = &mut self.cells[slot as usize];
        let better = match cell {
            Some(old) if self.max => value > &**old,
            Some(old) => value < &**old,
            None => true,
        };
        if better {
            *cell = Some(value.into());
        }
    }
}

impl Accumulator for TextExtreme {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, None);
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = None;
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let values = column.and_then(|c| c.as_any().downcast_ref::<StringArray>());
        let values = values.ok_or_else(|| unexpected("min or max", column))?;
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot != NO_SLOT && values.is_valid(row) {
                self.offer(*slot, values.value(row));
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        Arc::new(slots.iter().map(|slot| self.cells[*slot as usize].as_deref()).collect::<StringArray>())
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let cell = &self.cells[*slot as usize];
            out.byte(u8::from(cell.is_some()));
            if let Some(value) = cell {
                out.slice(value.as_bytes());
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let value = match from.byte()? {
                1 => Some(std::str::from_utf8(from.slice()?).map_err(|_| from.error("text is not UTF-8"))?),
                _ => None,
            };
            if *slot == NO_SLOT {
                continue;
            }
            match value {
                Some(value) if merge => self.offer(*slot, value),
                value if !merge => self.cells[*slot as usize] = value.map(Into::into),
                _ => {}
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let text: usize = self.cells.iter().flatten().map(|text| text.len() + 16).sum();
        self.cells.capacity() * 16 + text
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;

    #[test]
    fn r6_extremes_of_each_type_merge() {
        let cases: Vec<(DataType, ArrayRef, ArrayRef, ArrayRef)> = vec![
            (
                DataType::Int64,
                Arc::new(Int64Array::from(vec![Some(3), None, Some(-5)])),
                Arc::new(Int64Array::from(vec![-5])),
                Arc::new(Int64Array::from(vec![3])),
            ),
            (
                DataType::Float64,
                Arc::new(Float64Array::from(vec![-1.5, -0.25, 2.0])),
                Arc::new(Float64Array::from(vec![-1.5])),
                Arc::new(Float64Array::from(vec![2.0])),
            ),
            (
                DataType::Utf8,
                Arc::new(StringArray::from(vec!["b", "ä", "a"])),
                Arc::new(StringArray::from(vec!["a"])),
                Arc::new(StringArray::from(vec!["ä"])),
            ),
            (
                DataType::Boolean,
                Arc::new(BooleanArray::from(vec![true, false])),
                Arc::new(BooleanArray::from(vec![false])),
                Arc::new(BooleanArray::from(vec![true])),
            ),
        ];
        for (ty, column, least, most) in cases {
            for (max, expected) in [(false, least), (true, most)] {
                let mut a = extreme(&ty, max).unwrap();
                let mut b = extreme(&ty, max).unwrap();
                add(a.as_mut(), &vec![0; column.len()], Some(column.clone()), &vec![0; column.len()], 0);
                b.grow(1);
                assert!(b.read(&[0]).is_null(0));
                merge(b.as_mut(), a.as_mut());
                merge(b.as_mut(), a.as_mut());
                assert_eq!(&b.read(&[0]), &expected, "{ty} max {max}");
            }
        }
    }
}
