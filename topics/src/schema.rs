//! The Arrow schema of a topic.
//!
//! System columns come first and begin with an underscore; then one column a declared field, by
//! its bare name. Undeclared fields, explicit nulls and number text that the column would lose are
//! in `_rest`, so that the original event can be rebuilt (R11).

use crate::catalogue::{FieldSpec, FieldType};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

/// UInt32: the record's partition.
pub const PARTITION: &str = "_partition";
/// UInt64: the record's offset in its partition.
pub const OFFSET: &str = "_offset";
/// Utf8, nullable: the record's key.
pub const KEY: &str = "_key";
/// Timestamp(µs, UTC): when it happened, by the client's word.
pub const EVENT_TIME: &str = "_event_time";
/// Timestamp(µs, UTC): when it was appended, by this process's clock.
pub const ARRIVAL_TIME: &str = "_arrival_time";
/// Utf8: the event type; `ROW` in topics of rows.
pub const TYPE: &str = "_type";
/// Utf8, nullable: the client's id.
pub const ID: &str = "_id";
/// Utf8, nullable: the envelope's `metadata` as canonical JSON.
pub const HEADERS: &str = "_headers";
/// Utf8, nullable: JSON object of what no column holds: `{"payload":{…},…}`; where a name is both
/// here and in a column, this one is what the client wrote.
pub const REST: &str = "_rest";

/// `(_watermark)` Int64, only inside the engine: the source partition's watermark before this
/// record, in microseconds (R1); i64::MIN where there is none yet.
pub const WATERMARK: &str = "_watermark";

/// The system columns of rows to be appended, in order.
pub const APPEND_SYSTEM: [&str; 6] = [KEY, EVENT_TIME, TYPE, ID, HEADERS, REST];
/// All system columns as read from a topic, in order.
pub const SYSTEM: [&str; 9] = [PARTITION, OFFSET, KEY, EVENT_TIME, ARRIVAL_TIME, TYPE, ID, HEADERS, REST];

/// `Timestamp(µs, "UTC")`, the one form of time.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The Arrow type of a declared field.
pub fn arrow_type(ty: FieldType) -> DataType {
    match ty {
        FieldType::String | FieldType::Json => DataType::Utf8,
        FieldType::Int => DataType::Int64,
        FieldType::Float => DataType::Float64,
        FieldType::Bool => DataType::Boolean,
        FieldType::Timestamp => time_type(),
        FieldType::StringList => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
    }
}

/// The Arrow field of a system column.
///
/// # Panics
/// Never for the names in [`SYSTEM`]; any other name is nullable Utf8.
pub fn system_field(name: &str) -> Field {
    match name {
        PARTITION => Field::new(name, DataType::UInt32, false),
        OFFSET => Field::new(name, DataType::UInt64, false),
        EVENT_TIME | ARRIVAL_TIME => Field::new(name, time_type(), false),
        TYPE => Field::new(name, DataType::Utf8, false),
        WATERMARK => Field::new(name, DataType::Int64, false),
        _ => Field::new(name, DataType::Utf8, true),
    }
}

/// The Arrow field of a declared field; always nullable, since each event type has its own fields.
pub fn arrow_field(field: &FieldSpec) -> Field {
    Field::new(&field.name, arrow_type(field.ty), true)
}

/// System columns as read, then fields.
pub fn full_schema(fields: &[FieldSpec]) -> SchemaRef {
    let system = SYSTEM.iter().map(|name| system_field(name));
    Arc::new(Schema::new(system.chain(fields.iter().map(arrow_field)).collect::<Vec<_>>()))
}

/// System columns that the appender supplies, then fields.
pub fn append_schema(fields: &[FieldSpec]) -> SchemaRef {
    let system = APPEND_SYSTEM.iter().map(|name| system_field(name));
    Arc::new(Schema::new(system.chain(fields.iter().map(arrow_field)).collect::<Vec<_>>()))
}
