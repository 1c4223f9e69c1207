//! A user's notifications, and marking one as read: the one write that the query side has a right to.

use super::{Asking, id};
use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

/// `GET /api/v1/notifications?userId=`: newest first, with the count of unread ones; of who is signed in without `userId`.
pub(crate) async fn list(
    State(state): State<QueryState>,
    asking: Asking,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["userId", "limit", "cursor"])?;
    let user = asking.named(&params)?;
    let limit = params.number("limit", 1, 200)?.unwrap_or(50);
    let equals = [("user".to_owned(), user.to_owned())];
    let page = state.read.documents.list("notifications", &equals, None, None, params.text("cursor"), limit).await?;
    let unread = state.read.inbox.badge(user).await?;
    Ok(axum::Json(json!({ "items": page.items, "cursor": page.cursor, "unread": unread })))
}

/// `PUT /api/v1/notifications/{id}/read?userId=`: again is harmless.
pub(crate) async fn mark_read(
    State(state): State<QueryState>,
    asking: Asking,
    Path(notification): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["userId"])?;
    let user = asking.named(&params)?;
    match state.read.inbox.mark_read(user, id(&notification)?).await? {
        true => Ok(axum::Json(json!({ "id": notification, "read": true, "unread": state.read.inbox.badge(user).await? }))),
        false => Err(Problem::not_found("this user has no such notification")),
    }
}
