//! The two addresses.

use super::introspect::{Asked, Inside};
use crate::exit::Failure;
use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use quikflow_gateway::{Auth, ServeLimits, guard, serve};
use quikflow_ingest::{IngestLimits, IngestState};
use quikflow_query_api::{QueryLimits, QueryState};
use quikflow_sinks::store::ReadSide;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the process says of itself on both addresses.
fn own(inside: &Arc<Inside>) -> Router {
    let (for_addresses, for_status) = (inside.clone(), inside.clone());
    let status = move || {
        let inside = for_status.clone();
        async move {
            match tokio::task::spawn_blocking(move || inside.status()).await {
                Ok(Ok(status)) => axum::Json(status).into_response(),
                Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    };
    Router::new()
        .route("/v1/addresses", get(move || async move { axum::Json(for_addresses.addresses()) }))
        .route("/v1/status", get(status))
}

/// The ingest address; it brings its own guard.
pub(crate) fn ingest(inside: &Arc<Inside>, auth: &Arc<Auth>, closing: watch::Receiver<bool>) -> Router {
    let (ready, metrics) = (inside.clone(), inside.clone());
    let state = IngestState {
        broker: inside.broker.clone(),
        catalogue: Arc::new(inside.plan.catalogue.clone()),
        clock: inside.clock.clone(),
        auth: auth.clone(),
        limits: IngestLimits::default(),
        ready: Arc::new(move || ready.ready()),
        metrics: Arc::new(move || metrics.render_metrics()),
        closing,
    };
    let own = guard(own(inside), auth.clone());
    quikflow_ingest::router(state).merge(own)
}

/// The query address.
///
/// # Errors
/// When the operating system gives no threads.
pub(crate) fn query(inside: &Arc<Inside>, auth: &Arc<Auth>, read: ReadSide) -> Result<Router, Failure> {
    let process = Arc::new(Asked(inside.clone()));
    let state = QueryState::new(read, inside.broker.clone(), process, inside.clock.clone(), QueryLimits::default())?;
    Ok(guard(quikflow_query_api::router(state).merge(own(inside)), auth.clone()))
}

/// The address that every process may have, whichever parts it runs: health, metrics, status.
pub(crate) fn health(inside: &Arc<Inside>, auth: &Arc<Auth>) -> Router {
    let (ready, metrics) = (inside.clone(), inside.clone());
    let routes = quikflow_gateway::health_routes(Arc::new(move || ready.ready()), Arc::new(move || metrics.render_metrics()));
    guard(routes.merge(own(inside)), auth.clone())
}

/// Serves an address until the process closes.
pub(crate) fn spawn(
    runtime: &tokio::runtime::Runtime,
    listener: TcpListener,
    router: Router,
    mut closing: watch::Receiver<bool>,
) -> tokio::task::JoinHandle<std::io::Result<()>> {
    let closed = async move {
        // A sender that has gone closes as well.
        closing.wait_for(|closing| *closing).await.map(drop).unwrap_or_default();
    };
    runtime.spawn(serve(listener, router, ServeLimits::default(), closed))
}
