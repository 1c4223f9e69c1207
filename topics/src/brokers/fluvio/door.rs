//! What the door appends, by one thread: single batches together, and the batches of lanes (R17).
//!
//! Without transactions an append is not all or nothing: each partition's records are. What was not
//! answered is sent again by whoever sent it: a lane's records under the same numbers, so that
//! readers pass them once; others, where they have no lane, as new ones.

use super::endpoint::Raw;
use super::record::{self, Outgoing};
use super::{Shared, lines};
use crate::broker::{Answer, Append, Appended, BrokerError, Lane};
use crate::failpoint;
use crate::ids::{Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Batches of lanes that may wait, and appends that are written together.
const WAITING: usize = 256;

/// An append on its way.
pub(super) struct Work {
    /// By element of the append's rows.
    pub(super) rows: Vec<Vec<Outgoing>>,
    /// Whether any row has an id of its own.
    pub(super) ids: bool,
    pub(super) append: Append,
    /// Dead letters, encoded.
    pub(super) letters: Vec<String>,
    /// Until when it waits for the batch before it.
    pub(super) deadline: Duration,
    pub(super) answer: Answer<Appended>,
}

/// The thread's side.
pub(super) struct Door {
    pub(super) shared: Arc<Shared>,
    pub(super) works: Receiver<Work>,
    /// How many batches were written: their number.
    pub(super) written: u64,
}

fn answer(work: Work, outcome: Result<Appended, BrokerError>) {
    failpoint::hit("log.answer.before");
    // Nobody may be waiting any more, which is fine.
    drop(work.answer.send(outcome));
    failpoint::hit("log.answer.after");
}

impl Door {
    pub(super) fn run(mut self) {
        let mut waiting: Vec<Work> = Vec::new();
        loop {
            let wait = if waiting.is_empty() { Duration::from_millis(500) } else { Duration::from_millis(20) };
            match self.works.recv_timeout(wait) {
                Ok(work) => waiting.push(work),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while waiting.len() < WAITING
                && let Ok(work) = self.works.try_recv()
            {
                waiting.push(work);
            }
            let (lanes, single) = std::mem::take(&mut waiting).into_iter().partition(|work| work.append.lane.is_some());
            self.single(single);
            waiting = self.lanes(lanes);
        }
        waiting.into_iter().for_each(|work| answer(work, Err(BrokerError::Closed)));
    }

    /// Appends without a lane, written together.
    fn single(&mut self, works: Vec<Work>) {
        if works.is_empty() {
            return;
        }
        failpoint::hit("log.append.begin");
        self.written += 1;
        let number = self.written;
        let mut groups: BTreeMap<(String, u32), (Vec<Raw>, Vec<(usize, usize, usize)>)> = BTreeMap::new();
        let mut outcomes: Vec<Result<Appended, BrokerError>> = works.iter().map(|work| Ok(unplaced(work))).collect();
        for (at, work) in works.iter().enumerate() {
            for (set, rows) in work.rows.iter().enumerate() {
                for (row, out) in rows.iter().enumerate() {
                    let group = groups.entry((out.topic.clone(), out.partition)).or_default();
                    match out.raw(&self.shared.who, (number, group.0.len() as u64)) {
                        Ok(raw) => group.0.push(raw),
                        Err(error) => outcomes[at] = Err(error),
                    }
                    group.1.push((at, set, row));
                }
            }
        }
        failpoint::hit("log.write.before");
        let announced = match lines::announce(&self.shared, &self.shared.who, number - 1, number, groups.keys()) {
            Ok(announced) => announced,
            Err(error) => return works.into_iter().for_each(|work| answer(work, Err(error.clone()))),
        };
        for ((topic, partition), (records, places)) in groups {
            match self.shared.cluster.produce(&self.shared.physical(&topic), partition, &records) {
                Ok((offsets, again)) => {
                    for ((at, set, row), offset) in places.iter().zip(offsets) {
                        if let (Ok(appended), false) = (&mut outcomes[*at], again)
                            && let Some(place) = appended.positions.get_mut(*set).and_then(|rows| rows.get_mut(*row))
                        {
                            *place = Some((PartitionId(partition), Offset(offset)));
                        }
                    }
                }
                Err(error) => places.iter().for_each(|(at, ..)| outcomes[*at] = Err(error.clone())),
            }
        }
        for (work, outcome) in works.iter().zip(&mut outcomes) {
            if let Err(error) = self.shared.write_letters(&work.letters, &[]) {
                *outcome = Err(error);
            }
        }
        self.shared.wakeup.bump();
        works.into_iter().zip(outcomes).for_each(|(work, outcome)| answer(work, outcome));
        if announced && let Err(error) = lines::write(&self.shared, &self.shared.who, number, None) {
            // Nobody waits for it longer than they have patience.
            tracing::warn!(%error, "fluvio: readers are not told that a batch is written");
        }
    }

    /// Batches of lanes, in their order; those that have to wait are given back.
    fn lanes(&mut self, mut works: Vec<Work>) -> Vec<Work> {
        works.sort_by_key(|work| work.append.lane.as_ref().map_or(0, |lane| lane.previous));
        let full = works.len() >= WAITING;
        let mut later = Vec::new();
        for work in works {
            let Some(lane) = work.append.lane.clone() else { continue };
            let line = self.shared.lane_line(&lane.producer);
            match line {
                Err(error) => answer(work, Err(error)),
                Ok(line) if lane.previous <= line => {
                    let outcome = self.lane(&work, &lane, line);
                    self.shared.wakeup.bump();
                    answer(work, outcome);
                }
                Ok(line) if full || work.deadline <= self.shared.cluster.clock().elapsed() => {
                    let (producer, previous) = (lane.producer, lane.previous);
                    answer(work, Err(BrokerError::OutOfSequence { producer, expected: line, previous }));
                }
                Ok(_) => later.push(work),
            }
        }
        later
    }

    /// Writes a batch's records above the line, then the new line.
    fn lane(&self, work: &Work, lane: &Lane, line: u64) -> Result<Appended, BrokerError> {
        failpoint::hit("log.append.begin");
        let mut appended = unplaced(work);
        appended.accepted = 0;
        let by = format!("lane:{}", lane.producer);
        let mut groups: BTreeMap<(String, u32), Vec<Raw>> = BTreeMap::new();
        for (set, rows) in work.rows.iter().enumerate() {
            let lines = work.append.lines.get(set).map_or(&[][..], Vec::as_slice);
            let mut repeated = Vec::new();
            for (row, out) in rows.iter().enumerate() {
                let number = lines.get(row).copied().unwrap_or(lane.last);
                if number > line {
                    // A line is one record, so within a partition its number is enough.
                    groups.entry((out.topic.clone(), out.partition)).or_default().push(out.raw(&by, (number, 0))?);
                    appended.accepted += 1;
                } else {
                    repeated.push(u32::try_from(row).unwrap_or(u32::MAX));
                    appended.duplicates += 1;
                }
            }
            if work.append.want_positions {
                appended.repeated.push(repeated);
            }
        }
        failpoint::hit("log.write.before");
        let reached = line.max(lane.last);
        lines::announce(&self.shared, &lane.producer, line, reached, groups.keys())?;
        for ((topic, partition), records) in groups {
            self.shared.cluster.produce(&self.shared.physical(&topic), partition, &records)?;
        }
        self.shared.write_letters(&work.letters, &[])?;
        if reached > line {
            failpoint::hit("log.commit.before");
            lines::write(&self.shared, &lane.producer, reached, None)?;
            failpoint::hit("log.commit.after");
        }
        appended.lane_line = reached;
        Ok(appended)
    }
}

/// The answer before anything is known of places.
fn unplaced(work: &Work) -> Appended {
    let mut appended = Appended { accepted: work.rows.iter().map(|rows| rows.len() as u64).sum(), ..Appended::default() };
    appended.duplicates_unknown = work.ids && work.append.lane.is_none();
    if work.append.want_positions {
        appended.positions = work.rows.iter().map(|rows| vec![None; rows.len()]).collect();
        if work.append.lane.is_none() {
            appended.repeated = vec![Vec::new(); work.rows.len()];
        }
    }
    appended
}

/// Encodes an append's rows.
pub(super) fn encode(append: &Append) -> Result<Vec<Vec<Outgoing>>, BrokerError> {
    append.rows.iter().map(record::encode).collect()
}
