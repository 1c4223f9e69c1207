//! `chain`: chains records by hash (R15).
//!
//! [`link`] is the form of the chain and its verification, [`audit`] checks a whole log and anchors;
//! this file is the step.

mod audit;
mod link;

pub use audit::{Anchor, Audit, Audited, ChainedLog, CommittedError, audit_topic, chained_logs, committed_heads};
pub use link::{Broken, ChainRow, Head, Verified, chain_rows, verify_chain};

use super::codec::{CodecError, Reader, Writer};
use super::common::{Mistakes, Origin, broken};
use super::keyed::{in_log_order, in_one_order};
use super::keys::hash;
use crate::expr::StreamSchema;
use crate::operator::{Due, Emit, EpochTime, KEY_GROUPS, KEY_HASH, Keyed, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use link::{CHAIN_COLUMNS, Link, Salts};
use quikflow_topics::diagnostics::Diagnostic;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "chain",
    summary: "chains records by hash, so that a change is found",
    doc: "One chain a source partition, in offset order. Each row's columns are digested (SHA-256 over the row's salt, the \
          column's name and its value) into `digests`, a JSON object; `hash` is SHA-256 over the previous row's hash, topic, \
          partition, offset, index and digests. The head is committed with the rows. The step's columns: `chain_topic`, \
          `chain_partition`, `chain_offset`, `chain_index`, `prev_hash`, `hash`, `salt`, `digests`. A row that is changed, taken \
          out, put in or moved later breaks the chain, and `quikflow verify` names it.\n\n\
          The salt is fresh random bits for each row and kept nowhere else: erasing a row's values and its salt leaves \
          digests that tell nothing, and the chain still holds. Null columns have no digest.",
    fields: &[FieldDoc { name: "chain", ty: "{}", required: true, doc: "Nothing to set." }],
    example: r#"
[[topology]]
name = "chained-audit"
from = "QuikApp.audit"
steps = [
  { map = { event = "type", user = "payload.userId" } },
  { chain = {}, name = "chain" },
]
to = "audit.chained"

[[test]]
topology = "chained-audit"
given = [
  { at = "12:00:01", type = "LOGIN_SUCCESS", partition = 0, payload = { userId = "u1" } },
  { at = "12:00:02", type = "LOGIN_FAILED", partition = 0, payload = { userId = "u1" } },
]
expect = [ { event = "LOGIN_SUCCESS", chain_index = 0 }, { event = "LOGIN_FAILED", chain_index = 1 } ]
"#,
    stateful: true,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    if let Some(table) = mistakes.ok(ctx.value.table()) {
        mistakes.unknown(table, "`chain`", &[]);
    }
    let input = &ctx.inputs[0];
    for (name, _) in CHAIN_COLUMNS {
        if input.arrow.index_of(name).is_ok() {
            mistakes.push(
                ctx.value
                    .error(format!("the column `{name}` is one that `chain` writes"))
                    .help("give it another name in a `map`"),
            );
        }
    }
    if mistakes.any() {
        return mistakes.into_error();
    }
    let mut fields: Vec<FieldRef> = input.arrow.fields().iter().cloned().collect();
    fields.extend(CHAIN_COLUMNS.map(|(name, ty)| Arc::new(Field::new(name, ty, true))));
    let output = StreamSchema { arrow: Arc::new(Schema::new(fields)), kind: input.kind };
    let topics = ctx.sources.first().into_iter().flatten().map(|(index, topic)| (*index as u32, topic.clone())).collect();
    Ok(Box::new(Chain { name: ctx.name.clone(), input: input.clone(), output, topics }))
}

#[derive(Clone)]
struct Chain {
    name: String,
    input: StreamSchema,
    output: StreamSchema,
    topics: BTreeMap<u32, String>,
}

impl Step for Chain {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        let mut fields: Vec<FieldRef> = self.input.arrow.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(KEY_HASH, DataType::UInt64, false)));
        let prepare = Prepare { step: self.clone(), schema: Arc::new(Schema::new(fields)) };
        let apply = Apply {
            step: self.clone(),
            heads: BTreeMap::new(),
            changed: BTreeMap::new(),
            waiting: Vec::new(),
            salts: Salts::new(),
        };
        Operator::Keyed { prepare: vec![Box::new(prepare)], apply: Box::new(apply) }
    }

    fn fingerprint(&self) -> Option<String> {
        Some("chain sha-256".to_owned())
    }

    /// Every column is digested.
    fn reads(&self, _: usize) -> Option<Vec<String>> {
        None
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        vec![
            "one SHA-256 chain a source partition, in offset order; key: the source partition".to_owned(),
            "state: index and head of each partition".to_owned(),
        ]
    }
}

impl Chain {
    fn key(&self, source: u32, partition: u32) -> Result<Key, OperatorError> {
        let topic = self.topics.get(&source).ok_or_else(|| broken(&self.name, format!("source {source} has no topic")))?;
        Ok((topic.clone(), partition))
    }
}

/// Source topic and partition.
type Key = (String, u32);

fn key_hash((topic, partition): &Key) -> u64 {
    let mut bytes = topic.clone().into_bytes();
    bytes.extend_from_slice(&partition.to_le_bytes());
    hash(&bytes)
}

struct Prepare {
    step: Chain,
    schema: Arc<Schema>,
}

impl Stateless for Prepare {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let name = &self.step.name;
        let origin = Origin::of(name, &rows.batch)?;
        let mut known: BTreeMap<u32, u64> = BTreeMap::new();
        let mut hashes = Vec::with_capacity(rows.batch.num_rows());
        for partition in origin.partition {
            if !known.contains_key(partition) {
                known.insert(*partition, key_hash(&self.step.key(rows.source, *partition)?));
            }
            hashes.push(known[partition]);
        }
        let mut columns = rows.batch.columns().to_vec();
        columns.push(Arc::new(UInt64Array::from(hashes)));
        emit.rows.push((0, Rows { source: rows.source, batch: super::common::batch(name, &self.schema, columns)? }));
        Ok(())
    }
}

struct Apply {
    step: Chain,
    heads: BTreeMap<Key, Head>,
    /// Since state was last written.
    changed: BTreeMap<Key, Head>,
    waiting: Vec<Rows>,
    salts: Salts,
}

/// The first byte of every piece.
const FORMAT: u8 = 1;

fn write(heads: &BTreeMap<Key, Head>) -> Vec<u8> {
    let mut out = Writer::new(FORMAT);
    out.uint(heads.len() as u64);
    for ((topic, partition), head) in heads {
        out.slice(topic.as_bytes());
        out.uint(u64::from(*partition));
        out.uint(head.next);
        out.bytes.extend_from_slice(&head.hash);
    }
    out.bytes
}

/// Adds the heads in a piece of state, of the key groups owned.
fn read(bytes: &[u8], owns: &dyn Fn(u32) -> bool, heads: &mut BTreeMap<Key, Head>) -> Result<(), CodecError> {
    let mut from = Reader::new(bytes, FORMAT)?;
    for _ in 0..from.count()? {
        let topic = std::str::from_utf8(from.slice()?).map_err(|_| from.error("a topic's name is not UTF-8"))?;
        let partition = u32::try_from(from.uint()?).map_err(|_| from.error("a partition is out of range"))?;
        let next = from.uint()?;
        let mut hash = [0; 32];
        hash.copy_from_slice(from.take(32)?);
        let key = (topic.to_owned(), partition);
        let newer = heads.get(&key).is_none_or(|old| old.next <= next);
        if newer && owns((key_hash(&key) % u64::from(KEY_GROUPS)) as u32) {
            heads.insert(key, Head { next, hash });
        }
    }
    Ok(())
}

impl Apply {
    /// The rows of one batch that the chain has linked, in their order in the batch.
    fn output(&self, rows: &Rows, links: &mut [(usize, Link)]) -> Result<RecordBatch, OperatorError> {
        let name = &self.step.name;
        links.sort_by_key(|(row, _)| *row);
        let text = |get: &dyn Fn(&Link) -> String| -> ArrayRef {
            Arc::new(links.iter().map(|(_, link)| Some(get(link))).collect::<StringArray>())
        };
        let long = |get: &dyn Fn(&Link) -> u64| -> ArrayRef {
            Arc::new(links.iter().map(|(_, link)| i64::try_from(get(link)).ok()).collect::<Int64Array>())
        };
        let mut columns = rows.batch.columns()[..rows.batch.num_columns() - 1].to_vec();
        columns.extend([
            text(&|link| link.row.topic.clone()),
            long(&|link| u64::from(link.row.partition)),
            long(&|link| link.row.offset),
            long(&|link| link.row.index),
            text(&|link| link.row.prev_hash.clone()),
            text(&|link| link.row.hash.clone()),
            text(&|link| link.row.salt.clone().unwrap_or_default()),
            text(&|link| link.row.digests.clone()),
        ]);
        super::common::batch(name, &self.step.output.arrow, columns)
    }
}

impl Keyed for Apply {
    fn on_rows(&mut self, _: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        self.waiting.push(rows);
        Ok(())
    }

    fn on_epoch_end(&mut self, _: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError> {
        let batches = std::mem::take(&mut self.waiting);
        let name = self.step.name.clone();
        let mut fields = Vec::with_capacity(batches.len());
        for rows in &batches {
            fields.push(link::fields(&rows.batch).map_err(|e| broken(&name, e))?);
        }
        let mut links: Vec<Vec<(usize, Link)>> = batches.iter().map(|_| Vec::new()).collect();
        for (index, row) in in_log_order(&name, &batches)? {
            let rows = &batches[index];
            let (partition, offset) = Origin::of(&name, &rows.batch)?.place(row);
            let key = self.step.key(rows.source, partition.0)?;
            let head = self.heads.entry(key.clone()).or_default();
            let link = Link::new(head, &key.0, partition.0, offset.0, self.salts.next(), link::row(&fields[index], row));
            *head = link.head.clone();
            self.changed.insert(key, link.head.clone());
            links[index].push((row, link));
        }
        let mut linked = Vec::with_capacity(batches.len());
        for (rows, mut links) in batches.into_iter().zip(links) {
            emit.counts.applied += links.len() as u64;
            let batch = self.output(&rows, &mut links)?;
            linked.push(Rows { source: rows.source, batch });
        }
        in_one_order(&name, linked)?.into_iter().for_each(|rows| emit.push(rows));
        Ok(())
    }

    fn delta(&mut self) -> Option<Vec<u8>> {
        let changed = std::mem::take(&mut self.changed);
        (!changed.is_empty()).then(|| write(&changed))
    }

    fn snapshot(&mut self) -> Vec<u8> {
        self.changed.clear();
        write(&self.heads)
    }

    fn restore(&mut self, bytes: &[u8], _: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError> {
        read(bytes, owns, &mut self.heads).map_err(|e| broken(&self.step.name, e))
    }

    fn due(&self) -> Due {
        Due::default()
    }

    fn state_bytes(&self) -> usize {
        self.heads.len() * 120
    }
}

#[cfg(test)]
mod tests;
