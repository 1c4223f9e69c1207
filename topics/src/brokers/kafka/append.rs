//! Appends without a lane: one idempotent producer, answered when every record is acknowledged by
//! all in-sync replicas.
//!
//! Ids are not looked up here (R18): a repeat is stored again, with its id in a header, and a
//! keyed `dedupe` has to be a topology's first step where that matters.

use super::Shared;
use super::config::failed;
use super::link::Link;
use super::record::{self, Outgoing};
use super::watch::Watched;
use crate::broker::{Answer, Append, Appended, BrokerError, Ticket};
use crate::brokers::records::Origins;
use crate::dead_letter::DeadLetter;
use crate::failpoint;
use crate::ids::{Offset, PartitionId};
use parking_lot::Mutex;
use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Records that may wait for an acknowledgement.
const IN_FLIGHT: i32 = 200_000;

/// An append whose records are on their way.
pub(super) struct Batch {
    left: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    answer: Mutex<Option<Answer<Appended>>>,
    done: Mutex<Appended>,
    shared: std::sync::Weak<Shared>,
}

impl Batch {
    /// One record (or the hand of who sends them) is done with; the last one answers.
    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        let Some(answer) = self.answer.lock().take() else { return };
        let outcome = match self.failure.lock().take() {
            Some(error) => Err(failed("appending", &error)),
            None => Ok(std::mem::take(&mut *self.done.lock())),
        };
        failpoint::hit("log.answer.before");
        // Nobody may be waiting any more, which is fine.
        drop(answer.send(outcome));
        failpoint::hit("log.answer.after");
        if let Some(shared) = self.shared.upgrade() {
            shared.wakeup.bump();
        }
    }
}

/// Which row of which batch a record is; none for dead letters.
pub(super) type Row = Box<(Arc<Batch>, Option<(usize, usize)>)>;

/// Hears of deliveries.
pub(super) struct Deliveries {
    link: Arc<Link>,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, place: &str, text: &str) {
        self.link.log(level, place, text);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Row;

    fn delivery(&self, result: &DeliveryResult<'_>, row: Row) {
        let (batch, place) = *row;
        match result {
            Ok(message) => {
                self.link.answered();
                if let Some((set, row)) = place
                    && let Some(known) = batch.done.lock().positions.get_mut(set).and_then(|rows| rows.get_mut(row))
                {
                    let partition = PartitionId(u32::try_from(message.partition()).unwrap_or(0));
                    *known = Some((partition, Offset(u64::try_from(message.offset()).unwrap_or(0))));
                }
            }
            Err((error, _)) => {
                batch.failure.lock().get_or_insert_with(|| error.clone());
            }
        }
        batch.one_less();
    }
}

pub(super) type Appender = ThreadedProducer<Deliveries>;

fn appender(shared: &Shared) -> Result<Watched<Appender>, BrokerError> {
    let heard = Deliveries { link: shared.options.link.clone() };
    let producer = shared.options.producer().create_with_context(heard).map_err(|e| failed("opening a producer", &e))?;
    Ok(shared.options.watch.add(producer))
}

impl Shared {
    /// The producer of appends, opened when it is first needed, and anew where it is lost: what was in
    /// flight is answered as failed then.
    pub(super) fn open_appender(&self) -> Result<Watched<Appender>, BrokerError> {
        let mut open = self.appender.lock();
        match open.as_ref().filter(|producer| !producer.is_lost()) {
            Some(producer) => Ok(producer.clone()),
            None => Ok(open.insert(appender(self)?).clone()),
        }
    }
}

impl Origins for Shared {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn store_letters(self: Arc<Shared>, letters: &[DeadLetter]) -> Result<(), BrokerError> {
        let letters = match self.dead()?.as_mut() {
            Some(dead) => dead.stage(letters)?,
            None => Vec::new(),
        };
        let (answer, ticket) = Ticket::new();
        append(&self, &*self.open_appender()?, &Append::default(), &[], &letters, answer)?;
        ticket.wait().map(drop)
    }
}

/// Sends an append on its way.
pub(super) fn append(
    shared: &Arc<Shared>,
    producer: &Appender,
    append: &Append,
    rows: &[Vec<Outgoing>],
    letters: &[Outgoing],
    answer: Answer<Appended>,
) -> Result<(), BrokerError> {
    failpoint::hit("log.append.begin");
    if producer.in_flight_count() > IN_FLIGHT {
        return Err(BrokerError::Busy(Duration::from_millis(50)));
    }
    let mut done = Appended { accepted: rows.iter().map(|set| set.len() as u64).sum(), ..Appended::default() };
    done.duplicates_unknown = rows.iter().flatten().any(|out| out.headers.iter().any(|(name, _)| *name == "id"));
    if append.want_positions {
        done.positions = rows.iter().map(|set| vec![None; set.len()]).collect();
        done.repeated = vec![Vec::new(); rows.len()];
    }
    // One more than records: this function's own hand, so that the answer waits for it.
    let count = rows.iter().map(Vec::len).sum::<usize>() + letters.len() + 1;
    let batch = Arc::new(Batch {
        left: AtomicUsize::new(count),
        failure: Mutex::default(),
        answer: Mutex::new(Some(answer)),
        done: Mutex::new(done),
        shared: Arc::downgrade(shared),
    });
    let places =
        rows.iter().enumerate().flat_map(|(set, rows)| rows.iter().enumerate().map(move |(row, out)| (out, Some((set, row)))));
    let mut refused = None;
    failpoint::hit("log.write.before");
    for (out, place) in places.chain(letters.iter().map(|out| (out, None))) {
        let place = place.filter(|_| append.want_positions);
        if refused.is_none() {
            refused = record::send(producer, out, Box::new((batch.clone(), place))).err();
            if refused.is_none() {
                continue;
            }
        }
        batch.one_less();
    }
    if let Some(error) = refused
        && let Some(answer) = batch.answer.lock().take()
    {
        drop(answer.send(Err(error)));
    }
    batch.one_less();
    Ok(())
}
