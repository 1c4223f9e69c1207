//! The seam: the few calls that the adapter needs of a Fluvio cluster, and the patience around them.
//!
//! A real cluster is reached through `client` (feature `fluvio`); tests put an endpoint of their own
//! behind the same trait, one that fails, repeats and delays.

use crate::broker::BrokerError;
use crate::clock::SharedClock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first pause before a call is tried again; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Records of quikflow's own topics that are asked for at once.
const FOLLOWED: usize = 512;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody knows whether it was done: the connection broke, the time was over. Again is worth while.
    Lost(String),
    /// It was not done and will not be: a wrong name, a missing right, another version.
    Refused(String),
}

/// A record to be written. Its partition follows from the key (murmur2), and is given as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The key.
    pub key: Option<String>,
    /// The value.
    pub value: Vec<u8>,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its place.
    pub offset: u64,
    /// When the cluster took it, in microseconds.
    pub arrival: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Vec<u8>,
}

/// What a partition has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// Records from the offset asked for on, in order; none only at the end.
    pub records: Vec<Found>,
    /// The first offset kept.
    pub first: u64,
    /// The next offset to be written.
    pub end: u64,
}

/// The first offset kept and the next to be written of each partition of a topic.
pub type Bounds = Vec<(u64, u64)>;

/// A topic to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// How long records are kept; none: as long as the cluster can say.
    pub retention: Option<Duration>,
}

/// A cluster. Calls block; they may come from any thread that may block.
pub trait Endpoint: Send + Sync + 'static {
    /// All topics with the number of their partitions.
    ///
    /// # Errors
    /// See [`Fault`].
    fn topics(&self) -> Result<Vec<(String, u32)>, Fault>;
    /// Makes a topic. One that is there already is refused.
    ///
    /// # Errors
    /// See [`Fault`].
    fn create(&self, topic: &NewTopic) -> Result<(), Fault>;
    /// Writes records to a partition, in order, and answers their offsets when they are replicated.
    /// When the answer is lost, any of them may be there, now or a while later.
    ///
    /// # Errors
    /// See [`Fault`].
    fn produce(&self, topic: &str, partition: u32, records: &[Raw]) -> Result<Vec<u64>, Fault>;
    /// Replicated records of partitions of a topic, each from an offset on, about so many of each and no more
    /// than some MiB of them; answers in the order asked. From below the first record kept: from that one on.
    /// Some may be left out, which their offsets show.
    ///
    /// # Errors
    /// See [`Fault`].
    fn read(&self, topic: &str, from: &[(u32, u64)], most: usize) -> Result<Vec<Portion>, Fault>;
    /// Where the partitions of topics begin and end: topics with the number of theirs, answers in the order asked.
    ///
    /// # Errors
    /// See [`Fault`].
    fn bounds(&self, topics: &[(String, u32)]) -> Result<Vec<Bounds>, Fault>;
    /// Whether something may have been written to these topics since this was asked last. Asked some times a second
    /// while nothing comes, so it should be one question.
    fn news(&self, _topics: &[(String, u32)]) -> bool {
        true
    }
    /// Lets time pass before a call is tried again.
    fn pause(&self, time: Duration);
}

/// An endpoint, called with patience: what was lost is tried again until the budget is spent.
#[derive(Clone)]
pub(super) struct Cluster {
    endpoint: Arc<dyn Endpoint>,
    clock: SharedClock,
    budget: Duration,
    tries: Arc<AtomicU64>,
}

impl Cluster {
    pub(super) fn new(endpoint: Arc<dyn Endpoint>, clock: SharedClock, budget: Duration) -> Cluster {
        Cluster { endpoint, clock, budget, tries: Arc::default() }
    }

    pub(super) fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Calls until there is an answer, it is refused, or the budget is spent.
    pub(super) fn call<T>(&self, what: &str, call: impl Fn(&dyn Endpoint) -> Result<T, Fault>) -> Result<T, BrokerError> {
        let mut attempt = Attempt::new(self);
        loop {
            match call(self.endpoint.as_ref()) {
                Ok(answer) => return Ok(answer),
                Err(fault) => attempt.again(what, &fault)?,
            }
        }
    }

    /// Pauses between tries of something that is more than one call.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt::new(self)
    }

    /// One try.
    pub(super) fn once<T>(&self, call: impl FnOnce(&dyn Endpoint) -> Result<T, Fault>) -> Result<T, Fault> {
        call(self.endpoint.as_ref())
    }

    /// Records of partitions, each from an offset on, none left out: what follows without a hole is taken, the
    /// rest is asked for again.
    pub(super) fn read_all(&self, topic: &str, from: &[(u32, u64)], most: usize) -> Result<Vec<Portion>, BrokerError> {
        self.call(&format!("reading topic `{topic}`"), |endpoint| {
            let mut portions = endpoint.read(topic, from, most)?;
            if portions.len() != from.len() {
                return Err(Fault::Lost(format!("{} of {} partitions have answered", portions.len(), from.len())));
            }
            for ((_, from), portion) in from.iter().zip(&mut portions) {
                let first = portion.records.first().map_or(portion.end.max(*from), |found| found.offset);
                // Retention may have taken what was asked for.
                if first > (*from).max(portion.first) {
                    return Err(Fault::Lost(format!("asked for offset {from}, it gave {first}")));
                }
                let whole = portion.records.iter().zip(first..).take_while(|(found, offset)| found.offset == *offset).count();
                portion.records.truncate(whole);
            }
            Ok(portions)
        })
    }

    /// The same of one partition.
    pub(super) fn read(&self, topic: &str, partition: u32, from: u64, most: usize) -> Result<Portion, BrokerError> {
        Ok(self.read_all(topic, &[(partition, from)], most)?.pop().unwrap_or_default())
    }

    /// The record at an offset, where it is kept.
    pub(super) fn record(&self, topic: &str, partition: u32, offset: u64) -> Result<Option<Found>, BrokerError> {
        let portion = self.read(topic, partition, offset, 1)?;
        Ok(portion.records.into_iter().next().filter(|found| found.offset == offset))
    }

    /// Whether something may have been written to these topics since this was asked last.
    pub(super) fn news(&self, topics: &[(String, u32)]) -> bool {
        self.endpoint.news(topics)
    }

    /// Reads a topic of one partition from `next` on to its end; `next` goes with what was taken.
    pub(super) fn follow(
        &self,
        topic: &str,
        next: &mut u64,
        mut take: impl FnMut(Found) -> Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        loop {
            let portion = self.read(topic, 0, *next, FOLLOWED)?;
            let nothing = portion.records.is_empty();
            for found in portion.records {
                let after = found.offset + 1;
                take(found)?;
                *next = after;
            }
            if nothing || *next >= portion.end {
                return Ok(());
            }
        }
    }

    /// Where the partitions of a topic begin and end.
    pub(super) fn bounds(&self, topic: &str, partitions: u32) -> Result<Bounds, BrokerError> {
        let what = format!("asking for the offsets of topic `{topic}`");
        let asked = [(topic.to_owned(), partitions)];
        self.call(&what, |endpoint| {
            let bounds = endpoint.bounds(&asked)?.pop().unwrap_or_default();
            let whole = bounds.len() == partitions as usize;
            if whole {
                Ok(bounds)
            } else {
                Err(Fault::Lost(format!("{} of {partitions} partitions have answered", bounds.len())))
            }
        })
    }

    /// The same of a topic of one partition.
    pub(super) fn bounds_of_one(&self, topic: &str) -> Result<(u64, u64), BrokerError> {
        Ok(self.bounds(topic, 1)?.pop().unwrap_or_default())
    }

    /// Writes records of one partition; whether it took more than one try is said.
    pub(super) fn produce(&self, topic: &str, partition: u32, records: &[Raw]) -> Result<(Vec<u64>, bool), BrokerError> {
        let tries = std::cell::Cell::new(0);
        let offsets = self.call(&format!("writing to topic `{topic}`"), |endpoint| {
            tries.set(tries.get() + 1);
            endpoint.produce(topic, partition, records)
        })?;
        Ok((offsets, tries.get() > 1))
    }
}

/// Tries of one thing.
pub(super) struct Attempt<'c> {
    cluster: &'c Cluster,
    until: Duration,
    pause: Duration,
}

impl<'c> Attempt<'c> {
    fn new(cluster: &'c Cluster) -> Attempt<'c> {
        Attempt { cluster, until: cluster.clock.elapsed() + cluster.budget, pause: FIRST }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The fault, where trying again is of no use or the budget is spent.
    pub(super) fn again(&mut self, what: &str, fault: &Fault) -> Result<(), BrokerError> {
        let now = self.cluster.clock.elapsed();
        let why = match fault {
            Fault::Refused(why) => return Err(BrokerError::Storage(format!("fluvio: {what}: {why}"))),
            Fault::Lost(why) if now >= self.until => {
                let budget = self.cluster.budget;
                return Err(BrokerError::Storage(format!(
                    "fluvio: {what}: no answer within {budget:?}: {why}; check QUIKFLOW_BROKER and that Fluvio runs"
                )));
            }
            Fault::Lost(why) => why,
        };
        // Half of the pause is drawn, so that many who lost the same cluster do not come back at once.
        let try_number = self.cluster.tries.fetch_add(1, Ordering::Relaxed);
        let drawn = xxhash_rust::xxh3::xxh3_64_with_seed(&now.as_nanos().to_le_bytes(), try_number) % 1000;
        let half = self.pause / 2;
        let pause = half + half * u32::try_from(drawn).unwrap_or(0) / 1000;
        tracing::debug!(what, why, ?pause, "fluvio: tried again");
        self.cluster.endpoint.pause(pause);
        self.pause = (self.pause * 2).min(LONGEST);
        Ok(())
    }
}
