//! Which values a block's key columns hold: a Bloom filter a column, so that a read of one key opens
//! few blocks. Eight bits a distinct value and four probes: one block in forty is opened in vain.
//!
//! Stored form: for each column of text in the order of the key, the length in bytes (4, little
//! endian), then the bits.

use super::part::Shape;
use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::DataType;
use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_64;

const BITS: usize = 8;
const PROBES: u64 = 4;

fn probes(hash: u64, bits: usize) -> impl Iterator<Item = usize> {
    let (first, step) = (hash & 0xffff_ffff, hash >> 32 | 1);
    (0..PROBES).map(move |i| (first.wrapping_add(i.wrapping_mul(step)) % bits.max(1) as u64) as usize)
}

/// The stored columns that have a filter, in its order.
pub(crate) fn columns(shape: &Shape) -> impl Iterator<Item = usize> + '_ {
    shape.order.iter().copied().filter(|c| shape.types[*c] == DataType::Utf8)
}

/// The filters of a block's columns.
pub(crate) fn encode(shape: &Shape, block: &[ArrayRef]) -> Vec<u8> {
    let mut out = Vec::new();
    for column in columns(shape) {
        let texts = block[column].as_string::<i32>();
        let hashes: HashSet<u64> = texts.iter().flatten().map(|t| xxh3_64(t.as_bytes())).collect();
        let length = (hashes.len() * BITS).div_ceil(8).max(1);
        let at = out.len() + 4;
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.resize(at + length, 0);
        for bit in hashes.into_iter().flat_map(|hash| probes(hash, length * 8)) {
            out[at + bit / 8] |= 1 << (bit % 8);
        }
    }
    out
}

/// Whether a block may hold rows whose columns equal these texts; true where it cannot be told.
pub(crate) fn may_hold(shape: &Shape, filters: &[u8], equals: &[(usize, String)]) -> bool {
    let mut rest = filters;
    for column in columns(shape) {
        let Some((length, tail)) = rest.split_first_chunk::<4>() else { return true };
        let Some((bits, tail)) = tail.split_at_checked(u32::from_le_bytes(*length) as usize) else { return true };
        rest = tail;
        let lacks = |text: &str| probes(xxh3_64(text.as_bytes()), bits.len() * 8).any(|b| bits[b / 8] & 1 << (b % 8) == 0);
        if equals.iter().any(|(of, text)| *of == column && lacks(text)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use std::sync::Arc;

    #[test]
    fn what_is_there_is_found_and_little_else() {
        let shape = Shape {
            names: vec!["a".into(), "b".into()],
            types: vec![DataType::Utf8, DataType::Utf8],
            order: vec![1, 0],
            time: 0,
            timed: false,
        };
        let texts =
            |from: usize| -> ArrayRef { Arc::new(StringArray::from_iter_values((from..from + 1_000).map(|i| i.to_string()))) };
        let filters = encode(&shape, &[texts(0), texts(5_000)]);
        assert!(filters.len() < 2_100, "{} bytes", filters.len());
        let holds = |column, value: usize| may_hold(&shape, &filters, &[(column, value.to_string())]);
        assert!((0..1_000).all(|v| holds(0, v)) && (5_000..6_000).all(|v| holds(1, v)), "none is missed");
        let wrong = (10_000..20_000).filter(|v| holds(0, *v)).count();
        assert!(wrong < 500, "{wrong} of 10,000 that are not there");
        assert!(may_hold(&shape, &[], &[(0, "x".into())]), "a block without filters may hold anything");
        assert!(!may_hold(&shape, &filters, &[(0, "1".into()), (1, "1".into())]));
    }
}
