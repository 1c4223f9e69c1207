//! A row as a Kafka record, and back.
//!
//! Key: the record's key; the partition is murmur2 of it, as the Java client's. Value: canonical
//! JSON. Headers `type`, `time` (event time, microseconds) and, of events with one, `id`. The
//! record's own timestamp is Kafka's: when it was appended.

use super::config::failed;
use crate::broker::{BrokerError, TopicRows};
use crate::brokers::records::{Incoming, own_time};
use crate::catalogue::TopicKind;
use crate::json::Encoder;
use crate::partitioner::partition_of;
use crate::schema::{EVENT_TIME, ID, KEY, TYPE};
use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use bytes::{Bytes, BytesMut};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::sync::Arc;
use std::time::Duration;

/// A record on its way out.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// With the prefix.
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    pub(super) key: Option<String>,
    /// None: a tombstone.
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(&'static str, HeaderText)>,
}

/// The value of a header.
#[derive(Clone, Debug)]
pub(super) enum HeaderText {
    Shared(Arc<str>),
    Number(i64),
}

impl Outgoing {
    /// An entry of one of quikflow's own compacted topics.
    pub(super) fn entry(topic: &Arc<str>, key: String, value: Option<Vec<u8>>) -> Outgoing {
        Outgoing { topic: topic.clone(), partition: 0, key: Some(key), value, headers: Vec::new() }
    }
}

/// A row on its way out, as long as it is looked at.
struct Leaving<'r> {
    partition: u32,
    key: Option<&'r str>,
    value: &'r str,
    ty: &'r str,
    time: i64,
    id: Option<&'r str>,
}

/// Every row, in order, to `take`.
fn each(rows: &TopicRows, mut take: impl FnMut(Leaving<'_>) -> Result<(), BrokerError>) -> Result<(), BrokerError> {
    let batch = &rows.rows;
    let missing = |name: &str| BrokerError::Storage(format!("rows to append have no column `{name}`"));
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| missing(name));
    let text = |name: &'static str| column(name)?.as_string_opt::<i32>().ok_or_else(|| missing(name));
    let (keys, types, ids) = (text(KEY)?, text(TYPE)?, text(ID)?);
    let times = column(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| missing(EVENT_TIME))?;
    let encoder = Encoder::new(&rows.topic, batch).map_err(|e| BrokerError::Storage(e.to_string()))?;
    let mut value = String::new();
    for row in 0..batch.num_rows() {
        value.clear();
        encoder.write(row, &mut value);
        let key = keys.is_valid(row).then(|| keys.value(row));
        take(Leaving {
            partition: partition_of(key, rows.topic.partitions).0,
            key,
            value: &value,
            ty: types.value(row),
            time: times.value(row),
            id: (rows.topic.kind == TopicKind::Events && ids.is_valid(row)).then(|| ids.value(row)),
        })?;
    }
    Ok(())
}

/// Rows as records; `topic` is the name with the prefix.
pub(super) fn encode(rows: &TopicRows, topic: &str) -> Result<Vec<Outgoing>, BrokerError> {
    let topic: Arc<str> = topic.into();
    let mut out = Vec::with_capacity(rows.rows.num_rows());
    let mut block = Block::default();
    each(rows, |row| {
        let mut headers = vec![("type", HeaderText::Shared(block.keep_type(row.ty))), ("time", HeaderText::Number(row.time))];
        headers.extend(row.id.map(|id| ("id", HeaderText::Shared(id.into()))));
        out.push(Outgoing {
            topic: topic.clone(),
            partition: row.partition,
            key: row.key.map(str::to_owned),
            value: Some(row.value.as_bytes().to_vec()),
            headers,
        });
        Ok(())
    })?;
    Ok(out)
}

/// Hands rows to the producer as they are encoded, none kept.
pub(super) fn send_rows<C>(producer: &ThreadedProducer<C>, rows: &TopicRows, topic: &str) -> Result<(), BrokerError>
where
    C: ProducerContext<DeliveryOpaque = ()> + 'static,
{
    let mut number = itoa::Buffer::new();
    each(rows, |row| {
        let pairs = [("type", Some(row.ty)), ("time", Some(number.format(row.time))), ("id", row.id)];
        let mut headers = OwnedHeaders::new_with_capacity(pairs.len());
        for (key, value) in pairs.into_iter().filter(|(_, value)| value.is_some()) {
            headers = headers.insert(Header { key, value });
        }
        let mut record = BaseRecord::<str, str>::to(topic).headers(headers).payload(row.value);
        record.partition = Some(i32::try_from(row.partition).unwrap_or(0));
        record.key = row.key;
        hand(producer, record)
    })
}

/// Hands a record to the producer, waiting while its queue is full.
pub(super) fn send<C>(producer: &ThreadedProducer<C>, record: &Outgoing, opaque: C::DeliveryOpaque) -> Result<(), BrokerError>
where
    C: ProducerContext + 'static,
{
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    let mut number = itoa::Buffer::new();
    for (key, value) in &record.headers {
        let value = match value {
            HeaderText::Shared(text) => text,
            HeaderText::Number(value) => number.format(*value),
        };
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let mut wanted = BaseRecord::<str, [u8], _>::with_opaque_to(&record.topic, opaque)
        .partition(i32::try_from(record.partition).unwrap_or(0))
        .headers(headers);
    wanted.key = record.key.as_deref();
    wanted.payload = record.value.as_deref();
    hand(producer, wanted)
}

fn hand<C, P>(producer: &ThreadedProducer<C>, mut record: BaseRecord<'_, str, P, C::DeliveryOpaque>) -> Result<(), BrokerError>
where
    C: ProducerContext + 'static,
    P: ToBytes + ?Sized,
{
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                let waited = producer.flush(Duration::from_millis(20));
                if let Err(error) = waited
                    && error.rdkafka_error_code() != Some(RDKafkaErrorCode::OperationTimedOut)
                {
                    return Err(failed("writing", &error));
                }
            }
            Err((error, back)) => return Err(failed(&format!("writing to topic `{}`", back.topic), &error)),
        }
    }
}

/// Where records that come one after the other are put side by side: one allocation for many, since they
/// are made on one thread and dropped on another.
#[derive(Default)]
pub(super) struct Block {
    room: BytesMut,
    /// The type of the record before: mostly this one's too.
    ty: Option<Arc<str>>,
}

impl Block {
    /// Bytes of one block.
    const BYTES: usize = 64 << 10;

    /// A copy of `bytes`.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if self.room.capacity() < bytes.len() {
            self.room = BytesMut::with_capacity(bytes.len().max(Block::BYTES));
        }
        self.room.extend_from_slice(bytes);
        self.room.split().freeze()
    }

    /// A copy of a key; what is no UTF-8 in it is replaced.
    pub(super) fn keep_key(&mut self, key: &[u8]) -> Bytes {
        match std::str::from_utf8(key) {
            Ok(_) => self.keep(key),
            Err(_) => self.keep(String::from_utf8_lossy(key).as_bytes()),
        }
    }

    /// A type.
    pub(super) fn keep_type(&mut self, ty: &str) -> Arc<str> {
        match &self.ty {
            Some(known) if **known == *ty => known.clone(),
            _ => self.ty.insert(ty.into()).clone(),
        }
    }
}

/// The message, copied into `block`, or none where it is a tombstone.
pub(super) fn incoming(message: &BorrowedMessage<'_>, block: &mut Block) -> Option<Incoming> {
    let value = message.payload()?;
    let arrival = message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000);
    let event_time =
        header(message, "time").and_then(|time| time.parse().ok()).unwrap_or_else(|| own_time(value).unwrap_or(arrival));
    Some(Incoming {
        partition: u32::try_from(message.partition()).unwrap_or(0),
        offset: u64::try_from(message.offset()).unwrap_or(0),
        arrival,
        event_time,
        key: message.key().map(|key| block.keep_key(key)),
        ty: header(message, "type").map(|ty| block.keep_type(ty)),
        value: block.keep(value),
    })
}

/// The text of a header.
pub(super) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    std::str::from_utf8(found.value?).ok()
}
