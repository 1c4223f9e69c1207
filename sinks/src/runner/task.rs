//! One sink's loop: read, filter, write, report; start anew where the topic was reset.

use super::pace::Pace;
use super::replay::Looks;
use super::shares::Shares;
use super::status::{Circuit, SinkStatus, State};
use super::{RunnerOptions, Signal, SinkSetup};
use crate::store::{Store, StoreError};
use arrow::array::{Array, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use parking_lot::Mutex;
use quikflow_topics::broker::{Broker, BrokerError, Positions, Projection, Slice, TopicReader};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::clock::SharedClock;
use quikflow_topics::dead_letter::DeadLetter;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// A sink and all it works with.
pub(crate) struct Task {
    pub(crate) setup: SinkSetup,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) clock: SharedClock,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) signal: Arc<Signal>,
    pub(crate) options: RunnerOptions,
    pub(crate) pace: Mutex<Pace>,
    pub(crate) status: Arc<Mutex<SinkStatus>>,
    /// Where several processes share the sinks of its store.
    pub(crate) shares: Option<Arc<Shares>>,
}

/// Why a sink's loop ends.
pub(crate) enum End {
    /// A stop was asked for.
    Stop,
    /// Another process has its share.
    GivenUp,
    /// The store may have forgotten rows: begin again from what it holds.
    Again,
    /// Trying again will not help.
    Failed(String),
}

impl From<BrokerError> for End {
    fn from(error: BrokerError) -> End {
        match error {
            BrokerError::Closed => End::Stop,
            other => End::Failed(other.to_string()),
        }
    }
}

/// Says in the status when the thread ends by a panic.
struct Guard(Arc<Mutex<SinkStatus>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut status = self.0.lock();
        if !status.state.is_stopped() {
            status.state = State::Stopped { error: Some("the sink's thread ended by a panic".into()) };
        }
    }
}

impl Task {
    /// Runs until a stop, or until the store refuses.
    pub(crate) fn run(self) {
        let guard = Guard(self.status.clone());
        let error = match self.follow() {
            Ok(()) | Err(End::Stop | End::GivenUp | End::Again) => None,
            Err(End::Failed(error)) => {
                tracing::error!(sink = self.setup.sink.name, error, "the sink has stopped");
                Some(error)
            }
        };
        self.status.lock().state = State::Stopped { error };
        drop(guard);
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Tries until it works: pauses where the other side is busy or away.
    pub(crate) fn persist<T>(&self, mut call: impl FnMut() -> Result<T, StoreError>) -> Result<T, End> {
        loop {
            match call() {
                Ok(done) => {
                    self.worked(0, Duration::ZERO);
                    return Ok(done);
                }
                Err(StoreError::Unavailable { message, retry_after, .. }) => self.back_off(&message, retry_after)?,
                Err(StoreError::Forgot { .. }) => return Err(End::Again),
                Err(other) => return Err(End::Failed(other.to_string())),
            }
        }
    }

    /// The same for calls of the broker.
    pub(crate) fn persist_broker<T>(&self, mut call: impl FnMut() -> Result<T, BrokerError>) -> Result<T, End> {
        let mut failed = false;
        loop {
            let (message, hint) = match call() {
                Ok(done) => {
                    if failed {
                        self.worked(0, Duration::ZERO);
                    }
                    return Ok(done);
                }
                Err(BrokerError::Busy(after)) => ("the log is busy".to_owned(), Some(after)),
                Err(error @ (BrokerError::Full { .. } | BrokerError::Storage(_) | BrokerError::Unavailable(_))) => {
                    (error.to_string(), None)
                }
                Err(other) => return Err(other.into()),
            };
            failed = true;
            self.back_off(&message, hint)?;
        }
    }

    /// A call went through.
    pub(crate) fn worked(&self, rows: usize, took: Duration) {
        let mut pace = self.pace.lock();
        pace.worked(rows, took);
        let mut status = self.status.lock();
        status.batch_rows = pace.rows();
        status.state = State::Running;
        status.circuit = Circuit::Closed;
    }

    /// A call did not go through: pauses as the pace says.
    pub(crate) fn back_off(&self, error: &str, hint: Option<Duration>) -> Result<(), End> {
        let (pause, failures, open) = {
            let mut pace = self.pace.lock();
            let seed = format!("{}:{}:{}", self.setup.sink.name, pace.failures(), self.clock.elapsed().as_nanos());
            let jitter = (xxh3_64(seed.as_bytes()) % 1_000) as f64 / 1_000.0;
            let pause = pace.failed(jitter, hint);
            let (failures, open) = (pace.failures(), pace.open());
            let mut status = self.status.lock();
            status.batch_rows = pace.rows();
            status.state = State::BackingOff { error: error.to_owned(), failures };
            status.circuit = if open { Circuit::Open } else { Circuit::Closed };
            (pause, failures, open)
        };
        metrics::counter!("quikflow_sink_failures_total", "sink" => self.setup.sink.name.clone()).increment(1);
        if self.signal.stopping() {
            return Err(End::Stop);
        }
        tracing::warn!(
            sink = self.setup.sink.name,
            store = self.store.name(),
            error,
            failures,
            "a write failed, it will be tried again"
        );
        match &self.options.rest {
            Some(rest) => (rest.0)(pause),
            None => self.signal.pause(pause),
        }
        if self.signal.stopping() {
            return Err(End::Stop);
        }
        self.still_mine()?;
        if open {
            self.status.lock().circuit = Circuit::HalfOpen;
        }
        Ok(())
    }

    fn still_mine(&self) -> Result<(), End> {
        let mine = self.shares.as_ref().is_none_or(|shares| shares.mine(&self.setup.sink.name));
        if mine { Ok(()) } else { Err(End::GivenUp) }
    }

    fn follow(&self) -> Result<(), End> {
        loop {
            let turn = match &self.shares {
                None => None,
                Some(shares) => {
                    self.status.lock().state = State::Elsewhere;
                    let Some(turn) = shares.turn(&self.setup.sink.name, &self.signal) else { return Ok(()) };
                    self.status.lock().state = State::Running;
                    Some(turn)
                }
            };
            let end = self.follow_on();
            drop(turn);
            match end {
                Err(End::GivenUp) if !self.signal.stopping() => {}
                Err(End::Again) if !self.signal.stopping() => {
                    let sink = &self.setup.sink.name;
                    tracing::warn!(sink, "the store was started anew: the sink goes on from the offsets that it holds");
                    metrics::counter!("quikflow_sink_restarts_total", "sink" => sink.clone()).increment(1);
                }
                end => return end,
            }
        }
    }

    /// From the store's offsets on.
    fn follow_on(&self) -> Result<(), End> {
        let (sink, topic) = (&self.setup.sink, &self.setup.topic);
        let group = format!("sink:{}", sink.name);
        loop {
            let generation = self.persist_broker(|| self.broker.generation(&topic.name))?;
            let progress = self.persist(|| self.wait(self.store.progress(&sink.name)))?;
            let mut positions = progress.positions;
            if progress.generation != generation {
                // The topic was reset: its records are new ones, and the rows of the old ones go (R13).
                self.persist(|| self.wait(self.store.clear(&sink.name)))?;
                positions = Positions::new();
            }
            self.status.lock().positions = positions.clone();
            self.broker.report_progress(&group, &topic.name, &positions)?;
            let mut reader = self.persist_broker(|| self.broker.reader(&topic.name, &positions))?;
            let mut looks = Looks::new(&self.options, self.broker.tells_changes() && !self.store.is_shared());
            let mut gathered = self.clock.elapsed();
            loop {
                let seen = self.broker.wakeup().version();
                self.still_mine()?;
                if looks.due(self.clock.elapsed(), seen).is_zero() && !self.signal.stopping() {
                    let all = self.replay(&positions, generation)?;
                    if let Err(StoreError::Forgot { .. }) = self.wait(self.store.remembers(&sink.name)) {
                        return Err(End::Again);
                    }
                    looks.looked(self.clock.elapsed(), seen, all);
                }
                let (rows, taken) = self.gather(reader.as_mut())?;
                if self.persist_broker(|| self.broker.generation(&topic.name))? != generation {
                    break;
                }
                let Some(rows) = rows else {
                    if self.signal.stopping() {
                        return Ok(());
                    }
                    self.broker.wakeup().wait(seen, looks.due(self.clock.elapsed(), seen));
                    continue;
                };
                let now = self.clock.elapsed();
                self.pace.lock().came(rows.num_rows(), now.saturating_sub(std::mem::replace(&mut gathered, now)));
                let next = reader.positions();
                self.take(rows, &positions, &next, generation, taken)?;
                positions = next;
                self.status.lock().positions = positions.clone();
                self.broker.report_progress(&group, &topic.name, &positions)?;
                if self.signal.over(&self.clock) {
                    return Ok(());
                }
            }
        }
    }

    /// What is there, up to a batch. A small one waits a little for more, and longer where rows are
    /// plenty; not where they come an epoch at a time: then there is nothing to wait for.
    fn gather(&self, reader: &mut dyn TopicReader) -> Result<(Option<RecordBatch>, u64), End> {
        let projection = Projection::all(&self.setup.topic);
        let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
        let (most, plenty) = {
            let pace = self.pace.lock();
            (pace.rows(), pace.plenty(self.options.patience))
        };
        // In two parts, so that a batch that has filled meanwhile goes.
        let mut pauses = match self.setup.topic.kind {
            TopicKind::Rows => Vec::new(),
            _ if plenty => vec![self.options.patience / 2; 2],
            _ => vec![self.options.linger],
        };
        while rows < most && bytes < self.options.max_bytes {
            let slice: Option<Arc<dyn Slice>> = self.persist_broker(|| reader.poll(most - rows))?;
            match slice {
                Some(slice) => {
                    rows += slice.rows();
                    bytes += slice.bytes();
                    batches.push(self.persist_broker(|| slice.decode(&projection))?);
                }
                None if batches.is_empty() => break,
                None => match pauses.pop() {
                    Some(pause) => self.signal.pause(pause),
                    None => break,
                },
            }
        }
        if batches.is_empty() {
            return Ok((None, 0));
        }
        let whole = concat_batches(&projection.schema, &batches).map_err(|e| End::Failed(e.to_string()))?;
        Ok((Some(whole), rows as u64))
    }

    /// Filters and writes a batch.
    fn take(&self, rows: RecordBatch, from: &Positions, next: &Positions, generation: u64, taken: u64) -> Result<(), End> {
        let (rows, letters) = self.filter(rows)?;
        let failed = letters.len() as u64;
        self.bury(letters)?;
        let kept = rows.num_rows() as u64;
        self.deliver(rows, from, next, generation)?;
        let mut status = self.status.lock();
        status.filtered += taken.saturating_sub(kept + failed);
        status.dead += failed;
        status.took(taken, self.clock.elapsed(), self.clock.now());
        drop(status);
        metrics::counter!("quikflow_sink_rows_total", "sink" => self.setup.sink.name.clone()).increment(taken);
        Ok(())
    }

    /// The rows wanted, and dead letters of those on which the filter fails.
    pub(crate) fn filter(&self, rows: RecordBatch) -> Result<(RecordBatch, Vec<DeadLetter>), End> {
        let Some(filter) = &self.setup.filter else { return Ok((rows, Vec::new())) };
        let broken = |e: arrow::error::ArrowError| End::Failed(e.to_string());
        let fits = |mask: &BooleanArray, rows: usize| {
            let wrong = || End::Failed(format!("the filter answered {} rows of {rows}", mask.len()));
            if mask.len() == rows { Ok(()) } else { Err(wrong()) }
        };
        match filter(&rows) {
            Ok(mask) => {
                fits(&mask, rows.num_rows())?;
                Ok((filter_record_batch(&rows, &mask).map_err(broken)?, Vec::new()))
            }
            // Some row is to blame: find out which.
            Err(_) => {
                let (mut keep, mut letters) = (Vec::new(), Vec::new());
                for row in 0..rows.num_rows() {
                    let one = rows.slice(row, 1);
                    match filter(&one) {
                        Ok(mask) => {
                            fits(&mask, 1)?;
                            if mask.is_valid(0) && mask.value(0) {
                                keep.push(row as u32);
                            }
                        }
                        Err(message) => letters.push(self.letter(&rows, row, "expression", "filter", &message)?),
                    }
                }
                Ok((take_record_batch(&rows, &UInt32Array::from(keep)).map_err(broken)?, letters))
            }
        }
    }
}
