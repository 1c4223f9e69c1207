//! Bytes → an append, and its outcome in the order of the events.
//!
//! [`decode`] is pure work on bytes; [`Work::append`] hands it to the broker. Both may run on a
//! blocking thread. Refused lines go along as dead letters, in the same transaction.

use crate::answer::{Accepted, Duplicates, Named, Place, errors, of_broker, refused};
use crate::body::{Form, too_large};
use crate::state::Door;
use metrics::{counter, histogram};
use quikflow_gateway::Problem;
use quikflow_topics::broker::{Append, Appended, Lane, Ticket};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterStatus};
use quikflow_topics::json::{Decoded, Reject};
use quikflow_topics::{EventTime, Offset, PartitionId, failpoint};
use std::sync::Arc;
use std::time::Duration;

/// What a request says besides its body.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Only events of this topic.
    pub topic: Option<String>,
    /// `Idempotency-Key`: a single event's id; of several, the id of each is `<key>:<index or line>`.
    pub key: Option<String>,
    /// Whether the records' places are wanted.
    pub places: bool,
    /// The scope of ids.
    pub principal: String,
    /// The lane of a bulk producer.
    pub lane: Option<LaneStart>,
}

/// A lane as the request's headers tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStart {
    /// The producer.
    pub producer: String,
    /// The number of the body's first line.
    pub first: u64,
    /// The last line of the batch before.
    pub previous: u64,
}

/// Decoded, not yet written.
pub struct Work {
    decoded: Decoded,
    named: Named,
    lane: Option<Lane>,
    arrival: EventTime,
}

/// Handed to the broker.
pub struct Pending {
    ticket: Ticket<Appended>,
    topics: Vec<(String, Vec<u64>)>,
    rejects: Vec<Reject>,
    named: Named,
    places: bool,
    lane: bool,
    good: u64,
}

/// Decodes a body.
///
/// # Errors
/// 413 for too many events; 422 for a single event or an array with anything wrong.
pub fn decode(door: &Door, form: Form, body: &[u8], order: &Order) -> Result<Work, Problem> {
    let started = door.clock.elapsed();
    let arrival = door.clock.now();
    let mut batch = door.decoder.batch(arrival, order.topic.as_deref());
    let key = order.key.as_deref();
    let mut lane = None;
    let named = match form {
        Form::Lines => {
            let lines = memchr::memchr_iter(b'\n', body).count();
            if lines > door.limits.max_events {
                return Err(too_many(door.limits.max_events));
            }
            let first = order.lane.as_ref().map_or(1, |lane| lane.first);
            let last = batch.ndjson(body, first, key);
            lane = order.lane.as_ref().map(|lane| Lane {
                producer: lane.producer.clone(),
                previous: lane.previous,
                last: last.max(lane.previous),
            });
            Named::Line
        }
        Form::Json if is_array(body) => {
            if let Err(reject) = batch.array(body, key) {
                count_rejects(std::slice::from_ref(&reject));
                return Err(refused(&[reject], Named::Single));
            }
            Named::Index
        }
        Form::Json => {
            batch.event(body, 0, key);
            Named::Single
        }
    };
    let decoded = batch.finish().map_err(|error| {
        tracing::error!(%error, "decoded columns do not fit their schema");
        Problem::new(500, "internal", "internal error").detail("see the server's log")
    })?;
    if decoded.accepted as usize + decoded.rejects.len() > door.limits.max_events {
        return Err(too_many(door.limits.max_events));
    }
    histogram!("quikflow_ingest_decode_seconds").record(door.clock.elapsed().saturating_sub(started));
    counter!("quikflow_ingest_body_bytes_total").increment(body.len() as u64);
    count_rejects(&decoded.rejects);
    if named != Named::Line && !decoded.rejects.is_empty() {
        return Err(refused(&decoded.rejects, named));
    }
    Ok(Work { decoded, named, lane, arrival })
}

/// Whether a JSON body is an array.
pub(crate) fn is_array(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'[')
}

fn too_many(limit: usize) -> Problem {
    too_large(0).detail(format!("a request may have {limit} events, send them in parts"))
}

/// Counts refused events by the rule of their first fault.
pub(crate) fn count_rejects(rejects: &[Reject]) {
    for reject in rejects {
        let code = reject.faults.first().map_or("unknown", |fault| fault.code.name());
        counter!("quikflow_ingest_rejected_total", "code" => code).increment(1);
    }
}

impl Work {
    /// Hands it to the broker, which may sort and compress on this thread.
    ///
    /// # Errors
    /// What the broker refuses at once.
    pub fn append(self, door: &Door, order: &Order) -> Result<Pending, Problem> {
        let Work { decoded, named, lane, arrival } = self;
        let name = match &lane {
            Some(lane) => lane.producer.clone(),
            None => door.request_name(),
        };
        let topics = decoded.rows.iter().zip(&decoded.lines);
        let topics = topics.map(|(rows, lines)| (rows.topic.name.clone(), lines.clone())).collect();
        let has_lane = lane.is_some();
        let append = Append {
            lines: if has_lane { decoded.lines } else { Vec::new() },
            rows: decoded.rows,
            principal: order.principal.clone(),
            lane,
            dead_letters: decoded.rejects.iter().map(|reject| dead_letter(reject, &name, arrival)).collect(),
            want_positions: order.places,
            apart: false,
        };
        let ticket = door.broker.append(append).map_err(|error| of_broker(&error))?;
        Ok(Pending {
            ticket,
            topics,
            rejects: decoded.rejects,
            named,
            places: order.places,
            lane: has_lane,
            good: decoded.accepted,
        })
    }
}

impl Pending {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// What the broker says; 422 where no line was good.
    pub async fn answer(self) -> Result<Accepted, Problem> {
        let appended = self.ticket.await.map_err(|error| of_broker(&error))?;
        failpoint::hit("ingest.answer.before");
        counter!("quikflow_ingest_accepted_total").increment(appended.accepted);
        counter!("quikflow_ingest_duplicates_total").increment(appended.duplicates);
        if self.good == 0 && !self.rejects.is_empty() {
            let problem = refused(&self.rejects, self.named);
            return Err(if self.lane { problem.with("line", appended.lane_line) } else { problem });
        }
        let lines = self.named == Named::Line;
        Ok(Accepted {
            accepted: appended.accepted,
            duplicates: Duplicates::of(&appended),
            rejected: lines.then_some(self.rejects.len() as u64),
            errors: errors(&self.rejects, self.named),
            records: self.places.then(|| places(&self.topics, &appended)),
            line: self.lane.then_some(appended.lane_line),
        })
    }
}

/// The records' places in the order of the events, over all topics.
fn places(topics: &[(String, Vec<u64>)], appended: &Appended) -> Vec<Place> {
    let mut all: Vec<(u64, Place)> = Vec::with_capacity(topics.iter().map(|(_, lines)| lines.len()).sum());
    for (at, (topic, lines)) in topics.iter().enumerate() {
        for (row, line) in lines.iter().enumerate() {
            let place = appended.positions.get(at).and_then(|rows| rows.get(row).copied().flatten());
            let (partition, offset) = (place.map(|p| p.0.0), place.map(|p| p.1.0));
            all.push((*line, Place { topic: topic.clone(), partition, offset }));
        }
    }
    all.sort_by_key(|(line, _)| *line);
    all.into_iter().map(|(_, place)| place).collect()
}

fn dead_letter(reject: &Reject, name: &str, at: EventTime) -> DeadLetter {
    let fault = reject.faults.first();
    DeadLetter {
        id: format!("door:{name}:{}", reject.line),
        at,
        cause: "door".to_owned(),
        code: fault.map_or("", |f| f.code.name()).to_owned(),
        path: fault.map(|f| f.path.clone()).filter(|path| !path.is_empty()),
        message: fault.map_or_else(String::new, |f| f.message.clone()),
        topology: None,
        step: None,
        origin: None,
        bytes: reject.bytes.clone(),
        full_size: reject.full_size,
        status: DeadLetterStatus::Open,
    }
}

/// What became of one event of a batch whose events are answered apart.
pub(crate) enum Fate {
    /// It is this row of the append: (element of `rows`, row).
    Row(usize, usize),
    Refused(Reject),
}

/// The fate of each of `count` events, whose lines are 0, 1, …; none: it was not given to the decoder.
pub(crate) fn fates(decoded: &Decoded, count: usize) -> Vec<Option<Fate>> {
    let mut fates: Vec<Option<Fate>> = (0..count).map(|_| None).collect();
    let mut set = |line: u64, fate| {
        if let Some(slot) = usize::try_from(line).ok().and_then(|line| fates.get_mut(line)) {
            *slot = Some(fate);
        }
    };
    for (at, lines) in decoded.lines.iter().enumerate() {
        for (row, line) in lines.iter().enumerate() {
            set(*line, Fate::Row(at, row));
        }
    }
    for reject in &decoded.rejects {
        set(reject.line, Fate::Refused(reject.clone()));
    }
    fates
}

/// What the broker made of one row.
pub(crate) enum Outcome<'a> {
    /// It is there; `repeated`: since before.
    Stored { place: Option<(PartitionId, Offset)>, repeated: bool },
    /// Its id came before with another content.
    Conflict(&'a str),
}

/// Of an append with positions whose rows stand apart.
pub(crate) fn outcome(appended: &Appended, set: usize, row: usize) -> Outcome<'_> {
    let number = u32::try_from(row).unwrap_or(u32::MAX);
    if let Ok(at) = appended.conflicts.binary_search_by_key(&(set, number), |c| (c.set, c.row)) {
        return Outcome::Conflict(&appended.conflicts[at].id);
    }
    let place = appended.positions.get(set).and_then(|rows| rows.get(row).copied().flatten());
    Outcome::Stored { place, repeated: appended.repeated.get(set).is_some_and(|rows| rows.binary_search(&number).is_ok()) }
}

/// Runs `work` on this thread where it is small, else on one of few blocking threads.
///
/// # Errors
/// What `work` says; 503 while shutting down.
pub async fn run<T: Send + 'static>(
    door: &Arc<Door>,
    bytes: usize,
    work: impl FnOnce(&Door) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if bytes <= door.limits.inline_bytes {
        return work(door);
    }
    let closing = || Problem::new(503, "closing", "the server is shutting down").retry_after(Duration::from_secs(1));
    let permit = Arc::clone(&door.decoders).acquire_owned().await.map_err(|_| closing())?;
    let door = Arc::clone(door);
    let task = tokio::task::spawn_blocking(move || {
        let done = work(&door);
        drop(permit);
        done
    });
    task.await.map_err(|_| Problem::new(500, "internal", "internal error").detail("see the server's log"))?
}
