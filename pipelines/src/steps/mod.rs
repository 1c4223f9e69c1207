//! The kinds of steps, one file or folder each: fields, doc with its guarantee, a runnable example,
//! and the operator.
//!
//! To add a kind: a file here, its `KIND` in [`KINDS`]. Nothing else knows the kinds by name.

mod accumulators;
mod branch;
pub mod chain;
mod codec;
mod common;
mod count_within;
mod dedupe;
mod explode;
mod filter;
mod join;
mod keyed;
mod keys;
mod map;
mod rekey;
#[cfg(test)]
mod testing;
mod validate;
mod window;

use crate::step::StepKind;
use arrow::datatypes::{DataType, Field, Schema};
use quikflow_topics::schema;
use std::sync::Arc;

/// The column that holds what a half of a step combined.
pub(crate) const PIECE: &str = "piece";

/// Rows between the halves of a step: the origin columns, `_key` where they are written (the share that
/// merges them, as a number), and the piece, absent in rows that only say how far time has come.
pub(crate) fn piece_schema(written: bool) -> Arc<Schema> {
    let key = written.then(|| schema::system_field(schema::KEY));
    let origin = crate::operator::ORIGIN_COLUMNS.map(schema::system_field);
    let piece = Field::new(PIECE, DataType::Utf8, true);
    Arc::new(Schema::new(origin.into_iter().chain(key).chain([piece]).collect::<Vec<_>>()))
}

/// Every kind of step, in the order of the reference.
pub const KINDS: &[&StepKind] = &[
    &validate::KIND,
    &filter::KIND,
    &map::KIND,
    &branch::KIND,
    &explode::KIND,
    &rekey::KIND,
    &dedupe::KIND,
    &window::KIND,
    &join::KIND,
    &count_within::KIND,
    &chain::KIND,
];

/// The kind of this name.
pub fn kind(name: &str) -> Option<&'static StepKind> {
    KINDS.iter().copied().find(|kind| kind.name == name)
}
