//! `POST /v1/events` and `POST /v1/topics/{topic}/records`.
//!
//! A bulk client numbers its lines and sends batches over any number of connections (R17):
//! `Quikflow-Producer` names its lane, `Quikflow-First-Line` the number of the body's first line,
//! `Quikflow-Previous-Line` the last line of the batch before. Only NDJSON has lanes.

use crate::accept::{LaneStart, Order, decode, is_array, run};
use crate::answer::{Accepted, bad_request};
use crate::body::{Form, Packing, form, packing, read, unpack};
use crate::joined::join;
use crate::state::Door;
use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use quikflow_gateway::{Auth, Principal, Problem, admit};
use serde::Deserialize;
use std::sync::Arc;

/// What the query string says.
#[derive(Debug, Default, Deserialize)]
pub struct Wanted {
    /// `false`: only the counts.
    records: Option<bool>,
}

/// `POST /v1/events`: the type decides the topic. Most requests are this one, so it can be answered
/// without a router's layers around it.
#[derive(Clone)]
pub struct Events {
    pub(crate) door: Arc<Door>,
    pub(crate) auth: Arc<Auth>,
}

impl Events {
    /// Whether a request is one of these.
    pub fn takes<B>(&self, request: &Request<B>) -> bool {
        request.method() == Method::POST && request.uri().path() == "/v1/events"
    }

    /// Admits the request by its headers, and answers it: 202, or 400, 401, 403, 409, 413, 415, 422, 429, 503.
    pub async fn answer<B>(self, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send,
    {
        let (head, body) = request.into_parts();
        let principal = match admit(&self.auth, &head).await {
            Ok((principal, _)) => principal,
            Err(refused) => return *refused,
        };
        let wanted = match head.uri.query().map(|_| Query::<Wanted>::try_from_uri(&head.uri)) {
            None => Wanted::default(),
            Some(Ok(Query(wanted))) => wanted,
            Some(Err(refused)) => return refused.into_response(),
        };
        take(&self.door, None, principal, &wanted, &head.headers, body).await.into_response()
    }

    /// Publishes one event that the system itself makes; answers when it is durable.
    ///
    /// # Errors
    /// 422 where the event type is not declared or its rules refuse a field; 429, 503.
    pub async fn publish(&self, event: &str) -> Result<(), Problem> {
        publish(&self.door, event, "system".to_owned()).await.map(drop)
    }
}

/// Publishes one event that the system itself makes, durably, by the door's own rules.
///
/// # Errors
/// 422 where the event type is not declared or its rules refuse a field; 429, 503.
pub(crate) async fn publish(door: &Door, event: &str, principal: String) -> Result<Accepted, Problem> {
    let room = door.reserve(event.len())?;
    let order = Order { places: true, principal, ..Order::default() };
    let answer = decode(door, Form::Json, event.as_bytes(), &order)?.append(door, &order)?.answer().await;
    drop(room);
    answer
}

/// `POST /v1/topics/{topic}/records`: only event types of that topic.
///
/// # Errors
/// As [`Events::answer`]; 404 for a topic that takes no events.
pub async fn post_records(
    State(door): State<Arc<Door>>,
    Path(topic): Path<String>,
    principal: Option<Extension<Principal>>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
    body: Body,
) -> Result<Accepted, Problem> {
    if !door.decoder.takes(&topic) {
        let topic: String = topic.chars().take(100).collect();
        let detail = format!("no topic `{topic}` takes events, see /openapi.json for those that do");
        return Err(Problem::new(404, "unknown_topic", "no such topic").detail(detail));
    }
    let principal = principal.map(|Extension(principal)| principal).unwrap_or_default();
    take(&door, Some(topic), principal, &wanted, &headers, body).await
}

async fn take(
    door: &Arc<Door>,
    topic: Option<String>,
    principal: Principal,
    wanted: &Wanted,
    headers: &HeaderMap,
    body: impl HttpBody<Data = Bytes> + Send,
) -> Result<Accepted, Problem> {
    let started = door.clock.elapsed();
    let (form, packing) = (form(headers)?, packing(headers)?);
    let order = Order {
        topic,
        key: key(headers)?,
        places: wanted.records.unwrap_or(true),
        principal: principal.0,
        lane: lane(headers, form)?,
    };
    let mut held = read(door, headers, body).await?;
    if form == Form::Json && packing == Packing::Plain && held.bytes.len() <= door.limits.inline_bytes && !is_array(&held.bytes) {
        let answer = join(door, held.bytes, order, held.room).await;
        door.seconds.record(door.clock.elapsed().saturating_sub(started));
        return answer;
    }
    // What is packed may be large: never unpack it on an async thread.
    let size = if packing == Packing::Plain { held.bytes.len() } else { usize::MAX };
    let (pending, room) = run(door, size, move |door| {
        let bytes = unpack(door, packing, &mut held)?;
        let pending = decode(door, form, &bytes, &order)?.append(door, &order)?;
        Ok((pending, held.room))
    })
    .await?;
    let answer = pending.answer().await;
    drop(room);
    door.seconds.record(door.clock.elapsed().saturating_sub(started));
    answer
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= 200 => Ok(Some(key.to_owned())),
        _ => Err(bad_request("bad_key", "an Idempotency-Key has 1 to 200 printable ASCII characters")),
    }
}

fn lane(headers: &HeaderMap, form: Form) -> Result<Option<LaneStart>, Problem> {
    let number = |name: &str| -> Result<Option<u64>, Problem> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
        number.map(Some).ok_or_else(|| bad_request("bad_lane", format!("`{name}` has to be a whole number")))
    };
    let (first, previous) = (number("quikflow-first-line")?, number("quikflow-previous-line")?);
    let Some(producer) = headers.get("quikflow-producer") else {
        if first.is_some() || previous.is_some() {
            return Err(bad_request("bad_lane", "line numbers need a `Quikflow-Producer`"));
        }
        return Ok(None);
    };
    let producer = producer.to_str().map(str::trim).unwrap_or_default();
    if producer.is_empty() || producer.len() > 200 {
        return Err(bad_request("bad_lane", "a `Quikflow-Producer` has 1 to 200 printable ASCII characters"));
    }
    if form != Form::Lines {
        return Err(bad_request("bad_lane", "only `application/x-ndjson` has lanes"));
    }
    let Some(previous) = previous else {
        return Err(bad_request("bad_lane", "`Quikflow-Previous-Line` is missing, send 0 with the first batch"));
    };
    let first = first.unwrap_or(previous.saturating_add(1));
    if first <= previous || first > u64::MAX / 2 {
        return Err(bad_request("bad_lane", "`Quikflow-First-Line` has to be above `Quikflow-Previous-Line`"));
    }
    Ok(Some(LaneStart { producer: producer.to_owned(), first, previous }))
}
