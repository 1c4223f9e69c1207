//! What the query side is given: stores to read, the broker, what the process knows of itself, limits.

use crate::relations::Relations;
use crate::sql::runtime::QueryRuntime;
use quikflow_sinks::runner::status::{Circuit, State};
use quikflow_sinks::store::{ReadSide, TableInfo};
use quikflow_topics::broker::{Broker, ResetFrom};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// One follower's distance from the end of one partition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LagRow {
    /// `topology:<name>` or `sink:<name>`.
    pub group: String,
    /// The topic it reads.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset it will read.
    pub position: u64,
    /// The next offset that will be written.
    pub end: u64,
    /// `end - position`.
    pub lag: u64,
}

/// The lag of everything that follows a topic.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LagReport {
    /// By group, topic and partition.
    pub rows: Vec<LagRow>,
    /// All lag is zero, and every closed window has reached its store.
    pub settled: bool,
    /// Records that came too late for a window (R20), by topology; those with none are left out.
    pub late: BTreeMap<String, u64>,
    /// Whether the stores answer, by sink.
    pub sinks: Vec<SinkHealth>,
}

/// Whether a sink's store answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SinkHealth {
    /// The sink.
    pub sink: String,
    /// Its store.
    pub store: String,
    /// What the sink is doing.
    #[serde(flatten)]
    pub state: State,
    /// Whether calls go through.
    pub circuit: Circuit,
}

/// How far a topology's output has come in event time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// The watermark of the topology that writes the topic: no record before it is awaited.
    pub watermark: Option<EventTime>,
    /// Windows that end at or before it are closed and in the store. None where unknown.
    pub closed: Option<EventTime>,
}

/// Whether a part of the process can do its work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartHealth {
    /// `broker`, `engine`, a sink's name, ….
    pub part: String,
    /// Works.
    pub ready: bool,
    /// For people; no secret.
    pub detail: String,
}

/// Why the process could not answer about itself.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IntrospectionError {
    /// No such topology; with the names there are.
    #[error("unknown topology `{name}`")]
    UnknownTopology {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// This process does not run that part.
    #[error("{0}")]
    NotHere(String),
    /// It was tried and failed; the message is for people.
    #[error("{0}")]
    Failed(String),
}

/// What only the process knows. `src` implements it over the engine and the sink runner.
#[async_trait::async_trait]
pub trait Introspection: Send + Sync {
    /// Lag of every topology and sink. Blocking.
    ///
    /// # Errors
    /// What the broker or a store answers.
    fn lag(&self) -> Result<LagReport, IntrospectionError>;
    /// The topologies as they run: an array of objects, each with at least `name` and `doc`.
    ///
    /// # Errors
    /// [`IntrospectionError::NotHere`] where the engine runs elsewhere.
    fn topologies(&self) -> Result<Vec<serde_json::Value>, IntrospectionError>;
    /// How far the rows of a table's topic have come.
    fn freshness(&self, table: &TableInfo) -> Freshness;
    /// The state of each part, for `/health/ready`.
    fn health(&self) -> Vec<PartHealth>;
    /// Everything measured, in Prometheus' text form.
    fn metrics(&self) -> String;
    /// Throws away a topology's state and output and rebuilds them; returns what was done.
    ///
    /// # Errors
    /// Unknown topology, engine elsewhere, storage errors.
    async fn reset(&self, topology: &str, from: ResetFrom) -> Result<serde_json::Value, IntrospectionError>;
}

/// Lag computed from the broker alone: committed and reported offsets against the ends of topics.
/// `settled` says only that all lag is zero.
///
/// # Errors
/// Storage errors.
pub fn lag_of_broker(broker: &dyn Broker) -> Result<LagReport, quikflow_topics::broker::BrokerError> {
    let mut ends: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for topic in broker.topics() {
        ends.insert(topic.name.clone(), broker.stats(&topic.name)?.end);
    }
    let mut rows = Vec::new();
    for group in broker.groups()? {
        let offsets = broker.group_offsets(&group)?;
        let topics: std::collections::BTreeSet<&String> = offsets.keys().map(|(topic, _)| topic).collect();
        for topic in topics {
            for (partition, end) in ends.get(topic).into_iter().flatten().enumerate() {
                let partition = u32::try_from(partition).unwrap_or(u32::MAX);
                let position = offsets.get(&(topic.clone(), PartitionId(partition))).copied().unwrap_or(Offset(0)).0;
                let lag = end.saturating_sub(position);
                rows.push(LagRow { group: group.clone(), topic: topic.clone(), partition, position, end: *end, lag });
            }
        }
    }
    let settled = rows.iter().all(|row| row.lag == 0);
    Ok(LagReport { rows, settled, ..LagReport::default() })
}

/// Bounds of the query side.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// Threads that run SQL and read whole views, of low priority; two at least, so that views do not wait behind SQL.
    pub threads: usize,
    /// Threads that read pages, of the process's priority.
    pub page_threads: usize,
    /// How long a SQL query may take, waiting included.
    pub sql_time: Duration,
    /// How long a view's answer may take; a whole view may be streamed to a slow reader.
    pub view_time: Duration,
    /// Bytes of memory for sorting, grouping and joining, each query.
    pub memory: usize,
    /// Rows of a SQL answer; more are cut and the answer says so.
    pub sql_rows: usize,
    /// Bytes of an answer that is collected before it is sent.
    pub result_bytes: usize,
    /// SQL queries that run at once.
    pub running: usize,
    /// SQL queries that wait; one more gets 429.
    pub queue: usize,
    /// Bytes of SQL text.
    pub sql_text: usize,
    /// Tokens of SQL text: bounds the depth of what is planned.
    pub sql_tokens: usize,
    /// Bytes of a request body.
    pub body: usize,
    /// Requests that follow changes at once.
    pub followers: usize,
}

impl Default for QueryLimits {
    fn default() -> QueryLimits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        QueryLimits {
            threads: (cores / 2).max(2),
            page_threads: (cores / 2).max(1),
            sql_time: Duration::from_secs(30),
            view_time: Duration::from_secs(600),
            memory: 128 << 20,
            sql_rows: 10_000,
            result_bytes: 32 << 20,
            running: 2,
            queue: 8,
            sql_text: 64 << 10,
            sql_tokens: 2_000,
            body: 256 << 10,
            followers: 1_000,
        }
    }
}

/// Everything that the query side reads from.
#[derive(Clone)]
pub struct QueryState {
    /// What sinks stored.
    pub read: ReadSide,
    /// Topics and dead letters.
    pub broker: Arc<dyn Broker>,
    /// What the process knows of itself.
    pub process: Arc<dyn Introspection>,
    /// Time.
    pub clock: SharedClock,
    /// Bounds.
    pub limits: Arc<QueryLimits>,
    /// All that can be read as a table.
    pub(crate) relations: Relations,
    /// Threads of its own.
    pub(crate) runtime: Arc<QueryRuntime>,
    /// Places of those who follow changes.
    pub(crate) followers: Arc<Semaphore>,
    /// Whether the process closes: answers without an end end then.
    pub(crate) closing: watch::Receiver<bool>,
}

impl QueryState {
    /// Starts the query threads.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn new(
        read: ReadSide,
        broker: Arc<dyn Broker>,
        process: Arc<dyn Introspection>,
        clock: SharedClock,
        limits: QueryLimits,
        closing: watch::Receiver<bool>,
    ) -> std::io::Result<QueryState> {
        let relations = Relations::new(read.tables.clone(), broker.clone(), process.clone());
        let runtime = Arc::new(QueryRuntime::start(&limits)?);
        let followers = Arc::new(Semaphore::new(limits.followers));
        Ok(QueryState { read, broker, process, clock, limits: Arc::new(limits), relations, runtime, followers, closing })
    }
}
