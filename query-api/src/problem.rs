//! What went wrong, as the gateway's RFC 9457 problem documents: what, where, what to do; never
//! internals. Here are the problems that a question can meet, and what errors of stores and of the
//! log become.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quikflow_gateway::problem as gateway;
pub use quikflow_gateway::problem::FieldError;
use quikflow_sinks::store::StoreError;
use quikflow_topics::broker::BrokerError;
use std::time::Duration;

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem(gateway::Problem);

impl std::ops::Deref for Problem {
    type Target = gateway::Problem;

    fn deref(&self) -> &gateway::Problem {
        &self.0
    }
}

impl Problem {
    /// A problem of a status, kind (one word, machine-readable) and detail.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Problem {
        let title = status.canonical_reason().unwrap_or("error");
        Problem(gateway::Problem::new(status.as_u16(), kind, title).detail(detail))
    }

    /// 422 with one field at fault.
    pub fn field(path: impl Into<String>, rule: &str, message: impl Into<String>) -> Problem {
        let error = FieldError { path: path.into(), rule: rule.to_owned(), message: message.into(), ..FieldError::default() };
        Problem::fields(vec![error])
    }

    /// 422 with several fields at fault.
    pub fn fields(errors: Vec<FieldError>) -> Problem {
        let detail = errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; ");
        Problem(invalid(detail).0.errors(errors))
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 500 that says nothing of the inside; the cause goes to the log.
    pub fn internal(cause: impl std::fmt::Display) -> Problem {
        tracing::error!(%cause, "a request failed inside");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed inside; the process's log says why")
    }

    /// Adds a member to the answer.
    #[must_use]
    pub fn with(self, name: &str, value: serde_json::Value) -> Problem {
        Problem(self.0.with(name, value))
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Problem {
        Problem(self.0.retry_after(after))
    }
}

fn invalid(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", detail)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl From<gateway::Problem> for Problem {
    fn from(problem: gateway::Problem) -> Problem {
        Problem(problem)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Unavailable { store, retry_after, .. } => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unavailable",
                format!("the store `{store}` does not answer now, try again"),
            )
            .retry_after(retry_after.unwrap_or(Duration::from_secs(1))),
            StoreError::Forgot { store } => Problem::internal(format!("{store} was started anew")),
            StoreError::Refused { store, message } => Problem::internal(format!("{store} refuses: {message}")),
            StoreError::BadRequest(message) => invalid(message),
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Problem {
        match error {
            BrokerError::UnknownTopic(topic) => Problem::not_found(format!("unknown topic `{topic}`")),
            BrokerError::Busy(after) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", "the log is busy, try again").retry_after(after)
            }
            BrokerError::Unavailable(_) => {
                tracing::error!(%error, "the log cannot be read");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "the log cannot be read now, try again")
                    .retry_after(Duration::from_secs(5))
            }
            BrokerError::Closed => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the process is shutting down"),
            other => Problem::internal(other),
        }
    }
}
