//! `/openapi.json` and the page at `/docs`, which works offline.

mod paths;

use axum::Router;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use serde_json::{Map, Value, json};
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use paths::{Endpoint, PATHS};

/// The document: one entry a path, each with an example.
pub fn whole() -> Value {
    let mut all = Map::new();
    for endpoint in PATHS {
        let entry = all.entry(endpoint.path.to_owned()).or_insert_with(|| json!({}));
        entry[endpoint.method] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "quikflow query API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Views, SQL, messages, search, notifications, audit, dead letters, lag. Times are RFC 3339 in UTC. \
                            Errors are application/problem+json (RFC 9457).",
            "license": { "name": "Apache-2.0" },
        },
        "paths": all,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Problem": problem_schema() },
        },
        "security": [{}, { "bearer": [] }],
    })
}

fn problem_schema() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": text, "title": text, "status": { "type": "integer" }, "detail": text,
            "errors": { "type": "array", "items": { "type": "object", "properties": { "path": text, "rule": text, "message": text } } },
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let in_path = endpoint.path.split('{').skip(1).filter_map(|part| part.split('}').next());
    let mut parameters: Vec<Value> =
        in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })).collect();
    for (name, doc, example) in endpoint.parameters {
        let required = doc.starts_with("required");
        parameters.push(json!({
            "name": name, "in": "query", "required": required, "description": doc,
            "schema": { "type": "string" }, "example": example,
        }));
    }
    let example: Value = serde_json::from_str(endpoint.answer).unwrap_or_else(|_| Value::String(endpoint.answer.to_owned()));
    let mut content = Map::new();
    content.insert(endpoint.media[0].to_owned(), json!({ "schema": schema_of(&example), "example": example }));
    for media in &endpoint.media[1..] {
        content.insert((*media).to_owned(), json!({ "schema": { "type": "string", "format": "binary" } }));
    }
    let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    let mut operation = json!({
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.doc,
        "operationId": format!("{}{}", endpoint.method, endpoint.path.replace(['/', '{', '}', '.'], "_")),
        "parameters": parameters,
        "responses": {
            "200": { "description": "the answer", "content": content },
            "default": { "description": "what went wrong and what to do", "content": problem },
        },
    });
    if let Some(body) = endpoint.body {
        let example: Value = serde_json::from_str(body).unwrap_or(Value::Null);
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schema_of(&example), "example": example } },
        });
    }
    operation
}

/// A schema as wide as the example.
fn schema_of(example: &Value) -> Value {
    match example {
        Value::Object(map) => {
            let properties: Map<String, Value> = map.iter().map(|(name, v)| (name.clone(), schema_of(v))).collect();
            json!({ "type": "object", "properties": properties })
        }
        Value::Array(items) => json!({ "type": "array", "items": items.first().map_or_else(|| json!({}), schema_of) }),
        Value::String(_) => json!({ "type": "string" }),
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::Number(_) => json!({ "type": "number" }),
        Value::Null => json!({}),
    }
}

/// `GET /openapi.json`
pub(crate) async fn document() -> axum::Json<Value> {
    axum::Json(whole())
}

/// The page, its scripts compiled in.
pub(crate) fn page<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = SwaggerUi::new("/docs").config(Config::from("/openapi.json").try_it_out_enabled(true));
    Router::from(page).route("/", get(|| async { Redirect::temporary("/docs/").into_response() }))
}
