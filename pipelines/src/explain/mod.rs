//! Shows a plan: as text, JSON, Mermaid or a drawing.
//!
//! * `text`: one tree a topology: sources with the columns read, steps with their keys, state and
//!   emission, topics, late topics, sinks, the guarantee
//! * `json`: the same for programs
//! * `mermaid`, `svg`: the graph of topics, topologies and sinks

mod graph;
mod layout;
mod svg;
mod tree;

pub use graph::mermaid;
pub use svg::svg;
pub use tree::{json, text};

use crate::plan::{Plan, TopologyPlan};
use quikflow_topics::diagnostics::closest;
use std::sync::Arc;

/// Why a plan cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// There is no such topology.
    #[error("unknown topology `{name}`{}, available: {available}", .near.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    UnknownTopology {
        /// As asked for.
        name: String,
        /// The nearest name.
        near: Option<String>,
        /// All names.
        available: String,
    },
}

/// The topologies to show: the one named, or all.
fn chosen<'a>(plan: &'a Plan, topology: Option<&str>) -> Result<Vec<&'a Arc<TopologyPlan>>, ExplainError> {
    let Some(name) = topology else { return Ok(plan.topologies.iter().collect()) };
    match plan.topologies.iter().find(|topology| topology.name == name) {
        Some(topology) => Ok(vec![topology]),
        None => {
            let names: Vec<&str> = plan.topologies.iter().map(|topology| topology.name.as_str()).collect();
            Err(ExplainError::UnknownTopology {
                name: name.to_owned(),
                near: closest(name, names.iter().copied()).map(str::to_owned),
                available: names.join(", "),
            })
        }
    }
}

#[cfg(test)]
mod tests;
