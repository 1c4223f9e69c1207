//! Which sinks run in this process, where several share them (R19).
//!
//! A sink is whole in one share. Whoever is given its share goes on from the offsets that its store holds;
//! whoever gives it up ends the batch under way first. A process that was frozen meanwhile may still write a
//! batch: stores keep the higher version, so it changes nothing.

use super::Signal;
use parking_lot::{Condvar, Mutex};
use quikflow_topics::share::{ShareHolder, whole_in};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long giving up waits for batches under way: a store may be away for longer.
const LEAVE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Held {
    mine: BTreeSet<u32>,
    /// Sinks that are at work, by share.
    working: BTreeMap<u32, usize>,
}

/// The shares that fell to this process.
pub(crate) struct Shares {
    of: u32,
    held: Mutex<Held>,
    changed: Condvar,
    /// Lets sinks that sleep look again.
    wake: Box<dyn Fn() + Send + Sync>,
}

/// A sink's time at work; over when dropped.
pub(crate) struct Turn<'a> {
    shares: &'a Shares,
    share: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        if let Some(working) = held.working.get_mut(&self.share) {
            *working -= 1;
        }
        drop(held);
        self.shares.changed.notify_all();
    }
}

impl Shares {
    pub(crate) fn new(of: u32, wake: impl Fn() + Send + Sync + 'static) -> Arc<Shares> {
        Arc::new(Shares { of, held: Mutex::default(), changed: Condvar::new(), wake: Box::new(wake) })
    }

    /// Whether the sink's share is this process's now.
    pub(crate) fn mine(&self, sink: &str) -> bool {
        self.held.lock().mine.contains(&whole_in(sink, self.of))
    }

    /// Waits until the sink's share is this process's; none where a stop is asked for first.
    pub(crate) fn turn(&self, sink: &str, signal: &Signal) -> Option<Turn<'_>> {
        let share = whole_in(sink, self.of);
        let mut held = self.held.lock();
        while !held.mine.contains(&share) {
            if signal.stopping() {
                return None;
            }
            self.changed.wait(&mut held);
        }
        *held.working.entry(share).or_default() += 1;
        Some(Turn { shares: self, share })
    }

    /// Lets those who wait look again.
    pub(crate) fn wake(&self) {
        // Whoever has looked and not waited yet holds the lock.
        drop(self.held.lock());
        self.changed.notify_all();
        (self.wake)();
    }
}

impl ShareHolder for Shares {
    fn taken(&self, shares: &[u32]) {
        self.held.lock().mine = shares.iter().copied().collect();
        self.wake();
    }

    fn given_up(&self, shares: &[u32]) {
        self.held.lock().mine.retain(|share| !shares.contains(share));
        self.wake();
        let mut held = self.held.lock();
        let at_work = |held: &Held| shares.iter().any(|share| held.working.get(share).is_some_and(|working| *working > 0));
        while at_work(&held) {
            if self.changed.wait_for(&mut held, LEAVE).timed_out() {
                tracing::warn!("a sink that is given up has not ended its batch yet; whoever has it next may write it again");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_is_given_up_when_its_batch_has_ended() {
        let (shares, signal) = (Shares::new(4, || ()), Arc::new(Signal::new()));
        let share = whole_in("a", 4);
        shares.taken(&[share]);
        assert!(shares.mine("a"));
        let (started, ended) = (std::sync::Barrier::new(2), Mutex::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let turn = shares.turn("a", &signal);
                assert!(turn.is_some());
                started.wait();
                while shares.mine("a") {
                    std::thread::yield_now();
                }
                *ended.lock() = true;
                drop(turn);
            });
            started.wait();
            shares.given_up(&[share]);
            assert!(*ended.lock(), "it was given up in the middle of a batch");
        });
        assert!(!shares.mine("a"));
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_share() {
        let (shares, signal) = (Shares::new(4, || ()), Arc::new(Signal::new()));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| shares.turn("a", &signal).is_none());
            signal.stop(Duration::ZERO);
            shares.wake();
            assert!(waits.join().is_ok_and(|ended| ended));
        });
    }
}
