//! Arrow values as text: JSON values, and CSV fields.
//!
//! Times are RFC 3339 in UTC; lists are JSON arrays (in CSV: as JSON text); whole numbers stay
//! whole; a float that is no number is null.

use arrow::array::{
    Array, AsArray, BooleanArray, Float64Array, Int64Array, LargeStringArray, ListArray, StringArray, StringViewArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use quikflow_topics::ids::EventTime;
use std::fmt::Write;

/// One column, ready to be read cell by cell.
pub enum Cells {
    /// Text.
    Text(StringArray),
    /// Text.
    LargeText(LargeStringArray),
    /// Text.
    TextView(StringViewArray),
    /// Signed whole numbers.
    Int(Int64Array),
    /// Unsigned whole numbers.
    UInt(UInt64Array),
    /// Floats.
    Float(Float64Array),
    /// Yes or no.
    Bool(BooleanArray),
    /// Times.
    Time(TimestampMicrosecondArray),
    /// Lists, with their elements.
    List(ListArray, Box<Cells>),
    /// Whatever else: as Arrow shows it.
    Other(arrow::array::ArrayRef),
}

impl Cells {
    /// Over a column.
    ///
    /// # Errors
    /// Arrow's, when a column cannot be converted.
    pub fn of(column: &dyn Array) -> Result<Cells, ArrowError> {
        let to = |ty: &DataType| arrow::compute::cast(column, ty);
        Ok(match column.data_type() {
            DataType::Utf8 => Cells::Text(column.as_string().clone()),
            DataType::LargeUtf8 => Cells::LargeText(column.as_string().clone()),
            DataType::Utf8View => Cells::TextView(column.as_string_view().clone()),
            DataType::Boolean => Cells::Bool(column.as_boolean().clone()),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                Cells::Int(to(&DataType::Int64)?.as_primitive().clone())
            }
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
                Cells::UInt(to(&DataType::UInt64)?.as_primitive().clone())
            }
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                Cells::Float(to(&DataType::Float64)?.as_primitive().clone())
            }
            DataType::Timestamp(_, zone) => {
                let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
                Cells::Time(to(&micros)?.as_primitive().clone())
            }
            DataType::List(_) => {
                let list: &ListArray = column.as_list();
                let inner = Cells::of(list.values().as_ref())?;
                Cells::List(list.clone(), Box::new(inner))
            }
            DataType::Dictionary(_, value) => Cells::of(to(value)?.as_ref())?,
            _ => Cells::Other(arrow::array::make_array(column.to_data())),
        })
    }

    fn array(&self) -> &dyn Array {
        match self {
            Cells::Text(a) => a,
            Cells::LargeText(a) => a,
            Cells::TextView(a) => a,
            Cells::Int(a) => a,
            Cells::UInt(a) => a,
            Cells::Float(a) => a,
            Cells::Bool(a) => a,
            Cells::Time(a) => a,
            Cells::List(a, _) => a,
            Cells::Other(a) => a.as_ref(),
        }
    }

    /// Whether there is nothing.
    pub fn is_null(&self, row: usize) -> bool {
        self.array().is_null(row)
    }

    fn text(&self, row: usize) -> Option<&str> {
        match self {
            Cells::Text(a) => Some(a.value(row)),
            Cells::LargeText(a) => Some(a.value(row)),
            Cells::TextView(a) => Some(a.value(row)),
            _ => None,
        }
    }

    /// Appends a cell as JSON.
    ///
    /// # Errors
    /// Arrow's, when a value of an unusual type cannot be shown.
    pub fn json(&self, row: usize, out: &mut String) -> Result<(), ArrowError> {
        if self.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        match self {
            Cells::Text(_) | Cells::LargeText(_) | Cells::TextView(_) => quote(self.text(row).unwrap_or_default(), out),
            Cells::Int(a) => show(a.value(row), out),
            Cells::UInt(a) => show(a.value(row), out),
            Cells::Bool(a) => show(a.value(row), out),
            Cells::Float(a) => match serde_json::Number::from_f64(a.value(row)) {
                Some(number) => show(number, out),
                None => out.push_str("null"),
            },
            Cells::Time(a) => match crate::times::show(EventTime(a.value(row))) {
                Some(time) => quote(&time, out),
                None => out.push_str("null"),
            },
            Cells::List(a, inner) => {
                let offsets = a.value_offsets();
                let (first, next) = (offsets[row] as usize, offsets[row + 1] as usize);
                out.push('[');
                for item in first..next {
                    if item > first {
                        out.push(',');
                    }
                    inner.json(item, out)?;
                }
                out.push(']');
            }
            Cells::Other(a) => quote(&other(a.as_ref(), row)?, out),
        }
        Ok(())
    }

    /// Appends a cell as a CSV field (RFC 4180): null is empty, an empty text is `""`.
    ///
    /// # Errors
    /// As [`Cells::json`].
    pub fn csv(&self, row: usize, out: &mut String) -> Result<(), ArrowError> {
        if self.is_null(row) {
            return Ok(());
        }
        if let Some(text) = self.text(row) {
            csv_field(text, out);
            return Ok(());
        }
        match self {
            Cells::Time(a) => out.push_str(&crate::times::show(EventTime(a.value(row))).unwrap_or_default()),
            Cells::List(..) => {
                let mut text = String::new();
                self.json(row, &mut text)?;
                csv_field(&text, out);
            }
            Cells::Other(a) => csv_field(&other(a.as_ref(), row)?, out),
            Cells::Float(a) if !a.value(row).is_finite() => {}
            _ => self.json(row, out)?,
        }
        Ok(())
    }
}

fn show(value: impl std::fmt::Display, out: &mut String) {
    // Writing to a string cannot fail.
    write!(out, "{value}").unwrap_or_default();
}

fn other(array: &dyn Array, row: usize) -> Result<String, ArrowError> {
    let options = FormatOptions::default();
    Ok(ArrayFormatter::try_new(array, &options)?.value(row).to_string())
}

/// A text as a JSON string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => show(format_args!("\\u{:04x}", u32::from(c)), out),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A text as a CSV field.
pub fn csv_field(text: &str, out: &mut String) {
    let plain = !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) && !text.starts_with(' ') && !text.ends_with(' ');
    if plain {
        out.push_str(text);
        return;
    }
    out.push('"');
    out.push_str(&text.replace('"', "\"\""));
    out.push('"');
}
