//! The only place that reads the system's clocks; everything else is handed a [`Clock`].

use crate::ids::EventTime;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Wall-clock time and monotonic time.
pub trait Clock: Send + Sync + Debug {
    /// Wall-clock time; may jump in either direction.
    fn now(&self) -> EventTime;
    /// Time since some fixed moment of this process; never goes back.
    fn elapsed(&self) -> Duration;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[allow(clippy::disallowed_methods, reason = "this is the one reader of the system's clocks")]
    pub fn shared() -> SharedClock {
        Arc::new(SystemClock { started: std::time::Instant::now() })
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one reader of the system's clocks")]
    fn now(&self) -> EventTime {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        EventTime(since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that stands still until it is told to move: for tests and the test driver.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicI64,
    elapsed: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: EventTime) -> Arc<ManualClock> {
        Arc::new(ManualClock { now: AtomicI64::new(now.0), elapsed: AtomicI64::new(0) })
    }

    /// Moves both wall-clock and monotonic time forward.
    pub fn advance(&self, by: Duration) {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.now.fetch_add(micros, Ordering::SeqCst);
        self.elapsed.fetch_add(micros, Ordering::SeqCst);
    }

    /// Sets wall-clock time, as a correction by the administrator would; monotonic time stays.
    pub fn set(&self, now: EventTime) {
        self.now.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> EventTime {
        EventTime(self.now.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.elapsed.load(Ordering::SeqCst)).unwrap_or(0))
    }
}
