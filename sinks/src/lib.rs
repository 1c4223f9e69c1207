//! Sinks: topics materialised into stores, and the stores' read sides.
//!
//! * [`store`]: the contract of a store: write a batch idempotently, read
//! * [`ask`]: reads of embedded stores as one process asks another that has them
//! * [`changes`]: what changes in tables, told to whoever follows them
//! * [`runner`]: the one sink runner: batching, retry, per-item outcomes, dead letters, offsets after flush
//! * [`stores`]: which store serves a sink; one file a store, write side and read side together
//!
//! **Invariant**: a store's offsets move only in the transaction (or after the flush) that holds the rows.

pub mod ask;
pub mod changes;
pub mod runner;
pub mod store;
pub mod stores;
