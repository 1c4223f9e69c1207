//! Ingest, the front door: REST and WebSocket traffic → validated records.
//!
//! A request's bytes are read within a budget, decoded once into columns by [`quikflow_topics::json`],
//! and appended in one transaction; the answer is given when that is durable. What is refused is
//! told with its line, path and rule; refused lines of NDJSON become dead letters of cause `door`
//! in the same transaction. A single event or an array that is refused writes nothing: its sender
//! has the answer.
//!
//! * [`state`]: what the process gives, limits and budgets
//! * [`body`]: a request's bytes: media type, encoding, size, budget
//! * [`accept`]: bytes → an append; [`answer`]: its outcome → the answer
//! * `joined`: single events of requests under way → one append
//! * [`events`]: `POST /v1/events`, `POST /v1/topics/{topic}/records`
//! * [`members`]: `PUT|DELETE /api/v1/channels/{id}/members/{user}`
//! * [`socket`]: `GET /v1/ws`
//! * [`documents`]: `/openapi.json`, `/asyncapi.json`, the page at `/docs`
//!
//! **Invariant**: an accepting answer is given only after its ticket; no queue here grows without
//! bound; no payload and no token is ever logged.

pub mod accept;
pub mod answer;
pub mod body;
pub mod documents;
pub mod events;
mod joined;
pub mod members;
pub mod socket;
pub mod state;

pub use events::Events;
pub use state::{IngestLimits, IngestState};

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post, put};
use quikflow_gateway::{guard, health_routes};
use std::sync::Arc;

/// All routes of the ingest address, behind the guard, and the one that most requests are for: it may
/// be asked before the router, which has it too.
pub fn router(state: IngestState) -> (Router, Events) {
    let health = health_routes(Arc::clone(&state.ready), Arc::clone(&state.metrics));
    let auth = Arc::clone(&state.auth);
    let documents = documents::routes(&state.catalogue, state.auth.signs_in());
    let state = Arc::new(state::Door::new(state));
    let events = Events { door: Arc::clone(&state), auth: Arc::clone(&auth) };
    let posted = events.clone();
    let routes = Router::new()
        .route("/v1/events", post(move |request: Request| posted.clone().answer(request)))
        .route("/v1/topics/{topic}/records", post(events::post_records))
        .route("/v1/ws", get(socket::upgrade))
        .route("/api/v1/channels/{channel}/members/{user}", put(members::add).delete(members::remove))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .with_state(state);
    (guard(routes.merge(health).merge(documents), auth), events)
}
