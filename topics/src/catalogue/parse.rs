//! Reads `[topics]`, `[events]` and `[[sink]]` of a declaration file.
//!
//! Every mistake is reported, not only the first; what can be read is in the catalogue even so, so
//! that topologies can be checked against it in the same go.

use super::{Catalogue, Cleanup, EventSpec, FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
use crate::declaration::{Node, Table, Value};
use crate::diagnostics::{Diagnostic, closest};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The fields of `[topics."x"]`, with what each holds and means.
pub const TOPIC_FIELDS: [(&str, &str, &str); 8] = [
    ("doc", "text", "What the topic holds, for documents."),
    ("partitions", "number", "How many partitions, from 1 to 1024; 12 if not given."),
    ("retention", "duration", "Age since arrival at which records may go; kept for ever if not given."),
    ("cleanup", "text", "`delete`: old records go; `compact`: the newest record of each key stays."),
    ("disorder", "duration", "How far behind its partition's newest record a record may be without being late."),
    ("idle_after", "duration", "A partition silent for so long no longer holds windows open."),
    ("live_within", "duration", "Records that arrive later than this after their event time are a replay."),
    ("future_within", "duration", "How far in the future an event time may lie at arrival."),
];

/// The fields of `[events.X]`.
pub const EVENT_FIELDS: [(&str, &str, &str); 4] = [
    ("topic", "text", "The topic its records go to."),
    ("key", "list", "The payload field whose text is the record's key, or several, joined by U+001F."),
    ("doc", "text", "What the event says, for documents."),
    ("payload", "table", "Each field of the payload and its type."),
];

/// The fields of a payload field that is written as a table.
pub const PAYLOAD_FIELDS: [(&str, &str, &str); 7] = [
    ("type", "text", "string, int, float, bool, timestamp, list<string> or json."),
    ("optional", "bool", "May be absent or null."),
    ("min_length", "number", "Fewest characters or items."),
    ("max_length", "number", "Most characters or items; of json: bytes of text."),
    ("min", "float", "Smallest number."),
    ("max", "float", "Largest number."),
    ("one_of", "list", "The only values allowed."),
];

/// The fields of `[[sink]]`; others are options of the store.
pub const SINK_FIELDS: [(&str, &str, &str); 10] = [
    ("name", "text", "Unique; its consumer group is `sink:<name>`."),
    ("from", "text", "The topic it follows."),
    ("store", "text", "The store it writes; the embedded twin serves where no address is configured."),
    ("table", "text", "Table, collection or view; the sink's name, with `_` for `-`, if not given."),
    ("key", "list", "The columns that identify a row; they determine the topic's key (R13)."),
    ("filter", "sql", "Only records for which this is true."),
    ("ttl", "duration", "Time-to-live counted from arrival."),
    ("cache", "duration", "So long at most Redis, where it is set, keeps a document that was read; a change forgets it."),
    ("rollup", "table", "How each column of a view rolls up: sum, min or max."),
    ("doc", "text", "What the table holds, for documents."),
];

/// The types a payload field may have, as written.
pub const FIELD_TYPES: [(&str, FieldType); 7] = [
    ("string", FieldType::String),
    ("int", FieldType::Int),
    ("float", FieldType::Float),
    ("bool", FieldType::Bool),
    ("timestamp", FieldType::Timestamp),
    ("list<string>", FieldType::StringList),
    ("json", FieldType::Json),
];

/// The stores that a sink may name.
pub const STORES: [&str; 7] = ["clickhouse", "mongodb", "elasticsearch", "redis", "mysql", "audit", "outbox"];

/// How a column may roll up (R21).
pub const ROLLUPS: [&str; 3] = ["sum", "min", "max"];

/// The type of rows that topologies write; no event may be called so.
pub const ROW_TYPE: &str = "ROW";

/// Reads the catalogue of a file, with every mistake in it.
pub fn parse(file: &Table) -> (Catalogue, Vec<Diagnostic>) {
    let mut reader = Reader { catalogue: Catalogue::default(), mistakes: Vec::new() };
    let mut topics = reader.topics(file);
    reader.events(file, &mut topics);
    reader.sinks(file);
    reader.catalogue.topics = topics.into_iter().map(|(name, spec)| (name, Arc::new(spec))).collect();
    (reader.catalogue, reader.mistakes)
}

struct Reader {
    catalogue: Catalogue,
    mistakes: Vec<Diagnostic>,
}

fn names<const N: usize>(fields: [(&'static str, &'static str, &'static str); N]) -> [&'static str; N] {
    fields.map(|(name, _, _)| name)
}

impl Reader {
    fn ok<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    /// Reads an optional field.
    fn field<'a, T>(&mut self, table: &'a Table, name: &str, read: impl FnOnce(&'a Node) -> Result<T, Diagnostic>) -> Option<T> {
        table.get(name).and_then(|node| self.ok(read(node)))
    }

    /// Reads a field that must be there.
    fn required<'a, T>(
        &mut self,
        table: &'a Table,
        name: &str,
        read: impl FnOnce(&'a Node) -> Result<T, Diagnostic>,
    ) -> Option<T> {
        let result = table.require(name).and_then(read);
        self.ok(result)
    }

    /// The tables in the table called `section`.
    fn section<'a>(&mut self, file: &'a Table, section: &str) -> Vec<(&'a str, std::ops::Range<usize>, &'a Table)> {
        let Some(entries) = self.field(file, section, Node::table) else { return Vec::new() };
        let tables = entries.entries.iter().map(|(name, span, node)| (name, span, node.table()));
        tables.filter_map(|(name, span, table)| Some((name.as_str(), span.clone(), self.ok(table)?))).collect()
    }

    fn topics(&mut self, file: &Table) -> BTreeMap<String, TopicSpec> {
        let mut topics = BTreeMap::new();
        for (name, span, table) in self.section(file, "topics") {
            self.mistakes.extend(table.unknown_fields("a topic", &names(TOPIC_FIELDS)));
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) || name.is_empty() || name.len() > 249 {
                self.mistakes.push(
                    Diagnostic::error(&table.file, span, format!("`{name}` is no name for a topic"))
                        .help("letters, digits, `.`, `_` and `-`, at most 249 of them"),
                );
            }
            // events make it a topic of events
            let mut spec = TopicSpec::new(name, TopicKind::Rows);
            spec.doc = self.field(table, "doc", Node::str).unwrap_or("").to_owned();
            spec.partitions = self.field(table, "partitions", partitions).unwrap_or(spec.partitions);
            spec.retention = self.field(table, "retention", Node::duration);
            spec.cleanup = self.field(table, "cleanup", cleanup).unwrap_or(spec.cleanup);
            spec.disorder = self.field(table, "disorder", Node::duration).unwrap_or(spec.disorder);
            spec.idle_after = self.field(table, "idle_after", Node::duration).unwrap_or(spec.idle_after);
            spec.live_within = self.field(table, "live_within", Node::duration).unwrap_or(spec.live_within);
            spec.future_within = self.field(table, "future_within", Node::duration).unwrap_or(spec.future_within);
            topics.insert(name.to_owned(), spec);
        }
        topics
    }

    fn events(&mut self, file: &Table, topics: &mut BTreeMap<String, TopicSpec>) {
        // where a field of a topic was declared first
        let mut first: BTreeMap<(String, String), (FieldType, String)> = BTreeMap::new();
        for (name, span, table) in self.section(file, "events") {
            self.mistakes.extend(table.unknown_fields("an event", &names(EVENT_FIELDS)));
            if name == ROW_TYPE {
                self.mistakes.push(
                    Diagnostic::error(&table.file, span, "`ROW` is the type of rows that topologies write")
                        .help("give the event another name"),
                );
            }
            let topic = self.required(table, "topic", |node| {
                let topic = node.str()?;
                match topics.get_mut(topic) {
                    Some(spec) => {
                        spec.kind = TopicKind::Events;
                        Ok(topic.to_owned())
                    }
                    None => Err(unknown_topic(node, topic, topics.keys().map(String::as_str))),
                }
            });
            let fields = self.required(table, "payload", Node::table).map(|payload| self.payload(payload)).unwrap_or_default();
            let key = self.required(table, "key", |node| key_fields(node, &fields));
            for (field, span) in &fields {
                let Some(topic) = &topic else { continue };
                match first.get(&(topic.clone(), field.name.clone())) {
                    Some((ty, event)) if *ty != field.ty => {
                        let message = format!(
                            "`{}` is {} here, but {} in {event}, and one name has one type in a topic",
                            field.name,
                            type_name(field.ty),
                            type_name(*ty)
                        );
                        self.mistakes.push(
                            Diagnostic::error(&table.file, span.clone(), message)
                                .help(format!("use the same type, or another name; both events are of topic `{topic}`")),
                        );
                    }
                    Some(_) => {}
                    None => {
                        first.insert((topic.clone(), field.name.clone()), (field.ty, name.to_owned()));
                        if let Some(spec) = topics.get_mut(topic) {
                            spec.fields.push(FieldSpec { optional: true, ..FieldSpec::new(&field.name, field.ty) });
                        }
                    }
                }
            }
            let doc = self.field(table, "doc", Node::str).unwrap_or("").to_owned();
            let spec = EventSpec {
                name: name.to_owned(),
                topic: topic.unwrap_or_default(),
                key: key.unwrap_or_default(),
                doc,
                fields: fields.into_iter().map(|(field, _)| field).collect(),
            };
            self.catalogue.events.insert(name.to_owned(), Arc::new(spec));
        }
    }

    fn payload(&mut self, payload: &Table) -> Vec<(FieldSpec, std::ops::Range<usize>)> {
        let mut fields = Vec::new();
        for (name, span, node) in &payload.entries {
            if name.starts_with('_') || name.is_empty() {
                self.mistakes.push(
                    Diagnostic::error(&payload.file, span.clone(), format!("`{name}` is no name for a field"))
                        .help("names that begin with an underscore are the system's"),
                );
            }
            // a field whose type cannot be read is known even so, lest each use of it be a mistake too
            let field = self.payload_field(name, node).unwrap_or_else(|| FieldSpec::new(name, FieldType::String));
            fields.push((field, span.clone()));
        }
        fields
    }

    fn payload_field(&mut self, name: &str, node: &Node) -> Option<FieldSpec> {
        let table = match &node.value {
            Value::String(_) => return Some(FieldSpec::new(name, self.ok(field_type(node))?)),
            Value::Table(table) => table,
            _ => {
                self.mistakes.push(
                    node.error("a field is its type, or a table with its type and rules")
                        .help("such as \"string\" or { type = \"string\", optional = true, max_length = 100 }"),
                );
                return None;
            }
        };
        self.mistakes.extend(table.unknown_fields("a payload field", &names(PAYLOAD_FIELDS)));
        let mut field = FieldSpec::new(name, self.required(table, "type", field_type)?);
        field.optional = self.field(table, "optional", Node::bool).unwrap_or(false);
        field.min_length = self.field(table, "min_length", Node::uint);
        field.max_length = self.field(table, "max_length", Node::uint);
        field.min = self.field(table, "min", Node::float);
        field.max = self.field(table, "max", Node::float);
        field.one_of = self.field(table, "one_of", Node::strings).unwrap_or_default();
        let lengths = matches!(field.ty, FieldType::String | FieldType::StringList | FieldType::Json);
        let numbers = matches!(field.ty, FieldType::Int | FieldType::Float);
        for (rule, fits) in [
            ("min_length", lengths),
            ("max_length", lengths),
            ("min", numbers),
            ("max", numbers),
            ("one_of", field.ty == FieldType::String),
        ] {
            if table.get(rule).is_some() && !fits {
                let message = format!("a field of type {} has no `{rule}`", type_name(field.ty));
                self.mistakes.push(
                    Diagnostic::error(&table.file, table.name_span(rule), message)
                        .help("lengths are for string, list<string> and json; min and max for int and float; one_of for string"),
                );
            }
        }
        let crossed = field.min_length.zip(field.max_length).is_some_and(|(least, most)| least > most)
            || field.min.zip(field.max).is_some_and(|(least, most)| least > most);
        if crossed {
            self.mistakes.push(node.error(format!("no value fits the rules of `{name}`")).help("the least is above the most"));
        }
        Some(field)
    }

    fn sinks(&mut self, file: &Table) {
        for node in self.field(file, "sink", Node::array).unwrap_or(&[]) {
            let Some(table) = self.ok(node.table()) else { continue };
            let name = self.required(table, "name", |node| Ok((node.str()?.to_owned(), node)));
            if let Some((name, node)) = &name
                && self.catalogue.sinks.iter().any(|other| other.name == *name)
            {
                self.mistakes.push(
                    node.error(format!("there is another sink called `{name}`"))
                        .help("its name is its place in the log: give each sink its own"),
                );
            }
            let from = self.required(table, "from", Node::str);
            let store = self.required(table, "store", store);
            let key = self.required(table, "key", |node| match node.strings()? {
                key if key.is_empty() => Err(node.error("a sink needs a key").help("name the columns that identify a row")),
                key => Ok(key),
            });
            let rollup = self.field(table, "rollup", Node::table).map(|table| self.rollup(table)).unwrap_or_default();
            let known = names(SINK_FIELDS);
            let options = table.entries.iter().filter(|(name, _, _)| !known.contains(&name.as_str()));
            let options = options.map(|(name, _, node)| (name.clone(), plain(node))).collect();
            let filter = self.field(table, "filter", Node::str).map(str::to_owned);
            let ttl = self.field(table, "ttl", Node::duration);
            let cache = self.field(table, "cache", Node::duration);
            let doc = self.field(table, "doc", Node::str).unwrap_or("").to_owned();
            let written = self.field(table, "table", Node::str).map(str::to_owned);
            let (Some((name, named)), Some(from), Some(store), Some(key)) = (name, from, store, key) else { continue };
            self.catalogue.sinks.push(Arc::new(SinkSpec {
                table: written.unwrap_or_else(|| name.replace('-', "_")),
                name,
                from: from.to_owned(),
                store,
                key,
                filter,
                ttl,
                cache,
                rollup,
                doc,
                options,
                span: named.span.clone(),
            }));
        }
    }

    fn rollup(&mut self, table: &Table) -> BTreeMap<String, String> {
        let mut rollup = BTreeMap::new();
        for (column, _, node) in &table.entries {
            let how = node.str().and_then(|how| match ROLLUPS.contains(&how) {
                true => Ok(how.to_owned()),
                false => {
                    Err(node.error(format!("`{how}` is no way to roll up")).help(format!("available: {}", ROLLUPS.join(", "))))
                }
            });
            if let Some(how) = self.ok(how) {
                rollup.insert(column.clone(), how);
            }
        }
        rollup
    }
}

/// "unknown topic", with the nearest of `topics`.
pub fn unknown_topic<'a>(node: &Node, name: &str, topics: impl Iterator<Item = &'a str>) -> Diagnostic {
    let topics: Vec<&str> = topics.collect();
    let mistake = node.error(format!("unknown topic `{name}`"));
    match closest(name, topics.iter().copied()) {
        Some(near) => mistake.help(format!("did you mean `{near}`? available: {}", topics.join(", "))),
        None if topics.is_empty() => mistake.help(format!("declare it: [topics.\"{name}\"]")),
        None => mistake.help(format!("declare it: [topics.\"{name}\"], or take one of: {}", topics.join(", "))),
    }
}

fn partitions(node: &Node) -> Result<u32, Diagnostic> {
    match u32::try_from(node.uint()?) {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(node.error("a topic has from 1 to 1024 partitions")),
    }
}

fn cleanup(node: &Node) -> Result<Cleanup, Diagnostic> {
    match node.str()? {
        "delete" => Ok(Cleanup::Delete),
        "compact" => Ok(Cleanup::Compact),
        other => Err(node.error(format!("unknown cleanup `{other}`")).help("available: delete, compact")),
    }
}

fn field_type(node: &Node) -> Result<FieldType, Diagnostic> {
    let written = node.str()?;
    if let Some((_, ty)) = FIELD_TYPES.iter().find(|(name, _)| *name == written) {
        return Ok(*ty);
    }
    let all = FIELD_TYPES.map(|(name, _)| name);
    let mistake = node.error(format!("unknown type `{written}`"));
    Err(match closest(written, all) {
        Some(near) => mistake.help(format!("did you mean `{near}`? available: {}", all.join(", "))),
        None => mistake.help(format!("available: {}", all.join(", "))),
    })
}

/// A type as it is written in the file.
pub fn type_name(ty: FieldType) -> &'static str {
    FIELD_TYPES.iter().find(|(_, other)| *other == ty).map_or("", |(name, _)| name)
}

fn key_fields(node: &Node, fields: &[(FieldSpec, std::ops::Range<usize>)]) -> Result<Vec<String>, Diagnostic> {
    match &node.value {
        Value::Array(items) if items.is_empty() => Err(node.error("an event needs a key").help("name a field of the payload")),
        Value::Array(items) => items.iter().map(|item| key_field(item, fields)).collect(),
        _ => Ok(vec![key_field(node, fields)?]),
    }
}

fn key_field(node: &Node, fields: &[(FieldSpec, std::ops::Range<usize>)]) -> Result<String, Diagnostic> {
    let key = node.str()?;
    match fields.iter().find(|(field, _)| field.name == key) {
        Some((field, _)) if matches!(field.ty, FieldType::StringList | FieldType::Json | FieldType::Float) => Err(node
            .error(format!("`{key}` is of type {}, which is no key", type_name(field.ty)))
            .help("a key is a string, an int, a bool or a timestamp")),
        Some(_) => Ok(key.to_owned()),
        None => {
            let names: Vec<&str> = fields.iter().map(|(field, _)| field.name.as_str()).collect();
            let mistake = node.error(format!("the key `{key}` is no field of the payload"));
            Err(match closest(key, names.iter().copied()) {
                Some(near) => mistake.help(format!("did you mean `{near}`? available: {}", names.join(", "))),
                None => mistake.help(format!("available: {}", names.join(", "))),
            })
        }
    }
}

fn store(node: &Node) -> Result<String, Diagnostic> {
    let store = node.str()?;
    if STORES.contains(&store) {
        return Ok(store.to_owned());
    }
    let mistake = node.error(format!("unknown store `{store}`"));
    Err(match closest(store, STORES) {
        Some(near) => mistake.help(format!("did you mean `{near}`? available: {}", STORES.join(", "))),
        None => mistake.help(format!("available: {}", STORES.join(", "))),
    })
}

/// A value without its places.
fn plain(node: &Node) -> toml::Value {
    match &node.value {
        Value::String(text) => toml::Value::String(text.clone()),
        Value::Integer(number) => toml::Value::Integer(*number),
        Value::Float(number) => toml::Value::Float(*number),
        Value::Bool(value) => toml::Value::Boolean(*value),
        Value::Datetime(text) => toml::Value::String(text.clone()),
        Value::Array(items) => toml::Value::Array(items.iter().map(plain).collect()),
        Value::Table(table) => {
            toml::Value::Table(table.entries.iter().map(|(name, _, node)| (name.clone(), plain(node))).collect())
        }
    }
}

#[cfg(test)]
mod tests;
