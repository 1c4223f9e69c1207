//! Rows back to canonical JSON, without loss (R11).
//!
//! A row of a topic of events becomes its event: `id`, `metadata`, `payload`, `timestamp`, `type`
//! and what stands in `_rest`, names sorted. Columns that are null are left out, unless `_rest`
//! says that the client wrote null; where a name is both in a column and in `_rest`, the latter is
//! written, since that is what the client wrote. An id that came by header is written as `id`.
//!
//! A row of a topic of rows becomes an object of its fields, names sorted, null where it is null.

use super::number::{write_float, write_int};
use super::scan::{Kind, Member, Scanner};
use super::text::{write_name, write_string, write_value};
use super::time::write_time;
use crate::catalogue::{FieldType, TopicKind, TopicSpec};
use crate::schema;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use std::cmp::Ordering;

/// Why a batch cannot be written as JSON.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EncodeError {
    /// A column that every record needs is not in the batch.
    #[error("the batch of topic `{topic}` has no column `{column}`, read it with the whole schema")]
    Missing {
        /// The topic.
        topic: String,
        /// The column.
        column: String,
    },
    /// A column of another type than declared.
    #[error("column `{column}` of topic `{topic}` cannot be read as {wanted}: {why}")]
    Type {
        /// The topic.
        topic: String,
        /// The column.
        column: String,
        /// The type declared.
        wanted: String,
        /// Arrow's reason.
        why: String,
    },
}

enum Cell {
    Text(StringArray),
    Json(StringArray),
    Int(Int64Array),
    Float(Float64Array),
    Bool(BooleanArray),
    Time(TimestampMicrosecondArray),
    List(ListArray, StringArray),
}

impl Cell {
    fn is_null(&self, row: usize) -> bool {
        match self {
            Cell::Text(a) | Cell::Json(a) => a.is_null(row),
            Cell::Int(a) => a.is_null(row),
            Cell::Float(a) => a.is_null(row),
            Cell::Bool(a) => a.is_null(row),
            Cell::Time(a) => a.is_null(row),
            Cell::List(a, _) => a.is_null(row),
        }
    }

    fn write(&self, row: usize, out: &mut String) {
        match self {
            Cell::Text(a) => write_string(a.value(row), out),
            Cell::Json(a) => out.push_str(a.value(row)),
            Cell::Int(a) => write_int(a.value(row), out),
            Cell::Float(a) => write_float(a.value(row), out),
            Cell::Bool(a) => out.push_str(if a.value(row) { "true" } else { "false" }),
            Cell::Time(a) => quoted_time(a.value(row), out),
            Cell::List(list, items) => {
                let offsets = list.value_offsets();
                let (first, end) = (offsets[row], offsets[row + 1]);
                out.push('[');
                for at in first..end {
                    if at > first {
                        out.push(',');
                    }
                    let at = usize::try_from(at).unwrap_or(0);
                    if items.is_null(at) { out.push_str("null") } else { write_string(items.value(at), out) }
                }
                out.push(']');
            }
        }
    }
}

fn quoted_time(micros: i64, out: &mut String) {
    out.push('"');
    write_time(micros, out);
    out.push('"');
}

struct Named {
    name: String,
    /// `"name":`
    written: String,
    cell: Cell,
}

struct EventColumns {
    event_time: TimestampMicrosecondArray,
    ty: StringArray,
    id: StringArray,
    headers: StringArray,
    rest: StringArray,
}

/// Writes the rows of one batch: columns are looked up once.
pub struct Encoder {
    /// Sorted by name.
    fields: Vec<Named>,
    /// None for a topic of rows.
    event: Option<EventColumns>,
}

impl Encoder {
    /// For a batch of `topic`, in its whole or its append schema; further columns are passed over.
    /// A declared field that the batch lacks is written as if it were null.
    ///
    /// # Errors
    /// A system column is missing (topics of events only), or a column has a type that cannot be
    /// read as the declared one.
    pub fn new(topic: &TopicSpec, batch: &RecordBatch) -> Result<Encoder, EncodeError> {
        let find = |name: &str, wanted: &DataType| -> Result<Option<ArrayRef>, EncodeError> {
            let Some(column) = batch.column_by_name(name) else { return Ok(None) };
            if column.data_type() == wanted {
                return Ok(Some(column.clone()));
            }
            cast(column, wanted).map(Some).map_err(|e| EncodeError::Type {
                topic: topic.name.clone(),
                column: name.to_owned(),
                wanted: wanted.to_string(),
                why: e.to_string(),
            })
        };
        let mut fields = Vec::with_capacity(topic.fields.len());
        for field in &topic.fields {
            let Some(array) = find(&field.name, &schema::arrow_type(field.ty))? else { continue };
            let mut written = String::new();
            write_string(&field.name, &mut written);
            written.push(':');
            fields.push(Named { name: field.name.clone(), written, cell: cell(field.ty, &array) });
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let event = match topic.kind {
            TopicKind::Rows => None,
            TopicKind::Events => {
                let need = |name: &str| {
                    find(name, schema::system_field(name).data_type())?
                        .ok_or_else(|| EncodeError::Missing { topic: topic.name.clone(), column: name.to_owned() })
                };
                Some(EventColumns {
                    event_time: need(schema::EVENT_TIME)?.as_primitive::<TimestampMicrosecondType>().clone(),
                    ty: need(schema::TYPE)?.as_string::<i32>().clone(),
                    id: need(schema::ID)?.as_string::<i32>().clone(),
                    headers: need(schema::HEADERS)?.as_string::<i32>().clone(),
                    rest: need(schema::REST)?.as_string::<i32>().clone(),
                })
            }
        };
        Ok(Encoder { fields, event })
    }

    /// Appends the JSON of `row`.
    pub fn write(&self, row: usize, out: &mut String) {
        let Some(event) = &self.event else {
            return self.write_fields(row, true, None, out);
        };
        if event.rest.is_valid(row) {
            return self.write_with_rest(row, event, event.rest.value(row), out);
        }
        let mut names = Comma::open(out);
        for name in EventColumns::NAMES {
            self.write_member(row, event, name, None, &mut names, out);
        }
        out.push('}');
    }

    /// The JSON of `row`.
    pub fn row(&self, row: usize) -> String {
        let mut out = String::new();
        self.write(row, &mut out);
        out
    }

    fn write_with_rest(&self, row: usize, event: &EventColumns, rest: &str, out: &mut String) {
        let mut names = Vec::new();
        let mut members = Vec::new();
        let mut payload = Vec::new();
        let mut scanner = Scanner::new(rest, usize::MAX, &mut names);
        // `_rest` is written by the decoder alone, sorted; a damaged one would not pass its chunk's checksum.
        let _crossed = scanner.event_object(&mut members, &mut payload);
        let mut comma = Comma::open(out);
        let mut known = EventColumns::NAMES.iter().copied().peekable();
        for member in &members {
            let name = member.name.text(rest);
            while let Some(next) = known.next_if(|next| **next < *name) {
                self.write_member(row, event, next, None, &mut comma, out);
            }
            if known.next_if(|next| **next == *name).is_some() && name == "payload" && member.value.kind == Kind::Object {
                self.write_member(row, event, "payload", Some((rest, &payload)), &mut comma, out);
                continue;
            }
            comma.put(out);
            write_name(rest, &member.name, out);
            write_value(rest, &member.value, out);
        }
        for next in known {
            self.write_member(row, event, next, None, &mut comma, out);
        }
        out.push('}');
    }

    /// One of the envelope's own members, unless it is null.
    fn write_member(
        &self,
        row: usize,
        event: &EventColumns,
        name: &str,
        rest: Option<(&str, &[Member])>,
        comma: &mut Comma,
        out: &mut String,
    ) {
        match name {
            "id" if event.id.is_valid(row) => {
                comma.put(out);
                out.push_str("\"id\":");
                write_string(event.id.value(row), out);
            }
            "metadata" if event.headers.is_valid(row) => {
                comma.put(out);
                out.push_str("\"metadata\":");
                out.push_str(event.headers.value(row));
            }
            "payload" => {
                comma.put(out);
                out.push_str("\"payload\":");
                self.write_fields(row, false, rest, out);
            }
            "timestamp" => {
                comma.put(out);
                out.push_str("\"timestamp\":");
                quoted_time(event.event_time.value(row), out);
            }
            "type" => {
                comma.put(out);
                out.push_str("\"type\":");
                write_string(event.ty.value(row), out);
            }
            _ => {}
        }
    }

    /// The object of the fields, merged with members of `_rest`, which win.
    fn write_fields(&self, row: usize, nulls: bool, rest: Option<(&str, &[Member])>, out: &mut String) {
        let (text, members) = rest.unwrap_or(("", &[]));
        let mut members = members.iter().peekable();
        let mut comma = Comma::open(out);
        let put = |member: &Member, comma: &mut Comma, out: &mut String| {
            comma.put(out);
            write_name(text, &member.name, out);
            write_value(text, &member.value, out);
        };
        for field in &self.fields {
            let mut instead = false;
            while let Some(member) = members.peek() {
                match member.name.text(text).as_ref().cmp(field.name.as_str()) {
                    Ordering::Greater => break,
                    order => {
                        instead |= order == Ordering::Equal;
                        put(member, &mut comma, out);
                        members.next();
                    }
                }
            }
            let null = field.cell.is_null(row);
            if instead || (null && !nulls) {
                continue;
            }
            comma.put(out);
            out.push_str(&field.written);
            if null { out.push_str("null") } else { field.cell.write(row, out) }
        }
        for member in members {
            put(member, &mut comma, out);
        }
        out.push('}');
    }
}

impl EventColumns {
    /// Sorted, as canonical JSON has them.
    const NAMES: [&'static str; 5] = ["id", "metadata", "payload", "timestamp", "type"];
}

/// Puts commas between members.
struct Comma(bool);

impl Comma {
    fn open(out: &mut String) -> Comma {
        out.push('{');
        Comma(false)
    }

    fn put(&mut self, out: &mut String) {
        if self.0 {
            out.push(',');
        }
        self.0 = true;
    }
}

fn cell(ty: FieldType, array: &ArrayRef) -> Cell {
    match ty {
        FieldType::String => Cell::Text(array.as_string::<i32>().clone()),
        FieldType::Json => Cell::Json(array.as_string::<i32>().clone()),
        FieldType::Int => Cell::Int(array.as_primitive::<Int64Type>().clone()),
        FieldType::Float => Cell::Float(array.as_primitive::<Float64Type>().clone()),
        FieldType::Bool => Cell::Bool(array.as_boolean().clone()),
        FieldType::Timestamp => Cell::Time(array.as_primitive::<TimestampMicrosecondType>().clone()),
        FieldType::StringList => {
            let list = array.as_list::<i32>().clone();
            let items = list.values().as_string::<i32>().clone();
            Cell::List(list, items)
        }
    }
}
