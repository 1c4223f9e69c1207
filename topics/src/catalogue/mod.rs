//! The catalogue: topics, event types and sinks, declared once in `topologies.toml`.
//!
//! From this one declaration come validation at ingest, the Arrow schema of each topic, JSON
//! Schema and OpenAPI documents, the stores' tables and the dead letters' error codes.
//! A topic's columns are the union of its event types' fields; one name has one type in a topic
//! (R12).

pub mod json_schema;
pub mod parse;

use crate::schema;
use arrow::datatypes::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The type of a declared field. The name in the file is in the comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// `string` → Utf8
    String,
    /// `int` → Int64
    Int,
    /// `float` → Float64
    Float,
    /// `bool` → Boolean
    Bool,
    /// `timestamp` (RFC 3339) → Timestamp(µs, UTC)
    Timestamp,
    /// `list<string>` → List<Utf8>
    StringList,
    /// `json`: any JSON value, kept as canonical text → Utf8
    Json,
}

/// A declared field of an event's payload, with its rules.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldSpec {
    /// As it stands in the payload.
    pub name: String,
    /// Its type.
    pub ty: FieldType,
    /// May be absent or null.
    pub optional: bool,
    /// Fewest characters (string) or items (list).
    pub min_length: Option<u64>,
    /// Most characters (string), items (list); of `json`: bytes of text.
    pub max_length: Option<u64>,
    /// Smallest number.
    pub min: Option<f64>,
    /// Largest number.
    pub max: Option<f64>,
    /// The only values allowed, if any are given.
    pub one_of: Vec<String>,
}

impl FieldSpec {
    /// A required field without rules.
    pub fn new(name: impl Into<String>, ty: FieldType) -> FieldSpec {
        FieldSpec {
            name: name.into(),
            ty,
            optional: false,
            min_length: None,
            max_length: None,
            min: None,
            max: None,
            one_of: Vec::new(),
        }
    }
}

/// An event type.
#[derive(Clone, Debug, PartialEq)]
pub struct EventSpec {
    /// `MESSAGE_SENT`
    pub name: String,
    /// The topic its records go to.
    pub topic: String,
    /// The payload fields whose texts, joined by U+001F, are the record's key.
    pub key: Vec<String>,
    /// For documents; may be empty.
    pub doc: String,
    /// The payload's fields in the order declared.
    pub fields: Vec<FieldSpec>,
}

/// What happens to old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Whole chunks go when `retention` has passed since their arrival.
    Delete,
    /// The newest record of each key stays.
    Compact,
    /// Records go once the topology that reads them has committed; no declared topic is such.
    Consumed,
}

/// Whose records a topic holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicKind {
    /// Events from the door; expressions name fields `payload.x`.
    Events,
    /// Rows that a topology wrote; expressions name columns bare.
    Rows,
}

/// A topic: declared in the file, or derived from a topology's output.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSpec {
    /// `QuikApp.messages`
    pub name: String,
    /// Events or rows.
    pub kind: TopicKind,
    /// For documents; may be empty.
    pub doc: String,
    /// How many partitions.
    pub partitions: u32,
    /// Age counted from arrival (R10) at which records may go.
    pub retention: Option<Duration>,
    /// Delete or compact.
    pub cleanup: Cleanup,
    /// How far behind the newest record of its partition a record may be without being late (R1).
    pub disorder: Duration,
    /// A partition silent for so long no longer holds windows open (R2).
    pub idle_after: Duration,
    /// Records that arrive later than this after their event time are a replay, never live (R2).
    pub live_within: Duration,
    /// How far in the future an event time may lie at arrival (R3).
    pub future_within: Duration,
    /// All fields of the topic's event types (or the columns of the rows), each name once.
    pub fields: Vec<FieldSpec>,
}

impl TopicSpec {
    /// A topic with the defaults: one day's disorder is 0, see each field.
    pub fn new(name: impl Into<String>, kind: TopicKind) -> TopicSpec {
        TopicSpec {
            name: name.into(),
            kind,
            doc: String::new(),
            partitions: 12,
            retention: None,
            cleanup: Cleanup::Delete,
            disorder: Duration::from_secs(5),
            idle_after: Duration::from_secs(10),
            live_within: Duration::from_secs(300),
            future_within: Duration::from_secs(300),
            fields: Vec::new(),
        }
    }

    /// The whole Arrow schema: system columns, then fields. See [`schema`].
    pub fn schema(&self) -> SchemaRef {
        schema::full_schema(&self.fields)
    }

    /// The Arrow schema of rows to be appended: no partition, offset or arrival time yet.
    pub fn append_schema(&self) -> SchemaRef {
        schema::append_schema(&self.fields)
    }

    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&FieldSpec> {
        self.fields.iter().find(|f| f.name == name)
    }
}

/// A sink: the topic it follows and the store that holds what it writes.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkSpec {
    /// Unique; its consumer group is `sink:<name>`.
    pub name: String,
    /// The topic it follows.
    pub from: String,
    /// `mongodb`, `elasticsearch`, `clickhouse`, `redis`, `mysql`, `audit`, `outbox`: the embedded
    /// twin serves where no URL is configured.
    pub store: String,
    /// Table, collection or index; the view's name for `clickhouse`.
    pub table: String,
    /// The columns that identify a row; with them the topic's key is determined (R13).
    pub key: Vec<String>,
    /// Only records for which this SQL expression is true, if given.
    pub filter: Option<String>,
    /// Time-to-live counted from arrival.
    pub ttl: Option<Duration>,
    /// So long at most a document that was read by its key is kept in Redis; each change forgets it.
    pub cache: Option<Duration>,
    /// How each column of a view rolls up (R21): column → `sum`, `min`, `max`; absent: not at all.
    pub rollup: BTreeMap<String, String>,
    /// For documents; may be empty.
    pub doc: String,
    /// What is particular to the store, as written in the file.
    pub options: toml::Table,
    /// Where the sink stands in the file, for mistakes found later.
    pub span: std::ops::Range<usize>,
}

/// All that is declared about records.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By name; declared and derived.
    pub topics: BTreeMap<String, Arc<TopicSpec>>,
    /// By event type.
    pub events: BTreeMap<String, Arc<EventSpec>>,
    /// In the order of the file.
    pub sinks: Vec<Arc<SinkSpec>>,
}

impl Catalogue {
    /// The event types of a topic, by name.
    pub fn events_of<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a Arc<EventSpec>> {
        self.events.values().filter(move |event| event.topic == topic)
    }
}
