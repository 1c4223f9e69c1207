//! The document's entities: messages, search, users, notifications, audit, analytics.
//!
//! Until sign-in exists there is no session: whose notifications are asked for is a parameter.

pub mod analytics;
pub mod audit;
pub mod messages;
pub mod notifications;
pub mod search;
pub mod users;

use crate::problem::Problem;
use quikflow_sinks::store::Page;
use serde_json::{Value, json};

/// The longest id, in bytes.
const ID: usize = 512;

/// An id from a path, within bounds.
///
/// # Errors
/// 422.
pub(crate) fn id(text: &str) -> Result<&str, Problem> {
    match text.is_empty() || text.len() > ID {
        true => Err(Problem::field("id", "length", format!("`id` has from 1 to {ID} bytes"))),
        false => Ok(text),
    }
}

/// A page of documents as an answer.
pub(crate) fn answer(page: Page) -> axum::Json<Value> {
    axum::Json(json!({ "items": page.items, "cursor": page.cursor }))
}
