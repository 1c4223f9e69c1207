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
use std::time::Duration;

impl Task {
    /// Writes `rows`; when it returns they are in the store or dead letters, and `next` is stored.
    ///
    /// A batch is cut where the pace allows fewer rows than it has, and into halves where the store
    /// takes offence at it as a whole: in the end one row is to blame. Pieces are written in order.
    pub(crate) fn deliver(&self, rows: RecordBatch, from: &Positions, next: &Positions, generation: u64) -> Result<(), End> {
        let mut pieces = vec![(rows, from.clone(), next.clone())];
        while let Some((rows, from, next)) = pieces.pop() {
            let room = self.pace.lock().rows();
            if rows.num_rows() > room {
                cut(&mut pieces, rows, from, next, room)?;
                continue;
            }
            let batch = WriteBatch { sink: self.setup.sink.clone(), rows: rows.clone(), generation, next: next.clone() };
            failpoint::hit("sink.flush.before");
            let started = self.clock.elapsed();
            let outcomes = match self.wait(self.store.write(batch)) {
                Ok(outcomes) if outcomes.len() == rows.num_rows() => outcomes,
                Ok(outcomes) => {
                    let (got, want) = (outcomes.len(), rows.num_rows());
                    return Err(End::Failed(format!("the store {} answered for {got} rows of {want}", self.store.name())));
                }
                Err(StoreError::Unavailable { message, retry_after, .. }) => {
                    self.back_off(&message, retry_after)?;
                    pieces.push((rows, from, next));
                    continue;
                }
                Err(StoreError::Forgot { .. }) => return Err(End::Again),
                Err(refused @ StoreError::Refused { .. }) => return Err(End::Failed(refused.to_string())),
                Err(StoreError::BadRequest(message)) => match rows.num_rows() {
                    0 => return Err(End::Failed(message)),
                    1 => vec![ItemOutcome::Rejected { code: "refused".into(), message }],
                    count => {
                        cut(&mut pieces, rows, from, next, count / 2)?;
                        continue;
                    }
                },
            };
            failpoint::hit("sink.flush.after");
            let took = self.clock.elapsed().saturating_sub(started);
            if let Some(rest) = self.settle(&rows, &outcomes, took)? {
                // The busy ones again; with none left, an empty batch stores `next`.
                pieces.push((rest, from, next));
            }
        }
        Ok(())
    }

    /// Buries what was rejected. Answers the rows to be written again; none: all is stored, and `next` with it.
    fn settle(&self, rows: &RecordBatch, outcomes: &[ItemOutcome], took: Duration) -> Result<Option<RecordBatch>, End> {
        let (mut busy, mut letters) = (Vec::new(), Vec::new());
        for (row, outcome) in outcomes.iter().enumerate() {
            match outcome {
                ItemOutcome::Busy => busy.push(row as u32),
                ItemOutcome::Rejected { code, message } => letters.push(self.letter(rows, row, "sink", code, message)?),
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
        if busy.is_empty() {
            self.worked(outcomes.len(), took);
            if dead == 0 {
                return Ok(None);
            }
        } else {
            self.back_off("some rows are busy", None)?;
        }
        take_record_batch(rows, &UInt32Array::from(busy)).map(Some).map_err(|e| End::Failed(e.to_string()))
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

/// A batch, where the sink stands before it, and behind it.
type Piece = (RecordBatch, Positions, Positions);

/// Cuts a piece behind its first `rows` rows; the last of `pieces` is the next to be written.
fn cut(pieces: &mut Vec<Piece>, piece: RecordBatch, from: Positions, next: Positions, rows: usize) -> Result<(), End> {
    let first = piece.slice(0, rows);
    let middle = after(&from, &first)?;
    pieces.push((piece.slice(rows, piece.num_rows() - rows), middle.clone(), next));
    pieces.push((first, from, middle));
    Ok(())
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
