//! `dedupe`: of records with equal keys the first passes.

use super::codec::{CodecError, Reader, Writer};
use super::common::{Mistakes, Origin, broken, columns_of, even, micros, plain, take};
use super::keyed::{Expiry, Horizon, KeyPrepare, in_log_order, in_one_order, keys_of};
use super::keys::{can_be_key, hash_wide};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, Keyed, LateRow, Operator, OperatorError, Rows};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::UInt32Array;
use hashbrown::HashMap;
use quikflow_topics::declaration::{Node, Value};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::units::show_duration;
use std::collections::BTreeSet;
use std::time::Duration;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "dedupe",
    summary: "of records with equal keys the first passes",
    doc: "A record passes unless one with an equal key has passed whose event time is less than `within` away; else it is \
          counted as `duplicate`. First is the lower offset: of records that lie in one partition it is always the same one \
          that passes, whatever the batches, restarts and workers. (Where a key's records lie in several partitions, the \
          first one that is committed passes.) What has passed is remembered until no record that is not late can equal it; \
          a record that is older than its partition's watermark by more than `within` is late. Nulls equal each other. Keys are \
          compared by a 128-bit hash.",
    fields: &[
        FieldDoc { name: "dedupe", ty: "list<sql>", required: true, doc: "What makes records equal." },
        FieldDoc {
            name: "within",
            ty: "duration",
            required: true,
            doc: "How far apart, in event time, equal records are no duplicates any more.",
        },
    ],
    example: r#"
[[topology]]
name = "once"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { dedupe = ["payload.messageId"], within = "1h", name = "by-message" },
  { map = { message = "payload.messageId", content = "payload.content" } },
]
to = "analytics.once"

[[test]]
topology = "once"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "first" } },
  { at = "12:00:02", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "again" } },
  { at = "13:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "much later" } },
]
expect = [ { message = "m1", content = "first" }, { message = "m1", content = "much later" } ]
"#,
    stateful: true,
    plan,
};

/// The expressions in a list of SQL, or a lone one.
pub(super) fn key_list(ctx: &StepContext<'_>, input: usize, node: &Node, mistakes: &mut Mistakes) -> Vec<Expr> {
    let nodes = match &node.value {
        Value::Array(nodes) => nodes.as_slice(),
        _ => std::slice::from_ref(node),
    };
    if nodes.is_empty() {
        mistakes.push(node.error("at least one expression is needed").help("such as [\"payload.messageId\"]"));
    }
    let mut keys = Vec::new();
    for node in nodes {
        let Some(expr) = mistakes.ok(ctx.expr_on(input, node)) else { continue };
        match can_be_key(&expr.data_type) {
            true => keys.push(expr),
            false => mistakes.push(
                node.error(format!("a key cannot be {}", expr.data_type)).help("use text, a number, a time or true or false"),
            ),
        }
    }
    keys
}

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let keys = key_list(ctx, 0, ctx.value, &mut mistakes);
    let within = mistakes.required(ctx.table, "within", |node| match micros(node)? {
        0 => Err(node.error("`within` must be some time").help("such as \"1h\"")),
        within => Ok(within),
    });
    match within {
        Some(within) if !mistakes.any() => {
            Ok(Box::new(Dedupe { name: ctx.name.clone(), stream: ctx.inputs[0].clone(), keys, within }))
        }
        _ => mistakes.into_error(),
    }
}

struct Dedupe {
    name: String,
    stream: StreamSchema,
    keys: Vec<Expr>,
    within: i64,
}

impl Step for Dedupe {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.stream.clone()]
    }

    fn build(&self) -> Operator {
        let prepare = KeyPrepare::new(&self.name, &self.stream.arrow, true, self.keys.clone(), Vec::new(), false);
        let apply = Apply {
            step: self.name.clone(),
            within: self.within,
            horizon: Horizon::new(self.within),
            passed: HashMap::new(),
            expiry: Expiry::new(self.within),
            waiting: Vec::new(),
            unwritten: Vec::new(),
        };
        Operator::Keyed { prepare: vec![Box::new(prepare)], apply: Box::new(apply) }
    }

    fn fingerprint(&self) -> Option<String> {
        let keys: Vec<String> = self.keys.iter().map(|key| format!("{} {}", even(&key.text), key.data_type)).collect();
        Some(format!("dedupe [{}] within {}", keys.join(", "), self.within))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of(&self.keys))
    }

    fn state_columns(&self) -> Option<Vec<BTreeSet<String>>> {
        Some(vec![plain(&self.keys)])
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn can_be_late(&self) -> bool {
        true
    }

    /// Rows pass as they are.
    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        input.to_vec()
    }

    fn describe(&self) -> Vec<String> {
        let keys: Vec<&str> = self.keys.iter().map(|key| key.text.as_str()).collect();
        let within = show_duration(Duration::from_micros(self.within.unsigned_abs()));
        vec![
            format!("key {}", keys.join(", ")),
            format!("remembers what passed for {within} of event time beyond the watermark, twice; about 60 bytes a record"),
        ]
    }
}

/// What has passed under one key.
struct Passed {
    group: u8,
    times: Vec<i64>,
}

struct Apply {
    step: String,
    within: i64,
    horizon: Horizon,
    passed: HashMap<u128, Passed>,
    expiry: Expiry<u128>,
    /// This epoch's rows.
    waiting: Vec<Rows>,
    /// (key, group, time) that have passed since state was last written.
    unwritten: Vec<(u128, u8, i64)>,
}

/// The first byte of every piece.
const FORMAT: u8 = 1;

impl Apply {
    fn remember(&mut self, id: u128, group: u8, time: i64) {
        self.passed.entry(id).or_insert_with(|| Passed { group, times: Vec::with_capacity(1) }).times.push(time);
        self.expiry.add(time, id);
    }

    fn forget(&mut self) {
        let before = self.horizon.forgotten();
        for id in self.expiry.take(before) {
            if let Some(passed) = self.passed.get_mut(&id) {
                passed.times.retain(|time| *time >= before);
                if passed.times.is_empty() {
                    self.passed.remove(&id);
                }
            }
        }
    }

    fn write(&mut self, entries: &[(u128, u8, i64)]) -> Vec<u8> {
        let mut out = Writer::new(FORMAT);
        self.horizon.write(&mut out);
        out.uint(entries.len() as u64);
        for (id, group, time) in entries {
            out.wide(*id);
            out.byte(*group);
            out.int(*time);
        }
        out.bytes
    }

    fn read(&mut self, bytes: &[u8], owns: &dyn Fn(u32) -> bool) -> Result<(), CodecError> {
        let mut from = Reader::new(bytes, FORMAT)?;
        self.horizon.read(&mut from)?;
        for _ in 0..from.count()? {
            let (id, group, time) = (from.wide()?, from.byte()?, from.int()?);
            let known = self.passed.get(&id).is_some_and(|passed| passed.times.contains(&time));
            if owns(u32::from(group)) && !known {
                self.remember(id, group, time);
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
        let mut passing: Vec<Vec<u32>> = vec![Vec::new(); batches.len()];
        for (index, row) in in_log_order(&step, &batches)? {
            let rows = &batches[index];
            let origin = Origin::of(&step, &rows.batch)?;
            let at = origin.event_time[row];
            if self.horizon.late(at, origin.watermark[row]) {
                emit.counts.late += 1;
                let (partition, offset) = origin.place(row);
                emit.late.push(LateRow { source: rows.source, partition, offset });
                continue;
            }
            let (keys, hashes) = keys_of(&step, rows)?;
            let id = hash_wide(keys.value(row));
            let near = |passed: &Passed| passed.times.iter().any(|time| time.abs_diff(at) < self.within.unsigned_abs());
            if self.passed.get(&id).is_some_and(near) {
                emit.counts.duplicate += 1;
                continue;
            }
            let group = (hashes[row] % u64::from(KEY_GROUPS)) as u8;
            self.remember(id, group, at);
            self.unwritten.push((id, group, at));
            emit.counts.applied += 1;
            passing[index].push(u32::try_from(row).map_err(|e| broken(&step, e))?);
        }
        let mut passed = Vec::new();
        for (rows, mut passing) in batches.into_iter().zip(passing) {
            passing.sort_unstable();
            if !passing.is_empty() {
                let kept: Vec<usize> = (0..rows.batch.num_columns() - 2).collect();
                let batch = rows.batch.project(&kept).map_err(|e| broken(&step, e))?;
                passed.push(Rows { source: rows.source, batch: take(&step, &batch, &UInt32Array::from(passing))? });
            }
        }
        in_one_order(&step, passed)?.into_iter().for_each(|rows| emit.push(rows));
        self.horizon.advance(time.watermark.0);
        self.forget();
        Ok(())
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        let entries = std::mem::take(&mut self.unwritten);
        (!entries.is_empty() || self.horizon.moved).then(|| self.write(&entries))
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.unwritten.clear();
        let mut entries: Vec<(u128, u8, i64)> =
            self.passed.iter().flat_map(|(id, passed)| passed.times.iter().map(|time| (*id, passed.group, *time))).collect();
        entries.sort_unstable();
        self.write(&entries)
    }

    fn restore(&mut self, bytes: &[u8], _: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        self.read(bytes, owns).map_err(|e| broken(&self.step, e))
    }

    /// Time alone only lets it forget, which can wait for the next record.
    fn due(&self) -> Due {
        Due::default()
    }

    fn state_bytes(&self) -> usize {
        self.passed.capacity() * 64 + self.passed.len() * 16 + self.expiry.bytes() + self.unwritten.capacity() * 32
    }
}

#[cfg(test)]
mod tests {
    use crate::steps::testing::{Event, SECOND, Shards, event, mistakes, plan};

    const STEP: &str = r#"{ dedupe = ["payload.a"], within = "1m", name = "d" }"#;

    fn offsets(rows: &[String]) -> Vec<String> {
        let n = |row: &String| row.split(' ').find_map(|cell| cell.strip_prefix("n=")).unwrap().to_owned();
        let mut offsets: Vec<String> = rows.iter().map(n).collect();
        offsets.sort();
        offsets
    }

    fn numbered(offset: u64, at: i64, a: &str) -> Event {
        Event { n: Some(offset as i64), ..event(offset, at, a) }
    }

    #[test]
    fn r4_the_first_passes_whatever_the_batches_and_restarts() {
        let step = plan(STEP);
        let events = [
            numbered(0, 30, "a"),
            numbered(1, 10, "a"),
            numbered(2, 31, "b"),
            numbered(3, 89, "a"),
            numbered(4, 90, "a"),
            numbered(5, 130, "a"),
        ];
        for cut in 0..=events.len() {
            let mut shards = Shards::new(step.as_ref(), 2);
            let mut rows = shards.events(&events[..cut]);
            rows.extend(shards.end(0));
            let mut shards = shards.restore(step.as_ref(), 1 + cut % 3);
            // The later batch of the epoch comes first.
            let (left, right) = events[cut..].split_at((events.len() - cut) / 2);
            shards.events(right);
            shards.events(left);
            rows.extend(shards.end(0));
            assert_eq!(offsets(&rows), ["0", "2", "4"], "cut at {cut}");
            assert_eq!(shards.counts.duplicate, 3);
        }
    }

    #[test]
    fn r6_what_has_passed_is_forgotten_when_nothing_can_equal_it_any_more() {
        let step = plan(STEP);
        let mut shards = Shards::new(step.as_ref(), 1);
        for minute in 0..200 {
            let watermark = (minute - 1) * 60 * SECOND;
            shards.events(&[Event { watermark, ..numbered(minute as u64, minute * 60, "a") }]);
            assert_eq!(shards.end(watermark).len(), 1);
        }
        assert!(shards.apply[0].snapshot().len() < 200, "{}", shards.apply[0].snapshot().len());
        shards.events(&[Event { watermark: 198 * 60 * SECOND, ..numbered(500, 60, "a") }]);
        shards.end(198 * 60 * SECOND);
        assert_eq!(shards.late, [(0, 500)]);
    }

    #[test]
    fn r12_the_fingerprint_and_the_mistakes() {
        assert_eq!(plan(STEP).fingerprint().unwrap(), "dedupe [payload.a Utf8] within 60000000");
        assert!(mistakes(r#"{ dedupe = ["payload.tags"], within = "1m", name = "d" }"#).contains("a key cannot be"));
        assert!(mistakes(r#"{ dedupe = ["payload.a"], name = "d" }"#).contains("missing field `within`"));
    }
}
