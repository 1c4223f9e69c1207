//! The stored form of a column: validity, values, LZ4, checksum.

use crate::store::StoreError;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, TimestampMicrosecondType};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const STORE: &str = "analytics";

fn damaged(what: &str) -> StoreError {
    StoreError::Refused { store: STORE, message: format!("a stored column is damaged: {what}") }
}

/// A column as bytes: checksum, then LZ4 of validity and values.
pub(crate) fn encode(array: &ArrayRef) -> Result<Vec<u8>, StoreError> {
    let mut raw = Vec::with_capacity(array.get_array_memory_size().min(1 << 20));
    put(array, &mut raw)?;
    let packed = lz4_flex::compress_prepend_size(&raw);
    let mut out = Vec::with_capacity(packed.len() + 8);
    out.extend_from_slice(&xxh3_64(&packed).to_le_bytes());
    out.extend_from_slice(&packed);
    Ok(out)
}

fn put(array: &ArrayRef, out: &mut Vec<u8>) -> Result<(), StoreError> {
    match array.nulls() {
        Some(nulls) if nulls.null_count() > 0 => {
            out.push(1);
            bits(nulls.inner(), out);
        }
        _ => out.push(0),
    }
    match array.data_type() {
        DataType::Int64 => words(array.as_primitive::<Int64Type>().values(), out),
        DataType::Timestamp(..) => words(array.as_primitive::<TimestampMicrosecondType>().values(), out),
        DataType::Float64 => {
            array.as_primitive::<Float64Type>().values().iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()))
        }
        DataType::Boolean => bits(array.as_boolean().values(), out),
        DataType::Utf8 => {
            let texts = array.as_string::<i32>();
            let (first, last) = bounds(texts.offsets());
            offsets(texts.offsets(), out);
            out.extend_from_slice(&texts.values()[first..last]);
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let (first, last) = bounds(lists.offsets());
            offsets(lists.offsets(), out);
            out.extend_from_slice(&(((last - first) as u32).to_le_bytes()));
            put(&lists.values().slice(first, last - first), out)?;
        }
        other => return Err(StoreError::BadRequest(format!("the analytics store takes no column of type {other}"))),
    }
    Ok(())
}

fn words(values: &[i64], out: &mut Vec<u8>) {
    values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
}

fn bits(buffer: &BooleanBuffer, out: &mut Vec<u8>) {
    out.extend_from_slice(buffer.sliced().as_slice().get(..buffer.len().div_ceil(8)).unwrap_or_default());
}

fn bounds(offsets: &OffsetBuffer<i32>) -> (usize, usize) {
    (offsets[0] as usize, offsets[offsets.len() - 1] as usize)
}

fn offsets(offsets: &OffsetBuffer<i32>, out: &mut Vec<u8>) {
    let first = offsets[0];
    offsets.iter().for_each(|o| out.extend_from_slice(&(o - first).to_le_bytes()));
}

/// The column that was encoded as `bytes`, of `rows` rows.
pub(crate) fn decode(ty: &DataType, rows: usize, bytes: &[u8]) -> Result<ArrayRef, StoreError> {
    let (sum, packed) = bytes.split_at_checked(8).ok_or_else(|| damaged("it is too short"))?;
    if xxh3_64(packed).to_le_bytes() != *sum {
        return Err(damaged("its checksum does not match"));
    }
    let raw = lz4_flex::decompress_size_prepended(packed).map_err(|e| damaged(&e.to_string()))?;
    let raw = Buffer::from_vec(raw);
    let mut at = 0;
    take(ty, rows, &raw, &mut at)
}

fn share(raw: &Buffer, at: &mut usize, length: usize) -> Result<Buffer, StoreError> {
    let end = at.checked_add(length).filter(|end| *end <= raw.len()).ok_or_else(|| damaged("it ends too early"))?;
    let part = raw.slice_with_length(*at, length);
    *at = end;
    Ok(part)
}

/// Fixed-width values, copied so that they are aligned.
fn aligned(raw: &Buffer, at: &mut usize, length: usize) -> Result<Buffer, StoreError> {
    Ok(Buffer::from_slice_ref(share(raw, at, length)?.as_slice()))
}

fn take(ty: &DataType, rows: usize, raw: &Buffer, at: &mut usize) -> Result<ArrayRef, StoreError> {
    let nulls = match share(raw, at, 1)?.as_slice() {
        [1] => Some(NullBuffer::new(BooleanBuffer::new(share(raw, at, rows.div_ceil(8))?, 0, rows))),
        _ => None,
    };
    let bad = |e: arrow::error::ArrowError| damaged(&e.to_string());
    Ok(match ty {
        DataType::Int64 => {
            Arc::new(Int64Array::try_new(ScalarBuffer::new(aligned(raw, at, rows * 8)?, 0, rows), nulls).map_err(bad)?)
        }
        DataType::Float64 => {
            Arc::new(Float64Array::try_new(ScalarBuffer::new(aligned(raw, at, rows * 8)?, 0, rows), nulls).map_err(bad)?)
        }
        DataType::Timestamp(..) => {
            let values = ScalarBuffer::new(aligned(raw, at, rows * 8)?, 0, rows);
            Arc::new(TimestampMicrosecondArray::try_new(values, nulls).map_err(bad)?.with_timezone("UTC"))
        }
        DataType::Boolean => Arc::new(BooleanArray::new(BooleanBuffer::new(share(raw, at, rows.div_ceil(8))?, 0, rows), nulls)),
        DataType::Utf8 => {
            let offsets = read_offsets(raw, at, rows)?;
            let values = share(raw, at, offsets[rows] as usize)?;
            Arc::new(StringArray::try_new(offsets, values, nulls).map_err(bad)?)
        }
        DataType::List(_) => {
            let offsets = read_offsets(raw, at, rows)?;
            let count = share(raw, at, 4)?;
            let count = count.as_slice().iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b));
            let items = take(&DataType::Utf8, count, raw, at)?;
            let field = Arc::new(Field::new("item", DataType::Utf8, true));
            Arc::new(ListArray::try_new(field, offsets, items, nulls).map_err(bad)?)
        }
        other => new_null_array(other, rows),
    })
}

fn read_offsets(raw: &Buffer, at: &mut usize, rows: usize) -> Result<OffsetBuffer<i32>, StoreError> {
    let values: ScalarBuffer<i32> = ScalarBuffer::new(aligned(raw, at, (rows + 1) * 4)?, 0, rows + 1);
    let good = values[0] == 0 && values.windows(2).all(|w| w[0] <= w[1]);
    if good { Ok(OffsetBuffer::new(values)) } else { Err(damaged("its offsets do not ascend")) }
}
