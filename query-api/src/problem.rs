//! Errors as RFC 9457 `application/problem+json`: what, where, what to do; never internals.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use quikflow_sinks::store::StoreError;
use quikflow_topics::broker::BrokerError;
use serde::Serialize;

/// A field at fault.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldError {
    /// The parameter or column.
    pub path: String,
    /// Machine-readable: `unknown_parameter`, `not_a_number`, `no_rollup`, ….
    pub rule: String,
    /// For people.
    pub message: String,
}

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// One or two words, machine-readable: the last part of `type`.
    pub kind: &'static str,
    /// What happened and what to do.
    pub detail: String,
    /// Fields at fault.
    pub errors: Vec<FieldError>,
    /// More members of the answer.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem of a status, kind and detail.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, kind, detail: detail.into(), errors: Vec::new(), extra: serde_json::Map::new(), retry_after: None }
    }

    /// 422 with one field at fault.
    pub fn field(path: impl Into<String>, rule: &str, message: impl Into<String>) -> Problem {
        let message = message.into();
        let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", message.clone());
        problem.errors.push(FieldError { path: path.into(), rule: rule.to_owned(), message });
        problem
    }

    /// 422 with several fields at fault.
    pub fn fields(errors: Vec<FieldError>) -> Problem {
        let detail = errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; ");
        Problem { errors, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", detail) }
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// 500 that says nothing of the inside; the cause goes to the log.
    pub fn internal(cause: impl std::fmt::Display) -> Problem {
        tracing::error!(%cause, "a request failed inside");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed inside; the process's log says why")
    }

    /// Adds a member to the answer.
    #[must_use]
    pub fn with(mut self, name: &str, value: serde_json::Value) -> Problem {
        self.extra.insert(name.to_owned(), value);
        self
    }

    /// The answer's JSON.
    pub fn body(&self) -> serde_json::Value {
        let mut body = serde_json::Map::new();
        body.insert("type".into(), format!("urn:quikflow:problem:{}", self.kind).into());
        body.insert("title".into(), self.status.canonical_reason().unwrap_or("error").into());
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("detail".into(), self.detail.clone().into());
        if !self.errors.is_empty() {
            body.insert("errors".into(), serde_json::json!(self.errors));
        }
        for (name, value) in &self.extra {
            body.insert(name.clone(), value.clone());
        }
        serde_json::Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body().to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Unavailable { store, retry_after, .. } => Problem {
                retry_after: Some(retry_after.map_or(1, |d| d.as_secs().max(1))),
                ..Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store-unavailable",
                    format!("the store `{store}` does not answer now, try again"),
                )
            },
            StoreError::Refused { store, message } => Problem::internal(format!("{store} refuses: {message}")),
            StoreError::BadRequest(message) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", message),
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Problem {
        match error {
            BrokerError::UnknownTopic(topic) => Problem::not_found(format!("unknown topic `{topic}`")),
            BrokerError::Busy(after) => Problem {
                retry_after: Some(after.as_secs().max(1)),
                ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", "the log is busy, try again")
            },
            BrokerError::Closed => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", "the process is shutting down"),
            other => Problem::internal(other),
        }
    }
}
