//! Rows on their way to the worker that owns their key group.

use crate::operator::{KEY_GROUPS, KEY_HASH, Rows};
use arrow::array::{Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use arrow::ipc::{reader::StreamReader, writer::StreamWriter};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prepared rows for one input of a keyed step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parcel {
    /// The worker that owns the rows' key groups.
    pub worker: u32,
    /// The step's level.
    pub level: u32,
    /// Index in the plan.
    pub topology: u32,
    /// Index in the topology.
    pub node: u32,
    /// Which input.
    pub input: u32,
    /// The slice that the rows come from, so that they are applied in the log's order; rows that a
    /// keyed step emitted come after all slices, by worker.
    pub seq: u64,
    /// Order among those of one sender and one `seq`.
    pub nth: u64,
    /// The rows, with `_key_hash` last.
    #[serde(serialize_with = "write_rows", deserialize_with = "read_rows")]
    pub rows: Rows,
}

/// The worker that owns the key group of `hash`.
pub fn owner(hash: u64, workers: u32) -> u32 {
    (hash % u64::from(KEY_GROUPS)) as u32 % workers
}

/// Whether `worker` of `workers` owns key group `group`.
pub fn owns(group: u32, worker: u32, workers: u32) -> bool {
    group % workers == worker
}

/// Divides prepared rows by owner. One worker owns all: nothing is copied.
///
/// # Errors
/// Rows without a `_key_hash` of UInt64 as their last column.
pub fn divide(rows: Rows, workers: u32) -> Result<Vec<(u32, Rows)>, ArrowError> {
    if workers == 1 {
        return Ok(vec![(0, rows)]);
    }
    let hashes = rows
        .batch
        .columns()
        .last()
        .and_then(|column| column.as_any().downcast_ref::<UInt64Array>())
        .ok_or_else(|| ArrowError::SchemaError(format!("prepared rows end without `{KEY_HASH}`")))?;
    let mut places: Vec<Vec<u32>> = vec![Vec::new(); workers as usize];
    for (row, hash) in hashes.values().iter().enumerate() {
        places[owner(*hash, workers) as usize].push(row as u32);
    }
    let mut divided = Vec::new();
    for (worker, places) in places.into_iter().enumerate() {
        if places.len() == rows.batch.num_rows() {
            return Ok(vec![(worker as u32, rows)]);
        }
        if !places.is_empty() {
            let batch = take_record_batch(&rows.batch, &UInt32Array::from(places))?;
            divided.push((worker as u32, Rows { source: rows.source, batch }));
        }
    }
    Ok(divided)
}

/// Within one process parcels move as they are; this is for workers of several processes.
fn write_rows<S: Serializer>(rows: &Rows, serializer: S) -> Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &rows.batch.schema()).map_err(S::Error::custom)?;
    writer.write(&rows.batch).and_then(|()| writer.finish()).map_err(S::Error::custom)?;
    drop(writer);
    (rows.source, bytes).serialize(serializer)
}

fn read_rows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rows, D::Error> {
    let (source, bytes) = <(u32, Vec<u8>)>::deserialize(deserializer)?;
    let mut reader = StreamReader::try_new(bytes.as_slice(), None).map_err(D::Error::custom)?;
    let batch: RecordBatch = match reader.next() {
        Some(batch) => batch.map_err(D::Error::custom)?,
        None => RecordBatch::new_empty(reader.schema()),
    };
    Ok(Rows { source, batch })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use std::sync::Arc;

    fn rows() -> Rows {
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), Some("d")]));
        let hashes: ArrayRef = Arc::new(UInt64Array::from(vec![0, 1, 129, 2]));
        Rows { source: 3, batch: RecordBatch::try_from_iter([("name", names), (KEY_HASH, hashes)]).unwrap() }
    }

    #[test]
    fn each_key_group_has_one_owner_at_any_worker_count() {
        for workers in 1..=5 {
            let divided = divide(rows(), workers).unwrap();
            assert_eq!(divided.iter().map(|(_, rows)| rows.batch.num_rows()).sum::<usize>(), 4);
            for (worker, part) in divided {
                let hashes = part.batch.column(1).as_any().downcast_ref::<UInt64Array>().unwrap().clone();
                assert!(hashes.values().iter().all(|hash| owns((*hash % 128) as u32, worker, workers)));
            }
        }
    }

    #[test]
    fn a_parcel_survives_the_way_between_processes() {
        let parcel = Parcel { worker: 1, level: 1, topology: 2, node: 3, input: 0, seq: 9, nth: 4, rows: rows() };
        let text = serde_json::to_string(&parcel).unwrap();
        let again: Parcel = serde_json::from_str(&text).unwrap();
        assert_eq!(again.rows.batch, parcel.rows.batch);
        assert_eq!((again.seq, again.nth, again.rows.source), (9, 4, 3));
    }
}
