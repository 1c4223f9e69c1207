//! What changes in a view, as server-sent events.

use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use quikflow_sinks::changes::{Change, Follower};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// A comment is sent so often where nothing changes, so that neither side takes the other for gone.
const ALIVE: Duration = Duration::from_secs(15);

/// `GET /v1/views/{view}/changes?key=`: ids of rows as they change; `reset` where the view has to be read (again).
pub(crate) async fn get(
    State(state): State<QueryState>,
    Path(view): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["key"])?;
    let key = params.text("key").map(str::to_owned);
    state.relations.view(&view)?;
    let place = state.followers.clone().try_acquire_owned().map_err(|_| {
        let detail = "as many follow changes as are allowed to, try again later";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_followers", detail).retry_after(ALIVE)
    })?;
    let following = Following { follower: state.read.changes.follow(&view)?, key, closing: state.closing.clone(), _place: place };
    let events = futures::stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok::<_, Infallible>(event), following))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE).text("alive")).into_response())
}

/// Someone who follows a view.
struct Following {
    follower: Follower,
    /// Only changes of this one.
    key: Option<String>,
    closing: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Following {
    /// None: the process closes.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let change = tokio::select! {
                change = self.follower.next() => change?,
                // A sender that has gone closes as well.
                _ = self.closing.wait_for(|closing| *closing) => return None,
            };
            match (change, &self.key) {
                (Change::Missed, _) => return Some(Event::default().event("reset").data("{}")),
                (Change::Keys(keys), None) => return Some(told(&keys)),
                (Change::Keys(keys), Some(key)) if keys.contains(key) => return Some(told(std::slice::from_ref(key))),
                (Change::Keys(_), Some(_)) => {}
            }
        }
    }
}

fn told(keys: &[String]) -> Event {
    Event::default().event("change").data(serde_json::json!({ "keys": keys }).to_string())
}
