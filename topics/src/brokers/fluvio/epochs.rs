//! The thread that commits epochs: into the journal, then their outputs into the topics.

use super::book::Delivery;
use super::endpoint::Raw;
use super::record::{self, Outgoing};
use super::{Shared, dead, no_thread};
use crate::broker::{Answer, BrokerError, EpochCommit};
use crate::failpoint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Records by topic and partition.
type Numbered = BTreeMap<(String, u32), Vec<Raw>>;

/// An epoch, and who waits for it.
pub(super) type Order = (Box<EpochCommit>, Answer<()>);

/// The process's right to commit.
pub(super) struct Epochs {
    pub(super) orders: Sender<Order>,
    /// A commit has failed: nothing more is taken until the epochs were taken over again.
    failed: Arc<AtomicBool>,
}

impl Shared {
    /// The right to commit epochs, taken when it is first needed and after a failed commit. What
    /// the last epoch has not written to its topics yet, or may not have, is written first.
    pub(super) fn epochs(self: &Arc<Shared>) -> Result<Sender<Order>, BrokerError> {
        let mut epochs = self.epochs.lock();
        if let Some(open) = epochs.as_ref().filter(|open| !open.failed.load(Ordering::SeqCst)) {
            return Ok(open.orders.clone());
        }
        let nth = self.takeovers.fetch_add(1, Ordering::SeqCst);
        let _committing = self.committing.lock();
        let mut journal = self.journal.lock();
        journal.take_over(&format!("{}-{nth}", self.who))?;
        let delivery = journal.book.delivery.clone();
        self.deliver(self.announced(&delivery)?, &delivery)?;
        journal.shorten(false)?;
        drop(journal);
        let (orders, received) = channel();
        let failed = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::downgrade(self), failed.clone());
        let thread = std::thread::Builder::new().name("fluvio-epochs".to_owned()).spawn(move || run(&shared, &received, &flag));
        thread.map_err(no_thread)?;
        *epochs = Some(Epochs { orders: orders.clone(), failed });
        Ok(orders)
    }

    /// An epoch's outputs by partition, under its ids. Until each is written it counts as there and unread: the
    /// journal says already that the topology has come further.
    fn announced(&self, delivery: &Delivery) -> Result<Numbered, BrokerError> {
        let numbered = record::numbered(&delivery.outputs, "epochs", delivery.epoch)?;
        *self.delivering.lock() = numbered.iter().map(|(place, records)| (place.clone(), records.len() as u64)).collect();
        Ok(numbered)
    }

    /// Writes an epoch's outputs to their topics: again is harmless.
    fn deliver(&self, numbered: Numbered, delivery: &Delivery) -> Result<(), BrokerError> {
        for (place, records) in numbered {
            failpoint::hit("log.write.before");
            self.cluster.produce(&self.physical(&place.0), place.1, &records)?;
            self.delivering.lock().remove(&place);
        }
        self.write_letters(&delivery.letters, &delivery.replayed)
    }

    fn commit(&self, commit: &EpochCommit) -> Result<(), BrokerError> {
        failpoint::hit("log.epoch.before");
        let mut outputs: Vec<Outgoing> = Vec::new();
        for output in commit.outputs.iter().filter(|output| output.rows.num_rows() > 0) {
            self.spec(&output.topic.name)?;
            outputs.extend(record::encode(output)?);
        }
        let letters = commit.dead_letters.iter().map(dead::encode).collect::<Result<Vec<_>, _>>()?;
        let _committing = self.committing.lock();
        let mut journal = self.journal.lock();
        journal.commit(commit, outputs, letters)?;
        let delivery = journal.book.delivery.clone();
        let numbered = self.announced(&delivery)?;
        drop(journal);
        self.deliver(numbered, &delivery)?;
        self.journal.lock().shorten(false)?;
        self.wakeup.bump();
        failpoint::hit("log.epoch.after");
        Ok(())
    }
}

fn run(shared: &std::sync::Weak<Shared>, orders: &Receiver<Order>, failed: &AtomicBool) {
    while let Ok((commit, answer)) = orders.recv() {
        let outcome = match shared.upgrade() {
            Some(shared) if !failed.load(Ordering::SeqCst) => shared.commit(&commit),
            _ => Err(BrokerError::Closed),
        };
        if outcome.is_err() {
            failed.store(true, Ordering::SeqCst);
        }
        failpoint::hit("log.answer.before");
        // Nobody may be waiting any more, which is fine.
        drop(answer.send(outcome));
        failpoint::hit("log.answer.after");
    }
}
