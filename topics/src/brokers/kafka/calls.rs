//! The calls of [`Broker`].

use super::config::{CALL, failed};
use super::reader::KafkaReader;
use super::record::{self, Incoming, Outgoing};
use super::slice::KafkaSlice;
use super::{KafkaBroker, admin, append, epoch, index, lanes};
use crate::broker::{
    Append, Appended, Broker, BrokerError, EpochCommit, Guarantee, Positions, Projection, ResetFrom, Slice, Ticket, TopicReader,
    TopicStats, TopologyState, Wakeup,
};
use crate::catalogue::TopicSpec;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use crate::ids::{Epoch, Offset, PartitionId};
use arrow::array::RecordBatch;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl KafkaBroker {
    fn appender(&self) -> Result<Arc<append::Appender>, BrokerError> {
        let mut appender = self.shared.appender.lock();
        match appender.as_ref() {
            Some(producer) => Ok(producer.clone()),
            None => {
                let producer = Arc::new(append::appender(&self.shared)?);
                *appender = Some(producer.clone());
                Ok(producer)
            }
        }
    }

    /// Hands the thread of epochs something to write, and waits for it.
    fn write(&self, records: Vec<Outgoing>, index: Option<index::Index>) -> Result<(), BrokerError> {
        let (answer, ticket) = Ticket::new();
        let order = epoch::Order::Write(records, index.map(Box::new), answer);
        self.shared.epochs()?.orders.send(order).map_err(|_| BrokerError::Closed)?;
        ticket.wait()
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
        Guarantee::ExactlyOnce
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
            append::append(&self.shared, self.appender()?.as_ref(), &append, &rows, &letters, answer)?;
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
        let epochs = match self.shared.epochs.lock().as_ref() {
            Some(epochs) => epochs.clone(),
            None => self.shared.epochs()?,
        };
        epochs.orders.send(epoch::Order::Commit(Box::new(commit), answer)).map_err(|_| BrokerError::Closed)?;
        Ok(ticket)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        self.check_open()?;
        Ok(Box::new(KafkaReader::open(&self.shared, self.shared.spec(topic)?, from)?))
    }

    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        let spec = self.shared.spec(topic)?;
        let physical = self.shared.physical(topic);
        let what = format!("reading topic `{physical}`");
        let consumer: BaseConsumer = self.shared.options.consumer().create().map_err(|e| failed(&what, &e))?;
        let mut list = TopicPartitionList::new();
        let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
        let at = At::Offset(i64::try_from(offset.0).unwrap_or(i64::MAX));
        list.add_partition_offset(&physical, number, at).map_err(|e| failed(&what, &e))?;
        consumer.assign(&list).map_err(|e| failed(&what, &e))?;
        let found = match consumer.poll(CALL) {
            Some(Ok(message)) => Incoming::of(&message).filter(|record| record.offset == offset.0),
            Some(Err(KafkaError::PartitionEOF(_))) => None,
            Some(Err(error)) => return Err(failed(&what, &error)),
            None => return Err(BrokerError::Storage(format!("kafka: {what}: no answer within {CALL:?}"))),
        };
        let slice = found.map(|record| KafkaSlice::new(spec.clone(), vec![record]));
        slice.map(|slice| slice.decode(&Projection::all(&spec))).transpose()
    }

    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        self.shared.figures(topic)
    }

    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        self.shared.refresh_index()?;
        let mut offsets = self.shared.index.lock().group(group);
        for ((topic, partition), next) in self.shared.progress.lock().get(group).into_iter().flatten() {
            offsets.entry((topic.clone(), PartitionId(*partition))).or_insert(Offset(*next));
        }
        Ok(offsets)
    }

    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        self.shared.refresh_index()?;
        let mut groups: BTreeSet<String> = self.shared.index.lock().offsets.keys().map(|(group, ..)| group.clone()).collect();
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
        self.shared.refresh_index()?;
        let mut scan = self.shared.scan.lock();
        let pieces = match scan.as_mut().and_then(|scan| scan.remove(topology)) {
            Some(pieces) => pieces,
            None => {
                let mut all = index::read_pieces(&self.shared.options, &self.shared.own_topic("state"))?;
                let pieces = all.remove(topology).unwrap_or_default();
                *scan = Some(all);
                pieces
            }
        };
        drop(scan);
        let index = self.shared.index.lock();
        let own = index.meta.iter().filter(|((of, _), _)| of == topology);
        let meta = own.map(|((_, name), value)| (name.clone(), value.clone())).collect();
        Ok(TopologyState { pieces, meta })
    }

    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        // Who asks is about to commit: nobody else may from here on.
        self.shared.epochs()?;
        self.shared.refresh_index()?;
        Ok(Epoch(self.shared.index.lock().epoch))
    }

    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        self.shared.epochs()?;
        let state: Arc<str> = self.shared.own_topic("state").into();
        let group = format!("topology:{topology}");
        let mut ends = BTreeMap::new();
        if from == ResetFrom::Latest {
            let places: Vec<_> = self.shared.index.lock().offsets.keys().filter(|place| place.0 == group).cloned().collect();
            for place in places {
                if let Some(end) = self.shared.figures(&place.1)?.end.get(place.2 as usize) {
                    ends.insert(place, *end);
                }
            }
        }
        let (mut records, mut after) = self.shared.index.lock().forget(&state, topology, &ends);
        for topic in outputs {
            let spec = self.shared.spec(topic)?;
            let all = self.shared.offsets(&spec, At::End)?;
            self.shared.admin.delete_records(&self.shared.physical(topic), &all)?;
            records.push(after.raise(&state, topic));
        }
        self.write(records, Some(after))
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        self.shared.spec(topic)?;
        self.shared.refresh_index()?;
        Ok(self.shared.index.lock().generations.get(topic).copied().unwrap_or(0))
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
        append::append(&self.shared, self.appender()?.as_ref(), &Append::default(), &[], &marks, answer)?;
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
