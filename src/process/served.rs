//! The two addresses.

use super::introspect::{Asked, Inside};
use crate::exit::Failure;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use quikflow_gateway::sign_in::routes::{self as sign_in, Publish};
use quikflow_gateway::{Auth, ServeLimits, SignIn, guard, route, serve, serve_with};
use quikflow_ingest::{Events, IngestLimits, IngestState};
use quikflow_query_api::{QueryLimits, QueryState};
use quikflow_sinks::store::ReadSide;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// An address that is served.
type Serving = tokio::task::JoinHandle<std::io::Result<()>>;

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

/// The ingest address; it brings its own guard. Events are asked for before the router.
pub(crate) fn ingest(
    inside: &Arc<Inside>,
    auth: &Arc<Auth>,
    sign_in: Option<Arc<SignIn>>,
    closing: watch::Receiver<bool>,
) -> (Router, Events) {
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
    let (router, events) = quikflow_ingest::router(state);
    let mut own = own(inside);
    if let Some(sign_in) = sign_in {
        let door = events.clone();
        let publish: Publish = Arc::new(move |event| {
            let door = door.clone();
            Box::pin(async move { door.publish(&event).await })
        });
        own = own.merge(sign_in::routes(sign_in, publish));
    }
    (router.merge(guard(own, auth.clone())), events)
}

/// The query address.
///
/// # Errors
/// When the operating system gives no threads.
pub(crate) fn query(
    inside: &Arc<Inside>,
    auth: &Arc<Auth>,
    read: ReadSide,
    closing: watch::Receiver<bool>,
) -> Result<Router, Failure> {
    let process = Arc::new(Asked(inside.clone()));
    let state = QueryState::new(read, inside.broker.clone(), process, inside.clock.clone(), QueryLimits::default(), closing)?;
    let events = quikflow_ingest::documents::asyncapi_route(&inside.plan.catalogue);
    Ok(guard(quikflow_query_api::router(state).merge(events).merge(own(inside)), auth.clone()))
}

/// The address that every process may have, whichever parts it runs: health, metrics, status.
pub(crate) fn health(inside: &Arc<Inside>, auth: &Arc<Auth>) -> Router {
    let (ready, metrics) = (inside.clone(), inside.clone());
    let routes = quikflow_gateway::health_routes(Arc::new(move || ready.ready()), Arc::new(move || metrics.render_metrics()));
    guard(routes.merge(own(inside)), auth.clone())
}

/// Serves an address until the process closes.
pub(crate) fn spawn(runtime: &Runtime, listener: TcpListener, router: Router, closing: watch::Receiver<bool>) -> Serving {
    runtime.spawn(serve(listener, router, ServeLimits::default(), closed(closing)))
}

/// Serves the ingest address until the process closes.
pub(crate) fn spawn_ingest(
    runtime: &Runtime,
    listener: TcpListener,
    router: Router,
    events: Events,
    closing: watch::Receiver<bool>,
) -> Serving {
    let answer = move |request: Request<_>| {
        let (events, router) = (events.clone(), router.clone());
        async move { if events.takes(&request) { events.answer(request).await } else { route(router, request).await } }
    };
    runtime.spawn(serve_with(listener, answer, ServeLimits::default(), closed(closing)))
}

async fn closed(mut closing: watch::Receiver<bool>) {
    // A sender that has gone closes as well.
    closing.wait_for(|closing| *closing).await.map(drop).unwrap_or_default();
}
