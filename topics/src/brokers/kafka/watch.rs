//! Clients that have lost their brokers for good are opened anew.
//!
//! A Kafka that has just started may answer with topics and without a single broker. The client library
//! (librdkafka 2.10 and later, its issue 5301) then forgets all brokers, those it was configured with as
//! well, and never asks again. So while brokers are away, and for a minute after, each client is asked
//! whether it reaches one. One that does not while a client made for the purpose does is lost, and whoever
//! has it opens another.

use super::Shared;
use super::config::KafkaOptions;
use crate::broker::BrokerError;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_secs(2);
/// So long after the last report of a broker that is away it is asked.
const AFTER: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Questions in a row without an answer after which a client is lost.
const STRIKES: u32 = 2;
/// How often it is looked whether this process has closed.
const LOOK: Duration = Duration::from_secs(30);

/// What can be asked whether it reaches a broker.
pub(super) trait Asked: Send + Sync {
    /// Whether a broker answers within [`ANSWER`].
    fn reaches(&self, topic: &str) -> bool;
}

impl<C: ConsumerContext + 'static> Asked for BaseConsumer<C> {
    fn reaches(&self, topic: &str) -> bool {
        self.fetch_metadata(Some(topic), ANSWER).is_ok()
    }
}

impl<C: ProducerContext + 'static> Asked for ThreadedProducer<C> {
    fn reaches(&self, topic: &str) -> bool {
        self.client().fetch_metadata(Some(topic), ANSWER).is_ok()
    }
}

/// A client, and whether it is lost.
pub(super) struct Watched<C> {
    client: Arc<C>,
    lost: Arc<AtomicBool>,
}

impl<C> Clone for Watched<C> {
    fn clone(&self) -> Watched<C> {
        Watched { client: self.client.clone(), lost: self.lost.clone() }
    }
}

impl<C> Deref for Watched<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.client
    }
}

impl<C> Watched<C> {
    /// It will never reach a broker again.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

struct Entry {
    client: Weak<dyn Asked>,
    lost: Arc<AtomicBool>,
    strikes: u32,
}

/// All clients of a process.
#[derive(Default)]
pub struct Watch(Mutex<Vec<Entry>>);

impl Watch {
    /// From now on the client is watched.
    pub(super) fn add<C: Asked + 'static>(&self, client: C) -> Watched<C> {
        let (client, lost) = (Arc::new(client), Arc::new(AtomicBool::new(false)));
        let asked: Weak<dyn Asked> = Arc::downgrade(&client) as Weak<dyn Asked>;
        let mut all = self.0.lock();
        all.retain(|entry| entry.client.strong_count() > 0);
        all.push(Entry { client: asked, lost: lost.clone(), strikes: 0 });
        Watched { client, lost }
    }

    /// Asks every client once, while others reach a broker.
    fn round(&self, topic: &str) {
        let clients: Vec<_> =
            self.0.lock().iter().filter_map(|entry| Some((entry.client.upgrade()?, entry.lost.clone()))).collect();
        for (client, lost) in clients {
            let reaches = client.reaches(topic);
            let mut all = self.0.lock();
            let Some(entry) = all.iter_mut().find(|entry| Arc::ptr_eq(&entry.lost, &lost)) else { continue };
            entry.strikes = if reaches { 0 } else { entry.strikes + 1 };
            if entry.strikes == STRIKES && !lost.swap(true, Ordering::SeqCst) {
                tracing::warn!("kafka: a client has lost its brokers while others reach them; it is opened anew");
            }
        }
    }
}

/// A client that is opened anew where it is lost.
pub(super) struct Lasting<C> {
    options: KafkaOptions,
    open: fn(&KafkaOptions) -> Result<Watched<C>, BrokerError>,
    now: Mutex<Watched<C>>,
}

impl<C> Lasting<C> {
    pub(super) fn new(
        options: &KafkaOptions,
        open: fn(&KafkaOptions) -> Result<Watched<C>, BrokerError>,
    ) -> Result<Lasting<C>, BrokerError> {
        Ok(Lasting { now: Mutex::new(open(options)?), options: options.clone(), open })
    }

    /// The client to ask now.
    pub(super) fn get(&self) -> Result<Watched<C>, BrokerError> {
        let mut now = self.now.lock();
        if now.is_lost() {
            *now = (self.open)(&self.options)?;
        }
        Ok(now.clone())
    }
}

/// Watches until the broker is closed.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), BrokerError> {
    let (weak, options, topic) = (Arc::downgrade(shared), shared.options.clone(), shared.own_topic("work"));
    let thread = std::thread::Builder::new().name("kafka-watch".to_owned()).spawn(move || run(&weak, &options, &topic));
    thread.map(drop).map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))
}

fn run(shared: &Weak<Shared>, options: &KafkaOptions, topic: &str) {
    let closed = || shared.upgrade().is_none_or(|shared| shared.is_closed());
    let mut seen = Duration::ZERO;
    while !closed() {
        let reported = options.link.reported_after(seen, LOOK);
        if reported <= seen {
            continue;
        }
        while !closed()
            && options.clock.elapsed().saturating_sub(options.link.reported_after(Duration::ZERO, Duration::ZERO)) < AFTER
        {
            std::thread::sleep(ROUND);
            // Made for this question alone: it knows what it is configured with.
            let fresh = options.consumer().create_with_context(options.heard());
            if fresh.is_ok_and(|client: super::config::Client| client.reaches(topic)) {
                options.watch.round(topic);
            }
        }
        seen = options.link.reported_after(Duration::ZERO, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Deaf(AtomicBool);

    impl Asked for Deaf {
        fn reaches(&self, _: &str) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn who_does_not_answer_twice_in_a_row_is_lost_and_others_are_not() {
        let watch = Watch::default();
        let (deaf, slow) = (watch.add(Deaf(AtomicBool::new(false))), watch.add(Deaf(AtomicBool::new(false))));
        watch.round("t");
        assert!(!deaf.is_lost() && !slow.is_lost());
        slow.0.store(true, Ordering::SeqCst);
        watch.round("t");
        assert!(deaf.is_lost() && !slow.is_lost());
        slow.0.store(false, Ordering::SeqCst);
        watch.round("t");
        assert!(!slow.is_lost(), "one question in a row");
        drop(deaf);
        let another = watch.add(Deaf(AtomicBool::new(true)));
        assert_eq!(watch.0.lock().len(), 2, "clients that are gone are forgotten");
        assert!(!another.is_lost());
    }
}
