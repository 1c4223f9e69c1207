//! Dead letters: list, show, replay, resolve.

use super::blocking;
use crate::params::{Params, unknown};
use crate::problem::Problem;
use crate::relations::status_name;
use crate::state::QueryState;
use crate::times;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use base64::Engine;
use quikflow_topics::broker::Broker;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use serde::Deserialize;
use serde_json::{Value, json};

/// Most dead letters that one call marks.
const MOST: usize = 10_000;
/// Dead letters read at once.
const PAGE: usize = 500;
/// Bytes of a record shown in a listing; `GET /v1/dlq/{id}` shows all.
const PREVIEW: usize = 200;

fn status_of(text: &str) -> Result<DeadLetterStatus, Problem> {
    use DeadLetterStatus::{Open, Replayed, Replaying, Resolved};
    let all = [Open, Replaying, Replayed, Resolved];
    all.into_iter()
        .find(|s| status_name(*s) == text)
        .ok_or_else(|| Problem::field("status", "one_of", unknown("status", text, all.into_iter().map(status_name))))
}

/// `step:<topology>:<step>:…` and `sink:<sink>:…` can be tried again; a reject at the door cannot.
fn can_replay(letter: &DeadLetter) -> Result<(), &'static str> {
    if letter.id.starts_with("door:") {
        return Err("it was refused at the door: mend it and send it again");
    }
    match letter.status {
        DeadLetterStatus::Open | DeadLetterStatus::Resolved => Ok(()),
        DeadLetterStatus::Replaying => Err("it is being replayed already"),
        DeadLetterStatus::Replayed => Err("it was replayed already"),
    }
}

fn shown(letter: &DeadLetter, whole: bool) -> Value {
    let text = std::str::from_utf8(&letter.bytes).ok();
    let cut = |text: &str| text.chars().take(PREVIEW).collect::<String>();
    let mut value = json!({
        "id": letter.id,
        "at": times::show(letter.at),
        "cause": letter.cause,
        "code": letter.code,
        "path": letter.path,
        "message": letter.message,
        "topology": letter.topology,
        "step": letter.step,
        "origin": letter.origin.as_ref().map(|o| json!({"topic": o.topic, "partition": o.partition, "offset": o.offset})),
        "status": status_name(letter.status),
        "size": letter.full_size,
        "record": match whole {
            true => text.map(str::to_owned),
            false => Some(cut(&String::from_utf8_lossy(&letter.bytes))),
        },
    });
    if whole {
        value["bytes"] = base64::engine::general_purpose::STANDARD.encode(&letter.bytes).into();
        value["replayable"] = can_replay(letter).is_ok().into();
    }
    value
}

/// `GET /v1/dlq`: newest first.
pub(crate) async fn list(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    let known = ["cause", "code", "topology", "step", "status", "from", "to", "limit", "cursor"];
    let params = Params::read(query.as_deref(), &known)?;
    let limit = params.number("limit", 1, 1_000)?.unwrap_or(100);
    let owned = |name: &str| params.text(name).map(str::to_owned);
    let (from, to) = params.range()?;
    let before_seq = match params.text("cursor") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| Problem::field("cursor", "cursor", "`cursor` is not one that a page gave"))?),
    };
    let filter = DeadLetterFilter {
        id: None,
        cause: owned("cause"),
        code: owned("code"),
        topology: owned("topology"),
        step: owned("step"),
        status: params.text("status").map(status_of).transpose()?,
        from,
        to,
        before_seq,
        limit: limit + 1,
    };
    let broker = state.broker.clone();
    let mut page = blocking(move || broker.dead_letters(&filter).map_err(Problem::from)).await?;
    let more = page.len() > limit;
    page.truncate(limit);
    let cursor = page.last().filter(|_| more).map(|(seq, _)| seq.to_string());
    let items: Vec<Value> = page.iter().map(|(_, letter)| shown(letter, false)).collect();
    Ok(axum::Json(json!({ "items": items, "cursor": cursor })))
}

/// `GET /v1/dlq/{id}`: with its bytes.
pub(crate) async fn one(
    State(state): State<QueryState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let broker = state.broker.clone();
    let letter = blocking(move || find(broker.as_ref(), &id)).await?;
    letter.map(|l| axum::Json(shown(&l, true))).ok_or_else(|| Problem::not_found("there is no such dead letter"))
}

fn find(broker: &dyn Broker, id: &str) -> Result<Option<DeadLetter>, Problem> {
    let filter = DeadLetterFilter { id: Some(id.to_owned()), limit: 1, ..DeadLetterFilter::default() };
    Ok(broker.dead_letters(&filter)?.into_iter().next().map(|(_, letter)| letter))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    ids: Option<Vec<String>>,
    #[serde(default)]
    filter: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    cause: Option<String>,
    code: Option<String>,
    topology: Option<String>,
    step: Option<String>,
    status: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

impl Filter {
    fn read(self) -> Result<DeadLetterFilter, Problem> {
        let time = |name: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) => times::read(&text).map(Some).ok_or_else(|| {
                Problem::field(format!("filter.{name}"), "time", format!("`filter.{name}` is a time in RFC 3339"))
            }),
        };
        Ok(DeadLetterFilter {
            status: self.status.as_deref().map(status_of).transpose()?,
            from: time("from", self.from)?,
            to: time("to", self.to)?,
            cause: self.cause,
            code: self.code,
            topology: self.topology,
            step: self.step,
            limit: PAGE,
            ..DeadLetterFilter::default()
        })
    }
}

/// The dead letters that a call means, and ids there are none of.
fn chosen(broker: &dyn Broker, which: Which) -> Result<(Vec<DeadLetter>, Vec<String>), Problem> {
    let (mut letters, mut missing) = (Vec::new(), Vec::new());
    match (which.ids, which.filter) {
        (Some(ids), None) if ids.len() <= MOST => {
            for id in ids {
                match find(broker, &id)? {
                    Some(letter) => letters.push(letter),
                    None => missing.push(id),
                }
            }
        }
        (Some(_), None) => return Err(Problem::field("ids", "max_length", format!("`ids` has more than {MOST} elements"))),
        (None, Some(filter)) => {
            let mut filter = filter.read()?;
            loop {
                let page = broker.dead_letters(&filter)?;
                filter.before_seq = page.last().map(|(seq, _)| *seq);
                let done = page.len() < PAGE;
                letters.extend(page.into_iter().map(|(_, letter)| letter));
                if letters.len() > MOST {
                    let message = format!("`filter` holds for more than {MOST} dead letters: narrow it");
                    return Err(Problem::field("filter", "max_length", message));
                }
                if done {
                    break;
                }
            }
        }
        _ => return Err(Problem::field("body", "required", "give either `ids` or `filter`")),
    }
    Ok((letters, missing))
}

async fn mark(
    state: QueryState,
    query: Option<String>,
    body: Result<Bytes, BytesRejection>,
    to: DeadLetterStatus,
    allowed: fn(&DeadLetter) -> Result<(), &'static str>,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let which: Which = crate::router::json(&crate::router::body(body)?)?;
    let broker = state.broker.clone();
    blocking(move || {
        let (letters, missing) = chosen(broker.as_ref(), which)?;
        let (mut ids, mut skipped) = (Vec::new(), Vec::new());
        for letter in letters {
            match allowed(&letter) {
                Ok(()) => ids.push(letter.id),
                Err(reason) => skipped.push(json!({ "id": letter.id, "reason": reason })),
            }
        }
        skipped.extend(missing.into_iter().map(|id| json!({ "id": id, "reason": "there is no such dead letter" })));
        let marked = if ids.is_empty() { 0 } else { broker.mark_dead_letters(&ids, to)? };
        Ok(axum::Json(json!({ "marked": marked, "status": status_name(to), "skipped": skipped })))
    })
    .await
}

/// `POST /v1/dlq/replay {"ids": […]}` or `{"filter": {…}}`: the failed step or sink takes them again,
/// each at most once (R14).
pub(crate) async fn replay(
    State(state): State<QueryState>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Value>, Problem> {
    mark(state, query, body, DeadLetterStatus::Replaying, can_replay).await
}

/// `POST /v1/dlq/resolve`: puts them aside for good.
pub(crate) async fn resolve(
    State(state): State<QueryState>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Value>, Problem> {
    let allowed = |letter: &DeadLetter| match letter.status {
        DeadLetterStatus::Open | DeadLetterStatus::Resolved => Ok(()),
        DeadLetterStatus::Replaying => Err("it is being replayed"),
        DeadLetterStatus::Replayed => Err("it was replayed"),
    };
    mark(state, query, body, DeadLetterStatus::Resolved, allowed).await
}
