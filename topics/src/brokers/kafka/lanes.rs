//! Lanes (R17, R18): a bulk producer's batches, each in a transaction with the lane's new line.
//!
//! The lane is the transactional id. Whoever opens it fences the process that had it before, then
//! reads the highest line committed: a retry that comes to another process, or after a kill -9
//! between commit and answer, finds its lines accepted already.

use super::Shared;
use super::config::lacks_right;
use super::record::Outgoing;
use super::transactions::Transactions;
use crate::broker::{Answer, Append, Appended, BrokerError, Lane};
use crate::failpoint;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long a batch waits for the one before it.
const WAIT: Duration = Duration::from_secs(2);
/// A lane without work is closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// Batches of one lane that may wait.
const WAITING: usize = 64;

/// A lane's batch.
pub(super) struct Work {
    pub(super) lane: Lane,
    /// By element of the append's rows.
    pub(super) rows: Vec<Vec<Outgoing>>,
    /// Lines, as in the append.
    pub(super) lines: Vec<Vec<u64>>,
    pub(super) letters: Vec<Outgoing>,
    pub(super) want_positions: bool,
    pub(super) deadline: Duration,
    pub(super) answer: Answer<Appended>,
}

impl Work {
    pub(super) fn new(
        append: Append,
        lane: Lane,
        rows: Vec<Vec<Outgoing>>,
        letters: Vec<Outgoing>,
        now: Duration,
        answer: Answer<Appended>,
    ) -> Work {
        Work { lane, rows, lines: append.lines, letters, want_positions: append.want_positions, deadline: now + WAIT, answer }
    }

    fn answer(self, outcome: Result<Appended, BrokerError>) {
        // Nobody may be waiting any more, which is fine.
        drop(self.answer.send(outcome));
    }
}

/// One lane's thread.
struct LaneThread {
    shared: Arc<Shared>,
    producer_name: String,
    works: Receiver<Work>,
    /// None: to be opened, and the line to be read.
    open: Option<(Transactions, u64)>,
    waiting: Vec<Work>,
}

/// Starts a lane's thread.
pub(super) fn start(shared: &Arc<Shared>, producer: &str) -> Result<Sender<Work>, BrokerError> {
    let (sender, works) = channel();
    let thread =
        LaneThread { shared: shared.clone(), producer_name: producer.to_owned(), works, open: None, waiting: Vec::new() };
    let spawned = std::thread::Builder::new().name("kafka-lane".to_owned()).spawn(move || thread.run());
    spawned.map(|_| sender).map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))
}

impl LaneThread {
    fn run(mut self) {
        loop {
            let wait = if self.waiting.is_empty() { IDLE } else { Duration::from_millis(50) };
            match self.works.recv_timeout(wait) {
                Ok(work) => self.waiting.push(work),
                Err(RecvTimeoutError::Timeout) if self.waiting.is_empty() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(work) = self.works.try_recv() {
                self.waiting.push(work);
            }
            failpoint::hit("log.append.begin");
            if let Err(error) = self.apply() {
                tracing::warn!(lane = self.producer_name, %error, "kafka: a lane's transaction did not commit; its batches are to be sent again");
                self.open = None;
                // Whoever sends it again to no end should know why.
                let answer = if lacks_right(&error) { error } else { BrokerError::Busy(Duration::from_millis(200)) };
                std::mem::take(&mut self.waiting).into_iter().for_each(|work| work.answer(Err(answer.clone())));
            }
            self.give_up();
        }
        self.shared.lanes.lock().remove(&self.producer_name);
        // What came in between is refused, and sent again.
        while let Ok(work) = self.works.try_recv() {
            work.answer(Err(BrokerError::Busy(Duration::from_millis(50))));
        }
    }

    /// Refuses batches that have waited too long for the one before.
    fn give_up(&mut self) {
        let Some((_, line)) = &self.open else { return };
        let (line, now, full) = (*line, self.shared.options.clock.elapsed(), self.waiting.len() > WAITING);
        let (over, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|work| full || work.deadline <= now);
        self.waiting = waiting;
        for work in over {
            let (producer, previous) = (work.lane.producer.clone(), work.lane.previous);
            work.answer(Err(BrokerError::OutOfSequence { producer, expected: line, previous }));
        }
    }

    /// Opens the lane: fences whoever had it, and reads its line.
    fn opened(&mut self) -> Result<(&Transactions, u64), BrokerError> {
        if self.open.is_none() {
            let producer = Transactions::open(&self.shared.options, &format!("lane.{}", self.producer_name))?;
            let line = self.shared.lane_line_now(&self.producer_name)?;
            self.open = Some((producer, line));
        }
        match &self.open {
            Some((producer, line)) => Ok((producer, *line)),
            None => Err(BrokerError::Closed),
        }
    }

    /// Writes all batches that follow the lane's line, in one transaction.
    fn apply(&mut self) -> Result<(), BrokerError> {
        self.opened()?;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_key(|work| work.lane.previous);
        let lanes: Arc<str> = self.shared.own_topic("lanes").into();
        let Some((producer, line)) = &mut self.open else { return Ok(()) };
        let before = *line;
        let mut reached = before;
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for work in waiting {
            if work.lane.previous <= reached {
                reached = reached.max(work.lane.last);
                now.push(work);
            } else {
                later.push(work);
            }
        }
        self.waiting = later;
        let mut line_so_far = before;
        let mut done = Vec::new();
        let outcome = (|| {
            if reached == before {
                // Nothing but repeats.
                done = now.iter().map(|work| accept(work, &mut line_so_far).0).collect();
                return Ok(());
            }
            producer.begin()?;
            failpoint::hit("log.write.before");
            for work in &now {
                let (appended, kept) = accept(work, &mut line_so_far);
                for out in kept.into_iter().chain(&work.letters) {
                    producer.send(out)?;
                }
                done.push(appended);
            }
            let mark = Outgoing::entry(&lanes, self.producer_name.clone(), Some(reached.to_string().into_bytes()));
            producer.send(&mark)?;
            failpoint::hit("log.commit.before");
            producer.commit()?;
            failpoint::hit("log.commit.after");
            Ok(())
        })();
        if let Err(error) = outcome {
            producer.abort();
            self.waiting.extend(now);
            return Err(error);
        }
        *line = reached;
        self.shared.wakeup.bump();
        failpoint::hit("log.answer.before");
        now.into_iter().zip(done).for_each(|(work, appended)| work.answer(Ok(appended)));
        failpoint::hit("log.answer.after");
        Ok(())
    }
}

/// The answer to a batch, and its records above the line; the line moves on.
fn accept<'w>(work: &'w Work, line: &mut u64) -> (Appended, Vec<&'w Outgoing>) {
    let mut appended = Appended::default();
    let mut kept = Vec::new();
    let none = Vec::new();
    for (set, rows) in work.rows.iter().enumerate() {
        let lines = work.lines.get(set).unwrap_or(&none);
        let mut repeated = Vec::new();
        for (row, out) in (0_u32..).zip(rows) {
            let at = usize::try_from(row).unwrap_or(usize::MAX);
            if lines.get(at).is_none_or(|number| *number > *line) {
                kept.push(out);
                appended.accepted += 1;
            } else {
                repeated.push(row);
                appended.duplicates += 1;
            }
        }
        if work.want_positions {
            // Offsets are known when a transaction has ended only; lanes do not ask for them.
            appended.positions.push(vec![None; rows.len()]);
            appended.repeated.push(repeated);
        }
    }
    *line = (*line).max(work.lane.last);
    appended.lane_line = *line;
    (appended, kept)
}
