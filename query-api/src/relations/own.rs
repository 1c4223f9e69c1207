//! What the process itself shows as tables: dead letters and lag.

use crate::state::Introspection;
use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use quikflow_sinks::store::{Scan, ScanRequest, StoreError, TableInfo};
use quikflow_topics::broker::{Broker, Positions};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::schema::time_type;
use std::sync::Arc;

/// Dead letters read at once.
const PAGE: usize = 500;

fn info(name: &str, doc: &str, fields: Vec<Field>, key: &[&str], time: Option<&str>) -> TableInfo {
    TableInfo {
        name: name.to_owned(),
        doc: doc.to_owned(),
        schema: Arc::new(Schema::new(fields)),
        key: key.iter().map(|k| (*k).to_owned()).collect(),
        time_column: time.map(str::to_owned),
        final_column: None,
        rollup: std::collections::BTreeMap::new(),
        topic: String::new(),
        sink: String::new(),
    }
}

/// The table `dead_letters`.
pub(super) fn dead_letters_info() -> TableInfo {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let fields = vec![
        text("id", false),
        Field::new("at", time_type(), false),
        text("cause", false),
        text("code", false),
        text("path", true),
        text("message", false),
        text("topology", true),
        text("step", true),
        text("topic", true),
        Field::new("partition", DataType::UInt32, true),
        Field::new("offset", DataType::UInt64, true),
        text("status", false),
        Field::new("size", DataType::UInt64, false),
        text("record", false),
    ];
    info("dead_letters", "Records that could not go on, with cause, origin and bytes.", fields, &["id"], Some("at"))
}

/// The table `lag`.
pub(super) fn lag_info() -> TableInfo {
    let fields = vec![
        Field::new("group", DataType::Utf8, false),
        Field::new("topic", DataType::Utf8, false),
        Field::new("partition", DataType::UInt32, false),
        Field::new("position", DataType::UInt64, false),
        Field::new("end", DataType::UInt64, false),
        Field::new("lag", DataType::UInt64, false),
    ];
    info("lag", "How far each topology and sink is behind the topics it reads.", fields, &["group", "topic", "partition"], None)
}

/// The columns that a request wants.
fn project(batch: &RecordBatch, columns: Option<&Vec<String>>) -> Result<RecordBatch, StoreError> {
    let Some(columns) = columns else { return Ok(batch.clone()) };
    let schema = batch.schema();
    let indices: Result<Vec<usize>, _> = columns.iter().map(|c| schema.index_of(c)).collect();
    indices.and_then(|i| batch.project(&i)).map_err(|e| StoreError::BadRequest(e.to_string()))
}

fn wanted_schema(schema: &SchemaRef, columns: Option<&Vec<String>>) -> Result<SchemaRef, StoreError> {
    project(&RecordBatch::new_empty(schema.clone()), columns).map(|b| b.schema())
}

/// The status as it is written.
pub(crate) fn status_name(status: DeadLetterStatus) -> &'static str {
    match status {
        DeadLetterStatus::Open => "open",
        DeadLetterStatus::Replaying => "replaying",
        DeadLetterStatus::Replayed => "replayed",
        DeadLetterStatus::Resolved => "resolved",
    }
}

/// Reads the dead letters page by page, newest first.
pub(super) fn scan_dead_letters(broker: Arc<dyn Broker>, info: &TableInfo, request: &ScanRequest) -> Result<Scan, StoreError> {
    let mut filter = DeadLetterFilter { from: request.from, to: request.to, limit: PAGE, ..DeadLetterFilter::default() };
    for (column, value) in &request.equals {
        match column.as_str() {
            "id" => filter.id = Some(value.clone()),
            "cause" => filter.cause = Some(value.clone()),
            "code" => filter.code = Some(value.clone()),
            "topology" => filter.topology = Some(value.clone()),
            "step" => filter.step = Some(value.clone()),
            _ => {}
        }
    }
    let (schema, columns) = (info.schema.clone(), request.columns.clone());
    let wanted = wanted_schema(&schema, columns.as_ref())?;
    let mut done = false;
    let batches = std::iter::from_fn(move || {
        if done {
            return None;
        }
        let page = match broker.dead_letters(&filter) {
            Ok(page) => page,
            Err(error) => {
                done = true;
                return Some(Err(unavailable(&error)));
            }
        };
        done = page.len() < PAGE;
        filter.before_seq = page.last().map(|(seq, _)| *seq);
        let letters: Vec<DeadLetter> = page.into_iter().map(|(_, letter)| letter).collect();
        (!letters.is_empty()).then(|| rows_of(&schema, &letters).and_then(|b| project(&b, columns.as_ref())))
    });
    Ok(Scan { schema: wanted, as_of: Positions::new(), batches: Box::new(batches) })
}

fn unavailable(error: &quikflow_topics::broker::BrokerError) -> StoreError {
    StoreError::Unavailable { store: "log", message: error.to_string(), retry_after: None }
}

fn rows_of(schema: &SchemaRef, letters: &[DeadLetter]) -> Result<RecordBatch, StoreError> {
    let text = |of: fn(&DeadLetter) -> Option<&str>| -> ArrayRef { Arc::new(letters.iter().map(of).collect::<StringArray>()) };
    let times: Vec<i64> = letters.iter().map(|l| l.at.0).collect();
    let partitions: UInt32Array = letters.iter().map(|l| l.origin.as_ref().map(|o| o.partition.0)).collect();
    let offsets: UInt64Array = letters.iter().map(|l| l.origin.as_ref().map(|o| o.offset.0)).collect();
    let sizes: UInt64Array = letters.iter().map(|l| Some(l.full_size)).collect();
    let records: StringArray = letters.iter().map(|l| Some(String::from_utf8_lossy(&l.bytes).into_owned())).collect();
    let columns: Vec<ArrayRef> = vec![
        text(|l| Some(&l.id)),
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
        text(|l| Some(&l.cause)),
        text(|l| Some(&l.code)),
        text(|l| l.path.as_deref()),
        text(|l| Some(&l.message)),
        text(|l| l.topology.as_deref()),
        text(|l| l.step.as_deref()),
        text(|l| l.origin.as_ref().map(|o| o.topic.as_str())),
        Arc::new(partitions),
        Arc::new(offsets),
        text(|l| Some(status_name(l.status))),
        Arc::new(sizes),
        Arc::new(records),
    ];
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| StoreError::BadRequest(e.to_string()))
}

/// Lag as it stands.
pub(super) fn scan_lag(process: &dyn Introspection, info: &TableInfo, request: &ScanRequest) -> Result<Scan, StoreError> {
    let report =
        process.lag().map_err(|e| StoreError::Unavailable { store: "lag", message: e.to_string(), retry_after: None })?;
    let rows = &report.rows;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| Some(&r.group)).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| Some(&r.topic)).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| Some(r.partition)).collect::<UInt32Array>()),
        Arc::new(rows.iter().map(|r| Some(r.position)).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|r| Some(r.end)).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|r| Some(r.lag)).collect::<UInt64Array>()),
    ];
    let batch = RecordBatch::try_new(info.schema.clone(), columns).map_err(|e| StoreError::BadRequest(e.to_string()))?;
    let batch = project(&batch, request.columns.as_ref())?;
    Ok(Scan { schema: batch.schema(), as_of: Positions::new(), batches: Box::new(std::iter::once(Ok(batch))) })
}
