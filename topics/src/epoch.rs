//! What an epoch commits, and what a topology finds of it when it starts again.

use crate::broker::TopicRows;
use crate::dead_letter::DeadLetter;
use crate::ids::{Epoch, EventTime, Offset, PartitionId};
use std::collections::BTreeMap;

/// What a stored piece of state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// Changes since the previous piece.
    Delta,
    /// The whole state of this shard: earlier pieces of it are dropped in the same commit, or, while
    /// pieces of another layout are left, in the commit that completes the new one.
    Snapshot,
}

/// A piece of a keyed step's state (R9: append-only deltas and snapshots).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePiece {
    /// The topology.
    pub topology: String,
    /// The step's `name`.
    pub step: String,
    /// Which worker's share, at the time of writing. A restore reads all shards and keeps the key
    /// groups it owns.
    pub shard: u32,
    /// How many shards the step had at the time of writing: the layout. A snapshot drops earlier
    /// pieces of its own shard and layout; pieces of another layout (a restart with more or fewer
    /// workers) stay until every shard of the new layout has a snapshot, then they go together.
    pub shards: u32,
    /// Delta or snapshot.
    pub kind: StateKind,
    /// The operator's own encoding.
    pub bytes: Vec<u8>,
}

/// All effects of one epoch: visible together or not at all.
#[derive(Clone, Debug, Default)]
pub struct EpochCommit {
    /// Strictly greater than the last one committed.
    pub epoch: Epoch,
    /// Rows for topics. Order within a (topic, key) is kept.
    pub outputs: Vec<TopicRows>,
    /// State of keyed steps.
    pub state: Vec<StatePiece>,
    /// (consumer group, topic, partition, next offset). A topology's group is `topology:<name>`.
    pub offsets: Vec<(String, String, PartitionId, Offset)>,
    /// Small values by (topology, name): time (R4), counters (R20), fingerprint (R12). Replaced whole.
    pub meta: Vec<(String, String, Vec<u8>)>,
    /// Taken once by id; one whose replay failed (it is `Replaying`) takes the old one's place.
    pub dead_letters: Vec<DeadLetter>,
    /// Dead letters whose replay this epoch applied.
    pub replayed: Vec<String>,
    /// By topology, as its state is named: what other processes are shown of it.
    pub figures: Vec<(String, TopologyFigures)>,
}

/// What a topology has come to, for those who run no share of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopologyFigures {
    /// Everything before has been counted; none before the first record.
    pub watermark: Option<EventTime>,
    /// Records written to late topics.
    pub late: u64,
    /// Dead letters made.
    pub dead: u64,
    /// Records read, over all sources.
    #[serde(default)]
    pub read: u64,
    /// Bytes of memory that its state holds.
    #[serde(default)]
    pub state_bytes: u64,
}

impl TopologyFigures {
    /// Takes another share's in.
    pub fn add(&mut self, other: &TopologyFigures) {
        // A share that has read nothing yet holds nobody back.
        self.watermark = self.watermark.into_iter().chain(other.watermark).min();
        self.late += other.late;
        self.dead += other.dead;
        self.read += other.read;
        self.state_bytes += other.state_bytes;
    }
}

/// What a topology left behind at its last committed epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyState {
    /// In the order of their commits.
    pub pieces: Vec<StatePiece>,
    /// By name.
    pub meta: BTreeMap<String, Vec<u8>>,
}
