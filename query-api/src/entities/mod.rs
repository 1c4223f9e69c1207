//! The document's entities: messages, search, users, notifications, audit, analytics.
//!
//! Whose notifications are asked for is a parameter, which who is signed in may leave out.

pub mod analytics;
pub mod audit;
pub mod messages;
pub mod notifications;
pub mod search;
pub mod users;

use crate::params::Params;
use crate::problem::Problem;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use quikflow_gateway::Caller;
use quikflow_sinks::store::Page;
use serde_json::{Value, json};

/// The longest id, in bytes.
const ID: usize = 512;

/// Who asks.
pub(crate) struct Asking(Caller);

impl<S: Send + Sync> FromRequestParts<S> for Asking {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asking, Self::Rejection> {
        Ok(Asking(parts.extensions.get().cloned().unwrap_or(Caller::Operator)))
    }
}

impl Asking {
    /// The user whom a path means: `me` is who is signed in.
    fn meant<'a>(&'a self, user: &'a str) -> &'a str {
        self.0.meant(user)
    }

    /// The user whom `userId` names, else who is signed in.
    ///
    /// # Errors
    /// 403 where it names another user, 422 where neither says.
    fn named<'a>(&'a self, params: &'a Params) -> Result<&'a str, Problem> {
        match self.0.about(params.text("userId"))? {
            Some(user) => Ok(user),
            None => params.required("userId"),
        }
    }
}

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
