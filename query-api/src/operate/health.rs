//! Liveness, readiness, metrics.

use crate::state::QueryState;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// `GET /health/live`: the process answers.
pub(crate) async fn live() -> axum::Json<serde_json::Value> {
    axum::Json(json!({ "status": "live" }))
}

/// `GET /health/ready`: 200 when every part can work, else 503; with the state of each.
pub(crate) async fn ready(State(state): State<QueryState>) -> Response {
    let parts = state.process.health();
    let ready = parts.iter().all(|part| part.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "not ready" };
    (status, axum::Json(json!({ "status": word, "parts": parts }))).into_response()
}

/// `GET /metrics`: Prometheus' text form.
pub(crate) async fn metrics(State(state): State<QueryState>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.process.metrics()).into_response()
}
