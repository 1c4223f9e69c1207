//! `/health/live`, `/health/ready` and `/metrics`, on both addresses.

use crate::problem::Problem;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use std::time::Duration;

/// Whether the process can do its work; the error says what it waits for.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// Renders the metrics in Prometheus' text form.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The routes: `/health/live` is 200 while the process answers at all, `/health/ready` 503 with the
/// reason until it can work.
pub fn health_routes(ready: Ready, metrics: Metrics) -> Router {
    let is_ready = move || {
        let ready = Arc::clone(&ready);
        async move {
            match ready() {
                Ok(()) => "ready\n".into_response(),
                Err(why) => {
                    let problem = Problem::new(503, "not_ready", "not ready").detail(why);
                    problem.retry_after(Duration::from_secs(1)).into_response()
                }
            }
        }
    };
    let render = move || {
        let metrics = Arc::clone(&metrics);
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics()) }
    };
    Router::new()
        .route("/health", get(|| async { "live\n" }))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(is_ready))
        .route("/metrics", get(render))
}
