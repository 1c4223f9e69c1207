//! Recomputes the chains of a log and compares them with heads exported earlier (R15).

use super::link::hex;
use super::{ChainRow, Head, Key, chain_rows, verify_chain};
use crate::operator::OperatorError;
use crate::plan::{Plan, Port, TopologyPlan};
use quikflow_topics::broker::{Broker, BrokerError, Positions, Projection};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So many rows may wait for one that comes before them; beyond, it counts as missing.
const MOST_WAITING: usize = 200_000;
/// So many findings are kept.
const MOST_FINDINGS: usize = 100;
/// A commit, whose rows of one chain may be out of order, is in one slice.
const SLICE_ROWS: usize = 65_536;

/// The last row of a chain at some time, exported so that a rewritten log is found: one JSON line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The topic that holds the chain's rows.
    pub log: String,
    /// The source topic.
    pub topic: String,
    /// The source partition.
    pub partition: u32,
    /// The row's index.
    pub index: u64,
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// When it was exported, RFC 3339.
    pub at: String,
}

impl Anchor {
    /// The last row of a chain; none of an empty one.
    pub fn of(log: &str, (topic, partition): &(String, u32), head: &Head, at: String) -> Option<Anchor> {
        let index = head.next.checked_sub(1)?;
        Some(Anchor { log: log.to_owned(), topic: topic.clone(), partition: *partition, index, hash: hex(&head.hash), at })
    }
}

/// What a log of chains shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Rows recomputed.
    pub rows: u64,
    /// How many of them were erased.
    pub erased: u64,
    /// Anchors that hold.
    pub anchored: u64,
    /// Where each chain ends.
    pub heads: BTreeMap<(String, u32), Head>,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
    /// What is wrong; empty when nothing is.
    pub findings: Vec<String>,
}

/// Recomputes chains row by row, in the order of the log: rows of a chain that come early wait.
pub struct Audit {
    /// Chains may begin at another index than 0: the log was trimmed.
    trimmed: bool,
    /// By chain and index; taken out where a row was compared.
    anchors: BTreeMap<Key, BTreeMap<u64, Vec<Anchor>>>,
    waiting: BTreeMap<Key, BTreeMap<u64, ChainRow>>,
    held: usize,
    done: Audited,
}

impl Audit {
    /// `trimmed`: the log's beginning is gone, so chains start where their first row says.
    pub fn new(trimmed: bool, anchors: &[Anchor]) -> Audit {
        let mut by_chain: BTreeMap<Key, BTreeMap<u64, Vec<Anchor>>> = BTreeMap::new();
        for anchor in anchors {
            let chain = by_chain.entry((anchor.topic.clone(), anchor.partition)).or_default();
            chain.entry(anchor.index).or_default().push(anchor.clone());
        }
        Audit { trimmed, anchors: by_chain, waiting: BTreeMap::new(), held: 0, done: Audited::default() }
    }

    /// Takes the next row of the log.
    pub fn row(&mut self, row: ChainRow) {
        let key = (row.topic.clone(), row.partition);
        let next = self.done.heads.get(&key).map_or(0, |head| head.next);
        if row.index < next {
            self.find(format!("the chain of {}/{} has index {} twice", key.0, key.1, row.index));
        } else if row.index > next {
            self.held += 1;
            if self.waiting.entry(key.clone()).or_default().insert(row.index, row).is_some() {
                self.held -= 1;
                self.find(format!("the chain of {}/{} has an index twice, beyond {next}", key.0, key.1));
            }
            if self.held > MOST_WAITING {
                self.missing(&key);
            }
        } else {
            self.link(&key, row);
            self.follow(&key);
        }
    }

    /// The end of a commit: where the log's beginning is gone, chains begin at the first row seen.
    pub fn settle(&mut self) {
        if !self.trimmed {
            return;
        }
        let new: Vec<Key> = self.waiting.keys().filter(|key| !self.done.heads.contains_key(*key)).cloned().collect();
        for key in new {
            if let Some((_, row)) = self.waiting.get_mut(&key).and_then(BTreeMap::pop_first) {
                self.held -= 1;
                self.done.notes.push(format!("the chain of {}/{} was trimmed before index {}", key.0, key.1, row.index));
                self.anchored(&key, row.index.saturating_sub(1), &row.prev_hash);
                self.begin(&key, &row);
                self.link(&key, row);
                self.follow(&key);
            }
        }
    }

    /// The end of the log.
    pub fn finish(mut self) -> Audited {
        self.settle();
        let keys: Vec<Key> = self.waiting.keys().cloned().collect();
        for key in keys {
            while self.waiting.get(&key).is_some_and(|rows| !rows.is_empty()) {
                self.missing(&key);
            }
        }
        let left: Vec<Anchor> = std::mem::take(&mut self.anchors).into_values().flatten().flat_map(|(_, a)| a).collect();
        for anchor in left {
            let Anchor { topic, partition, index, at, .. } = anchor;
            let end = self.done.heads.get(&(topic.clone(), partition)).map_or(0, |head| head.next);
            if self.trimmed && index < end {
                self.done.notes.push(format!("the anchor of {topic}/{partition} at index {index} is of rows trimmed since"));
            } else {
                self.find(format!(
                    "the chain of {topic}/{partition} had a row with index {index} at {at} and now ends before index {end}: \
                     rows were taken out, or its topology was reset"
                ));
            }
        }
        self.done
    }

    fn find(&mut self, finding: String) {
        match self.done.findings.len() {
            found if found < MOST_FINDINGS => self.done.findings.push(finding),
            MOST_FINDINGS => self.done.findings.push("there is more wrong with the chains".to_owned()),
            _ => {}
        }
    }

    /// Rows that wait and are due.
    fn follow(&mut self, key: &Key) {
        loop {
            let next = self.done.heads.get(key).map_or(0, |head| head.next);
            let Some(row) = self.waiting.get_mut(key).and_then(|rows| rows.remove(&next)) else { return };
            self.held -= 1;
            self.link(key, row);
        }
    }

    /// Goes on behind a gap.
    fn missing(&mut self, key: &Key) {
        let Some((index, row)) = self.waiting.get_mut(key).and_then(BTreeMap::pop_first) else { return };
        self.held -= 1;
        let next = self.done.heads.get(key).map_or(0, |head| head.next);
        self.find(format!("the chain of {}/{} lacks the rows from index {next} to {}", key.0, key.1, index.saturating_sub(1)));
        self.begin(key, &row);
        self.link(key, row);
        self.follow(key);
    }

    /// Lets a chain begin at `row`, whose predecessor is gone.
    fn begin(&mut self, key: &Key, row: &ChainRow) {
        let before = Head { next: row.index, hash: hash_of(&row.prev_hash) };
        self.done.heads.insert(key.clone(), before);
    }

    fn link(&mut self, key: &Key, row: ChainRow) {
        let head = self.done.heads.get(key).cloned().unwrap_or_default();
        let stated = Head { next: row.index + 1, hash: hash_of(&row.hash) };
        self.anchored(key, row.index, &row.hash);
        self.done.rows += 1;
        match verify_chain([row], &BTreeMap::from([(key.clone(), head)])) {
            Ok(verified) => self.done.erased += verified.erased,
            Err(broken) => self.find(broken.to_string()),
        }
        self.done.heads.insert(key.clone(), stated);
    }

    fn anchored(&mut self, key: &Key, index: u64, hash: &str) {
        let found = self.anchors.get_mut(key).and_then(|chain| chain.remove(&index));
        for anchor in found.into_iter().flatten() {
            if anchor.hash == hash {
                self.done.anchored += 1;
            } else {
                self.find(format!(
                    "the chain of {}/{} had the hash {} at index {index} at {}, and now has {hash}: \
                     it was rewritten, or its topology was reset",
                    key.0, key.1, anchor.hash, anchor.at
                ));
            }
        }
    }
}

/// Zeros where it is no hash: the row does not verify then.
fn hash_of(text: &str) -> [u8; 32] {
    super::link::unhex(text).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

/// A `chain` step and a topic that its rows are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainedLog {
    /// The topology.
    pub topology: String,
    /// The step.
    pub step: String,
    /// The topic.
    pub log: String,
}

/// All of a plan: topics that take a chain's rows as they are.
pub fn chained_logs(plan: &Plan) -> Vec<ChainedLog> {
    let of = |topology: &TopologyPlan| {
        let mut logs = Vec::new();
        for output in &topology.outputs {
            let Port::Node { node, .. } = output.from else { continue };
            let node = &topology.nodes[node];
            if node.kind == super::KIND.name {
                let (topology, step, log) = (topology.name.clone(), node.name.clone(), output.topic.name.clone());
                logs.push(ChainedLog { topology, step, log });
            }
        }
        logs
    };
    plan.topologies.iter().flat_map(|topology| of(topology)).collect()
}

/// The heads that a `chain` step committed.
///
/// # Errors
/// Storage errors; state that cannot be read.
pub fn committed_heads(broker: &dyn Broker, topology: &str, step: &str) -> Result<BTreeMap<Key, Head>, CommittedError> {
    let state = broker.topology_state(topology)?;
    let mut heads = BTreeMap::new();
    for piece in state.pieces.iter().filter(|piece| piece.step == step) {
        super::read(&piece.bytes, &|_| true, &mut heads).map_err(|error| super::broken(step, error))?;
    }
    Ok(heads)
}

/// Why committed heads cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommittedError {
    /// The log refused.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The state is damaged.
    #[error(transparent)]
    State(#[from] OperatorError),
}

/// Recomputes the chains in a topic that a `chain` step's rows were written to, and compares them
/// with its anchors; none where the topic has no columns of a chain.
///
/// # Errors
/// Storage errors.
pub fn audit_topic(broker: &dyn Broker, topic: &str, anchors: &[Anchor]) -> Result<Option<Audited>, BrokerError> {
    let Some(spec) = broker.topic(topic) else { return Err(BrokerError::UnknownTopic(topic.to_owned())) };
    if !super::link::CHAIN_COLUMNS.iter().all(|(name, _)| spec.fields.iter().any(|field| field.name == *name)) {
        return Ok(None);
    }
    let projection = Projection::all(&spec);
    let trimmed = broker.stats(topic)?.start.iter().any(|start| *start > 0);
    let anchors: Vec<Anchor> = anchors.iter().filter(|anchor| anchor.log == topic).cloned().collect();
    let mut audit = Audit::new(trimmed, &anchors);
    let mut reader = broker.reader(topic, &Positions::new())?;
    while let Some(slice) = reader.poll(SLICE_ROWS)? {
        match chain_rows(&slice.decode(&projection)?) {
            Ok(rows) => {
                rows.into_iter().for_each(|row| audit.row(row));
                audit.settle();
            }
            Err(error) => audit.find(error),
        }
    }
    Ok(Some(audit.finish()))
}
