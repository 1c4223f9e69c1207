//! A listener's connections: at most so many, each with so long for its headers, drained on shutdown.
//!
//! Past the limit new connections wait in the system's queue; none is accepted and dropped.

use crate::peer::Peer;
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Bounds of one address.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Most connections at once.
    pub max_connections: usize,
    /// Longest time from the start of a request (or the end of the one before) to the end of its headers.
    pub header_timeout: Duration,
    /// Most bytes of a request's head.
    pub max_head_bytes: usize,
    /// So long may requests take to end after shutdown was asked for.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> ServeLimits {
        ServeLimits {
            max_connections: 4096,
            header_timeout: Duration::from_secs(60),
            max_head_bytes: 32 << 10,
            drain: Duration::from_secs(10),
        }
    }
}

/// A router's answer.
pub async fn route(router: Router, request: Request<Incoming>) -> Response {
    match TowerToHyperService::new(router).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Serves `router` on `listener`, see [`serve_with`].
///
/// # Errors
/// As [`serve_with`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    serve_with(listener, move |request| route(router.clone(), request), limits, shutdown).await
}

/// Serves what `answer` answers on `listener` until `shutdown` is done; then takes no new connections,
/// lets requests end for [`ServeLimits::drain`], and returns.
///
/// # Errors
/// The listener's address is gone. Errors of single connections end only these.
pub async fn serve_with<F, A>(
    listener: TcpListener,
    answer: F,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()>
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    let mut shutdown = pin!(shutdown);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = tokio::select! {
            () = &mut shutdown => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, address)) => (stream, Peer(address)),
            Err(error) if of_one_connection(&error) => continue,
            Err(error) => {
                // Out of file descriptors or memory: some will be free again soon.
                tracing::warn!(%error, "no connection can be accepted, trying again in 100 ms");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                }
            }
        };
        let (answer, limits, closing) = (answer.clone(), limits.clone(), closing.subscribe());
        connections.spawn(async move {
            connection(stream.0, stream.1, answer, &limits, closing).await;
            drop(permit);
        });
    }
    drop(listener);
    closing.send_replace(true);
    let drained = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not end in time, they are cut off");
        connections.shutdown().await;
    }
    Ok(())
}

fn of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection<F, A>(stream: TcpStream, peer: Peer, answer: F, limits: &ServeLimits, mut closing: watch::Receiver<bool>)
where
    F: Fn(Request<Incoming>) -> A + Send,
    A: Future<Output = Response> + Send + 'static,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection has gone");
        return;
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(limits.max_head_bytes.max(8192));
    let service = service_fn(|mut request: Request<Incoming>| {
        // Only these ask; a place among the extensions is an allocation.
        if request.uri().path().starts_with("/api/") {
            request.extensions_mut().insert(peer);
        }
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = async { closing.wait_for(|closing| *closing).await.is_ok() } => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{Notify, oneshot};

    #[tokio::test]
    async fn a_request_under_way_ends_before_the_address_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (s, g) = (Arc::clone(&started), Arc::clone(&go));
        let router = Router::new().route(
            "/",
            get(move || async move {
                s.notify_one();
                g.notified().await;
                "done"
            }),
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let limits = ServeLimits { max_connections: 1, ..ServeLimits::default() };
        let server = tokio::spawn(serve(listener, router, limits, async move {
            stopped.await.unwrap();
        }));
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        started.notified().await;
        stop.send(()).unwrap();
        go.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        server.await.unwrap().unwrap();
        assert!(TcpStream::connect(addr).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_headers_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let limits = ServeLimits { header_timeout: Duration::from_millis(30), ..ServeLimits::default() };
        let server = tokio::spawn(serve(listener, Router::new(), limits, async move {
            stopped.await.unwrap();
        }));
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: loc").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
