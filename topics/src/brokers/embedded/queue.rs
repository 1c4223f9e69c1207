//! What waits for the writer: bounded in count and bytes; beyond, the caller is told at once.

use super::epoch::PendingEpoch;
use super::prepare::PendingAppend;
use super::writer::Writer;
use crate::broker::BrokerError;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::Duration;

/// Something else for the writer to do, in its own transaction; it answers by itself.
pub(super) type Task = Box<dyn FnOnce(&mut Writer) + Send>;

/// What the writer takes in one go.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) appends: Vec<PendingAppend>,
    pub(super) epoch: Option<PendingEpoch>,
    pub(super) task: Option<Task>,
    pub(super) closed: bool,
}

#[derive(Default)]
struct Inner {
    appends: VecDeque<PendingAppend>,
    epochs: VecDeque<PendingEpoch>,
    tasks: VecDeque<Task>,
    /// Of appends from `push` to their answer.
    count: usize,
    bytes: usize,
    closed: bool,
}

/// The queue.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    news: Condvar,
    closing: Condvar,
    max_count: usize,
    max_bytes: usize,
}

/// Bytes of appends that one transaction takes.
const GROUP_BYTES: usize = 16 << 20;
/// Appends that one transaction takes.
const GROUP_COUNT: usize = 4_096;

impl Queue {
    pub(super) fn new(max_count: usize, max_bytes: usize) -> Queue {
        Queue { inner: Mutex::default(), news: Condvar::new(), closing: Condvar::new(), max_count, max_bytes }
    }

    /// Fails early, before the work of encoding, when there is no room.
    pub(super) fn check_room(&self, bytes: usize) -> Result<(), BrokerError> {
        let inner = self.inner.lock();
        self.room(&inner, bytes)
    }

    fn room(&self, inner: &Inner, bytes: usize) -> Result<(), BrokerError> {
        if inner.closed {
            return Err(BrokerError::Closed);
        }
        // One that is larger than the whole bound is taken when it is alone.
        if inner.count >= self.max_count || (inner.count > 0 && inner.bytes + bytes > self.max_bytes) {
            return Err(BrokerError::Busy(Duration::from_millis(100)));
        }
        Ok(())
    }

    pub(super) fn push_append(&self, append: PendingAppend) -> Result<(), BrokerError> {
        let mut inner = self.inner.lock();
        self.room(&inner, append.bytes)?;
        inner.count += 1;
        inner.bytes += append.bytes;
        inner.appends.push_back(append);
        self.news.notify_one();
        Ok(())
    }

    pub(super) fn push_epoch(&self, epoch: PendingEpoch) -> Result<(), BrokerError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(BrokerError::Closed);
        }
        inner.epochs.push_back(epoch);
        self.news.notify_one();
        Ok(())
    }

    pub(super) fn push_task(&self, task: Task) -> Result<(), BrokerError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(BrokerError::Closed);
        }
        inner.tasks.push_back(task);
        self.news.notify_one();
        Ok(())
    }

    /// An append of so many bytes was answered.
    pub(super) fn answered(&self, count: usize, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.count -= count;
        inner.bytes -= bytes;
    }

    /// Waits until there is something or `timeout` is over; ingest first, epochs one at a time.
    pub(super) fn take(&self, timeout: Duration) -> Batch {
        let mut inner = self.inner.lock();
        if inner.appends.is_empty() && inner.epochs.is_empty() && inner.tasks.is_empty() && !inner.closed {
            self.news.wait_for(&mut inner, timeout);
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        while let Some(append) = inner.appends.front() {
            bytes += append.bytes;
            if !batch.appends.is_empty() && (bytes > GROUP_BYTES || batch.appends.len() >= GROUP_COUNT) {
                break;
            }
            batch.appends.extend(inner.appends.pop_front());
        }
        batch.epoch = inner.epochs.pop_front();
        batch.task = inner.tasks.pop_front();
        batch.closed = inner.closed && inner.appends.is_empty() && inner.epochs.is_empty() && inner.tasks.is_empty();
        batch
    }

    /// Takes nothing more; what is queued is still written.
    pub(super) fn close(&self) {
        self.inner.lock().closed = true;
        self.news.notify_all();
        self.closing.notify_all();
    }

    /// Waits so long, or until it is closed; whether it is.
    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        let mut inner = self.inner.lock();
        if !inner.closed {
            self.closing.wait_for(&mut inner, timeout);
        }
        inner.closed
    }

    /// Whether it was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }
}
