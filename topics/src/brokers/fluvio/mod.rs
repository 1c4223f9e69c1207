//! Fluvio: records as JSON under the keys of Kafka's clients; epochs by a journal, since there are no transactions.
//!
//! * `endpoint`: the seam, and the patience around it
//! * `client`, `leaders`, `wire` (feature `fluvio`): a real cluster behind it
//! * `record`: a row as a record with its id, and back; `sieve`: which records are repeats
//! * `reader`: reading a topic, each record once
//! * `door`: appends and lanes (R17); `lines`: how far lanes are, and what is on its way; `dead`: dead letters
//! * `book`, `journal`, `epochs`: an epoch is an entry of the journal, then its outputs are written under its ids
//!
//! All but the second line is always compiled, and tested over an endpoint that fails. The mapping and its
//! reasons are in `docs/adr/007-fluvio.md`.
//!
//! **Invariants**: nothing is believed to be written but what was answered or read back. A writer
//! numbers its records of a partition upwards, and goes on only after an answer.

mod book;
mod calls;
#[cfg(feature = "fluvio")]
mod client;
mod dead;
mod door;
mod endpoint;
mod epochs;
mod journal;
#[cfg(feature = "fluvio")]
mod leaders;
mod lines;
mod reader;
mod record;
mod sieve;
#[cfg(feature = "fluvio")]
mod wire;

#[cfg(feature = "fluvio")]
pub use client::Client;
pub use endpoint::{Bounds, Endpoint, Fault, Found, NewTopic, Portion, Raw};

use super::records::Origins;
use crate::broker::{BrokerError, Positions, TopicStats, Wakeup};
use crate::catalogue::TopicSpec;
use crate::clock::SharedClock;
use crate::dead_letter::DeadLetter;
use crate::ids::PartitionId;
use endpoint::Cluster;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often followers look for what other processes have written.
const LOOK: Duration = Duration::from_millis(250);
/// Every so many looks followers are woken though nothing has changed.
const ANYWAY: u64 = 20;
/// How long a call is tried again before it fails, unless told otherwise.
pub const BUDGET: Duration = Duration::from_secs(60);
/// The longest name that Fluvio takes.
const LONGEST_NAME: usize = 63;

/// Files of a TLS connection, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The name in the cluster's certificate.
    pub domain: String,
    /// The authority that signed it.
    pub ca: String,
    /// This client's certificate.
    pub cert: String,
    /// And its key.
    pub key: String,
}

/// How a cluster is reached.
#[derive(Clone, Debug)]
pub struct FluvioOptions {
    /// `host:port` of the stream controller.
    pub address: String,
    /// Before every name of a topic; may be empty.
    pub prefix: String,
    /// Whether and how the connection is encrypted.
    pub tls: Option<Tls>,
    /// How long a call is tried again before it fails.
    pub budget: Duration,
    /// Time.
    pub clock: SharedClock,
}

impl FluvioOptions {
    /// From `fluvio://host:port`, with `/prefix` behind it where several installations share the
    /// cluster; without TLS.
    ///
    /// # Errors
    /// What the URL lacks.
    pub fn from_url(url: &str, clock: SharedClock) -> Result<FluvioOptions, BrokerError> {
        let wrong = || BrokerError::Storage("`broker` has to be fluvio://host:port".to_owned());
        let rest = url.strip_prefix("fluvio://").ok_or_else(wrong)?;
        let (address, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let port = address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if port.is_none() || address.contains(['@', ',']) {
            return Err(wrong());
        }
        if !prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            let message = "the prefix behind fluvio://host:port/ takes small letters, digits and `-`";
            return Err(BrokerError::Storage(message.to_owned()));
        }
        Ok(FluvioOptions { address: address.to_owned(), prefix: prefix.to_owned(), tls: None, budget: BUDGET, clock })
    }
}

/// What callers, readers and writers share.
struct Shared {
    cluster: Cluster,
    prefix: String,
    /// This process, as a writer: no other has the name.
    who: String,
    /// How often it has taken over.
    takeovers: AtomicU64,
    wakeup: Wakeup,
    closed: AtomicBool,
    closing: (Mutex<()>, Condvar),
    topics: RwLock<BTreeMap<String, Arc<TopicSpec>>>,
    journal: Mutex<journal::Journal>,
    /// Held while an epoch is committed and delivered, or a topology reset: the journal is free for those who read it.
    committing: Mutex<()>,
    /// With the bytes of pieces, as it was at some entry.
    full: Mutex<Option<book::Book>>,
    dead: Mutex<dead::DeadLetters>,
    lines: Mutex<lines::Lines>,
    door: Mutex<Option<(std::sync::mpsc::SyncSender<door::Work>, std::thread::JoinHandle<()>)>>,
    epochs: Mutex<Option<epochs::Epochs>>,
    /// Where only repeats stand: (topic, partition) → (after the last record, end of the log).
    tails: Mutex<HashMap<(String, u32), (u64, u64)>>,
    /// The partitions that an epoch's outputs are still to be written to, and how many.
    delivering: Mutex<BTreeMap<(String, u32), u64>>,
    /// Slices that readers have handed over.
    handed: AtomicU64,
    /// Topics of whose partitions nothing was unread, at so many slices.
    all_read: Mutex<HashMap<String, (u64, Positions)>>,
    /// What followers reported: group → (topic, partition) → next offset.
    progress: Mutex<BTreeMap<String, BTreeMap<(String, u32), u64>>>,
}

/// The broker. See the module.
pub struct FluvioBroker {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FluvioBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FluvioBroker").field("prefix", &self.shared.prefix).field("who", &self.shared.who).finish_non_exhaustive()
    }
}

/// Says which provider of cryptography is used, first thing in `main`: the client brings a second
/// one, and with two the TLS of every client would refuse to choose.
#[cfg(feature = "fluvio")]
pub fn choose_cryptography() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a provider of cryptography was chosen before");
    }
}

impl FluvioBroker {
    /// Connects to a cluster, and makes or checks quikflow's own topics.
    ///
    /// # Errors
    /// No cluster answers within the budget; another version; a right is missing.
    #[cfg(feature = "fluvio")]
    pub fn open(options: FluvioOptions) -> Result<Arc<FluvioBroker>, BrokerError> {
        let client = Arc::new(Client::new(&options)?);
        FluvioBroker::over(client, &options.prefix, options.clock, options.budget)
    }

    /// The broker over an endpoint of whatever kind.
    ///
    /// # Errors
    /// As the endpoint's, when the budget of a call is spent.
    pub fn over(
        endpoint: Arc<dyn Endpoint>,
        prefix: &str,
        clock: SharedClock,
        budget: Duration,
    ) -> Result<Arc<FluvioBroker>, BrokerError> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        // Drawn by the operating system: two processes must never share a name, or one's records
        // would pass for repeats of the other's.
        let drawn = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), nth);
        let who = format!("door-{:x}-{drawn:x}-{nth}", clock.now().0);
        let cluster = Cluster::new(endpoint, clock, budget);
        let own = |name: &str| physical(prefix, &format!("quikflow-{name}"));
        let wanted = ["journal", "starts", "dead", "lanes"].map(|name| (own(name), 1, None));
        calls::ensure(&cluster, &wanted)?;
        let shared = Arc::new(Shared {
            journal: Mutex::new(journal::Journal::open(&cluster, &own("journal"), &own("starts"), false)?),
            dead: Mutex::new(dead::DeadLetters::new(&cluster, &own("dead"))),
            committing: Mutex::default(),
            cluster,
            prefix: prefix.to_owned(),
            who,
            takeovers: AtomicU64::new(0),
            wakeup: Wakeup::default(),
            closed: AtomicBool::new(false),
            closing: (Mutex::new(()), Condvar::new()),
            topics: RwLock::default(),
            full: Mutex::default(),
            lines: Mutex::default(),
            door: Mutex::default(),
            epochs: Mutex::default(),
            tails: Mutex::default(),
            delivering: Mutex::default(),
            handed: AtomicU64::new(0),
            all_read: Mutex::default(),
            progress: Mutex::default(),
        });
        let watched = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("fluvio-look".to_owned()).spawn(move || look(&watched));
        thread.map_err(no_thread)?;
        Ok(Arc::new(FluvioBroker { shared }))
    }
}

/// Wakes followers when other processes have written something, and now and then anyway.
fn look(shared: &std::sync::Weak<Shared>) {
    for nth in 0_u64.. {
        let Some(shared) = shared.upgrade().filter(|shared| !shared.is_closed()) else { return };
        let topics: Vec<(String, u32)> =
            shared.topics.read().values().map(|spec| (shared.physical(&spec.name), spec.partitions)).collect();
        if shared.cluster.news(&topics) || nth % ANYWAY == 0 {
            shared.wakeup.bump();
        }
        let mut nothing = shared.closing.0.lock();
        if !shared.is_closed() {
            shared.closing.1.wait_for(&mut nothing, LOOK);
        }
    }
}

fn no_thread(error: std::io::Error) -> BrokerError {
    BrokerError::Storage(format!("fluvio: no thread: {error}"))
}

/// A topic's name in the cluster, which takes small letters, digits and `-`.
fn physical(prefix: &str, topic: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = topic.chars().map(legal).collect();
    let name = name.trim_matches('-');
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") }
}

impl Origins for Shared {
    fn name(&self) -> &'static str {
        "fluvio"
    }

    fn store_letters(self: Arc<Shared>, letters: &[DeadLetter]) -> Result<(), BrokerError> {
        let letters = letters.iter().map(dead::encode).collect::<Result<Vec<_>, _>>()?;
        self.write_letters(&letters, &[])
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn physical(&self, topic: &str) -> String {
        physical(&self.prefix, topic)
    }

    /// The same for quikflow's own topics.
    fn own(&self, name: &str) -> String {
        self.physical(&format!("quikflow-{name}"))
    }

    fn spec(&self, topic: &str) -> Result<Arc<TopicSpec>, BrokerError> {
        self.topics.read().get(topic).cloned().ok_or_else(|| BrokerError::UnknownTopic(topic.to_owned()))
    }

    /// Where each partition of a topic begins, as resets have left it.
    fn floors(&self, spec: &TopicSpec) -> Result<Vec<u64>, BrokerError> {
        let mut journal = self.journal.lock();
        journal.catch_up()?;
        let mut floors = journal.book.floors.get(&spec.name).cloned().unwrap_or_default();
        floors.resize(spec.partitions as usize, 0);
        Ok(floors)
    }

    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError> {
        self.lines.lock().of(self, producer)
    }

    fn write_letters(&self, letters: &[String], replayed: &[String]) -> Result<(), BrokerError> {
        if letters.is_empty() && replayed.is_empty() { Ok(()) } else { self.dead.lock().write(letters, replayed) }
    }

    /// Between `after` and `end` of a partition stand repeats only.
    fn remember_tail(&self, topic: &str, partition: usize, after: u64, end: u64) {
        let Ok(partition) = u32::try_from(partition) else { return };
        if end > after {
            self.tails.lock().insert((topic.to_owned(), partition), (after, end));
        }
    }

    /// See [`crate::broker::Broker::unread`]. What a record that was shown was written together with is on its
    /// way, which is asked first, or stands in the log.
    fn unread(&self, topic: &str, from: &Positions) -> Result<bool, BrokerError> {
        let handed = self.handed.load(Ordering::SeqCst);
        // What was all there was stays so until more is shown.
        if self.all_read.lock().get(topic).is_some_and(|(at, all)| *at == handed && all == from) {
            return Ok(false);
        }
        let delivered =
            self.delivering.lock().keys().any(|(to, partition)| to == topic && from.contains_key(&PartitionId(*partition)));
        if delivered || self.lines.lock().any_coming(self, topic, from)? {
            return Ok(true);
        }
        let bounds = self.bounds(self.spec(topic)?.as_ref())?;
        let bounds = |partition: &PartitionId| bounds.get(partition.0 as usize).copied().unwrap_or_default();
        let unread = from.iter().any(|(partition, next)| next.0.max(bounds(partition).0) < bounds(partition).1);
        if !unread {
            self.all_read.lock().insert(topic.to_owned(), (handed, from.clone()));
        }
        Ok(unread)
    }

    /// The first offset kept of each partition and the one after the last record that is no repeat, as far as known.
    fn bounds(&self, spec: &TopicSpec) -> Result<Bounds, BrokerError> {
        let mut bounds = self.cluster.bounds(&self.physical(&spec.name), spec.partitions)?;
        let tails = self.tails.lock();
        for (partition, (_, next)) in (0..).zip(&mut bounds) {
            let tail = tails.get(&(spec.name.clone(), partition)).filter(|(_, at)| at == next);
            *next = tail.map_or(*next, |(after, _)| *after);
        }
        Ok(bounds)
    }

    /// First and last offsets by partition.
    fn figures(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        let spec = self.spec(topic)?;
        let coming = self.delivering.lock().clone();
        let bounds = self.bounds(&spec)?;
        let start: Vec<u64> = bounds.iter().zip(self.floors(&spec)?).map(|((first, _), floor)| floor.max(*first)).collect();
        let mut end: Vec<u64> = bounds.iter().zip(&start).map(|((_, next), start)| *next.max(start)).collect();
        // What the journal has and the topic has not yet is there for who waits for it.
        for ((_, partition), records) in coming.iter().filter(|((to, _), _)| to == topic) {
            end.get_mut(*partition as usize).into_iter().for_each(|end| *end += records);
        }
        let records = start.iter().zip(&end).map(|(start, end)| end - start).sum();
        Ok(TopicStats { topic: topic.to_owned(), start, end, records, chunks: 0, bytes: 0 })
    }
}
