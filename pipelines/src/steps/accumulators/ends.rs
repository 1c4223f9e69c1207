//! `first_value` and `last_value`: by event time; of equal times by source, partition and offset,
//! so that the answer does not depend on which record came to the operator first.

use super::super::keys::KeyCodec;
use super::{Accumulator, CodecError, NO_SLOT, Reader, Touch, Writer, unexpected};
use arrow::array::{ArrayRef, new_null_array};

/// Event time, source, partition, offset.
type At = (i64, u32, u32, u64);

/// The value of the first or last record of each group; null if that record's value is null.
pub(crate) struct Ends {
    cells: Vec<Option<(At, Box<[u8]>)>>,
    codec: KeyCodec,
    last: bool,
}

impl Ends {
    /// `codec` is of the one column.
    pub(crate) fn new(codec: KeyCodec, last: bool) -> Ends {
        Ends { cells: Vec::new(), codec, last }
    }

    fn better(&self, slot: u32, at: At) -> bool {
        match &self.cells[slot as usize] {
            Some((old, _)) if self.last => at > *old,
            Some((old, _)) => at < *old,
            None => true,
        }
    }
}

impl Accumulator for Ends {
    fn grow(&mut self, slots: usize) {
        if self.cells.len() < slots {
            self.cells.resize(slots, None);
        }
    }

    fn reset(&mut self, slot: u32) {
        self.cells[slot as usize] = None;
    }

    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String> {
        let column = column.ok_or_else(|| unexpected("first_value or last_value", None))?;
        let encoder = self.codec.encoder(std::slice::from_ref(column))?;
        let mut bytes = Vec::new();
        for (row, slot) in touch.slots.iter().enumerate() {
            if *slot == NO_SLOT {
                continue;
            }
            let at = (touch.origin.event_time[row], touch.source, touch.origin.partition[row], touch.origin.offset[row]);
            if self.better(*slot, at) {
                bytes.clear();
                encoder.encode(row, &mut bytes);
                self.cells[*slot as usize] = Some((at, bytes.as_slice().into()));
            }
        }
        Ok(())
    }

    fn read(&self, slots: &[u32]) -> ArrayRef {
        let absent = self.codec.null_key();
        let cells = slots.iter().map(|slot| self.cells[*slot as usize].as_ref().map_or(&absent[..], |(_, value)| value));
        match self.codec.decode(cells) {
            Ok(mut columns) if columns.len() == 1 => columns.swap_remove(0),
            _ => new_null_array(&self.codec.types()[0], slots.len()),
        }
    }

    fn write(&mut self, slots: &[u32], _: &[i64], _: bool, out: &mut Writer) {
        for slot in slots {
            let cell = &self.cells[*slot as usize];
            out.byte(u8::from(cell.is_some()));
            if let Some(((time, source, partition, offset), value)) = cell {
                out.int(*time);
                out.uint(u64::from(*source));
                out.uint(u64::from(*partition));
                out.uint(*offset);
                out.slice(value);
            }
        }
    }

    fn load(&mut self, slots: &[u32], _: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError> {
        for slot in slots {
            let mut cell = None;
            if from.byte()? == 1 {
                let time = from.int()?;
                let small =
                    |value: u64, from: &Reader<'_>| u32::try_from(value).map_err(|_| from.error("a number is out of range"));
                let source = from.uint()?;
                let source = small(source, from)?;
                let partition = from.uint()?;
                let partition = small(partition, from)?;
                let offset = from.uint()?;
                cell = Some(((time, source, partition, offset), from.slice()?.into()));
            }
            if *slot == NO_SLOT {
                continue;
            }
            match cell {
                Some((at, value)) if !merge || self.better(*slot, at) => self.cells[*slot as usize] = Some((at, value)),
                None if !merge => self.cells[*slot as usize] = None,
                _ => {}
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let held: usize = self.cells.iter().flatten().map(|(_, value)| value.len() + 16).sum();
        self.cells.capacity() * size_of::<Option<(At, Box<[u8]>)>>() + held
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{add, merge};
    use super::*;
    use arrow::array::StringArray;
    use arrow::datatypes::DataType;
    use std::sync::Arc;

    #[test]
    fn r6_the_first_and_last_are_by_event_time_then_by_offset() {
        for (last, expected) in [(false, "b"), (true, "c")] {
            let fresh = || Ends::new(KeyCodec::new(vec![DataType::Utf8]), last);
            let (mut a, mut b) = (fresh(), fresh());
            add(&mut a, &[0, 0], Some(Arc::new(StringArray::from(vec!["a", "b"]))), &[5, 3], 0);
            add(&mut b, &[0, 0], Some(Arc::new(StringArray::from(vec!["x", "c"]))), &[3, 5], 2);
            merge(&mut b, &mut a);
            assert_eq!(b.read(&[0]).as_ref(), &StringArray::from(vec![expected]));
        }
    }
}
