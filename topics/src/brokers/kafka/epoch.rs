//! Epochs (R19): one transaction each, by one transactional producer a process.
//!
//! In it: outputs, pieces of state, meta, offsets, dead letters, the progress for those who follow
//! it, and the offset of each share in the group of the pipelines, with the group's metadata: a
//! process that no longer has its shares is refused by the group, and its epoch with it. A restart
//! goes by `quikflow.state`.
//!
//! **Order**: every record is acknowledged before the group is asked. So whoever has the shares next
//! finds either nothing of the epoch, and the group refuses it, or an open transaction to wait for.
//!
//! Opening the producer aborts what a process of the same name left open. After a failed commit
//! nothing more is taken until the shares have been taken over again, which reads them anew.

use super::Shared;
use super::config::{CALL, failed, patiently};
use super::consumed::Consumed;
use super::index::{Index, UNIT};
use super::record::Outgoing;
use super::transactions::Transactions;
use crate::broker::{Answer, BrokerError, EpochCommit, ResetFrom, StatePiece, TopicRows, TopologyState};
use crate::dead_letter::DeadLetterStatus;
use crate::failpoint;
use crate::ids::Epoch;
use crate::share::share_of;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What the thread does next.
pub(super) enum Order {
    Commit(Box<EpochCommit>, Answer<()>),
    Reset(Box<Reset>, Answer<()>),
}

/// A topology to be forgotten.
pub(super) struct Reset {
    pub(super) topology: String,
    /// Topics whose generation goes up.
    pub(super) outputs: Vec<String>,
    pub(super) from: ResetFrom,
}

/// The process's right to commit.
#[derive(Clone)]
pub(super) struct Epochs {
    pub(super) orders: Sender<Order>,
    /// The shares taken over.
    pub(super) shares: BTreeSet<u32>,
    /// A commit has failed.
    pub(super) failed: Arc<AtomicBool>,
}

/// What the shares taken over hold, until the engine has asked for it.
#[derive(Default)]
pub(super) struct Inheritance {
    shares: BTreeSet<u32>,
    given: BTreeSet<String>,
    pieces: BTreeMap<String, Vec<StatePiece>>,
    meta: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl Inheritance {
    /// A topology's state, once; none where its share was not taken over.
    pub(super) fn take(&mut self, topology: &str) -> Option<TopologyState> {
        if !self.shares.contains(&share_of(topology).1) || !self.given.insert(topology.to_owned()) {
            return None;
        }
        let pieces = self.pieces.remove(topology).unwrap_or_default();
        Some(TopologyState { pieces, meta: self.meta.get(topology).cloned().unwrap_or_default() })
    }
}

struct Writer {
    shared: Arc<Shared>,
    producer: Transactions,
    indexes: BTreeMap<u32, Index>,
    state: Arc<str>,
    progress: Arc<str>,
    failed: Arc<AtomicBool>,
    consumed: Consumed,
}

/// Takes shares over: opens the producer, waits for what is open there to end, reads what is stored,
/// and starts the thread. Returns the last epoch of any of them.
pub(super) fn take_over(shared: &Arc<Shared>, shares: &[u32]) -> Result<Epoch, BrokerError> {
    // Whoever commits now stops first: its answers are no longer waited for.
    shared.epochs.lock().take();
    let id = shared.options.instance.as_ref().map_or_else(|| "pipelines".to_owned(), |name| format!("pipelines.{name}"));
    let producer = match shared.options.transactions {
        true => Transactions::open(&shared.options, &id)?,
        false => Transactions::without(&shared.options)?,
    };
    let state: Arc<str> = shared.own_topic("state").into();
    let mut inheritance = Inheritance { shares: shares.iter().copied().collect(), ..Inheritance::default() };
    let mut indexes = BTreeMap::new();
    let mut offsets = BTreeMap::new();
    for share in shares {
        wait_for_open_transactions(shared, &state, *share)?;
        let loaded = shared.load(*share)?;
        inheritance.pieces.extend(loaded.pieces);
        for ((topology, name), value) in &loaded.index.meta {
            inheritance.meta.entry(topology.clone()).or_default().insert(name.clone(), value.clone());
        }
        offsets.extend(loaded.index.offsets.clone());
        indexes.insert(*share, loaded.index);
    }
    let last = indexes.values().map(|index| index.epoch).max().unwrap_or(0);
    let (orders, received) = channel();
    let failed = Arc::new(AtomicBool::new(false));
    let progress: Arc<str> = shared.own_topic("progress").into();
    let writer = Writer {
        shared: shared.clone(),
        producer,
        indexes,
        state,
        progress,
        failed: failed.clone(),
        consumed: Consumed::default(),
    };
    let thread = std::thread::Builder::new().name("kafka-epochs".to_owned()).spawn(move || writer.run(&received));
    thread.map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))?;
    *shared.epochs.lock() = Some(Epochs { orders, shares: inheritance.shares.clone(), failed });
    *shared.inheritance.lock() = inheritance;
    shared.own.lock().offsets = offsets;
    Ok(Epoch(last))
}

/// Waits until every transaction that is open in a share now has ended: an open one hides what was
/// committed behind it, and may itself be about to be committed.
pub(super) fn wait_for_open_transactions(shared: &Shared, state: &str, share: u32) -> Result<(), BrokerError> {
    let partition = i32::try_from(share).unwrap_or(i32::MAX);
    let ask = |consumer: &super::config::Client| {
        patiently("asking for the end of the state", || consumer.fetch_watermarks(state, partition, CALL)).map(|(_, end)| end)
    };
    let wanted = ask(&*shared.everything.get()?)?;
    for round in 0..1_800 {
        if ask(&*shared.committed.get()?)? >= wanted {
            return Ok(());
        }
        if round == 40 {
            tracing::info!(share, "kafka: waiting for a transaction that another process left open");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(BrokerError::Storage(format!("kafka: a transaction in share {share} of the state did not end within 90 s")))
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let (answer, outcome) = match order {
                Order::Commit(_, answer) | Order::Reset(_, answer) if self.failed.load(Ordering::SeqCst) => {
                    (answer, Err(BrokerError::Closed))
                }
                Order::Commit(commit, answer) => (answer, self.commit(&commit)),
                Order::Reset(reset, answer) => (answer, self.reset(&reset)),
            };
            if outcome.is_err() {
                self.failed.store(true, Ordering::SeqCst);
                self.producer.abort();
            }
            failpoint::hit("log.answer.before");
            // Nobody may be waiting any more, which is fine.
            drop(answer.send(outcome));
            failpoint::hit("log.answer.after");
        }
    }

    fn commit(&mut self, commit: &EpochCommit) -> Result<(), BrokerError> {
        failpoint::hit("log.epoch.before");
        let topologies = commit.state.iter().map(|piece| &piece.topology);
        let named = topologies.chain(commit.offsets.iter().map(|(group, ..)| group)).chain(commit.meta.iter().map(|(of, ..)| of));
        let named = named.chain(commit.figures.iter().map(|(of, _)| of));
        let mut touched: BTreeSet<u32> = named.map(|name| share_of(name).1).collect();
        if touched.is_empty() {
            touched.extend(self.indexes.keys().next());
        }
        let (mut records, mut books) = (Vec::new(), Vec::new());
        for share in &touched {
            let Some(index) = self.indexes.get_mut(share) else {
                return Err(BrokerError::Storage(format!(
                    "kafka: an epoch touches share {share}, which this process does not have"
                )));
            };
            if commit.epoch.0 <= index.epoch {
                let (epoch, last) = (commit.epoch, index.epoch);
                return Err(BrokerError::Storage(format!("epoch {epoch} is not after the last one committed, {last}")));
            }
            let (entries, moved) = index.stage(&self.state, commit);
            books.extend(entries);
            let progress = moved.into_iter().map(|(key, text)| Outgoing::entry(&self.progress, key, Some(text.into_bytes())));
            books.extend(progress);
        }
        {
            let mut dead = self.shared.dead()?;
            if let Some(dead) = dead.as_mut() {
                records.extend(dead.stage(&commit.dead_letters)?);
                records.extend(dead.mark(&commit.replayed, DeadLetterStatus::Replayed)?);
            }
        }
        let mut rows = Vec::new();
        for output in commit.outputs.iter().filter(|output| output.rows.num_rows() > 0) {
            rows.push((output, self.shared.known(&output.topic.name)?));
        }
        self.transaction(&rows, &records, &books, &touched)?;
        let mut own = self.shared.own.lock();
        for (group, topic, ..) in &commit.offsets {
            let key = (group.clone(), topic.clone());
            let places = self.indexes.get(&share_of(group).1).and_then(|index| index.offsets.get(&key));
            own.offsets.extend(places.map(|places| (key, places.clone())));
        }
        drop(own);
        self.consumed.committed(&self.shared, commit);
        self.shared.wakeup.bump();
        failpoint::hit("log.epoch.after");
        Ok(())
    }

    /// Stores what came out of an epoch, and the state and offsets that say so.
    fn transaction(
        &self,
        rows: &[(&TopicRows, String)],
        records: &[Outgoing],
        books: &[Outgoing],
        shares: &BTreeSet<u32>,
    ) -> Result<(), BrokerError> {
        self.producer.begin()?;
        failpoint::hit("log.write.before");
        for (rows, topic) in rows {
            self.producer.send_rows(rows, topic)?;
        }
        for out in records {
            self.producer.send(out)?;
        }
        self.producer.then()?;
        for out in books {
            self.producer.send(out)?;
        }
        if self.shared.joined.load(Ordering::SeqCst) {
            let Some(member) = self.shared.membership.lock().clone() else {
                return Err(BrokerError::Storage(
                    "kafka: this process is no member of the group of the pipelines now".to_owned(),
                ));
            };
            let mut list = TopicPartitionList::new();
            for share in shares {
                let number = i32::try_from(*share).unwrap_or(i32::MAX);
                // The shares hold no records: what counts is that the group takes it from this member.
                let added = list.add_partition_offset(&self.shared.own_topic("work"), number, Offset::Offset(0));
                added.map_err(|e| failed("the shares of the work", &e))?;
            }
            self.producer.offsets(&list, &member)?;
        }
        failpoint::hit("log.commit.before");
        self.producer.commit()?;
        failpoint::hit("log.commit.after");
        self.shared.inheritance.lock().shares.clear();
        Ok(())
    }

    fn reset(&mut self, reset: &Reset) -> Result<(), BrokerError> {
        let mut ends = BTreeMap::new();
        if reset.from == ResetFrom::Latest {
            let places: BTreeSet<_> = self.indexes.values().flat_map(|index| index.places_of(&reset.topology)).collect();
            for (topic, partition) in places {
                if let Some(end) = self.shared.figures(&topic)?.end.get(partition as usize) {
                    ends.insert((topic, partition), *end);
                }
            }
        }
        let mut records = Vec::new();
        for index in self.indexes.values_mut() {
            let (entries, moved) = index.forget(&self.state, &reset.topology, &ends);
            records.extend(entries);
            let progress =
                |(key, text): (String, Option<String>)| Outgoing::entry(&self.progress, key, text.map(String::into_bytes));
            records.extend(moved.into_iter().map(progress));
        }
        let mut raised = BTreeMap::new();
        for topic in &reset.outputs {
            let spec = self.shared.spec(topic)?;
            let all = self.shared.offsets(&*self.shared.committed.get()?, &spec, Offset::End)?;
            self.shared.admin.delete_records(&self.shared.physical(topic), (0..).zip(all))?;
            let generation = self.generation(topic)? + 1;
            let key = format!("g{UNIT}{topic}");
            records.push(Outgoing::entry(&self.progress, key, Some(generation.to_string().into_bytes())));
            raised.insert(topic.clone(), generation);
        }
        let shares = self.indexes.keys().copied().collect();
        self.transaction(&[], &[], &records, &shares)?;
        let mut own = self.shared.own.lock();
        own.generations.extend(raised);
        let group = format!("topology:{}", reset.topology);
        own.offsets.iter_mut().filter(|((of, _), _)| share_of(of).0 == group).for_each(|(_, places)| places.clear());
        for index in self.indexes.values() {
            own.offsets.extend(index.offsets.clone());
        }
        Ok(())
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        let progress = self.shared.progress_now()?;
        Ok(progress.as_ref().map_or(0, |progress| progress.generation(topic, &self.shared.own.lock())))
    }
}
