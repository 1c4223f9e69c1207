//! The contract of a store.
//!
//! Write side: a batch of records of one sink, written idempotently: rows are identified by the
//! sink's key, and of two versions the higher stays, whatever the order in which they come (R13).
//! Read side: every table can be scanned as Arrow batches (views, SQL); stores that answer more
//! (search, one channel's messages) have a trait for it.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use quikflow_topics::broker::Positions;
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::ids::EventTime;
use std::sync::Arc;
use std::time::Duration;

/// What went wrong in a store as a whole; what one row is to blame for is an [`ItemOutcome`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Down, slow, busy: try the same batch again. With the store's own hint when it gave one.
    #[error("{store} does not answer: {message}")]
    Unavailable {
        /// The store.
        store: &'static str,
        /// What happened; never a secret.
        message: String,
        /// The store's own word on when.
        retry_after: Option<Duration>,
    },
    /// Trying again will not help: wrong password, wrong schema, read-only.
    #[error("{store} refuses: {message}")]
    Refused {
        /// The store.
        store: &'static str,
        /// What happened and which setting to look at; never a secret.
        message: String,
    },
    /// The server was started anew since the sink read its progress, and may have lost what it had
    /// acknowledged: read the progress again and go on from there.
    #[error("{store} was started anew and may have forgotten rows: the sink goes on from its stored offsets")]
    Forgot {
        /// The store.
        store: &'static str,
    },
    /// The caller asked for what is not there or not allowed.
    #[error("{0}")]
    BadRequest(String),
}

/// What became of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemOutcome {
    /// Written.
    Written,
    /// The store holds this or a newer version.
    Older,
    /// This row will never be taken: it becomes a dead letter.
    Rejected {
        /// Machine-readable.
        code: String,
        /// For people.
        message: String,
    },
    /// Not now: the runner tries this row again.
    Busy,
}

/// Records of one sink, in order within each partition.
#[derive(Clone, Debug)]
pub struct WriteBatch {
    /// The sink.
    pub sink: Arc<SinkSpec>,
    /// The topic's whole schema.
    pub rows: RecordBatch,
    /// The topic's generation: together with the offset the version of a row (R13). Rows of a lower
    /// generation are older than any of a higher one.
    pub generation: u64,
    /// Where the sink stands when these rows are written; stored with them.
    pub next: Positions,
}

/// What a sink has stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SinkProgress {
    /// The next offset to read, by partition.
    pub positions: Positions,
    /// The generation of the topic these belong to.
    pub generation: u64,
}

/// The write side.
#[async_trait::async_trait]
pub trait Store: Send + Sync {
    /// `analytics`, `messages`, `search`, `audit`, `badges`, `outbox`, `users`, or the real store's name.
    fn name(&self) -> &'static str;
    /// Creates what is missing for a sink: table, index, mapping.
    async fn ensure(&self, sink: &SinkSpec, topic: &TopicSpec) -> Result<(), StoreError>;
    /// How far a sink has come.
    async fn progress(&self, sink: &str) -> Result<SinkProgress, StoreError>;
    /// Writes a batch, and `next` with it: durable when it returns. One outcome a row, in order.
    /// `next` is stored only when every row is `Written` or `Older`: a rejected row must be a dead
    /// letter before the offset passes it (R14). Otherwise the good rows are written, and the runner
    /// comes again with the busy rows, or with none, to store `next`.
    async fn write(&self, batch: WriteBatch) -> Result<Vec<ItemOutcome>, StoreError>;
    /// Whether the store still holds what it acknowledged to this sink since [`Store::progress`]: `Forgot`
    /// where it may not. Asked now and then.
    async fn remembers(&self, _sink: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// Forgets a sink's rows and progress (a reset topic's rows are of a new generation).
    async fn clear(&self, sink: &str) -> Result<(), StoreError>;
    /// Housekeeping: merges, time-to-live counted from arrival. Called every few seconds.
    async fn maintain(&self, now: EventTime) -> Result<(), StoreError>;
    /// How many usual batches it likes to take as one, where rows are plenty; more than 1: what a
    /// batch costs depends on its rows less than on the pages that it touches.
    fn gathers(&self) -> u32 {
        1
    }
    /// Whether other processes may write it too: then they share its sinks.
    fn is_shared(&self) -> bool {
        false
    }
}

/// A table that can be read.
#[derive(Clone, Debug)]
pub struct TableInfo {
    /// The view's or table's name.
    pub name: String,
    /// What it holds; from the sink's `doc`.
    pub doc: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// The columns that identify a row.
    pub key: Vec<String>,
    /// The column a time range applies to: `window_start`, `event_time`, ….
    pub time_column: Option<String>,
    /// The boolean column that says whether a row is final (R7), where rows can be open.
    pub final_column: Option<String>,
    /// How columns roll up (R21): column → `sum`, `min`, `max`.
    pub rollup: std::collections::BTreeMap<String, String>,
    /// The topic the sink follows.
    pub topic: String,
    /// The sink.
    pub sink: String,
}

/// What of a table is wanted.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    /// Columns in the order wanted; `None` for all.
    pub columns: Option<Vec<String>>,
    /// Rows whose time column is not before.
    pub from: Option<EventTime>,
    /// Rows whose time column is before.
    pub to: Option<EventTime>,
    /// A hint: column = text, exact.
    pub equals: Vec<(String, String)>,
}

/// The read side that every store has: one consistent read, at one `as_of`.
pub trait Tables: Send + Sync {
    /// What can be read.
    fn tables(&self) -> Vec<TableInfo>;
    /// Reads a table: batches of at most some thousand rows, produced as they are taken. Rows may be
    /// more than `equals` asks for (a hint), never fewer. Blocking: call it off the async threads.
    ///
    /// # Errors
    /// Unknown table, storage errors.
    fn scan(&self, table: &str, request: &ScanRequest) -> Result<Scan, StoreError>;
}

/// The batches of a scan.
pub type BatchIter = Box<dyn Iterator<Item = Result<RecordBatch, StoreError>> + Send>;

/// A running scan.
pub struct Scan {
    /// The schema of the batches.
    pub schema: SchemaRef,
    /// The next offset, by partition, of the followed topic that the answer reflects.
    pub as_of: Positions,
    /// The batches.
    pub batches: BatchIter,
}

/// A page of documents, each a JSON object.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The documents.
    pub items: Vec<serde_json::Value>,
    /// Give this back to get the next page.
    pub cursor: Option<String>,
}

/// Documents by key: one channel's messages, one user's notifications, the audit log.
#[async_trait::async_trait]
pub trait Documents: Send + Sync {
    /// One document of `table` by its id: the key's values joined by U+001F, or by `/`. Every document
    /// names its own id in `_id`.
    async fn get(&self, table: &str, id: &str) -> Result<Option<serde_json::Value>, StoreError>;
    /// Documents of `table` for which every (field, value) holds, newest first by event time.
    async fn list(
        &self,
        table: &str,
        equals: &[(String, String)],
        from: Option<EventTime>,
        to: Option<EventTime>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;
}

/// Full-text search.
#[async_trait::async_trait]
pub trait Search: Send + Sync {
    /// Messages that hold all words of `query` ("quoted phrases" in order), best first. Each item is
    /// the message with `score` and `highlights` (list of fragments, matches within `<em>…</em>`, the
    /// rest escaped). `filter`: field = value.
    async fn search(
        &self,
        query: &str,
        filter: &[(String, String)],
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;
}

/// A user's notifications: how many are unread; marking one as read is the one write that the query
/// side has a right to. The notifications themselves are [`Documents`] of the table `notifications`,
/// each with `read` (bool) and `_id`, which `mark_read` takes.
#[async_trait::async_trait]
pub trait NotificationInbox: Send + Sync {
    /// How many unread.
    async fn badge(&self, user: &str) -> Result<u64, StoreError>;
    /// Marks a notification of `user` as read, durably; again is harmless. False: there is no such
    /// notification (yet): nothing was marked.
    async fn mark_read(&self, user: &str, id: &str) -> Result<bool, StoreError>;
}

/// Which store serves a sink: what the runner asks.
pub trait StoreSet: Send + Sync {
    /// The store of a sink.
    ///
    /// # Errors
    /// `Refused` when no store of that name is there; the message says which are.
    fn store_of(&self, sink: &SinkSpec) -> Result<Arc<dyn Store>, StoreError>;
    /// Whether another process has the store of a sink, which is only read here.
    fn is_elsewhere(&self, _sink: &SinkSpec) -> bool {
        false
    }
    /// All stores, for housekeeping.
    fn all(&self) -> Vec<Arc<dyn Store>>;
}

/// The read sides of all stores, as `query-api` gets them.
#[derive(Clone)]
pub struct ReadSide {
    /// Every table of every store, for views and SQL.
    pub tables: Arc<dyn Tables>,
    /// Documents by key.
    pub documents: Arc<dyn Documents>,
    /// Full-text search.
    pub search: Arc<dyn Search>,
    /// Notifications and badges.
    pub inbox: Arc<dyn NotificationInbox>,
    /// What changes in tables.
    pub changes: Arc<dyn crate::changes::Changes>,
    /// Whether the embedded stores are another process's, which is asked for what is in them.
    pub elsewhere: bool,
}
