//! DataFusion's errors as problems: what the user's text is to blame for is shown, the rest is not.

use crate::problem::Problem;
use axum::http::StatusCode;
use datafusion::common::DataFusionError;
use quikflow_sinks::store::StoreError;

/// The longest part of a foreign message that is shown, in characters.
const SHOWN: usize = 600;

/// The message without what belongs to the inside.
pub fn message(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = text.trim_start_matches("Error during planning: ").replace("quikflow.public.", "");
    let text = text.replace("quikflow.topic.", "topic.");
    text.chars().take(SHOWN).collect()
}

/// An error in planning: the text's fault.
pub fn planning(error: &DataFusionError) -> Problem {
    match error.find_root() {
        DataFusionError::Internal(_) => Problem::internal(error),
        _ => Problem::field("sql", "plan", message(error)),
    }
}

/// An error in execution.
pub fn execution(error: &DataFusionError) -> Problem {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "memory_limit",
            "the query needs more memory than one query may have: narrow the time range, group by fewer columns, \
             or add a limit",
        ),
        DataFusionError::External(inner) => match inner.downcast_ref::<StoreError>() {
            Some(error) => Problem::from(error.clone()),
            None => Problem::internal(error),
        },
        DataFusionError::ArrowError(..)
        | DataFusionError::Execution(_)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "query_failed", message(error)),
        _ => Problem::internal(error),
    }
}
