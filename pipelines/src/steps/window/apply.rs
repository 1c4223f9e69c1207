//! Owns the open windows: takes prepared rows, emits changed groups, closes windows, keeps state.

use super::super::accumulators::{Accumulator, NO_SLOT, Touch};
use super::super::common::{ORIGINS, Origin, broken, values};
use super::super::keys::KeyCodec;
use super::assign::Windows;
use super::groups::Groups;
use crate::operator::{Due, Emit, EpochTime, Keyed, LateRow, OperatorError, Rows};
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringBuilder, TimestampMicrosecondArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{Schema, UInt64Type};
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use std::sync::Arc;

/// Rows in one batch of output at most.
const BATCH: usize = 16_384;

/// The keyed operator of a window.
pub(crate) struct Apply {
    pub(super) step: String,
    pub(super) windows: Windows,
    pub(super) codec: KeyCodec,
    pub(super) groups: Groups,
    /// With the column of its argument, counted from the first after the origin columns and `_group`.
    pub(super) accumulators: Vec<(Box<dyn Accumulator>, Option<usize>)>,
    pub(super) output: Arc<Schema>,
    /// Windows that end here or before are closed, for every record (R4).
    pub(super) closed_until: i64,
    /// `closed_until` has moved since state was last written.
    pub(super) moved: bool,
    slots: Vec<u32>,
    starts: Vec<i64>,
}

impl Apply {
    pub(super) fn new(
        step: &str,
        windows: Windows,
        codec: KeyCodec,
        accumulators: Vec<(Box<dyn Accumulator>, Option<usize>)>,
        output: Arc<Schema>,
    ) -> Apply {
        Apply {
            step: step.to_owned(),
            windows,
            codec,
            groups: Groups::default(),
            accumulators,
            output,
            closed_until: i64::MIN,
            moved: false,
            slots: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Rows of some groups, in the order of window, key hash and key: the same whatever the order
    /// in which records came.
    fn emit(&self, slots: Vec<(u32, bool)>, epoch: u64, emit: &mut Emit) -> Result<(), OperatorError> {
        let groups = &self.groups;
        let placed = slots.into_iter().map(|(slot, last)| (groups.start(slot), groups.key_hash(slot), slot, last));
        let mut placed: Vec<(i64, u64, u32, bool)> = placed.collect();
        placed.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| groups.key(a.2).cmp(groups.key(b.2))));
        let slots: Vec<(u32, bool)> = placed.into_iter().map(|(_, _, slot, last)| (slot, last)).collect();
        for part in slots.chunks(BATCH) {
            let batch = self.rows(part, epoch)?;
            emit.push(Rows { source: 0, batch });
        }
        Ok(())
    }

    fn rows(&self, part: &[(u32, bool)], epoch: u64) -> Result<RecordBatch, OperatorError> {
        let slots: Vec<u32> = part.iter().map(|(slot, _)| *slot).collect();
        let rows = slots.len();
        let starts: Vec<i64> = slots.iter().map(|slot| self.groups.start(*slot)).collect();
        let ends: Vec<i64> = starts.iter().map(|start| self.windows.end(*start)).collect();
        let time = |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
        let mut keys = StringBuilder::with_capacity(rows, rows * 16);
        let mut text = String::new();
        for slot in &slots {
            text.clear();
            self.codec.text(self.groups.key(*slot), &mut text);
            keys.append_value(&text);
        }
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![0; rows])),
            Arc::new(UInt64Array::from(vec![0; rows])),
            time(starts.clone()),
            Arc::new(Int64Array::from(vec![i64::MIN; rows])),
            Arc::new(keys.finish()),
            time(starts),
            time(ends),
        ];
        let decoded = self.codec.decode(slots.iter().map(|slot| self.groups.key(*slot)));
        columns.extend(decoded.map_err(|e| broken(&self.step, e))?);
        columns.extend(self.accumulators.iter().map(|(accumulator, _)| accumulator.read(&slots)));
        columns.push(Arc::new(part.iter().map(|(_, last)| Some(*last)).collect::<BooleanArray>()));
        columns.push(Arc::new(Int64Array::from(vec![i64::try_from(epoch).unwrap_or(i64::MAX); rows])));
        super::super::common::batch(&self.step, &self.output, columns)
    }

    /// Forgets closed windows; their groups' cells are empty afterwards.
    pub(super) fn drop_windows(&mut self, closing: &[i64]) {
        let mut slots = Vec::new();
        for start in closing {
            slots.clear();
            self.groups.of_window(*start, &mut slots);
            for (accumulator, _) in &mut self.accumulators {
                slots.iter().for_each(|slot| accumulator.reset(*slot));
                accumulator.drop_window(*start);
            }
            self.groups.drop_window(*start, &slots);
        }
    }
}

impl Keyed for Apply {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let total = rows.batch.num_rows();
        emit.counts.input += total as u64;
        let origin = Origin::of(&self.step, &rows.batch)?;
        let keys = rows.batch.column(ORIGINS).as_any().downcast_ref::<BinaryArray>();
        let keys = keys.ok_or_else(|| broken(&self.step, "the group's key is missing"))?;
        let hashes = values::<UInt64Type>(&self.step, &rows.batch, rows.batch.num_columns() - 1)?;
        self.slots.clear();
        self.starts.clear();
        let mut late = 0;
        let mut last = None;
        for (row, &hash) in hashes.iter().enumerate() {
            let start = self.windows.start(origin.event_time[row]);
            self.starts.push(start);
            if self.windows.closed(start, origin.watermark[row]) || self.windows.end(start) <= self.closed_until {
                late += 1;
                emit.late.push(LateRow {
                    source: rows.source,
                    partition: PartitionId(origin.partition[row]),
                    offset: Offset(origin.offset[row]),
                });
                self.slots.push(NO_SLOT);
                continue;
            }
            let key = keys.value(row);
            let slot = match last {
                Some((window, before, slot)) if window == start && before == hash && self.groups.key(slot) == key => slot,
                _ => self.groups.touch(start, key, hash),
            };
            last = Some((start, hash, slot));
            self.slots.push(slot);
        }
        emit.counts.late += late;
        emit.counts.applied += total as u64 - late;
        let touch = Touch { slots: &self.slots, starts: &self.starts, origin, source: rows.source };
        for (accumulator, column) in &mut self.accumulators {
            accumulator.grow(self.groups.slots());
            let column = column.map(|column| rows.batch.column(ORIGINS + 1 + column));
            accumulator.update(&touch, column).map_err(|e| broken(&self.step, e))?;
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let until = self.windows.closed_until(time.watermark.0);
        if until > self.closed_until {
            self.closed_until = until;
            self.moved = true;
        }
        let closing = self.groups.closing(|start| self.windows.end(start) <= self.closed_until);
        let mut slots = Vec::new();
        for start in &closing {
            self.groups.of_window(*start, &mut slots);
        }
        let mut changed: Vec<(u32, bool)> = slots.into_iter().map(|slot| (slot, true)).collect();
        let open = self.groups.take_touched().into_iter().filter(|s| self.windows.end(self.groups.start(*s)) > self.closed_until);
        changed.extend(open.map(|slot| (slot, false)));
        if !changed.is_empty() {
            self.emit(changed, time.epoch.0, emit)?;
        }
        self.drop_windows(&closing);
        Ok(())
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        let slots = self.groups.take_unwritten();
        (!slots.is_empty() || self.moved).then(|| self.write(&slots, false))
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.groups.take_unwritten();
        let slots = self.groups.all();
        self.write(&slots, true)
    }

    fn restore(&mut self, bytes: &[u8], _: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        self.read(bytes, owns).map_err(|e| broken(&self.step, e))
    }

    fn due(&self) -> Due {
        let watermark = self.groups.first_window().map(|start| EventTime(self.windows.closes_at(start)));
        Due { watermark, wall_clock: None }
    }

    fn state_bytes(&self) -> usize {
        self.groups.bytes() + self.accumulators.iter().map(|(accumulator, _)| accumulator.bytes()).sum::<usize>()
    }
}
