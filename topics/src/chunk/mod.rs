//! The stored form of a batch.
