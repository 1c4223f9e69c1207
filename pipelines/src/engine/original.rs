//! A record's canonical JSON, for dead letters (R11).

use super::EngineError;
use arrow::array::RecordBatch;
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::json::Encoder;

/// The first row of `record` (in the topic's whole schema) as the event that was sent.
///
/// # Errors
/// Columns that are not the topic's.
pub fn canonical_json(topic: &TopicSpec, record: &RecordBatch) -> Result<Vec<u8>, EngineError> {
    let encoder = Encoder::new(topic, record).map_err(|error| EngineError::Columns(error.to_string()))?;
    Ok(encoder.row(0).into_bytes())
}
