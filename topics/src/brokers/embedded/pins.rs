//! Which chunks slices still point at, so that merging and retention leave them alone.
//!
//! A reader takes the version, reads chunks, then pins them; if chunks went in between, the
//! version has moved (or the chunk is on its way out) and it reads again. So nobody waits while
//! holding a lock over disk access.

use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// (topic number, chunk)
type Key = (i64, u64);

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Key, u32>,
    going: HashSet<Key>,
    version: u64,
}

/// The pins of one broker.
#[derive(Debug, Default)]
pub(super) struct Pins {
    inner: Mutex<Inner>,
    gone: Condvar,
}

/// Holds a chunk until dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Arc<Pins>,
    key: Key,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut inner = self.pins.inner.lock();
        if let Some(count) = inner.held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                inner.held.remove(&self.key);
            }
        }
    }
}

impl Pins {
    /// To be taken before reading.
    pub(super) fn version(&self) -> u64 {
        self.inner.lock().version
    }

    /// Pins chunks read since `version`; none when some may have gone: read again.
    pub(super) fn pin(self: &Arc<Pins>, topic: i64, chunks: &[u64], version: u64) -> Option<Vec<Pin>> {
        let mut inner = self.inner.lock();
        if inner.version != version {
            return None;
        }
        if chunks.iter().any(|c| inner.going.contains(&(topic, *c))) {
            self.gone.wait_for(&mut inner, std::time::Duration::from_secs(1));
            return None;
        }
        let pin = |chunk: &u64| {
            let key = (topic, *chunk);
            *inner.held.entry(key).or_insert(0) += 1;
            Pin { pins: self.clone(), key }
        };
        Some(chunks.iter().map(pin).collect())
    }

    /// Marks chunks as going, unless one is pinned.
    pub(super) fn release(&self, topic: i64, chunks: &[u64]) -> bool {
        let mut inner = self.inner.lock();
        if chunks.iter().any(|c| inner.held.contains_key(&(topic, *c))) {
            return false;
        }
        inner.going.extend(chunks.iter().map(|c| (topic, *c)));
        true
    }

    /// The chunks marked have gone, or stay after all.
    pub(super) fn settle(&self, topic: i64, chunks: &[u64]) {
        let mut inner = self.inner.lock();
        for chunk in chunks {
            inner.going.remove(&(topic, *chunk));
        }
        inner.version += 1;
        self.gone.notify_all();
    }
}
