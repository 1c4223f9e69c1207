//! The accounts (R20): each record that enters a step has one fate, and what leaves a port enters
//! each follower. They are part of the epoch.

use super::graph::{PortKey, Target, TopologyGraph};
use crate::operator::{Counts, Operator};
use crate::plan::TopologyPlan;
use quikflow_topics::broker::TopologyFigures;
use quikflow_topics::ids::EventTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A step's accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepBooks {
    /// The step's name.
    pub name: String,
    /// The step's kind.
    pub kind: String,
    /// By input. `input` is counted by the engine where rows are handed in, the fates by the step.
    pub inputs: Vec<Counts>,
    /// Rows of dead letters that went in again here (R14); they are part of `input`.
    #[serde(default)]
    pub replayed: u64,
    /// Rows out, by port.
    pub ports: Vec<u64>,
    /// Prepared rows that left for the owner of their key group.
    pub sent: u64,
    /// Prepared rows that arrived there.
    pub taken: u64,
    /// Records whose fate is open at the end of the epoch; all of input 0.
    pub in_flight: u64,
}

/// A topology's accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyBooks {
    /// Records read, by source.
    pub sources: Vec<u64>,
    /// By node.
    pub steps: Vec<StepBooks>,
    /// Rows written, by output.
    pub outputs: Vec<u64>,
    /// Records written to late topics.
    pub late: u64,
    /// Dead letters written.
    pub dead: u64,
    /// Where the counting began; absent until the engine has started with these books.
    #[serde(default)]
    pub begun: Option<Begun>,
}

/// Where the counting of a topology's books began: offsets by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Of each topic read: the first record counted.
    pub sources: BTreeMap<String, Vec<u64>>,
    /// Of each late topic: the end.
    pub late: BTreeMap<String, Vec<u64>>,
}

impl TopologyBooks {
    /// Rows that left for keyed steps and for topics.
    pub fn made(&self) -> u64 {
        self.steps.iter().map(|step| step.sent).chain(self.outputs.iter().copied()).sum()
    }

    /// What others are shown of it.
    pub fn figures(&self, watermark: Option<EventTime>, state_bytes: usize) -> TopologyFigures {
        TopologyFigures {
            watermark,
            late: self.late,
            dead: self.dead,
            read: self.sources.iter().sum(),
            state_bytes: state_bytes as u64,
        }
    }

    /// Empty books for a topology.
    pub fn new(plan: &TopologyPlan) -> TopologyBooks {
        TopologyBooks {
            sources: vec![0; plan.sources.len()],
            steps: plan
                .nodes
                .iter()
                .map(|node| StepBooks {
                    name: node.name.clone(),
                    kind: node.kind.to_owned(),
                    inputs: vec![Counts::default(); node.inputs.len()],
                    ports: vec![0; node.step.outputs().len()],
                    ..StepBooks::default()
                })
                .collect(),
            outputs: vec![0; plan.outputs.len()],
            late: 0,
            dead: 0,
            begun: None,
        }
    }

    /// The stored books go on where they are of the same steps; else new ones begin.
    ///
    /// # Errors
    /// Bytes that are no books.
    pub fn restore(bytes: &[u8], plan: &TopologyPlan) -> Result<TopologyBooks, serde_json::Error> {
        let stored: TopologyBooks = serde_json::from_slice(bytes)?;
        let fresh = TopologyBooks::new(plan);
        Ok(if stored.same_steps(&fresh) { stored } else { fresh })
    }

    /// Whether both are books of the same steps, sources and outputs.
    pub fn same_steps(&self, other: &TopologyBooks) -> bool {
        self.sources.len() == other.sources.len()
            && self.outputs.len() == other.outputs.len()
            && self.steps.len() == other.steps.len()
            && self.steps.iter().zip(&other.steps).all(|(a, b)| {
                a.name == b.name && a.kind == b.kind && a.inputs.len() == b.inputs.len() && a.ports.len() == b.ports.len()
            })
    }

    /// Adds what happened in an epoch (or on one worker). What is in flight is a level, not a flow:
    /// it is replaced by [`TopologyBooks::set_in_flight`].
    pub fn add(&mut self, other: &TopologyBooks) {
        add_all(&mut self.sources, &other.sources);
        add_all(&mut self.outputs, &other.outputs);
        self.late += other.late;
        self.dead += other.dead;
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            add_all(&mut mine.ports, &theirs.ports);
            mine.replayed += theirs.replayed;
            mine.sent += theirs.sent;
            mine.taken += theirs.taken;
            for (mine, theirs) in mine.inputs.iter_mut().zip(&theirs.inputs) {
                add_fates(mine, theirs);
                mine.input += theirs.input;
            }
        }
    }

    /// Sets how many records of a node are in flight.
    pub fn set_in_flight(&mut self, node: usize, records: u64) {
        self.steps[node].in_flight = records;
    }

    /// Every edge and every step that does not balance, in words; empty when all is well.
    pub fn check(&self, graph: &TopologyGraph) -> Vec<String> {
        let mut wrong = self.check_steps();
        self.check_edges(graph, &mut wrong);
        wrong
    }

    /// Every step whose records do not each have one fate, in words.
    pub fn check_steps(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for step in &self.steps {
            for (index, c) in step.inputs.iter().enumerate() {
                let open = if index == 0 { step.in_flight } else { 0 };
                let fates = c.applied + c.filtered + c.duplicate + c.late + c.dead + open;
                if fates != c.input {
                    wrong.push(format!(
                        "step `{}` took {} records at input {index} and accounts for {fates}: {c:?}, {open} in flight",
                        step.name, c.input
                    ));
                }
            }
            if step.sent != step.taken {
                wrong.push(format!("step `{}` was sent {} rows and took {}", step.name, step.sent, step.taken));
            }
        }
        wrong
    }

    fn check_edges(&self, graph: &TopologyGraph, wrong: &mut Vec<String>) {
        // A step's input may be fed by several ports, so edges are added up by follower.
        let mut fed: Vec<Vec<u64>> = self.steps.iter().map(|step| vec![0; step.inputs.len()]).collect();
        let mut written = vec![0; self.outputs.len()];
        for (port, followers) in &graph.followers {
            let out = match *port {
                PortKey::Source(index) => self.sources[index],
                PortKey::Node(node, port) => self.steps[node].ports[port],
            };
            for follower in followers {
                match *follower {
                    Target::Step { node, input } => fed[node][input] += out,
                    Target::Output(index) => written[index] += out,
                }
            }
        }
        for (step, fed) in self.steps.iter().zip(fed) {
            let taken: u64 = step.inputs.iter().map(|counts| counts.input).sum();
            let all: u64 = fed.iter().sum::<u64>() + step.replayed;
            if taken != all {
                wrong.push(format!("step `{}` was fed {all} rows, {} of them again, and took {taken}", step.name, step.replayed));
            }
            for (index, (counts, fed)) in step.inputs.iter().zip(fed).enumerate() {
                if counts.input < fed {
                    wrong.push(format!("step `{}` was fed {fed} rows at input {index} and took {}", step.name, counts.input));
                }
            }
        }
        for (index, (output, written)) in self.outputs.iter().zip(written).enumerate() {
            if *output != written {
                wrong.push(format!("output {index} was fed {written} rows and wrote {output}"));
            }
        }
    }
}

/// Adds fates and outputs, but not `input`, which the engine counts itself.
pub fn add_fates(to: &mut Counts, from: &Counts) {
    to.applied += from.applied;
    to.filtered += from.filtered;
    to.duplicate += from.duplicate;
    to.late += from.late;
    to.dead += from.dead;
    to.output += from.output;
}

/// Which nodes of a topology own state.
pub fn keyed_nodes(plan: &TopologyPlan) -> Vec<bool> {
    plan.nodes.iter().map(|node| matches!(node.step.build(), Operator::Keyed { .. })).collect()
}

fn add_all(to: &mut [u64], from: &[u64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}
