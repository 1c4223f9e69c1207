//! The brokers: one folder each.

pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
mod pieces;
