//! Topics: what a record is, which events exist, and the brokers that keep them.
//!
//! Everything durable in quikflow passes through a topic. A topic is a list of records, divided
//! into partitions by the hash of the record's key; a record's place is (topic, partition, offset).
//! Words are Kafka's whatever the broker.
//!
//! * [`catalogue`]: the declared topics, event types and sinks of `topologies.toml`
//! * [`schema`]: the Arrow schema of a topic: system columns and one column a declared field
//! * [`broker`]: the [`Broker`](broker::Broker) trait: append, read, commit an epoch
//! * [`brokers`]: one folder a broker; the embedded one is a columnar log in SQLite
//! * [`json`]: JSON to columns (the one parse, at the door) and columns back to canonical JSON
//! * [`chunk`]: the stored form of a batch
//! * [`diagnostics`]: mistakes in `topologies.toml`, shown with line and caret
//!
//! **Invariant**: nothing here knows a topology, a store or HTTP.

pub mod broker;
pub mod brokers;
pub mod catalogue;
pub mod chunk;
pub mod clock;
pub mod dead_letter;
pub mod declaration;
pub mod diagnostics;
mod epoch;
pub mod failpoint;
pub mod ids;
pub mod json;
pub mod partitioner;
pub mod schema;
pub mod share;
pub mod units;
mod wait;

pub use broker::{Append, Appended, Broker, BrokerError, EpochCommit, Slice, TopicReader};
pub use catalogue::{Catalogue, EventSpec, FieldSpec, FieldType, SinkSpec, TopicSpec};
pub use clock::Clock;
pub use dead_letter::DeadLetter;
pub use diagnostics::Diagnostic;
pub use ids::{Epoch, EventTime, Offset, PartitionId};
