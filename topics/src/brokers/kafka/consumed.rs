//! Deletion behind the commit: records of a topic that one topology alone reads go once that topology
//! has committed what it made of them. Nobody reads them again.

use super::Shared;
use crate::broker::EpochCommit;
use crate::catalogue::Cleanup;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often records are deleted.
const EVERY: Duration = Duration::from_secs(10);

/// What has been read and committed, and not been deleted yet.
#[derive(Default)]
pub(super) struct Consumed {
    /// Topic → partition → before which offset.
    read: BTreeMap<String, BTreeMap<u32, u64>>,
    last: Option<Duration>,
    /// A deletion is under way.
    busy: Arc<AtomicBool>,
}

impl Consumed {
    /// An epoch was committed: now and then what was read so far is deleted, beside the next ones.
    pub(super) fn committed(&mut self, shared: &Arc<Shared>, commit: &EpochCommit) {
        for (_, topic, partition, next) in &commit.offsets {
            if shared.spec(topic).is_ok_and(|spec| spec.cleanup == Cleanup::Consumed) {
                self.read.entry(topic.clone()).or_default().insert(partition.0, next.0);
            }
        }
        let now = shared.options.clock.elapsed();
        let rested = now.saturating_sub(*self.last.get_or_insert(now)) >= EVERY;
        if self.read.is_empty() || !rested || self.busy.swap(true, Ordering::SeqCst) {
            return;
        }
        self.last = Some(now);
        let (read, busy, of) = (std::mem::take(&mut self.read), self.busy.clone(), shared.clone());
        let work = move || {
            for (topic, before) in read {
                // Not deleted now: with what is read later.
                if let Err(error) = of.admin.delete_records(&of.physical(&topic), before) {
                    tracing::warn!(%error, topic, "kafka: records that were read could not be deleted");
                }
            }
            busy.store(false, Ordering::SeqCst);
        };
        if let Err(error) = std::thread::Builder::new().name("kafka-consumed".to_owned()).spawn(work) {
            tracing::warn!(%error, "kafka: no thread to delete records that were read");
            self.busy.store(false, Ordering::SeqCst);
        }
    }
}
