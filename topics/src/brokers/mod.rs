//! The brokers: one folder each.

pub mod embedded;
