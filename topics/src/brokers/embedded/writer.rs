//! The writer thread: gathers what is queued, writes it in one transaction, syncs, answers.

use super::epoch::{self, PendingEpoch, StateIndex};
use super::ids::{self, IdEntry, IdWindow};
use super::prepare::{PendingAppend, Waiting};
use super::stage::Staged;
use super::{Shared, dead, sql, upkeep};
use crate::broker::{Appended, BrokerError, Conflict};
use crate::failpoint;
use crate::ids::{Offset, PartitionId};
use rusqlite::Connection;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a lane's batch waits for the one before it.
const LANE_WAIT: Duration = Duration::from_secs(2);
/// How many such batches wait.
const LANES_WAITING: usize = 1_024;

/// What the writer thread owns.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) ids: IdWindow,
    pub(super) state: StateIndex,
    pub(super) upkeep: upkeep::Upkeep,
    next_ids_row: i64,
    last_arrival: i64,
    early: Vec<PendingAppend>,
}

/// What becomes of an append within a transaction.
enum Fate {
    Written(Appended),
    Refused(BrokerError),
    Early,
}

impl Writer {
    /// Reads what the file holds.
    pub(super) fn new(conn: Connection, shared: Arc<Shared>) -> Result<Writer, BrokerError> {
        let options = &shared.options;
        let span = i64::try_from(options.id_window.as_micros()).unwrap_or(i64::MAX);
        let mut ids = IdWindow::new(span, options.id_limit);
        let oldest = shared.clock.now().0.saturating_sub(span);
        let (mut next_ids_row, mut last_arrival) = (1, 0);
        {
            let mut statement = conn.prepare("select id, arrival, data from ids order by id")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let arrival: i64 = row.get(1)?;
                (next_ids_row, last_arrival) = (row.get::<_, i64>(0)? + 1, last_arrival.max(arrival));
                if arrival >= oldest {
                    ids.load(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?, arrival);
                }
            }
        }
        for topic in shared.topics.read().values() {
            let newest = topic.extent.lock().chunks.values().next_back().map_or(0, |c| c.arrival);
            last_arrival = last_arrival.max(newest);
        }
        let state = StateIndex::load(&conn)?;
        Ok(Writer { conn, shared, ids, state, upkeep: upkeep::Upkeep::default(), next_ids_row, last_arrival, early: Vec::new() })
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        loop {
            let wait = if self.early.is_empty() { Duration::from_secs(1) } else { Duration::from_millis(20) };
            let batch = self.shared.queue.take(wait);
            let mut appends = batch.appends;
            self.answer_overdue();
            let small = batch.epoch.as_ref().is_none_or(small_epoch);
            if small {
                if !appends.is_empty() || batch.epoch.is_some() {
                    self.group(std::mem::take(&mut appends), batch.epoch);
                }
            } else {
                if !appends.is_empty() {
                    self.group(std::mem::take(&mut appends), None);
                }
                self.group(Vec::new(), batch.epoch);
            }
            if let Some(task) = batch.task {
                task(&mut self);
            }
            if batch.closed {
                break;
            }
            self.tend();
        }
        for append in std::mem::take(&mut self.early) {
            self.shared.queue.answered(1, append.bytes);
            append.fail(BrokerError::Closed);
        }
        upkeep::checkpoint_at_close(&self.conn);
    }

    /// The arrival time of this commit: never before the last one, whatever the wall clock does.
    fn arrival(&mut self) -> i64 {
        self.last_arrival = self.last_arrival.max(self.shared.clock.now().0);
        self.last_arrival
    }

    /// Runs `work` in a transaction; takes back what it did in memory when it fails.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Writer, &mut Staged, i64) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let arrival = self.arrival();
        self.ids.expire(arrival);
        let mark = self.ids.mark();
        let mut staged = Staged::default();
        let done = self.conn.execute_batch("begin immediate").map_err(BrokerError::from).and_then(|()| {
            failpoint::hit("log.write.before");
            let done = work(self, &mut staged, arrival)?;
            staged.flush(&self.conn, arrival)?;
            self.store_ids(mark, arrival)?;
            failpoint::hit("log.commit.before");
            self.conn.execute_batch("commit")?;
            Ok(done)
        });
        match done {
            Ok(done) => {
                failpoint::hit("log.commit.after");
                self.ids.seal(arrival);
                // A handful of pages is touched by any transaction.
                self.upkeep.written += staged.bytes() + (5 << 16);
                staged.apply();
                Ok(done)
            }
            Err(error) => {
                self.ids.rewind(mark);
                if !self.conn.is_autocommit()
                    && let Err(e) = self.conn.execute_batch("rollback")
                {
                    tracing::warn!(error = %e, "a transaction that failed could not be rolled back");
                }
                tracing::error!(%error, "the log could not be written; nothing of this transaction was stored");
                Err(error)
            }
        }
    }

    fn store_ids(&mut self, mark: u64, arrival: i64) -> Result<(), BrokerError> {
        if self.ids.mark() == mark {
            return Ok(());
        }
        let data = self.ids.encode_since(mark);
        let mut statement = self.conn.prepare_cached("insert into ids(id, arrival, data) values(?1, ?2, ?3)")?;
        statement.execute((self.next_ids_row, arrival, data))?;
        self.next_ids_row += 1;
        Ok(())
    }

    /// Appends and at most one epoch in one transaction, then the answers.
    fn group(&mut self, appends: Vec<PendingAppend>, epoch: Option<PendingEpoch>) {
        failpoint::hit("log.append.begin");
        let mut todo = VecDeque::from(appends);
        let mut fates: Vec<(PendingAppend, Fate)> = Vec::new();
        let (epoch, refused) = self.check_epoch(epoch);
        if let Some((epoch, error)) = refused {
            drop(epoch.answer.send(Err(error)));
        }
        let mut epoch = epoch;
        let result = self.transaction(|writer, staged, arrival| {
            while !todo.is_empty() {
                let mut lane_moved = false;
                while let Some(mut append) = todo.pop_front() {
                    let lane = append.lane.is_some();
                    match writer.stage_append(staged, arrival, &mut append) {
                        Ok(fate) => {
                            lane_moved |= lane && matches!(fate, Fate::Written(_));
                            match fate {
                                Fate::Early => writer.early.push(append),
                                fate => fates.push((append, fate)),
                            }
                        }
                        Err(error) => {
                            fates.push((append, Fate::Refused(error.clone())));
                            return Err(error);
                        }
                    }
                }
                if lane_moved {
                    // One of those that came early may be next.
                    todo.extend(std::mem::take(&mut writer.early));
                }
            }
            let Some(epoch) = &mut epoch else { return Ok(None) };
            failpoint::hit("log.epoch.before");
            for rows in std::mem::take(&mut epoch.rows) {
                staged.append(&writer.conn, arrival, rows, None)?;
            }
            epoch::stage(&writer.conn, &writer.state, &epoch.commit).map(Some)
        });
        failpoint::hit("log.answer.before");
        let error = match result {
            Ok(changed) => {
                if let (Some(changed), Some(epoch)) = (changed, &epoch) {
                    self.upkeep.written += epoch.commit.state.iter().map(|p| p.bytes.len() as u64).sum::<u64>();
                    self.state.apply(changed);
                    self.shared.last_epoch.store(epoch.commit.epoch.0, Ordering::SeqCst);
                    failpoint::hit("log.epoch.after");
                }
                self.shared.wakeup.bump();
                None
            }
            Err(error) => Some(error),
        };
        self.answer(fates, todo.into(), error.clone());
        if let Some(epoch) = epoch {
            drop(epoch.answer.send(error.map_or(Ok(()), Err)));
        }
        failpoint::hit("log.answer.after");
    }

    fn answer(&mut self, fates: Vec<(PendingAppend, Fate)>, unstaged: Vec<PendingAppend>, error: Option<BrokerError>) {
        let (mut count, mut bytes) = (0, 0);
        for (append, fate) in fates {
            count += 1;
            bytes += append.bytes;
            match (&error, fate) {
                // A refusal is final whatever became of the others.
                (_, Fate::Refused(error)) => append.fail(error),
                (Some(error), _) => append.fail(error.clone()),
                (None, Fate::Written(done)) => match append.answer {
                    Waiting::Appended(answer) => drop(answer.send(Ok(done))),
                    Waiting::Unit(answer) => drop(answer.send(Ok(()))),
                },
                (None, Fate::Early) => {}
            }
        }
        for append in unstaged {
            count += 1;
            bytes += append.bytes;
            append.fail(error.clone().unwrap_or(BrokerError::Closed));
        }
        self.shared.queue.answered(count, bytes);
    }

    fn check_epoch(&self, epoch: Option<PendingEpoch>) -> (Option<PendingEpoch>, Option<(PendingEpoch, BrokerError)>) {
        let last = self.shared.last_epoch.load(Ordering::SeqCst);
        match epoch {
            Some(epoch) if epoch.commit.epoch.0 <= last => {
                let error =
                    BrokerError::Storage(format!("epoch {} is not after the last one committed, {last}", epoch.commit.epoch));
                (None, Some((epoch, error)))
            }
            epoch => (epoch, None),
        }
    }

    /// Decides about an append and writes it. An error here fails the whole transaction.
    fn stage_append(&mut self, staged: &mut Staged, arrival: i64, append: &mut PendingAppend) -> Result<Fate, BrokerError> {
        let mut line = 0;
        if let Some(lane) = &append.lane {
            line = sql::get_number(&self.conn, sql::space::LANE, &lane.producer)?;
            if line < lane.previous {
                let refuse =
                    BrokerError::OutOfSequence { producer: lane.producer.clone(), expected: line, previous: lane.previous };
                let now = self.shared.clock.elapsed();
                let deadline = *append.deadline.get_or_insert(now + LANE_WAIT);
                let wait = now < deadline && self.early.len() < LANES_WAITING && !self.shared.queue.is_closed();
                return Ok(if wait { Fate::Early } else { Fate::Refused(refuse) });
            }
        }
        let (keep, conflicts) = match self.kept(append, line) {
            Ok(kept) => kept,
            Err(conflict) => return Ok(Fate::Refused(conflict)),
        };
        let mut done = Appended { conflicts, ..Appended::default() };
        for (rows, kept) in std::mem::take(&mut append.rows).into_iter().zip(keep) {
            let all = kept.repeats.is_empty() && kept.keep.iter().all(|k| *k);
            let topic = rows.topic.id;
            let ids = rows.ids.clone();
            let accepted = kept.keep.iter().filter(|k| **k).count() as u64;
            done.accepted += accepted;
            done.duplicates += kept.keep.len() as u64 - accepted;
            let mut places = staged.append(&self.conn, arrival, rows, (!all).then_some(&kept.keep))?;
            for (row, key, content) in ids {
                if let Some((partition, offset)) = places[row as usize] {
                    self.ids.insert(&IdEntry { key, content, place: ids::place(topic, partition.0, offset.0) });
                }
            }
            if append.want_positions {
                for (row, first) in kept.repeats {
                    places[row as usize] = match first {
                        First::Stored(place) => place,
                        First::Row(first) => places[first as usize],
                        First::Other(row_set, first) => {
                            done.positions.get(row_set).and_then(|p: &Vec<_>| p.get(first as usize).copied()).flatten()
                        }
                    };
                }
                done.positions.push(places);
                let set = done.repeated.len();
                let refused = |row: u32| done.conflicts.iter().any(|c| c.set == set && c.row == row);
                let repeated = (0_u32..).zip(&kept.keep).filter(|(row, keep)| !**keep && !refused(*row));
                done.repeated.push(repeated.map(|(row, _)| row).collect());
            }
        }
        done.duplicates -= done.conflicts.len() as u64;
        for letter in &append.dead_letters {
            dead::insert(&self.conn, letter)?;
        }
        if let Some(lane) = &append.lane {
            if lane.last > line {
                line = lane.last;
                sql::put_number(&self.conn, sql::space::LANE, &lane.producer, line)?;
            }
            done.lane_line = line;
        }
        Ok(Fate::Written(done))
    }

    /// Which rows are new (R16, R17), and where the others came first.
    fn kept(&self, append: &PendingAppend, line: u64) -> Result<(Vec<Kept>, Vec<Conflict>), BrokerError> {
        let mut conflicts = Vec::new();
        let mut here: HashMap<[u64; 2], (usize, u32, u32)> = HashMap::new();
        let mut result = Vec::with_capacity(append.rows.len());
        let mut before = 0;
        for (set, rows) in append.rows.iter().enumerate() {
            let mut kept = Kept { keep: vec![true; rows.partitions.len()], repeats: Vec::new() };
            for (keep, row_line) in kept.keep.iter_mut().zip(&rows.lines) {
                *keep = *row_line > line;
            }
            for (row, key, content) in &rows.ids {
                if !kept.keep[*row as usize] {
                    continue;
                }
                let (had, first) = if let Some(entry) = self.ids.find(*key) {
                    (entry.content, First::Stored(self.place_in(rows.topic.id, entry.place)))
                } else if let Some((first_set, first_row, content)) = here.get(key) {
                    (*content, if *first_set == set { First::Row(*first_row) } else { First::Other(*first_set, *first_row) })
                } else {
                    here.insert(*key, (set, *row, *content));
                    continue;
                };
                if had != *content && append.apart {
                    kept.keep[*row as usize] = false;
                    conflicts.push(Conflict { set, row: *row, id: id_text(rows, *row) });
                    continue;
                }
                if had != *content {
                    return Err(BrokerError::IdConflict { row: before + *row as usize, id: id_text(rows, *row) });
                }
                kept.keep[*row as usize] = false;
                kept.repeats.push((*row, first));
            }
            before += rows.partitions.len();
            result.push(kept);
        }
        Ok((result, conflicts))
    }

    fn place_in(&self, topic: i64, place: u64) -> Option<(PartitionId, Offset)> {
        ids::unpack(place).filter(|(of, _, _)| *of == topic).map(|(_, partition, offset)| (partition, offset))
    }

    /// Batches that came early and have waited long enough are refused.
    fn answer_overdue(&mut self) {
        let now = self.shared.clock.elapsed();
        let overdue = |a: &PendingAppend| a.deadline.is_none_or(|d| d <= now) || self.shared.queue.is_closed();
        let (late, waiting) = std::mem::take(&mut self.early).into_iter().partition(overdue);
        self.early = waiting;
        let fates = Vec::from_iter(late.into_iter().map(|append: PendingAppend| {
            let lane = append.lane.clone();
            let refuse = lane.map_or(BrokerError::Closed, |lane| BrokerError::OutOfSequence {
                expected: sql::get_number(&self.conn, sql::space::LANE, &lane.producer).unwrap_or(0),
                previous: lane.previous,
                producer: lane.producer,
            });
            (append, Fate::Refused(refuse))
        }));
        self.answer(fates, Vec::new(), None);
    }
}

/// An epoch that may share the transaction of appends without making their answers wait.
fn small_epoch(epoch: &PendingEpoch) -> bool {
    let state: usize = epoch.commit.state.iter().map(|p| p.bytes.len()).sum();
    let rows: usize = epoch.rows.iter().map(|r| r.partitions.len()).sum();
    state < 256 << 10 && rows < 4_096
}

fn id_text(rows: &super::prepare::PreparedRows, row: u32) -> String {
    use arrow::array::AsArray;
    let ids = rows.rows.column_by_name(crate::schema::ID).and_then(|c| c.as_string_opt::<i32>());
    ids.map_or_else(String::new, |ids| ids.value(row as usize).to_owned())
}

/// Which rows of one topic are new.
struct Kept {
    keep: Vec<bool>,
    /// Rows that repeat an id, and where it came first.
    repeats: Vec<(u32, First)>,
}

/// Where an id came first.
enum First {
    /// In an earlier append.
    Stored(Option<(PartitionId, Offset)>),
    /// In this row.
    Row(u32),
    /// In this row of another set of rows of the same append.
    Other(usize, u32),
}
