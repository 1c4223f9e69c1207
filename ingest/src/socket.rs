//! `GET /v1/ws`: one event a text frame.
//!
//! The server's first frame is `{"credit":n}`: so many events may be unanswered. The client sends
//! `{"ref":…,"event":{…}}`, the server answers each with
//! `{"ref":…,"ok":true,"duplicate":false,"topic":…,"partition":…,"offset":…}` when it is durable, or
//! `{"ref":…,"ok":false,"errors":[…]}`. Answers come in the order of the events. Who sends beyond
//! the credit is closed with 1008. Frames that wait are appended together.
//!
//! A client that does not read its answers is no longer read from, and closed after a while: at
//! most its credit's frames are kept, and their bytes count in the door's budget.

use crate::accept::{self, Outcome, count_rejects, fates, outcome};
use crate::answer::{Named, errors, of_broker};
use crate::state::Door;
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use metrics::{counter, gauge};
use quikflow_gateway::{FieldError, Principal, Problem};
use quikflow_topics::broker::{Append, Appended, Ticket};
use quikflow_topics::json::{self, Reject};
use quikflow_topics::{BrokerError, Offset, PartitionId, failpoint};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Past so many waiting bytes a socket is not read from.
const WAITING_BYTES: usize = 1 << 20;
/// Most bytes of a `ref`.
const REF_BYTES: usize = 256;

/// Takes a WebSocket.
///
/// # Errors
/// 503 where there are too many.
pub async fn upgrade(
    State(door): State<Arc<Door>>,
    principal: Option<Extension<Principal>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let Ok(permit) = Arc::clone(&door.sockets).try_acquire_owned() else {
        let problem = Problem::new(503, "too_many_sockets", "too many WebSockets");
        return Err(problem.detail("use POST /v1/events, or try again later").retry_after(Duration::from_secs(5)));
    };
    let principal = principal.map(|Extension(p)| p.0).unwrap_or_default();
    let largest = door.limits.event.max_event_bytes + 4096;
    let upgrade = upgrade.max_message_size(largest).max_frame_size(largest).max_write_buffer_size(largest.max(1 << 20));
    let answer = upgrade.on_upgrade(move |socket| async move {
        gauge!("quikflow_ingest_sockets").increment(1.0);
        Session::new(door, principal, socket).run().await;
        gauge!("quikflow_ingest_sockets").decrement(1.0);
        drop(permit);
    });
    Ok(answer.into_response())
}

/// A frame that waits, with its room in the budget.
struct Frame {
    text: Utf8Bytes,
    room: OwnedSemaphorePermit,
}

/// A frame's answer before the log has spoken.
enum Fate {
    /// The row of the append: (element of `rows`, row).
    Row(usize, usize),
    Refused(Vec<FieldError>),
}

struct Sent {
    reference: String,
    fate: Fate,
}

/// An append under way.
struct Batch {
    ticket: Ticket<Appended>,
    topics: Vec<String>,
    /// Their room is kept until they are answered.
    frames: Vec<Frame>,
    sent: Vec<Sent>,
}

/// Why a session ends: the close code and its reason.
type End = (u16, &'static str);

struct Session {
    door: Arc<Door>,
    principal: String,
    writer: SplitSink<WebSocket, Message>,
    reader: SplitStream<WebSocket>,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// Read, but without room in the budget yet.
    stash: Option<Utf8Bytes>,
    unanswered: usize,
}

impl Session {
    fn new(door: Arc<Door>, principal: String, socket: WebSocket) -> Session {
        let (writer, reader) = socket.split();
        let waiting = VecDeque::new();
        Session { door, principal, writer, reader, waiting, waiting_bytes: 0, stash: None, unanswered: 0 }
    }

    async fn run(mut self) {
        let (code, reason) = match self.work().await {
            Ok(()) => (1000, ""),
            Err(end) => end,
        };
        let close = Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) }));
        let closed = tokio::time::timeout(Duration::from_secs(1), self.writer.send(close)).await;
        tracing::debug!(code, reason, told = closed.is_ok(), "a WebSocket ended");
    }

    async fn work(&mut self) -> Result<(), End> {
        let credit = serde_json::json!({ "credit": self.door.limits.credit }).to_string();
        self.send(credit).await?;
        let mut closing = self.door.closing.clone();
        let mut batch: Option<Batch> = None;
        let mut ended = false;
        loop {
            if batch.is_none() && !self.waiting.is_empty() {
                let frames = self.waiting.drain(..).collect();
                self.waiting_bytes = 0;
                batch = self.append(frames).await?;
            }
            if ended && batch.is_none() && self.waiting.is_empty() && self.stash.is_none() {
                return Ok(());
            }
            let reading = !ended && self.stash.is_none() && self.waiting_bytes < WAITING_BYTES;
            let budget = Arc::clone(&self.door.budget);
            let room = self.stash.as_ref().map(|text| self.door.units(text.len()));
            tokio::select! {
                answer = durable(&mut batch), if batch.is_some() => {
                    if let Some(done) = batch.take() {
                        self.answer(done, answer).await?;
                    }
                }
                permit = budget.acquire_many_owned(room.unwrap_or(1)), if room.is_some() => {
                    let Ok(permit) = permit else { return Err((1001, "the server is shutting down")) };
                    if let Some(text) = self.stash.take() {
                        self.hold(text, permit);
                    }
                }
                frame = self.reader.next(), if reading => match frame {
                    Some(Ok(Message::Text(text))) => self.take(text)?,
                    Some(Ok(Message::Binary(_))) => return Err((1003, "send events as text frames")),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => ended = true,
                },
                () = async { closing.wait_for(|closing| *closing).await.map_or((), |_| ()) }, if !ended => ended = true,
            }
        }
    }

    /// Takes a frame in, if the credit allows.
    fn take(&mut self, text: Utf8Bytes) -> Result<(), End> {
        self.unanswered += 1;
        if self.unanswered > self.door.limits.credit {
            counter!("quikflow_ingest_credit_exceeded_total").increment(1);
            return Err((1008, "more unanswered events than the credit"));
        }
        match self.door.reserve(text.len()) {
            Ok(room) => self.hold(text, room),
            Err(_) => self.stash = Some(text),
        }
        Ok(())
    }

    fn hold(&mut self, text: Utf8Bytes, room: OwnedSemaphorePermit) {
        self.waiting_bytes += text.len();
        self.waiting.push_back(Frame { text, room });
    }

    /// Decodes frames and hands them to the broker. Where none is good they are answered at once.
    async fn append(&mut self, frames: Vec<Frame>) -> Result<Option<Batch>, End> {
        loop {
            let (append, sent) = self.decode(&frames);
            let topics = append.rows.iter().map(|rows| rows.topic.name.clone()).collect();
            if append.rows.is_empty() {
                self.reply(&sent, &[], Ok(&Appended::default())).await?;
                return Ok(None);
            }
            match self.door.broker.append(append) {
                Ok(ticket) => return Ok(Some(Batch { ticket, topics, frames, sent })),
                // Back-pressure of a socket: nothing is read meanwhile, so its credit runs out.
                Err(BrokerError::Busy(after)) => tokio::time::sleep(after).await,
                Err(error) => {
                    self.reply(&sent, &[], Err(&error)).await?;
                    return Ok(None);
                }
            }
        }
    }

    fn decode(&self, frames: &[Frame]) -> (Append, Vec<Sent>) {
        let mut batch = self.door.decoder.batch(self.door.clock.now(), None);
        let mut references = Vec::with_capacity(frames.len());
        for (line, frame) in frames.iter().enumerate() {
            let (reference, event) = unwrapped(&frame.text, self.door.limits.event.max_depth + 1);
            match event {
                Ok(event) => {
                    batch.event(event.as_bytes(), line as u64, None);
                    references.push((reference, None));
                }
                Err(error) => references.push((reference, Some(error))),
            }
        }
        let Ok(decoded) = batch.finish() else {
            let error = FieldError { rule: "internal".into(), message: "internal error".into(), ..FieldError::default() };
            let refused = |(reference, _)| Sent { reference, fate: Fate::Refused(vec![error.clone()]) };
            return (Append::default(), references.into_iter().map(refused).collect());
        };
        count_rejects(&decoded.rejects);
        let fates = fates(&decoded, frames.len());
        let sent = references.into_iter().zip(fates).map(|((reference, error), fate)| {
            let fate = match fate {
                Some(accept::Fate::Row(at, row)) => Fate::Row(at, row),
                Some(accept::Fate::Refused(reject)) => Fate::Refused(of_reject(&reject)),
                None => Fate::Refused(error.into_iter().collect()),
            };
            Sent { reference, fate }
        });
        let sent = sent.collect();
        let principal = self.principal.clone();
        (Append { rows: decoded.rows, principal, want_positions: true, apart: true, ..Append::default() }, sent)
    }

    async fn answer(&mut self, batch: Batch, answer: Result<Appended, BrokerError>) -> Result<(), End> {
        let Batch { topics, frames, sent, .. } = batch;
        self.reply(&sent, &topics, answer.as_ref()).await?;
        drop(frames.into_iter().map(|frame| frame.room).collect::<Vec<_>>());
        Ok(())
    }

    async fn reply(&mut self, sent: &[Sent], topics: &[String], answer: Result<&Appended, &BrokerError>) -> Result<(), End> {
        failpoint::hit("ingest.answer.before");
        if let Ok(appended) = answer {
            counter!("quikflow_ingest_accepted_total").increment(appended.accepted);
            counter!("quikflow_ingest_duplicates_total").increment(appended.duplicates);
        }
        for one in sent {
            let text = match (&one.fate, answer) {
                (Fate::Refused(errors), _) => refusal(&one.reference, errors),
                (Fate::Row(at, row), Ok(appended)) => match outcome(appended, *at, *row) {
                    Outcome::Stored { place, repeated } => acceptance(one, topics.get(*at), place, repeated),
                    Outcome::Conflict(id) => refusal(&one.reference, &[conflict(id)]),
                },
                (Fate::Row(..), Err(error)) => refusal(&one.reference, &[of_refused(error)]),
            };
            self.feed(text).await?;
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        self.flush().await
    }

    async fn feed(&mut self, text: String) -> Result<(), End> {
        let fed = tokio::time::timeout(self.door.limits.send_timeout, self.writer.feed(Message::text(text))).await;
        written(fed)
    }

    async fn flush(&mut self) -> Result<(), End> {
        written(tokio::time::timeout(self.door.limits.send_timeout, self.writer.flush()).await)
    }

    async fn send(&mut self, text: String) -> Result<(), End> {
        self.feed(text).await?;
        self.flush().await
    }
}

/// Waits for the batch's ticket; forever where there is no batch.
async fn durable(batch: &mut Option<Batch>) -> Result<Appended, BrokerError> {
    match batch {
        Some(batch) => (&mut batch.ticket).await,
        None => std::future::pending().await,
    }
}

fn written(sent: Result<Result<(), axum::Error>, tokio::time::error::Elapsed>) -> Result<(), End> {
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err((1006, "the client has gone")),
        Err(_) => Err((1008, "the answers were not read")),
    }
}

/// Takes `{"ref","event"}` apart: the reference as it was written, and the event's text.
fn unwrapped(frame: &str, max_depth: usize) -> (String, Result<&str, FieldError>) {
    let error = |path: &str, rule: &str, message: &str| FieldError {
        path: path.to_owned(),
        rule: rule.to_owned(),
        message: message.to_owned(),
        ..FieldError::default()
    };
    let members = match json::members(frame, max_depth) {
        Ok(members) => members,
        Err(fault) => return ("null".to_owned(), Err(error(&fault.path, fault.code.name(), &fault.message))),
    };
    let find = |name: &str| members.iter().find(|(n, _)| n == name).map(|(_, raw)| *raw);
    let reference = find("ref").unwrap_or("null");
    if reference.len() > REF_BYTES || reference.starts_with(['{', '[']) {
        let error = error("ref", "not_allowed", "a ref is a short string or a number");
        return ("null".to_owned(), Err(error));
    }
    let event = find("event").ok_or_else(|| error("event", "missing_field", "is required"));
    (reference.to_owned(), event)
}

fn of_reject(reject: &Reject) -> Vec<FieldError> {
    errors(std::slice::from_ref(reject), Named::Single)
}

fn of_refused(error: &BrokerError) -> FieldError {
    let problem = of_broker(error);
    let rule = problem.kind.rsplit(':').next().unwrap_or_default().to_owned();
    FieldError { rule, message: problem.detail, ..FieldError::default() }
}

fn conflict(id: &str) -> FieldError {
    FieldError { path: "id".to_owned(), ..of_refused(&BrokerError::IdConflict { row: 0, id: id.to_owned() }) }
}

fn refusal(reference: &str, errors: &[FieldError]) -> String {
    #[derive(serde::Serialize)]
    struct Refusal<'a> {
        #[serde(rename = "ref")]
        reference: Option<&'a RawValue>,
        ok: bool,
        errors: &'a [FieldError],
    }
    let reference = serde_json::from_str::<&RawValue>(reference).ok();
    serde_json::to_string(&Refusal { reference, ok: false, errors }).unwrap_or_default()
}

fn acceptance(sent: &Sent, topic: Option<&String>, place: Option<(PartitionId, Offset)>, duplicate: bool) -> String {
    #[derive(serde::Serialize)]
    struct Acceptance<'a> {
        #[serde(rename = "ref")]
        reference: Option<&'a RawValue>,
        ok: bool,
        duplicate: bool,
        topic: Option<&'a String>,
        partition: Option<u32>,
        offset: Option<u64>,
    }
    let reference = serde_json::from_str::<&RawValue>(&sent.reference).ok();
    let acceptance =
        Acceptance { reference, ok: true, duplicate, topic, partition: place.map(|p| p.0.0), offset: place.map(|p| p.1.0) };
    serde_json::to_string(&acceptance).unwrap_or_default()
}
