//! What a sink's table looks like: columns, key, and how a record becomes a row.
//!
//! Derived from the sink's declaration and the topic's schema. A record of a topic of rows is a row;
//! of events, by `mode`, either a row of its own (`upsert`, `append`) or a change of one (`merge`:
//! see [`super::rules`]).

use super::rules::{self, Rule};
use crate::store::StoreError;
use quikflow_topics::catalogue::{FieldType, SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::schema;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    /// As readers see it.
    pub(crate) name: String,
    /// Its type.
    pub(crate) ty: FieldType,
    /// The topic's column it is taken from; none: set by a rule.
    pub(crate) source: Option<String>,
}

/// How a record changes the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    /// The newest record of a key is its row; event types in `delete` take the row away.
    Upsert {
        /// Event types.
        delete: Vec<String>,
    },
    /// A row once written never changes.
    Append,
    /// Event types change columns of the row; each column keeps its newest version.
    Merge(BTreeMap<String, Rule>),
}

/// A sink's table.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The sink.
    pub(crate) sink: Arc<SinkSpec>,
    /// The visible columns, then those that only the key needs.
    pub(crate) columns: Vec<Column>,
    /// How many are visible.
    pub(crate) visible: usize,
    /// Topic columns whose values, as text, are the key.
    pub(crate) key: Vec<String>,
    /// Indices in `columns` of the key's columns (those that are visible).
    pub(crate) key_columns: Vec<usize>,
    /// How records change rows.
    pub(crate) mode: Mode,
    /// The column that time ranges apply to.
    pub(crate) time: usize,
    /// Columns indexed together with the time.
    pub(crate) index: Vec<usize>,
    /// The boolean column that says whether a row is final.
    pub(crate) final_column: Option<String>,
    /// Whether readers see how many unread rows each user has, in place of the rows.
    pub(crate) counts: bool,
}

const EVENT_SYSTEM: [(&str, &str, FieldType); 8] = [
    ("type", schema::TYPE, FieldType::String),
    ("event_time", schema::EVENT_TIME, FieldType::Timestamp),
    ("arrival_time", schema::ARRIVAL_TIME, FieldType::Timestamp),
    ("id", schema::ID, FieldType::String),
    ("partition", schema::PARTITION, FieldType::Int),
    ("offset", schema::OFFSET, FieldType::Int),
    ("metadata", schema::HEADERS, FieldType::Json),
    ("rest", schema::REST, FieldType::Json),
];

impl Layout {
    /// The layout of `sink`, which follows `topic`.
    pub(crate) fn new(sink: &Arc<SinkSpec>, topic: &TopicSpec) -> Result<Layout, StoreError> {
        let wrong = |message: String| StoreError::BadRequest(format!("sink `{}`: {message}", sink.name));
        let hidden = |name: &str| sink.store == "clickhouse" && name == "epoch";
        let mut columns: Vec<Column> = topic
            .fields
            .iter()
            .filter(|f| !hidden(&f.name))
            .map(|f| Column { name: f.name.clone(), ty: f.ty, source: Some(f.name.clone()) })
            .collect();
        let windowed = topic.field("window_start").is_some_and(|f| f.ty == FieldType::Timestamp);
        let system: &[_] = match topic.kind {
            TopicKind::Events => &EVENT_SYSTEM,
            TopicKind::Rows if windowed => &[],
            TopicKind::Rows => &EVENT_SYSTEM[1..2],
        };
        for (name, source, ty) in system {
            if topic.field(name).is_none() {
                columns.push(Column { name: (*name).into(), ty: *ty, source: Some((*source).into()) });
            }
        }
        let mode = rules::mode_of(sink, topic).map_err(wrong)?;
        if let Mode::Merge(rules) = &mode {
            for (name, ty) in rules::derived_columns(rules) {
                match columns.iter().find(|c| c.name == name) {
                    Some(column) if column.ty == ty => {}
                    Some(_) => return Err(wrong(format!("a rule sets `{name}`, which has another type in the topic"))),
                    None => columns.push(Column { name, ty, source: None }),
                }
            }
        }
        if sink.key.is_empty() {
            return Err(wrong("`key` names no column, so rows cannot be told apart".into()));
        }
        let system_source = |name: &str| EVENT_SYSTEM.iter().find(|(n, _, _)| *n == name).map(|(_, s, _)| (*s).to_owned());
        let mut key = Vec::new();
        for name in &sink.key {
            let known = topic.field(name).is_some() || schema::SYSTEM.contains(&name.as_str());
            match (known, system_source(name)) {
                (true, _) => key.push(name.clone()),
                (false, Some(source)) => key.push(source),
                (false, None) => return Err(wrong(format!("`key` names `{name}`, which topic `{}` does not have", topic.name))),
            }
        }
        let visible = columns.len();
        if sink.store == "clickhouse" {
            // Parts hold nothing but columns, so what the key needs is one.
            for name in &key {
                if !columns.iter().any(|c| c.source.as_ref() == Some(name)) {
                    let ty = if [schema::PARTITION, schema::OFFSET].contains(&name.as_str()) {
                        FieldType::Int
                    } else {
                        FieldType::String
                    };
                    columns.push(Column { name: name.clone(), ty, source: Some(name.clone()) });
                }
            }
        }
        let key_columns =
            key.iter().filter_map(|k| columns.iter().position(|c| c.source.as_ref() == Some(k))).collect::<Vec<_>>();
        let wanted_time = option_text(sink, "time").map_err(wrong)?;
        let time = match &wanted_time {
            Some(name) => columns.iter().position(|c| c.name == *name && c.ty == FieldType::Timestamp),
            None if windowed => columns.iter().position(|c| c.name == "window_start"),
            None => columns.iter().position(|c| c.source.as_deref() == Some(schema::EVENT_TIME)),
        }
        .or_else(|| columns.iter().position(|c| c.ty == FieldType::Timestamp))
        .ok_or_else(|| wrong("no column holds a time; give one in the option `time`".into()))?;
        let mut index = Vec::new();
        if key_columns.len() > 1 {
            index.push(key_columns[0]);
        }
        for name in option_list(sink, "index").map_err(wrong)? {
            let at = columns.iter().position(|c| c.name == name);
            let at = at.ok_or_else(|| wrong(format!("`index` names `{name}`, which is no column")))?;
            if !index.contains(&at) {
                index.push(at);
            }
        }
        let counts = rules::counts(sink);
        if (sink.store == "outbox" || counts)
            && let Some(user) = user_column(sink, &columns)
            && !index.contains(&user)
        {
            index.push(user);
        }
        let final_column = columns.iter().find(|c| c.name == "final" && c.ty == FieldType::Bool).map(|c| c.name.clone());
        Ok(Layout { sink: sink.clone(), columns, visible, key, key_columns, mode, time, index, final_column, counts })
    }

    /// The SQL table.
    pub(crate) fn table(&self) -> String {
        super::file::quoted(&format!("rows:{}", self.sink.name))
    }

    /// The column called `name`.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    /// Where the user stands whose notification a row is.
    pub(crate) fn user(&self) -> Option<usize> {
        user_column(&self.sink, &self.columns)
    }

    /// What must not change while rows are there: key and columns, as text.
    pub(crate) fn fingerprint(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|c| format!("{}:{:?}", c.name, c.ty)).collect();
        format!("{}|{}", self.key.join(","), columns.join(","))
    }
}

fn user_column(sink: &SinkSpec, columns: &[Column]) -> Option<usize> {
    let wanted = option_text(sink, "user").ok().flatten();
    let names: Vec<&str> = wanted.as_deref().map_or_else(|| vec!["recipient", "user", "userId"], |w| vec![w]);
    names.iter().find_map(|name| columns.iter().position(|c| c.name == *name))
}

/// A text option of a sink.
pub(crate) fn option_text(sink: &SinkSpec, name: &str) -> Result<Option<String>, String> {
    match sink.options.get(name) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("option `{name}` takes a text")),
    }
}

/// A list option of a sink; one text is a list of one.
pub(crate) fn option_list(sink: &SinkSpec, name: &str) -> Result<Vec<String>, String> {
    match sink.options.get(name) {
        None => Ok(Vec::new()),
        Some(value) => rules::texts(value).ok_or_else(|| format!("option `{name}` takes a list of texts")),
    }
}
