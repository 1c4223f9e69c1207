//! `PUT|DELETE /api/v1/channels/{id}/members/{user}`: who is in a channel, as events.
//!
//! They become MEMBER_ADDED and MEMBER_REMOVED, by the door's own rules and with the door's own
//! time as their event time.

use crate::answer::Accepted;
use crate::events;
use crate::state::Door;
use axum::Extension;
use axum::extract::{Path, Query, State};
use quikflow_gateway::{Principal, Problem};
use quikflow_topics::json::{time, write_string};
use serde::Deserialize;
use std::sync::Arc;

/// What the query string says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Where {
    workspace_id: Option<String>,
}

/// Adds a member.
///
/// # Errors
/// 422 where the event type is not declared or its rules refuse a name; 429, 503.
pub async fn add(
    State(door): State<Arc<Door>>,
    Path((channel, user)): Path<(String, String)>,
    Query(place): Query<Where>,
    principal: Option<Extension<Principal>>,
) -> Result<Accepted, Problem> {
    publish(&door, "MEMBER_ADDED", &channel, &user, &place, principal).await
}

/// Removes a member.
///
/// # Errors
/// As [`add`].
pub async fn remove(
    State(door): State<Arc<Door>>,
    Path((channel, user)): Path<(String, String)>,
    Query(place): Query<Where>,
    principal: Option<Extension<Principal>>,
) -> Result<Accepted, Problem> {
    publish(&door, "MEMBER_REMOVED", &channel, &user, &place, principal).await
}

async fn publish(
    door: &Door,
    ty: &str,
    channel: &str,
    user: &str,
    place: &Where,
    principal: Option<Extension<Principal>>,
) -> Result<Accepted, Problem> {
    let mut event = String::from("{\"payload\":{");
    let workspace = place.workspace_id.as_deref().map(|id| ("workspaceId", id));
    let fields = [Some(("channelId", channel)), Some(("userId", user)), workspace];
    for (index, (name, value)) in fields.into_iter().flatten().enumerate() {
        if index > 0 {
            event.push(',');
        }
        write_string(name, &mut event);
        event.push(':');
        write_string(value, &mut event);
    }
    event.push_str("},\"timestamp\":\"");
    time::write_time(door.clock.now().0, &mut event);
    event.push_str("\",\"type\":");
    write_string(ty, &mut event);
    event.push('}');
    let principal = principal.map(|Extension(p)| p.0).unwrap_or_default();
    events::publish(door, &event, principal).await
}
