//! The demo's traffic: channel members to their topic, most of the rest as a file, some messages by WebSocket.

use super::Args;
use crate::client::Client;
use crate::exit::{Context, Failure};
use crate::generator::{Options, Traffic};
use crate::out;
use crate::sender;
use futures::{SinkExt, StreamExt};
use quikflow_topics::clock::SystemClock;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Event time that the generated story takes: it ends now.
const STORY_MICROS: i64 = 3_600_000_000;
/// Messages that go by WebSocket.
const BY_SOCKET: usize = 500;
/// The topic of channel members.
const MEMBERS: &str = "QuikApp.members";
/// Members a request.
const AT_ONCE: usize = 500;

/// Sends everything.
///
/// # Errors
/// What `send` says; a socket that is refused.
pub(super) async fn send(args: &Args, data: &Path, ingest: &str, token: Option<&str>) -> Result<(), Failure> {
    let clock = SystemClock::shared();
    let options =
        sender::Options { base: ingest.to_owned(), token: token.map(str::to_owned), rate: None, connections: 2, batch: 1000 };
    if let Some(input) = &args.input {
        let summary = sender::send(input, options, clock).await?;
        return out::line(summary.text(&input.display().to_string()));
    }
    let now = clock.now().0;
    let story = Options {
        events: args.events,
        seed: args.seed,
        users: usize::try_from(args.events / 50).unwrap_or(usize::MAX).clamp(20, 2_000),
        from: now - STORY_MICROS,
        to: now,
        members: true,
        ids: false,
    };
    // Messages of the last part go by WebSocket, after the file: it is the newest.
    let (mut by_file, mut by_socket, mut by_topic) = (Vec::new(), Vec::new(), Vec::new());
    let last_part = args.events.saturating_sub(args.events / 10);
    for (at, event) in Traffic::new(story).enumerate() {
        if event.name == "MEMBER_ADDED" {
            by_topic.push(event.json);
        } else if event.name == "MESSAGE_SENT" && by_socket.len() < BY_SOCKET && at as u64 >= last_part {
            by_socket.push(event.json);
        } else {
            serde_json::to_writer(&mut by_file, &event.json).context("generate")?;
            by_file.push(b'\n');
        }
    }
    let path = data.join("demo.jsonl");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(&by_file)).context(path.display())?;
    members(&by_topic, ingest, token).await?;
    out::line(format!("to the topic {MEMBERS}: {} channel members", by_topic.len()))?;
    let summary = sender::send(&path, options, clock).await?;
    out::line(summary.text("by HTTP"))?;
    let stored = socket(&by_socket, ingest, token).await?;
    out::line(format!("by WebSocket: {stored} of {} messages stored", by_socket.len()))?;
    std::fs::remove_file(&path).context(path.display())
}

/// They joined when the story says so: `PUT …/members/…` would stamp them with the door's own time,
/// and the story's messages would miss them.
async fn members(events: &[Value], ingest: &str, token: Option<&str>) -> Result<(), Failure> {
    let client = Client::exactly(ingest, token)?;
    for events in events.chunks(AT_ONCE) {
        client.post(&format!("/v1/topics/{MEMBERS}/records?records=false"), &json!(events)).await?;
    }
    Ok(())
}

/// One socket, as many frames under way as the door gives credit for; returns how many were stored.
async fn socket(events: &[Value], ingest: &str, token: Option<&str>) -> Result<usize, Failure> {
    let url = format!("{}/v1/ws", ingest.replacen("http", "ws", 1));
    let mut request = url.as_str().into_client_request().context(&url)?;
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().usage("the token")?;
        request.headers_mut().insert("authorization", value);
    }
    let (stream, _) = tokio_tungstenite::connect_async(request).await.context(&url)?;
    let (mut write, mut read) = stream.split();
    let (mut credit, mut sent, mut answered, mut stored) = (0_usize, 0_usize, 0_usize, 0_usize);
    while answered < events.len() {
        if sent < events.len() && sent - answered < credit {
            let frame = json!({ "ref": sent, "event": events[sent] }).to_string();
            write.send(Message::text(frame)).await.context(&url)?;
            sent += 1;
            continue;
        }
        let message = match read.next().await {
            Some(message) => message.context(&url)?,
            None => return Err(Failure::failed(format!("{url} closed the socket after {answered} answers"))),
        };
        let Message::Text(text) = message else { continue };
        let answer: Value = serde_json::from_str(text.as_str()).context(&url)?;
        if let Some(given) = answer.get("credit").and_then(Value::as_u64) {
            credit = usize::try_from(given).unwrap_or(usize::MAX);
        }
        if let Some(ok) = answer.get("ok").and_then(Value::as_bool) {
            answered += 1;
            stored += usize::from(ok);
        }
    }
    write.close().await.context(&url)?;
    Ok(stored)
}
