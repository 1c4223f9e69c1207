//! Topologies that stand at the same place of a topic read it together.

use super::EngineError;
use super::graph::Graph;
use super::reading::{Member, Reading};
use quikflow_topics::broker::{Broker, Positions, Slice, TopicReader};
use quikflow_topics::ids::{Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name of a topology's consumer group.
pub fn group(topology: &str) -> String {
    format!("topology:{topology}")
}

/// One reader of a topic and all who take what it reads.
pub struct Feed {
    /// Who reads, and which columns.
    pub reading: Arc<Reading>,
    /// The last poll found the end of the log.
    pub at_end: bool,
    reader: Box<dyn TopicReader>,
    /// A slice that was read and did not fit the epoch before.
    held: Option<Arc<dyn Slice>>,
}

impl Feed {
    /// Opens the readers that all sources of all topologies need, from the groups' committed offsets.
    ///
    /// # Errors
    /// Storage errors; unknown topics.
    pub fn open_all(graph: &Graph, broker: &Arc<dyn Broker>) -> Result<Vec<Feed>, EngineError> {
        let mut places: BTreeMap<(String, Positions), Vec<Member>> = BTreeMap::new();
        for (topology, plan) in graph.topologies.iter().enumerate() {
            let offsets = broker.group_offsets(&group(&plan.plan.name))?;
            for (source, read) in plan.plan.sources.iter().enumerate() {
                let mine = offsets.iter().filter(|((topic, _), _)| *topic == read.topic.name);
                let positions: Positions = mine.map(|((_, partition), offset)| (*partition, *offset)).collect();
                places.entry((read.topic.name.clone(), positions)).or_default().push(Member { topology, source });
            }
        }
        places
            .into_iter()
            .map(|((topic, positions), members)| {
                let reader = broker.reader(&topic, &positions)?;
                let first = members[0];
                let spec = graph.topologies[first.topology].plan.sources[first.source].topic.clone();
                Ok(Feed { reading: Arc::new(Reading::new(graph, &spec, members)), at_end: false, reader, held: None })
            })
            .collect()
    }

    /// The next slice of at most `rows` rows and `bytes` stored bytes (the first of an epoch may
    /// have more), or none at the end of the log or of the budget.
    ///
    /// # Errors
    /// Storage errors.
    pub fn poll(&mut self, rows: usize, bytes: usize, first: bool) -> Result<Option<Arc<dyn Slice>>, EngineError> {
        let slice = match self.held.take() {
            Some(slice) => Some(slice),
            None => self.reader.poll(rows.max(1))?,
        };
        self.at_end = slice.is_none();
        match slice {
            Some(slice) if !first && (slice.bytes() > bytes || slice.rows() > rows) => {
                self.held = Some(slice);
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// Whether some partition of which `seen` says nothing was read holds records not read yet.
    ///
    /// # Errors
    /// Storage errors.
    pub fn unread(&self, broker: &Arc<dyn Broker>, seen: &dyn Fn(PartitionId) -> bool) -> Result<bool, EngineError> {
        let topic = &self.reading.topic;
        if self.at_end || (0..topic.partitions).all(|partition| seen(PartitionId(partition))) {
            return Ok(false);
        }
        let stats = broker.stats(&topic.name)?;
        let positions = self.reader.positions();
        let next = |partition: usize| {
            let held = self.held.iter().flat_map(|slice| slice.parts()).find(|part| part.partition.0 as usize == partition);
            let stored = positions.get(&PartitionId(partition as u32)).copied().unwrap_or_default();
            held.map_or(stored, |part| part.first)
        };
        Ok(stats.end.iter().enumerate().any(|(partition, end)| {
            let start = stats.start.get(partition).copied().unwrap_or(0);
            !seen(PartitionId(partition as u32)) && next(partition).max(Offset(start)) < Offset(*end)
        }))
    }

    /// Brings together feeds of one topic that have come to the same place, the end of the log.
    pub fn join(graph: &Graph, feeds: &mut Vec<Feed>) {
        let mut index = 0;
        while index < feeds.len() {
            let other = (index + 1..feeds.len()).find(|other| feeds[index].stands_with(&feeds[*other]));
            let Some(other) = other else {
                index += 1;
                continue;
            };
            let joined = feeds.remove(other);
            let mut members = feeds[index].reading.members.clone();
            members.extend(&joined.reading.members);
            let topic = feeds[index].reading.topic.clone();
            feeds[index].reading = Arc::new(Reading::new(graph, &topic, members));
        }
    }

    fn stands_with(&self, other: &Feed) -> bool {
        let place =
            |feed: &Feed| -> Positions { feed.reader.positions().into_iter().filter(|(_, offset)| offset.0 > 0).collect() };
        self.reading.topic.name == other.reading.topic.name && self.at_end && other.at_end && place(self) == place(other)
    }
}
