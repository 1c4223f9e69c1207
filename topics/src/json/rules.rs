//! An event type's fields and rules, made ready once; and the check of one value against them.

use super::fault::{Code, Fault};
use super::number::{self, write_int};
use super::scan::{Kind, Scanner, Value};
use super::text::{unescape_into, write_value};
use super::time::{read_time, write_time};
use crate::catalogue::{EventSpec, FieldSpec, FieldType, TopicSpec};
use hashbrown::HashMap;

/// An event type, ready for use.
#[derive(Debug)]
pub(super) struct EventPlan {
    pub(super) name: Box<str>,
    /// Index among the decoder's topics.
    pub(super) topic: usize,
    /// The indexes in `fields` of what makes the key.
    pub(super) key: Vec<usize>,
    pub(super) fields: Vec<FieldPlan>,
    by_name: HashMap<Box<str>, usize>,
}

/// A field of an event type.
#[derive(Debug)]
pub(super) struct FieldPlan {
    pub(super) spec: FieldSpec,
    /// Its place among the topic's fields.
    pub(super) column: usize,
    /// Must be there: not optional, or the key.
    pub(super) required: bool,
}

impl EventPlan {
    /// None where the topic lacks a field of the event or the event lacks its key: the catalogue's
    /// parser refuses such declarations.
    pub(super) fn new(event: &EventSpec, topic: usize, spec: &TopicSpec) -> Option<EventPlan> {
        let mut fields = Vec::with_capacity(event.fields.len());
        for field in &event.fields {
            let column = spec.fields.iter().position(|f| f.name == field.name && f.ty == field.ty)?;
            fields.push(FieldPlan { spec: field.clone(), column, required: !field.optional || event.key.contains(&field.name) });
        }
        let place = |name: &String| {
            event
                .fields
                .iter()
                .position(|f| f.name == *name && !matches!(f.ty, FieldType::Float | FieldType::StringList | FieldType::Json))
        };
        let key = event.key.iter().map(place).collect::<Option<Vec<usize>>>().filter(|key| !key.is_empty())?;
        let by_name = fields.iter().enumerate().map(|(i, f)| (f.spec.name.clone().into_boxed_str(), i)).collect();
        Some(EventPlan { name: event.name.clone().into_boxed_str(), topic, key, fields, by_name })
    }

    /// All fields of a topic, none required, without rules and without a key: for what is stored.
    pub(super) fn of_topic(spec: &TopicSpec) -> EventPlan {
        let plain = |(column, field): (usize, &FieldSpec)| {
            let spec = FieldSpec { optional: true, ..FieldSpec::new(&field.name, field.ty) };
            FieldPlan { spec, column, required: false }
        };
        let fields: Vec<FieldPlan> = spec.fields.iter().enumerate().map(plain).collect();
        let by_name = fields.iter().enumerate().map(|(i, f)| (f.spec.name.clone().into_boxed_str(), i)).collect();
        EventPlan { name: "".into(), topic: 0, key: Vec::new(), fields, by_name }
    }

    /// The index of the field called `name`; `guess` is looked at first.
    #[inline]
    pub(super) fn field(&self, name: &str, guess: usize) -> Option<usize> {
        if self.fields.get(guess).is_some_and(|f| f.spec.name == name) {
            return Some(guess);
        }
        self.by_name.get(name).copied()
    }
}

/// A value found right.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parsed {
    Absent,
    /// A string without escapes: in the event's text.
    Text(Value),
    /// In the scratch text: (start, end).
    Scratch(usize, usize),
    Int(i64),
    Float(f64),
    Bool(bool),
    Time(i64),
    /// A list of strings.
    List(Value),
}

/// Checks a value that is not null. The second of the answer: the column gives back its text (R11).
pub(super) fn check(
    field: &FieldSpec,
    text: &str,
    value: &Value,
    scratch: &mut String,
    fault: &mut impl FnMut(&str, Code, String),
) -> Option<(Parsed, bool)> {
    let mut wrong = |code: Code, message: String| {
        fault("", code, message);
        None
    };
    let wrong_type = |wanted: &str| format!("has to be {wanted}, not {}", kind_name(value.kind));
    match (field.ty, value.kind) {
        (FieldType::String, Kind::Text { escaped }) => {
            let parsed = if escaped {
                let start = scratch.len();
                unescape_into(value.raw(text), scratch);
                Parsed::Scratch(start, scratch.len())
            } else {
                Parsed::Text(*value)
            };
            let content = content(&parsed, text, scratch);
            if let Some((code, message)) = length_fault(field, content) {
                return wrong(code, message);
            }
            if !allowed(field, content) {
                return wrong(Code::NotAllowed, format!("has to be one of {}", field.one_of.join(", ")));
            }
            Some((parsed, true))
        }
        (FieldType::Int, Kind::Number) => {
            let Some(read) = number::int(value.raw(text)) else {
                return wrong(Code::OutOfRange, "has to be a whole number of at most 64 bits".into());
            };
            #[allow(clippy::cast_precision_loss, reason = "bounds are declared as floats")]
            if let Some((code, message)) = range_fault(field, read.value as f64, value.raw(text)) {
                return wrong(code, message);
            }
            Some((Parsed::Int(read.value), read.faithful))
        }
        (FieldType::Float, Kind::Number) => {
            let Some(read) = number::float(value.raw(text)) else {
                return wrong(Code::OutOfRange, "has to be a number that a 64 bit float can hold".into());
            };
            if let Some((code, message)) = range_fault(field, read.value, value.raw(text)) {
                return wrong(code, message);
            }
            Some((Parsed::Float(read.value), read.faithful))
        }
        (FieldType::Bool, Kind::Bool(flag)) => Some((Parsed::Bool(flag), true)),
        (FieldType::Timestamp, Kind::Text { .. }) => match read_time(&value.text(text)) {
            Some(time) => Some((Parsed::Time(time.micros), time.faithful)),
            None => wrong(Code::BadTimestamp, "has to be an RFC 3339 time such as 2026-01-01T12:00:00Z".into()),
        },
        (FieldType::StringList, Kind::Array) => list(field, text, value, fault),
        (FieldType::Json, _) => {
            let start = scratch.len();
            write_value(text, value, scratch);
            let length = (scratch.len() - start) as u64;
            if let Some(most) = field.max_length.filter(|&most| length > most) {
                return wrong(Code::TooLong, format!("has {length} bytes of JSON, at most {most} are allowed"));
            }
            Some((Parsed::Scratch(start, scratch.len()), true))
        }
        (FieldType::String, _) => wrong(Code::WrongType, wrong_type("a string")),
        (FieldType::Int, _) => wrong(Code::WrongType, wrong_type("a whole number")),
        (FieldType::Float, _) => wrong(Code::WrongType, wrong_type("a number")),
        (FieldType::Bool, _) => wrong(Code::WrongType, wrong_type("true or false")),
        (FieldType::Timestamp, _) => wrong(Code::WrongType, wrong_type("an RFC 3339 time in a string")),
        (FieldType::StringList, _) => wrong(Code::WrongType, wrong_type("a list of strings")),
    }
}

/// The text of a parsed string.
pub(super) fn content<'a>(parsed: &Parsed, text: &'a str, scratch: &'a str) -> &'a str {
    match *parsed {
        Parsed::Text(value) => value.raw(text),
        Parsed::Scratch(start, end) => scratch.get(start..end).unwrap_or_default(),
        _ => "",
    }
}

/// Appends a value's text as a key has it: equal values have one text, however they were written.
pub(super) fn key_text(parsed: &Parsed, text: &str, scratch: &str, out: &mut String) {
    match *parsed {
        Parsed::Int(value) => write_int(value, out),
        Parsed::Bool(value) => out.push_str(if value { "true" } else { "false" }),
        Parsed::Time(value) => write_time(value, out),
        _ => out.push_str(content(parsed, text, scratch)),
    }
}

fn list(field: &FieldSpec, text: &str, value: &Value, fault: &mut impl FnMut(&str, Code, String)) -> Option<(Parsed, bool)> {
    let (mut items, mut good) = (0_u64, true);
    each_item(text, value, |index, item| {
        items += 1;
        if !matches!(item.kind, Kind::Text { .. }) {
            good = false;
            fault(&format!("[{index}]"), Code::WrongType, format!("has to be a string, not {}", kind_name(item.kind)));
        } else if !allowed(field, &item.text(text.get(value.start..value.end).unwrap_or_default())) {
            good = false;
            fault(&format!("[{index}]"), Code::NotAllowed, format!("has to be one of {}", field.one_of.join(", ")));
        }
    });
    if let Some(most) = field.max_length.filter(|&most| items > most) {
        fault("", Code::TooLong, format!("has {items} items, at most {most} are allowed"));
        return None;
    }
    if let Some(fewest) = field.min_length.filter(|&fewest| items < fewest) {
        fault("", Code::TooShort, format!("has {items} items, at least {fewest} are needed"));
        return None;
    }
    good.then_some((Parsed::List(*value), true))
}

/// Calls `item` for each item of an array that the scanner has crossed; spans count from the array's start.
pub(super) fn each_item(text: &str, array: &Value, mut item: impl FnMut(usize, Value)) {
    let mut names = Vec::new();
    let _crossed = Scanner::new(array.raw(text), usize::MAX, &mut names).array(1, |scanner, index| {
        let value = scanner.value(2)?;
        item(index, value);
        Ok(())
    });
}

fn allowed(field: &FieldSpec, text: &str) -> bool {
    field.one_of.is_empty() || field.one_of.iter().any(|one| one == text)
}

fn length_fault(field: &FieldSpec, text: &str) -> Option<(Code, String)> {
    let bytes = text.len() as u64;
    if let Some(most) = field.max_length.filter(|&most| bytes > most) {
        let characters = text.chars().count() as u64;
        if characters > most {
            return Some((Code::TooLong, format!("has {characters} characters, at most {most} are allowed")));
        }
    }
    if let Some(fewest) = field.min_length.filter(|&fewest| bytes < fewest.saturating_mul(4)) {
        let characters = text.chars().count() as u64;
        if characters < fewest {
            return Some((Code::TooShort, format!("has {characters} characters, at least {fewest} are needed")));
        }
    }
    None
}

fn range_fault(field: &FieldSpec, value: f64, text: &str) -> Option<(Code, String)> {
    if let Some(min) = field.min.filter(|&min| value < min) {
        return Some((Code::TooSmall, format!("has to be at least {min}")));
    }
    if let Some(max) = field.max.filter(|&max| value > max) {
        return Some((Code::TooBig, format!("may be at most {max}")));
    }
    (!allowed(field, text)).then(|| (Code::NotAllowed, format!("has to be one of {}", field.one_of.join(", "))))
}

/// A value's type as people call it.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Null => "null",
        Kind::Bool(_) => "true or false",
        Kind::Number => "a number",
        Kind::Text { .. } => "a string",
        Kind::Array => "an array",
        Kind::Object => "an object",
    }
}

/// Gathers the faults of one event, with whole paths, at most [`Faults::MOST`].
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    const MOST: usize = 20;

    pub(super) fn add(&mut self, path: impl Into<String>, code: Code, message: impl Into<String>) {
        if self.0.len() < Faults::MOST {
            self.0.push(Fault::new(path, code, message));
        }
    }
}
