//! Readers: a consumer with assigned partitions, and a thread that fills a bounded buffer from it.
//!
//! `poll` says `None` only when every partition has been read to its end: time that passes while
//! nothing comes may then count as idle (R2). The end is what the client tells, or where the log ended
//! when the reader was opened: of a partition to which something is written all the time the client
//! never tells it.

use super::Shared;
use super::config::{Client, failed};
use super::record::{Block, incoming};
use super::watch::Watched;
use crate::broker::{BrokerError, Positions, Slice, TopicReader};
use crate::brokers::records::{Incoming, RecordSlice};
use crate::catalogue::TopicSpec;
use crate::ids::{Offset, PartitionId};
use parking_lot::{Condvar, Mutex};
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of records that wait for `poll`.
const BUFFERED: usize = 8 << 20;
/// Records and bytes that are handed over together.
const TOGETHER: usize = 1_024;
const TOGETHER_BYTES: usize = 1 << 20;
/// So many offsets without a record are looked into.
const GAP: u64 = 1_000;
/// How long `poll` waits for a broker that says neither what there is nor that there is nothing.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Buffer {
    records: VecDeque<Incoming>,
    bytes: usize,
    /// By partition: read to the end of what was there when it was looked at last.
    at_end: Vec<bool>,
    error: Option<BrokerError>,
}

struct Between {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    emptied: Condvar,
    closed: AtomicBool,
}

/// See [`TopicReader`].
pub(super) struct KafkaReader {
    shared: Arc<Shared>,
    topic: Arc<TopicSpec>,
    between: Arc<Between>,
    positions: Vec<u64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl KafkaReader {
    /// Reads `partitions`; the others count as read to their ends.
    pub(super) fn open(
        shared: &Arc<Shared>,
        topic: Arc<TopicSpec>,
        from: &Positions,
        partitions: &[PartitionId],
    ) -> Result<KafkaReader, BrokerError> {
        let mut positions = vec![0_u64; topic.partitions as usize];
        for (partition, offset) in from {
            if let Some(position) = positions.get_mut(partition.0 as usize) {
                *position = offset.0;
            }
        }
        if !from.is_empty() {
            let start = shared.figures(&topic.name)?.start;
            for (partition, offset) in from.iter().filter(|(partition, _)| partitions.contains(partition)) {
                let first = start.get(partition.0 as usize).copied().unwrap_or(0);
                shared.lost(&topic.name, partition.0, offset.0, first);
                // What is said once is not found again as a gap.
                if let Some(position) = positions.get_mut(partition.0 as usize) {
                    *position = first.max(*position);
                }
            }
        }
        let wanted: Vec<bool> = (0..topic.partitions).map(|partition| partitions.contains(&PartitionId(partition))).collect();
        let consumer = assigned(shared, &topic, &wanted, &positions)?;
        let ends = shared.offsets(&*shared.committed.get()?, &topic, At::End)?;
        let at_end = wanted.iter().zip(positions.iter().zip(&ends)).map(|(wanted, (at, end))| !wanted || at >= end);
        let at_end = at_end.collect();
        let buffer = Buffer { at_end, ..Buffer::default() };
        let between = Arc::new(Between {
            buffer: Mutex::new(buffer),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let (shared_too, between_too, topic_too, next) = (shared.clone(), between.clone(), topic.clone(), positions.clone());
        let filler = Filler {
            shared: shared_too,
            between: between_too,
            consumer,
            topic: topic_too,
            next,
            ends,
            wanted,
            block: Block::default(),
        };
        let thread = std::thread::Builder::new().name("kafka-reader".to_owned()).spawn(move || filler.run());
        let thread = Some(thread.map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))?);
        Ok(KafkaReader { shared: shared.clone(), topic, between, positions, thread })
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.between.closed.store(true, Ordering::SeqCst);
        self.between.emptied.notify_all();
        // It ends by itself within its next wait; nobody needs to stand by for that.
        drop(self.thread.take());
    }
}

impl TopicReader for KafkaReader {
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError> {
        let mut waits = PATIENCE.as_millis() / 100;
        let mut buffer = self.between.buffer.lock();
        while buffer.records.is_empty() {
            if let Some(error) = &buffer.error {
                return Err(error.clone());
            }
            if buffer.at_end.iter().all(|at_end| *at_end) {
                return Ok(None);
            }
            if waits == 0 {
                let topic = &self.topic.name;
                return Err(BrokerError::Storage(format!(
                    "kafka: no answer about topic `{topic}` within {PATIENCE:?}; check QUIKFLOW_BROKER and that Kafka runs"
                )));
            }
            waits -= 1;
            self.between.filled.wait_for(&mut buffer, Duration::from_millis(100));
        }
        let count = buffer.records.len().min(max_rows.max(1));
        let records: Vec<Incoming> = buffer.records.drain(..count).collect();
        buffer.bytes -= records.iter().map(Incoming::size).sum::<usize>();
        drop(buffer);
        self.between.emptied.notify_all();
        self.shared.handed.fetch_add(1, Ordering::SeqCst);
        let slice = RecordSlice::new(&self.shared, self.topic.clone(), records);
        for part in slice.parts() {
            if let Some(position) = self.positions.get_mut(part.partition.0 as usize) {
                *position = part.next.0;
            }
        }
        Ok(Some(Arc::new(slice)))
    }

    fn positions(&self) -> Positions {
        (0..).zip(&self.positions).map(|(partition, offset)| (PartitionId(partition), Offset(*offset))).collect()
    }
}

/// A consumer that goes on from `next` in each partition that is wanted.
fn assigned(shared: &Shared, topic: &TopicSpec, wanted: &[bool], next: &[u64]) -> Result<Watched<Client>, BrokerError> {
    let physical = shared.physical(&topic.name);
    let consumer = shared.options.reader()?;
    let mut list = TopicPartitionList::new();
    for (partition, (wanted, next)) in (0..).zip(wanted.iter().zip(next)) {
        if *wanted {
            let at = if *next == 0 { At::Beginning } else { At::Offset(i64::try_from(*next).unwrap_or(i64::MAX)) };
            list.add_partition_offset(&physical, partition, at).map_err(|e| failed("opening a reader", &e))?;
        }
    }
    consumer.assign(&list).map_err(|e| failed(&format!("reading topic `{physical}`"), &e))?;
    Ok(consumer)
}

/// The thread's side.
struct Filler {
    shared: Arc<Shared>,
    between: Arc<Between>,
    consumer: Watched<Client>,
    topic: Arc<TopicSpec>,
    /// Which partitions it reads.
    wanted: Vec<bool>,
    /// After the last record of each partition.
    next: Vec<u64>,
    /// Where each partition ended when the reader was opened.
    ends: Vec<u64>,
    block: Block,
}

impl Filler {
    fn run(mut self) {
        while !self.between.closed.load(Ordering::SeqCst) && !self.shared.is_closed() {
            if self.consumer.is_lost() {
                match assigned(&self.shared, &self.topic, &self.wanted, &self.next) {
                    Ok(consumer) => self.consumer = consumer,
                    Err(error) => tracing::warn!(%error, topic = self.topic.name, "kafka: a reader cannot be opened anew yet"),
                }
            }
            let (mut taken, mut ended, mut error) = (Vec::new(), Vec::new(), None);
            let (mut wait, mut bytes) = (Duration::from_millis(250), 0);
            // What has come already is handed over together.
            while error.is_none() && taken.len() < TOGETHER && bytes < TOGETHER_BYTES {
                let Some(polled) = self.consumer.poll(wait) else { break };
                wait = Duration::ZERO;
                match polled {
                    Ok(message) => {
                        if let Some(next) = usize::try_from(message.partition()).ok().and_then(|p| self.next.get_mut(p)) {
                            let offset = u64::try_from(message.offset()).unwrap_or(0);
                            let before = std::mem::replace(next, offset + 1);
                            if offset > before.saturating_add(GAP) && before > 0 {
                                self.perhaps_lost(message.partition(), before);
                            }
                        }
                        taken.extend(incoming(&message, &mut self.block));
                        bytes += taken.last().map_or(0, Incoming::size);
                    }
                    Err(KafkaError::PartitionEOF(partition)) => {
                        ended.extend(usize::try_from(partition));
                        break;
                    }
                    Err(failure) if lasting(&failure) => {
                        error = Some(failed(&format!("reading topic `{}`", self.topic.name), &failure));
                    }
                    // The client keeps trying by itself.
                    Err(failure) => self.shared.options.link.error(&failure, &self.topic.name),
                }
            }
            if taken.is_empty() && ended.is_empty() && error.is_none() {
                continue;
            }
            if error.is_none() {
                self.shared.options.link.answered();
            }
            for partition in &ended {
                self.remember_end(*partition);
            }
            let mut buffer = self.between.buffer.lock();
            while buffer.bytes > BUFFERED && !self.between.closed.load(Ordering::SeqCst) {
                self.between.emptied.wait_for(&mut buffer, Duration::from_millis(250));
            }
            let woke = buffer.records.is_empty();
            let passed = |record: &Incoming| self.ends.get(record.partition as usize).is_none_or(|end| record.offset + 1 >= *end);
            ended.extend(taken.iter().filter(|record| passed(record)).map(|record| record.partition as usize));
            for record in taken {
                buffer.bytes += record.size();
                buffer.records.push_back(record);
            }
            for partition in ended {
                if let Some(at_end) = buffer.at_end.get_mut(partition) {
                    *at_end = true;
                }
            }
            let lasting = error.is_some();
            buffer.error = buffer.error.take().or(error);
            let news = woke && !buffer.records.is_empty();
            drop(buffer);
            self.between.filled.notify_all();
            if news || lasting {
                self.shared.wakeup.bump();
            }
            if lasting {
                return;
            }
        }
    }

    /// A wide gap is no end of a transaction: retention may have been faster than this reader.
    fn perhaps_lost(&self, partition: i32, before: u64) {
        let physical = self.shared.physical(&self.topic.name);
        if let Ok((start, _)) = self.consumer.fetch_watermarks(&physical, partition, super::config::CALL) {
            let (partition, start) = (u32::try_from(partition).unwrap_or(0), u64::try_from(start).unwrap_or(0));
            self.shared.lost(&self.topic.name, partition, before, start);
        }
    }

    /// The end may lie behind the last record: markers of transactions stand between.
    fn remember_end(&self, partition: usize) {
        let Some(next) = self.next.get(partition) else { return };
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let end = self.consumer.position().ok().and_then(|list| {
            let element = list.find_partition(&self.shared.physical(&self.topic.name), number)?;
            match element.offset() {
                At::Offset(at) => u64::try_from(at).ok(),
                _ => None,
            }
        });
        self.shared.remember_tail(&self.topic.name, number, *next, end);
    }
}

/// Whether reading cannot go on by itself.
fn lasting(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    match error {
        KafkaError::MessageConsumptionFatal(_) => true,
        other => matches!(
            other.rdkafka_error_code(),
            Some(
                Code::UnknownTopicOrPartition
                    | Code::UnknownTopic
                    | Code::UnknownPartition
                    | Code::TopicAuthorizationFailed
                    | Code::Authentication
                    | Code::OffsetOutOfRange
            )
        ),
    }
}
