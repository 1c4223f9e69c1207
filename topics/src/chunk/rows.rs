//! A batch sorted by partition and encoded: all of a chunk but its offsets.

use super::{Damaged, checksum, column};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::datatypes::TimestampMicrosecondType;

/// A column's bytes.
#[derive(Clone, Debug)]
pub struct EncodedColumn {
    /// The column's number in the topic's layout.
    pub id: u16,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their checksum.
    pub checksum: u64,
}

/// One partition's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The partition.
    pub partition: u32,
    /// Number of rows.
    pub rows: u32,
    /// Largest event time, µs.
    pub max_event_time: i64,
}

/// Encoded rows, sorted by partition.
#[derive(Clone, Debug, Default)]
pub struct EncodedRows {
    /// Rows of all runs.
    pub rows: u32,
    /// By partition, ascending.
    pub runs: Vec<Run>,
    /// Those that are not all null, by number.
    pub columns: Vec<EncodedColumn>,
}

impl EncodedRows {
    /// Bytes of all columns.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(|c| c.bytes.len()).sum()
    }
}

/// The order that sorts rows by partition and keeps the order within each; none when they are
/// sorted already.
pub fn sort_order(partitions: &[u32]) -> Option<UInt32Array> {
    if partitions.is_sorted() {
        return None;
    }
    let highest = partitions.iter().copied().max().unwrap_or(0) as usize;
    let mut starts = vec![0_u32; highest + 2];
    for partition in partitions {
        starts[*partition as usize + 1] += 1;
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut order = vec![0_u32; partitions.len()];
    for (row, partition) in partitions.iter().enumerate() {
        let at = &mut starts[*partition as usize];
        order[*at as usize] = row as u32;
        *at += 1;
    }
    Some(UInt32Array::from(order))
}

/// Encodes a column unless it is all null.
///
/// # Errors
/// A type that topics do not have.
pub fn encode_column(id: u16, array: &dyn Array) -> Result<Option<EncodedColumn>, Damaged> {
    if array.null_count() == array.len() {
        return Ok(None);
    }
    let bytes = column::encode(array)?;
    Ok(Some(EncodedColumn { id, checksum: checksum(&bytes), bytes }))
}

/// Sorts and encodes `batch`, whose columns have the numbers `ids`. `event_time` is the index of
/// the column of event times.
///
/// # Errors
/// A type that topics do not have.
pub fn encode(batch: &RecordBatch, partitions: &[u32], ids: &[u16], event_time: usize) -> Result<EncodedRows, Damaged> {
    let order = sort_order(partitions);
    let sorted = |array: &ArrayRef| -> Result<ArrayRef, Damaged> {
        match &order {
            None => Ok(array.clone()),
            Some(order) => arrow::compute::take(array, order, None).map_err(|e| Damaged(e.to_string())),
        }
    };
    let mut columns = Vec::with_capacity(ids.len());
    for (array, id) in batch.columns().iter().zip(ids) {
        if array.null_count() < array.len()
            && let Some(encoded) = encode_column(*id, sorted(array)?.as_ref())?
        {
            columns.push(encoded);
        }
    }
    columns.sort_by_key(|c| c.id);
    let times = batch.column(event_time).as_primitive_opt::<TimestampMicrosecondType>();
    let times = times.ok_or_else(|| Damaged::new("event times are not timestamps"))?.values();
    Ok(EncodedRows { rows: batch.num_rows() as u32, runs: runs(partitions, times), columns })
}

fn runs(partitions: &[u32], times: &[i64]) -> Vec<Run> {
    let highest = partitions.iter().copied().max().map_or(0, |p| p as usize + 1);
    let mut by_partition = vec![(0_u32, i64::MIN); highest];
    for (partition, time) in partitions.iter().zip(times) {
        let run = &mut by_partition[*partition as usize];
        run.0 += 1;
        run.1 = run.1.max(*time);
    }
    let runs = by_partition.into_iter().enumerate().filter(|(_, (rows, _))| *rows > 0);
    runs.map(|(p, (rows, max_event_time))| Run { partition: p as u32, rows, max_event_time }).collect()
}
