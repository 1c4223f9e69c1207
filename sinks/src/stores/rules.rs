//! Rules of `mode = "merge"`: what each event type does to the row of its key.
//!
//! A row is a set of columns, each with the version of the record that set it last; so records
//! may come in any order and any number of times, and the row is the same (R13). A `create` sets
//! every column, absent ones to null; an update sets the columns it has; `set` puts constants or
//! the event's time; `add` puts an element into a set. Presets: `messages`, `users`, `presence`.
//!
//! ```toml
//! [[sink]]
//! mode = "merge"
//! [sink.rules.TICKET_OPENED]
//! create = true
//! [sink.rules.TICKET_CLOSED]
//! columns = ["reason"]
//! set = { closed = true, closedAt = "@event_time" }
//! [sink.rules.TICKET_TAGGED]
//! columns = []
//! add = { tags = ["tag"] }
//! ```

use super::layout::{Mode, option_list, option_text};
use quikflow_topics::catalogue::{FieldType, SinkSpec, TopicKind, TopicSpec};
use std::collections::BTreeMap;

/// What is put into a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SetTo {
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// The record's event time.
    EventTime,
}

/// What one event type does.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    /// Sets every column.
    pub(crate) create: bool,
    /// The row can be seen once such a record came; until then it is hidden.
    pub(crate) shows: bool,
    /// Columns taken from the record where not null; `None`: all.
    pub(crate) columns: Option<Vec<String>>,
    /// Columns set to something fixed.
    pub(crate) set: Vec<(String, SetTo)>,
    /// (column, fields): an object of these fields is added to the set in the column.
    pub(crate) add: Option<(String, Vec<String>)>,
    /// A `json` field whose members set the columns of their names.
    pub(crate) changes: Option<String>,
}

/// The texts of a list, or of one text.
pub(crate) fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Array(items) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Whether a sink's table is a count of unread rows by user: `mode = "count"` or `"badges"`, or `badges` of `redis`.
pub(crate) fn counts(sink: &SinkSpec) -> bool {
    match sink.options.get("mode") {
        Some(mode) => matches!(mode.as_str(), Some("count" | "badges")),
        None => sink.store == "redis" && sink.table == "badges",
    }
}

/// The mode of a sink: its option `mode`, or what suits its store and key.
pub(crate) fn mode_of(sink: &SinkSpec, topic: &TopicSpec) -> Result<Mode, String> {
    let has = |name: &str| topic.field(name).is_some();
    let typed = topic.kind == TopicKind::Events || has("type");
    let preset = match option_text(sink, "mode")? {
        Some(mode) => mode,
        None if sink.options.contains_key("rules") => "merge".into(),
        None => match sink.store.as_str() {
            "audit" => "append",
            "mongodb" | "elasticsearch" if typed && has("messageId") && has("content") => "messages",
            "mysql" if typed && has("userId") => "users",
            "redis" if typed && has("userId") && has("status") => "presence",
            _ => "upsert",
        }
        .into(),
    };
    let mut mode = match preset.as_str() {
        "upsert" | "latest" => Mode::Upsert { delete: option_list(sink, "delete")? },
        "append" => Mode::Append,
        // Rows as they are; readers see how many unread ones each user has.
        "count" | "badges" => Mode::Upsert { delete: option_list(sink, "delete")? },
        "merge" => Mode::Merge(BTreeMap::new()),
        "messages" => Mode::Merge(messages()),
        "users" => Mode::Merge(users()),
        "presence" => Mode::Merge(presence()),
        other => {
            return Err(format!(
                "unknown mode `{other}`; available: upsert (latest), append, count, merge, messages, users, presence"
            ));
        }
    };
    if sink.store == "elasticsearch" && !matches!(mode, Mode::Merge(_)) {
        mode = Mode::Merge(BTreeMap::new());
    }
    if let (Mode::Merge(rules), Some(declared)) = (&mut mode, sink.options.get("rules")) {
        let declared = declared.as_table().ok_or("option `rules` takes a table of event types")?;
        for (event, rule) in declared {
            rules.insert(event.clone(), parse(event, rule)?);
        }
    }
    Ok(mode)
}

fn parse(event: &str, value: &toml::Value) -> Result<Rule, String> {
    let table = value.as_table().ok_or_else(|| format!("rule `{event}` takes a table"))?;
    let mut rule = Rule { shows: true, ..Rule::default() };
    for (name, value) in table {
        let wrong = || format!("rule `{event}`: `{name}` has a wrong value");
        match name.as_str() {
            "create" => rule.create = value.as_bool().ok_or_else(wrong)?,
            "shows" => rule.shows = value.as_bool().ok_or_else(wrong)?,
            "columns" => rule.columns = Some(texts(value).ok_or_else(wrong)?),
            "changes" => rule.changes = Some(value.as_str().ok_or_else(wrong)?.to_owned()),
            "set" => {
                for (column, to) in value.as_table().ok_or_else(wrong)? {
                    let to = match to {
                        toml::Value::Boolean(b) => SetTo::Bool(*b),
                        toml::Value::String(t) if t == "@event_time" => SetTo::EventTime,
                        toml::Value::String(t) => SetTo::Text(t.clone()),
                        _ => return Err(wrong()),
                    };
                    rule.set.push((column.clone(), to));
                }
            }
            "add" => {
                let add = value.as_table().filter(|t| t.len() == 1).and_then(|t| t.iter().next()).ok_or_else(wrong)?;
                rule.add = Some((add.0.clone(), texts(add.1).ok_or_else(wrong)?));
            }
            _ => {
                return Err(format!(
                    "rule `{event}`: unknown field `{name}`; available: create, shows, columns, set, add, changes"
                ));
            }
        }
    }
    Ok(rule)
}

/// Columns that rules set and no field holds.
pub(crate) fn derived_columns(rules: &BTreeMap<String, Rule>) -> Vec<(String, FieldType)> {
    let mut derived: BTreeMap<String, FieldType> = BTreeMap::new();
    for rule in rules.values() {
        for (name, to) in &rule.set {
            let ty = match to {
                SetTo::Bool(_) => FieldType::Bool,
                SetTo::Text(_) => FieldType::String,
                SetTo::EventTime => FieldType::Timestamp,
            };
            derived.insert(name.clone(), ty);
        }
        if let Some((name, _)) = &rule.add {
            derived.insert(name.clone(), FieldType::Json);
        }
    }
    derived.into_iter().collect()
}

fn set(entries: &[(&str, SetTo)]) -> Vec<(String, SetTo)> {
    entries.iter().map(|(name, to)| ((*name).to_owned(), to.clone())).collect()
}

fn names(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|n| (*n).to_owned()).collect())
}

fn named(rules: Vec<(&str, Rule)>) -> BTreeMap<String, Rule> {
    rules.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect()
}

fn messages() -> BTreeMap<String, Rule> {
    let hidden = Rule { columns: names(&[]), ..Rule::default() };
    named(vec![
        ("MESSAGE_SENT", Rule { create: true, shows: true, set: set(&[("deleted", SetTo::Bool(false))]), ..Rule::default() }),
        (
            "MESSAGE_EDITED",
            Rule {
                columns: names(&["content", "contentType", "attachments", "mentions"]),
                set: set(&[("editedAt", SetTo::EventTime)]),
                ..Rule::default()
            },
        ),
        (
            "MESSAGE_DELETED",
            Rule { set: set(&[("deleted", SetTo::Bool(true)), ("deletedAt", SetTo::EventTime)]), ..hidden.clone() },
        ),
        ("REACTION_ADDED", Rule { add: Some(("reactions".into(), vec!["userId".into(), "emoji".into()])), ..hidden }),
    ])
}

fn users() -> BTreeMap<String, Rule> {
    let shown = Rule { shows: true, ..Rule::default() };
    let off = [("deleted", SetTo::Bool(false)), ("banned", SetTo::Bool(false))];
    named(vec![
        ("USER_CREATED", Rule { create: true, set: set(&off), ..shown.clone() }),
        ("USER_UPDATED", Rule { changes: Some("changes".into()), set: set(&[("updatedAt", SetTo::EventTime)]), ..shown.clone() }),
        (
            "USER_DELETED",
            Rule {
                columns: names(&["userId", "reason"]),
                set: set(&[("deleted", SetTo::Bool(true)), ("deletedAt", SetTo::EventTime)]),
                ..shown.clone()
            },
        ),
        (
            "USER_BANNED",
            Rule {
                columns: names(&["userId", "reason", "bannedBy"]),
                set: set(&[("banned", SetTo::Bool(true)), ("bannedAt", SetTo::EventTime)]),
                ..shown
            },
        ),
    ])
}

fn presence() -> BTreeMap<String, Rule> {
    let state = |state: &str| {
        let set = set(&[("state", SetTo::Text(state.into())), ("since", SetTo::EventTime)]);
        Rule { shows: true, set, ..Rule::default() }
    };
    named(vec![
        ("USER_ONLINE", state("online")),
        ("USER_OFFLINE", state("offline")),
        ("USER_TYPING", Rule { shows: true, set: set(&[("typingAt", SetTo::EventTime)]), ..Rule::default() }),
        ("STATUS_CHANGED", Rule { shows: true, ..Rule::default() }),
    ])
}
