//! Reads: views, SQL, the document's entities, search, dead letters, lag, topics; and the
//! documents that describe them.
//!
//! Everything is read through four traits: [`quikflow_sinks::store::ReadSide`] (what sinks stored),
//! [`quikflow_topics::broker::Broker`] (topics, dead letters), [`state::Introspection`] (what only the process
//! knows: lag, watermarks, topologies) and the clock. Nothing is merged from an engine's memory:
//! a view is one read of one store at one `as_of` (R7).
//!
//! The way of a request: [`params`] checks names and lengths, a room ([`views`], [`sql`],
//! [`entities`], [`operate`]) turns values into a plan (never into query text), [`sql::runtime`] runs
//! it on threads of its own within bounds, [`formats`] writes the answer, [`problem`] says what went wrong.
//!
//! **Invariant**: no value from outside is ever pasted into a query text.

pub mod cells;
pub mod entities;
pub mod formats;
pub mod openapi;
pub mod operate;
pub mod params;
pub mod problem;
pub mod relations;
pub mod router;
pub mod sql;
pub mod state;
pub mod times;
pub mod views;

#[cfg(test)]
mod tests;

pub use router::router;
pub use state::{Introspection, QueryLimits, QueryState};
