//! A way to a server that can be held up, as by a frozen server, and cut, as by a broken network.

use super::harness;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    /// They pass.
    Open,
    /// They wait.
    Held,
    /// Connections end, and new ones at once.
    Cut,
}

/// A port before a server.
pub(crate) struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Before the server of a URL; the URL that leads through it.
    pub(crate) async fn before(url: &str) -> (Proxy, String) {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (login, place) = rest.rsplit_once('@').map_or(("", rest), |(login, place)| (login, place));
        let (server, path) = place.split_at(place.find(['/', '?']).unwrap_or(place.len()));
        let server: SocketAddr = match server.parse() {
            Ok(server) => server,
            Err(_) => harness::skip(format!("{server} is no address with a port")),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (way, seen) = watch::channel(Way::Open);
        let passed = Arc::new(AtomicU64::new(0));
        let count = passed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, server, seen.clone(), count.clone()));
            }
        });
        let at = if login.is_empty() { "" } else { "@" };
        (Proxy { address, way, passed }, format!("{scheme}://{login}{at}{address}{path}"))
    }

    /// From now on.
    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Bytes that the server answered and that were let through.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)
    }
}

async fn join(client: TcpStream, server: SocketAddr, mut way: watch::Receiver<Way>, passed: Arc<AtomicU64>) {
    // A frozen server's port takes connections, and nobody answers.
    if way.wait_for(|way| *way != Way::Held).await.is_ok_and(|way| *way == Way::Cut) {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        pump(from_client, to_server, way.clone(), Arc::new(AtomicU64::new(0))),
        pump(from_server, to_client, way, passed)
    );
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>, passed: Arc<AtomicU64>) {
    let mut cut = way.clone();
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read.unwrap_or(0),
            _ = cut.wait_for(|way| *way == Way::Cut) => 0,
        };
        // Counted while the way cannot change: once it is held or cut nothing more is counted, late
        // answers to what the client asked by itself included.
        let open = match way.wait_for(|way| *way != Way::Held).await {
            Ok(now) if *now == Way::Open => {
                passed.fetch_add(read as u64, Ordering::SeqCst);
                true
            }
            _ => false,
        };
        if read == 0 || !open || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
