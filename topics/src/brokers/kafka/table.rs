//! quikflow's own compacted topics, read whole, a partition each: keys and values.

use super::config::{CALL, Client, KafkaOptions, failed, patiently};
use super::index::PIECE;
use super::record::header;
use super::watch::Lasting;
use crate::broker::BrokerError;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// One entry as read.
pub(super) struct Entry<'a> {
    pub(super) offset: u64,
    pub(super) key: &'a str,
    /// None: the key is gone.
    pub(super) value: Option<&'a [u8]>,
    /// The header of a piece of state.
    pub(super) head: Option<&'a str>,
}

/// Follows one of the own topics.
pub(super) struct Table {
    reader: Lasting<Client>,
    topic: String,
    partition: i32,
    /// The next offset to read, and the end of the log when that was reached.
    next: i64,
    end: i64,
}

impl Table {
    pub(super) fn new(options: &KafkaOptions, topic: &str) -> Result<Table, BrokerError> {
        Table::of(options, topic, 0)
    }

    pub(super) fn of(options: &KafkaOptions, topic: &str, partition: u32) -> Result<Table, BrokerError> {
        let reader = Lasting::new(options, KafkaOptions::quick_reader)?;
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        Ok(Table { reader, topic: topic.to_owned(), partition, next: 0, end: 0 })
    }

    /// Reads from `offset` on the next time.
    pub(super) fn rewind(&mut self, offset: u64) {
        self.next = i64::try_from(offset).unwrap_or(i64::MAX);
        self.end = 0;
    }

    /// Reads what was committed since the last time, up to the end.
    pub(super) fn catch_up(&mut self, mut apply: impl FnMut(&Entry<'_>) -> Result<(), BrokerError>) -> Result<(), BrokerError> {
        let what = format!("reading topic `{}`", self.topic);
        let consumer = self.reader.get()?;
        let (_, end) = patiently(&what, || consumer.fetch_watermarks(&self.topic, self.partition, CALL))?;
        if end <= self.end {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.partition, Offset::Offset(self.next)).map_err(|e| failed(&what, &e))?;
        consumer.assign(&list).map_err(|e| failed(&what, &e))?;
        let mut silent = 0;
        loop {
            match consumer.poll(CALL) {
                Some(Ok(message)) => {
                    let offset = u64::try_from(message.offset()).unwrap_or(0);
                    let key = message.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or("");
                    apply(&Entry { offset, key, value: message.payload(), head: header(&message, PIECE) })?;
                    self.next = message.offset() + 1;
                    // Where something is written all the time the client never tells the end.
                    if self.next >= end {
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) if silent < 100 => {
                    tracing::debug!(%error, topic = self.topic, "kafka: reading is disturbed");
                    silent += 1;
                }
                Some(Err(error)) => return Err(failed(&what, &error)),
                None => {
                    return Err(BrokerError::Storage(format!(
                        "kafka: {what}: no answer within {CALL:?}; check QUIKFLOW_BROKER and that Kafka runs"
                    )));
                }
            }
        }
        self.end = end;
        consumer.unassign().map_err(|e| failed(&what, &e))
    }
}
