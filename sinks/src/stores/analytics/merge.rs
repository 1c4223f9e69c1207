//! Reading several parts as one sorted run, one row a key, in bounded memory.
//!
//! Each part is read block by block. In each step, rows up to the smallest last key of the blocks
//! at hand are taken from all of them: no later block can hold a smaller key. A part is opened
//! only when that bound has reached its first time.

use super::super::layout::Layout;
use super::part::{self, Block, Part, Shape};
use crate::store::StoreError;
use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows};
use rusqlite::Connection;
use std::collections::VecDeque;

/// One part being read.
struct Cursor {
    part: Part,
    blocks: VecDeque<Block>,
    columns: Vec<ArrayRef>,
    keys: Rows,
    at: usize,
}

/// Several parts being read as one.
pub(crate) struct Merge {
    shape: Shape,
    /// Stored columns that are read; the order's, the time and the version are always among them.
    pub(crate) read: Vec<usize>,
    converter: RowConverter,
    pending: VecDeque<Part>,
    open: Vec<Cursor>,
    range: (i64, i64),
}

impl Merge {
    /// Reads `parts`, the columns `wanted` and what is needed to merge; blocks within `range` of
    /// time (inclusive) only.
    pub(crate) fn new(layout: &Layout, parts: Vec<Part>, wanted: &[usize], range: (i64, i64)) -> Result<Merge, StoreError> {
        let shape = Shape::new(layout);
        let mut read = wanted.to_vec();
        for needed in shape.order.iter().copied().chain([shape.time, shape.version()]) {
            if !read.contains(&needed) {
                read.push(needed);
            }
        }
        let converter = shape.converter()?;
        Ok(Merge { shape, read, converter, pending: parts.into(), open: Vec::new(), range })
    }

    fn place(&self, stored: usize) -> usize {
        self.read.iter().position(|c| *c == stored).unwrap_or(0)
    }

    fn load(&mut self, connection: &Connection, part: &Part, block: &Block) -> Result<(Vec<ArrayRef>, Rows), StoreError> {
        let columns = part::load(connection, &self.shape, part, block, &self.read)?;
        let order: Vec<ArrayRef> = self.shape.order.iter().map(|c| columns[self.place(*c)].clone()).collect();
        let keys = part::keys(&mut self.converter, &order)?;
        Ok((columns, keys))
    }

    fn open_next(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let Some(part) = self.pending.pop_front() else { return Ok(()) };
        let mut blocks: VecDeque<Block> = part::blocks(connection, part.id, self.range.0, self.range.1)?.into();
        if let Some(first) = blocks.pop_front() {
            let (columns, keys) = self.load(connection, &part, &first)?;
            self.open.push(Cursor { part, blocks, columns, keys, at: 0 });
        }
        Ok(())
    }

    /// The next rows in order: the columns of `read`. `None` at the end.
    pub(crate) fn step(&mut self, connection: &Connection) -> Result<Option<Vec<ArrayRef>>, StoreError> {
        if !self.shape.timed {
            while !self.pending.is_empty() {
                self.open_next(connection)?;
            }
        }
        while self.open.is_empty() && !self.pending.is_empty() {
            self.open_next(connection)?;
        }
        let time = self.place(self.shape.time);
        let bound = loop {
            let last = |c: &Cursor| c.keys.num_rows() - 1;
            let Some(lowest) = self.open.iter().min_by(|a, b| a.keys.row(last(a)).cmp(&b.keys.row(last(b)))) else {
                return Ok(None);
            };
            let until = lowest.columns[time].as_primitive::<TimestampMicrosecondType>().value(last(lowest));
            if self.pending.front().is_none_or(|p| p.min_time > until) {
                break lowest.keys.row(last(lowest)).owned();
            }
            self.open_next(connection)?;
        };
        let mut runs = Vec::new();
        let mut keep = Vec::with_capacity(self.open.len());
        for mut cursor in std::mem::take(&mut self.open) {
            let (mut low, mut high) = (cursor.at, cursor.keys.num_rows());
            while low < high {
                let middle = low.midpoint(high);
                if cursor.keys.row(middle) <= bound.row() { low = middle + 1 } else { high = middle }
            }
            if low > cursor.at {
                let length = low - cursor.at;
                runs.push(cursor.columns.iter().map(|c| c.slice(cursor.at, length)).collect::<Vec<_>>());
                cursor.at = low;
            }
            if cursor.at == cursor.keys.num_rows() {
                let Some(next) = cursor.blocks.pop_front() else { continue };
                (cursor.columns, cursor.keys) = self.load(connection, &cursor.part, &next)?;
                cursor.at = 0;
            }
            keep.push(cursor);
        }
        self.open = keep;
        let columns = part::join(&runs)?;
        if runs.len() < 2 {
            return Ok(Some(columns));
        }
        let order: Vec<ArrayRef> = self.shape.order.iter().map(|c| columns[self.place(*c)].clone()).collect();
        let keys = part::keys(&mut self.converter, &order)?;
        let versions = columns[self.place(self.shape.version())].as_primitive::<Int64Type>();
        Ok(Some(match part::order(&keys, versions) {
            Some(places) => part::pick(&columns, &places)?,
            None => columns,
        }))
    }
}
