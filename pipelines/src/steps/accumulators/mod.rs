//! Aggregates' state (R6): columnar, one cell a group, read without consuming, mergeable, and the
//! same whatever the order in which records came.
//!
//! A group is a slot number; an accumulator keeps one cell for each slot, so that a group needs no
//! allocation of its own in the common case. Whoever owns the slots (a window) resets a cell before
//! its slot is used again.

mod count;
mod distinct;
mod ends;
mod extremes;
mod hll;
mod percentile;
mod sum;

pub(crate) use count::Count;
pub(crate) use distinct::Distinct;
pub(crate) use ends::Ends;
pub(crate) use extremes::extreme;
pub(crate) use hll::ApproxDistinct;
pub(crate) use percentile::Percentile;
pub(crate) use sum::{FloatSum, IntSum};

use super::codec::{CodecError, Reader, Writer};
use super::common::Origin;
use arrow::array::ArrayRef;

/// No slot: the row is left out.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// Rows and the groups that they belong to.
#[derive(Clone, Copy)]
pub(crate) struct Touch<'a> {
    /// A row's slot, or [`NO_SLOT`].
    pub(crate) slots: &'a [u32],
    /// A row's window.
    pub(crate) starts: &'a [i64],
    /// Where each row came from.
    pub(crate) origin: Origin<'a>,
    /// Index of the source that all rows are from.
    pub(crate) source: u32,
}

/// One aggregate's cells.
pub(crate) trait Accumulator: Send {
    /// Makes room for so many slots.
    fn grow(&mut self, slots: usize);

    /// Empties a cell.
    fn reset(&mut self, slot: u32);

    /// Forgets what is kept for a window as a whole; its slots are reset one by one.
    fn drop_window(&mut self, _start: i64) {}

    /// Adds rows. `column` is what `prepare` made of the argument; none for `count(*)`.
    /// A column of an unexpected type is an error of the plan: the message says which.
    fn update(&mut self, touch: &Touch<'_>, column: Option<&ArrayRef>) -> Result<(), String>;

    /// The results of some slots, without consuming them.
    fn read(&self, slots: &[u32]) -> ArrayRef;

    /// Writes the cells of some slots (and their windows): whole, or what is needed since the last
    /// `write` for a reader that has all that was written before.
    fn write(&mut self, slots: &[u32], starts: &[i64], whole: bool, out: &mut Writer);

    /// Reads what `write` wrote, into these slots; those of [`NO_SLOT`] are passed over.
    /// With `merge` the cells are combined with what is there, else replaced by it.
    fn load(&mut self, slots: &[u32], starts: &[i64], merge: bool, from: &mut Reader<'_>) -> Result<(), CodecError>;

    /// Bytes of memory held, roughly.
    fn bytes(&self) -> usize;
}

/// The message for a column of a type that was not planned.
fn unexpected(what: &str, column: Option<&ArrayRef>) -> String {
    match column {
        Some(column) => format!("{what} was given a column of type {}", column.data_type()),
        None => format!("{what} was given no column"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Runs an accumulator over (slot, window) rows.

    use super::*;

    /// Adds `column`'s rows to `slots`, all of window 0 and partition 0, offsets from `first`.
    pub(crate) fn add(acc: &mut dyn Accumulator, slots: &[u32], column: Option<ArrayRef>, times: &[i64], first: u64) {
        let rows = slots.len();
        let starts = vec![0; rows];
        let partition = vec![0; rows];
        let offset: Vec<u64> = (first..first + rows as u64).collect();
        let watermark = vec![i64::MIN; rows];
        let origin = Origin { partition: &partition, offset: &offset, event_time: times, watermark: &watermark };
        acc.grow(slots.iter().filter(|s| **s != NO_SLOT).max().map_or(0, |s| *s as usize + 1));
        acc.update(&Touch { slots, starts: &starts, origin, source: 0 }, column.as_ref()).unwrap();
    }

    /// Writes slot 0 of `from` whole and merges it into slot 0 of `into`.
    pub(crate) fn merge(into: &mut dyn Accumulator, from: &mut dyn Accumulator) {
        let mut out = Writer::new(1);
        from.write(&[0], &[0], true, &mut out);
        into.grow(1);
        into.load(&[0], &[0], true, &mut Reader::new(&out.bytes, 1).unwrap()).unwrap();
    }
}
