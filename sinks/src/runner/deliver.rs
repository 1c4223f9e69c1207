//! One batch on its way into the store: retry, per-item outcomes, bisecting, dead letters.

use super::task::{End, Task};
use crate::store::{ItemOutcome, StoreError, WriteBatch};
use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{UInt32Type, UInt64Type};
use quikflow_topics::broker::Positions;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterStatus, Origin};
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::json::encode::Encoder;
use quikflow_topics::{failpoint, schema};

impl Task {
    /// Writes `rows`; when it returns they are in the store or dead letters, and `next` is stored.
    pub(crate) fn deliver(&self, rows: RecordBatch, from: &Positions, next: &Positions, generation: u64) -> Result<(), End> {
        let mut rows = rows;
        let mut failures = 0;
        loop {
            let batch = WriteBatch { sink: self.setup.sink.clone(), rows: rows.clone(), generation, next: next.clone() };
            failpoint::hit("sink.flush.before");
            let answer = self.wait(self.store.write(batch));
            let outcomes = match answer {
                Ok(outcomes) if outcomes.len() == rows.num_rows() => outcomes,
                Ok(outcomes) => {
                    let (got, want) = (outcomes.len(), rows.num_rows());
                    return Err(End::Failed(format!("the store {} answered for {got} rows of {want}", self.store.name())));
                }
                Err(StoreError::Unavailable { message, retry_after, .. }) => {
                    failures += 1;
                    self.back_off(failures, &message, retry_after)?;
                    continue;
                }
                Err(refused @ StoreError::Refused { .. }) => return Err(End::Failed(refused.to_string())),
                Err(StoreError::BadRequest(message)) => match rows.num_rows() {
                    0 => return Err(End::Failed(message)),
                    1 => vec![ItemOutcome::Rejected { code: "refused".into(), message }],
                    // Some row spoils the batch: each half on its own.
                    count => {
                        let half = count / 2;
                        let (first, second) = (rows.slice(0, half), rows.slice(half, count - half));
                        let middle = after(from, &first)?;
                        self.deliver(first, from, &middle, generation)?;
                        return self.deliver(second, &middle, next, generation);
                    }
                },
            };
            failpoint::hit("sink.flush.after");
            let (mut busy, mut letters) = (Vec::new(), Vec::new());
            for (row, outcome) in outcomes.iter().enumerate() {
                match outcome {
                    ItemOutcome::Busy => busy.push(row as u32),
                    ItemOutcome::Rejected { code, message } => letters.push(self.letter(&rows, row, "sink", code, message)?),
                    ItemOutcome::Written | ItemOutcome::Older => {}
                }
            }
            let dead = letters.len() as u64;
            self.bury(letters)?;
            {
                let count = |wanted: &ItemOutcome| outcomes.iter().filter(|o| *o == wanted).count() as u64;
                let mut status = self.status.lock();
                status.written += count(&ItemOutcome::Written);
                status.older += count(&ItemOutcome::Older);
                status.dead += dead;
            }
            if busy.is_empty() && dead == 0 {
                self.recovered();
                return Ok(());
            }
            if !busy.is_empty() {
                failures += 1;
                self.back_off(failures, "some rows are busy", None)?;
            }
            // The busy ones again; with none left, an empty batch stores `next`.
            rows = take_record_batch(&rows, &UInt32Array::from(busy)).map_err(|e| End::Failed(e.to_string()))?;
        }
    }

    /// Stores dead letters durably, before the offset passes them (R14).
    pub(crate) fn bury(&self, letters: Vec<DeadLetter>) -> Result<(), End> {
        if letters.is_empty() {
            return Ok(());
        }
        self.persist_broker(|| self.broker.append_dead_letters(letters.clone())?.wait())
    }

    /// The dead letter of a row; its id is its origin.
    pub(crate) fn letter(
        &self,
        rows: &RecordBatch,
        row: usize,
        cause: &str,
        code: &str,
        message: &str,
    ) -> Result<DeadLetter, End> {
        let (sink, topic) = (&self.setup.sink.name, &self.setup.topic);
        let (partition, offset) = place(rows, row)?;
        let encoder = Encoder::new(topic, rows).map_err(|e| End::Failed(e.to_string()))?;
        let bytes = encoder.row(row).into_bytes();
        Ok(DeadLetter {
            id: format!("sink:{sink}:{}:{partition}:{offset}", topic.name),
            at: self.clock.now(),
            cause: cause.to_owned(),
            code: code.to_owned(),
            path: None,
            message: format!("sink `{sink}`: {message}"),
            topology: None,
            step: Some(sink.clone()),
            origin: Some(Origin { topic: topic.name.clone(), partition, offset }),
            full_size: bytes.len() as u64,
            bytes,
            status: DeadLetterStatus::Open,
        })
    }
}

fn columns(rows: &RecordBatch) -> Result<(&arrow::array::UInt32Array, &arrow::array::UInt64Array), End> {
    let partition = rows.column_by_name(schema::PARTITION).and_then(|c| c.as_primitive_opt::<UInt32Type>());
    let offset = rows.column_by_name(schema::OFFSET).and_then(|c| c.as_primitive_opt::<UInt64Type>());
    partition.zip(offset).ok_or_else(|| End::Failed("a batch came without partition and offset".into()))
}

fn place(rows: &RecordBatch, row: usize) -> Result<(PartitionId, Offset), End> {
    let (partitions, offsets) = columns(rows)?;
    Ok((PartitionId(partitions.value(row)), Offset(offsets.value(row))))
}

/// Where a sink that stood at `from` stands after `rows`.
fn after(from: &Positions, rows: &RecordBatch) -> Result<Positions, End> {
    let (partitions, offsets) = columns(rows)?;
    let mut next = from.clone();
    for row in 0..rows.num_rows() {
        let place = next.entry(PartitionId(partitions.value(row))).or_default();
        *place = Offset(place.0.max(offsets.value(row) + 1));
    }
    Ok(next)
}
