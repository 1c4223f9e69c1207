//! A plan as text and as JSON.

use super::{ExplainError, chosen};
use crate::plan::{NodePlan, Plan, Port, TopologyPlan, fingerprint};
use quikflow_topics::catalogue::parse::type_name;
use quikflow_topics::catalogue::{SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::units::show_duration;
use serde_json::{Value, json as value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a commit of an epoch holds.
const GUARANTEE: &str = "exactly once on the embedded broker and on Kafka: rows, state, time and offsets of an epoch commit together; \
                         at least once, with ids that repeat, on Fluvio";

/// The plan as an indented tree.
///
/// # Errors
/// An unknown topology.
pub fn text(plan: &Plan, topology: Option<&str>) -> Result<String, ExplainError> {
    let mut out = String::new();
    for (index, topology) in chosen(plan, topology)?.into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let mut tree = Tree { out: &mut out, plan, topology, shown: BTreeSet::new() };
        tree.topology();
    }
    Ok(out)
}

struct Tree<'a> {
    out: &'a mut String,
    plan: &'a Plan,
    topology: &'a Arc<TopologyPlan>,
    shown: BTreeSet<usize>,
}

impl Tree<'_> {
    fn line(&mut self, depth: usize, text: impl AsRef<str>) {
        self.out.push_str(&format!("{:width$}{}\n", "", text.as_ref(), width = depth * 2));
    }

    fn topology(&mut self) {
        let topology = self.topology;
        self.line(0, format!("topology {}", topology.name));
        if !topology.doc.is_empty() {
            self.line(1, &topology.doc);
        }
        let tables = tables(topology);
        for (index, source) in topology.sources.iter().enumerate() {
            let topic = &source.topic;
            let role = if tables.contains(&index) { "table" } else { "from" };
            self.line(
                1,
                format!(
                    "{role} {} ({} partitions, disorder {}, idle after {})",
                    topic.name,
                    topic.partitions,
                    show_duration(topic.disorder),
                    show_duration(topic.idle_after)
                ),
            );
            let columns: Vec<&str> = source
                .projection
                .columns
                .iter()
                .map(String::as_str)
                .filter(|c| !matches!(*c, "_partition" | "_offset"))
                .collect();
            self.line(
                2,
                format!("decodes {} of {} columns: {}", columns.len(), topic.schema().fields().len() - 2, columns.join(", ")),
            );
            if let Some(whole) = source.whole.as_ref().filter(|_| topology.divisible) {
                let kept = match &whole.kept {
                    Some(kept) => format!("keeps the rows whose {} is a key of its own records", kept.column),
                    None => "keeps all of it".to_owned(),
                };
                self.line(2, format!("where processes share the work, each share reads all of it and {kept}"));
            }
        }
        for source in 0..topology.sources.len() {
            self.port(Port::Source(source), 1);
        }
        for (source, late) in topology.sources.iter().zip(&topology.late) {
            if let Some(late) = late {
                self.line(1, format!("late records of {} go to {}", source.topic.name, late.name));
            }
        }
        self.line(1, format!("processes that share the work divide it: {}", self.topology.division().describe()));
        self.line(1, "dead letters: records that fail in a step, with their bytes, cause and place");
        self.line(1, format!("guarantee: {GUARANTEE}"));
    }

    fn port(&mut self, port: Port, depth: usize) {
        let topology = self.topology;
        for (index, node) in topology.nodes.iter().enumerate() {
            let first = node.inputs.first().is_some_and(|ports| ports.contains(&port));
            if first && self.shown.insert(index) {
                self.node(index, node, depth);
            }
        }
        for output in topology.outputs.iter().filter(|output| output.from == port) {
            self.topic(&output.topic, depth);
        }
    }

    fn node(&mut self, index: usize, node: &NodePlan, depth: usize) {
        let state = node.step.fingerprint().is_some();
        let moves = if state { ", keeps state: rows move to the worker that owns their key" } else { "" };
        self.line(depth, format!("{} `{}`{moves}", node.kind, node.name));
        for line in node.step.describe() {
            self.line(depth + 2, line);
        }
        let ports = node.step.outputs().len();
        for port in 0..ports {
            self.port(Port::Node { node: index, port }, if ports > 1 { depth + 1 } else { depth });
        }
    }

    fn topic(&mut self, topic: &TopicSpec, depth: usize) {
        let what = if topic.kind == TopicKind::Events { "events" } else { "rows" };
        self.line(depth, format!("to {} ({what}, {} partitions)", topic.name, topic.partitions));
        let columns: Vec<String> = topic.fields.iter().map(|f| format!("{} {}", f.name, type_name(f.ty))).collect();
        self.line(depth + 2, format!("columns: {}", columns.join(", ")));
        for sink in sinks(self.plan, &topic.name) {
            self.line(depth + 2, format!("sink {}: {} `{}`, key {}", sink.name, sink.store, sink.table, sink.key.join(", ")));
        }
    }
}

/// Sources that are only read as tables.
pub(super) fn tables(topology: &TopologyPlan) -> BTreeSet<usize> {
    let mut tables = BTreeSet::new();
    let mut streams = BTreeSet::new();
    for node in &topology.nodes {
        for (input, ports) in node.inputs.iter().enumerate() {
            for port in ports {
                if let Port::Source(source) = port {
                    if input == 0 {
                        streams.insert(*source)
                    } else {
                        tables.insert(*source)
                    };
                }
            }
        }
    }
    tables.difference(&streams).copied().collect()
}

/// The sinks that follow a topic.
pub(super) fn sinks<'a>(plan: &'a Plan, topic: &'a str) -> impl Iterator<Item = &'a SinkSpec> {
    plan.catalogue.sinks.iter().filter(move |sink| sink.from == topic).map(AsRef::as_ref)
}

/// The plan as JSON.
///
/// # Errors
/// An unknown topology.
pub fn json(plan: &Plan, topology: Option<&str>) -> Result<String, ExplainError> {
    let topologies: Vec<Value> = chosen(plan, topology)?.into_iter().map(|topology| one(plan, topology)).collect();
    let shown = value!({ "topologies": topologies, "guarantee": GUARANTEE });
    Ok(serde_json::to_string_pretty(&shown).unwrap_or_default())
}

fn one(plan: &Plan, topology: &Arc<TopologyPlan>) -> Value {
    let tables = tables(topology);
    let place = |port: &Port| match port {
        Port::Source(source) => value!({ "source": topology.sources[*source].topic.name }),
        Port::Node { node, port } => value!({ "step": topology.nodes[*node].name, "port": port }),
    };
    let sources = topology.sources.iter().enumerate().map(|(index, source)| {
        value!({
            "topic": source.topic.name,
            "table": tables.contains(&index),
            "partitions": source.topic.partitions,
            "columns": source.projection.columns,
            "late": topology.late.get(index).and_then(|late| late.as_ref()).map(|late| late.name.clone()),
        })
    });
    let prints = fingerprint(topology, false);
    let steps = topology.nodes.iter().map(|node| {
        let outputs = node.step.outputs().into_iter().map(|schema| {
            let fields = schema.arrow.fields().iter().map(|f| value!({ "name": f.name(), "type": f.data_type().to_string() }));
            fields.collect::<Vec<Value>>()
        });
        value!({
            "name": node.name,
            "kind": node.kind,
            "inputs": node.inputs.iter().map(|ports| ports.iter().map(place).collect::<Vec<_>>()).collect::<Vec<_>>(),
            "state": prints.get(&node.name),
            "notes": node.step.describe(),
            "outputs": outputs.collect::<Vec<_>>(),
        })
    });
    let outputs = topology.outputs.iter().map(|output| {
        let sinks = sinks(plan, &output.topic.name);
        let sinks = sinks.map(|sink| value!({ "name": sink.name, "store": sink.store, "table": sink.table, "key": sink.key }));
        value!({ "topic": output.topic.name, "from": place(&output.from), "sinks": sinks.collect::<Vec<_>>() })
    });
    value!({
        "name": topology.name,
        "doc": topology.doc,
        "divided": topology.division().describe(),
        "sources": sources.collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
    })
}
