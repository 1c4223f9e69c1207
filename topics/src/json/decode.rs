//! The door's parse: bytes → one batch a topic, and rejects with their reason.
//!
//! ```text
//! {"type":"MESSAGE_SENT","payload":{…},"timestamp":"2026-01-01T12:00:00Z","id":"…","metadata":{…}}
//! ```
//! `type`, `payload` and `timestamp` are required, in any order. `id` makes a repeat harmless
//! (R16); `metadata` becomes the record's headers. Undeclared names, in the envelope or in the
//! payload, are kept in `_rest`, as are explicit nulls and numbers or times whose text the column
//! would not give back (R11). The record's key is the payload field that the event type names.

use super::columns::TopicColumns;
use super::event::{Beside, Envelope, Scratch, append, check_payload, scan_event};
use super::fault::{Code, Fault, shown};
use super::rules::{EventPlan, Faults};
use super::scan::{Scanner, Value};
use crate::broker::TopicRows;
use crate::catalogue::{Catalogue, TopicKind, TopicSpec};
use crate::ids::EventTime;
use hashbrown::HashMap;
use std::sync::Arc;

/// What one event may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Deepest nesting; the event itself is level 1, its payload level 2. At most 128.
    pub max_depth: usize,
    /// Most bytes of one event.
    pub max_event_bytes: usize,
    /// Most characters of an `id`.
    pub max_id_length: usize,
    /// So many bytes of a refused event are kept.
    pub kept_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_depth: 32, max_event_bytes: 1 << 20, max_id_length: 256, kept_bytes: 64 << 10 }
    }
}

/// An event that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Line (from 1) or index in the array (from 0), as counted by the caller.
    pub line: u64,
    /// What is wrong; never empty.
    pub faults: Vec<Fault>,
    /// The bytes, at most [`Limits::kept_bytes`] of them.
    pub bytes: Vec<u8>,
    /// How many bytes there were.
    pub full_size: u64,
}

/// What came of a request's events.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Good rows, by topic, in the order they came.
    pub rows: Vec<TopicRows>,
    /// For each element of `rows` each row's line or index, ascending.
    pub lines: Vec<Vec<u64>>,
    /// Refused events, in the order they came.
    pub rejects: Vec<Reject>,
    /// Number of good rows.
    pub accepted: u64,
}

/// All event types and their rules, made ready once.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    topics: Vec<Arc<TopicSpec>>,
    events: Vec<EventPlan>,
    by_type: HashMap<Box<str>, usize>,
}

impl Decoder {
    /// A decoder of the catalogue's events. An event type whose topic or key the catalogue lacks
    /// is unknown here; the catalogue's parser refuses it before.
    pub fn new(catalogue: &Catalogue, limits: Limits) -> Decoder {
        let limits = Limits { max_depth: limits.max_depth.min(128), ..limits };
        let topics: Vec<_> = catalogue.topics.values().filter(|t| t.kind == TopicKind::Events).cloned().collect();
        let mut events = Vec::new();
        for event in catalogue.events.values() {
            let topic = topics.iter().position(|t| t.name == event.topic);
            events.extend(topic.and_then(|at| EventPlan::new(event, at, &topics[at])));
        }
        let by_type = events.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Decoder { limits, topics, events, by_type }
    }

    /// The limits it works by.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether `topic` takes events.
    pub fn takes(&self, topic: &str) -> bool {
        self.topics.iter().any(|t| t.name == topic)
    }

    /// Decodes events that arrived at `arrival`; with `only`, those of that topic.
    pub fn batch(&self, arrival: EventTime, only: Option<&str>) -> BatchDecoder<'_> {
        let mut batch = BatchDecoder {
            decoder: self,
            arrival,
            only: None,
            columns: self.topics.iter().map(|_| None).collect(),
            orders: self.events.iter().map(|_| Vec::new()).collect(),
            last_type: 0,
            scratch: Scratch::default(),
            rejects: Vec::new(),
            accepted: 0,
        };
        batch.only(only);
        batch
    }
}

/// Decodes the events of one request.
pub struct BatchDecoder<'d> {
    decoder: &'d Decoder,
    arrival: EventTime,
    only: Option<usize>,
    columns: Vec<Option<TopicColumns>>,
    /// By event type: which field stood at which place of the payload last time.
    orders: Vec<Vec<usize>>,
    last_type: usize,
    scratch: Scratch,
    rejects: Vec<Reject>,
    accepted: u64,
}

impl BatchDecoder<'_> {
    /// From now on takes events of that topic only; without one, of all.
    pub fn only(&mut self, topic: Option<&str>) {
        let topics = &self.decoder.topics;
        self.only = topic.map(|name| topics.iter().position(|t| t.name == name).unwrap_or(usize::MAX));
    }

    /// Takes one event's bytes. `line` must not descend from call to call; `id` is used where the
    /// event has none of its own. False where it was refused.
    pub fn event(&mut self, bytes: &[u8], line: u64, id: Option<&str>) -> bool {
        match self.take(bytes, line, id) {
            Ok(()) => {
                self.accepted += 1;
                true
            }
            Err(faults) => {
                self.refuse(bytes, line, faults);
                false
            }
        }
    }

    /// Takes each line of an NDJSON body; blank ones are passed over. The body's first line has
    /// the number `first`. An event without an id gets `<ids>:<line>` where `ids` is given.
    /// Returns the number of the last line.
    pub fn ndjson(&mut self, body: &[u8], first: u64, ids: Option<&str>) -> u64 {
        let mut last = first.saturating_sub(1);
        let mut rest = body;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            last += 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let id = ids.map(|ids| format!("{ids}:{last}"));
            self.event(line, last, id.as_deref());
        }
        last
    }

    /// Takes each item of a JSON array, counted from 0. An event without an id gets `<ids>:<index>`
    /// where `ids` is given.
    ///
    /// # Errors
    /// The body as a whole is no JSON array; no event was taken then.
    pub fn array(&mut self, body: &[u8], ids: Option<&str>) -> Result<(), Reject> {
        let mut items: Vec<Value> = Vec::new();
        let crossed = std::str::from_utf8(body).map_err(|e| not_utf8(e.valid_up_to())).and_then(|text| {
            let mut scanner = Scanner::new(text, self.decoder.limits.max_depth + 1, &mut self.scratch.names);
            let array = scanner.array(1, |scanner, _| {
                scanner.peek();
                let start = scanner.position();
                let item = scanner.value(2)?;
                items.push(Value { kind: item.kind, start, end: scanner.position() });
                Ok(())
            });
            array.and_then(|()| scanner.end()).map_err(|trouble| trouble.into_fault())
        });
        if let Err(fault) = crossed {
            return Err(self.reject(body, 0, vec![fault]));
        }
        for (index, item) in items.iter().enumerate() {
            let id = ids.map(|ids| format!("{ids}:{index}"));
            self.event(body.get(item.start..item.end).unwrap_or_default(), index as u64, id.as_deref());
        }
        Ok(())
    }

    /// The batches and the rejects.
    ///
    /// # Errors
    /// Never for a topic whose schema is its own; Arrow's message otherwise.
    pub fn finish(self) -> Result<Decoded, arrow::error::ArrowError> {
        let mut decoded = Decoded { rejects: self.rejects, accepted: self.accepted, ..Decoded::default() };
        for columns in self.columns.into_iter().flatten() {
            let topic = Arc::clone(&columns.topic);
            let (rows, lines) = columns.finish()?;
            decoded.rows.push(TopicRows { topic, rows });
            decoded.lines.push(lines);
        }
        Ok(decoded)
    }

    fn reject(&self, bytes: &[u8], line: u64, faults: Vec<Fault>) -> Reject {
        let kept = bytes.len().min(self.decoder.limits.kept_bytes);
        Reject { line, faults, bytes: bytes[..kept].to_vec(), full_size: bytes.len() as u64 }
    }

    fn refuse(&mut self, bytes: &[u8], line: u64, faults: Vec<Fault>) {
        let reject = self.reject(bytes, line, faults);
        self.rejects.push(reject);
    }

    fn take(&mut self, bytes: &[u8], line: u64, id: Option<&str>) -> Result<(), Vec<Fault>> {
        let limits = &self.decoder.limits;
        if bytes.len() > limits.max_event_bytes {
            let message = format!("has {} bytes, at most {} are allowed", bytes.len(), limits.max_event_bytes);
            return Err(vec![Fault::new("", Code::TooLarge, message)]);
        }
        let text = std::str::from_utf8(bytes).map_err(|e| vec![not_utf8(e.valid_up_to())])?;
        let scratch = &mut self.scratch;
        scratch.clear();
        scan_event(text, limits.max_depth, scratch).map_err(|fault| vec![fault])?;

        let mut faults = Faults::default();
        let envelope = Envelope::read(text, scratch, limits, &mut faults);
        let event = self.decoder.event_of(text, envelope.ty, self.last_type, self.only, &mut faults);
        let (Some((index, event)), Some(_)) = (event, envelope.payload) else { return Err(faults.0) };
        self.last_type = index;
        check_payload(text, event, &mut self.orders[index], scratch, &mut faults);
        let topic = &self.decoder.topics[event.topic];
        let ahead = i64::try_from(topic.future_within.as_micros()).unwrap_or(i64::MAX);
        if envelope.time > self.arrival.plus(ahead).0 {
            let message = format!(
                "lies more than {} after its arrival, set the sender's clock",
                crate::units::show_duration(topic.future_within)
            );
            faults.add("timestamp", Code::FarFuture, message);
        }
        if !faults.0.is_empty() {
            return Err(faults.0);
        }

        let columns = self.columns[event.topic].get_or_insert_with(|| TopicColumns::new(topic));
        append(text, event, &envelope, Beside { id, ..Beside::default() }, scratch, columns);
        columns.lines.push(line);
        Ok(())
    }
}

impl Decoder {
    /// The event type that `ty` names; `last` is looked at first.
    #[inline]
    fn event_of(
        &self,
        text: &str,
        ty: Option<Value>,
        last: usize,
        only: Option<usize>,
        faults: &mut Faults,
    ) -> Option<(usize, &EventPlan)> {
        let ty = ty?;
        let index = match self.events.get(last) {
            Some(event) if ty.is(text, &event.name) => last,
            _ => {
                let name = ty.text(text);
                let Some(&index) = self.by_type.get(name.as_ref()) else {
                    let message = format!("no event type `{}` is declared", shown(&name));
                    faults.add("type", Code::UnknownType, message);
                    return None;
                };
                index
            }
        };
        let event = &self.events[index];
        if only.is_some_and(|only| only != event.topic) {
            let message = format!("`{}` belongs to the topic `{}`, send it there", event.name, self.topics[event.topic].name);
            faults.add("type", Code::WrongTopic, message);
            return None;
        }
        Some((index, event))
    }
}

#[cold]
fn not_utf8(at: usize) -> Fault {
    Fault::new("", Code::InvalidUtf8, format!("not UTF-8 from byte {at} on"))
}
