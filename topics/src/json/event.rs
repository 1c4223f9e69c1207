//! One event: crossed once, its envelope and payload checked, then appended to its topic's columns.

use super::columns::TopicColumns;
use super::decode::Limits;
use super::fault::{Code, Fault};
use super::rules::{EventPlan, Faults, Parsed, check, content, each_item, key_text, kind_name};
use super::scan::{Kind, Member, Scanner, Value};
use super::text::{sort, write_name, write_value};
use super::time::read_time;

/// Room that is used again for each event.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) names: Vec<Value>,
    envelope: Vec<Member>,
    payload: Vec<Member>,
    values: Vec<Parsed>,
    rest_envelope: Vec<Member>,
    rest_payload: Vec<Member>,
    text: String,
    headers: String,
    rest: String,
}

impl Scratch {
    /// Forgets the nulls of a row's payload: in a topic of rows null and absent are one.
    pub(super) fn forget_nulls(&mut self) {
        self.rest_payload.retain(|member| member.value.kind != Kind::Null);
    }

    pub(super) fn clear(&mut self) {
        self.envelope.clear();
        self.payload.clear();
        self.values.clear();
        self.rest_envelope.clear();
        self.rest_payload.clear();
        self.text.clear();
        self.headers.clear();
        self.rest.clear();
    }
}

/// Crosses the event once: the envelope's members, and the payload's.
pub(super) fn scan_event(text: &str, max_depth: usize, scratch: &mut Scratch) -> Result<(), Fault> {
    let Scratch { names, envelope, payload, .. } = scratch;
    let mut scanner = Scanner::new(text, max_depth, names);
    let outer = scanner.peek();
    let crossed = if outer == Some(b'{') { scanner.event_object(envelope, payload) } else { scanner.value(1).map(drop) };
    crossed.and_then(|()| scanner.end()).map_err(|trouble| trouble.into_fault())?;
    if outer == Some(b'{') {
        return Ok(());
    }
    Err(Fault::new("", Code::WrongType, "an event is a JSON object with type, payload and timestamp"))
}

/// The envelope's known members, checked.
#[derive(Default)]
pub(super) struct Envelope {
    pub(super) ty: Option<Value>,
    pub(super) payload: Option<Value>,
    pub(super) time: i64,
    pub(super) id: Option<Value>,
}

impl Envelope {
    pub(super) fn read(text: &str, scratch: &mut Scratch, limits: &Limits, faults: &mut Faults) -> Envelope {
        let mut envelope = Envelope::default();
        let mut timestamp = None;
        for &member in &scratch.envelope {
            let Member { name, value } = member;
            let name = name.text(text);
            let wrong = |wanted: &str| format!("has to be {wanted}, not {}", kind_name(value.kind));
            match (name.as_ref(), value.kind) {
                ("type", Kind::Text { .. }) => envelope.ty = Some(value),
                ("payload", Kind::Object) => envelope.payload = Some(value),
                ("timestamp", Kind::Text { .. }) => {
                    timestamp = Some(());
                    match read_time(&value.text(text)) {
                        Some(time) => {
                            envelope.time = time.micros;
                            if !time.faithful {
                                scratch.rest_envelope.push(member);
                            }
                        }
                        None => {
                            let message = "has to be an RFC 3339 time such as 2026-01-01T12:00:00Z";
                            faults.add("timestamp", Code::BadTimestamp, message);
                        }
                    }
                }
                ("id", Kind::Text { .. }) => {
                    let length = value.text(text).chars().count();
                    if length > limits.max_id_length {
                        let most = limits.max_id_length;
                        faults.add("id", Code::TooLong, format!("has {length} characters, at most {most} are allowed"));
                    } else if length == 0 {
                        faults.add("id", Code::TooShort, "is empty, leave it out or fill it");
                    }
                    envelope.id = Some(value);
                }
                ("metadata", Kind::Object) => write_value(text, &value, &mut scratch.headers),
                ("type" | "payload" | "timestamp", Kind::Null) => {}
                ("type" | "timestamp", _) => {
                    timestamp = timestamp.or((name == "timestamp").then_some(()));
                    envelope.ty = envelope.ty.filter(|_| name != "type");
                    faults.add(name.as_ref(), Code::WrongType, wrong("a string"));
                }
                ("payload", _) => faults.add("payload", Code::WrongType, wrong("an object")),
                ("id", kind) if kind != Kind::Null => faults.add("id", Code::WrongType, wrong("a string")),
                ("metadata", kind) if kind != Kind::Null => faults.add("metadata", Code::WrongType, wrong("an object")),
                _ => scratch.rest_envelope.push(member),
            }
        }
        let faulty = |faults: &Faults, name: &str| faults.0.iter().any(|f| f.path == name);
        for (name, there) in
            [("type", envelope.ty.is_some()), ("payload", envelope.payload.is_some()), ("timestamp", timestamp.is_some())]
        {
            if !there && !faulty(faults, name) {
                faults.add(name, Code::MissingField, "is required");
            }
        }
        envelope
    }
}

/// Checks the payload's members against the event type's fields.
pub(super) fn check_payload(text: &str, event: &EventPlan, order: &mut Vec<usize>, scratch: &mut Scratch, faults: &mut Faults) {
    let Scratch { payload, values, rest_payload, text: room, .. } = scratch;
    values.resize(event.fields.len(), Parsed::Absent);
    for (place, member) in payload.iter().enumerate() {
        let guess = order.get(place).copied().unwrap_or(place);
        let found = match member.name.kind {
            Kind::Text { escaped: false } => event.field(member.name.raw(text), guess),
            _ => event.field(&member.name.text(text), guess),
        };
        let Some(at) = found else {
            rest_payload.push(*member);
            continue;
        };
        if at != guess && place < 64 {
            order.resize(order.len().max(place + 1), usize::MAX);
            order[place] = at;
        }
        let field = &event.fields[at];
        if member.value.kind == Kind::Null {
            // Null is not absent (R11), but a required field needs a value.
            if !field.required {
                rest_payload.push(*member);
            }
            continue;
        }
        let mut fault = |inside: &str, code: Code, message: String| {
            faults.add(format!("payload.{}{inside}", field.spec.name), code, message);
        };
        match check(&field.spec, text, &member.value, room, &mut fault) {
            Some((parsed, faithful)) => {
                values[at] = parsed;
                if !faithful {
                    rest_payload.push(*member);
                }
            }
            // Refused anyway; so that it is not called missing as well:
            None => values[at] = Parsed::Bool(false),
        }
    }
    for (field, value) in event.fields.iter().zip(values.iter()) {
        if field.required && matches!(value, Parsed::Absent) {
            faults.add(format!("payload.{}", field.spec.name), Code::MissingField, "is required");
        }
    }
}

/// What stands beside an event's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside<'a> {
    /// The id of an event that has none of its own.
    pub(super) id: Option<&'a str>,
    /// The type where the plan is no event type's but the whole topic's.
    pub(super) ty: Option<&'a str>,
    /// The key where the plan names no fields for it.
    pub(super) key: Option<&'a str>,
}

/// Appends an event found right.
pub(super) fn append(
    text: &str,
    event: &EventPlan,
    envelope: &Envelope,
    beside: Beside<'_>,
    scratch: &mut Scratch,
    columns: &mut TopicColumns,
) {
    let Scratch { values, rest_envelope, rest_payload, text: room, headers, rest, .. } = scratch;
    let row = columns.rows;
    columns.rows += 1;
    columns.event_time.append_value(envelope.time);
    columns.ty.set(row, beside.ty.unwrap_or(&event.name));
    match event.key[..] {
        [] => {
            if let Some(key) = beside.key {
                columns.key.set(row, key);
            }
        }
        [only] if matches!(values[only], Parsed::Text(_) | Parsed::Scratch(..)) => {
            columns.key.set(row, content(&values[only], text, room));
        }
        ref several => {
            let mut key = String::new();
            for (nth, &field) in several.iter().enumerate() {
                if nth > 0 {
                    key.push('\u{1f}');
                }
                key_text(&values[field], text, room, &mut key);
            }
            columns.key.set(row, &key);
        }
    }
    match envelope.id {
        Some(own) => columns.id.set(row, &own.text(text)),
        None => {
            if let Some(id) = beside.id {
                columns.id.set(row, id);
            }
        }
    }
    if !headers.is_empty() {
        columns.headers.set(row, headers);
    }
    if !rest_envelope.is_empty() || !rest_payload.is_empty() {
        write_rest(text, rest_envelope, rest_payload, rest);
        columns.rest.set(row, rest);
    }
    for (field, value) in event.fields.iter().zip(values.iter()) {
        let column = &mut columns.fields[field.column];
        match value {
            Parsed::Absent => {}
            Parsed::Text(_) | Parsed::Scratch(..) => column.set_text(row, content(value, text, room)),
            Parsed::Int(value) => column.set_int(row, *value),
            Parsed::Float(value) => column.set_float(row, *value),
            Parsed::Bool(value) => column.set_bool(row, *value),
            Parsed::Time(value) => column.set_time(row, *value),
            Parsed::List(value) => column.set_list(row, |items| {
                each_item(text, value, |_, item| items.append_value(item.text(value.raw(text))));
            }),
        }
    }
}

/// `_rest`: what no column holds, as canonical JSON.
fn write_rest(text: &str, envelope: &mut [Member], payload: &mut [Member], out: &mut String) {
    sort(text, envelope);
    sort(text, payload);
    let mut payload_left = !payload.is_empty();
    let write_payload = |out: &mut String| {
        out.push_str("\"payload\":{");
        for (index, member) in payload.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write_name(text, &member.name, out);
            write_value(text, &member.value, out);
        }
        out.push('}');
    };
    out.push('{');
    for member in envelope.iter() {
        if payload_left && *member.name.text(text) > *"payload" {
            payload_left = false;
            if out.len() > 1 {
                out.push(',');
            }
            write_payload(out);
        }
        if out.len() > 1 {
            out.push(',');
        }
        write_name(text, &member.name, out);
        write_value(text, &member.value, out);
    }
    if payload_left {
        if out.len() > 1 {
            out.push(',');
        }
        write_payload(out);
    }
    out.push('}');
}
