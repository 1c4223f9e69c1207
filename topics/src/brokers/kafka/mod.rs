//! Kafka (feature `kafka`): records as JSON under the Java client's keys, epochs as transactions.
//!
//! * `config`, `admin`: how the brokers are reached; topics made from the catalogue and checked
//! * `record`: a row as a record and back; `reader`: reading what was committed
//! * `append`: the door without a lane; `lanes`: bulk producers (R17, R18)
//! * `epoch`, `index`, `transactions`: an epoch is one transaction (R19), its state in `quikflow.state`
//! * `consumed`: what one topology alone reads is deleted behind its commit
//! * `member`: the group by which several processes share the pipelines' work
//! * `watch`: clients that have lost their brokers for good are opened anew
//! * `link`: says once for all clients that the brokers do not answer, and that they do again
//! * `load`: a share of the state put together; `copy`, `copies`: files that spare reading all of it from Kafka
//! * `progress`: how far everybody has come, in `quikflow.progress`; `tails`: where logs end
//! * `dead`, `table`: dead letters in `quikflow.dead`; the own compacted topics read whole
//!
//! The mapping and its reasons are in `docs/adr/005-kafka.md`.
//!
//! **Invariants**: readers see committed records only. A share of the work has one owner: whoever
//! had it before is refused. Offsets have gaps where transactions end.

mod admin;
mod append;
mod calls;
mod config;
mod consumed;
mod copies;
mod copy;
mod dead;
mod epoch;
mod index;
mod lanes;
mod link;
mod load;
mod member;
mod progress;
mod reader;
mod record;
mod table;
mod tails;
mod transactions;
mod watch;

pub use config::{KafkaOptions, Login};
pub use copies::{Restored, StateCopies};
pub use link::Link;
pub use watch::Watch;

use crate::broker::{BrokerError, TopicStats, Wakeup};
use crate::catalogue::TopicSpec;
use config::Client;
use config::{CALL, patiently};
use parking_lot::{Mutex, MutexGuard, RwLock};
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use watch::{Lasting, Watched};

/// How long a topic's figures are taken for the present ones.
const FRESH: Duration = Duration::from_millis(20);

/// Into how many shares the sinks are divided, where nobody made the topic with another number.
const SINK_SHARES: u32 = 12;

/// What callers, readers and writers share.
struct Shared {
    options: KafkaOptions,
    wakeup: Wakeup,
    closed: AtomicBool,
    admin: admin::Admin,
    topics: RwLock<BTreeMap<String, Arc<TopicSpec>>>,
    /// Asks for offsets of what is committed, and of everything.
    committed: Lasting<Client>,
    everything: Lasting<Client>,
    figures: Mutex<HashMap<String, (Duration, TopicStats)>>,
    tails: Mutex<tails::Tails>,
    written: Mutex<HashMap<String, tails::Written>>,
    /// Slices that readers of this process have handed over.
    handed: AtomicU64,
    progress: Mutex<Option<progress::Progress>>,
    own: Mutex<progress::Own>,
    /// Records that retention took before they were read here, by topic.
    lost: Mutex<BTreeMap<String, u64>>,
    /// Into how many shares the work of the pipelines is divided, and that of the sinks.
    shares: u32,
    sink_shares: u32,
    /// This process shares the work with others, and by which place in the group.
    joined: AtomicBool,
    membership: Arc<Mutex<Option<Arc<ConsumerGroupMetadata>>>>,
    inheritance: Mutex<epoch::Inheritance>,
    dead: Mutex<Option<dead::DeadLetters>>,
    lane_lines: Mutex<Option<(table::Table, BTreeMap<String, u64>)>>,
    lanes: Mutex<HashMap<String, std::sync::mpsc::Sender<lanes::Work>>>,
    appender: Mutex<Option<Watched<append::Appender>>>,
    epochs: Mutex<Option<epoch::Epochs>>,
    copies: copies::Copies,
}

/// The broker. See the module.
pub struct KafkaBroker {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for KafkaBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaBroker").field("options", &self.shared.options).finish()
    }
}

impl KafkaBroker {
    /// Connects, and makes or checks quikflow's own topics.
    ///
    /// # Errors
    /// No broker answers; a right is missing.
    pub fn open(options: KafkaOptions) -> Result<Arc<KafkaBroker>, BrokerError> {
        let committed = Lasting::new(&options, KafkaOptions::reader)?;
        options.first_contact(&*committed.get()?, &format!("{}quikflow.work", options.prefix))?;
        let everything = Lasting::new(&options, KafkaOptions::reader_of_all)?;
        let admin = admin::Admin::new(&options)?;
        let own = |name: &str| format!("{}quikflow.{name}", options.prefix);
        let mut wanted = ["dead", "lanes", "progress"].map(|name| admin::Wanted::own(own(name))).to_vec();
        wanted.extend(["state", "work"].map(|name| admin::Wanted::shared(own(name), options.shares)));
        wanted.push(admin::Wanted::shared(own("sinks"), SINK_SHARES));
        admin.ensure(&wanted)?;
        let counts = admin.partitions()?;
        if counts.get(&own("state")) != counts.get(&own("work")) {
            let what = "kafka: the topics quikflow.state and quikflow.work have another number of partitions each";
            return Err(BrokerError::Storage(what.to_owned()));
        }
        let shared = Arc::new(Shared {
            admin,
            wakeup: Wakeup::default(),
            closed: AtomicBool::new(false),
            topics: RwLock::default(),
            committed,
            everything,
            figures: Mutex::default(),
            tails: Mutex::default(),
            written: Mutex::default(),
            handed: AtomicU64::new(0),
            progress: Mutex::default(),
            own: Mutex::default(),
            lost: Mutex::default(),
            shares: *counts.get(&own("state")).unwrap_or(&1),
            sink_shares: *counts.get(&own("sinks")).unwrap_or(&1),
            joined: AtomicBool::new(false),
            membership: Arc::default(),
            inheritance: Mutex::default(),
            dead: Mutex::default(),
            lane_lines: Mutex::default(),
            lanes: Mutex::default(),
            appender: Mutex::default(),
            epochs: Mutex::default(),
            copies: copies::Copies::default(),
            options,
        });
        watch::start(&shared)?;
        Ok(Arc::new(KafkaBroker { shared }))
    }

    /// Bytes of state read since the start when shares were taken over; of copies where they are kept.
    pub fn restored(&self) -> Restored {
        self.shared.copies.restored()
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// A topic's name on the brokers.
    fn physical(&self, topic: &str) -> String {
        format!("{}{topic}", self.options.prefix)
    }

    /// The same for quikflow's own topics.
    fn own_topic(&self, name: &str) -> String {
        self.physical(&format!("quikflow.{name}"))
    }

    fn spec(&self, topic: &str) -> Result<Arc<TopicSpec>, BrokerError> {
        self.topics.read().get(topic).cloned().ok_or_else(|| BrokerError::UnknownTopic(topic.to_owned()))
    }

    /// The name on the brokers of a topic that is known.
    fn known(&self, topic: &str) -> Result<String, BrokerError> {
        self.spec(topic).map(|spec| self.physical(&spec.name))
    }

    /// Dead letters, opened when they are first needed.
    fn dead(&self) -> Result<MutexGuard<'_, Option<dead::DeadLetters>>, BrokerError> {
        let mut dead = self.dead.lock();
        if dead.is_none() {
            *dead = Some(dead::DeadLetters::new(&self.options, &self.own_topic("dead"))?);
        }
        Ok(dead)
    }

    /// How far everybody has come by now.
    fn progress_now(&self) -> Result<MutexGuard<'_, Option<progress::Progress>>, BrokerError> {
        let mut progress = self.progress.lock();
        if progress.is_none() {
            *progress = Some(progress::Progress::new(&self.options, &self.own_topic("progress"))?);
        }
        if let Some(progress) = progress.as_mut() {
            progress.catch_up()?;
        }
        Ok(progress)
    }

    /// A lane's highest committed line.
    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError> {
        let topic = self.own_topic("lanes");
        let mut lines = self.lane_lines.lock();
        if lines.is_none() {
            *lines = Some((table::Table::new(&self.options, &topic)?, BTreeMap::new()));
        }
        let Some((table, known)) = lines.as_mut() else { return Ok(0) };
        table.catch_up(|entry| {
            let line = entry.value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse::<u64>().ok());
            if let Some(line) = line {
                known.insert(entry.key.to_owned(), line);
            }
            Ok(())
        })?;
        Ok(known.get(producer).copied().unwrap_or(0))
    }

    /// The same, when all transactions that were open at this moment have ended: an open one of
    /// another lane hides what was committed behind it.
    fn lane_line_now(&self, producer: &str) -> Result<u64, BrokerError> {
        let topic = self.own_topic("lanes");
        let ask =
            |consumer: &Client| patiently("reading the lanes", || consumer.fetch_watermarks(&topic, 0, CALL)).map(|(_, end)| end);
        let wanted = ask(&*self.everything.get()?)?;
        for _ in 0..1_400 {
            if ask(&*self.committed.get()?)? >= wanted {
                return self.lane_line(producer);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(BrokerError::Busy(Duration::from_secs(1)))
    }

    /// A share of the state as its last epoch left it.
    fn load(&self, share: u32) -> Result<load::Loaded, BrokerError> {
        self.copies.load(&self.options, &self.own_topic("state"), share)
    }

    /// The right to commit epochs of all shares; taken where this process has none and shares with nobody.
    fn epochs(self: &Arc<Shared>) -> Result<epoch::Epochs, BrokerError> {
        let open = self.epochs.lock().clone().filter(|open| !open.failed.load(Ordering::SeqCst));
        let all: Vec<u32> = (0..self.shares).collect();
        if open.is_none() && !self.joined.load(Ordering::SeqCst) {
            epoch::take_over(self, &all)?;
        }
        let open = open.or_else(|| self.epochs.lock().clone());
        open.filter(|open| open.shares.len() == all.len()).ok_or_else(|| {
            BrokerError::Storage("kafka: other processes have a part of the pipelines' work; stop them first".to_owned())
        })
    }

    /// Between `next` and `end` of a partition stand markers only.
    fn remember_tail(&self, topic: &str, partition: i32, next: u64, end: Option<u64>) {
        let Ok(partition) = u32::try_from(partition) else { return };
        let Some(end) = end.filter(|end| *end > next) else { return };
        self.tails.lock().remember(topic, partition, next, end);
        self.figures.lock().remove(topic);
    }

    /// Says it where retention was faster than a reader (R18): records from `before` on are gone.
    fn lost(&self, topic: &str, partition: u32, before: u64, start: u64) {
        let compacted = self.spec(topic).is_ok_and(|spec| spec.cleanup == crate::catalogue::Cleanup::Compact);
        if start > before && !compacted {
            let records = start - before;
            tracing::error!(topic, partition, records, "kafka: retention was faster than a reader, these records are lost to it");
            *self.lost.lock().entry(topic.to_owned()).or_default() += records;
        }
    }

    /// First and last offsets by partition.
    fn figures(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        let spec = self.spec(topic)?;
        let now = self.options.clock.elapsed();
        if let Some((at, stats)) = self.figures.lock().get(topic).filter(|(at, _)| now.saturating_sub(*at) < FRESH) {
            let _at = at;
            return Ok(stats.clone());
        }
        let committed = self.committed.get()?;
        let (start, mut end) = (self.offsets(&committed, &spec, At::Beginning)?, self.offsets(&committed, &spec, At::End)?);
        self.look_at_tails(topic, &start, &end, now)?;
        self.tails.lock().cut(topic, &start, &mut end);
        let records = start.iter().zip(&end).map(|(start, end)| end.saturating_sub(*start)).sum();
        let stats = TopicStats { topic: topic.to_owned(), start, end, records, chunks: 0, bytes: 0 };
        self.figures.lock().insert(topic.to_owned(), (now, stats.clone()));
        Ok(stats)
    }

    /// The offset of each partition at one of its ends, asked for in one call: of what is committed or of
    /// everything, as the client reads.
    fn offsets(&self, client: &Client, spec: &TopicSpec, at: At) -> Result<Vec<u64>, BrokerError> {
        let physical = self.physical(&spec.name);
        let what = format!("asking for the offsets of topic `{physical}`");
        let found = patiently(&what, || {
            let mut list = TopicPartitionList::new();
            for partition in 0..spec.partitions {
                list.add_partition_offset(&physical, i32::try_from(partition).unwrap_or(i32::MAX), at)?;
            }
            let found = client.offsets_for_times(list, CALL)?;
            found.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
            Ok(found)
        })?;
        self.options.link.answered();
        let mut offsets = vec![0; spec.partitions as usize];
        for element in found.elements() {
            let place = usize::try_from(element.partition()).ok().and_then(|partition| offsets.get_mut(partition));
            if let (Some(place), At::Offset(offset)) = (place, element.offset()) {
                *place = u64::try_from(offset).unwrap_or(0);
            }
        }
        Ok(offsets)
    }
}
