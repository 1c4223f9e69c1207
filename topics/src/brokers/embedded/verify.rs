//! Walks the log.
