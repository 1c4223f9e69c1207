//! Messages of a channel, and one message.

use super::{answer, id};
use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use crate::times;
use axum::extract::{Path, RawQuery, State};
use serde_json::Value;

/// The documents of messages.
pub(crate) const TABLE: &str = "messages";

/// `GET /api/v1/channels/{id}/messages`: newest first. `before` is the cursor of the page before, a
/// message's id, or a time.
pub(crate) async fn of_channel(
    State(state): State<QueryState>,
    Path(channel): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["limit", "before"])?;
    let limit = params.number("limit", 1, 200)?.unwrap_or(50);
    let channel = id(&channel)?.to_owned();
    let equals = [("channelId".to_owned(), channel.clone())];
    let (mut to, mut cursor) = (None, None);
    if let Some(before) = params.text("before") {
        match times::read(before) {
            Some(time) => to = Some(time),
            None => match state.read.documents.get(TABLE, &format!("{channel}\u{1f}{before}")).await? {
                Some(message) => to = Some(time_of(&message).ok_or_else(bad_before)?),
                None => cursor = Some(before.to_owned()),
            },
        }
    }
    let page = state.read.documents.list(TABLE, &equals, None, to, cursor.as_deref(), limit).await;
    Ok(answer(page.map_err(|e| match (e, cursor) {
        (quikflow_sinks::store::StoreError::BadRequest(_), Some(_)) => bad_before(),
        (other, _) => other.into(),
    })?))
}

fn bad_before() -> Problem {
    Problem::field("before", "cursor", "`before` is the cursor of a page, the id of a message of this channel, or a time")
}

/// When a message was sent, by the names that its documents use.
fn time_of(message: &Value) -> Option<quikflow_topics::ids::EventTime> {
    ["sent_at", "sentAt", "event_time", "_event_time", "timestamp"]
        .iter()
        .find_map(|name| message.get(*name).and_then(Value::as_str))
        .and_then(times::read)
}

/// `GET /api/v1/messages/{id}`: by `messageId`; `?channelId=` decides where two channels use one id.
pub(crate) async fn one(
    State(state): State<QueryState>,
    Path(message): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["channelId"])?;
    let message = id(&message)?;
    let missing = || Problem::not_found("there is no such message");
    if let Some(channel) = params.text("channelId") {
        let found = state.read.documents.get(TABLE, &format!("{channel}\u{1f}{message}")).await?;
        return found.map(axum::Json).ok_or_else(missing);
    }
    let equals = [("messageId".to_owned(), message.to_owned())];
    let page = state.read.documents.list(TABLE, &equals, None, None, None, 2).await?;
    match page.items.len() {
        0 => Err(missing()),
        1 => page.items.into_iter().next().map(axum::Json).ok_or_else(missing),
        _ => Err(Problem::new(
            axum::http::StatusCode::CONFLICT,
            "ambiguous",
            "several channels hold a message of this id: say which one with ?channelId=",
        )),
    }
}
