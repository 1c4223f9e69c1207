//! The stored form of a batch: a chunk.
//!
//! A chunk holds rows of one topic, sorted stably by partition. Its [`header`] lists each
//! partition's run (first offset, rows, largest times), every partition's next offset after the
//! chunk, and where each column's bytes are, with their checksums. A [`column`] is encoded on its
//! own, so that a reader takes only what it asks for; a column whose rows are all null is not
//! stored at all. [`rows`] sorts and encodes a batch; [`rest`] reads a field that was declared
//! later than the chunk was written (R12).
//!
//! **Invariant**: decoding never panics and never allocates by an unchecked length; damaged bytes
//! give [`Damaged`].

pub mod bytes;
pub mod column;
pub mod header;
pub mod integers;
pub mod rest;
pub mod rows;
#[cfg(test)]
mod tests;

/// The version of this form, in every header. Another version is refused, never guessed.
pub const FORMAT_VERSION: u8 = 1;

/// Rows that a chunk should have; merging stops there.
pub const TARGET_ROWS: usize = 8_192;

/// Column number of arrival times that differ within a chunk.
pub const ARRIVAL_COLUMN: u16 = u16::MAX;
/// Column number of offsets with gaps (compacted topics).
pub const OFFSET_COLUMN: u16 = u16::MAX - 1;

/// Stored bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub String);

impl Damaged {
    pub(crate) fn new(what: impl Into<String>) -> Damaged {
        Damaged(what.into())
    }
}

/// The checksum of headers and columns: xxh3, 64 bits.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
