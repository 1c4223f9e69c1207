//! JSON to columns and back.
//!
//! JSON is parsed once, at the door, and what validation yields is the record's columns (R11):
//! [`decode`] turns the bytes of one event, an array or NDJSON into one batch a topic and a list of
//! rejects, [`encode`] turns a row back into canonical JSON, and nothing is lost on the way: what no
//! column holds exactly (undeclared fields, explicit nulls, numbers and times written in a form that
//! the column would not give back) stands in the row's `_rest`.
//!
//! **Canonical JSON** here: no white space; the names of an object sorted by their UTF-8 bytes at
//! every level; strings with the shortest escapes (`\"`, `\\`, `\b`, `\f`, `\n`, `\r`, `\t`, else
//! `\u00xx` below U+0020, all else as it is); numbers as they were written. See [`canonical`].
//!
//! * [`scan`]: a strict scanner over text: spans, no values, bounded depth, no name twice
//! * [`text`]: escapes, and canonical JSON
//! * [`time`], [`number`]: RFC 3339 and numbers, and whether a column gives back their text
//! * [`event`]: one event, from text to its place in the columns
//! * [`rules`]: an event type's fields and rules, ready for use
//! * [`stored`]: canonical JSON of a stored record back to its columns
//! * [`columns`]: builders that cost nothing for a field that does not occur
//!
//! **Invariant**: no JSON value tree is built on the way from bytes to columns.

mod columns;
pub mod decode;
pub mod encode;
mod event;
pub mod fault;
mod number;
mod rules;
mod scan;
pub mod stored;
mod text;
pub mod time;

#[cfg(test)]
mod tests;

pub use decode::{Decoded, Decoder, Limits, Reject};
pub use encode::{EncodeError, Encoder};
pub use fault::{Code, Fault};
pub use stored::{StoredDecoder, StoredRecord};
pub use text::{RawMember, canonical, members, write_string};
