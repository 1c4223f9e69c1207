//! Topologies, typed and connected, ready to be built: what the engine, the driver and `explain` share.

mod compat;
mod keys;
mod load;
mod prune;
mod shuffle;
mod sinks;
mod tables;
mod wire;

pub use compat::{compatible, fingerprint};
pub use load::{Loaded, SECTIONS, load};
pub use shuffle::Division;
pub use tables::{Kept, Whole};

use crate::expr::StreamSchema;
use crate::step::Step;
use quikflow_topics::broker::Projection;
use quikflow_topics::catalogue::{Catalogue, TopicSpec};
use std::sync::Arc;

/// Everything that runs.
pub struct Plan {
    /// Declared topics, and those that topologies write.
    pub catalogue: Catalogue,
    /// In an order in which writers come before readers.
    pub topologies: Vec<Arc<TopologyPlan>>,
}

/// One topology.
pub struct TopologyPlan {
    /// Unique.
    pub name: String,
    /// From the file.
    pub doc: String,
    /// Whether the source partitions can be divided among processes (R19): no step brings records of
    /// several partitions together, but for tables that every share reads whole.
    pub divisible: bool,
    /// What it has to do with its other half, where a topology is made two.
    pub half: Option<Half>,
    /// The topics read.
    pub sources: Vec<SourcePlan>,
    /// Steps; inputs come before those that read them.
    pub nodes: Vec<NodePlan>,
    /// Topics written.
    pub outputs: Vec<OutputPlan>,
    /// Where late records go, one a source (the source topic's columns); none where no step can be late.
    pub late: Vec<Option<Arc<TopicSpec>>>,
}

impl TopologyPlan {
    /// Whether rows that come to a node are made by a step before it, of many records: they have no place in a topic.
    pub fn made_before(&self, node: usize) -> bool {
        let from = self.nodes[node].inputs.iter().flatten();
        from.filter_map(|port| match port {
            Port::Node { node, .. } => Some(*node),
            Port::Source(_) => None,
        })
        .any(|before| matches!(self.nodes[before].kind, "window" | "count_within") || self.made_before(before))
    }
}

/// The halves of a topology that is not divisible, where processes share the work: rows are combined by
/// source partition, and what was combined changes hands by key.
#[derive(Clone, Debug)]
pub enum Half {
    /// Combines, and writes to this topic. Its last row of an epoch in each partition says how far time has come.
    Combines(Arc<TopicSpec>),
    /// Reads that topic. The event time of its records is what the other half's share said.
    Merges {
        /// The topology that combines.
        combining: String,
        /// The topics that it reads.
        reads: Vec<Arc<TopicSpec>>,
        /// Into how many shares both are divided. Partition `to * shares + from` holds what share `from` wrote for `to`.
        shares: u32,
    },
}

/// A topic read.
#[derive(Clone)]
pub struct SourcePlan {
    /// The topic.
    pub topic: Arc<TopicSpec>,
    /// What is decoded: only what some step needs. `_partition`, `_offset`, `_event_time` come first;
    /// the engine adds `_watermark` behind them.
    pub projection: Projection,
    /// The schema of the rows (with `_watermark`): the origin columns first. Where several sources
    /// feed one input it is their union, and a column that is not in `projection` is all null.
    pub schema: StreamSchema,
    /// How shares of the work read it, where they do not divide it by its partitions (R19).
    pub whole: Option<Whole>,
}

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// A source, by index.
    Source(usize),
    /// A node's output port.
    Node {
        /// Index in `nodes`.
        node: usize,
        /// Which of its outputs.
        port: usize,
    },
}

/// A step in its place.
#[derive(Clone)]
pub struct NodePlan {
    /// Unique in the topology; keys the state of stateful steps.
    pub name: String,
    /// `filter`, `window`, ….
    pub kind: &'static str,
    /// Builds the operator.
    pub step: Arc<dyn Step>,
    /// Where the rows of each input come from. An input may be fed by several ports (`from` is a
    /// list): their rows have one schema, and each batch keeps its own `source`.
    pub inputs: Vec<Vec<Port>>,
}

/// A topic written. Several ports that write one topic are several of these.
#[derive(Clone)]
pub struct OutputPlan {
    /// The topic; rows are turned into its `append_schema`: `_key` from the stream's `_key` column
    /// (or null), `_event_time` from the row, `_type` from the stream's or `ROW`, fields by name.
    pub topic: Arc<TopicSpec>,
    /// What goes there.
    pub from: Port,
}

#[cfg(test)]
mod tests;
