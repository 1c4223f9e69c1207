//! Errors as RFC 9457 problem documents: `application/problem+json`.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// What is wrong with one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Line of an NDJSON body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Index in an array, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The field; empty where the whole is at fault.
    pub path: String,
    /// The rule, in one word.
    pub rule: String,
    /// For people.
    pub message: String,
}

/// An answer that says what went wrong and what to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// One word a kind: `urn:quikflow:<kind>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This case, for people: what, where, what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Further members.
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// Sent as `Retry-After`, in whole seconds, at least one.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// A problem of one kind.
    pub fn new(status: u16, kind: &str, title: &str) -> Problem {
        Problem {
            kind: format!("urn:quikflow:{kind}"),
            title: title.to_owned(),
            status,
            detail: String::new(),
            errors: Vec::new(),
            more: Map::new(),
            retry_after: None,
        }
    }

    /// Says what this case is.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Problem {
        self.detail = detail.into();
        self
    }

    /// Names the fields at fault.
    #[must_use]
    pub fn errors(mut self, errors: Vec<FieldError>) -> Problem {
        self.errors = errors;
        self
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Problem {
        self.retry_after = Some(after);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_a_document_of_rfc_9457() {
        let field = FieldError {
            path: "payload.content".into(),
            rule: "too_long".into(),
            message: "…".into(),
            line: Some(3),
            index: None,
        };
        let problem = Problem::new(429, "busy", "try again")
            .detail("later")
            .errors(vec![field])
            .with("expected", 7)
            .retry_after(Duration::from_millis(1200));
        let response = problem.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "2");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "urn:quikflow:busy");
        assert_eq!((&body["status"], &body["expected"]), (&429.into(), &7.into()));
        assert_eq!(body["errors"][0]["rule"], "too_long");
        assert!(body["errors"][0].get("index").is_none() && body.get("retry_after").is_none());
    }
}
