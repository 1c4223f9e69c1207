//! The calls of [`Broker`].

use super::config::{CALL, failed};
use super::reader::KafkaReader;
use super::record::{self, Outgoing};
use super::watch::Watched;
use super::{KafkaBroker, admin, append, epoch, index, lanes, member, progress};
use crate::broker::{
    Append, Appended, Broker, BrokerError, EpochCommit, Guarantee, Positions, Projection, ResetFrom, Slice, Ticket, TopicReader,
    TopicStats, TopologyFigures, TopologyState, Wakeup,
};
use crate::brokers::records::RecordSlice;
use crate::catalogue::TopicSpec;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use crate::ids::{Epoch, Offset, PartitionId};
use crate::share::{Membership, ShareHolder, Work, share_of};
use arrow::array::RecordBatch;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl KafkaBroker {
    fn appender(&self) -> Result<Watched<append::Appender>, BrokerError> {
        self.shared.open_appender()
    }

    fn check_open(&self) -> Result<(), BrokerError> {
        if self.shared.is_closed() { Err(BrokerError::Closed) } else { Ok(()) }
    }
}

impl Broker for KafkaBroker {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn guarantee(&self) -> Guarantee {
        if self.shared.options.transactions { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnceDeterministic }
    }

    fn ensure_topics(&self, topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        let wanted: Vec<_> = topics.iter().map(|spec| admin::Wanted::of(spec, &self.shared.options.prefix)).collect();
        self.shared.admin.ensure(&wanted)?;
        let mut known = self.shared.topics.write();
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
        let encode = |rows: &crate::broker::TopicRows| record::encode(rows, &self.shared.known(&rows.topic.name)?);
        let rows = append.rows.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        let letters = match self.shared.dead()?.as_mut() {
            Some(dead) => dead.stage(&append.dead_letters)?,
            None => Vec::new(),
        };
        let (answer, ticket) = Ticket::new();
        let Some(lane) = append.lane.clone() else {
            append::append(&self.shared, &*self.appender()?, &append, &rows, &letters, answer)?;
            return Ok(ticket);
        };
        let now = self.shared.options.clock.elapsed();
        let work = lanes::Work::new(append, lane.clone(), rows, letters, now, answer);
        let mut open = self.shared.lanes.lock();
        let sender = match open.get(&lane.producer) {
            Some(sender) => sender.clone(),
            None => {
                let sender = lanes::start(&self.shared, &lane.producer)?;
                open.insert(lane.producer.clone(), sender.clone());
                sender
            }
        };
        drop(open);
        sender.send(work).map_err(|_| BrokerError::Busy(std::time::Duration::from_millis(50)))?;
        Ok(ticket)
    }

    fn commit_epoch(&self, commit: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        self.check_open()?;
        let (answer, ticket) = Ticket::new();
        let epochs = self.shared.epochs.lock().clone();
        let epochs = match epochs {
            Some(epochs) => epochs,
            None => self.shared.epochs()?,
        };
        epochs.orders.send(epoch::Order::Commit(Box::new(commit), answer)).map_err(|_| BrokerError::Closed)?;
        Ok(ticket)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        self.check_open()?;
        let spec = self.shared.spec(topic)?;
        let all: Vec<PartitionId> = (0..spec.partitions).map(PartitionId).collect();
        Ok(Box::new(KafkaReader::open(&self.shared, spec, from, &all)?))
    }

    fn reader_of(&self, topic: &str, from: &Positions, partitions: &[PartitionId]) -> Result<Box<dyn TopicReader>, BrokerError> {
        self.check_open()?;
        Ok(Box::new(KafkaReader::open(&self.shared, self.shared.spec(topic)?, from, partitions)?))
    }

    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        let spec = self.shared.spec(topic)?;
        let physical = self.shared.physical(topic);
        let what = format!("reading topic `{physical}`");
        let consumer = self.shared.options.reader()?;
        let mut list = TopicPartitionList::new();
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let at = At::Offset(i64::try_from(offset.0).unwrap_or(i64::MAX));
        list.add_partition_offset(&physical, number, at).map_err(|e| failed(&what, &e))?;
        consumer.assign(&list).map_err(|e| failed(&what, &e))?;
        let found = match consumer.poll(CALL) {
            Some(Ok(message)) => {
                record::incoming(&message, &mut record::Block::default()).filter(|record| record.offset == offset.0)
            }
            Some(Err(KafkaError::PartitionEOF(_))) => None,
            Some(Err(error)) => return Err(failed(&what, &error)),
            None => return Err(BrokerError::Storage(format!("kafka: {what}: no answer within {CALL:?}"))),
        };
        let slice = found.map(|record| RecordSlice::new(&self.shared, spec.clone(), vec![record]));
        slice.map(|slice| slice.decode(&Projection::all(&spec))).transpose()
    }

    fn lost(&self) -> BTreeMap<String, u64> {
        self.shared.lost.lock().clone()
    }

    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        self.shared.figures(topic)
    }

    fn unread(&self, topic: &str, from: &Positions, _: bool) -> Result<bool, BrokerError> {
        self.shared.unread(topic, from)
    }

    fn answers(&self) -> bool {
        !self.shared.options.link.is_absent()
    }

    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        let progress = self.shared.progress_now()?;
        Ok(progress.as_ref().map(|progress| progress.group(group, &self.shared.own.lock())).unwrap_or_default())
    }

    fn topology_figures(&self) -> Result<BTreeMap<String, TopologyFigures>, BrokerError> {
        Ok(self.shared.progress_now()?.as_ref().map(progress::Progress::figures).unwrap_or_default())
    }

    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        Ok(self.shared.progress_now()?.iter().flat_map(progress::Progress::groups).collect())
    }

    fn report_progress(&self, group: &str, topic: &str, positions: &Positions) -> Result<(), BrokerError> {
        self.check_open()?;
        let places = positions.iter().map(|(partition, next)| (partition.0, next.0)).collect();
        let (key, value) = (format!("o{}{group}{0}{topic}", index::UNIT), index::places_text(&places).into_bytes());
        let entry = Outgoing::entry(&self.shared.own_topic("progress").into(), key, Some(value));
        let (answer, ticket) = Ticket::new();
        append::append(&self.shared, &*self.appender()?, &Append::default(), &[], &[entry], answer)?;
        // Later news will come; until then less than the truth is safe.
        drop(ticket);
        Ok(())
    }

    fn shares(&self, work: Work) -> u32 {
        match work {
            Work::Pipelines => self.shared.shares,
            Work::Sinks => self.shared.sink_shares,
        }
    }

    fn join(&self, work: Work, holder: Arc<dyn ShareHolder>) -> Result<Option<Box<dyn Membership>>, BrokerError> {
        if work == Work::Pipelines {
            self.shared.joined.store(true, Ordering::SeqCst);
            self.shared.copies.start(&self.shared)?;
        }
        Ok(Some(Box::new(member::join(&self.shared, work, holder)?)))
    }

    fn take_over(&self, shares: &[u32]) -> Result<Epoch, BrokerError> {
        self.check_open()?;
        epoch::take_over(&self.shared, shares)
    }

    fn topology_state(&self, topology: &str) -> Result<TopologyState, BrokerError> {
        if let Some(state) = self.shared.inheritance.lock().take(topology) {
            return Ok(state);
        }
        let (state, share) = (self.shared.own_topic("state"), share_of(topology).1);
        epoch::wait_for_open_transactions(&self.shared, &state, share)?;
        let loaded = self.shared.load(share)?;
        let meta = loaded.index.meta.into_iter().filter(|((of, _), _)| of == topology);
        let pieces = loaded.pieces.into_iter().find(|(of, _)| of == topology).map(|(_, pieces)| pieces).unwrap_or_default();
        Ok(TopologyState { pieces, meta: meta.map(|((_, name), value)| (name, value)).collect() })
    }

    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        // Who asks is about to commit: nobody else may from here on.
        let all: Vec<u32> = (0..self.shared.shares).collect();
        self.take_over(&all)
    }

    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        let (answer, ticket) = Ticket::new();
        let reset = epoch::Reset { topology: topology.to_owned(), outputs: outputs.to_vec(), from };
        let order = epoch::Order::Reset(Box::new(reset), answer);
        self.shared.epochs()?.orders.send(order).map_err(|_| BrokerError::Closed)?;
        ticket.wait()
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        self.shared.spec(topic)?;
        let progress = self.shared.progress_now()?;
        Ok(progress.as_ref().map_or(0, |progress| progress.generation(topic, &self.shared.own.lock())))
    }

    fn append_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        let (answer, ticket) = Ticket::new();
        let stored = self.append(Append { dead_letters: letters, ..Append::default() })?;
        let spawned = std::thread::Builder::new().name("kafka-dead".to_owned()).spawn(move || {
            // Nobody may be waiting any more, which is fine.
            drop(answer.send(stored.wait().map(drop)));
        });
        spawned.map(|_| ticket).map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        self.shared.dead()?.as_mut().map_or(Ok(Vec::new()), |dead| dead.list(filter))
    }

    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        let marks = match self.shared.dead()?.as_mut() {
            Some(dead) => dead.mark(ids, status)?,
            None => Vec::new(),
        };
        let (answer, ticket) = Ticket::new();
        append::append(&self.shared, &*self.appender()?, &Append::default(), &[], &marks, answer)?;
        ticket.wait().map(|_| marks.len())
    }

    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError> {
        self.shared.lane_line_now(producer)
    }

    fn wakeup(&self) -> &Wakeup {
        &self.shared.wakeup
    }

    fn close(&self) {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(appender) = self.shared.appender.lock().take()
            && let Err(error) = appender.flush(CALL)
        {
            tracing::warn!(%error, "kafka: not all that was taken is acknowledged");
        }
        self.shared.epochs.lock().take();
        self.shared.wakeup.bump();
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        self.close();
    }
}
