//! The contract of a broker: append durably, read in order, commit an epoch atomically.
//!
//! Three kinds of callers: the door appends records ([`Append`]); the engine reads slices, and
//! commits an epoch ([`EpochCommit`]) whose outputs, state, time, counters and source offsets
//! become visible together or not at all; sinks read and keep their offsets in their own store.
//!
//! Delivery guarantee: an [`Appended`] answer means durable. `commit_epoch` is atomic on brokers
//! whose [`Guarantee`] is `ExactlyOnce`; on others outputs carry deterministic ids.

pub use crate::epoch::{EpochCommit, StateKind, StatePiece, TopologyFigures, TopologyState};
pub use crate::wait::{Answer, Ticket, Wakeup};

use crate::catalogue::TopicSpec;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use crate::ids::{Epoch, EventTime, Offset, PartitionId};
use crate::share::{Membership, ShareHolder, Work};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What went wrong in a broker.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// The queue of appends is full: try again after this long. Nothing was written.
    #[error("the log is busy, try again in {0:?}")]
    Busy(Duration),
    /// The log has reached its size limit: nothing is taken until retention frees room.
    #[error("the log has reached its limit of {limit} bytes, raise it or shorten a topic's retention")]
    Full {
        /// The limit in bytes.
        limit: u64,
    },
    /// No such topic.
    #[error("unknown topic `{0}`")]
    UnknownTopic(String),
    /// The same id came with another content (R16): nothing was written. Row index within the append.
    #[error("id `{id}` was accepted before with another content")]
    IdConflict {
        /// Row in the append, counted over its `rows` in order.
        row: usize,
        /// The client's id.
        id: String,
    },
    /// A lane's batch came before the one that precedes it (R17); send the earlier one first.
    #[error("lane `{producer}` expects line {expected} next, got a batch that follows line {previous}")]
    OutOfSequence {
        /// The producer.
        producer: String,
        /// The highest line accepted so far.
        expected: u64,
        /// What the batch says precedes it.
        previous: u64,
    },
    /// A stored chunk does not match its checksum, or cannot be read.
    #[error("the log is damaged: {0}; run `quikflow verify`")]
    Corrupt(String),
    /// The directory belongs to another process.
    #[error("{0}")]
    Owned(String),
    /// The disk or the database refused.
    #[error("the log cannot be written or read: {0}")]
    Storage(String),
    /// The disk is full or does not answer at the moment; nothing was written, and it may go again later.
    #[error("the log cannot be written or read now: {0}")]
    Unavailable(String),
    /// The broker is shutting down.
    #[error("the log is closed")]
    Closed,
}

/// Rows for one topic, in [`TopicSpec::append_schema`].
#[derive(Clone, Debug)]
pub struct TopicRows {
    /// Where to.
    pub topic: Arc<TopicSpec>,
    /// What.
    pub rows: RecordBatch,
}

/// A bulk producer's place (R17). Lanes order the log: a batch is applied only after the batch
/// that ends at `previous`; one that comes early waits a little, then gets `OutOfSequence`.
#[derive(Clone, Debug)]
pub struct Lane {
    /// File fingerprint and run token.
    pub producer: String,
    /// The line that ends the batch before this one; 0 at the start.
    pub previous: u64,
    /// The last line of this batch, whether it yielded a record or was refused.
    pub last: u64,
}

/// What the door appends in one transaction: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// Rows by topic. Rows with a `_id` are deduplicated within (principal, type, id) (R16).
    pub rows: Vec<TopicRows>,
    /// For each element of `rows`, each row's line number in the lane (ascending); empty without a lane.
    pub lines: Vec<Vec<u64>>,
    /// Who sends: the scope of ids; empty on an open loopback door.
    pub principal: String,
    /// The lane of a bulk producer.
    pub lane: Option<Lane>,
    /// Rejects to be kept with it; taken once by id.
    pub dead_letters: Vec<DeadLetter>,
    /// Whether [`Appended::positions`] is wanted.
    pub want_positions: bool,
    /// The rows are of several senders' requests: an id that came with another content refuses its
    /// row alone ([`Appended::conflicts`]), not the append.
    pub apart: bool,
}

/// The durable answer to an [`Append`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Rows written now.
    pub accepted: u64,
    /// Rows that were there already (by id or lane).
    pub duplicates: u64,
    /// Rows have ids, and this broker does not look ids up (R18): there may be more duplicates.
    pub duplicates_unknown: bool,
    /// Per element of `rows`, per row: its place (of a duplicate by id: the first one's, where
    /// known). Empty unless asked for.
    pub positions: Vec<Vec<Option<(PartitionId, Offset)>>>,
    /// Per element of `rows`: the rows that were there already, ascending. Empty unless positions
    /// were asked for.
    pub repeated: Vec<Vec<u32>>,
    /// Rows not written because their id came before with another content; only of an append whose
    /// rows stand apart.
    pub conflicts: Vec<Conflict>,
    /// The lane's highest accepted line after this append.
    pub lane_line: u64,
}

/// A row refused for its id (R16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The element of [`Append::rows`].
    pub set: usize,
    /// Its row.
    pub row: u32,
    /// The client's id.
    pub id: String,
}

/// Offsets a reader stands at: the next offset to read, by partition. Absent: the earliest.
pub type Positions = BTreeMap<PartitionId, Offset>;

/// Which columns to decode, by name (system names or fields). `_partition` and `_offset` cost nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Column names in the order wanted; a field declared later than a chunk is read from its `_rest`.
    pub columns: Vec<String>,
    /// The schema of the decoded batch, same order.
    pub schema: SchemaRef,
}

impl Projection {
    /// All columns of `topic`.
    pub fn all(topic: &TopicSpec) -> Projection {
        let schema = topic.schema();
        Projection { columns: schema.fields().iter().map(|f| f.name().clone()).collect(), schema }
    }

    /// The columns of `topic` named, in that order; names the topic does not have are left out.
    pub fn of(topic: &TopicSpec, names: &[&str]) -> Projection {
        let schema = topic.schema();
        let fields: Vec<_> = names.iter().filter_map(|n| schema.field_with_name(n).ok().cloned()).collect();
        Projection {
            columns: fields.iter().map(|f| f.name().clone()).collect(),
            schema: Arc::new(arrow::datatypes::Schema::new(fields)),
        }
    }
}

/// One partition's share of a slice: a run of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlicePart {
    /// The partition.
    pub partition: PartitionId,
    /// Offset of its first row.
    pub first: Offset,
    /// Offset after its last row (`first + rows` unless the topic is compacted).
    pub next: Offset,
    /// Number of rows.
    pub rows: u32,
    /// Largest event time of these rows.
    pub max_event_time: EventTime,
    /// Largest arrival time of these rows.
    pub max_arrival_time: EventTime,
}

/// A run of records of one topic in commit order, not decoded yet. Rows are sorted by partition,
/// then offset; `parts` says how many rows each partition has.
pub trait Slice: Send + Sync {
    /// The topic.
    fn topic(&self) -> &Arc<TopicSpec>;
    /// Runs by partition, ascending.
    fn parts(&self) -> &[SlicePart];
    /// Sum of the parts' rows.
    fn rows(&self) -> usize {
        self.parts().iter().map(|p| p.rows as usize).sum()
    }
    /// Stored bytes, for budgets.
    fn bytes(&self) -> usize;
    /// Decodes the columns wanted, and no others. May be called from any thread. Records that are none
    /// of the topic (others write it too, R18) are left out; each is a dead letter.
    ///
    /// # Errors
    /// [`BrokerError::Corrupt`] when a checksum fails.
    fn decode(&self, projection: &Projection) -> Result<RecordBatch, BrokerError>;
    /// The same with a row for every record, as `parts` counts them, and which rows say nothing.
    ///
    /// # Errors
    /// As [`Slice::decode`].
    fn decode_all(&self, projection: &Projection) -> Result<(RecordBatch, Vec<u32>), BrokerError> {
        self.decode(projection).map(|rows| (rows, Vec::new()))
    }
}

/// Reads one topic from given positions, in the order of commits.
pub trait TopicReader: Send {
    /// The next slice of at most `max_rows` rows, or `None` at the end of the log (for now).
    ///
    /// # Errors
    /// Storage errors.
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError>;
    /// The next offset to read of each partition.
    fn positions(&self) -> Positions;
}

/// Where a reset topology starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetFrom {
    /// The earliest record kept.
    Earliest,
    /// Only what comes from now on.
    Latest,
}

/// What a broker promises of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Outputs, state and offsets commit together.
    ExactlyOnce,
    /// Outputs may repeat after a crash; they carry deterministic ids.
    AtLeastOnceDeterministic,
}

/// A topic's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TopicStats {
    /// The topic.
    pub topic: String,
    /// Earliest offset kept, by partition.
    pub start: Vec<u64>,
    /// Next offset to be written, by partition.
    pub end: Vec<u64>,
    /// Records kept.
    pub records: u64,
    /// Chunks kept.
    pub chunks: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// A broker. All methods may be called from any thread; those that return a [`Ticket`] do not block.
pub trait Broker: Send + Sync + 'static {
    /// `embedded`, `kafka`, `fluvio`.
    fn name(&self) -> &'static str;
    /// What an epoch's commit promises here.
    fn guarantee(&self) -> Guarantee;
    /// Creates missing topics; remembers their specs. Called at start with all declared and derived topics.
    ///
    /// # Errors
    /// A changed partition count or column type of a topic that has records.
    fn ensure_topics(&self, topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError>;
    /// A known topic.
    fn topic(&self, name: &str) -> Option<Arc<TopicSpec>>;
    /// All known topics, by name.
    fn topics(&self) -> Vec<Arc<TopicSpec>>;
    /// Appends; the ticket is answered when it is durable.
    ///
    /// # Errors
    /// `Busy` and `Full` at once, without queueing.
    fn append(&self, append: Append) -> Result<Ticket<Appended>, BrokerError>;
    /// Commits an epoch; epochs are applied in the order of these calls.
    ///
    /// # Errors
    /// `Closed`.
    fn commit_epoch(&self, commit: EpochCommit) -> Result<Ticket<()>, BrokerError>;
    /// A reader of `topic` from `from`.
    ///
    /// # Errors
    /// `UnknownTopic`, storage errors.
    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError>;
    /// A reader of some partitions of `topic`; one that cannot leave out the others reads them too.
    ///
    /// # Errors
    /// As [`Broker::reader`].
    fn reader_of(&self, topic: &str, from: &Positions, _partitions: &[PartitionId]) -> Result<Box<dyn TopicReader>, BrokerError> {
        self.reader(topic, from)
    }
    /// One record in the topic's whole schema (one row), or none where it is gone.
    ///
    /// # Errors
    /// Storage errors.
    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError>;
    /// Records that retention took before this process had read them, by topic.
    fn lost(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
    /// A topic's figures.
    ///
    /// # Errors
    /// `UnknownTopic`, storage errors.
    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError>;
    /// Whether one of the partitions of `from` may still show a record, from that offset on, that was
    /// written before this call: one too that nobody is shown yet, since its transaction is open or ends in
    /// one partition after the other. `at_end`: a reader found the end of the log behind these offsets.
    ///
    /// # Errors
    /// As [`Broker::stats`].
    fn unread(&self, topic: &str, from: &Positions, at_end: bool) -> Result<bool, BrokerError> {
        if at_end {
            return Ok(false);
        }
        let stats = self.stats(topic)?;
        let at = |list: &[u64], partition: &PartitionId| list.get(partition.0 as usize).copied().unwrap_or(0);
        Ok(from.iter().any(|(partition, next)| next.0.max(at(&stats.start, partition)) < at(&stats.end, partition)))
    }
    /// Whether the wakeup moves when a dead letter's status changes, whoever changes it: then nobody needs to look
    /// again by the clock.
    fn tells_changes(&self) -> bool {
        false
    }
    /// Whether the brokers answer: silence of one that does not is no end of the log (R2).
    fn answers(&self) -> bool {
        true
    }
    /// Committed offsets of a consumer group: (topic, partition) → next offset.
    ///
    /// # Errors
    /// Storage errors.
    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError>;
    /// Figures of topologies as of their last committed epochs, over all shares of each; empty where one
    /// process has all of them and knows by itself.
    ///
    /// # Errors
    /// Storage errors.
    fn topology_figures(&self) -> Result<BTreeMap<String, TopologyFigures>, BrokerError> {
        Ok(BTreeMap::new())
    }
    /// All groups that have committed or registered.
    ///
    /// # Errors
    /// Storage errors.
    fn groups(&self) -> Result<Vec<String>, BrokerError>;
    /// A follower with offsets of its own (a sink) says how far it has come: retention never passes
    /// the slowest registered group (R10). Lower than the truth is safe.
    ///
    /// # Errors
    /// `Closed`.
    fn report_progress(&self, group: &str, topic: &str, positions: &Positions) -> Result<(), BrokerError>;
    /// What a topology's last committed epoch left.
    ///
    /// # Errors
    /// Storage errors.
    fn topology_state(&self, topology: &str) -> Result<TopologyState, BrokerError>;
    /// The last committed epoch; 0 when there was none.
    ///
    /// # Errors
    /// Storage errors.
    fn last_epoch(&self) -> Result<Epoch, BrokerError>;
    /// Into how many shares the work is divided (R19); 1: one process does all of it.
    fn shares(&self, _work: Work) -> u32 {
        1
    }
    /// Joins the processes that share the work; `holder` hears which shares fall to this one. None
    /// where one process does all of it.
    ///
    /// # Errors
    /// Storage errors.
    fn join(&self, _work: Work, _holder: Arc<dyn ShareHolder>) -> Result<Option<Box<dyn Membership>>, BrokerError> {
        Ok(None)
    }
    /// Makes this process the one that commits epochs of `shares` from here on, and reads what their
    /// last epochs left; returns the last of these epochs.
    ///
    /// # Errors
    /// Storage errors.
    fn take_over(&self, _shares: &[u32]) -> Result<Epoch, BrokerError> {
        self.last_epoch()
    }
    /// Throws away a topology's state, meta and offsets, and the records of the topics given, whose
    /// generation goes up (R13); it starts anew at `from`. Dead letters of its steps whose records it
    /// reads again are forgotten.
    ///
    /// # Errors
    /// Storage errors.
    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError>;
    /// How often a topic was reset.
    ///
    /// # Errors
    /// Storage errors.
    fn generation(&self, topic: &str) -> Result<u64, BrokerError>;
    /// Stores dead letters, each id once; durable when answered.
    ///
    /// # Errors
    /// `Busy`, `Full`, `Closed`.
    fn append_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError>;
    /// Lists dead letters with their listing number (`seq`), newest first.
    ///
    /// # Errors
    /// Storage errors.
    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError>;
    /// Sets the status of dead letters; returns how many there were.
    ///
    /// # Errors
    /// Storage errors.
    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError>;
    /// The highest accepted line of a lane (R17); 0 when it is new.
    ///
    /// # Errors
    /// Storage errors.
    fn lane_line(&self, producer: &str) -> Result<u64, BrokerError>;
    /// Moves with each commit.
    fn wakeup(&self) -> &Wakeup;
    /// Writes what is queued and closes. Later calls answer `Closed`.
    fn close(&self);
}
