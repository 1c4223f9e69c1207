//! Waiting for a broker: for one answer ([`Ticket`]), or for news in the log ([`Wakeup`]).

use crate::broker::BrokerError;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A pending answer: await it, or block for it.
#[derive(Debug)]
pub struct Ticket<T>(tokio::sync::oneshot::Receiver<Result<T, BrokerError>>);

/// The side that answers.
pub type Answer<T> = tokio::sync::oneshot::Sender<Result<T, BrokerError>>;

impl<T> Ticket<T> {
    /// A ticket and the sender that answers it.
    pub fn new() -> (Answer<T>, Ticket<T>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        (sender, Ticket(receiver))
    }

    /// Blocks this thread until the answer is there. Not for async code.
    ///
    /// # Errors
    /// What the broker answers; [`BrokerError::Closed`] when it went away.
    pub fn wait(self) -> Result<T, BrokerError> {
        self.0.blocking_recv().unwrap_or(Err(BrokerError::Closed))
    }

    /// The answer, if it is there by now.
    pub fn try_take(&mut self) -> Option<Result<T, BrokerError>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(tokio::sync::oneshot::error::TryRecvError::Empty) => None,
            Err(tokio::sync::oneshot::error::TryRecvError::Closed) => Some(Err(BrokerError::Closed)),
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(BrokerError::Closed)))
    }
}

/// The version of the log: moves with each commit; waiting on it is how followers sleep.
#[derive(Debug)]
pub struct Wakeup {
    version: tokio::sync::watch::Sender<u64>,
    blocking: (parking_lot::Mutex<u64>, parking_lot::Condvar),
}

impl Default for Wakeup {
    fn default() -> Wakeup {
        Wakeup {
            version: tokio::sync::watch::Sender::new(0),
            blocking: (parking_lot::Mutex::new(0), parking_lot::Condvar::new()),
        }
    }
}

impl Wakeup {
    /// Wakes everyone.
    pub fn bump(&self) {
        let mut version = self.blocking.0.lock();
        *version += 1;
        self.version.send_replace(*version);
        self.blocking.1.notify_all();
    }

    /// The version now. Take it before looking for news, then wait for a later one.
    pub fn version(&self) -> u64 {
        *self.blocking.0.lock()
    }

    /// Blocks until the version has passed `seen`, or `timeout` is over; returns the version.
    pub fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let mut version = self.blocking.0.lock();
        if *version <= seen {
            self.blocking.1.wait_for(&mut version, timeout);
        }
        *version
    }

    /// The same for async code.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.version.subscribe()
    }
}
