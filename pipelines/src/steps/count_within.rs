//! `count_within`: fires at the n-th event of a key within a span of time.

mod halves;
#[cfg(test)]
mod tests;

use super::codec::{CodecError, Reader, Writer};
use super::common::{Mistakes, ORIGINS, Origin, broken, columns_of, even, micros, plain, text_of_one};
use super::keyed::{Expiry, Horizon, KeyPrepare, in_log_order, keys_of};
use super::keys::{KeyCodec, can_be_key, hash, hash_wide};
use super::map::column_name;
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, Operator, OperatorError, Rows};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use hashbrown::HashMap;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::schema;
use quikflow_topics::units::show_duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "count_within",
    summary: "fires at the n-th event of a key within a span of time",
    doc: "Fires as soon as some n events of a key lie within a span of at most `time` of event time, wherever that span begins: \
          minute boundaries mean nothing. Events may come out of order. It fires once a burst: not again while the last of the \
          n events is no further than `time` from one for which it has fired, so a burst that goes on fires about once each `time`. \
          Events are taken in the order of the log, so a key whose events lie in one partition gives the same whatever the \
          batches, restarts and workers. An event older than its partition's watermark by more than `time` is late.\n\n\
          The row has the `by` columns, `count` (events of the key in the span of `time` that ends with the last of the n), \
          `first_time` and `last_time` of them; its event time is that of the event that made it fire. Events whose `by` columns are \
          all null are left out and counted as `filtered`.",
    fields: &[
        FieldDoc {
            name: "count_within",
            ty: "{ n = number, time = duration }",
            required: true,
            doc: "How many events, within which span of event time.",
        },
        FieldDoc { name: "by", ty: "table<sql>", required: true, doc: "The key's columns." },
    ],
    example: r#"
[[topology]]
name = "failed-logins"
from = "QuikApp.audit"
steps = [
  { filter = "type = 'LOGIN_FAILED'" },
  { count_within = { n = 5, time = "60s" }, by = { user = "payload.userId" }, name = "five" },
]
to = "audit.failed-logins"

[[test]]
topology = "failed-logins"
given = [
  { at = "12:00:59", type = "LOGIN_FAILED", payload = { userId = "u1" } },
  { at = "12:00:59", type = "LOGIN_FAILED", payload = { userId = "u1" } },
  { at = "12:00:59", type = "LOGIN_FAILED", payload = { userId = "u1" } },
  { at = "12:00:59", type = "LOGIN_FAILED", payload = { userId = "u1" } },
  { at = "12:01:01", type = "LOGIN_FAILED", payload = { userId = "u1" } },
]
expect = [ { user = "u1", count = 5, first_time = "12:00:59", last_time = "12:01:01" } ]
"#,
    stateful: true,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let mut n = None;
    let mut time = None;
    if let Some(table) = mistakes.ok(ctx.value.table()) {
        mistakes.unknown(table, "`count_within`", &["n", "time"]);
        n = mistakes.required(table, "n", |node| match node.uint()? {
            n @ 1..=100_000 => Ok(n as usize),
            _ => Err(node.error("`n` must be from 1 to 100000")),
        });
        time = mistakes.required(table, "time", |node| match micros(node)? {
            0 => Err(node.error("`time` must be some time").help("such as \"60s\"")),
            time => Ok(time),
        });
    }
    let mut by: Vec<(String, Expr)> = Vec::new();
    if let Some(table) = mistakes.required(ctx.table, "by", |node| node.table()) {
        if table.entries.is_empty() {
            mistakes.push(table.error("`by` needs at least one column").help("such as { user = \"payload.userId\" }"));
        }
        for (name, span, node) in &table.entries {
            let own = ["count", "first_time", "last_time"].contains(&name.as_str());
            let mistake =
                column_name(name).err().or_else(|| own.then(|| format!("`{name}` is a column that the step itself writes")));
            if let Some(message) = mistake {
                mistakes.push(Diagnostic::error(&table.file, span.clone(), message).help("give it another name"));
            }
            let Some(expr) = mistakes.ok(ctx.expr(node)) else { continue };
            match can_be_key(&expr.data_type) {
                true => by.push((name.clone(), expr)),
                false => mistakes.push(node.error(format!("a key cannot be {}", expr.data_type))),
            }
        }
    }
    match (n, time) {
        (Some(n), Some(time)) if !mistakes.any() => {
            let mut fields: Vec<Field> = crate::operator::ORIGIN_COLUMNS.map(schema::system_field).to_vec();
            fields.push(schema::system_field(schema::KEY));
            fields.extend(by.iter().map(|(name, expr)| Field::new(name, expr.data_type.clone(), true)));
            fields.push(Field::new("count", DataType::Int64, true));
            fields.push(Field::new("first_time", schema::time_type(), true));
            fields.push(Field::new("last_time", schema::time_type(), true));
            let output = StreamSchema { arrow: Arc::new(Schema::new(fields)), kind: TopicKind::Rows };
            Ok(Box::new(CountWithin { name: ctx.name.clone(), input: ctx.inputs[0].clone(), n, time, by, output }))
        }
        _ => mistakes.into_error(),
    }
}

#[derive(Clone)]
struct CountWithin {
    name: String,
    input: StreamSchema,
    n: usize,
    time: i64,
    by: Vec<(String, Expr)>,
    output: StreamSchema,
}

impl CountWithin {
    fn prepare(&self) -> KeyPrepare {
        KeyPrepare::new(&self.name, &self.input.arrow, false, self.keys(), Vec::new(), true)
    }

    fn keys(&self) -> Vec<Expr> {
        self.by.iter().map(|(_, expr)| expr.clone()).collect()
    }

    fn apply(&self) -> Apply {
        Apply {
            step: self.name.clone(),
            n: self.n,
            time: self.time,
            codec: KeyCodec::new(self.by.iter().map(|(_, expr)| expr.data_type.clone()).collect()),
            output: self.output.arrow.clone(),
            horizon: Horizon::new(self.time),
            keys: HashMap::new(),
            expiry: Expiry::new(self.time),
            waiting: Vec::new(),
            unwritten: BTreeMap::new(),
        }
    }
}

impl Step for CountWithin {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Keyed { prepare: vec![Box::new(self.prepare())], apply: Box::new(self.apply()) }
    }

    fn fingerprint(&self) -> Option<String> {
        let by: Vec<String> = self.by.iter().map(|(_, expr)| format!("{} {}", even(&expr.text), expr.data_type)).collect();
        Some(format!("count_within {} in {} by [{}]", self.n, self.time, by.join(", ")))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of(self.by.iter().map(|(_, expr)| expr)))
    }

    fn state_columns(&self) -> Option<Vec<BTreeSet<String>>> {
        Some(vec![plain(self.by.iter().map(|(_, expr)| expr))])
    }

    fn halves(&self, shares: u32) -> Option<(Arc<dyn Step>, Arc<dyn Step>)> {
        Some(super::halves::halves(self, shares))
    }

    fn passes_through(&self) -> bool {
        false
    }

    fn can_be_late(&self) -> bool {
        true
    }

    /// The key of what it emits is the text of the `by` columns.
    fn key_columns(&self, _: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        let own = std::iter::once(schema::KEY.to_owned()).collect();
        vec![own, self.by.iter().map(|(name, _)| name.clone()).collect()]
    }

    fn key_texts(&self, _: &BTreeSet<String>) -> BTreeSet<String> {
        text_of_one(&self.by)
    }

    fn describe(&self) -> Vec<String> {
        let time = show_duration(Duration::from_micros(self.time.unsigned_abs()));
        let mut lines = vec![format!("fires at {} events within {time} of event time, once a burst", self.n)];
        lines.extend(self.by.iter().map(|(name, expr)| format!("key {name} = {}", expr.text)));
        lines.push(format!("remembers an event's time for {time} beyond the watermark, twice; 8 bytes an event"));
        lines
    }
}

/// A key's events and the times at which it fired, both sorted.
#[derive(Default)]
struct Key {
    bytes: Box<[u8]>,
    times: Vec<i64>,
    fired: Vec<i64>,
}

/// A burst: how many events, the first, the last.
type Burst = (i64, i64, i64);

impl Key {
    fn insert(times: &mut Vec<i64>, time: i64) -> usize {
        let at = times.partition_point(|old| *old <= time);
        times.insert(at, time);
        at
    }

    /// Takes an event; gives the burst if it makes the key fire.
    fn take(&mut self, time: i64, n: usize, span: i64) -> Option<Burst> {
        let at = Key::insert(&mut self.times, time);
        let first = (at + 1).saturating_sub(n);
        for start in first..=at {
            let last = *self.times.get(start + n - 1)?;
            let near = |fired: &i64| fired.abs_diff(last) <= span.unsigned_abs();
            if last.saturating_sub(self.times[start]) <= span && !self.fired.iter().any(near) {
                Key::insert(&mut self.fired, last);
                let begin = self.times.partition_point(|old| *old < last.saturating_sub(span));
                let end = self.times.partition_point(|old| *old <= last);
                return Some(((end - begin) as i64, self.times[begin], last));
            }
        }
        None
    }

    fn forget(&mut self, before: i64) {
        for list in [&mut self.times, &mut self.fired] {
            let gone = list.partition_point(|time| *time < before);
            list.drain(..gone);
        }
    }
}

/// An event of a key, where it lies, and the watermark of its own partition.
struct Event {
    source: u32,
    partition: PartitionId,
    offset: Offset,
    at: i64,
    watermark: i64,
}

/// What made a key fire, the key and the burst.
type Fired = (Event, Vec<u8>, Burst);

struct Apply {
    step: String,
    n: usize,
    time: i64,
    codec: KeyCodec,
    output: Arc<Schema>,
    horizon: Horizon,
    keys: HashMap<u128, Key>,
    expiry: Expiry<u128>,
    waiting: Vec<Rows>,
    /// Of each key: new events, new times of firing, since state was last written.
    unwritten: BTreeMap<u128, (Vec<i64>, Vec<i64>)>,
}

/// The first byte of every piece.
const FORMAT: u8 = 1;

impl Apply {
    fn forget(&mut self) {
        let before = self.horizon.forgotten();
        for id in self.expiry.take(before) {
            if let Some(key) = self.keys.get_mut(&id) {
                key.forget(before);
                if key.times.is_empty() && key.fired.is_empty() {
                    self.keys.remove(&id);
                }
            }
        }
    }

    /// Takes an event that is not late.
    fn take(&mut self, event: Event, bytes: &[u8]) -> Option<Fired> {
        let (at, id) = (event.at, hash_wide(bytes));
        let key = self.keys.entry(id).or_insert_with(|| Key { bytes: bytes.into(), ..Key::default() });
        let burst = key.take(at, self.n, self.time);
        self.expiry.add(at, id);
        let unwritten = self.unwritten.entry(id).or_default();
        unwritten.0.push(at);
        let burst = burst?;
        unwritten.1.push(burst.2);
        self.expiry.add(burst.2, id);
        Some((event, bytes.to_vec(), burst))
    }

    /// The rows of an epoch, and what time has taken away at its end.
    fn end(&mut self, fired: &[Fired], time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let (step, watermark) = (self.step.clone(), time.watermark.0);
        for rows in fired.chunk_by(|a, b| a.0.source == b.0.source) {
            let time = |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(rows.iter().map(|r| Some(r.0.partition.0)).collect::<UInt32Array>()),
                Arc::new(rows.iter().map(|r| Some(r.0.offset.0)).collect::<UInt64Array>()),
                time(rows.iter().map(|r| r.0.at).collect()),
                Arc::new(rows.iter().map(|r| Some(r.0.watermark)).collect::<Int64Array>()),
            ];
            debug_assert_eq!(columns.len(), ORIGINS);
            let text = |key: &[u8]| {
                let mut text = String::new();
                self.codec.text(key, &mut text);
                Some(text)
            };
            columns.push(Arc::new(rows.iter().map(|r| text(&r.1)).collect::<StringArray>()));
            columns.extend(self.codec.decode(rows.iter().map(|r| r.1.as_slice())).map_err(|e| broken(&step, e))?);
            columns.push(Arc::new(rows.iter().map(|r| Some(r.2.0)).collect::<Int64Array>()));
            columns.push(time(rows.iter().map(|r| r.2.1).collect()));
            columns.push(time(rows.iter().map(|r| r.2.2).collect()));
            emit.push(Rows { source: rows[0].0.source, batch: super::common::batch(&step, &self.output, columns)? });
        }
        self.horizon.advance(watermark);
        self.forget();
        Ok(())
    }

    fn write<'a>(&mut self, count: usize, keys: impl Iterator<Item = (&'a [u8], &'a [i64], &'a [i64])>) -> Vec<u8> {
        let mut out = Writer::new(FORMAT);
        self.horizon.write(&mut out);
        out.uint(count as u64);
        for (key, times, fired) in keys {
            out.slice(key);
            for list in [times, fired] {
                out.uint(list.len() as u64);
                list.iter().for_each(|time| out.int(*time));
            }
        }
        out.bytes
    }

    fn read(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), CodecError> {
        let mut from = Reader::new(bytes, FORMAT)?;
        self.horizon.read(&mut from)?;
        for _ in 0..from.count()? {
            let key = from.slice()?;
            let mine = owns((hash(key) % u64::from(KEY_GROUPS)) as u32);
            let id = hash_wide(key);
            if mine && snapshot {
                self.keys.remove(&id);
            }
            for fired in [false, true] {
                for _ in 0..from.count()? {
                    let time = from.int()?;
                    if mine {
                        let entry = self.keys.entry(id).or_insert_with(|| Key { bytes: key.into(), ..Key::default() });
                        Key::insert(if fired { &mut entry.fired } else { &mut entry.times }, time);
                        self.expiry.add(time, id);
                    }
                }
            }
        }
        self.forget();
        Ok(())
    }
}

impl Keyed for Apply {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        self.waiting.push(rows);
        Ok(())
    }

    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let batches = std::mem::take(&mut self.waiting);
        let step = self.step.clone();
        let mut fired: Vec<Fired> = Vec::new();
        for (index, row) in in_log_order(&step, &batches)? {
            let rows = &batches[index];
            let origin = Origin::of(&step, &rows.batch)?;
            let (at, watermark) = (origin.event_time[row], origin.watermark[row]);
            let (partition, offset) = origin.place(row);
            if self.horizon.late(at, watermark) {
                emit.counts.late += 1;
                emit.late.push(LateRow { source: rows.source, partition, offset });
                continue;
            }
            emit.counts.applied += 1;
            let event = Event { source: rows.source, partition, offset, at, watermark };
            fired.extend(self.take(event, keys_of(&step, rows)?.0.value(row)));
        }
        self.end(&fired, time, emit)
    }
    fn delta(&mut self) -> Option<Vec<u8>> {
        let unwritten = std::mem::take(&mut self.unwritten);
        if unwritten.is_empty() && !self.horizon.moved {
            return None;
        }
        let keys = std::mem::take(&mut self.keys);
        let changed: Vec<_> =
            unwritten.iter().filter_map(|(id, (times, fired))| Some((&*keys.get(id)?.bytes, &times[..], &fired[..]))).collect();
        let bytes = self.write(changed.len(), changed.into_iter());
        self.keys = keys;
        Some(bytes)
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.unwritten.clear();
        let keys = std::mem::take(&mut self.keys);
        let mut all: Vec<_> = keys.values().map(|key| (&*key.bytes, &key.times[..], &key.fired[..])).collect();
        all.sort_unstable();
        let bytes = self.write(all.len(), all.into_iter());
        self.keys = keys;
        bytes
    }

    fn restore(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        self.read(bytes, snapshot, owns).map_err(|e| broken(&self.step, e))
    }

    /// Time alone only lets it forget, which can wait for the next record.
    fn due(&self) -> Due {
        Due::default()
    }

    fn state_bytes(&self) -> usize {
        let keys: usize = self.keys.values().map(|key| key.bytes.len() + (key.times.capacity() + key.fired.capacity()) * 8).sum();
        self.keys.capacity() * 100 + keys + self.expiry.bytes()
    }
}
