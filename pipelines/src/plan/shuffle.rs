//! A topology that is not divisible is made two where processes share the work (R19).
//!
//! The first half is divided by source partition: it runs the stateless steps and makes pieces of the rows of a
//! slice, one for each share (a window combines them, a `count_within` gathers their times by key). The pieces change hands through a topic with a partition for each pair
//! of shares, so a partition has one writer and its records are in that writer's order. The second
//! half, divided by the key of the state, merges them.
//!
//! Time: lateness is decided in the first half, where a record's own partition is known (R1). An epoch's
//! last record in each partition bears the watermark of the share that wrote it, as event time, and windows of the
//! second half close by the minimum over the partitions, as of any source.

use super::{Half, NodePlan, OutputPlan, Plan, Port, SourcePlan, TopologyPlan};
use crate::engine::books::keyed_nodes;
use crate::expr::StreamSchema;
use crate::steps::{PIECE, piece_schema};
use quikflow_topics::broker::Projection;
use quikflow_topics::catalogue::{Cleanup, FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::schema;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How processes divide a topology among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    /// By source partition.
    BySource,
    /// Combined by source partition, then by the key of its state.
    Combined,
    /// Not at all: one process has all of it.
    Whole,
}

impl Division {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Division::BySource => "by source partition",
            Division::Combined => "combined by source partition, then repartitioned by key",
            Division::Whole => "not at all, one process has the whole of it",
        }
    }
}

impl TopologyPlan {
    /// How it is divided where processes share the work.
    pub fn division(self: &Arc<Self>) -> Division {
        match self.divisible {
            true => Division::BySource,
            false if halves(self, 2).is_some() => Division::Combined,
            false => Division::Whole,
        }
    }
}

impl Plan {
    /// The plan of processes that divide the work into so many shares.
    #[must_use]
    pub fn for_shares(self, shares: u32) -> Plan {
        if shares <= 1 {
            return self;
        }
        let topologies = self.topologies.iter().flat_map(|topology| match halves(topology, shares) {
            Some(halves) => halves.map(Arc::new).to_vec(),
            None => vec![topology.clone()],
        });
        Plan { topologies: topologies.collect(), catalogue: self.catalogue }
    }
}

/// The name of the half that combines.
fn combining(topology: &str) -> String {
    format!("{topology}.combine")
}

/// Both halves, where its one stateful step can be halved.
fn halves(topology: &Arc<TopologyPlan>, shares: u32) -> Option<[TopologyPlan; 2]> {
    let keyed = keyed_nodes(topology);
    if topology.divisible || keyed.iter().filter(|keyed| **keyed).count() != 1 {
        return None;
    }
    let stateful = keyed.iter().position(|keyed| *keyed)?;
    let (combine, merge) = topology.nodes[stateful].step.halves(shares)?;
    // What follows it, itself included: a node comes after those that it reads.
    let mut after = BTreeSet::from([stateful]);
    for (index, node) in topology.nodes.iter().enumerate().skip(stateful + 1) {
        let behind = |port: &Port| matches!(port, Port::Node { node, .. } if after.contains(node));
        match node.inputs.iter().flatten().map(behind).collect::<BTreeSet<bool>>() {
            all if all == BTreeSet::from([true]) => drop(after.insert(index)),
            // A node that takes rows from before and from behind would be in both halves.
            both if both.len() > 1 => return None,
            _ => {}
        }
    }
    let shuffle = shuffle_topic(topology, shares);
    let own = &topology.nodes[stateful];
    let mut first = Side::default();
    let mut second = Side::default();
    for (index, node) in topology.nodes.iter().enumerate() {
        if index == stateful {
            first.add(index, &NodePlan { kind: "combine", step: combine.clone(), ..own.clone() });
            let inputs = vec![vec![Port::Source(0)]];
            second.places.insert(index, 0);
            second.nodes.push(NodePlan { step: merge.clone(), inputs, ..own.clone() });
        } else if after.contains(&index) {
            second.add(index, node);
        } else {
            first.add(index, node);
        }
    }
    for output in &topology.outputs {
        match output.from {
            Port::Node { node, .. } if after.contains(&node) => second.end(output),
            _ => first.end(output),
        }
    }
    first.outputs.push(OutputPlan { topic: shuffle.clone(), from: Port::Node { node: first.places[&stateful], port: 0 } });
    let late = TopicSpec {
        name: format!("late.{}.combined", topology.name),
        doc: format!("Pieces that came after what they belong to was closed in {}.", topology.name),
        cleanup: Cleanup::Delete,
        retention: topology.sources.first().and_then(|source| source.topic.retention),
        ..shuffle.as_ref().clone()
    };
    let schema = StreamSchema { arrow: piece_schema(false), kind: TopicKind::Rows };
    let columns = [schema::PARTITION, schema::OFFSET, schema::EVENT_TIME, PIECE];
    let source = SourcePlan { topic: shuffle.clone(), projection: Projection::of(&shuffle, &columns), schema, whole: None };
    let reads = topology.sources.iter().map(|source| source.topic.clone()).collect();
    Some([
        TopologyPlan {
            name: combining(&topology.name),
            doc: format!("Combines what {} counts, before it changes hands by key.", topology.name),
            divisible: true,
            half: Some(Half::Combines(shuffle)),
            sources: topology.sources.clone(),
            nodes: first.nodes,
            outputs: first.outputs,
            late: topology.late.clone(),
        },
        TopologyPlan {
            name: topology.name.clone(),
            doc: topology.doc.clone(),
            divisible: true,
            half: Some(Half::Merges { combining: combining(&topology.name), reads, shares }),
            sources: vec![source],
            nodes: second.nodes,
            outputs: second.outputs,
            late: vec![Some(Arc::new(late))],
        },
    ])
}

/// Nodes and outputs of one half.
#[derive(Default)]
struct Side {
    nodes: Vec<NodePlan>,
    outputs: Vec<OutputPlan>,
    /// Index in the topology → in the half.
    places: BTreeMap<usize, usize>,
}

impl Side {
    fn port(&self, port: Port) -> Port {
        match port {
            Port::Node { node, port } => Port::Node { node: self.places[&node], port },
            source => source,
        }
    }

    fn add(&mut self, index: usize, node: &NodePlan) {
        let inputs = node.inputs.iter().map(|ports| ports.iter().map(|port| self.port(*port)).collect()).collect();
        self.places.insert(index, self.nodes.len());
        self.nodes.push(NodePlan { inputs, ..node.clone() });
    }

    fn end(&mut self, output: &OutputPlan) {
        let from = self.port(output.from);
        self.outputs.push(OutputPlan { from, ..output.clone() });
    }
}

/// The topic through which pieces change hands. Its event times are watermarks: nothing more is taken off
/// them, and they are as live as the records were.
fn shuffle_topic(topology: &TopologyPlan, shares: u32) -> Arc<TopicSpec> {
    let topics = || topology.sources.iter().map(|source| source.topic.as_ref());
    Arc::new(TopicSpec {
        doc: format!("What {} combined, on its way to the shares by key.", topology.name),
        partitions: shares * shares,
        cleanup: Cleanup::Consumed,
        disorder: Duration::ZERO,
        idle_after: topics().map(|topic| topic.idle_after).max().unwrap_or_default(),
        live_within: topics().map(|topic| topic.live_within + topic.disorder).min().unwrap_or_default(),
        fields: vec![FieldSpec { optional: true, ..FieldSpec::new(PIECE, FieldType::String) }],
        ..TopicSpec::new(format!("quikflow.shuffle.{}", topology.name), TopicKind::Rows)
    })
}
