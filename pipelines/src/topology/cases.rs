//! `[[test]]` blocks: timed inputs of a topology, and the rows expected of it.

use chrono::{DateTime, NaiveDateTime, NaiveTime};
use quikflow_topics::catalogue::{Catalogue, TopicKind};
use quikflow_topics::declaration::{Node, Table, Value};
use quikflow_topics::diagnostics::{Diagnostic, SourceFile, closest};
use quikflow_topics::ids::EventTime;
use serde_json::{Map, Value as Json};
use std::ops::Range;
use std::sync::Arc;

/// The fields of `[[test]]`, with what each holds and means.
pub const TEST_FIELDS: [(&str, &str, &str); 8] = [
    ("topology", "text", "The topology under test."),
    ("doc", "text", "What the test shows."),
    ("given", "list", "The records, in the order in which they arrive."),
    ("expect", "list", "The rows that come out, in any order; only the columns named are compared."),
    ("expect_to", "text", "The topic in which they are expected; the topology's own, if not given."),
    ("expect_late", "number", "How many records are late."),
    ("expect_dead", "number", "How many records become dead letters."),
    ("close", "bool", "Whether time runs to its end after the last record, so that windows close; yes, if not given."),
];

/// The fields of an element of `given`.
pub const GIVEN_FIELDS: [(&str, &str, &str); 8] = [
    ("at", "text", "Event time: `12:00:01` on 2026-01-01 UTC, or RFC 3339."),
    ("type", "text", "The event type."),
    ("payload", "table", "The payload; of a topic of rows: its columns."),
    ("topic", "text", "The topic; the event type's own, if not given."),
    ("key", "text", "The key; made of the payload, if not given."),
    ("id", "text", "The client's id."),
    ("partition", "number", "The partition; made of the key, if not given."),
    ("advance", "bool", "No record: time goes on to `at`."),
];

/// A `[[test]]` block.
#[derive(Clone, Debug)]
pub struct TestCase {
    /// The topology under test.
    pub topology: String,
    /// What the test shows; may be empty.
    pub doc: String,
    /// In the order of arrival.
    pub given: Vec<Given>,
    /// In any order.
    pub expect: Vec<ExpectedRow>,
    /// The topic; none for the topology's own.
    pub expect_to: Option<String>,
    /// How many late records, where it matters.
    pub expect_late: Option<u64>,
    /// How many dead letters, where it matters.
    pub expect_dead: Option<u64>,
    /// Whether time runs to its end after the last record.
    pub close: bool,
    /// The file.
    pub file: Arc<SourceFile>,
    /// Where `expect` stands, or the test itself.
    pub span: Range<usize>,
}

/// An input of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Event time.
    pub at: EventTime,
    /// A record, or only time that goes on.
    pub record: Option<GivenRecord>,
    /// Where it stands.
    pub span: Range<usize>,
}

/// A record of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenRecord {
    /// The topic.
    pub topic: String,
    /// The event type; `ROW` for rows.
    pub event: String,
    /// The payload, or the columns of a row.
    pub payload: Map<String, Json>,
    /// The key; none: made of the payload as the event says.
    pub key: Option<String>,
    /// The client's id.
    pub id: Option<String>,
    /// The partition; none: made of the key.
    pub partition: Option<u32>,
}

/// A row that is expected.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedRow {
    /// Column and value; texts are compared with times as [`parse_time`] reads them.
    pub columns: Vec<(String, Json)>,
    /// Where it stands.
    pub span: Range<usize>,
}

/// `12:00:01.5` (on 2026-01-01, UTC), `2026-01-01T12:00:01` or RFC 3339.
pub fn parse_time(text: &str) -> Option<EventTime> {
    let micros = |time: NaiveDateTime| EventTime(time.and_utc().timestamp_micros());
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(EventTime(time.timestamp_micros()));
    }
    if let Ok(time) = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f") {
        return Some(micros(time));
    }
    let time = NaiveTime::parse_from_str(text, "%H:%M:%S%.f").or_else(|_| NaiveTime::parse_from_str(text, "%H:%M")).ok()?;
    Some(micros(chrono::NaiveDate::from_ymd_opt(2026, 1, 1)?.and_time(time)))
}

/// Reads all `[[test]]` of a file.
pub fn parse(file: &Table, catalogue: &Catalogue, topologies: &[&str]) -> (Vec<TestCase>, Vec<Diagnostic>) {
    let mut reader = Reader { catalogue, topologies, mistakes: Vec::new() };
    let nodes = file.get("test").map(Node::array);
    let nodes = nodes.and_then(|nodes| reader.ok(nodes)).unwrap_or(&[]);
    let cases = nodes.iter().filter_map(|node| reader.case(node)).collect();
    (cases, reader.mistakes)
}

struct Reader<'a> {
    catalogue: &'a Catalogue,
    topologies: &'a [&'a str],
    mistakes: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn ok<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    fn field<'t, T>(&mut self, table: &'t Table, name: &str, read: impl FnOnce(&'t Node) -> Result<T, Diagnostic>) -> Option<T> {
        table.get(name).and_then(|node| self.ok(read(node)))
    }

    fn case(&mut self, node: &Node) -> Option<TestCase> {
        let table = self.ok(node.table())?;
        self.mistakes.extend(table.unknown_fields("a test", &TEST_FIELDS.map(|(name, _, _)| name)));
        let topology = self.ok(table.require("topology").and_then(|node| {
            let name = node.str()?;
            match self.topologies.contains(&name) {
                true => Ok(name.to_owned()),
                false => Err(unknown(node, "topology", name, self.topologies)),
            }
        }));
        let given = self.ok(table.require("given").and_then(Node::array)).unwrap_or(&[]);
        let given = given.iter().filter_map(|node| self.given(node)).collect();
        let expect = self.field(table, "expect", Node::array).unwrap_or(&[]);
        let expect = expect.iter().filter_map(|node| self.expected(node)).collect();
        Some(TestCase {
            doc: self.field(table, "doc", Node::str).unwrap_or("").to_owned(),
            given,
            expect,
            expect_to: self.field(table, "expect_to", Node::str).map(str::to_owned),
            expect_late: self.field(table, "expect_late", Node::uint),
            expect_dead: self.field(table, "expect_dead", Node::uint),
            close: self.field(table, "close", Node::bool).unwrap_or(true),
            file: table.file.clone(),
            span: table.get("expect").map_or_else(|| node.span.clone(), |node| node.span.clone()),
            topology: topology?,
        })
    }

    fn given(&mut self, node: &Node) -> Option<Given> {
        let table = self.ok(node.table())?;
        self.mistakes.extend(table.unknown_fields("a given record", &GIVEN_FIELDS.map(|(name, _, _)| name)));
        let at = self.ok(table.require("at").and_then(time));
        let span = node.span.clone();
        if self.field(table, "advance", Node::bool) == Some(true) {
            return Some(Given { at: at?, record: None, span });
        }
        let event = self.field(table, "type", Node::str);
        let named = self.field(table, "topic", |node| {
            let topics: Vec<&str> = self.catalogue.topics.keys().map(String::as_str).collect();
            let name = node.str()?;
            if topics.contains(&name) { Ok(name) } else { Err(unknown(node, "topic", name, &topics)) }
        });
        let payload = self.ok(table.require("payload").and_then(Node::table));
        let (topic, fields) = match (event, table.get("type"), named) {
            (Some(event), Some(node), _) => match self.catalogue.events.get(event) {
                Some(spec) => (named.unwrap_or(&spec.topic).to_owned(), spec.fields.iter().map(|f| f.name.as_str()).collect()),
                None => {
                    let events: Vec<&str> = self.catalogue.events.keys().map(String::as_str).collect();
                    self.mistakes.push(unknown(node, "event type", event, &events));
                    return None;
                }
            },
            (_, _, Some(topic)) => {
                let spec = self.catalogue.topics.get(topic)?;
                if spec.kind == TopicKind::Events {
                    self.mistakes.push(table.error("missing field `type`").help("name the event type of the record"));
                }
                (topic.to_owned(), spec.fields.iter().map(|f| f.name.as_str()).collect::<Vec<_>>())
            }
            _ => {
                self.mistakes.push(table.error("missing field `type`").help("name the event type, or a `topic` of rows"));
                return None;
            }
        };
        let payload = payload?;
        for (name, span, _) in payload.entries.iter().filter(|(name, _, _)| !fields.contains(&name.as_str())) {
            let mistake = Diagnostic::warning(&payload.file, span.clone(), format!("`{name}` is not declared"));
            self.mistakes.push(mistake.help(format!("declared: {}", fields.join(", "))));
        }
        Some(Given {
            at: at?,
            record: Some(GivenRecord {
                topic,
                event: event.unwrap_or(quikflow_topics::catalogue::parse::ROW_TYPE).to_owned(),
                payload: object(payload),
                key: self.field(table, "key", Node::str).map(str::to_owned),
                id: self.field(table, "id", Node::str).map(str::to_owned),
                partition: self.field(table, "partition", Node::uint).and_then(|p| u32::try_from(p).ok()),
            }),
            span,
        })
    }

    fn expected(&mut self, node: &Node) -> Option<ExpectedRow> {
        let table = self.ok(node.table())?;
        Some(ExpectedRow { columns: object(table).into_iter().collect(), span: node.span.clone() })
    }
}

fn time(node: &Node) -> Result<EventTime, Diagnostic> {
    let text = match &node.value {
        Value::Datetime(text) => text,
        _ => node.str()?,
    };
    parse_time(text).ok_or_else(|| node.error(format!("`{text}` is no time")).help("write 12:00:01 or 2026-01-01T12:00:01Z"))
}

fn unknown(node: &Node, what: &str, name: &str, available: &[&str]) -> Diagnostic {
    let mistake = node.error(format!("unknown {what} `{name}`"));
    let list = available.join(", ");
    match closest(name, available.iter().copied()) {
        Some(near) => mistake.help(format!("did you mean `{near}`? available: {list}")),
        None => mistake.help(format!("available: {list}")),
    }
}

fn object(table: &Table) -> Map<String, Json> {
    table.entries.iter().map(|(name, _, node)| (name.clone(), json(node))).collect()
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::String(text) | Value::Datetime(text) => Json::String(text.clone()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Bool(value) => Json::Bool(*value),
        Value::Array(items) => Json::Array(items.iter().map(json).collect()),
        Value::Table(table) => Json::Object(object(table)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_leave_out_the_day() {
        let noon = EventTime(1_767_268_800_000_000);
        assert_eq!(parse_time("12:00:00"), Some(noon));
        assert_eq!(parse_time("12:00"), Some(noon));
        assert_eq!(parse_time("12:00:00.5"), Some(noon.plus(500_000)));
        assert_eq!(parse_time("2026-01-01T13:00:00+01:00"), Some(noon));
        assert_eq!(parse_time("noon"), None);
    }
}
