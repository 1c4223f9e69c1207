//! Pieces (R19): what the stateless half of a step makes of rows, a piece for each share of the stateful half,
//! and how they lie in the topic between both.

use super::common::{ORIGINS, batch, broken};
use super::keys::hash;
use crate::operator::{DeadRow, Emit, KEY_HASH, ORIGIN_COLUMNS, OperatorError, Rows, Stateless};
use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt32Array,
    UInt64Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::schema;
use std::sync::Arc;

/// The column that holds what a half of a step combined.
pub(crate) const PIECE: &str = "piece";

/// Rows between the halves of a step: the origin columns, `_key` where they are written (the share that
/// merges them, as a number), and the piece, absent in rows that only say how far time has come.
pub(crate) fn piece_schema(written: bool) -> Arc<Schema> {
    let key = written.then(|| schema::system_field(schema::KEY));
    let origin = ORIGIN_COLUMNS.map(schema::system_field);
    let piece = Field::new(PIECE, DataType::Utf8, true);
    Arc::new(Schema::new(origin.into_iter().chain(key).chain([piece]).collect::<Vec<_>>()))
}

/// 0001-01-01: a piece says nothing about time, its share does at the epoch's end.
const NO_TIME: i64 = -62_135_596_800_000_000;

/// The share of `shares` that merges the group of a key.
pub(crate) fn share_of(key_hash: u64, shares: u32) -> u32 {
    // The low bits are the key group: they divide a share's keys among workers.
    ((key_hash >> 32) % u64::from(shares.max(1))) as u32
}

/// A piece as a topic holds it: a checksum before it, so that one that others wrote is known before
/// any of it is merged.
pub(crate) fn sealed(bytes: &[u8]) -> String {
    let mut all = hash(bytes).to_le_bytes().to_vec();
    all.extend_from_slice(bytes);
    STANDARD_NO_PAD.encode(all)
}

/// What [`sealed`] closed; none where it did not.
pub(crate) fn opened(text: &str) -> Option<Vec<u8>> {
    let mut all = STANDARD_NO_PAD.decode(text).ok()?;
    let sum = *all.first_chunk::<8>()?;
    all.drain(..8);
    (hash(&all).to_le_bytes() == sum).then_some(all)
}

/// Pieces, each with the number of its share, as rows that begin where the first of the rows did that they are made of.
pub(crate) fn batch_of_pieces(
    step: &str,
    first: &RecordBatch,
    mut shares: StringBuilder,
    mut pieces: StringBuilder,
) -> Result<Option<RecordBatch>, OperatorError> {
    let (shares, pieces) = (shares.finish(), pieces.finish());
    let count = shares.len();
    if count == 0 {
        return Ok(None);
    }
    let column = |at: usize| first.columns().get(at).map(|column| column.as_any());
    let partition = column(0).and_then(|column| column.downcast_ref::<UInt32Array>()).map(|column| column.value(0));
    let offset = column(1).and_then(|column| column.downcast_ref::<UInt64Array>()).map(|column| column.value(0));
    let (Some(partition), Some(offset)) = (partition, offset) else {
        return Err(broken(step, "prepared rows have no origin"));
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(vec![partition; count])),
        Arc::new(UInt64Array::from(vec![offset; count])),
        Arc::new(TimestampMicrosecondArray::from(vec![NO_TIME; count]).with_timezone("UTC")),
        Arc::new(Int64Array::from(vec![i64::MIN; count])),
        Arc::new(shares),
        Arc::new(pieces),
    ];
    debug_assert_eq!(columns.len(), ORIGINS + 2, "{PIECE}");
    batch(step, &piece_schema(true), columns).map(Some)
}

/// Rows that only say how far time has come have no piece and stop here.
pub(crate) struct Pieces {
    step: String,
    place: u64,
    schema: Arc<Schema>,
}

impl Pieces {
    /// All of them go to the worker that has this key hash.
    pub(crate) fn new(step: &str, place: u64) -> Pieces {
        let mut fields: Vec<FieldRef> = piece_schema(false).fields().to_vec();
        fields.push(Arc::new(Field::new(KEY_HASH, DataType::UInt64, false)));
        Pieces { step: step.to_owned(), place, schema: Arc::new(Schema::new(fields)) }
    }
}

impl Stateless for Pieces {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        let pieces = rows.batch.column(ORIGINS);
        let there: BooleanArray = (0..pieces.len()).map(|row| Some(pieces.is_valid(row))).collect();
        let kept = filter_record_batch(&rows.batch, &there).map_err(|e| broken(&self.step, e))?;
        emit.counts.filtered += (rows.batch.num_rows() - kept.num_rows()) as u64;
        if kept.num_rows() == 0 {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = kept.columns().to_vec();
        columns.push(Arc::new(UInt64Array::from(vec![self.place; kept.num_rows()])));
        emit.rows.push((0, Rows { source: rows.source, batch: batch(&self.step, &self.schema, columns)? }));
        Ok(())
    }
}

/// The pieces of prepared rows.
pub(crate) fn pieces<'a>(step: &str, batch: &'a RecordBatch) -> Result<&'a StringArray, OperatorError> {
    let column = batch.column(ORIGINS).as_any().downcast_ref::<StringArray>();
    column.ok_or_else(|| broken(step, format!("column `{PIECE}` is no text")))
}

/// The dead letter of a record that is no piece.
pub(crate) fn no_piece(source: u32, partition: PartitionId, offset: Offset) -> DeadRow {
    DeadRow {
        source,
        partition,
        offset,
        cause: "validation",
        code: "piece".to_owned(),
        path: Some(PIECE.to_owned()),
        message: "not a piece that this version combined, or a damaged one".to_owned(),
        row: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_was_touched_is_not_opened() {
        let text = sealed(b"a window's state");
        assert_eq!(opened(&text).as_deref(), Some(&b"a window's state"[..]));
        let mut spoilt = text.clone().into_bytes();
        spoilt[14] = if spoilt[14] == b'A' { b'B' } else { b'A' };
        assert_eq!(opened(std::str::from_utf8(&spoilt).unwrap()), None);
        let mut short = text;
        short.truncate(short.len() - 2);
        for text in ["", "AAAA", "no base64 at all", &short] {
            assert_eq!(opened(text), None, "{text}");
        }
    }

    #[test]
    fn a_share_has_keys_of_all_key_groups() {
        let hashes: Vec<u64> = (0..4000u32).map(|key| hash(&key.to_le_bytes())).collect();
        for share in 0..4 {
            let mine: std::collections::BTreeSet<u64> =
                hashes.iter().filter(|hash| share_of(**hash, 4) == share).map(|hash| hash % 128).collect();
            assert!(mine.len() > 120, "share {share} has keys in {} groups", mine.len());
        }
    }
}
