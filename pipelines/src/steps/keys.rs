//! Keys: some columns of a row as bytes that can be hashed, compared, kept and turned back.
//!
//! A column is a byte (0 null, 1 a value) and the value: text with its length in front, numbers,
//! times and Booleans in 8, 8 and 1 bytes. -0.0 is 0.0 and all NaNs are one, so that equal values
//! have equal bytes.

use super::codec::Writer;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use std::fmt::Write;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Between the texts of several key columns in a record's key.
const UNIT_SEPARATOR: char = '\u{1f}';
/// Part of the stored form: key groups and distinct pairs are hashes under this seed.
const SEED: u64 = 0x7155_696b_666c_6f77;

/// The hash that decides a key's group.
pub(crate) fn hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, SEED)
}

/// The hash that stands for a value in a set of distinct ones.
pub(crate) fn hash_wide(value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, SEED)
}

/// Turns columns of these types into keys and back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyCodec {
    types: Vec<DataType>,
}

/// One column, ready to be read.
enum Column<'a> {
    Text(&'a StringArray),
    Int(&'a Int64Array),
    Float(&'a Float64Array),
    Time(&'a TimestampMicrosecondArray),
    Bool(&'a BooleanArray),
}

/// Columns, ready to be read as keys.
pub(crate) struct Encoder<'a> {
    columns: Vec<Column<'a>>,
}

/// Whether columns of this type (one that edges carry) can be part of a key.
pub(crate) fn can_be_key(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::Int64 | DataType::Float64 | DataType::Boolean | DataType::Timestamp(..))
}

impl KeyCodec {
    pub(crate) fn new(types: Vec<DataType>) -> KeyCodec {
        KeyCodec { types }
    }

    pub(crate) fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Columns of the codec's types, ready to be read; the message names a column of another type.
    pub(crate) fn encoder<'a>(&self, columns: &'a [ArrayRef]) -> Result<Encoder<'a>, String> {
        let column = |array: &'a ArrayRef| {
            let any = array.as_any();
            match array.data_type() {
                DataType::Utf8 => any.downcast_ref().map(Column::Text),
                DataType::Int64 => any.downcast_ref().map(Column::Int),
                DataType::Float64 => any.downcast_ref().map(Column::Float),
                DataType::Timestamp(..) => any.downcast_ref().map(Column::Time),
                DataType::Boolean => any.downcast_ref().map(Column::Bool),
                _ => None,
            }
            .ok_or_else(|| format!("a key cannot have a column of type {}", array.data_type()))
        };
        Ok(Encoder { columns: columns.iter().map(column).collect::<Result<_, String>>()? })
    }

    /// The key of which every column is null.
    pub(crate) fn null_key(&self) -> Vec<u8> {
        vec![0; self.types.len()]
    }

    /// Keys back as columns; the message says what is wrong with one.
    pub(crate) fn decode<'a>(&self, keys: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, String> {
        let rows = keys.len();
        let mut builders: Vec<Builder> = self.types.iter().map(|ty| Builder::new(ty, rows)).collect();
        for mut key in keys {
            for (builder, ty) in builders.iter_mut().zip(&self.types) {
                builder.read(ty, &mut key).ok_or_else(|| "a stored key is broken".to_owned())?;
            }
        }
        Ok(builders.into_iter().zip(&self.types).map(|(builder, ty)| builder.finish(ty)).collect())
    }

    /// The key as a record's key: the column's text; of several, joined by U+001F; null is empty.
    pub(crate) fn text(&self, mut key: &[u8], out: &mut String) {
        for (index, ty) in self.types.iter().enumerate() {
            if index > 0 {
                out.push(UNIT_SEPARATOR);
            }
            match Value::read(ty, &mut key) {
                Some(value) => value.text(ty, out),
                None => return,
            }
        }
    }
}

impl Encoder<'_> {
    /// Appends row `row`'s key.
    pub(crate) fn encode(&self, row: usize, out: &mut Vec<u8>) {
        for column in &self.columns {
            match column {
                Column::Text(a) if a.is_valid(row) => {
                    out.push(1);
                    let text = a.value(row).as_bytes();
                    let mut length = Writer { bytes: std::mem::take(out) };
                    length.slice(text);
                    *out = length.bytes;
                }
                Column::Int(a) if a.is_valid(row) => fixed(out, &a.value(row).to_le_bytes()),
                Column::Time(a) if a.is_valid(row) => fixed(out, &a.value(row).to_le_bytes()),
                Column::Float(a) if a.is_valid(row) => {
                    let value = a.value(row);
                    let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
                    fixed(out, &value.to_bits().to_le_bytes());
                }
                Column::Bool(a) if a.is_valid(row) => fixed(out, &[u8::from(a.value(row))]),
                _ => out.push(0),
            }
        }
    }

    /// Whether row `row` is null in every column.
    pub(crate) fn all_null(&self, row: usize) -> bool {
        self.columns.iter().all(|column| match column {
            Column::Text(a) => a.is_null(row),
            Column::Int(a) => a.is_null(row),
            Column::Time(a) => a.is_null(row),
            Column::Float(a) => a.is_null(row),
            Column::Bool(a) => a.is_null(row),
        })
    }
}

fn fixed(out: &mut Vec<u8>, value: &[u8]) {
    out.push(1);
    out.extend_from_slice(value);
}

enum Builder {
    Text(StringBuilder),
    Long(Vec<Option<i64>>),
    Bool(Vec<Option<bool>>),
}

impl Builder {
    fn new(ty: &DataType, rows: usize) -> Builder {
        match ty {
            DataType::Utf8 => Builder::Text(StringBuilder::with_capacity(rows, rows * 16)),
            DataType::Boolean => Builder::Bool(Vec::with_capacity(rows)),
            _ => Builder::Long(Vec::with_capacity(rows)),
        }
    }

    /// Takes one column off the front of `key`.
    fn read(&mut self, ty: &DataType, key: &mut &[u8]) -> Option<()> {
        match (self, Value::read(ty, key)?) {
            (Builder::Text(builder), Value::Text(text)) => builder.append_value(text),
            (Builder::Text(builder), _) => builder.append_null(),
            (Builder::Long(values), Value::Long(value)) => values.push(Some(value)),
            (Builder::Long(values), _) => values.push(None),
            (Builder::Bool(values), Value::Bool(value)) => values.push(Some(value)),
            (Builder::Bool(values), _) => values.push(None),
        }
        Some(())
    }

    fn finish(self, ty: &DataType) -> ArrayRef {
        match self {
            Builder::Text(mut builder) => Arc::new(builder.finish()),
            Builder::Bool(values) => Arc::new(BooleanArray::from(values)),
            Builder::Long(values) => match ty {
                DataType::Float64 => {
                    let floats = values.into_iter().map(|value| value.map(|v| f64::from_bits(v as u64)));
                    Arc::new(floats.collect::<Float64Array>())
                }
                DataType::Timestamp(_, zone) => Arc::new(TimestampMicrosecondArray::from(values).with_timezone_opt(zone.clone())),
                _ => Arc::new(Int64Array::from(values)),
            },
        }
    }
}

/// One column of a stored key.
enum Value<'a> {
    Null,
    Text(&'a str),
    /// A number or a time; of a float, its bits.
    Long(i64),
    Bool(bool),
}

impl<'a> Value<'a> {
    /// Takes a column of type `ty` off the front of `key`; `None` where the key is broken.
    fn read(ty: &DataType, key: &mut &'a [u8]) -> Option<Value<'a>> {
        let (present, rest) = key.split_first()?;
        *key = rest;
        if *present != 1 {
            return Some(Value::Null);
        }
        Some(match ty {
            DataType::Utf8 => {
                let mut length = 0usize;
                let mut shift = 0;
                loop {
                    let (byte, rest) = key.split_first()?;
                    *key = rest;
                    length |= usize::from(byte & 0x7f).checked_shl(shift)?;
                    shift += 7;
                    if byte & 0x80 == 0 {
                        break;
                    }
                }
                let (text, rest) = key.split_at_checked(length)?;
                *key = rest;
                Value::Text(std::str::from_utf8(text).ok()?)
            }
            DataType::Boolean => {
                let (value, rest) = key.split_first()?;
                *key = rest;
                Value::Bool(*value != 0)
            }
            _ => {
                let (value, rest) = key.split_first_chunk::<8>()?;
                *key = rest;
                Value::Long(i64::from_le_bytes(*value))
            }
        })
    }

    /// As it stands in a record's key.
    fn text(self, ty: &DataType, out: &mut String) {
        // Writing into a String cannot fail.
        let _ok = match (self, ty) {
            (Value::Null, _) => Ok(()),
            (Value::Text(text), _) => out.write_str(text),
            (Value::Bool(value), _) => write!(out, "{value}"),
            (Value::Long(value), DataType::Float64) => write!(out, "{}", f64::from_bits(value as u64)),
            (Value::Long(value), DataType::Timestamp(..)) => match chrono::DateTime::from_timestamp_micros(value) {
                Some(time) => write!(out, "{}", time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
                None => write!(out, "{value}"),
            },
            (Value::Long(value), _) => write!(out, "{value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_turn_back_into_their_columns() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![Some("c1"), None, Some("")])),
            Arc::new(Int64Array::from(vec![Some(-7), Some(i64::MAX), None])),
            Arc::new(Float64Array::from(vec![Some(0.5), Some(-0.0), Some(f64::NAN)])),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None, Some(1)]).with_timezone("UTC")),
        ];
        let codec = KeyCodec::new(columns.iter().map(|c| c.data_type().clone()).collect());
        let encoder = codec.encoder(&columns).unwrap();
        let keys: Vec<Vec<u8>> = (0..3)
            .map(|row| {
                let mut key = Vec::new();
                encoder.encode(row, &mut key);
                key
            })
            .collect();
        let back = codec.decode(keys.iter().map(Vec::as_slice)).unwrap();
        for (index, (back, column)) in back.iter().zip(&columns).enumerate() {
            if index != 2 {
                assert_eq!(back, column);
            }
        }
        let mut text = String::new();
        codec.text(&keys[0], &mut text);
        assert_eq!(text, "c1\u{1f}-7\u{1f}0.5\u{1f}true\u{1f}1970-01-01T00:00:00Z");
    }

    #[test]
    fn equal_floats_have_equal_keys() {
        let column: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN]));
        let codec = KeyCodec::new(vec![DataType::Float64]);
        let columns = [column];
        let encoder = codec.encoder(&columns).unwrap();
        let key = |row| {
            let mut key = Vec::new();
            encoder.encode(row, &mut key);
            key
        };
        assert_eq!(key(0), key(1));
        assert_eq!(key(2), key(3));
        assert_ne!(key(0), key(2));
    }
}
