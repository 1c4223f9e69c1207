//! The keyed operator of a join: takes the table's versions, lets records wait, looks up.

use super::super::codec::{CodecError, Reader, Writer};
use super::super::common::{ORIGINS, Origin, broken, is_true, put_column, take};
use super::super::keyed::{Horizon, in_one_order, keys_of};
use super::super::keys::{KeyCodec, hash};
use super::table::{Version, VersionedTable};
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, OperatorError, Rows};
use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::datatypes::Schema;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use quikflow_topics::ids::EventTime;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where a selected column goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) replaced: bool,
}

/// What the step has decided.
pub(super) struct Config {
    pub(super) step: String,
    pub(super) row_key: KeyCodec,
    pub(super) select: KeyCodec,
    /// The last computed column says whether the record deletes.
    pub(super) delete: bool,
    pub(super) left: bool,
    pub(super) max_wait: i64,
    pub(super) history: i64,
    /// The key of a null `on`, which matches nothing.
    pub(super) null_key: Vec<u8>,
    pub(super) prepared: Arc<Schema>,
    pub(super) output: Arc<Schema>,
    pub(super) places: Vec<Place>,
    pub(super) sources: Vec<usize>,
}

/// Records that wait, since when by the clock (none: since this epoch).
struct Waiting {
    rows: Rows,
    since: Option<i64>,
}

/// Which row waits. Rows that one record became have one key or several; rows of a window have no origin of their own,
/// but come once an epoch for each time and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    source: u32,
    partition: u32,
    offset: u64,
    hash: u64,
    event_time: i64,
    since: i64,
}

pub(super) struct Apply {
    config: Config,
    table: VersionedTable,
    waiting: Vec<Waiting>,
    horizon: Horizon,
    /// New versions since state was last written: (on, row key, version).
    versions: Vec<(Box<[u8]>, Box<[u8]>, Version)>,
    /// Written as waiting, released since.
    released: BTreeSet<Identity>,
    /// The first so many of `waiting` have been written.
    written: usize,
}

/// The first byte of every piece.
const FORMAT: u8 = 2;

impl Apply {
    pub(super) fn new(config: Config) -> Apply {
        let table = VersionedTable::new(config.history);
        let horizon = Horizon::new(config.history);
        Apply { config, table, waiting: Vec::new(), horizon, versions: Vec::new(), released: BTreeSet::new(), written: 0 }
    }

    fn failed(&self, message: impl std::fmt::Display) -> OperatorError {
        broken(&self.config.step, message)
    }

    fn take_table(&mut self, rows: &Rows) -> Result<(), OperatorError> {
        let origin = Origin::of(&self.config.step, &rows.batch)?;
        let (keys, _) = keys_of(&self.config.step, rows)?;
        let columns = &rows.batch.columns()[ORIGINS..];
        let (key_columns, rest) = columns.split_at(self.config.row_key.types().len());
        let (select_columns, rest) = rest.split_at(self.config.select.types().len());
        let row_key = self.config.row_key.encoder(key_columns).map_err(|e| self.failed(e))?;
        let select = self.config.select.encoder(select_columns).map_err(|e| self.failed(e))?;
        let deletes = self.config.delete.then(|| is_true(&self.config.step, &rest[0])).transpose()?;
        let mut bytes = Vec::new();
        for row in 0..keys.len() {
            bytes.clear();
            row_key.encode(row, &mut bytes);
            let key: Box<[u8]> = bytes.as_slice().into();
            bytes.clear();
            select.encode(row, &mut bytes);
            let deleted = deletes.as_ref().is_some_and(|deletes| deletes.value(row));
            let at = (origin.event_time[row], rows.source, origin.partition[row], origin.offset[row]);
            let version = Version { at, values: (!deleted).then(|| bytes.as_slice().into()) };
            if self.table.insert(keys.value(row), &key, version.clone()) {
                self.versions.push((keys.value(row).into(), key, version));
            }
        }
        Ok(())
    }

    /// Joins rows that need not wait any more.
    fn release(&self, rows: &Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let origin = Origin::of(&self.config.step, &rows.batch)?;
        let (keys, _) = keys_of(&self.config.step, rows)?;
        let absent = self.config.select.null_key();
        let mut parents = Vec::with_capacity(keys.len());
        let mut values: Vec<&[u8]> = Vec::with_capacity(keys.len());
        for at in 0..keys.len() {
            let row = at as u32;
            let key = keys.value(at);
            let before = parents.len();
            if key != self.config.null_key {
                for found in self.table.at(key, origin.event_time[at]) {
                    parents.push(row);
                    values.push(found);
                }
            }
            if parents.len() == before && self.config.left {
                parents.push(row);
                values.push(&absent);
            }
            match parents.len() > before {
                true => emit.counts.applied += 1,
                false => emit.counts.filtered += 1,
            }
        }
        if parents.is_empty() {
            return Ok(());
        }
        let kept: Vec<usize> = (0..rows.batch.num_columns() - 2).collect();
        let stream = rows.batch.project(&kept).map_err(|e| self.failed(e))?;
        let mut columns = take(&self.config.step, &stream, &UInt32Array::from(parents))?.columns().to_vec();
        let selected = self.config.select.decode(values.into_iter()).map_err(|e| self.failed(e))?;
        for (place, column) in self.config.places.iter().zip(selected) {
            put_column(&mut columns, place.at, place.replaced, column);
        }
        emit.push(Rows {
            source: rows.source,
            batch: super::super::common::batch(&self.config.step, &self.config.output, columns)?,
        });
        Ok(())
    }

    /// Whether the table is known up to and with `time`.
    fn passed(&self, time: i64, epoch: &EpochTime) -> bool {
        let watermark = |source: &usize| epoch.sources.get(*source).copied().unwrap_or(EventTime::MIN);
        let table = self.config.sources.iter().map(watermark).min().unwrap_or(EventTime::MIN);
        // Others have come somewhere and nothing holds them back: the table has no record at all.
        let empty = table == EventTime::MIN && epoch.watermark > EventTime::MIN;
        empty || table.0 > time || epoch.watermark.0 > time || table == EventTime::MAX
    }

    fn write_waiting(&mut self, from: usize, out: &mut Writer) {
        let added = &self.waiting[from.min(self.waiting.len())..];
        out.uint(added.len() as u64);
        for waiting in added {
            out.uint(u64::from(waiting.rows.source));
            out.int(waiting.since.unwrap_or(i64::MAX));
            let mut bytes = Vec::new();
            let written = StreamWriter::try_new(&mut bytes, &self.config.prepared).and_then(|mut writer| {
                writer.write(&waiting.rows.batch)?;
                writer.finish()
            });
            if written.is_err() {
                // Refused when it is read: better than a record less.
                bytes.clear();
            }
            out.slice(&bytes);
        }
        self.written = self.waiting.len();
        self.released.clear();
    }

    fn write_version(out: &mut Writer, on: &[u8], row: &[u8], version: &Version) {
        out.slice(on);
        out.slice(row);
        out.int(version.at.0);
        out.uint(u64::from(version.at.1));
        out.uint(u64::from(version.at.2));
        out.uint(version.at.3);
        out.byte(u8::from(version.values.is_some()));
        if let Some(values) = &version.values {
            out.slice(values);
        }
    }

    fn read(&mut self, bytes: &[u8], owns: &dyn Fn(u32) -> bool) -> Result<(), CodecError> {
        let mut from = Reader::new(bytes, FORMAT)?;
        self.horizon.read(&mut from)?;
        for _ in 0..from.count()? {
            let (on, row) = (from.slice()?, from.slice()?);
            let time = from.int()?;
            let numbers = (from.uint()?, from.uint()?, from.uint()?);
            let values = if from.byte()? == 1 { Some(from.slice()?.into()) } else { None };
            if owns((hash(on) % u64::from(KEY_GROUPS)) as u32) {
                let version = Version { at: (time, numbers.0 as u32, numbers.1 as u32, numbers.2), values };
                self.table.insert(on, row, version);
            }
        }
        let mut released = BTreeSet::new();
        for _ in 0..from.count()? {
            released.insert(Identity {
                source: from.uint()? as u32,
                partition: from.uint()? as u32,
                offset: from.uint()?,
                hash: from.long()?,
                event_time: from.int()?,
                since: from.int()?,
            });
        }
        if !released.is_empty() {
            self.drop_waiting(|row| released.contains(row)).map_err(|_| from.error("a waiting record is broken"))?;
        }
        for _ in 0..from.count()? {
            let source = from.uint()? as u32;
            let since = Some(from.int()?).filter(|since| *since != i64::MAX);
            let batch = StreamReader::try_new(from.slice()?, None).ok().and_then(|mut batches| batches.next()?.ok());
            let batch = batch.filter(|batch| batch.schema() == self.config.prepared);
            let batch = batch.ok_or_else(|| from.error("a waiting record is broken"))?;
            self.waiting.push(Waiting { rows: Rows { source, batch }, since });
        }
        let foreign = |row: &Identity| !owns((row.hash % u64::from(KEY_GROUPS)) as u32);
        self.drop_waiting(foreign).map_err(|_| from.error("a waiting record is broken"))?;
        self.written = self.waiting.len();
        self.trim();
        Ok(())
    }

    fn drop_waiting(&mut self, gone: impl Fn(&Identity) -> bool) -> Result<(), OperatorError> {
        let step = self.config.step.clone();
        for waiting in std::mem::take(&mut self.waiting) {
            let origin = Origin::of(&step, &waiting.rows.batch)?;
            let (_, hashes) = keys_of(&step, &waiting.rows)?;
            let stays = |row: &u32| {
                let at = *row as usize;
                !gone(&Identity {
                    source: waiting.rows.source,
                    partition: origin.partition[at],
                    offset: origin.offset[at],
                    hash: hashes[at],
                    event_time: origin.event_time[at],
                    since: waiting.since.unwrap_or(i64::MAX),
                })
            };
            let stay: Vec<u32> = (0..hashes.len() as u32).filter(stays).collect();
            let stay = self.part(&waiting.rows, stay)?;
            self.waiting.extend(stay.map(|rows| Waiting { rows, since: waiting.since }));
        }
        Ok(())
    }

    /// Some rows of a batch; none for none.
    fn part(&self, rows: &Rows, wanted: Vec<u32>) -> Result<Option<Rows>, OperatorError> {
        let batch: RecordBatch = match wanted.len() {
            0 => return Ok(None),
            all if all == rows.batch.num_rows() => rows.batch.clone(),
            _ => take(&self.config.step, &rows.batch, &UInt32Array::from(wanted))?,
        };
        Ok(Some(Rows { source: rows.source, batch }))
    }

    fn trim(&mut self) {
        let oldest = self.waiting.iter().filter_map(|waiting| {
            let origin = Origin::of(&self.config.step, &waiting.rows.batch).ok()?;
            origin.event_time.iter().min().copied()
        });
        let before = self.horizon.watermark.saturating_sub(self.config.history).min(oldest.min().unwrap_or(i64::MAX));
        if self.horizon.watermark != i64::MIN {
            self.table.trim(before);
        }
    }
}

impl Keyed for Apply {
    fn on_rows(&mut self, input: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let total = rows.batch.num_rows() as u64;
        emit.counts.input += total;
        if input == 1 {
            self.take_table(&rows)?;
            emit.counts.applied += total;
        } else {
            self.waiting.push(Waiting { rows, since: None });
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let written = std::mem::take(&mut self.written);
        let step = self.config.step.clone();
        let mut released: Vec<Rows> = Vec::new();
        // Those that were written as waiting stay in front.
        for (index, mut waiting) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let new = index >= written;
            let since = *waiting.since.get_or_insert(time.wall_clock.0);
            let over = time.wall_clock.0 >= since.saturating_add(self.config.max_wait);
            let origin = Origin::of(&step, &waiting.rows.batch)?;
            let (_, hashes) = keys_of(&step, &waiting.rows)?;
            let (mut ready, mut stay) = (Vec::new(), Vec::new());
            for (row, hash) in hashes.iter().enumerate() {
                let at = origin.event_time[row];
                let (partition, offset) = origin.place(row);
                if new && self.horizon.late(at, origin.watermark[row]) {
                    emit.counts.late += 1;
                    emit.late.push(LateRow { source: waiting.rows.source, partition, offset });
                    continue;
                }
                if over || self.passed(at, time) {
                    ready.push(row as u32);
                    if !new {
                        let (source, partition, offset) = (waiting.rows.source, partition.0, offset.0);
                        self.released.insert(Identity { source, partition, offset, hash: *hash, event_time: at, since });
                    }
                } else {
                    stay.push(row as u32);
                }
            }
            released.extend(self.part(&waiting.rows, ready)?);
            let stay = self.part(&waiting.rows, stay)?;
            self.waiting.extend(stay.map(|rows| Waiting { rows, since: waiting.since }));
            if !new {
                self.written = self.waiting.len();
            }
        }
        // Rows that came in several epochs, or from several workers, go on in the log's order.
        for rows in in_one_order(&step, released)? {
            self.release(&rows, emit)?;
        }
        self.horizon.advance(time.watermark.0);
        self.trim();
        Ok(())
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        let waits = self.waiting.len() > self.written || !self.released.is_empty();
        if self.versions.is_empty() && !waits && !self.horizon.moved {
            return None;
        }
        let mut out = Writer::new(FORMAT);
        self.horizon.write(&mut out);
        let versions = std::mem::take(&mut self.versions);
        out.uint(versions.len() as u64);
        versions.iter().for_each(|(on, row, version)| Apply::write_version(&mut out, on, row, version));
        out.uint(self.released.len() as u64);
        for row in &self.released {
            out.uint(u64::from(row.source));
            out.uint(u64::from(row.partition));
            out.uint(row.offset);
            out.long(row.hash);
            out.int(row.event_time);
            out.int(row.since);
        }
        self.write_waiting(self.written, &mut out);
        Some(out.bytes)
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.versions.clear();
        let mut out = Writer::new(FORMAT);
        self.horizon.write(&mut out);
        let all = self.table.all();
        out.uint(all.len() as u64);
        all.iter().for_each(|(on, row, version)| Apply::write_version(&mut out, on, row, version));
        out.uint(0);
        self.write_waiting(0, &mut out);
        out.bytes
    }

    fn restore(&mut self, bytes: &[u8], _: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        self.read(bytes, owns).map_err(|e| broken(&self.config.step, e))
    }

    /// Waiting records ask for every movement of time: a table's watermark may be ahead of all others.
    fn due(&self) -> Due {
        let since = self.waiting.iter().filter_map(|waiting| waiting.since).min();
        Due {
            watermark: since.map(|_| EventTime::MIN),
            wall_clock: since.map(|since| EventTime(since.saturating_add(self.config.max_wait))),
        }
    }

    fn in_flight(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.rows.batch.num_rows() as u64).sum()
    }

    fn state_bytes(&self) -> usize {
        self.table.bytes() + self.waiting.iter().map(|waiting| waiting.rows.batch.get_array_memory_size()).sum::<usize>()
    }
}
