//! The graph of topics, topologies and sinks, and its Mermaid form.

use super::tree::{sinks, tables};
use super::{ExplainError, chosen};
use crate::plan::{Plan, Port};
use std::collections::BTreeMap;

/// What a box stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Topic,
    Topology,
    Sink,
}

/// A box.
#[derive(Clone, Debug)]
pub(super) struct Vertex {
    pub(super) kind: Kind,
    pub(super) label: String,
    /// A second, smaller line.
    pub(super) note: String,
}

/// An arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Reads the topic as a table.
    pub(super) table: bool,
}

/// Boxes and arrows; without circles, since a plan has none.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) vertices: Vec<Vertex>,
    pub(super) edges: Vec<Edge>,
    index: BTreeMap<(u8, String), usize>,
}

impl Graph {
    /// The graph of one topology, or of all, with the topics and sinks at its edges.
    pub(super) fn of(plan: &Plan, topology: Option<&str>) -> Result<Graph, ExplainError> {
        let mut graph = Graph::default();
        let whole = topology.is_none();
        for topology in chosen(plan, topology)? {
            let kinds: Vec<&str> = topology.nodes.iter().map(|node| node.kind).collect();
            let at = graph.vertex(Kind::Topology, &topology.name, kinds.join(" · "));
            let tables = tables(topology);
            for (index, source) in topology.sources.iter().enumerate() {
                let topic = graph.topic(plan, &source.topic.name);
                // a source that no step reads goes straight to an output
                let unread = topology.nodes.iter().all(|node| !node.inputs.iter().flatten().any(|p| *p == Port::Source(index)));
                graph.edge(topic, at, tables.contains(&index) && !unread);
            }
            for output in &topology.outputs {
                let topic = graph.topic(plan, &output.topic.name);
                graph.edge(at, topic, false);
            }
        }
        let followed = plan.catalogue.sinks.iter().filter(|_| whole).map(|sink| sink.from.clone()).collect::<Vec<_>>();
        for topic in followed {
            graph.topic(plan, &topic);
        }
        Ok(graph)
    }

    fn vertex(&mut self, kind: Kind, label: &str, note: String) -> usize {
        let next = self.vertices.len();
        let at = *self.index.entry((kind as u8, label.to_owned())).or_insert(next);
        if at == next {
            self.vertices.push(Vertex { kind, label: label.to_owned(), note });
        }
        at
    }

    /// A topic, with the sinks that follow it.
    fn topic(&mut self, plan: &Plan, name: &str) -> usize {
        let note = plan.catalogue.topics.get(name).map(|topic| match topic.partitions {
            1 => "1 partition".to_owned(),
            n => format!("{n} partitions"),
        });
        let at = self.vertex(Kind::Topic, name, note.unwrap_or_default());
        for sink in sinks(plan, name) {
            let note = format!("{} · {}", sink.store, sink.table);
            let sink = self.vertex(Kind::Sink, &sink.name, note);
            self.edge(at, sink, false);
        }
        at
    }

    fn edge(&mut self, from: usize, to: usize, table: bool) {
        let edge = Edge { from, to, table };
        if !self.edges.contains(&edge) {
            self.edges.push(edge);
        }
    }
}

/// The graph in Mermaid's language.
///
/// # Errors
/// An unknown topology.
pub fn mermaid(plan: &Plan, topology: Option<&str>) -> Result<String, ExplainError> {
    let graph = Graph::of(plan, topology)?;
    let mut out = String::from("flowchart LR\n");
    let quoted = |text: &str| text.replace('"', "#quot;");
    for (index, vertex) in graph.vertices.iter().enumerate() {
        let (open, close, class) = match vertex.kind {
            Kind::Topic => ("[(", ")]", "topic"),
            Kind::Topology => ("[", "]", "topology"),
            Kind::Sink => ("[[", "]]", "sink"),
        };
        let label = format!("{}<br/><small>{}</small>", quoted(&vertex.label), quoted(&vertex.note));
        out.push_str(&format!("  n{index}{open}\"{label}\"{close}:::{class}\n"));
    }
    for edge in &graph.edges {
        let arrow = if edge.table { "-. table .->" } else { "-->" };
        out.push_str(&format!("  n{} {arrow} n{}\n", edge.from, edge.to));
    }
    out.push_str("  classDef topic fill:#e3f0fb,stroke:#3b78b5,color:#12324f\n");
    out.push_str("  classDef topology fill:#fdf1d8,stroke:#c08a1e,color:#4a3405\n");
    out.push_str("  classDef sink fill:#e2f4e6,stroke:#3d9255,color:#123f1f\n");
    Ok(out)
}
