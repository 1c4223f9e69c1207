//! Topologies that stand at the same place of a topic read it together.

use super::EngineError;
use super::graph::Graph;
use super::reading::{Member, Reading};
use super::shuffle::{Upstream, writer};
use quikflow_topics::broker::{Broker, Positions, Slice, TopicReader};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{Offset, PartitionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The name of a topology's consumer group.
pub fn group(topology: &str) -> String {
    format!("topology:{topology}")
}

/// How often the half of a topology that writes a feed is asked how far it has come.
const ASK: Duration = Duration::from_millis(200);

/// One reader of a topic and all who take what it reads.
pub struct Feed {
    /// Who reads, and which columns.
    pub reading: Arc<Reading>,
    /// The last poll found the end of the log.
    pub at_end: bool,
    /// What it reads of the topic.
    partitions: BTreeSet<PartitionId>,
    reader: Box<dyn TopicReader>,
    /// A slice that was read and did not fit the epoch before.
    held: Option<Arc<dyn Slice>>,
    /// The half of a topology that writes it.
    upstream: Option<Upstream>,
    /// The other half had something to say still when it was asked last, and when that was.
    behind: bool,
    asked: Option<Duration>,
}

/// Readers of a topic that can read together: where they read the same partition, they stand at the same place.
struct Place {
    topic: Arc<TopicSpec>,
    /// None: at the earliest record.
    partitions: BTreeMap<PartitionId, Option<Offset>>,
    members: Vec<Member>,
}

impl Feed {
    /// Opens the readers that all sources of all topologies need, from the groups' committed offsets.
    ///
    /// # Errors
    /// Storage errors; unknown topics.
    pub fn open_all(graph: &Graph, broker: &Arc<dyn Broker>) -> Result<Vec<Feed>, EngineError> {
        let mut places: Vec<Place> = Vec::new();
        let mut groups: BTreeMap<&str, BTreeMap<(String, PartitionId), Offset>> = BTreeMap::new();
        for (topology, plan) in graph.topologies.iter().enumerate() {
            let name = plan.stored_as.as_str();
            if !groups.contains_key(name) {
                groups.insert(name, broker.group_offsets(&group(name))?);
            }
            for (source, read) in plan.plan.sources.iter().enumerate() {
                let partitions: BTreeMap<PartitionId, Option<Offset>> = plan
                    .partitions(read)
                    .map(PartitionId)
                    .map(|partition| (partition, groups[name].get(&(read.topic.name.clone(), partition)).copied()))
                    .collect();
                let agrees = |place: &&mut Place| {
                    place.topic.name == read.topic.name
                        && partitions
                            .iter()
                            .all(|(partition, at)| place.partitions.get(partition).is_none_or(|other| other == at))
                };
                let member = Member { topology, source };
                match places.iter_mut().find(agrees) {
                    Some(place) => {
                        place.partitions.extend(partitions);
                        place.members.push(member);
                    }
                    None => places.push(Place { topic: read.topic.clone(), partitions, members: vec![member] }),
                }
            }
        }
        places
            .into_iter()
            .map(|place| {
                let positions = place.partitions.iter().filter_map(|(partition, at)| Some((*partition, (*at)?))).collect();
                let wanted: Vec<PartitionId> = place.partitions.keys().copied().collect();
                let reader = broker.reader_of(&place.topic.name, &positions, &wanted)?;
                let reading = Arc::new(Reading::new(graph, &place.topic, place.members));
                let upstream = reading.members.first().and_then(|member| Upstream::of(&graph.topologies[member.topology]));
                let behind = upstream.is_some();
                let partitions = wanted.into_iter().collect();
                Ok(Feed { reading, at_end: false, partitions, reader, held: None, upstream, behind, asked: None })
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

    /// Asks the half that writes it, if one does and this feed was read to its end, whether it has come to its own
    /// end: before what it wrote is read. Seldom enough for an idle process.
    ///
    /// # Errors
    /// Storage errors.
    pub fn ask_upstream(&mut self, broker: &Arc<dyn Broker>, elapsed: Duration) -> Result<(), EngineError> {
        let Some(upstream) = self.upstream.as_ref().filter(|_| self.at_end) else { return Ok(()) };
        if self.asked.is_none_or(|asked| elapsed.saturating_sub(asked) >= ASK) {
            self.behind = upstream.behind(broker)?.contains(&true);
            self.asked = Some(elapsed);
        }
        Ok(())
    }

    /// Whether silence is the source's own: all of it was read, and whoever writes it had come to its end before.
    ///
    /// # Errors
    /// Storage errors.
    pub fn silent(&self, broker: &Arc<dyn Broker>) -> Result<bool, EngineError> {
        if !self.at_end || self.upstream.is_none() {
            return Ok(self.at_end);
        }
        let topic = &self.reading.topic.name;
        let positions = self.reader.positions().into_iter().filter(|(partition, _)| self.partitions.contains(partition));
        Ok(!self.behind && !broker.unread(topic, &positions.collect(), true)?)
    }

    /// Whether some partition that a member takes, and of which `seen` says nothing was read, may still
    /// show a record that was written before this call.
    ///
    /// # Errors
    /// Storage errors.
    pub fn unread(
        &self,
        broker: &Arc<dyn Broker>,
        member: usize,
        seen: &dyn Fn(PartitionId) -> bool,
    ) -> Result<bool, EngineError> {
        let topic = &self.reading.topic;
        let open = |p: &PartitionId| self.reading.takes(member, *p) && !seen(*p);
        let held = self.held.as_ref().is_some_and(|slice| slice.parts().iter().any(|part| open(&part.partition)));
        let positions = self.reader.positions();
        let next = |partition| (partition, positions.get(&partition).copied().unwrap_or_default());
        let from: Positions = (0..topic.partitions).map(PartitionId).filter(open).map(next).collect();
        if let Some(upstream) = self.upstream.as_ref().filter(|_| !from.is_empty()) {
            // What is written here later than a share's end says nothing that was before it.
            let behind = upstream.behind(broker)?;
            let waits = |partition: &PartitionId| behind.get(writer(*partition, upstream.shares) as usize).is_none_or(|b| *b);
            if from.keys().any(waits) {
                return Ok(true);
            }
        }
        Ok(held || (!from.is_empty() && broker.unread(&topic.name, &from, self.at_end)?))
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
        self.reading.topic.name == other.reading.topic.name
            && self.partitions == other.partitions
            && self.at_end
            && other.at_end
            && place(self) == place(other)
    }
}
