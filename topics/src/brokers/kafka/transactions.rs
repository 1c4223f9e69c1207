//! A transactional producer, and how its transactions end.

use super::config::{CALL, KafkaOptions, failed};
use super::link::Link;
use super::record::{self, Outgoing};
use super::watch::Watched;
use crate::broker::{BrokerError, TopicRows};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::sync::Arc;
use std::time::Duration;

/// Hears of records that were not delivered, where no transaction would fail of it.
struct Undelivered {
    link: Arc<Link>,
    first: Mutex<Option<KafkaError>>,
}

impl Undelivered {
    fn new(options: &KafkaOptions) -> Undelivered {
        Undelivered { link: options.link.clone(), first: Mutex::default() }
    }
}

impl ClientContext for Undelivered {
    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, place: &str, text: &str) {
        self.link.log(level, place, text);
    }
}

impl ProducerContext for Undelivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.first.lock().get_or_insert_with(|| error.clone());
        }
    }
}

/// Who may write under one transactional id; opening another one under it fences this one.
pub(super) struct Transactions {
    producer: Watched<ThreadedProducer<Undelivered>>,
    /// Transactions, or records that are acknowledged and no more.
    real: bool,
}

impl Transactions {
    /// Opens `id`: fences whoever had it, whose open transaction is aborted.
    pub(super) fn open(options: &KafkaOptions, id: &str) -> Result<Transactions, BrokerError> {
        let what = format!("opening the transactional id `{}{id}`", options.prefix);
        let settings = options.transactional(id);
        let producer: ThreadedProducer<Undelivered> =
            settings.create_with_context(Undelivered::new(options)).map_err(|e| failed(&what, &e))?;
        let producer = options.watch.add(producer);
        producer.init_transactions(CALL * 3).map_err(|e| failed(&what, &e))?;
        Ok(Transactions { producer, real: true })
    }

    /// The same calls without transactions, nobody is fenced.
    pub(super) fn without(options: &KafkaOptions) -> Result<Transactions, BrokerError> {
        let mut settings = options.producer();
        settings.set("linger.ms", "1").set("delivery.report.only.error", "true");
        let producer = settings.create_with_context(Undelivered::new(options)).map_err(|e| failed("opening a producer", &e))?;
        Ok(Transactions { producer: options.watch.add(producer), real: false })
    }

    pub(super) fn begin(&self) -> Result<(), BrokerError> {
        if !self.real {
            return Ok(());
        }
        self.producer.begin_transaction().map_err(|e| failed("beginning a transaction", &e))
    }

    pub(super) fn send(&self, out: &Outgoing) -> Result<(), BrokerError> {
        record::send(&*self.producer, out, ())
    }

    /// Rows of a topic; `topic` is its name with the prefix.
    pub(super) fn send_rows(&self, rows: &TopicRows, topic: &str) -> Result<(), BrokerError> {
        record::send_rows(&*self.producer, rows, topic)
    }

    /// Waits until every record is acknowledged. (The client's own `flush` waits by tenths of a second.)
    pub(super) fn acknowledged(&self) -> Result<(), BrokerError> {
        let mut waited = Duration::ZERO;
        let mut nap = Duration::from_micros(500);
        while self.producer.in_flight_count() > 0 {
            if waited > CALL * 5 || self.producer.is_lost() {
                let what = "kafka: a transaction's records are not acknowledged; check that Kafka runs";
                return Err(BrokerError::Storage(what.to_owned()));
            }
            std::thread::sleep(nap);
            waited += nap;
            nap = (nap * 2).min(Duration::from_millis(5));
        }
        if self.real {
            // Of a record that was not delivered the commit says why.
            return Ok(());
        }
        let undelivered = self.producer.context().first.lock().take();
        undelivered.map_or(Ok(()), |error| Err(failed("writing", &error)))
    }

    /// Where there are no transactions: what was sent so far is stored before what follows.
    pub(super) fn then(&self) -> Result<(), BrokerError> {
        if self.real { Ok(()) } else { self.acknowledged() }
    }

    /// Puts a group's offsets into the transaction. The group refuses a member of an earlier
    /// generation; all records have to be acknowledged before, so that whoever has the next
    /// generation sees that a transaction is open.
    pub(super) fn offsets(&self, list: &TopicPartitionList, member: &ConsumerGroupMetadata) -> Result<(), BrokerError> {
        self.acknowledged()?;
        if !self.real {
            return Ok(());
        }
        let sent = self.producer.send_offsets_to_transaction(list, member, CALL);
        sent.map_err(|e| failed("the offsets of the share of the work", &e))
    }

    /// Commits, again where the outcome is not known yet.
    pub(super) fn commit(&self) -> Result<(), BrokerError> {
        self.acknowledged()?;
        if !self.real {
            return Ok(());
        }
        for _ in 0..5 {
            match self.producer.commit_transaction(CALL) {
                Ok(()) => {
                    self.producer.context().link.answered();
                    return Ok(());
                }
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    tracing::warn!(%error, "kafka: the commit of a transaction is tried again");
                }
                Err(error) => return Err(failed("committing a transaction", &error)),
            }
        }
        Err(BrokerError::Storage("kafka: a transaction was not committed within 100 s; check that Kafka runs".to_owned()))
    }

    /// Aborts; where that fails too, whoever opens the id next does it.
    pub(super) fn abort(&self) {
        if self.real
            && let Err(error) = self.producer.abort_transaction(CALL)
        {
            tracing::debug!(%error, "kafka: the transaction could not be aborted; who opens its id next does it");
        }
    }
}
