//! The write side of a real store of rows.
//!
//! Rows that are replaced as a whole are written over lower versions only. Merged rows are read,
//! changed as the twins change them, and written over the revision that was read; where another
//! writer was quicker, the row is read again. So any number of writers gives the same rows (R13).

use super::{Backend, Guard, Put, PutOutcome, Stored};
use crate::store::{ItemOutcome, StoreError, WriteBatch};
use crate::stores::cells::Cell;
use crate::stores::layout::{Layout, Mode};
use crate::stores::merge::{Change, Merged};
use crate::stores::rows::Input;
use crate::stores::rules::Rule;
use futures::{StreamExt, TryStreamExt};
use rusqlite::types::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How often a row that others change at the same time is read again, before it is `Busy`.
const ROUNDS: usize = 8;
/// A share of fewer rows is not worth a call of its own.
pub(crate) const SMALL: usize = 256;

/// Rows of one key still to be written: (version, row of the batch), in the batch's order.
type Pending = BTreeMap<String, Vec<(i64, usize)>>;

/// Writes a batch's rows.
pub(crate) async fn rows<B: Backend + ?Sized>(
    backend: &B,
    layout: &Layout,
    batch: &WriteBatch,
    calls: usize,
) -> Result<Vec<ItemOutcome>, StoreError> {
    let input = Input::new(layout, &batch.rows, batch.generation)?;
    let mut outcomes = vec![ItemOutcome::Busy; batch.rows.num_rows()];
    let mut pending = Pending::new();
    for (row, outcome) in outcomes.iter_mut().enumerate() {
        let reject = |code: &str, message: String| ItemOutcome::Rejected { code: code.into(), message };
        match (input.key(row), input.version(row)) {
            (Err(at), _) => {
                let column = &layout.sink.key[at];
                *outcome = reject("null_key", format!("the key column `{column}` is null, so the row cannot be told apart"));
            }
            (_, None) => *outcome = reject("offset_range", "the offset or the topic's generation is out of range".into()),
            (Ok(key), Some(version)) => pending.entry(key).or_default().push((version, row)),
        }
    }
    match &layout.mode {
        Mode::Merge(rules) if !rules.is_empty() => {
            merge(&Target { backend, layout, calls }, rules, &input, pending, &mut outcomes).await?;
        }
        _ => replace(&Target { backend, layout, calls }, &input, pending, &mut outcomes).await?,
    }
    Ok(outcomes)
}

/// The version of a row as a store compares it: of windows a final row wins over open ones (R7).
fn whole(layout: &Layout, input: &Input<'_>, row: usize, key: &str, version: i64) -> Stored {
    let gone = matches!(&layout.mode, Mode::Upsert { delete } if !delete.is_empty() && delete.contains(&input.kind(row)));
    Stored {
        key: key.to_owned(),
        base: version,
        gone,
        arrival: input.arrival(row),
        revision: 1,
        versions: None,
        sets: None,
        values: (0..layout.columns.len()).map(|column| input.cell(column, row).into_value()).collect(),
    }
}

/// Rows that are replaced as a whole: of each key the newest (of `append`, the first).
async fn replace<B: Backend + ?Sized>(
    target: &Target<'_, B>,
    input: &Input<'_>,
    mut pending: Pending,
    outcomes: &mut [ItemOutcome],
) -> Result<(), StoreError> {
    let layout = target.layout;
    let append = layout.mode == Mode::Append;
    let guard = if append { Guard::Absent } else { Guard::Newer };
    while !pending.is_empty() {
        let (mut puts, mut chosen) = (Vec::with_capacity(pending.len()), Vec::with_capacity(pending.len()));
        for (key, rows) in &pending {
            let best = if append { rows.first() } else { rows.iter().max_by_key(|(version, _)| *version) };
            let Some(&(version, row)) = best else { continue };
            puts.push(Put { row: whole(layout, input, row, key, version), guard });
            chosen.push((key.clone(), row));
        }
        let answers = target.put(puts).await?;
        for ((key, row), answer) in chosen.into_iter().zip(answers) {
            let mut rest = |outcome: ItemOutcome| {
                for (_, other) in pending.remove(&key).into_iter().flatten() {
                    outcomes[other] = outcome.clone();
                }
            };
            match answer {
                PutOutcome::Done => {
                    rest(ItemOutcome::Older);
                    outcomes[row] = ItemOutcome::Written;
                }
                PutOutcome::Lost => rest(ItemOutcome::Older),
                PutOutcome::Busy => rest(ItemOutcome::Busy),
                // An earlier row of the key may be taken.
                PutOutcome::Rejected { code, message } => {
                    outcomes[row] = ItemOutcome::Rejected { code, message };
                    if let Some(rows) = pending.get_mut(&key) {
                        rows.retain(|(_, other)| *other != row);
                        if rows.is_empty() {
                            pending.remove(&key);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// A sink's table, and how it is written.
struct Target<'a, B: ?Sized> {
    backend: &'a B,
    layout: &'a Layout,
    calls: usize,
}

impl<B: Backend + ?Sized> Target<'_, B> {
    async fn put(&self, puts: Vec<Put>) -> Result<Vec<PutOutcome>, StoreError> {
        let count = puts.len();
        let answers = self.backend.put(self.layout, puts, self.calls).await?;
        if answers.len() == count {
            return Ok(answers);
        }
        let message = format!("answered for {} rows of {count}", answers.len());
        Err(StoreError::Refused { store: self.backend.name(), message })
    }
}

/// Rows made of the changes of several records.
async fn merge<B: Backend + ?Sized>(
    target: &Target<'_, B>,
    rules: &BTreeMap<String, Rule>,
    input: &Input<'_>,
    mut pending: Pending,
    outcomes: &mut [ItemOutcome],
) -> Result<(), StoreError> {
    let Target { backend, layout, .. } = target;
    // Keys of which some row was refused: one row at a time, to find it.
    let mut narrow: BTreeSet<String> = BTreeSet::new();
    let (mut quarrels, mut hopeful) = (0, true);
    while !pending.is_empty() && quarrels < ROUNDS {
        let keys: Vec<String> = pending.keys().cloned().collect();
        // What begins with the event that makes a row is most often not there yet: it is written as new
        // without a look, and read only where that was wrong.
        let begins = |key: &String| pending[key].first().is_some_and(|(_, row)| makes(rules, &input.kind(*row)));
        let doubtful: Vec<String> = keys.iter().filter(|key| !(hopeful && begins(key))).cloned().collect();
        let rows = if doubtful.is_empty() { Vec::new() } else { backend.fetch(layout, &doubtful).await? };
        let found: BTreeMap<String, Stored> = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        let (mut puts, mut chosen) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(rows) = pending.get(&key) else { continue };
            let taken = if narrow.contains(&key) { 1 } else { rows.len() };
            let stored = found.get(&key);
            let mut merged = opened(backend.name(), layout, stored)?;
            let mut moved = Vec::with_capacity(taken);
            for &(version, row) in rows.iter().take(taken) {
                let change = Change::new(layout, rule_of(rules, &input.kind(row)), input, row, version)?;
                let changed = merged.apply(&change, layout);
                if changed {
                    merged.arrival = merged.arrival.max(input.arrival(row));
                    merged.id = Some(0);
                }
                moved.push((row, changed));
            }
            if !moved.iter().any(|(_, changed)| *changed) {
                settle(&mut pending, &key, taken);
                moved.iter().for_each(|(row, _)| outcomes[*row] = ItemOutcome::Older);
                continue;
            }
            let revision = stored.map(|s| s.revision);
            let row = Stored {
                key: key.clone(),
                base: merged.base,
                gone: !merged.shown,
                arrival: merged.arrival,
                revision: revision.unwrap_or(0) + 1,
                versions: merged.versions_text(layout),
                sets: merged.sets_text(layout),
                values: merged.values,
            };
            puts.push(Put { row, guard: Guard::Revision(revision) });
            chosen.push((key, moved));
        }
        if puts.is_empty() {
            hopeful = false;
            continue;
        }
        let mut lost = false;
        for ((key, moved), answer) in chosen.into_iter().zip(target.put(puts).await?) {
            match answer {
                PutOutcome::Done => {
                    settle(&mut pending, &key, moved.len());
                    for (row, changed) in moved {
                        outcomes[row] = if changed { ItemOutcome::Written } else { ItemOutcome::Older };
                    }
                }
                PutOutcome::Lost => lost = true,
                PutOutcome::Busy => {
                    pending.remove(&key);
                }
                PutOutcome::Rejected { code, message } => match moved.as_slice() {
                    [(row, _)] => {
                        outcomes[*row] = ItemOutcome::Rejected { code, message };
                        settle(&mut pending, &key, 1);
                    }
                    _ => {
                        narrow.insert(key);
                    }
                },
            }
        }
        quarrels += usize::from(lost && !hopeful);
        hopeful = false;
    }
    Ok(())
}

/// Takes the first `taken` rows of a key off the list.
fn settle(pending: &mut Pending, key: &str, taken: usize) {
    if let Some(rows) = pending.get_mut(key) {
        rows.drain(..taken.min(rows.len()));
        if rows.is_empty() {
            pending.remove(key);
        }
    }
}

fn opened(store: &'static str, layout: &Layout, stored: Option<&Stored>) -> Result<Merged, StoreError> {
    let Some(row) = stored else { return Ok(Merged::empty(layout.columns.len())) };
    Merged::of(layout, row).map_err(|e| StoreError::Refused {
        store,
        message: format!("the versions of a row of sink `{}` cannot be read: {e}", layout.sink.name),
    })
}

/// Whether an event of this type makes a row of its own, rather than replacing what may be there.
fn makes(rules: &BTreeMap<String, Rule>, kind: &str) -> bool {
    kind != "ROW" && rules.get(kind).is_some_and(|rule| rule.create)
}

fn rule_of<'r>(rules: &'r BTreeMap<String, Rule>, kind: &str) -> &'r Rule {
    static WHOLE: Rule = Rule { create: true, shows: true, columns: None, set: Vec::new(), add: None, changes: None };
    static OTHER: Rule = Rule { create: false, shows: true, columns: None, set: Vec::new(), add: None, changes: None };
    rules.get(kind).unwrap_or(if kind == "ROW" { &WHOLE } else { &OTHER })
}

/// A reader's text as a value of a column's type; none: no row can have it.
pub(crate) fn typed(ty: quikflow_topics::FieldType, text: &str) -> Option<Value> {
    use quikflow_topics::FieldType as T;
    Some(match ty {
        T::Int => Value::Integer(text.parse().ok()?),
        T::Bool => Value::Integer(i64::from(text == "true")),
        T::Timestamp => Value::Integer(chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros()),
        T::Float => Value::Real(text.parse().ok()?),
        T::String | T::Json | T::StringList => Cell::Text(text.into()).into_value(),
    })
}

/// The layout's columns from a row as a JSON object, booleans and times as whole numbers; what is not there,
/// or of another type, is null.
pub(crate) fn from_object(layout: &Layout, object: &serde_json::Map<String, serde_json::Value>) -> Vec<Value> {
    use quikflow_topics::FieldType as T;
    let value = |ty, json: &serde_json::Value| match ty {
        T::Int | T::Bool | T::Timestamp => json.as_i64().map(Value::Integer),
        T::Float => json.as_f64().map(Value::Real),
        T::String | T::Json | T::StringList => json.as_str().map(|t| Value::Text(t.to_owned())),
    };
    layout.columns.iter().map(|c| object.get(&c.name).and_then(|json| value(c.ty, json)).unwrap_or(Value::Null)).collect()
}

/// Whether a row is what a page was asked for; for stores that do not look into rows themselves.
pub(crate) fn fits(layout: &Layout, row: &super::Stored, select: &super::Select) -> bool {
    use quikflow_topics::FieldType as T;
    let time = if let Some(Value::Integer(time)) = row.values.get(layout.time) { Some(*time) } else { None };
    let within =
        select.from.is_none_or(|from| time.is_some_and(|t| t >= from)) && select.to.is_none_or(|to| time.is_some_and(|t| t < to));
    let equal = |(at, wanted): &(usize, Value)| match (layout.columns[*at].ty, &row.values[*at], wanted) {
        (T::StringList, Value::Text(list), Value::Text(wanted)) => {
            serde_json::from_str::<Vec<Option<String>>>(list).is_ok_and(|l| l.iter().flatten().any(|item| item == wanted))
        }
        (_, value, wanted) => value == wanted,
    };
    !row.gone && within && select.equals.iter().all(equal)
}

/// Puts rows in shares of at most `rows` and about `bytes` bytes, so that no request grows too big, up to
/// `calls` of them at once. The outcomes are in the order of the rows.
pub(crate) async fn in_shares<F: Future<Output = Result<Vec<PutOutcome>, StoreError>>>(
    puts: Vec<Put>,
    (rows, bytes): (usize, usize),
    calls: usize,
    put: impl Fn(Vec<Put>) -> F,
) -> Result<Vec<PutOutcome>, StoreError> {
    let calls = calls.max(1);
    let rows = puts.len().div_ceil(calls).clamp(SMALL.min(rows), rows);
    let shares = futures::stream::iter(shares(puts, rows, bytes));
    shares.map(put).buffered(calls).try_concat().await
}

/// Rows in shares of at most `rows` and about `bytes` bytes.
fn shares(puts: Vec<super::Put>, rows: usize, bytes: usize) -> Vec<Vec<super::Put>> {
    let (mut all, mut share, mut size) = (Vec::new(), Vec::new(), 0);
    for put in puts {
        let length = |value: &Value| if let Value::Text(text) = value { text.len() } else { 8 };
        let more = put.row.key.len() + put.row.values.iter().map(length).sum::<usize>();
        if !share.is_empty() && (share.len() >= rows || size + more > bytes) {
            all.push(std::mem::take(&mut share));
            size = 0;
        }
        size += more;
        share.push(put);
    }
    if !share.is_empty() {
        all.push(share);
    }
    all
}
