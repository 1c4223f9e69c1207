//! The brokers: one folder each.

pub mod embedded;
pub mod fluvio;
#[cfg(feature = "kafka")]
pub mod kafka;
mod pieces;
