//! Many single events at once, over HTTP and over WebSockets, and clients that do not read: every
//! acknowledged event is stored exactly once, nothing that was refused is, and memory stays bounded.
//!
//! `QUIKFLOW_LOAD_EVENTS` sets how many events go each way; 20,000 where it is not set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Server, count};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The most memory that the server may ever have held, in KiB.
const MOST_MEMORY: u64 = 768 << 10;
const CONNECTIONS: u64 = 64;
const SOCKETS: u64 = 8;
const CHANNELS: u64 = 64;
/// Frames of the client that never reads.
const DEAF_FRAMES: u64 = 5_000;

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// What became of a client's events, by number.
#[derive(Default)]
struct Fates {
    acknowledged: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Sent, and never answered: stored or not.
    open: BTreeSet<u64>,
}

impl Fates {
    fn add(&mut self, other: Fates) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
        self.open.extend(other.open);
    }
}

/// All in one minute, so that none is late.
fn event(number: u64) -> String {
    format!(
        r#"{{"type":"MESSAGE_SENT","payload":{{"messageId":"m{number}","channelId":"c{}","userId":"u{}","content":"load {number}"}},"timestamp":"2026-01-01T00:00:{:02}Z"}}"#,
        number % CHANNELS,
        number % 997,
        number % 60
    )
}

fn frame(number: u64) -> Message {
    Message::text(format!(r#"{{"ref":{number},"event":{}}}"#, event(number)))
}

/// Single-event requests over all connections, each with the next number.
async fn by_http(server: &Server, events: u64) -> Fates {
    let next = Arc::new(AtomicU64::new(0));
    let url = format!("{}/v1/events?records=false", server.ingest);
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (next, url, client) = (Arc::clone(&next), url.clone(), support::client());
            tokio::spawn(async move {
                let mut fates = Fates::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= events {
                        return fates;
                    }
                    let request = client.post(&url).header("content-type", "application/json").body(event(number));
                    let answer = request.send().await.unwrap();
                    let status = answer.status().as_u16();
                    let text = answer.text().await.unwrap();
                    match status {
                        202 => drop(fates.acknowledged.insert(number)),
                        429 => drop(fates.refused.insert(number)),
                        _ => panic!("event {number}: {status} {text}"),
                    }
                }
            })
        })
        .collect();
    let mut all = Fates::default();
    for task in tasks {
        all.add(task.await.unwrap());
    }
    all
}

/// A socket, and its credit.
async fn connect(url: &str) -> (Socket, u64) {
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let first = socket.next().await.unwrap().unwrap();
    let first: Value = serde_json::from_str(first.to_text().unwrap()).unwrap();
    (socket, first["credit"].as_u64().unwrap_or_else(|| panic!("no credit in {first}")))
}

/// Notes an answer.
fn note(fates: &mut Fates, answer: &Message) {
    let answer: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
    let number = answer["ref"].as_u64().unwrap_or_else(|| panic!("{answer}"));
    assert!(fates.open.remove(&number), "event {number} is answered, and was not open: {answer}");
    if answer["ok"] == true {
        assert_eq!(answer["duplicate"], false, "{answer}");
        fates.acknowledged.insert(number);
    } else {
        fates.refused.insert(number);
    }
}

/// Frames over one socket, never more unanswered than the credit.
async fn by_socket(url: String, numbers: std::ops::Range<u64>) -> Fates {
    let (mut socket, credit) = connect(&url).await;
    let mut fates = Fates::default();
    let mut numbers = numbers.peekable();
    while numbers.peek().is_some() || !fates.open.is_empty() {
        while (fates.open.len() as u64) < credit {
            let Some(number) = numbers.next() else { break };
            fates.open.insert(number);
            socket.feed(frame(number)).await.unwrap();
        }
        socket.flush().await.unwrap();
        let answer = socket.next().await.unwrap().unwrap();
        note(&mut fates, &answer);
    }
    socket.close(None).await.unwrap();
    fates
}

/// Uses up its credit, reads nothing until it is told, then reads all answers.
async fn stops_reading(url: String, first: u64, told: tokio::sync::oneshot::Receiver<()>) -> Fates {
    let (mut socket, credit) = connect(&url).await;
    let mut fates = Fates::default();
    for number in first..first + credit {
        fates.open.insert(number);
        socket.feed(frame(number)).await.unwrap();
    }
    socket.flush().await.unwrap();
    told.await.unwrap();
    while !fates.open.is_empty() {
        let answer = socket.next().await.unwrap().unwrap();
        note(&mut fates, &answer);
    }
    fates
}

/// Sends on and on without reading. The server may close it for that; what was acknowledged before
/// is read then.
async fn never_reads(url: String, first: u64) -> (Fates, Option<CloseCode>) {
    let (mut socket, _) = connect(&url).await;
    let mut fates = Fates::default();
    for number in first..first + DEAF_FRAMES {
        fates.open.insert(number);
        if socket.send(frame(number)).await.is_err() {
            break;
        }
    }
    let mut code = None;
    while !fates.open.is_empty() {
        match socket.next().await {
            Some(Ok(Message::Close(close))) => code = close.map(|close| close.code),
            Some(Ok(answer @ Message::Text(_))) => note(&mut fates, &answer),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => break,
        }
    }
    (fates, code)
}

/// The most memory that the process has held, in KiB; none where the system does not tell.
fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_event_is_stored_exactly_once_under_load() {
    let events: u64 = std::env::var("QUIKFLOW_LOAD_EVENTS").map_or(20_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"));
    let url = format!("{}/v1/ws", server.ingest.replacen("http", "ws", 1));

    let mut fates = Fates::default();
    let (tell, told) = tokio::sync::oneshot::channel();
    let silent = tokio::spawn(stops_reading(url.clone(), 3 * events, told));
    let deaf = tokio::spawn(never_reads(url.clone(), 4 * events));
    fates.add(by_http(&server, events).await);
    println!("HTTP: {} acknowledged, {} refused", fates.acknowledged.len(), fates.refused.len());
    let share = events.div_ceil(SOCKETS);
    let sockets: Vec<_> =
        (0..SOCKETS).map(|at| tokio::spawn(by_socket(url.clone(), events + at * share..events + (at + 1) * share))).collect();
    for socket in sockets {
        fates.add(socket.await.unwrap());
    }
    tell.send(()).unwrap();
    let silent = silent.await.unwrap();
    assert!(silent.refused.is_empty() && !silent.acknowledged.is_empty(), "what is within the credit is taken");
    fates.add(silent);
    assert!(fates.open.is_empty(), "{} events were not answered", fates.open.len());
    let (deaf, code) = deaf.await.unwrap();
    println!("never reads: {} acknowledged, {} open, closed with {code:?}", deaf.acknowledged.len(), deaf.open.len());
    assert!(code.is_none() || code == Some(CloseCode::Policy), "{code:?}");
    fates.add(deaf);
    let memory = high_water(server.pid());

    server.settle();
    let stored = count::keys(&server, "messages").await;
    let ids: BTreeSet<u64> = stored.iter().map(|(_, id)| id.strip_prefix('m').unwrap().parse().unwrap()).collect();
    assert_eq!(ids.len(), stored.len(), "an id stands in two channels");
    let lost: Vec<_> = fates.acknowledged.difference(&ids).take(5).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
    let strange: Vec<_> = ids.iter().filter(|id| !fates.acknowledged.contains(id) && !fates.open.contains(id)).take(5).collect();
    assert!(strange.is_empty(), "refused and stored: {strange:?}");
    // The store holds an id once whatever comes; the count of records shows what came twice.
    let counted: u64 = count::activity(&server).await.values().map(|(messages, _, _)| messages).sum();
    assert_eq!(counted, ids.len() as u64, "records counted, messages stored");
    assert!(fates.acknowledged.len() as u64 >= events, "only {} events were taken", fates.acknowledged.len());
    match memory {
        Some(kib) => {
            println!("most memory: {} MiB", kib >> 10);
            assert!(kib < MOST_MEMORY, "the server has held {kib} KiB, more than {MOST_MEMORY}");
        }
        None => println!("skipped: the system does not tell how much memory a process has held"),
    }
    assert_eq!(server.stop().code(), Some(0));
}
