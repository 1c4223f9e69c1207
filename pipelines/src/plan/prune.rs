//! Which columns a topology needs: of its sources, what is not read is not decoded; of a step's
//! output, what no later step reads need not be carried on.

use super::{NodePlan, Port};
use crate::expr::StreamSchema;
use std::collections::BTreeSet;

/// Column names.
pub(super) type Wanted = BTreeSet<String>;

/// The columns that later steps read or that pass through to a topic.
pub(super) struct Demand {
    /// Of each source.
    pub(super) sources: Vec<Wanted>,
    /// Of each output port of each node.
    pub(super) nodes: Vec<Vec<Wanted>>,
}

/// Learns the demand from a topology typed over all columns.
pub(super) fn demand(nodes: &[NodePlan], sources: &[StreamSchema], ends: &[(Port, Wanted)]) -> Demand {
    let outputs: Vec<Vec<StreamSchema>> = nodes.iter().map(|node| node.step.outputs()).collect();
    let mut of_sources = vec![Wanted::new(); sources.len()];
    let mut of_nodes: Vec<Vec<Wanted>> = outputs.iter().map(|ports| vec![Wanted::new(); ports.len()]).collect();
    for (port, wanted) in ends {
        add(*port, wanted, &mut of_sources, &mut of_nodes);
    }
    // inputs come before those that read them, so the last comes first
    for (index, node) in nodes.iter().enumerate().rev() {
        let after: Wanted = of_nodes[index].iter().flatten().cloned().collect();
        for (input, ports) in node.inputs.iter().enumerate() {
            let Some(first) = ports.first() else { continue };
            let schema = match first {
                Port::Source(source) => &sources[*source],
                Port::Node { node, port } => &outputs[*node][*port],
            };
            let mut wanted: Wanted = match node.step.reads(input) {
                Some(names) => names.into_iter().collect(),
                None => schema.arrow.fields().iter().map(|field| field.name().clone()).collect(),
            };
            if input == 0 && node.step.passes_through() {
                wanted.extend(after.iter().filter(|name| schema.arrow.index_of(name).is_ok()).cloned());
            }
            for port in ports {
                add(*port, &wanted, &mut of_sources, &mut of_nodes);
            }
        }
    }
    Demand { sources: of_sources, nodes: of_nodes }
}

fn add(port: Port, wanted: &Wanted, sources: &mut [Wanted], nodes: &mut [Vec<Wanted>]) {
    match port {
        Port::Source(source) => sources[source].extend(wanted.iter().cloned()),
        Port::Node { node, port } => nodes[node][port].extend(wanted.iter().cloned()),
    }
}
