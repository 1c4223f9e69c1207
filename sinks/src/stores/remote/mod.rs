//! Real stores: what each of them has to be able to do, and all that they have in common.
//!
//! A real store holds the same rows as its embedded twin: hidden columns with versions, then the
//! visible ones. What a record does to a row is decided here ([`write`]) by the rules that the
//! twins use; the store only has to change a row *if* it still is what it was ([`Guard`]).
//!
//! * [`write`]: the write side over [`Backend::fetch`] and [`Backend::put`]
//! * [`read`]: the read side over [`Backend::page`]
//! * [`breadth`]: how many calls of a batch are under way at once
//! * [`address`]: a store's URL
//! * [`client`]: a store with its runtime: connecting, ensuring, the [`crate::store::Store`] side

pub(crate) mod address;
pub(crate) mod breadth;
pub(crate) mod client;
pub(crate) mod read;
pub(crate) mod write;

use super::layout::Layout;
use crate::changes::Hub;
use crate::store::{ItemOutcome, Page, ScanRequest, StoreError, WriteBatch};
use arrow::array::RecordBatch;
use quikflow_topics::ids::EventTime;
use rusqlite::types::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A row as a store holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// The key's text.
    pub(crate) key: String,
    /// Version of the record that made the row (of a merged row: of its newest `create`).
    pub(crate) base: i64,
    /// Whether readers do not see it.
    pub(crate) gone: bool,
    /// The newest arrival, in microseconds.
    pub(crate) arrival: i64,
    /// How often the row was changed: what a merge compares before it writes.
    pub(crate) revision: i64,
    /// Versions of columns, of merged rows.
    pub(crate) versions: Option<String>,
    /// Elements of sets, of merged rows.
    pub(crate) sets: Option<String>,
    /// The layout's columns, in order.
    pub(crate) values: Vec<Value>,
}

/// When a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Only over a row of a lower `base`, or none.
    Newer,
    /// Only where there is none.
    Absent,
    /// Only over a row of this revision; none: where there is none.
    Revision(Option<i64>),
}

/// A row to be written.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    /// The row.
    pub(crate) row: Stored,
    /// When.
    pub(crate) guard: Guard,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PutOutcome {
    /// Written.
    Done,
    /// The guard did not hold.
    Lost,
    /// The store will never take this row.
    Rejected {
        /// Machine-readable.
        code: String,
        /// For people.
        message: String,
    },
    /// Not now.
    Busy,
}

/// The order of a page of rows, and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Order {
    /// By key, after this one.
    ByKey(Option<String>),
    /// Newest first, of one time the greatest key first; after this place.
    Newest(Option<(i64, String)>),
}

/// Rows wanted.
#[derive(Clone, Debug)]
pub(crate) struct Select {
    /// (column, value): a list holds it, anything else is it.
    pub(crate) equals: Vec<(usize, Value)>,
    /// From this time on.
    pub(crate) from: Option<i64>,
    /// Before this time.
    pub(crate) to: Option<i64>,
    /// In this order.
    pub(crate) order: Order,
    /// At most so many.
    pub(crate) limit: usize,
}

/// A table's batches, one call each.
#[async_trait::async_trait]
pub(crate) trait Batches: Send {
    /// The next batch; none at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>, StoreError>;
}

/// What a cache says of a document.
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only Redis is a cache"))]
pub(crate) enum Looked {
    /// It is this.
    Kept(serde_json::Value),
    /// It is not there: whoever reads it from the store may put it at `place` by the lease.
    Missing { place: String, lease: u64 },
    /// It was changed a moment ago, or another one is reading it: the store knows, and nothing is kept.
    Changing,
}

/// Documents of stores other than itself, kept for a while (cache-aside). What it fails in costs time, not truth: a
/// document is never kept for longer than its sink's `cache`.
#[async_trait::async_trait]
pub(crate) trait Cache: Send + Sync {
    /// A sink's document by its key.
    async fn look(&self, sink: &str, key: &str) -> Result<Looked, StoreError>;
    /// Keeps a document for so long, where nobody has changed it since the lease was given.
    async fn fill(&self, place: &str, lease: u64, document: &serde_json::Value, keep: Duration) -> Result<(), StoreError>;
    /// The rows of these keys have been changed.
    async fn forget(&self, sink: &str, keys: &[String]) -> Result<(), StoreError>;
    /// All rows have been.
    async fn forget_all(&self, sink: &str) -> Result<(), StoreError>;
}

/// A real store. All calls run on the runtime of [`client::Remote`].
#[async_trait::async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// `mongodb`, `redis`, ….
    fn name(&self) -> &'static str;
    /// How many usual batches it likes to take as one ([`crate::store::Store::gathers`]).
    fn gathers(&self) -> u32 {
        1
    }
    /// Connects, checks the server and creates what all sinks share. Again is harmless.
    async fn prepare(&self) -> Result<(), StoreError>;
    /// Creates what a sink lacks.
    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError>;
    /// A stored note: progress and form of sinks.
    async fn note(&self, name: &str) -> Result<Option<String>, StoreError>;
    /// Stores a note, durably.
    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError>;
    /// The note of a sink's progress, when the sink begins or begins again.
    async fn begin(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.note(name).await
    }
    /// Stores a sink's progress, durably. `Forgot` where rows may be lost that were written since
    /// [`Backend::begin`].
    async fn advance(&self, name: &str, text: &str) -> Result<(), StoreError> {
        self.set_note(name, text).await
    }
    /// `Forgot` where a sink's progress, or rows written since [`Backend::begin`], may be lost.
    async fn remembers(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// Takes away all rows of a sink.
    async fn clear(&self, layout: &Layout) -> Result<(), StoreError>;
    /// Takes away rows that arrived before.
    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError>;
    /// The rows of these keys that are there, in any order.
    async fn fetch(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError>;
    /// Writes rows, each by its guard: durable when it returns. No key comes twice, so that up to `calls`
    /// calls may be under way at once.
    async fn put(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError>;
    /// A page of rows that readers see; more than `equals` asks for is allowed in no case.
    async fn page(&self, layout: &Layout, select: &Select) -> Result<Vec<Stored>, StoreError>;

    /// A note as reads see it: from a replica, that of the replica.
    async fn read_note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.note(name).await
    }

    /// Rows as reads see them.
    async fn read(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        self.fetch(layout, keys).await
    }

    /// Writes a batch, with up to `calls` calls under way at once.
    async fn write(&self, layout: &Layout, batch: &WriteBatch, calls: usize) -> Result<Vec<ItemOutcome>, StoreError> {
        write::rows(self, layout, batch, calls).await
    }

    /// Reads a table: columns by their place in the layout, in the order wanted.
    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError>;

    /// Full-text search in a sink's rows.
    async fn search(
        &self,
        layout: &Layout,
        _query: &str,
        _filter: &[(String, String)],
        _cursor: Option<&str>,
        _limit: usize,
    ) -> Result<Page, StoreError> {
        Err(StoreError::BadRequest(format!("table `{}` is in {}, which does not search", layout.sink.table, self.name())))
    }

    /// Whether it tells what changes in its tables.
    fn tells_changes(&self) -> bool {
        false
    }

    /// Tells the hub what changes in the tables of sinks (sink → table), for ever.
    async fn listen(self: Arc<Self>, _tables: BTreeMap<String, String>, _hub: Arc<Hub>) {}

    /// Whether tables of counts (`mode = "count"`) are served.
    fn counts(&self) -> bool {
        false
    }

    /// How many visible rows of a user have no read mark.
    async fn unread(&self, layout: &Layout, _user: &str) -> Result<u64, StoreError> {
        Err(no_counts(self.name(), layout))
    }

    /// Marks a row as read, whether or not it is here yet.
    async fn mark(&self, layouts: &[Arc<Layout>], _user: &str, _key: &str) -> Result<(), StoreError> {
        layouts.first().map_or(Ok(()), |layout| Err(no_counts(self.name(), layout)))
    }

    /// Every user that has a row, with the number of unread ones.
    async fn all_unread(&self, layout: &Layout) -> Result<Vec<(String, u64)>, StoreError> {
        Err(no_counts(self.name(), layout))
    }
}

/// What a sink of counts is told by a store that keeps none.
pub(crate) fn no_counts(store: &'static str, layout: &Layout) -> StoreError {
    let message = format!("sink `{}` counts unread rows, which only redis and the embedded stores do", layout.sink.name);
    StoreError::Refused { store, message }
}

/// The setting a store's URL comes from, for messages.
pub(crate) fn setting(store: &str) -> String {
    format!("QUIKFLOW_{}_URL", store.to_uppercase())
}

/// A refusal that names the setting to look at.
pub(crate) fn refused(store: &'static str, what: impl std::fmt::Display) -> StoreError {
    StoreError::Refused { store, message: format!("{what}; look at {}", setting(store)) }
}

/// No server answers where the setting says that one is: it is away, or the setting is wrong.
pub(crate) fn unreachable(store: &'static str, what: impl std::fmt::Display) -> StoreError {
    unavailable(store, format!("{what}; it will be tried again, look at {} if it never answers", setting(store)))
}

/// What is said of a file of authorities that holds none.
#[cfg(any(feature = "elasticsearch", feature = "clickhouse"))]
pub(crate) const NOT_PEM: &str = "the file that `ca` in the URL names holds no certificate (PEM)";

/// A refusal where an error, or what caused it, is about the server's certificate.
#[cfg(any(feature = "elasticsearch", feature = "clickhouse"))]
pub(crate) fn distrusted(store: &'static str, error: &(dyn std::error::Error + 'static)) -> Option<StoreError> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let words = causes.find_map(|cause| Some(cause.to_string()).filter(|text| text.contains("certificate")))?;
    let words: String = words.chars().take(300).collect();
    Some(refused(
        store,
        format!("TLS: {words} (certificates of public authorities are trusted, and those of `?ca=FILE` in the URL)"),
    ))
}

/// Trying again may help.
pub(crate) fn unavailable(store: &'static str, what: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { store, message: what.to_string(), retry_after: None }
}
