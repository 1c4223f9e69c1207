//! The paths of [`super::routes`] as OpenAPI has them.

use serde_json::{Map, Value, json};

/// Paths, for a document whose schemas hold `Problem`.
pub fn paths() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let at = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": text });
    let body = |properties: Value, required: &[&str]| {
        let schema = json!({ "type": "object", "properties": properties, "required": required });
        json!({ "required": true, "content": { "application/json": { "schema": schema } } })
    };
    let tokens = json!({ "accessToken": text, "refreshToken": text, "tokenType": text, "expiresIn": { "type": "integer" },
        "user": { "type": "object", "properties": { "id": text, "email": text, "role": text } } });
    let signed_in = json!({ "200": { "description": "signed in", "content": { "application/json":
        { "schema": { "type": "object", "properties": tokens } } } } });
    let done = |status: &str, said: &str| json!({ status: { "description": said } });
    let operation = |summary: &str, parameters: &Value, body: Option<Value>, good: &Value| {
        let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        let mut responses = good.clone();
        if let Some(all) = responses.as_object_mut() {
            all.insert("default".into(), json!({ "description": "a problem", "content": problem }));
        }
        let mut operation = json!({ "summary": summary, "tags": ["sign-in"], "parameters": parameters, "responses": responses });
        if let (Some(operation), Some(body)) = (operation.as_object_mut(), body) {
            operation.insert("requestBody".into(), body);
        }
        operation
    };
    let email = json!({ "email": text, "password": text });
    let account = json!({ "email": text, "password": text, "role": text });
    let user = json!([at("id")]);
    let member = json!([at("id"), at("user")]);
    let whose = json!([{ "name": "userId", "in": "query", "schema": text, "description": "whose; the operator has to say" }]);
    let none = json!([]);
    let refresh = json!({ "refreshToken": text });
    let logout = json!({ "refreshToken": text, "all": { "type": "boolean" } });
    let new = json!({ "id": text, "name": text });
    let paths = json!({
        "/api/auth/login": { "post": operation("Sign in", &none, Some(body(email, &["email", "password"])), &signed_in) },
        "/api/auth/refresh": { "post": operation("Exchange a refresh token: each is good once", &none,
            Some(body(refresh, &["refreshToken"])), &signed_in) },
        "/api/auth/logout": { "post": operation("Sign out, here or everywhere (`all`)", &none, Some(body(logout, &[])),
            &done("204", "signed out")) },
        "/api/v1/users/{id}/account": {
            "put": operation("Make or replace an account", &user, Some(body(account, &["email", "password"])), &done("200", "made")),
            "delete": operation("Take an account away", &user, None, &done("204", "taken away")) },
        "/api/v1/users/{id}/sessions": {
            "get": operation("Where a user is signed in", &user, None, &done("200", "sessions, the oldest first")),
            "delete": operation("End all sessions of a user", &user, None, &done("200", "how many ended")) },
        "/api/v1/workspaces": {
            "get": operation("A user's workspaces", &whose, None, &done("200", "workspaces by id, with the user's role")),
            "post": operation("Make a workspace; its maker is its admin", &none, Some(body(new, &["id", "name"])), &done("201", "made")) },
        "/api/v1/workspaces/{id}/members": { "get": operation("Who is in a workspace", &user, None, &done("200", "by user id")) },
        "/api/v1/workspaces/{id}/members/{user}": {
            "put": operation("Give a user a role", &member, Some(body(json!({ "role": text }), &["role"])), &done("200", "given")),
            "delete": operation("Take a user out", &member, None, &done("204", "taken out")) },
    });
    if let Value::Object(paths) = paths { paths } else { Map::new() }
}
