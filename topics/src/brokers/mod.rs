//! The brokers: one folder each; `records` and `pieces` are what several of them share.

pub mod embedded;
pub mod fluvio;
#[cfg(feature = "kafka")]
pub mod kafka;
mod pieces;
mod records;
