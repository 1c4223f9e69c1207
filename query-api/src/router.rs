//! The paths, in one place, and what all of them share: limits on bodies, answers to unknown paths.

use crate::openapi;
use crate::problem::Problem;
use crate::state::QueryState;
use crate::{entities, operate, sql, views};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::routing::{get, post, put};

/// The query API over a state. Authentication is a layer that the caller puts around it.
pub fn router(state: QueryState) -> Router {
    let body = state.limits.body;
    Router::new()
        .route("/v1/views", get(views::route::list))
        .route("/v1/views/{view}", get(views::route::get))
        .route("/v1/views/{view}/changes", get(views::changes::get))
        .route("/v1/sql", post(sql::route::post))
        .route("/api/v1/channels/{id}/messages", get(entities::messages::of_channel))
        .route("/api/v1/messages/{id}", get(entities::messages::one))
        .route("/api/v1/search", get(entities::search::get))
        .route("/api/v1/users/{id}", get(entities::users::one))
        .route("/api/v1/users/{id}/badge", get(entities::users::badge))
        .route("/api/v1/notifications", get(entities::notifications::list))
        .route("/api/v1/notifications/{id}/read", put(entities::notifications::mark_read))
        .route("/api/v1/audit/logs", get(entities::audit::logs))
        .route("/api/v1/audit/logs/search", get(entities::audit::search))
        .route("/api/v1/audit/logs/{id}", get(entities::audit::one))
        .route("/api/v1/audit/reports/compliance", get(entities::audit::compliance))
        .route("/api/v1/analytics/metrics", get(entities::analytics::metrics))
        .route("/api/v1/analytics/dashboard", get(entities::analytics::dashboard))
        .route("/v1/dlq", get(operate::dlq::list))
        .route("/v1/dlq/{id}", get(operate::dlq::one))
        .route("/v1/dlq/replay", post(operate::dlq::replay))
        .route("/v1/dlq/resolve", post(operate::dlq::resolve))
        .route("/v1/lag", get(operate::process::lag))
        .route("/v1/topologies", get(operate::process::topologies))
        .route("/v1/topologies/{name}/reset", post(operate::process::reset))
        .route(quikflow_sinks::ask::PATH, post(operate::stores::read))
        .route("/v1/topics", get(operate::topics::list))
        .route("/v1/topics/{topic}", get(operate::topics::describe))
        .route("/v1/topics/{topic}/records", get(operate::topics::records))
        .route("/health", get(operate::health::live))
        .route("/health/live", get(operate::health::live))
        .route("/health/ready", get(operate::health::ready))
        .route("/metrics", get(operate::health::metrics))
        .route("/openapi.json", get(openapi::document))
        .merge(openapi::page())
        .method_not_allowed_fallback(wrong_method)
        .fallback(nowhere)
        .layer(DefaultBodyLimit::max(body))
        .with_state(state)
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} is not what this path takes; /openapi.json says what is", request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

async fn nowhere() -> Problem {
    Problem::not_found("there is nothing at this path; /docs shows what there is")
}

/// A body within the limit.
///
/// # Errors
/// 413 over the limit, 400 when it broke off.
pub(crate) fn body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than is taken here")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "bad_body", "the body could not be read"),
    })
}

/// A body as JSON.
///
/// # Errors
/// 422 saying where it is wrong.
pub(crate) fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::field("body", "json", format!("the body is not what is taken here: {e}")))
}
