//! The embedded broker: a columnar log in one SQLite file, one writer thread, many readers.
//!
//! * `prepare`: the caller's thread sorts, encodes and compresses; the writer only assigns offsets
//! * `queue`, `writer`, `stage`: group commit; an answer means that the commit was synced
//! * `ids`: duplicates by id (R16); lanes (R17) are in `writer`
//! * `epoch`: an epoch's outputs, state, offsets in one transaction (R9)
//! * `reader`, `slice`, `pins`: reading in the order of commits, columns decoded when asked for
//! * `upkeep`, `merge`: merging small chunks (R10), compaction, retention, checkpoints, size limit
//! * `verify`: walks all chunks
//!
//! # Places where a test can end the process
//! `log.append.begin` (taken from the queue), `log.write.before` (transaction begun),
//! `log.epoch.before`, `log.commit.before` (all written, not committed), `log.commit.after`
//! (synced), `log.epoch.after`, `log.answer.before`, `log.answer.after`, `log.merge.before`,
//! `log.merge.after`, `log.retention.before`, `log.retention.after`, `log.checkpoint.before`,
//! `log.checkpoint.after`.
//!
//! **Invariant**: one process owns the directory; no transaction spans two files; a reader holds no
//! transaction between calls.

mod dead;
mod epoch;
mod ids;
mod lock;
mod merge;
mod pins;
mod prepare;
mod queue;
mod reader;
mod slice;
mod sql;
mod stage;
mod topic;
mod upkeep;
pub mod verify;
mod writer;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;

use crate::broker::{
    Append, Appended, Broker, BrokerError, EpochCommit, Guarantee, Positions, Projection, ResetFrom, Ticket, TopicReader,
    TopicStats, TopologyState, Wakeup,
};
use crate::catalogue::TopicSpec;
use crate::clock::SharedClock;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use crate::ids::{Epoch, Offset, PartitionId};
use arrow::array::RecordBatch;
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How the log is opened.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The data directory; made when it is missing.
    pub dir: PathBuf,
    /// Arrival times, windows of ids, retention.
    pub clock: SharedClock,
    /// Beyond so many stored bytes ingest gets `Full` until retention has freed room.
    pub max_bytes: u64,
    /// Appends waiting for the writer.
    pub queue_count: usize,
    /// Bytes of rows waiting for the writer.
    pub queue_bytes: usize,
    /// How long an id is remembered, by arrival (R16).
    pub id_window: Duration,
    /// How many ids are remembered at most, 36 bytes of memory each.
    pub id_limit: u64,
    /// The write-ahead file is brought back below this size.
    pub wal_limit: u64,
    /// Whether each commit is synced before its answer. Off only in tests that do not need it.
    pub sync: bool,
}

impl EmbeddedOptions {
    /// The defaults: 64 GiB, 8,192 appends or 64 MiB in the queue, ids for one hour and at most ten
    /// million, 256 MiB of write-ahead file.
    pub fn new(dir: impl Into<PathBuf>, clock: SharedClock) -> EmbeddedOptions {
        EmbeddedOptions {
            dir: dir.into(),
            clock,
            max_bytes: 64 << 30,
            queue_count: 8_192,
            queue_bytes: 64 << 20,
            id_window: Duration::from_secs(3_600),
            id_limit: 10_000_000,
            wal_limit: 256 << 20,
            sync: true,
        }
    }
}

/// Connections for decoding, kept for the next slice.
#[derive(Debug)]
struct Pool {
    dir: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    const KEPT: usize = 8;

    fn take(&self) -> Result<Connection, BrokerError> {
        let idle = self.idle.lock().pop();
        idle.map_or_else(|| sql::open_reader(&self.dir), Ok)
    }

    fn give(&self, conn: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() < Pool::KEPT {
            idle.push(conn);
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T, BrokerError>) -> Result<T, BrokerError> {
        let conn = self.take()?;
        let done = work(&conn);
        self.give(conn);
        done
    }
}

/// What the writer and the callers share.
struct Shared {
    options: EmbeddedOptions,
    clock: SharedClock,
    wakeup: Wakeup,
    queue: queue::Queue,
    topics: RwLock<Arc<topic::Topics>>,
    pool: Arc<Pool>,
    pins: Arc<pins::Pins>,
    last_epoch: AtomicU64,
    full: AtomicBool,
    stored_bytes: AtomicU64,
    /// What followers reported (group, topic, partition → next offset), and which of it is not
    /// stored yet.
    progress: Mutex<(BTreeMap<String, u64>, BTreeSet<String>)>,
}

/// The embedded broker. See the module.
pub struct EmbeddedBroker {
    shared: Arc<Shared>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    merger: Mutex<Option<std::thread::JoinHandle<()>>>,
    lock: Mutex<Option<lock::Lock>>,
    read_only: bool,
}

impl std::fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedBroker").field("dir", &self.shared.options.dir).field("read_only", &self.read_only).finish()
    }
}

impl EmbeddedBroker {
    /// Opens the log in `options.dir`, making it where it is missing, and starts its threads.
    ///
    /// # Errors
    /// [`BrokerError::Owned`] when another process has it; storage errors.
    pub fn open(options: EmbeddedOptions) -> Result<Arc<EmbeddedBroker>, BrokerError> {
        let storage = |e: std::io::Error| BrokerError::Storage(format!("{}: {e}", options.dir.display()));
        std::fs::create_dir_all(&options.dir).map_err(storage)?;
        let lock = lock::take(&options.dir, options.clock.now())?;
        let conn = sql::open_writer(&options.dir, options.sync)?;
        let shared = Arc::new(Shared::load(options.clone(), &conn)?);
        let writer = writer::Writer::new(conn, shared.clone())?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.to_owned()).spawn(work);
        let writer = spawn("log-writer", Box::new(move || writer.run())).map_err(storage)?;
        let for_merger = shared.clone();
        let merger = spawn("log-merger", Box::new(move || merge::run(&for_merger))).map_err(storage)?;
        Ok(Arc::new(EmbeddedBroker {
            shared,
            writer: Mutex::new(Some(writer)),
            merger: Mutex::new(Some(merger)),
            lock: Mutex::new(Some(lock)),
            read_only: false,
        }))
    }

    /// Opens the log of `dir` for reading only, offline or beside the process that owns it. Topics
    /// made after that are not seen.
    ///
    /// # Errors
    /// When there is no log, or it cannot be read.
    pub fn open_read_only(dir: &Path) -> Result<Arc<EmbeddedBroker>, BrokerError> {
        let conn = sql::open_reader(dir)?;
        let options = EmbeddedOptions::new(dir, crate::clock::SystemClock::shared());
        let shared = Arc::new(Shared::load(options, &conn)?);
        shared.queue.close();
        Ok(Arc::new(EmbeddedBroker {
            shared,
            writer: Mutex::new(None),
            merger: Mutex::new(None),
            lock: Mutex::new(None),
            read_only: true,
        }))
    }

    /// Stored bytes of the log file, without free pages; a metric.
    pub fn stored_bytes(&self) -> u64 {
        self.shared.stored_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the write-ahead file; a metric.
    pub fn wal_bytes(&self) -> u64 {
        upkeep::wal_bytes(&self.shared.options.dir)
    }

    fn state_of(&self, name: &str) -> Result<Arc<topic::TopicState>, BrokerError> {
        self.shared.topics.read().get(name).cloned().ok_or_else(|| BrokerError::UnknownTopic(name.to_owned()))
    }

    /// Has the writer do something, and waits for it.
    fn task<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut writer::Writer) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        if self.read_only {
            return Err(BrokerError::Storage("the log was opened for reading only".to_owned()));
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.shared.queue.push_task(Box::new(move |writer| {
            let done = work(writer);
            writer.shared.wakeup.bump();
            drop(sender.send(done));
        }))?;
        receiver.recv().unwrap_or(Err(BrokerError::Closed))
    }

    fn prepare(&self, append: Append, answer: prepare::Waiting) -> Result<prepare::PendingAppend, BrokerError> {
        let bytes = prepare::size_of(&append.rows) + append.dead_letters.iter().map(|d| d.bytes.len() + 512).sum::<usize>() + 256;
        if self.shared.full.load(Ordering::Relaxed) {
            return Err(BrokerError::Full { limit: self.shared.options.max_bytes });
        }
        self.shared.queue.check_room(bytes)?;
        let mut lines = append.lines.into_iter();
        let rows = append.rows.into_iter().map(|rows| {
            let topic = self.state_of(&rows.topic.name)?;
            prepare::prepare(topic, rows.rows, &append.principal, lines.next().unwrap_or_default())
        });
        Ok(prepare::PendingAppend {
            rows: rows.collect::<Result<Vec<_>, _>>()?,
            lane: append.lane,
            dead_letters: append.dead_letters,
            want_positions: append.want_positions,
            apart: append.apart,
            bytes,
            deadline: None,
            answer,
        })
    }
}

impl Shared {
    fn load(options: EmbeddedOptions, conn: &Connection) -> Result<Shared, BrokerError> {
        let mut progress = BTreeMap::new();
        for (key, value) in sql::list(conn, sql::space::PROGRESS, "")? {
            progress.insert(key, value.try_into().map_or(0, u64::from_le_bytes));
        }
        Ok(Shared {
            clock: options.clock.clone(),
            wakeup: Wakeup::default(),
            queue: queue::Queue::new(options.queue_count, options.queue_bytes),
            topics: RwLock::new(Arc::new(topic::load(conn)?)),
            pool: Arc::new(Pool { dir: options.dir.clone(), idle: Mutex::default() }),
            pins: Arc::default(),
            last_epoch: AtomicU64::new(sql::get_number(conn, sql::space::LOG, "epoch")?),
            full: AtomicBool::new(false),
            stored_bytes: AtomicU64::new(0),
            progress: Mutex::new((progress, BTreeSet::new())),
            options,
        })
    }
}

impl Broker for EmbeddedBroker {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn ensure_topics(&self, topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        let specs = topics.to_vec();
        self.task(move |writer| writer.ensure_topics(&specs))
    }

    fn topic(&self, name: &str) -> Option<Arc<TopicSpec>> {
        self.shared.topics.read().get(name).map(|t| t.spec())
    }

    fn topics(&self) -> Vec<Arc<TopicSpec>> {
        self.shared.topics.read().values().map(|t| t.spec()).collect()
    }

    fn append(&self, append: Append) -> Result<Ticket<Appended>, BrokerError> {
        let (answer, ticket) = Ticket::new();
        let pending = self.prepare(append, prepare::Waiting::Appended(answer))?;
        self.shared.queue.push_append(pending)?;
        Ok(ticket)
    }

    fn commit_epoch(&self, mut commit: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        let (answer, ticket) = Ticket::new();
        let topics = self.shared.topics.read().clone();
        let rows = epoch::prepare_outputs(&topics, std::mem::take(&mut commit.outputs))?;
        self.shared.queue.push_epoch(epoch::PendingEpoch { commit, rows, answer })?;
        Ok(ticket)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        let conn = sql::open_reader(&self.shared.options.dir)?;
        let (pool, pins) = (self.shared.pool.clone(), self.shared.pins.clone());
        Ok(Box::new(reader::LogReader::open(self.state_of(topic)?, conn, pool, pins, from)?))
    }

    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        let mut from: Positions = self.state_of(topic)?.extent.lock().ends.iter().enumerate().map(ends_as_position).collect();
        from.insert(partition, offset);
        let Some(slice) = self.reader(topic, &from)?.poll(1)? else { return Ok(None) };
        let here = slice.parts().iter().any(|p| p.partition == partition && p.first == offset && p.rows == 1);
        if here { slice.decode(&Projection::all(slice.topic())).map(Some) } else { Ok(None) }
    }

    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        let state = self.state_of(topic)?;
        let (chunks, records, bytes, end) = {
            let extent = state.extent.lock();
            let records = extent.chunks.values().map(|c| u64::from(c.rows)).sum();
            let bytes = extent.chunks.values().map(|c| c.bytes).sum();
            (extent.chunks.len() as u64, records, bytes, extent.ends.clone())
        };
        let start = self.shared.pool.with(|conn| upkeep::starts(conn, state.id, &end))?;
        Ok(TopicStats { topic: topic.to_owned(), start, end, records, chunks, bytes })
    }

    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        let prefix = format!("{group}{}", sql::UNIT);
        let mut offsets = BTreeMap::new();
        let mut add = |key: &str, next: u64| {
            let place = key.strip_prefix(&prefix).and_then(|rest| rest.split_once(sql::UNIT));
            if let Some((topic, partition)) = place
                && let Ok(partition) = partition.parse()
            {
                offsets.insert((topic.to_owned(), PartitionId(partition)), Offset(next));
            }
        };
        for (key, next) in &self.shared.progress.lock().0 {
            add(key, *next);
        }
        for (key, value) in self.shared.pool.with(|conn| sql::list(conn, sql::space::OFFSET, &prefix))? {
            add(&key, value.try_into().map_or(0, u64::from_le_bytes));
        }
        Ok(offsets)
    }

    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        let committed = self.shared.pool.with(|conn| sql::list(conn, sql::space::OFFSET, ""))?;
        let progress = self.shared.progress.lock();
        let keys = committed.iter().map(|(key, _)| key).chain(progress.0.keys());
        let groups: BTreeSet<&str> = keys.filter_map(|key| key.split(sql::UNIT).next()).collect();
        Ok(groups.into_iter().map(str::to_owned).collect())
    }

    fn report_progress(&self, group: &str, topic: &str, positions: &Positions) -> Result<(), BrokerError> {
        if self.shared.queue.is_closed() {
            return Err(BrokerError::Closed);
        }
        let partitions = self.state_of(topic)?.spec().partitions;
        let mut progress = self.shared.progress.lock();
        for partition in (0..partitions).map(PartitionId) {
            let next = positions.get(&partition).map_or(0, |offset| offset.0);
            let key = dead::place_key(group, topic, partition);
            if progress.0.insert(key.clone(), next) != Some(next) {
                progress.1.insert(key);
            }
        }
        Ok(())
    }

    fn topology_state(&self, topology: &str) -> Result<TopologyState, BrokerError> {
        self.shared.pool.with(|conn| epoch::read_state(conn, topology))
    }

    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        Ok(Epoch(self.shared.last_epoch.load(Ordering::SeqCst)))
    }

    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        let (topology, outputs) = (topology.to_owned(), outputs.to_vec());
        self.task(move |writer| writer.reset_topology(&topology, &outputs, from))
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        Ok(self.state_of(topic)?.generation.load(Ordering::SeqCst))
    }

    fn append_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        let (answer, ticket) = Ticket::new();
        let append = Append { dead_letters: letters, ..Append::default() };
        let pending = self.prepare(append, prepare::Waiting::Unit(answer))?;
        self.shared.queue.push_append(pending)?;
        Ok(ticket)
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        self.shared.pool.with(|conn| dead::list(conn, filter))
    }

    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        let ids = ids.to_vec();
        self.task(move |writer| writer.transaction(|writer, _, _| dead::mark(&writer.conn, &ids, status)))
    }

    fn tells_changes(&self) -> bool {
        true
    }

    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError> {
        self.shared.pool.with(|conn| sql::get_number(conn, sql::space::LANE, producer))
    }

    fn wakeup(&self) -> &Wakeup {
        &self.shared.wakeup
    }

    fn close(&self) {
        self.shared.queue.close();
        self.shared.wakeup.bump();
        for thread in [&self.merger, &self.writer] {
            if let Some(thread) = thread.lock().take()
                && thread.join().is_err()
            {
                tracing::error!("a thread of the log ended by a panic");
            }
        }
        self.shared.pool.idle.lock().clear();
        self.lock.lock().take();
        self.shared.wakeup.bump();
    }
}

fn ends_as_position((partition, end): (usize, &u64)) -> (PartitionId, Offset) {
    (PartitionId(partition as u32), Offset(*end))
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.close();
    }
}
