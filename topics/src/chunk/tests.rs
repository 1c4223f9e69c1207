//! Properties of the stored form: what was encoded decodes to the same, damage is an error.

use super::header::{Column, Header, Part};
use super::{Damaged, column, rows};
use crate::schema::time_type;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListBuilder, StringArray, StringBuilder, TimestampMicrosecondArray,
    UInt64Array,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;

fn text() -> impl Strategy<Value = Option<String>> {
    proptest::option::weighted(0.8, prop_oneof![".{0,12}", "[a-c]{0,2}", "(word ){0,40}", Just("same".to_owned())])
}

fn number() -> impl Strategy<Value = Option<i64>> {
    proptest::option::weighted(0.9, prop_oneof![any::<i64>(), 0..300_i64, (0..1_000_i64).prop_map(|s| s * 1_000_000), Just(7)])
}

fn list(items: Vec<Option<Vec<Option<String>>>>) -> ArrayRef {
    let mut out = ListBuilder::new(StringBuilder::new());
    for item in items {
        for text in item.iter().flatten() {
            out.values().append_option(text.as_deref());
        }
        out.append(item.is_some());
    }
    Arc::new(out.finish())
}

fn column() -> impl Strategy<Value = ArrayRef> {
    prop_oneof![
        vec(text(), 1..200).prop_map(|v| Arc::new(StringArray::from_iter(v)) as ArrayRef),
        vec(number(), 1..200).prop_map(|v| Arc::new(Int64Array::from_iter(v)) as ArrayRef),
        vec(number(), 1..200)
            .prop_map(|v| Arc::new(TimestampMicrosecondArray::from_iter(v).with_data_type(time_type())) as ArrayRef),
        vec(any::<u64>(), 1..200).prop_map(|v| Arc::new(UInt64Array::from(v)) as ArrayRef),
        vec(proptest::option::of(any::<f64>()), 1..200).prop_map(|v| Arc::new(Float64Array::from_iter(v)) as ArrayRef),
        vec(proptest::option::of(any::<bool>()), 1..200).prop_map(|v| Arc::new(BooleanArray::from_iter(v)) as ArrayRef),
        vec(proptest::option::of(vec(text(), 0..5)), 1..100).prop_map(list),
    ]
}

/// Also through a slice that starts in the middle, as callers hand them over.
fn round_trip(array: &ArrayRef) -> Result<(), TestCaseError> {
    for at in [0, array.len() / 3] {
        let part = array.slice(at, array.len() - at);
        let bytes = column::encode(part.as_ref()).unwrap();
        let back = column::decode(&bytes, part.len(), part.data_type()).unwrap();
        prop_assert_eq!(format!("{part:?}"), format!("{back:?}"));
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_column_decodes_to_what_was_encoded(array in column()) {
        round_trip(&array)?;
    }

    #[test]
    fn damaged_bytes_never_panic(array in column(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = column::encode(array.as_ref()).unwrap();
        let short = &bytes[..cut.index(bytes.len())];
        prop_assert!(column::decode(short, array.len(), array.data_type()).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Without the checksum a flipped bit may decode to something else, but never panics.
        if let Ok(decoded) = column::decode(&bytes, array.len(), array.data_type()) {
            prop_assert_eq!(decoded.len(), array.len());
        }
    }

    #[test]
    fn sorting_by_partition_is_stable(partitions in vec(0..5_u32, 0..300)) {
        let order = rows::sort_order(&partitions);
        let order: Vec<usize> = match &order {
            None => (0..partitions.len()).collect(),
            Some(order) => order.values().iter().map(|o| *o as usize).collect(),
        };
        let mut expected: Vec<usize> = (0..partitions.len()).collect();
        expected.sort_by_key(|row| partitions[*row]);
        prop_assert_eq!(order, expected);
    }
}

#[test]
fn a_header_decodes_to_what_was_encoded_and_any_flipped_bit_is_found() {
    let part = Part { partition: 3, first: 10, next: 12, rows: 2, max_event_time: -5, max_arrival_time: 9 };
    let columns =
        vec![Column { id: 1, at: Some(0), len: 7, checksum: u64::MAX }, Column { id: 9, at: None, len: 70_000, checksum: 1 }];
    let header = Header { known: 11, rows: 2, arrival: 9, parts: vec![part], ends: vec![0, 1, 2, 12], columns };
    let bytes = header.encode();
    assert_eq!(Header::decode(&bytes), Ok(header.clone()));
    assert_eq!((header.column(9).map(|c| c.len), header.column(2)), (Some(70_000), None));
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(Header::decode(&damaged).is_err(), "bit {at}");
    }
    assert_eq!(Header::decode(&bytes[..5]), Err(Damaged::new("a header too short")));
}
