//! One column to bytes and back.
//!
//! Form: kind, whether there are nulls (then their bitmap), then by kind: text as lengths and
//! bytes (or one value where all are equal), integers and times by [`integers`](super::integers),
//! floats as they are, booleans as bits, lists as lengths and the column of their items.

use super::bytes::{Input, put_buffer};
use super::{Damaged, integers};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray,
    UInt64Array, new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType, UInt64Type};
use std::sync::Arc;

const TEXT: u8 = 1;
const INTEGERS: u8 = 2;
const FLOATS: u8 = 3;
const BITS: u8 = 4;
const LIST: u8 = 5;
const SAME_TEXT: u8 = 6;

/// Encodes a column.
///
/// # Errors
/// A type that topics do not have.
pub fn encode(array: &dyn Array) -> Result<Vec<u8>, Damaged> {
    let mut out = Vec::new();
    put(&mut out, array)?;
    Ok(out)
}

fn put(out: &mut Vec<u8>, array: &dyn Array) -> Result<(), Damaged> {
    let kind = out.len();
    out.push(0);
    put_nulls(out, array);
    out[kind] = match array.data_type() {
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            let offsets = array.value_offsets();
            let (first, last) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
            let values = &array.values()[first..last];
            if let Some(value) = same_text(array, values) {
                put_buffer(out, value);
                SAME_TEXT
            } else {
                put_lengths(out, offsets);
                put_buffer(out, values);
                TEXT
            }
        }
        DataType::Int64 => {
            put_integers(out, array, array.as_primitive::<Int64Type>().values());
            INTEGERS
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            put_integers(out, array, array.as_primitive::<TimestampMicrosecondType>().values());
            INTEGERS
        }
        DataType::UInt64 => {
            let values: Vec<i64> = array.as_primitive::<UInt64Type>().values().iter().map(|v| *v as i64).collect();
            put_integers(out, array, &values);
            INTEGERS
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            put_buffer(out, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
            FLOATS
        }
        DataType::Boolean => {
            put_bits(out, array.as_boolean().values());
            BITS
        }
        DataType::List(item) if item.data_type() == &DataType::Utf8 => {
            let array = array.as_list::<i32>();
            let offsets = array.value_offsets();
            let (first, last) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
            put_lengths(out, offsets);
            out.extend_from_slice(&((last - first) as u32).to_le_bytes());
            put(out, array.values().slice(first, last - first).as_ref())?;
            LIST
        }
        other => return Err(Damaged(format!("a topic has no columns of type {other}"))),
    };
    Ok(())
}

/// The one value of a column without nulls whose values are all equal.
fn same_text<'a>(array: &StringArray, values: &'a [u8]) -> Option<&'a [u8]> {
    if array.null_count() > 0 || array.len() < 2 {
        return None;
    }
    let length = array.value_length(0) as usize;
    if length * array.len() != values.len() {
        return None;
    }
    let first = &values[..length];
    array.iter().all(|v| v.is_some_and(|v| v.as_bytes() == first)).then_some(first)
}

fn put_nulls(out: &mut Vec<u8>, array: &dyn Array) {
    match array.nulls().filter(|n| n.null_count() > 0) {
        None => out.push(0),
        Some(nulls) => {
            out.push(1);
            put_bits(out, nulls.inner());
        }
    }
}

fn put_bits(out: &mut Vec<u8>, bits: &BooleanBuffer) {
    let packed: BooleanBuffer = if bits.offset() == 0 { bits.clone() } else { bits.iter().collect() };
    put_buffer(out, &packed.values()[..bits.len().div_ceil(8)]);
}

fn put_lengths(out: &mut Vec<u8>, offsets: &[i32]) {
    let lengths: Vec<i64> = offsets.windows(2).map(|w| i64::from(w[1]) - i64::from(w[0])).collect();
    integers::put(out, &lengths);
}

/// Nulls take the value of a neighbour, so that they do not widen the range.
fn put_integers(out: &mut Vec<u8>, array: &dyn Array, values: &[i64]) {
    match array.nulls().filter(|n| n.null_count() > 0) {
        None => integers::put(out, values),
        Some(nulls) => {
            let filler = nulls.valid_indices().next().map_or(0, |i| values[i]);
            let filled: Vec<i64> = values.iter().enumerate().map(|(i, v)| if nulls.is_valid(i) { *v } else { filler }).collect();
            integers::put(out, &filled);
        }
    }
}

/// Decodes a column of `rows` rows of type `ty`.
///
/// # Errors
/// [`Damaged`] when the bytes are not such a column.
pub fn decode(bytes: &[u8], rows: usize, ty: &DataType) -> Result<ArrayRef, Damaged> {
    let mut input = Input::new(bytes);
    let array = get(&mut input, rows, ty)?;
    if input.left() == 0 { Ok(array) } else { Err(Damaged(format!("{} bytes after the column", input.left()))) }
}

/// A column that was not stored.
pub fn all_null(rows: usize, ty: &DataType) -> ArrayRef {
    new_null_array(ty, rows)
}

fn get(input: &mut Input<'_>, rows: usize, ty: &DataType) -> Result<ArrayRef, Damaged> {
    let kind = input.u8()?;
    let nulls = match input.u8()? {
        0 => None,
        1 => Some(NullBuffer::new(get_bits(input, rows)?)),
        other => return Err(Damaged(format!("null flag {other}"))),
    };
    let bad = |e: arrow::error::ArrowError| Damaged(e.to_string());
    Ok(match (kind, ty) {
        (TEXT, DataType::Utf8) => {
            let offsets = get_offsets(input, rows)?;
            let values = input.buffer(offsets[rows] as usize)?;
            Arc::new(StringArray::try_new(offsets, Buffer::from_vec(values), nulls).map_err(bad)?)
        }
        (SAME_TEXT, DataType::Utf8) => {
            let value = input.buffer_of_any_length()?;
            let total = value.len().checked_mul(rows).filter(|t| i32::try_from(*t).is_ok());
            total.ok_or_else(|| Damaged::new("a text too long to repeat"))?;
            let lengths = std::iter::repeat_n(value.len(), rows);
            let values = Buffer::from_vec(value.repeat(rows));
            Arc::new(StringArray::try_new(OffsetBuffer::from_lengths(lengths), values, nulls).map_err(bad)?)
        }
        (INTEGERS, DataType::Int64) => {
            Arc::new(Int64Array::try_new(ScalarBuffer::from(integers::get(input, rows)?), nulls).map_err(bad)?)
        }
        (INTEGERS, DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            let values = ScalarBuffer::from(integers::get(input, rows)?);
            Arc::new(TimestampMicrosecondArray::try_new(values, nulls).map_err(bad)?.with_timezone_opt(zone.clone()))
        }
        (INTEGERS, DataType::UInt64) => {
            let values: Vec<u64> = integers::get(input, rows)?.into_iter().map(|v| v as u64).collect();
            Arc::new(UInt64Array::try_new(ScalarBuffer::from(values), nulls).map_err(bad)?)
        }
        (FLOATS, DataType::Float64) => {
            let raw = input.buffer(rows * 8)?;
            let values: Vec<f64> =
                raw.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect();
            Arc::new(Float64Array::try_new(ScalarBuffer::from(values), nulls).map_err(bad)?)
        }
        (BITS, DataType::Boolean) => {
            let values = get_bits(input, rows)?;
            Arc::new(BooleanArray::new(values, nulls))
        }
        (LIST, DataType::List(item)) => {
            let offsets = get_offsets(input, rows)?;
            let items = input.u32()? as usize;
            if items != offsets[rows] as usize {
                return Err(Damaged::new("a list's lengths do not add up"));
            }
            let values = get(input, items, item.data_type())?;
            Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls).map_err(bad)?)
        }
        (kind, ty) => return Err(Damaged(format!("a column of kind {kind} where {ty} was expected"))),
    })
}

fn get_bits(input: &mut Input<'_>, rows: usize) -> Result<BooleanBuffer, Damaged> {
    let bits = input.buffer(rows.div_ceil(8))?;
    Ok(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows))
}

fn get_offsets(input: &mut Input<'_>, rows: usize) -> Result<OffsetBuffer<i32>, Damaged> {
    let lengths = integers::get(input, rows)?;
    let mut offsets = Vec::with_capacity(rows + 1);
    let mut at = 0_i64;
    offsets.push(0_i32);
    for length in lengths {
        if !(0..=i64::from(i32::MAX)).contains(&length) {
            return Err(Damaged::new("a length below zero or too large"));
        }
        at += length;
        offsets.push(i32::try_from(at).map_err(|_| Damaged::new("lengths add up to too much"))?);
    }
    Ok(OffsetBuffer::new(ScalarBuffer::from(offsets)))
}
