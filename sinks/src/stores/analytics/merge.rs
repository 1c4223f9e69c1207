//! Reading several parts as one sorted run, one row a key, in bounded memory.
//!
//! Each part is read block by block. In each step, rows up to the smallest last key of the blocks
//! at hand are taken from all of them: no later block can hold a smaller key. A part is opened
//! only when that bound has reached its first time.

use super::super::layout::Layout;
use super::bloom;
use super::part::{self, Block, Part, Shape};
use crate::store::StoreError;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{and, filter};
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
    /// Columns of the key that have to equal a text: all versions of a row have the same, so other
    /// rows can be left out before the versions are compared.
    equals: Vec<(usize, String)>,
}

impl Merge {
    /// Reads `parts`, the columns `wanted` and what is needed to merge; blocks within `range` of
    /// time (inclusive) only, and rows only whose columns of the key are as `equals` says; of other
    /// columns it says nothing here.
    pub(crate) fn new(
        layout: &Layout,
        parts: Vec<Part>,
        wanted: &[usize],
        range: (i64, i64),
        equals: &[(String, String)],
    ) -> Result<Merge, StoreError> {
        let shape = Shape::new(layout);
        let mut read = wanted.to_vec();
        for needed in shape.order.iter().copied().chain([shape.time, shape.version()]) {
            if !read.contains(&needed) {
                read.push(needed);
            }
        }
        let converter = shape.converter()?;
        let of_key = |name: &str| bloom::columns(&shape).find(|c| shape.names[*c] == name);
        let equals = equals.iter().filter_map(|(name, text)| Some((of_key(name)?, text.clone()))).collect();
        Ok(Merge { shape, read, converter, pending: parts.into(), open: Vec::new(), range, equals })
    }

    fn place(&self, stored: usize) -> usize {
        self.read.iter().position(|c| *c == stored).unwrap_or(0)
    }

    /// The next block that has rows, with its keys.
    fn load(
        &mut self,
        connection: &Connection,
        part: &Part,
        blocks: &mut VecDeque<Block>,
    ) -> Result<Option<(Vec<ArrayRef>, Rows)>, StoreError> {
        while let Some(block) = blocks.pop_front() {
            let mut columns = part::load(connection, &self.shape, part, &block, &self.read)?;
            if !self.equals.is_empty() {
                let kept = self.kept(&columns)?;
                let filtered = columns.iter().map(|c| filter(c, &kept).map_err(|e| part::arrow_error(&e)));
                columns = filtered.collect::<Result<_, _>>()?;
            }
            if columns.first().is_some_and(|c| c.is_empty()) {
                continue;
            }
            let order: Vec<ArrayRef> = self.shape.order.iter().map(|c| columns[self.place(*c)].clone()).collect();
            let keys = part::keys(&mut self.converter, &order)?;
            return Ok(Some((columns, keys)));
        }
        Ok(None)
    }

    /// Which rows of a block are asked for.
    fn kept(&self, columns: &[ArrayRef]) -> Result<BooleanArray, StoreError> {
        let mut kept = BooleanArray::from(vec![true; columns.first().map_or(0, |c| c.len())]);
        for (column, text) in &self.equals {
            let texts = columns[self.place(*column)].as_string::<i32>();
            let same = eq(texts, &StringArray::new_scalar(text)).map_err(|e| part::arrow_error(&e))?;
            kept = and(&kept, &same).map_err(|e| part::arrow_error(&e))?;
        }
        Ok(kept)
    }

    fn open_next(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let Some(part) = self.pending.pop_front() else { return Ok(()) };
        let mut blocks = part::blocks(connection, &self.shape, part.id, self.range, &self.equals)?;
        if let Some((columns, keys)) = self.load(connection, &part, &mut blocks)? {
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
                let Some(next) = self.load(connection, &cursor.part, &mut cursor.blocks)? else { continue };
                (cursor.columns, cursor.keys) = next;
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
