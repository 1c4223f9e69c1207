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
mod halves;
mod join;
mod keyed;
mod keys;
mod map;
mod pieces;
mod rekey;
#[cfg(test)]
mod testing;
mod validate;
mod window;

use crate::step::StepKind;

pub(crate) use pieces::{PIECE, piece_schema};

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
