//! Epochs (R19): one transaction each, by one transactional producer a process.
//!
//! In it: outputs, pieces of state, meta, offsets, dead letters, and the offsets of the topologies'
//! consumer groups (`send_offsets_to_transaction`), so that Kafka's tools show them and a zombie is
//! refused by its group as well. The offsets in `quikflow.state` are what a restart goes by: those
//! of a group expire.
//!
//! Who opens the producer fences the process before it; after a failed commit nothing more is
//! taken until the engine has been started again from the last commit.

use super::Shared;
use super::config::{CALL, failed};
use super::index::Index;
use super::record::{self, Outgoing};
use crate::broker::{Answer, BrokerError, EpochCommit};
use crate::dead_letter::DeadLetterStatus;
use crate::failpoint;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::producer::{DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

type Transactions = ThreadedProducer<DefaultProducerContext>;

/// What the thread does next.
pub(super) enum Order {
    Commit(Box<EpochCommit>, Answer<()>),
    /// Entries of quikflow's own topics, and the index after them.
    Write(Vec<Outgoing>, Option<Box<Index>>, Answer<()>),
}

/// The process's right to commit.
#[derive(Clone)]
pub(super) struct Epochs {
    pub(super) orders: Sender<Order>,
    /// A commit has failed.
    pub(super) failed: Arc<AtomicBool>,
}

struct Writer {
    shared: Arc<Shared>,
    producer: Transactions,
    groups: HashMap<String, ConsumerGroupMetadata>,
    state: Arc<str>,
    failed: Arc<AtomicBool>,
}

/// Takes over: fences whoever committed before, and starts the thread.
pub(super) fn open(shared: &Arc<Shared>) -> Result<Epochs, BrokerError> {
    let config = shared.options.transactional("pipelines");
    let producer: Transactions = config.create().map_err(|e| failed("opening the producer of epochs", &e))?;
    producer.init_transactions(CALL * 3).map_err(|e| failed("opening the producer of epochs", &e))?;
    let (orders, received) = channel();
    let failed_flag = Arc::new(AtomicBool::new(false));
    let state: Arc<str> = shared.own_topic("state").into();
    let writer = Writer { shared: shared.clone(), producer, groups: HashMap::new(), state, failed: failed_flag.clone() };
    let thread = std::thread::Builder::new().name("kafka-epochs".to_owned()).spawn(move || writer.run(&received));
    thread.map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))?;
    Ok(Epochs { orders, failed: failed_flag })
}

/// Commits, again where the outcome is not known yet.
pub(super) fn commit_transaction(producer: &Transactions) -> Result<(), BrokerError> {
    for _ in 0..5 {
        match producer.commit_transaction(CALL) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                tracing::warn!(%error, "kafka: the commit of a transaction is tried again");
            }
            Err(error) => return Err(failed("committing a transaction", &error)),
        }
    }
    Err(BrokerError::Storage("kafka: a transaction was not committed within 100 s; check that Kafka runs".to_owned()))
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let (answer, outcome) = match order {
                _ if self.failed.load(Ordering::SeqCst) => match order {
                    Order::Commit(_, answer) | Order::Write(_, _, answer) => (answer, Err(BrokerError::Closed)),
                },
                Order::Commit(commit, answer) => (answer, self.commit(&commit)),
                Order::Write(records, index, answer) => {
                    let index = index.map(|index| *index);
                    (answer, self.transaction(&records, &[]).map(|()| self.after(index)))
                }
            };
            if outcome.is_err() {
                self.failed.store(true, Ordering::SeqCst);
                if let Err(error) = self.producer.abort_transaction(CALL) {
                    tracing::debug!(%error, "kafka: the transaction could not be aborted; who takes over does it");
                }
            }
            failpoint::hit("log.answer.before");
            // Nobody may be waiting any more, which is fine.
            drop(answer.send(outcome));
            failpoint::hit("log.answer.after");
        }
    }

    fn after(&self, index: Option<Index>) {
        if let Some(index) = index {
            *self.shared.index.lock() = index;
        }
        self.shared.scan.lock().take();
        self.shared.wakeup.bump();
    }

    fn commit(&mut self, commit: &EpochCommit) -> Result<(), BrokerError> {
        failpoint::hit("log.epoch.before");
        let (mut records, index) = {
            let index = self.shared.index.lock();
            if commit.epoch.0 <= index.epoch {
                let (epoch, last) = (commit.epoch, index.epoch);
                return Err(BrokerError::Storage(format!("epoch {epoch} is not after the last one committed, {last}")));
            }
            index.stage(&self.state, commit)
        };
        {
            let mut dead = self.shared.dead()?;
            if let Some(dead) = dead.as_mut() {
                records.extend(dead.stage(&commit.dead_letters)?);
                records.extend(dead.mark(&commit.replayed, DeadLetterStatus::Replayed)?);
            }
        }
        for output in commit.outputs.iter().filter(|output| output.rows.num_rows() > 0) {
            records.extend(record::encode(output, &self.shared.known(&output.topic.name)?)?);
        }
        self.transaction(&records, &commit.offsets)?;
        self.after(Some(index));
        failpoint::hit("log.epoch.after");
        Ok(())
    }

    fn transaction(
        &mut self,
        records: &[Outgoing],
        offsets: &[(String, String, crate::ids::PartitionId, crate::ids::Offset)],
    ) -> Result<(), BrokerError> {
        if records.is_empty() {
            return Ok(());
        }
        self.producer.begin_transaction().map_err(|e| failed("beginning a transaction", &e))?;
        failpoint::hit("log.write.before");
        for out in records {
            record::send(&self.producer, out, ())?;
        }
        let mut by_group: BTreeMap<&str, TopicPartitionList> = BTreeMap::new();
        for (group, topic, partition, next) in offsets {
            let list = by_group.entry(group).or_default();
            let at = Offset::Offset(i64::try_from(next.0).unwrap_or(i64::MAX));
            let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
            list.add_partition_offset(&self.shared.physical(topic), number, at).map_err(|e| failed("a group's offsets", &e))?;
        }
        for (group, list) in by_group {
            self.join(group)?;
            let Some(member) = self.groups.get(group) else { continue };
            let sent = self.producer.send_offsets_to_transaction(&list, member, CALL);
            sent.map_err(|e| failed(&format!("the offsets of group `{group}`"), &e))?;
        }
        failpoint::hit("log.commit.before");
        commit_transaction(&self.producer)?;
        failpoint::hit("log.commit.after");
        Ok(())
    }

    /// A group's metadata: the group has no members, since partitions are assigned by hand.
    fn join(&mut self, group: &str) -> Result<(), BrokerError> {
        if !self.groups.contains_key(group) {
            let mut config = self.shared.options.client();
            config.set("group.id", format!("{}{group}", self.shared.options.prefix));
            let consumer: BaseConsumer = config.create().map_err(|e| failed("a group", &e))?;
            let metadata = consumer.group_metadata();
            let metadata = metadata.ok_or_else(|| BrokerError::Storage(format!("kafka: no metadata of group `{group}`")))?;
            self.groups.insert(group.to_owned(), metadata);
        }
        Ok(())
    }
}
