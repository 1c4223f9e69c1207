//! The operator contract.
//!
//! There are two kinds. A [`Stateless`] operator turns rows into rows. A [`Keyed`] operator owns
//! state by key: the engine brings all rows of a key to one instance, applies epochs strictly in
//! order (R5), tells it at each epoch's end how far time has come, and takes what has changed.
//! Operators are plain objects: they know no clock, no IO, no timely, so the engine and the test
//! driver run the same objects.
//!
//! What is to come fits the same contract: hopping and session windows are keyed operators with
//! another assignment of windows; stream–stream joins are keyed operators with two inputs;
//! retractions are rows with an `_op` column, which operators that do not know it refuse at plan
//! time; Kafka transactions commit the same epoch; state in key groups moves by `snapshot` on one
//! worker and `restore` on another.

use arrow::array::RecordBatch;
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};

/// State is divided into so many key groups; a key's group is `hash % KEY_GROUPS`, and a worker
/// owns the groups for which `group % workers` is its index.
pub const KEY_GROUPS: u32 = 128;

/// UInt64: the hash of a row's key, the last column of what [`Operator::Keyed`]'s `prepare` gives.
pub const KEY_HASH: &str = "_key_hash";

/// Rows on an edge: one source topic's, in offset order within each partition.
///
/// Every batch begins with the columns [`ORIGIN_COLUMNS`]: `_partition`, `_offset`,
/// `_event_time`, `_watermark` (see `quikflow_topics::schema`), then what the edge's schema says.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Index in the topology's `sources`: where these rows (or what caused them) were read.
    pub source: u32,
    /// The columns.
    pub batch: RecordBatch,
}

/// The four columns that every edge carries first: where a row came from, when it happened, and
/// the watermark of its source partition as it was just before it (R1).
pub const ORIGIN_COLUMNS: [&str; 4] = ["_partition", "_offset", "_event_time", "_watermark"];

/// The fates of a step's input records (R20): `input` = the sum of the others + in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Records in.
    pub input: u64,
    /// Records that took effect, or went on.
    pub applied: u64,
    /// Records that a condition kept out, on purpose.
    pub filtered: u64,
    /// Records seen before.
    pub duplicate: u64,
    /// Records too late; each is in the late topic.
    pub late: u64,
    /// Records that failed; each is a dead letter.
    pub dead: u64,
    /// Rows out, counted apart: one record may yield many.
    pub output: u64,
}

/// A record that failed in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadRow {
    /// Index in the topology's `sources`.
    pub source: u32,
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
    /// `validation`, `expression`, …
    pub cause: &'static str,
    /// Machine-readable.
    pub code: String,
    /// The field at fault, if one is.
    pub path: Option<String>,
    /// For people.
    pub message: String,
    /// The row itself as JSON, where a step made it of many records and no topic holds it.
    pub row: Option<String>,
}

/// A record that came too late for its window; the engine copies the whole record to the late topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateRow {
    /// Index in the topology's `sources`.
    pub source: u32,
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
}

/// Where an operator puts what it yields.
#[derive(Debug, Default)]
pub struct Emit {
    /// (output port, rows).
    pub rows: Vec<(usize, Rows)>,
    /// Failures.
    pub dead: Vec<DeadRow>,
    /// Late records.
    pub late: Vec<LateRow>,
    /// Fates of the records taken in; operators add to it. `dead` and `late` are counted here too.
    pub counts: Counts,
    /// No topic holds the rows taken in: failures bear them.
    pub made: bool,
}

impl Emit {
    /// Puts rows on port 0 and counts them as output; empty batches are left out.
    pub fn push(&mut self, rows: Rows) {
        self.push_to(0, rows);
    }

    /// Puts rows on a port and counts them as output; empty batches are left out.
    pub fn push_to(&mut self, port: usize, rows: Rows) {
        if rows.batch.num_rows() > 0 {
            self.counts.output += rows.batch.num_rows() as u64;
            self.rows.push((port, rows));
        }
    }
}

/// A failure of the operator itself, not of one record: stops the process (restart is from the
/// last committed epoch).
#[derive(Debug, Clone, thiserror::Error)]
#[error("step `{step}`: {message}")]
pub struct OperatorError {
    /// The step's name.
    pub step: String,
    /// What happened.
    pub message: String,
}

/// Turns rows into rows, batch by batch.
pub trait Stateless: Send {
    /// Takes one batch. Records that fail become [`DeadRow`]s; the others go on.
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError>;
}

/// Time at the end of an epoch. All of it is recorded in the epoch, so a replay sees the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochTime {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Minimum watermark over all partitions of all sources that are not idle: closes windows.
    pub watermark: EventTime,
    /// The same per source, by its index.
    pub sources: Vec<EventTime>,
    /// Wall-clock time as recorded for this epoch, for `max_wait`.
    pub wall_clock: EventTime,
}

/// What an operator waits for; see [`Keyed::due`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The watermark at which it has something to do (a window's end + grace); `None`: at none.
    pub watermark: Option<EventTime>,
    /// The wall-clock time at which a wait (`max_wait`) is over; `None`: it does not wait.
    pub wall_clock: Option<EventTime>,
}

impl Due {
    /// The earlier of both, each on its own.
    #[must_use]
    pub fn earliest(self, other: Due) -> Due {
        let min = |a: Option<EventTime>, b: Option<EventTime>| a.into_iter().chain(b).min();
        Due { watermark: min(self.watermark, other.watermark), wall_clock: min(self.wall_clock, other.wall_clock) }
    }
}

/// Owns state by key. Call order per epoch: `on_rows`*, `on_epoch_end`, then `delta` or `snapshot`.
///
/// Rows of one epoch arrive sorted by (source, partition, offset) per batch; batches of different
/// partitions arrive in any order, so an outcome may depend on the order within a partition only.
pub trait Keyed: Send {
    /// Takes rows of input `input` (the index in the node's inputs), prepared: the last column is [`KEY_HASH`].
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn on_rows(&mut self, input: usize, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError>;

    /// The epoch is complete: close windows, release what waited, emit changed rows (R7).
    ///
    /// # Errors
    /// Only what no record is to blame for.
    fn on_epoch_end(&mut self, time: &EpochTime, emit: &mut Emit) -> Result<(), OperatorError>;

    /// What has changed since the last `delta` or `snapshot`; `None` when nothing has.
    fn delta(&mut self) -> Option<Vec<u8>>;

    /// The whole state; the next `delta` counts from here.
    fn snapshot(&mut self) -> Vec<u8>;

    /// Applies a delta or snapshot, in the order in which they were taken, keeping only keys whose
    /// group `owns` accepts. Pieces of several shards of another worker count may come, each
    /// shard's in order; a piece may never undo what another shard's piece brought.
    ///
    /// # Errors
    /// State that cannot be read.
    fn restore(&mut self, bytes: &[u8], snapshot: bool, owns: &dyn Fn(u32) -> bool) -> Result<(), OperatorError>;

    /// When this operator next has something to do by the passage of time alone: the engine makes
    /// no epoch without records before that. The default asks for every movement of time.
    fn due(&self) -> Due {
        Due { watermark: Some(EventTime::MIN), wall_clock: None }
    }

    /// Records taken in whose fate is still open (joins that wait).
    fn in_flight(&self) -> u64 {
        0
    }

    /// Bytes of memory held, roughly, for budgets and metrics.
    fn state_bytes(&self) -> usize;
}

/// A step, built for one worker.
pub enum Operator {
    /// Runs wherever the rows are.
    Stateless(Box<dyn Stateless>),
    /// `prepare` (one an input) runs where the rows are and keeps only the columns needed, with
    /// [`KEY_HASH`] as the last; rows then move to the worker that owns the key group. Filtered and
    /// dead records are counted by `prepare`, which counts no `input`, `applied` or `output` of its own.
    Keyed {
        /// One an input.
        prepare: Vec<Box<dyn Stateless>>,
        /// Owns the state.
        apply: Box<dyn Keyed>,
    },
}
