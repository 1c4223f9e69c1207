//! How the rows of all topologies travel: who follows whom, and on which level keyed steps stand.
//!
//! Stateless steps run where their rows are. A keyed step stands on the level after the highest one
//! that feeds it; each level is one timely operator, so rows are exchanged between workers only
//! where a keyed step needs it, and once.

use crate::plan::{Kept, Plan, Port, SourcePlan, TopologyPlan};
use quikflow_topics::ids::PartitionId;
use quikflow_topics::share::{Share, stored_as, whole_in};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Who takes the rows of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A step's input.
    Step {
        /// Index in the topology's `nodes`.
        node: usize,
        /// Which input.
        input: usize,
    },
    /// An output, by index.
    Output(usize),
}

/// A port, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortKey {
    /// A source, by index.
    Source(usize),
    /// A node's port.
    Node(usize, usize),
}

impl From<Port> for PortKey {
    fn from(port: Port) -> PortKey {
        match port {
            Port::Source(index) => PortKey::Source(index),
            Port::Node { node, port } => PortKey::Node(node, port),
        }
    }
}

/// One topology's connections, of all of it or of a share.
pub struct TopologyGraph {
    /// The topology.
    pub plan: Arc<TopologyPlan>,
    /// Under which name its state, time and offsets are stored.
    pub stored_as: String,
    /// The share that it is, where the topology is divided.
    pub share: Option<Share>,
    /// By port; ports that nobody follows are absent.
    pub followers: BTreeMap<PortKey, Vec<Target>>,
    /// Of each node: its level when it is keyed (from 1), 0 when it is stateless.
    pub levels: Vec<usize>,
    /// Of each node: whether the rows that come to it were made by a step before it, of many records.
    pub made: Vec<bool>,
}

/// All topologies' connections.
pub struct Graph {
    /// In the plan's order.
    pub topologies: Vec<TopologyGraph>,
    /// The highest level; 0 without keyed steps.
    pub levels: usize,
}

impl Graph {
    /// What falls to a process that has the shares `mine` of `of` (R19): of a topology that can be
    /// divided its part of each of them, of another one all or nothing. One share: the whole plan.
    pub fn of_shares(plan: &Plan, keyed: &[Vec<bool>], mine: &[u32], of: u32) -> Graph {
        if of <= 1 {
            return Graph::new(plan, keyed);
        }
        let mut topologies = Vec::new();
        for (topology, keyed) in plan.topologies.iter().zip(keyed) {
            let whole = whole_in(&topology.name, of);
            for index in mine.iter().copied().filter(|index| topology.divisible || *index == whole) {
                let share = topology.divisible.then_some(Share { index, of });
                topologies.push(TopologyGraph { stored_as: stored_as(&topology.name, index), share, ..connect(topology, keyed) });
            }
        }
        let levels = topologies.iter().flat_map(|t| t.levels.iter().copied()).max().unwrap_or(0);
        Graph { topologies, levels }
    }

    /// Connects the plan; `keyed` says which nodes of a topology own state.
    pub fn new(plan: &Plan, keyed: &[Vec<bool>]) -> Graph {
        let topologies: Vec<TopologyGraph> =
            plan.topologies.iter().zip(keyed).map(|(topology, keyed)| connect(topology, keyed)).collect();
        let levels = topologies.iter().flat_map(|t| t.levels.iter().copied()).max().unwrap_or(0);
        Graph { topologies, levels }
    }
}

impl TopologyGraph {
    /// The partitions that it reads of one of its sources.
    pub fn partitions(&self, source: &SourcePlan) -> Range<u32> {
        match source.whole {
            Some(_) => 0..source.topic.partitions,
            None => self.own_partitions(source),
        }
    }

    /// Whether it reads this partition of one of its sources.
    pub fn takes(&self, topic: &str, partition: PartitionId) -> bool {
        self.source(topic).is_some_and(|source| self.partitions(source).contains(&partition.0))
    }

    /// Whether it, and no other share, answers for what concerns the records of this partition.
    pub fn answers_for(&self, topic: &str, partition: PartitionId) -> bool {
        self.source(topic).is_some_and(|source| self.own_partitions(source).contains(&partition.0))
    }

    /// Whether it writes the dead letter of a row of this source: of a table whose rows all shares have, one of them does.
    pub fn speaks_of(&self, source: usize, partition: PartitionId) -> bool {
        let source = &self.plan.sources[source];
        let all_have_it = source.whole.as_ref().is_some_and(|whole| whole.kept.is_none());
        !all_have_it || self.own_partitions(source).contains(&partition.0)
    }

    /// The partitions of a source that are its, also where it reads all of them.
    fn own_partitions(&self, source: &SourcePlan) -> Range<u32> {
        let count = source.topic.partitions;
        self.share.map_or(0..count, |share| share.partitions(count))
    }

    /// The table's rows that it keeps, where it reads a table whole and leaves some out.
    pub fn kept(&self, source: &SourcePlan) -> Option<(Kept, Range<u32>)> {
        let kept = source.whole.as_ref()?.kept.clone()?;
        let mine = self.share?.partitions(kept.partitions);
        Some((kept, mine))
    }

    fn source(&self, topic: &str) -> Option<&SourcePlan> {
        self.plan.sources.iter().find(|source| source.topic.name == topic)
    }
}

fn connect(plan: &Arc<TopologyPlan>, keyed: &[bool]) -> TopologyGraph {
    let mut followers: BTreeMap<PortKey, Vec<Target>> = BTreeMap::new();
    let mut levels = vec![0; plan.nodes.len()];
    // The highest level on which a node's rows can appear.
    let mut reach = vec![0; plan.nodes.len()];
    for (index, node) in plan.nodes.iter().enumerate() {
        let mut highest = 0;
        for (input, ports) in node.inputs.iter().enumerate() {
            for port in ports {
                followers.entry((*port).into()).or_default().push(Target::Step { node: index, input });
                if let Port::Node { node, .. } = port {
                    highest = highest.max(reach[*node]);
                }
            }
        }
        reach[index] = highest + usize::from(keyed[index]);
        if keyed[index] {
            levels[index] = reach[index];
        }
    }
    for (index, output) in plan.outputs.iter().enumerate() {
        followers.entry(output.from.into()).or_default().push(Target::Output(index));
    }
    let made = (0..plan.nodes.len()).map(|node| plan.made_before(node)).collect();
    TopologyGraph { plan: plan.clone(), stored_as: plan.name.clone(), share: None, followers, levels, made }
}
