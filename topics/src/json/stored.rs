//! Canonical JSON of stored records back to columns: what [`super::encode`] wrote, without rules.
//!
//! Brokers that keep records as JSON read through this. `decode(encode(row)) = row`: what no column
//! holds comes back into `_rest`. Records that others wrote are read as well, as long as they are
//! events (or objects of the declared columns, in a topic of rows).

use super::columns::TopicColumns;
use super::decode::Limits;
use super::event::{Beside, Envelope, Scratch, append, check_payload, scan_event};
use super::rules::{EventPlan, Faults};
use crate::catalogue::{TopicKind, TopicSpec};
use arrow::array::RecordBatch;
use std::sync::Arc;

/// A stored record.
#[derive(Clone, Copy, Debug)]
pub struct StoredRecord<'a> {
    /// Its value: canonical JSON, or an event that someone else wrote.
    pub value: &'a [u8],
    /// Its key.
    pub key: Option<&'a str>,
    /// The type, for a topic of rows; events carry their own.
    pub ty: &'a str,
    /// Event time in microseconds, for a topic of rows; events carry their own.
    pub event_time: i64,
}

/// Decodes records of one topic into a batch in its append schema.
pub struct StoredDecoder {
    kind: TopicKind,
    plan: EventPlan,
    columns: TopicColumns,
    order: Vec<usize>,
    scratch: Scratch,
    wrapped: String,
    limits: Limits,
}

impl StoredDecoder {
    /// For records of `topic`, of whose columns these are asked for.
    pub fn new(topic: &Arc<TopicSpec>, columns: &[String]) -> StoredDecoder {
        StoredDecoder {
            kind: topic.kind,
            plan: EventPlan::of_topic(topic),
            columns: TopicColumns::only(topic, columns),
            order: Vec::new(),
            scratch: Scratch::default(),
            wrapped: String::new(),
            limits: Limits { max_depth: 130, max_event_bytes: usize::MAX, max_id_length: usize::MAX, kept_bytes: 0 },
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// What is wrong with it; it was not taken then.
    pub fn take(&mut self, record: StoredRecord<'_>) -> Result<(), String> {
        let text = std::str::from_utf8(record.value).map_err(|e| format!("not UTF-8 from byte {} on", e.valid_up_to()))?;
        let rows = self.kind == TopicKind::Rows;
        if rows {
            self.wrapped.clear();
            self.wrapped.push_str("{\"payload\":");
            self.wrapped.push_str(text);
            self.wrapped.push('}');
        }
        let text = if rows { self.wrapped.as_str() } else { text };
        let scratch = &mut self.scratch;
        scratch.clear();
        scan_event(text, self.limits.max_depth, scratch).map_err(|fault| fault.message)?;
        let mut faults = Faults::default();
        let mut envelope = Envelope::read(text, scratch, &self.limits, &mut faults);
        if rows {
            // The envelope stands beside the value.
            faults.0.retain(|fault| fault.path != "type" && fault.path != "timestamp");
            envelope.time = record.event_time;
        }
        check_payload(text, &self.plan, &mut self.order, scratch, &mut faults);
        if let Some(fault) = faults.0.first() {
            return Err(format!("`{}` {}", fault.path, fault.message));
        }
        if rows {
            scratch.forget_nulls();
        }
        let ty = envelope.ty.map(|ty| ty.text(text));
        let beside = Beside { id: None, ty: Some(ty.as_deref().unwrap_or(record.ty)), key: record.key };
        append(text, &self.plan, &envelope, beside, scratch, &mut self.columns);
        Ok(())
    }

    /// A row that says nothing, in the place of a record that cannot be taken.
    pub fn skip(&mut self, event_time: i64) {
        let row = self.columns.rows;
        self.columns.rows += 1;
        self.columns.event_time.append_value(event_time);
        self.columns.ty.set(row, "");
    }

    /// The batch: the columns asked for in the order of the topic's append schema, and the event time.
    ///
    /// # Errors
    /// Never for a topic whose schema is its own; Arrow's message otherwise.
    pub fn finish(self) -> Result<RecordBatch, arrow::error::ArrowError> {
        self.columns.finish_asked()
    }
}
