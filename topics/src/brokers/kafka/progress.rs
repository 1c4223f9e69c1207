//! How far everybody has come, in the compacted topic `quikflow.progress`: a copy of the offsets in
//! `quikflow.state`, small enough to be followed by whoever asks, and the topics' generations.
//!
//! | key | value |
//! | --- | --- |
//! | `o` ␟ group ␟ topic | the next offset to read of each partition: `0:17 1:4` |
//! | `g` ␟ topic | its generation |
//! | `f` ␟ topology | its figures, as JSON |
//!
//! What epochs write is in their transactions; a sink's entries say how far it came some time ago.

use super::config::KafkaOptions;
use super::index::{Places, UNIT, read_places};
use super::table::Table;
use crate::broker::{BrokerError, TopologyFigures};
use crate::ids::{Offset, PartitionId};
use crate::share::{note_last, share_of};
use std::collections::{BTreeMap, BTreeSet};

/// What this process itself has committed, or taken over: no later than that are the topic's entries
/// of the same key, since what is committed is seen a moment later.
#[derive(Default)]
pub(super) struct Own {
    /// By (group, topic); empty where they were forgotten.
    pub(super) offsets: BTreeMap<(String, String), Places>,
    pub(super) generations: BTreeMap<String, u64>,
}

/// The topic's content.
pub(super) struct Progress {
    table: Table,
    offsets: BTreeMap<(String, String), Places>,
    generations: BTreeMap<String, u64>,
    figures: BTreeMap<String, TopologyFigures>,
}

impl Progress {
    pub(super) fn new(options: &KafkaOptions, topic: &str) -> Result<Progress, BrokerError> {
        let table = Table::new(options, topic)?;
        Ok(Progress { table, offsets: BTreeMap::new(), generations: BTreeMap::new(), figures: BTreeMap::new() })
    }

    /// Reads what was committed since the last time.
    pub(super) fn catch_up(&mut self) -> Result<(), BrokerError> {
        let Progress { table, offsets, generations, figures } = self;
        table.catch_up(|entry| {
            let mut words = entry.key.split(UNIT);
            match (words.next(), words.next(), words.next()) {
                (Some("o"), Some(group), Some(topic)) => {
                    let key = (group.to_owned(), topic.to_owned());
                    match entry.value.and_then(read_places) {
                        Some(places) => drop(offsets.insert(key, places)),
                        None => drop(offsets.remove(&key)),
                    }
                }
                (Some("g"), Some(topic), None) => {
                    let number = entry.value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse().ok());
                    generations.insert(topic.to_owned(), number.unwrap_or(0));
                }
                (Some("f"), Some(topology), None) => match entry.value.and_then(|value| serde_json::from_slice(value).ok()) {
                    Some(found) => drop(figures.insert(topology.to_owned(), found)),
                    None => drop(figures.remove(topology)),
                },
                _ => {}
            }
            Ok(())
        })
    }

    /// The topologies' figures, over all shares.
    pub(super) fn figures(&self) -> BTreeMap<String, TopologyFigures> {
        let mut all: BTreeMap<String, TopologyFigures> = BTreeMap::new();
        for (stored_as, figures) in &self.figures {
            all.entry(share_of(stored_as).0.to_owned()).or_default().add(figures);
        }
        all
    }

    /// A group's offsets, over all shares of it unless the name says which.
    pub(super) fn group(&self, group: &str, own: &Own) -> BTreeMap<(String, PartitionId), Offset> {
        let others = self.offsets.iter().filter(|(key, _)| !own.offsets.contains_key(*key));
        let all = others.chain(&own.offsets).filter(|((of, _), _)| of == group || share_of(of).0 == group);
        let mut offsets = BTreeMap::new();
        for ((_, topic), places) in all {
            for (partition, next) in places {
                note_last(&mut offsets, (topic.clone(), PartitionId(*partition)), Offset(*next));
            }
        }
        offsets
    }

    /// All groups.
    pub(super) fn groups(&self) -> BTreeSet<String> {
        self.offsets.keys().map(|(group, _)| share_of(group).0.to_owned()).collect()
    }

    /// How often a topic was reset.
    pub(super) fn generation(&self, topic: &str, own: &Own) -> u64 {
        let seen = self.generations.get(topic).copied().unwrap_or(0);
        seen.max(own.generations.get(topic).copied().unwrap_or(0))
    }
}
