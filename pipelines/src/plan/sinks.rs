//! Checks sinks against the topics that they follow.

use super::keys::Keys;
use crate::expr::{Expr, StreamSchema};
use quikflow_topics::catalogue::parse::unknown_topic;
use quikflow_topics::catalogue::{Catalogue, SinkSpec, TopicSpec};
use quikflow_topics::declaration::{Node, Table};
use quikflow_topics::diagnostics::{Diagnostic, closest};
use quikflow_topics::schema;
use std::collections::{BTreeMap, BTreeSet};

/// System columns that a sink's key may name. A record's place and its own id identify it.
const KEY_SYSTEM: [&str; 4] = [schema::PARTITION, schema::OFFSET, schema::KEY, schema::ID];

/// Every mistake in the sinks of a file.
pub(super) fn check(
    file: &Table,
    catalogue: &Catalogue,
    keys: &BTreeMap<String, Keys>,
    unknowable: &BTreeSet<String>,
) -> Vec<Diagnostic> {
    let mut mistakes = Vec::new();
    let nodes = file.get("sink").and_then(|node| node.array().ok()).unwrap_or(&[]);
    for sink in &catalogue.sinks {
        let table = nodes
            .iter()
            .filter_map(|node| node.table().ok())
            .find(|table| table.get("name").is_some_and(|name| name.span == sink.span));
        let Some(table) = table else { continue };
        let topic = catalogue.topics.get(&sink.from);
        match (topic, table.get("from")) {
            _ if unknowable.contains(&sink.from) => {}
            (Some(topic), _) if topic.fields.is_empty() => {}
            (Some(topic), _) => {
                let keys = keys.get(&topic.name).cloned();
                let keys = keys.unwrap_or_else(|| Keys::of_events(catalogue, topic.name.as_str()));
                sink_on(sink, table, topic, &keys, &mut mistakes);
            }
            (None, Some(node)) => {
                mistakes.push(unknown_topic(node, &sink.from, catalogue.topics.keys().map(String::as_str)));
            }
            (None, None) => {}
        }
    }
    mistakes
}

fn sink_on(sink: &SinkSpec, table: &Table, topic: &TopicSpec, keys: &Keys, mistakes: &mut Vec<Diagnostic>) {
    let names: Vec<&str> = topic.fields.iter().map(|field| field.name.as_str()).collect();
    let unknown = |node: &Node, name: &str| {
        let mistake = node.error(format!("topic `{}` has no column `{name}`", topic.name));
        match closest(name, names.iter().copied()) {
            Some(near) => mistake.help(format!("did you mean `{near}`? available: {}", names.join(", "))),
            None => mistake.help(format!("available: {}", names.join(", "))),
        }
    };
    let before = mistakes.len();
    if let Some(key) = table.get("key") {
        for node in key.array().unwrap_or(std::slice::from_ref(key)) {
            if let Ok(name) = node.str()
                && !names.contains(&name)
                && !KEY_SYSTEM.contains(&name)
            {
                mistakes.push(unknown(node, name));
            }
        }
        if mistakes.len() == before {
            mistakes.extend(determines(sink, key, topic, keys));
        }
    }
    if let Some(rollup) = table.get("rollup").and_then(|node| node.table().ok()) {
        for (name, span, node) in &rollup.entries {
            if !names.contains(&name.as_str()) {
                mistakes.push(Diagnostic { span: span.clone(), ..unknown(node, name) });
            }
        }
    }
    if let Some(filter) = table.get("filter") {
        let stream = StreamSchema { arrow: topic.schema(), kind: topic.kind };
        mistakes.extend(Expr::compile_bool(filter, &stream).err());
    }
}

/// R13: rows of one sink key are of one topic key, so that their offsets tell old from new.
fn determines(sink: &SinkSpec, node: &Node, topic: &TopicSpec, keys: &Keys) -> Option<Diagnostic> {
    let own: BTreeSet<String> = sink.key.iter().cloned().collect();
    let place = own.contains(schema::PARTITION) && own.contains(schema::OFFSET);
    if place || own.contains(schema::ID) || keys.determined_by.iter().any(|set| set.is_subset(&own)) {
        return None;
    }
    let written = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let ways: Vec<String> = keys.determined_by.iter().filter(|set| !set.contains(schema::KEY)).map(written).collect();
    let remedy = match ways.is_empty() {
        true => "no column of the topic does".to_owned(),
        false => format!("these do: {}", ways.join(" | ")),
    };
    Some(
        node.error(format!(
            "the key of sink `{}` does not determine the key of topic `{}`, so two partitions could write one row",
            sink.name, topic.name
        ))
        .help(format!(
            "{remedy}; add them to the key, or put {{ rekey = \"…\" }} before `to` of the topology that writes the topic"
        )),
    )
}
