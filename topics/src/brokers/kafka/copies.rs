//! The copies of the state that this process keeps: of the shares it has, and as a standby of all others too.
//!
//! A thread follows `quikflow.state` while the process is a member of the group of the pipelines. Whoever takes a
//! share over asks here; a copy that gives nothing is thrown away and the share is read from Kafka.

use super::Shared;
use super::config::KafkaOptions;
use super::copy::{Copy, Read, Useless, remove};
use super::load::{self, Loaded};
use crate::broker::BrokerError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// So often the copies catch up.
const ROUND: Duration = Duration::from_secs(1);
/// The same where a file could not be written.
const RECOVERY: Duration = Duration::from_secs(60);

/// Where copies of the state are kept, and of what.
#[derive(Clone, Debug)]
pub struct StateCopies {
    /// A directory of this process alone.
    pub directory: PathBuf,
    /// Copies of all shares are kept, not only of those that fall to this process.
    pub standby: bool,
}

/// Bytes of state read when shares were taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// From copies of this process.
    pub copied: u64,
    /// From Kafka.
    pub from_kafka: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Copies {
    open: Mutex<BTreeMap<u32, Arc<Mutex<Option<Copy>>>>>,
    copied: AtomicU64,
    from_kafka: AtomicU64,
    following: AtomicBool,
}

impl Copies {
    pub(super) fn restored(&self) -> Restored {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Restored { copied: of(&self.copied), from_kafka: of(&self.from_kafka) }
    }

    /// A share as its last epoch left it.
    pub(super) fn load(&self, options: &KafkaOptions, topic: &str, share: u32) -> Result<Loaded, BrokerError> {
        let Some(kept) = &options.copies else { return load::load(options, topic, share) };
        match self.with(kept, options, topic, share, Copy::load) {
            Ok(Read { loaded, copied, from_kafka }) => {
                tracing::info!(share, copied, from_kafka, "kafka: the state of a share is read (bytes)");
                self.copied.fetch_add(copied, Ordering::Relaxed);
                self.from_kafka.fetch_add(from_kafka, Ordering::Relaxed);
                return Ok(loaded);
            }
            Err(Useless::Broker(error)) => return Err(error),
            Err(Useless::Stale) => {
                tracing::info!(share, "kafka: the copy of a share's state is not what its last epoch left, it is made anew");
            }
            Err(Useless::File(error)) => {
                tracing::warn!(share, error, directory = %kept.directory.display(), "the copy of a share's state cannot be used");
            }
        }
        self.discard(kept, share);
        load::load(options, topic, share)
    }

    fn with<T>(
        &self,
        kept: &StateCopies,
        options: &KafkaOptions,
        topic: &str,
        share: u32,
        call: impl FnOnce(&mut Copy) -> Result<T, Useless>,
    ) -> Result<T, Useless> {
        let slot = self.open.lock().entry(share).or_default().clone();
        let mut slot = slot.lock();
        if slot.is_none() {
            *slot = Some(Copy::open(&kept.directory, options, topic, share)?);
        }
        slot.as_mut().map_or(Err(Useless::Stale), call)
    }

    fn discard(&self, kept: &StateCopies, share: u32) {
        let slot = self.open.lock().entry(share).or_default().clone();
        let mut slot = slot.lock();
        slot.take();
        remove(&kept.directory, share);
    }

    /// Begins to follow the state, once.
    pub(super) fn start(&self, shared: &Arc<Shared>) -> Result<(), BrokerError> {
        if shared.options.copies.is_none() || self.following.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let weak = Arc::downgrade(shared);
        let thread = std::thread::Builder::new().name("kafka-copies".to_owned()).spawn(move || follow(&weak));
        thread.map(drop).map_err(|e| BrokerError::Storage(format!("kafka: no thread: {e}")))
    }

    /// Brings the copies up to date. Answers after what time to do it again.
    fn round(&self, shared: &Shared, kept: &StateCopies) -> Duration {
        let mine = shared.epochs.lock().as_ref().map(|epochs| epochs.shares.clone()).unwrap_or_default();
        let state = shared.own_topic("state");
        for share in (0..shared.shares).filter(|share| kept.standby || mine.contains(share)) {
            if shared.is_closed() {
                break;
            }
            match self.with(kept, &shared.options, &state, share, Copy::follow) {
                Ok(_) => {}
                Err(Useless::Broker(error)) => tracing::debug!(share, %error, "kafka: the copy of a share's state waits"),
                Err(Useless::File(error)) => {
                    tracing::warn!(share, error, "the copy of a share's state cannot be written, it is made anew");
                    self.discard(kept, share);
                    return RECOVERY;
                }
                Err(Useless::Stale) => self.discard(kept, share),
            }
        }
        ROUND
    }
}

/// Follows until the broker is closed.
fn follow(shared: &Weak<Shared>) {
    let mut pause = ROUND;
    loop {
        std::thread::sleep(pause);
        let Some(shared) = shared.upgrade().filter(|shared| !shared.is_closed()) else { return };
        let Some(kept) = shared.options.copies.clone() else { return };
        pause = shared.copies.round(&shared, &kept);
    }
}
