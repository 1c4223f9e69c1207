//! The brokers: one folder each.
