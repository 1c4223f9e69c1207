//! JSON Schema of declared events, for documents and for other programs.

use super::{EventSpec, FieldSpec, FieldType};
use serde_json::{Map, Value, json};

/// The JSON Schema of an event as the door takes it: `{ "type", "payload", "timestamp", "id"?, "metadata"? }`.
pub fn event(spec: &EventSpec) -> Value {
    json!({
        "title": spec.name,
        "description": spec.doc,
        "type": "object",
        "required": ["type", "payload", "timestamp"],
        "properties": {
            "type": { "const": spec.name },
            "timestamp": { "type": "string", "format": "date-time" },
            "id": { "type": "string", "description": "unique: a repeat within the declared window is taken once" },
            "metadata": { "type": "object" },
            "payload": payload(spec),
        },
    })
}

/// The JSON Schema of an event's payload. Fields that are not declared are allowed, and kept.
pub fn payload(spec: &EventSpec) -> Value {
    let properties: Map<String, Value> = spec.fields.iter().map(|f| (f.name.clone(), field(f))).collect();
    let required: Vec<&str> = spec.fields.iter().filter(|f| !f.optional).map(|f| f.name.as_str()).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// The JSON Schema of a field, with its rules.
pub fn field(spec: &FieldSpec) -> Value {
    let mut schema = Map::new();
    let (ty, lengths) = match spec.ty {
        FieldType::String => (Some("string"), Some(("minLength", "maxLength"))),
        FieldType::Int => (Some("integer"), None),
        FieldType::Float => (Some("number"), None),
        FieldType::Bool => (Some("boolean"), None),
        FieldType::Timestamp => (Some("string"), None),
        FieldType::StringList => (Some("array"), Some(("minItems", "maxItems"))),
        FieldType::Json => (None, None),
    };
    if let Some(ty) = ty {
        // an optional field may be null
        schema.insert("type".to_owned(), if spec.optional { json!([ty, "null"]) } else { json!(ty) });
    }
    if spec.ty == FieldType::Timestamp {
        schema.insert("format".to_owned(), json!("date-time"));
    }
    if spec.ty == FieldType::StringList {
        schema.insert("items".to_owned(), json!({ "type": "string" }));
    }
    if let Some((least, most)) = lengths {
        schema.extend(spec.min_length.map(|n| (least.to_owned(), json!(n))));
        schema.extend(spec.max_length.map(|n| (most.to_owned(), json!(n))));
    }
    schema.extend(spec.min.map(|n| ("minimum".to_owned(), json!(n))));
    schema.extend(spec.max.map(|n| ("maximum".to_owned(), json!(n))));
    if !spec.one_of.is_empty() {
        let mut values: Vec<Value> = spec.one_of.iter().map(|value| json!(value)).collect();
        values.extend(spec.optional.then_some(Value::Null));
        schema.insert("enum".to_owned(), Value::Array(values));
    }
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_in_the_schema() {
        let content = FieldSpec { max_length: Some(10), min_length: Some(1), ..FieldSpec::new("content", FieldType::String) };
        let kind = FieldSpec { optional: true, one_of: vec!["a".to_owned()], ..FieldSpec::new("kind", FieldType::String) };
        let spec = EventSpec {
            name: "SENT".to_owned(),
            topic: "t".to_owned(),
            key: vec!["content".to_owned()],
            doc: String::new(),
            fields: vec![content, kind],
        };
        assert_eq!(
            payload(&spec),
            json!({
                "type": "object",
                "required": ["content"],
                "properties": {
                    "content": { "type": "string", "minLength": 1, "maxLength": 10 },
                    "kind": { "type": ["string", "null"], "enum": ["a", null] },
                },
            })
        );
        assert_eq!(event(&spec)["properties"]["type"]["const"], "SENT");
    }
}
