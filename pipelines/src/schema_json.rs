//! JSON Schema of `topologies.toml`, for editors that complete and check it while it is written.
//!
//! Made of the lists of fields that the parsers use, and of the registry of steps.

use crate::step::{FieldDoc, StepKind};
use crate::steps::KINDS;
use crate::topology::TOPOLOGY_FIELDS;
use crate::topology::cases::{GIVEN_FIELDS, TEST_FIELDS};
use quikflow_topics::catalogue::parse::{EVENT_FIELDS, FIELD_TYPES, PAYLOAD_FIELDS, ROLLUPS, SINK_FIELDS, STORES, TOPIC_FIELDS};
use serde_json::{Map, Value, json};

type Fields = [(&'static str, &'static str, &'static str)];

/// The schema (JSON Schema 2020-12).
pub fn json_schema() -> Value {
    let steps: Vec<Value> = KINDS.iter().map(|kind| step(kind)).collect();
    let mut topic = object(&TOPIC_FIELDS, &[], false);
    topic["properties"]["cleanup"]["enum"] = json!(["delete", "compact"]);
    topic["properties"]["partitions"]["maximum"] = json!(1024);
    let mut field = object(&PAYLOAD_FIELDS, &["type"], false);
    field["properties"]["type"] = json!({ "$ref": "#/$defs/type" });
    let mut event = object(&EVENT_FIELDS, &["topic", "key", "payload"], false);
    event["properties"]["payload"] = json!({
        "type": "object",
        "description": doc(&EVENT_FIELDS, "payload"),
        "additionalProperties": { "anyOf": [{ "$ref": "#/$defs/type" }, field] },
    });
    let mut sink = object(&SINK_FIELDS, &["name", "from", "store", "key"], true);
    sink["properties"]["store"]["enum"] = json!(STORES);
    sink["properties"]["rollup"] = json!({
        "type": "object",
        "description": doc(&SINK_FIELDS, "rollup"),
        "additionalProperties": { "enum": ROLLUPS },
    });
    let mut test = object(&TEST_FIELDS, &["topology", "given"], false);
    test["properties"]["given"]["items"] = object(&GIVEN_FIELDS, &["at"], false);
    test["properties"]["expect"]["items"] = json!({ "type": "object" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "topologies.toml",
        "description": "Events, topics, topologies, sinks and their tests.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "topics": { "type": "object", "description": "Topics by name.", "additionalProperties": topic },
            "events": { "type": "object", "description": "Event types by name.", "additionalProperties": event },
            "topology": { "type": "array", "items": object(&TOPOLOGY_FIELDS, &["name", "from"], false) },
            "sink": { "type": "array", "items": sink },
            "test": { "type": "array", "items": test },
        },
        "$defs": {
            "type": { "enum": FIELD_TYPES.map(|(name, _)| name) },
            "duration": { "type": "string", "pattern": "^[0-9]+ *(ms|s|m|min|h|d|w)$", "examples": ["30s"] },
            "sql": { "type": "string", "description": "A SQL expression." },
            "step": { "anyOf": steps },
        },
    })
}

fn doc(fields: &Fields, name: &str) -> &'static str {
    fields.iter().find(|(field, _, _)| *field == name).map_or("", |(_, _, doc)| doc)
}

fn object(fields: &Fields, required: &[&str], open: bool) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|(name, ty, doc)| ((*name).to_owned(), typed(ty, doc))).collect();
    json!({ "type": "object", "required": required, "additionalProperties": open, "properties": properties })
}

fn step(kind: &StepKind) -> Value {
    let mut properties: Map<String, Value> =
        kind.fields.iter().map(|field| (field.name.to_owned(), typed(field.ty, field.doc))).collect();
    let name = if kind.stateful { "Keys the step's state." } else { "For dead letters and accounts." };
    properties.entry("name").or_insert_with(|| typed("text", name));
    let mut required: Vec<&str> = kind.fields.iter().filter(|field: &&FieldDoc| field.required).map(|field| field.name).collect();
    if kind.stateful && !required.contains(&"name") {
        required.push("name");
    }
    // fields such as `window.tumbling` are documented with a dot; they stand inside of another
    properties.retain(|name, _| !name.contains('.'));
    required.retain(|name| !name.contains('.'));
    json!({
        "type": "object",
        "title": kind.name,
        "description": format!("{}. {}", kind.summary, kind.doc),
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

/// The schema of a documented type; those of steps are `sql`, `table<sql>`, `list<…>` and the like.
fn typed(ty: &str, doc: &str) -> Value {
    let mut schema = match ty {
        "text" => json!({ "type": "string" }),
        "number" => json!({ "type": "integer", "minimum": 0 }),
        "float" => json!({ "type": "number" }),
        "bool" => json!({ "type": "boolean" }),
        "duration" => json!({ "$ref": "#/$defs/duration" }),
        "sql" | "sql list" => json!({ "$ref": "#/$defs/sql" }),
        "table<sql>" => json!({ "type": "object", "additionalProperties": { "$ref": "#/$defs/sql" } }),
        "steps" => json!({ "type": "array", "items": { "$ref": "#/$defs/step" } }),
        "list" => json!({ "type": ["array", "string"] }),
        "table" => json!({ "type": "object" }),
        other if other.starts_with("list<") => json!({ "type": "array" }),
        _ => json!({}),
    };
    schema["description"] = json!(doc);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_step_and_every_section_is_in_the_schema() {
        let schema = json_schema();
        let titles: Vec<&str> =
            schema["$defs"]["step"]["anyOf"].as_array().unwrap().iter().filter_map(|s| s["title"].as_str()).collect();
        assert_eq!(titles, KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>());
        for section in crate::plan::SECTIONS {
            assert!(schema["properties"][section].is_object(), "{section}");
        }
        assert_eq!(schema["properties"]["topology"]["items"]["properties"]["steps"]["items"]["$ref"], "#/$defs/step");
    }
}
