//! What the last committed epoch left, and whether the plan may go on from it (R12).

use super::EngineError;
use super::books::{Begun, TopologyBooks};
use super::graph::{Graph, TopologyGraph};
use super::source::group;
use super::time::TopologyTime;
use crate::plan::compatible;
use quikflow_topics::broker::{Broker, TopologyState};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{Epoch, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Meta values of a topology.
pub mod meta {
    /// [`super::TopologyTime`] (R4).
    pub const TIME: &str = "time";
    /// [`super::TopologyBooks`] (R20).
    pub const BOOKS: &str = "books";
    /// Name of each stateful step → what its state depends on (R12).
    pub const FINGERPRINT: &str = "fingerprint";
}

/// What the engine starts from.
pub struct Recovered {
    /// The last committed epoch.
    pub epoch: Epoch,
    /// By topology: pieces of state.
    pub states: Vec<TopologyState>,
    /// By topology.
    pub times: Vec<TopologyTime>,
    /// By topology.
    pub books: Vec<TopologyBooks>,
}

/// Reads what every topology that falls to this process left behind, with `epoch` the last one; a topology without a trace starts anew.
///
/// # Errors
/// [`EngineError::Incompatible`] when a stateful step was changed, added to or taken from a topology
/// that has run; what cannot be read.
pub fn recover(graph: &Graph, broker: &Arc<dyn Broker>, epoch: Epoch) -> Result<Recovered, EngineError> {
    let mut recovered = Recovered { epoch, states: Vec::new(), times: Vec::new(), books: Vec::new() };
    for part in &graph.topologies {
        let topology = &part.plan;
        let state = broker.topology_state(&part.stored_as)?;
        let topics: Vec<&TopicSpec> = topology.sources.iter().map(|source| source.topic.as_ref()).collect();
        let stored = |what: &'static str| {
            move |error: serde_json::Error| EngineError::Stored {
                topology: topology.name.clone(),
                what,
                message: error.to_string(),
            }
        };
        if let Some(bytes) = state.meta.get(meta::FINGERPRINT) {
            let before: BTreeMap<String, String> = serde_json::from_slice(bytes).map_err(stored(meta::FINGERPRINT))?;
            compatible(topology, part.share.is_some(), &before)
                .map_err(|mistakes| EngineError::Incompatible(mistakes.join("; ")))?;
        }
        recovered.times.push(match state.meta.get(meta::TIME) {
            Some(bytes) => TopologyTime::restore(bytes, &topics).map_err(stored(meta::TIME))?,
            None => TopologyTime::new(&topics),
        });
        let mut books = match state.meta.get(meta::BOOKS) {
            Some(bytes) => TopologyBooks::restore(bytes, topology).map_err(stored(meta::BOOKS))?,
            None => TopologyBooks::new(topology),
        };
        if books.begun.is_none() && books.sources.iter().all(|read| *read == 0) {
            books.begun = Some(begun(part, broker.as_ref())?);
        }
        recovered.books.push(books);
        recovered.states.push(state);
    }
    Ok(recovered)
}

/// Where new books begin: at the committed offsets, else at the earliest records kept.
fn begun(part: &TopologyGraph, broker: &dyn Broker) -> Result<Begun, EngineError> {
    let topology = &part.plan;
    let offsets = broker.group_offsets(&group(&part.stored_as))?;
    let mut begun = Begun::default();
    for source in &topology.sources {
        let name = &source.topic.name;
        let starts = broker.stats(name)?.start.into_iter().zip(0..);
        let places = starts.map(|(start, partition)| {
            let committed = offsets.get(&(name.clone(), PartitionId(partition)));
            committed.map_or(start, |offset| offset.0)
        });
        begun.sources.insert(name.clone(), places.collect());
    }
    for late in topology.late.iter().flatten() {
        begun.late.insert(late.name.clone(), broker.stats(&late.name)?.end);
    }
    Ok(begun)
}
