//! Integers by frame of reference: less the smallest, divided by a common scale, in as few bytes
//! as the largest needs, then compressed where that helps.

use super::Damaged;
use super::bytes::{Input, put_buffer};

/// Times are often whole seconds or milliseconds.
const SCALES: [u64; 3] = [1_000_000, 1_000, 1];

/// Appends `values`. An iterator is walked twice or three times, so it should be cheap.
pub fn put(out: &mut Vec<u8>, values: &[i64]) {
    let min = values.iter().copied().min().unwrap_or(0);
    // The difference of two i64 fits u64; wrapping subtraction gives exactly it.
    let max = values.iter().map(|v| v.wrapping_sub(min) as u64).max().unwrap_or(0);
    let scale = SCALES
        .into_iter()
        .find(|scale| {
            *scale == 1 || (max >= *scale && values.iter().all(|v| (v.wrapping_sub(min) as u64).is_multiple_of(*scale)))
        })
        .unwrap_or(1);
    let width = width_of(max / scale);
    out.extend_from_slice(&min.to_le_bytes());
    out.extend_from_slice(&(scale as u32).to_le_bytes());
    out.push(width);
    let scaled = values.iter().map(|v| v.wrapping_sub(min) as u64 / scale);
    let raw: Vec<u8> = match width {
        0 => return,
        1 => scaled.map(|v| v as u8).collect(),
        2 => scaled.flat_map(|v| (v as u16).to_le_bytes()).collect(),
        4 => scaled.flat_map(|v| (v as u32).to_le_bytes()).collect(),
        _ => scaled.flat_map(u64::to_le_bytes).collect(),
    };
    put_buffer(out, &raw);
}

fn width_of(max: u64) -> u8 {
    match max {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    }
}

/// Reads `n` integers.
///
/// # Errors
/// [`Damaged`] when they are not there.
pub fn get(input: &mut Input<'_>, n: usize) -> Result<Vec<i64>, Damaged> {
    let min = input.i64()?;
    let scale = u64::from(input.u32()?);
    let width = input.u8()?;
    let back = |v: u64| min.wrapping_add(v.wrapping_mul(scale) as i64);
    if width == 0 {
        return Ok(vec![min; n]);
    }
    if !matches!(width, 1 | 2 | 4 | 8) {
        return Err(Damaged(format!("integers of {width} bytes")));
    }
    let raw = input.buffer(n * usize::from(width))?;
    Ok(match width {
        1 => raw.iter().map(|b| back(u64::from(*b))).collect(),
        2 => raw.chunks_exact(2).map(|b| back(u64::from(u16::from_le_bytes([b[0], b[1]])))).collect(),
        4 => raw.chunks_exact(4).map(|b| back(u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))).collect(),
        _ => raw.chunks_exact(8).map(|b| back(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))).collect(),
    })
}
