//! Users as they stand, and a user's count of unread notifications.

use super::{Asking, id};
use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

/// `GET /api/v1/users/{id}`; `me` is who is signed in.
pub(crate) async fn one(
    State(state): State<QueryState>,
    asking: Asking,
    Path(user): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let found = state.read.documents.get("users", id(asking.meant(&user))?).await?;
    found.map(axum::Json).ok_or_else(|| Problem::not_found("there is no such user"))
}

/// `GET /api/v1/users/{id}/badge`: how many notifications are unread.
pub(crate) async fn badge(
    State(state): State<QueryState>,
    asking: Asking,
    Path(user): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let user = asking.meant(&user);
    let unread = state.read.inbox.badge(id(user)?).await?;
    Ok(axum::Json(json!({ "userId": user, "unread": unread })))
}
