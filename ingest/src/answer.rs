//! Outcomes as answers.

use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use quikflow_gateway::{FieldError, Problem};
use quikflow_topics::json::{Code, Reject};
use quikflow_topics::{Appended, BrokerError};
use serde::Serialize;
use std::time::Duration;

/// Where a record went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// The partition; null for a duplicate whose first copy's place is not known any longer.
    pub partition: Option<u32>,
    /// The offset; null likewise.
    pub offset: Option<u64>,
}

/// How many records were there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// So many.
    Known(u64),
    /// The broker does not look ids up (R18): they were stored again.
    Unknown,
}

impl Default for Duplicates {
    fn default() -> Duplicates {
        Duplicates::Known(0)
    }
}

impl Duplicates {
    /// What a broker says.
    pub fn of(appended: &Appended) -> Duplicates {
        if appended.duplicates_unknown { Duplicates::Unknown } else { Duplicates::Known(appended.duplicates) }
    }
}

impl Serialize for Duplicates {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Duplicates::Known(count) => serializer.serialize_u64(*count),
            Duplicates::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

/// An accepting answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Accepted {
    /// Records written now.
    pub accepted: u64,
    /// Records that were there already, by id or lane.
    pub duplicates: Duplicates,
    /// Refused lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<u64>,
    /// Why, in the order of the lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The good events' places in the order sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<Vec<Place>>,
    /// The lane's highest accepted line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, axum::Json(self)).into_response()
    }
}

/// How [`FieldError`]s name the event they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// One event: not at all.
    Single,
    /// By its index in the array.
    Index,
    /// By its line.
    Line,
}

/// Past so many refused events only the first fault of each is told.
const TOLD_WHOLE: usize = 1000;

/// Rejects as errors.
pub fn errors(rejects: &[Reject], named: Named) -> Vec<FieldError> {
    let each = if rejects.len() > TOLD_WHOLE { 1 } else { usize::MAX };
    let one = |reject: &Reject| -> Vec<FieldError> {
        let number = Some(reject.line);
        let fault = |fault: &quikflow_topics::json::Fault| FieldError {
            line: number.filter(|_| named == Named::Line),
            index: number.filter(|_| named == Named::Index),
            path: fault.path.clone(),
            rule: fault.code.name().to_owned(),
            message: fault.message.clone(),
        };
        reject.faults.iter().take(each).map(fault).collect()
    };
    rejects.iter().flat_map(one).collect()
}

/// Refused: nothing, or nothing but dead letters, was written.
pub fn refused(rejects: &[Reject], named: Named) -> Problem {
    let only_large = rejects.iter().all(|r| r.faults.iter().all(|f| f.code == Code::TooLarge));
    let status = if only_large && named == Named::Single { 413 } else { 422 };
    let detail = match (named, rejects.len()) {
        (Named::Single, _) => "the event was refused, see errors".to_owned(),
        (Named::Index, n) => format!("{n} events of the array are wrong, so none was written; see errors"),
        (Named::Line, n) => format!("none of the {n} events was good; see errors"),
    };
    let problem = Problem::new(status, "refused", "events refused").detail(detail).errors(errors(rejects, named));
    if named == Named::Line { problem.with("rejected", rejects.len()) } else { problem }
}

/// 429.
pub fn too_busy(after: Duration) -> Problem {
    Problem::new(429, "busy", "too much under way").detail("nothing was written, send it again later").retry_after(after)
}

/// A broker's refusal.
pub fn of_broker(error: &BrokerError) -> Problem {
    match error {
        BrokerError::Busy(after) => too_busy(*after),
        BrokerError::Full { .. } => {
            let problem = Problem::new(429, "full", "the log is full").detail(error.to_string());
            problem.retry_after(Duration::from_secs(60))
        }
        BrokerError::IdConflict { row, id: _ } => {
            let field =
                FieldError { path: "id".into(), rule: "id_conflict".into(), message: error.to_string(), ..FieldError::default() };
            let problem = Problem::new(409, "id_conflict", "an id was used for another event");
            problem.detail("nothing was written; give the new event an id of its own").errors(vec![field]).with("row", *row)
        }
        BrokerError::OutOfSequence { expected, previous, .. } => {
            Problem::new(409, "out_of_sequence", "an earlier batch of the lane is missing")
                .detail(format!("{error}; nothing was written, send from the expected line on"))
                .with("expected", *expected)
                .with("previous", *previous)
        }
        BrokerError::UnknownTopic(_) => Problem::new(404, "unknown_topic", "no such topic").detail(error.to_string()),
        BrokerError::Closed => {
            let problem = Problem::new(503, "closing", "the server is shutting down");
            problem.detail("nothing was written, send it again").retry_after(Duration::from_secs(1))
        }
        BrokerError::Owned(_) | BrokerError::Storage(_) | BrokerError::Unavailable(_) | BrokerError::Corrupt(_) => {
            tracing::error!(%error, "an append failed");
            let problem = Problem::new(503, "storage", "the log cannot be written");
            problem.detail("see the server's log").retry_after(Duration::from_secs(5))
        }
    }
}

/// 400.
pub fn bad_request(kind: &str, detail: impl Into<String>) -> Problem {
    Problem::new(400, kind, "the request makes no sense").detail(detail)
}

/// 404.
pub async fn no_such_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(404, "not_found", "no such path").detail(format!("`{path}` is not served here, see /docs"))
}

/// 405.
pub async fn no_such_method() -> Problem {
    Problem::new(405, "method_not_allowed", "another method is needed").detail("see /docs")
}
