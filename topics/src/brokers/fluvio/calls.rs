//! The calls of [`Broker`].

use super::door::{self, Door, Work};
use super::endpoint::{Cluster, NewTopic};
use super::reader::FluvioReader;
use super::record::incoming;
use super::{FluvioBroker, LONGEST_NAME, dead, no_thread};
use crate::broker::{
    Append, Appended, Broker, BrokerError, EpochCommit, Guarantee, Positions, Projection, ResetFrom, Slice, Ticket, TopicReader,
    TopicStats, TopologyState, Wakeup,
};
use crate::brokers::records::RecordSlice;
use crate::catalogue::{Cleanup, TopicKind, TopicSpec};
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use crate::ids::{Epoch, Offset, PartitionId};
use crate::schema::ID;
use arrow::array::{Array, RecordBatch};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{TrySendError, sync_channel};
use std::time::Duration;

/// Appends that may wait; more are told to come back.
const QUEUE: usize = 1024;
/// A lane's batch waits so long for the one before it.
const LANE_WAIT: Duration = Duration::from_secs(2);

/// (name in the cluster, partitions, retention)
pub(super) type Wanted = (String, u32, Option<Duration>);

/// Makes the topics that are missing; one with another number of partitions is refused.
pub(super) fn ensure(cluster: &Cluster, wanted: &[Wanted]) -> Result<(), BrokerError> {
    let list = || cluster.call("listing topics", |endpoint| endpoint.topics());
    let mut there: BTreeMap<String, u32> = list()?.into_iter().collect();
    for (name, partitions, retention) in wanted {
        if name.len() > LONGEST_NAME {
            let length = name.len();
            return Err(BrokerError::Storage(format!(
                "fluvio: topic `{name}` has a name of {length} letters, at most {LONGEST_NAME} are taken; shorten it or the prefix"
            )));
        }
        if !there.contains_key(name) {
            let topic = NewTopic { name: name.clone(), partitions: *partitions, retention: *retention };
            let mut attempt = cluster.attempt();
            while let Err(fault) = cluster.once(|endpoint| endpoint.create(&topic)) {
                // It may have been made by the call whose answer was lost, or by another process.
                there = list()?.into_iter().collect();
                if there.contains_key(name) {
                    break;
                }
                attempt.again(&format!("making topic `{name}`"), &fault)?;
            }
            there.entry(name.clone()).or_insert(*partitions);
        }
        if there.get(name) != Some(partitions) {
            let found = there.get(name).copied().unwrap_or(0);
            return Err(BrokerError::Storage(format!(
                "fluvio: topic `{name}` has {found} partitions, the catalogue says {partitions}; declare {found}, or use a prefix (fluvio://host:port/prefix)"
            )));
        }
    }
    Ok(())
}

impl FluvioBroker {
    fn check_open(&self) -> Result<(), BrokerError> {
        if self.shared.is_closed() { Err(BrokerError::Closed) } else { Ok(()) }
    }

    /// Hands work to the thread of the door.
    fn hand(&self, work: Work) -> Result<(), BrokerError> {
        let mut door = self.shared.door.lock();
        let sender = match door.as_ref() {
            Some((sender, _)) => sender.clone(),
            None => {
                let (sender, works) = sync_channel(QUEUE);
                let thread = Door { shared: self.shared.clone(), works, written: 0 };
                let spawned = std::thread::Builder::new().name("fluvio-door".to_owned()).spawn(move || thread.run());
                *door = Some((sender.clone(), spawned.map_err(no_thread)?));
                sender
            }
        };
        drop(door);
        sender.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => BrokerError::Busy(Duration::from_millis(50)),
            TrySendError::Disconnected(_) => BrokerError::Closed,
        })
    }
}

impl Broker for FluvioBroker {
    fn name(&self) -> &'static str {
        "fluvio"
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnceDeterministic
    }

    fn ensure_topics(&self, topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        let mut known = self.shared.topics.write();
        let mut names: BTreeMap<String, String> = known.keys().map(|name| (self.shared.physical(name), name.clone())).collect();
        let mut wanted = Vec::new();
        for spec in topics {
            let name = self.shared.physical(&spec.name);
            if let Some(other) = names.insert(name.clone(), spec.name.clone()).filter(|other| *other != spec.name) {
                let this = &spec.name;
                return Err(BrokerError::Storage(format!(
                    "fluvio: topics `{other}` and `{this}` would both be `{name}` there; rename one of them"
                )));
            }
            // Nothing is compacted there: the newest record of a key has to be kept as all others are.
            let retention = if spec.cleanup == Cleanup::Compact { None } else { spec.retention };
            wanted.push((name, spec.partitions, retention));
        }
        ensure(&self.shared.cluster, &wanted)?;
        known.extend(topics.iter().map(|spec| (spec.name.clone(), spec.clone())));
        Ok(())
    }

    fn topic(&self, name: &str) -> Option<Arc<TopicSpec>> {
        self.shared.topics.read().get(name).cloned()
    }

    fn topics(&self) -> Vec<Arc<TopicSpec>> {
        self.shared.topics.read().values().cloned().collect()
    }

    fn append(&self, append: Append) -> Result<Ticket<Appended>, BrokerError> {
        self.check_open()?;
        for rows in &append.rows {
            self.shared.spec(&rows.topic.name)?;
        }
        let rows = door::encode(&append)?;
        let letters = append.dead_letters.iter().map(dead::encode).collect::<Result<Vec<_>, _>>()?;
        // Ids are not looked up: who sends one is told that a repeat would not be known.
        let ids = append.rows.iter().any(|set| {
            set.topic.kind == TopicKind::Events && set.rows.column_by_name(ID).is_some_and(|ids| ids.null_count() < ids.len())
        });
        let (answer, ticket) = Ticket::new();
        let deadline = self.shared.cluster.clock().elapsed() + LANE_WAIT;
        self.hand(Work { rows, ids, append, letters, deadline, answer })?;
        Ok(ticket)
    }

    fn commit_epoch(&self, commit: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        self.check_open()?;
        let (answer, ticket) = Ticket::new();
        // After a failure the thread refuses by itself: only a new start takes over again.
        let open = self.shared.epochs.lock().as_ref().map(|open| open.orders.clone());
        let orders = open.map_or_else(|| self.shared.epochs(), Ok)?;
        orders.send((Box::new(commit), answer)).map_err(|_| BrokerError::Closed)?;
        Ok(ticket)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        self.check_open()?;
        Ok(Box::new(FluvioReader::open(&self.shared, self.shared.spec(topic)?, from)?))
    }

    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        let spec = self.shared.spec(topic)?;
        let floor = self.shared.floors(&spec)?.get(partition.0 as usize).copied().unwrap_or(0);
        let found = self.shared.cluster.record(&self.shared.physical(topic), partition.0, offset.0)?;
        let Some(found) = found.filter(|_| offset.0 >= floor) else { return Ok(None) };
        let slice = RecordSlice::new(&self.shared, spec.clone(), vec![incoming(partition.0, found).0]);
        slice.decode(&Projection::all(&spec)).map(Some)
    }

    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        self.shared.figures(topic)
    }

    fn unread(&self, topic: &str, from: &Positions, _: bool) -> Result<bool, BrokerError> {
        self.shared.unread(topic, from)
    }

    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        let mut journal = self.shared.journal.lock();
        journal.catch_up()?;
        let own = journal.book.offsets.iter().filter(|((of, ..), _)| of == group);
        let mut offsets: BTreeMap<_, _> =
            own.map(|((_, topic, partition), next)| ((topic.clone(), PartitionId(*partition)), Offset(*next))).collect();
        for ((topic, partition), next) in self.shared.progress.lock().get(group).into_iter().flatten() {
            offsets.entry((topic.clone(), PartitionId(*partition))).or_insert(Offset(*next));
        }
        Ok(offsets)
    }

    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        let mut journal = self.shared.journal.lock();
        journal.catch_up()?;
        let mut groups: BTreeSet<String> = journal.book.offsets.keys().map(|(group, ..)| group.clone()).collect();
        groups.extend(self.shared.progress.lock().keys().cloned());
        Ok(groups.into_iter().collect())
    }

    fn report_progress(&self, group: &str, topic: &str, positions: &Positions) -> Result<(), BrokerError> {
        self.check_open()?;
        let mut progress = self.shared.progress.lock();
        let known = progress.entry(group.to_owned()).or_default();
        known.extend(positions.iter().map(|(partition, next)| ((topic.to_owned(), partition.0), next.0)));
        Ok(())
    }

    fn topology_state(&self, topology: &str) -> Result<TopologyState, BrokerError> {
        let mut journal = self.shared.journal.lock();
        journal.catch_up()?;
        let mut full = self.shared.full.lock();
        let book = match full.take().filter(|book| book.seq == journal.book.seq) {
            Some(book) => book,
            None => journal.full()?,
        };
        let book = full.insert(book);
        let own = book.meta.iter().filter(|((of, _), _)| of == topology);
        let meta = own.map(|((_, name), value)| (name.clone(), value.clone())).collect();
        Ok(TopologyState { pieces: book.pieces(topology), meta })
    }

    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        // Who asks is about to commit: nobody else may from here on.
        self.shared.epochs()?;
        Ok(Epoch(self.shared.journal.lock().book.epoch))
    }

    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        self.shared.epochs()?;
        // No output of an epoch comes behind the end that is thrown away up to.
        let _committing = self.shared.committing.lock();
        let group = format!("topology:{topology}");
        let mut ends = Vec::new();
        if from == ResetFrom::Latest {
            for (topic, partition) in self.group_offsets(&group)?.into_keys() {
                let end = self.shared.figures(&topic)?.end.get(partition.0 as usize).copied().unwrap_or(0);
                ends.push((group.clone(), topic, partition.0, end));
            }
        }
        let mut floors = Vec::new();
        for topic in outputs {
            let (spec, name) = (self.shared.spec(topic)?, self.shared.physical(topic));
            let ends = self.shared.cluster.bounds(&name, spec.partitions)?.into_iter().map(|(_, end)| end);
            floors.push((topic.clone(), ends.collect()));
        }
        let mut journal = self.shared.journal.lock();
        journal.append(|book, entry| {
            entry.forget = Some(topology.to_owned());
            entry.offsets = ends;
            let generation = |topic: &String| (topic.clone(), book.generations.get(topic).copied().unwrap_or(0) + 1);
            entry.generations = outputs.iter().map(generation).collect();
            entry.floors = floors;
        })?;
        drop(journal);
        self.shared.wakeup.bump();
        Ok(())
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        self.shared.spec(topic)?;
        let mut journal = self.shared.journal.lock();
        journal.catch_up()?;
        Ok(journal.book.generations.get(topic).copied().unwrap_or(0))
    }

    fn append_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        let (answer, ticket) = Ticket::new();
        let stored = self.append(Append { dead_letters: letters, ..Append::default() })?;
        let spawned = std::thread::Builder::new().name("fluvio-dead".to_owned()).spawn(move || {
            // Nobody may be waiting any more, which is fine.
            drop(answer.send(stored.wait().map(drop)));
        });
        spawned.map(|_| ticket).map_err(no_thread)
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        self.shared.dead.lock().list(filter)
    }

    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        self.shared.dead.lock().mark(ids, status)
    }

    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError> {
        self.shared.lane_line(producer)
    }

    fn wakeup(&self) -> &Wakeup {
        &self.shared.wakeup
    }

    fn close(&self) {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.shared.closing.1.notify_all();
        let door = self.shared.door.lock().take();
        if let Some((sender, thread)) = door {
            // It writes what it has taken, then ends.
            drop(sender);
            if thread.join().is_err() {
                tracing::error!("fluvio: the thread of the door has panicked");
            }
        }
        self.shared.epochs.lock().take();
        self.shared.wakeup.bump();
    }
}

impl Drop for FluvioBroker {
    fn drop(&mut self) {
        self.close();
    }
}
