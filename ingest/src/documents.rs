//! `/openapi.json` and `/asyncapi.json`, made from the catalogue, and the page at `/docs`, which
//! needs nothing from elsewhere.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use quikflow_topics::{Catalogue, EventSpec, FieldSpec, FieldType};
use serde_json::{Map, Value, json};
use utoipa_swagger_ui::{Config, SwaggerUi};

fn serve(document: &Value) -> MethodRouter {
    let body = Bytes::from(serde_json::to_vec_pretty(document).unwrap_or_default());
    get(move || {
        let body = body.clone();
        async move { ([(CONTENT_TYPE, "application/json")], body) }
    })
}

/// The document of events and sockets alone, for addresses that have an OpenAPI document of their own.
pub fn asyncapi_route(catalogue: &Catalogue) -> Router {
    Router::new().route("/asyncapi.json", serve(&asyncapi(catalogue)))
}

/// The routes; the documents are made once. `sign_in`: users can sign in at this address.
pub fn routes(catalogue: &Catalogue, sign_in: bool) -> Router {
    let page: Router = SwaggerUi::new("/docs").config(Config::from("/openapi.json")).into();
    let mut document = openapi(catalogue);
    if let (true, Some(paths)) = (sign_in, document.get_mut("paths").and_then(Value::as_object_mut)) {
        paths.extend(quikflow_gateway::sign_in::documents::paths());
    }
    Router::new().route("/openapi.json", serve(&document)).merge(asyncapi_route(catalogue)).merge(page)
}

/// A field's JSON Schema.
pub fn field_schema(field: &FieldSpec) -> Value {
    let mut schema = match field.ty {
        FieldType::String => json!({ "type": "string" }),
        FieldType::Int => json!({ "type": "integer", "format": "int64" }),
        FieldType::Float => json!({ "type": "number", "format": "double" }),
        FieldType::Bool => json!({ "type": "boolean" }),
        FieldType::Timestamp => json!({ "type": "string", "format": "date-time" }),
        FieldType::StringList => json!({ "type": "array", "items": { "type": "string" } }),
        FieldType::Json => json!({ "description": "any JSON" }),
    };
    let Some(members) = schema.as_object_mut() else { return schema };
    let (fewest, most) = match field.ty {
        FieldType::StringList => ("minItems", "maxItems"),
        _ => ("minLength", "maxLength"),
    };
    if field.ty != FieldType::Json {
        members.extend(field.min_length.map(|n| (fewest.to_owned(), n.into())));
        members.extend(field.max_length.map(|n| (most.to_owned(), n.into())));
    }
    members.extend(field.min.map(|n| ("minimum".to_owned(), json!(n))));
    members.extend(field.max.map(|n| ("maximum".to_owned(), json!(n))));
    if !field.one_of.is_empty() {
        if let Some(items) = members.get_mut("items").and_then(Value::as_object_mut) {
            items.insert("enum".to_owned(), json!(field.one_of));
        } else if field.ty == FieldType::String {
            members.insert("enum".to_owned(), json!(field.one_of));
        }
    }
    if field.optional
        && let Some(ty) = members.get("type").cloned()
    {
        members.insert("type".to_owned(), json!([ty, "null"]));
        if let Some(values) = members.get_mut("enum").and_then(Value::as_array_mut) {
            values.push(Value::Null);
        }
    }
    schema
}

/// An event type's JSON Schema, envelope and payload. Undeclared names are allowed: they are kept.
pub fn event_schema(event: &EventSpec) -> Value {
    let properties: Map<String, Value> = event.fields.iter().map(|f| (f.name.clone(), field_schema(f))).collect();
    let required: Vec<&str> =
        event.fields.iter().filter(|f| !f.optional || event.key.contains(&f.name)).map(|f| f.name.as_str()).collect();
    json!({
        "type": "object",
        "title": event.name,
        "description": event.doc,
        "required": ["type", "payload", "timestamp"],
        "properties": {
            "type": { "const": event.name },
            "payload": { "type": "object", "required": required, "properties": properties },
            "timestamp": { "type": "string", "format": "date-time", "description": "when it happened" },
            "id": { "type": "string", "minLength": 1, "maxLength": 256, "description": "makes a repeat harmless" },
            "metadata": {
                "type": "object",
                "properties": {
                    "source": { "type": "string" },
                    "correlationId": { "type": "string" },
                    "userAgent": { "type": "string" },
                },
            },
        },
    })
}

fn schemas(catalogue: &Catalogue) -> Map<String, Value> {
    catalogue.events.values().map(|event| (event.name.clone(), event_schema(event))).collect()
}

/// The OpenAPI document.
pub fn openapi(catalogue: &Catalogue) -> Value {
    let mut schemas = schemas(catalogue);
    let all: Vec<Value> = schemas.keys().map(|name| json!({ "$ref": format!("#/components/schemas/{name}") })).collect();
    schemas.insert("Event".into(), json!({ "oneOf": all }));
    schemas.insert("Accepted".into(), accepted());
    schemas.insert("Problem".into(), problem());
    let mut topics: Vec<&str> = catalogue.events.values().map(|event| event.topic.as_str()).collect();
    topics.sort_unstable();
    topics.dedup();
    let event = json!({ "$ref": "#/components/schemas/Event" });
    let body = json!({
        "required": true,
        "content": {
            "application/json": { "schema": { "oneOf": [event, { "type": "array", "items": event }] } },
            "application/x-ndjson": { "schema": { "type": "string", "description": "one event a line" } },
        },
    });
    let header =
        |name: &str, schema: Value, text: &str| json!({ "name": name, "in": "header", "schema": schema, "description": text });
    let parameters = json!([
        { "name": "records", "in": "query", "schema": { "type": "boolean", "default": true }, "description": "false: only the counts" },
        header("Idempotency-Key", json!({ "type": "string", "maxLength": 200 }),
            "id of an event that has none; of several events `<key>:<index>` (array) or `<key>:<line>` (NDJSON)"),
        header("Content-Encoding", json!({ "enum": ["gzip", "zstd"] }), "how the body is packed"),
        header("Quikflow-Producer", json!({ "type": "string", "maxLength": 200 }), "a bulk producer's lane (NDJSON only)"),
        header("Quikflow-First-Line", json!({ "type": "integer", "minimum": 1 }), "number of the body's first line"),
        header("Quikflow-Previous-Line", json!({ "type": "integer", "minimum": 0 }), "last line of the batch before"),
    ]);
    let mut to_topic = parameters.clone();
    if let Some(list) = to_topic.as_array_mut() {
        list.push(json!({ "name": "topic", "in": "path", "required": true, "schema": { "enum": topics } }));
    }
    let path = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let members = json!([path("channel"), path("user"),
        { "name": "workspaceId", "in": "query", "schema": { "type": "string" } }]);
    let text = json!({ "description": "text" });
    let plain = |summary: &str| json!({ "get": { "summary": summary, "responses": { "200": text } } });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "quikflow ingest", "version": env!("CARGO_PKG_VERSION"), "description": "An accepting answer means: durable." },
        "paths": {
            "/v1/events": { "post": {
                "summary": "Send one event, an array (all or nothing), or NDJSON (the good lines); the type decides the topic",
                "parameters": parameters, "requestBody": body, "responses": responses() } },
            "/v1/topics/{topic}/records": { "post": {
                "summary": "The same for the event types of one topic",
                "parameters": to_topic, "requestBody": body, "responses": responses() } },
            "/api/v1/channels/{channel}/members/{user}": {
                "put": { "summary": "Add a member (MEMBER_ADDED)", "parameters": members, "responses": responses() },
                "delete": { "summary": "Remove a member (MEMBER_REMOVED)", "parameters": members, "responses": responses() } },
            "/v1/ws": { "get": { "summary": "WebSocket, one event a text frame; see /asyncapi.json",
                "responses": { "101": { "description": "switched" } } } },
            "/health/live": plain("The process answers"),
            "/health/ready": plain("The process can work"),
            "/metrics": plain("Prometheus metrics"),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{}, { "token": [] }],
    })
}

fn responses() -> Value {
    let problem = |text: &str| json!({ "description": text, "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } });
    json!({
        "202": { "description": "durable", "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Accepted" } } } },
        "400": problem("headers or packing make no sense"),
        "401": problem("a token is needed"),
        "409": problem("an id was used for another event, or an earlier batch of the lane is missing"),
        "413": problem("too large"),
        "415": problem("media type or encoding not supported"),
        "422": problem("refused, see errors"),
        "429": problem("too much under way, see Retry-After"),
        "503": problem("not now, see Retry-After"),
    })
}

fn accepted() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object",
        "required": ["accepted", "duplicates"],
        "properties": {
            "accepted": count, "rejected": count,
            "duplicates": { "type": ["integer", "string"], "minimum": 0,
                "description": "how many were there already; \"unknown\" where the broker does not look ids up" },
            "errors": { "type": "array", "items": field_error() },
            "records": { "type": "array", "items": { "type": "object", "properties": {
                "topic": { "type": "string" }, "partition": { "type": ["integer", "null"] }, "offset": { "type": ["integer", "null"] } } } },
            "line": { "type": "integer", "description": "the lane's highest accepted line" },
        },
    })
}

fn field_error() -> Value {
    let rules: Vec<&str> = quikflow_topics::json::Code::ALL.iter().map(|code| code.name()).collect();
    json!({ "type": "object", "required": ["path", "rule", "message"], "properties": {
        "line": { "type": "integer" }, "index": { "type": "integer" }, "path": { "type": "string" },
        "rule": { "type": "string", "examples": rules }, "message": { "type": "string" } } })
}

fn problem() -> Value {
    json!({ "type": "object", "required": ["type", "title", "status"], "properties": {
        "type": { "type": "string" }, "title": { "type": "string" }, "status": { "type": "integer" },
        "detail": { "type": "string" }, "errors": { "type": "array", "items": field_error() } } })
}

/// The AsyncAPI document: the WebSocket, and the topics' event types.
pub fn asyncapi(catalogue: &Catalogue) -> Value {
    let messages: Map<String, Value> = catalogue
        .events
        .values()
        .map(|event| (event.name.clone(), json!({ "title": event.name, "summary": event.doc, "payload": event_schema(event) })))
        .collect();
    let refer = |event: &EventSpec| (event.name.clone(), json!({ "$ref": format!("#/components/messages/{}", event.name) }));
    let mut channels = Map::new();
    for topic in catalogue.topics.values() {
        let of_topic: Map<String, Value> = catalogue.events_of(&topic.name).map(|event| refer(event)).collect();
        if !of_topic.is_empty() {
            channels.insert(topic.name.clone(), json!({ "address": topic.name, "description": topic.doc, "messages": of_topic }));
        }
    }
    channels.insert(
        "socket".into(),
        json!({
            "address": "/v1/ws",
            "description": "first frame of the server: {\"credit\":n}; then {\"ref\",\"event\"} → {\"ref\",\"ok\",…}; beyond the credit the socket is closed with 1008",
            "messages": catalogue.events.values().map(|event| refer(event)).collect::<Map<_, _>>(),
        }),
    );
    json!({
        "asyncapi": "3.0.0",
        "info": { "title": "quikflow ingest", "version": env!("CARGO_PKG_VERSION") },
        "channels": channels,
        "components": { "messages": messages },
    })
}
