//! What changes in tables, told to whoever follows them at that time. Nothing is kept: who was not there, or
//! was too slow, is told to read the table again.
//!
//! Tables of `store = "redis"` tell their changes (badges, presence): the embedded one within its process, Redis by
//! pub/sub to every process.

use crate::store::StoreError;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Changes that wait for a slow follower; more, and it has missed some.
const WAITING: usize = 64;

/// What has happened to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The rows of these ids are others now, or gone: the key's values joined by `/`; of a table of counts the users.
    Keys(Arc<[String]>),
    /// Some changes may not have been told: read the table. The first that a follower is told.
    Missed,
}

/// Tables that can be followed.
pub trait Changes: Send + Sync {
    /// Follows a table from now on.
    ///
    /// # Errors
    /// `BadRequest` for an unknown table, and one whose store tells no changes.
    fn follow(&self, table: &str) -> Result<Follower, StoreError>;
}

/// Follows a table; each change comes once.
#[derive(Debug)]
pub struct Follower {
    receiver: broadcast::Receiver<Change>,
    /// Whether it has still to be told to read the table.
    begins: bool,
}

impl Follower {
    /// The next change; none where no more will come. Giving up waiting loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        if std::mem::take(&mut self.begins) {
            return Some(Change::Missed);
        }
        match self.receiver.recv().await {
            Ok(change) => Some(change),
            Err(RecvError::Lagged(_)) => Some(Change::Missed),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Passes changes on.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    tables: RwLock<BTreeMap<String, broadcast::Sender<Change>>>,
    /// Whether changes reach it now.
    hears: AtomicBool,
}

impl Hub {
    /// Follows a table.
    pub(crate) fn follow(&self, table: &str) -> Follower {
        let mut tables = self.tables.write();
        let sender = tables.entry(table.to_owned()).or_insert_with(|| broadcast::Sender::new(WAITING));
        // In this order: whoever hears after the receiver is there tells it so.
        let receiver = sender.subscribe();
        Follower { receiver, begins: self.hears.load(Ordering::SeqCst) }
    }

    /// Whether anyone follows a table.
    pub(crate) fn is_followed(&self, table: &str) -> bool {
        self.tables.read().get(table).is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Tells a table's followers.
    pub(crate) fn tell(&self, table: &str, change: Change) {
        if let Some(sender) = self.tables.read().get(table) {
            // An error says that nobody follows.
            drop(sender.send(change));
        }
    }

    /// From now on changes reach it: all followers are told to read their tables.
    pub(crate) fn hears(&self) {
        let tables = self.tables.write();
        self.hears.store(true, Ordering::SeqCst);
        for sender in tables.values() {
            drop(sender.send(Change::Missed));
        }
    }

    /// Changes do not reach it any more.
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only Redis is listened to from afar"))]
    pub(crate) fn is_deaf(&self) {
        self.hears.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[&str]) -> Change {
        Change::Keys(of.iter().map(|key| (*key).to_owned()).collect())
    }

    #[tokio::test]
    async fn a_follower_reads_first_and_then_hears_each_change_of_its_table() {
        let hub = Hub::default();
        let mut early = hub.follow("t");
        hub.hears();
        let mut late = hub.follow("t");
        hub.tell("t", keys(&["a"]));
        hub.tell("other", keys(&["b"]));
        hub.tell("t", keys(&["c"]));
        for follower in [&mut early, &mut late] {
            for expected in [Change::Missed, keys(&["a"]), keys(&["c"])] {
                assert_eq!(follower.next().await, Some(expected));
            }
        }
        assert!(hub.is_followed("t") && !hub.is_followed("other"));
        drop((early, late));
        assert!(!hub.is_followed("t"));
    }

    #[tokio::test]
    async fn who_is_too_slow_or_was_cut_off_reads_again() {
        let hub = Hub::default();
        hub.hears();
        let mut follower = hub.follow("t");
        assert_eq!(follower.next().await, Some(Change::Missed));
        (0..=WAITING).for_each(|number| hub.tell("t", keys(&[&number.to_string()])));
        assert_eq!(follower.next().await, Some(Change::Missed));
        assert_eq!(follower.next().await, Some(keys(&["1"])));
        let mut follower = hub.follow("t");
        hub.is_deaf();
        assert_eq!(follower.next().await, Some(Change::Missed));
        let mut cut_off = hub.follow("t");
        hub.hears();
        assert_eq!((follower.next().await, cut_off.next().await), (Some(Change::Missed), Some(Change::Missed)));
        drop(hub);
        assert_eq!(follower.next().await, None);
    }
}
