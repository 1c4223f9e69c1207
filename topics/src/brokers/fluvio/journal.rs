//! The journal: epochs are committed in it, then written to their topics.
//!
//! Fluvio has no transactions, so an epoch is one entry of the journal: outputs, state, meta,
//! offsets, dead letters. What counts is in the book; only then are the outputs written to their
//! topics, each under (epoch, place). A process that dies in between leaves the entry, and whoever
//! takes over writes the outputs again under the same ids, so readers pass each once.
//!
//! A write whose answer was lost may have happened. So nothing is believed but what is read back:
//! an entry is committed when it is found to count.

use super::book::{Assembler, Book, Bytes, Entry, Kind};
use super::endpoint::{Cluster, Fault, Raw};
use crate::broker::{BrokerError, EpochCommit};
use crate::failpoint;

/// Records behind the last whole book after which a new one is written.
const LONG: u64 = 5_000;

/// The journal, read as far as `next`.
pub(super) struct Journal {
    cluster: Cluster,
    topic: String,
    /// Where the last whole book begins: its newest record says so.
    starts: String,
    pub(super) book: Book,
    assembler: Assembler,
    begun: u64,
    next: u64,
    /// What this process took over as, if it has.
    mine: Option<(u64, String)>,
}

fn records(parts: Vec<Vec<u8>>) -> Vec<Raw> {
    parts.into_iter().map(|value| Raw { key: None, value }).collect()
}

fn taken_over() -> BrokerError {
    BrokerError::Storage("fluvio: another process has taken over the epochs; only one runs the pipelines".to_owned())
}

impl Journal {
    /// Topics: the entries, and where whole books begin.
    pub(super) fn open(cluster: &Cluster, topic: &str, starts: &str, keep: bool) -> Result<Journal, BrokerError> {
        let (low, high) = cluster.bounds_of_one(starts)?;
        let last = if high > low { cluster.record(starts, 0, high - 1)? } else { None };
        let said = last.and_then(|found| String::from_utf8(found.value).ok()).and_then(|text| text.parse::<u64>().ok());
        let (kept, _) = cluster.bounds_of_one(topic)?;
        let begun = said.unwrap_or(0);
        if kept > begun {
            return Err(BrokerError::Corrupt(format!(
                "topic `{topic}` of Fluvio keeps its entries from {kept} on only, the state begins at {begun}"
            )));
        }
        Ok(Journal {
            cluster: cluster.clone(),
            topic: topic.to_owned(),
            starts: starts.to_owned(),
            book: Book::new(keep),
            assembler: Assembler::default(),
            begun,
            next: begun,
            mine: None,
        })
    }

    /// Reads what was written since.
    pub(super) fn catch_up(&mut self) -> Result<(), BrokerError> {
        self.cluster.follow(&self.topic, &mut self.next, |record| {
            if let Some(entry) = self.assembler.take(record.offset, &record.value)? {
                self.book.take(entry);
            }
            Ok(())
        })
    }

    /// Whether this process is the one whose entries count.
    pub(super) fn is_mine(&self) -> bool {
        self.mine.as_ref().is_some_and(|(by, who)| *by == self.book.by && *who == self.book.who)
    }

    /// Takes over from whoever wrote before.
    pub(super) fn take_over(&mut self, who: &str) -> Result<(), BrokerError> {
        let cluster = self.cluster.clone();
        let mut attempt = cluster.attempt();
        self.catch_up()?;
        loop {
            let by = self.book.by + 1;
            let fault = self.write(&records(Entry::new(Kind::Takeover, by, who, 0).parts()?.1));
            self.catch_up()?;
            if self.book.by == by && self.book.who == who {
                self.mine = Some((by, who.to_owned()));
                return Ok(());
            }
            let fault = fault.unwrap_or_else(|| Fault::Lost("another process took over at the same moment".to_owned()));
            attempt.again("taking over the epochs", &fault)?;
        }
    }

    /// Writes an entry's records once, come what may; the fault, if there was one.
    fn write(&self, records: &[Raw]) -> Option<Fault> {
        self.cluster.once(|endpoint| endpoint.produce(&self.topic, 0, records)).err()
    }

    /// Writes an entry until it is found to count.
    pub(super) fn append(&mut self, change: impl FnOnce(&Book, &mut Entry)) -> Result<(), BrokerError> {
        let Some((by, who)) = self.mine.clone() else { return Err(taken_over()) };
        self.catch_up()?;
        let mut entry = Entry::new(Kind::Change, by, &who, self.book.seq + 1);
        change(&self.book, &mut entry);
        self.settle(entry)
    }

    fn settle(&mut self, entry: Entry) -> Result<(), BrokerError> {
        let (seq, (id, parts)) = (entry.seq, entry.parts()?);
        let records = records(parts);
        self.assembler.expect(id, entry);
        let cluster = self.cluster.clone();
        let mut attempt = cluster.attempt();
        loop {
            if !self.is_mine() {
                return Err(taken_over());
            }
            let fault = self.write(&records);
            self.catch_up()?;
            if self.is_mine() && self.book.seq >= seq {
                return Ok(());
            }
            if !self.is_mine() {
                return Err(taken_over());
            }
            let fault = fault.unwrap_or_else(|| Fault::Lost("the entry was answered and is not there yet".to_owned()));
            attempt.again("committing to the journal", &fault)?;
        }
    }

    /// Commits an epoch: from here on it has happened, whatever becomes of this process.
    pub(super) fn commit(
        &mut self,
        commit: &EpochCommit,
        outputs: Vec<super::record::Outgoing>,
        letters: Vec<String>,
    ) -> Result<(), BrokerError> {
        if commit.epoch.0 <= self.book.epoch {
            let (epoch, last) = (commit.epoch, self.book.epoch);
            return Err(BrokerError::Storage(format!("epoch {epoch} is not after the last one committed, {last}")));
        }
        failpoint::hit("log.commit.before");
        self.append(|_, entry| {
            entry.epoch = Some(commit.epoch.0);
            commit.state.iter().for_each(|piece| entry.add_piece(piece));
            let offsets = commit.offsets.iter();
            entry.offsets = offsets.map(|(g, t, p, next)| (g.clone(), t.clone(), p.0, next.0)).collect();
            let meta = commit.meta.iter();
            entry.meta = meta.map(|(t, name, value)| (t.clone(), name.clone(), Bytes(value.clone()))).collect();
            let replayed = commit.replayed.clone();
            entry.delivery = Some(super::book::Delivery { epoch: commit.epoch.0, outputs, letters, replayed });
        })?;
        failpoint::hit("log.commit.after");
        Ok(())
    }

    /// Writes the whole book where the way to it has become long, so that a start reads little.
    pub(super) fn shorten(&mut self, always: bool) -> Result<(), BrokerError> {
        if !always && self.next - self.begun < LONG {
            return Ok(());
        }
        let Some((by, who)) = self.mine.clone() else { return Ok(()) };
        let mut full = Journal::open(&self.cluster, &self.topic, &self.starts, true)?;
        full.catch_up()?;
        self.catch_up()?;
        if full.book.seq != self.book.seq {
            return Err(taken_over());
        }
        let begun = self.next;
        self.settle(full.book.whole(by, &who, full.book.seq + 1))?;
        let value = begun.to_string().into_bytes();
        self.cluster.produce(&self.starts, 0, &[Raw { key: None, value }])?;
        self.begun = begun;
        Ok(())
    }

    /// A book with the bytes of all pieces.
    pub(super) fn full(&self) -> Result<Book, BrokerError> {
        let mut full = Journal::open(&self.cluster, &self.topic, &self.starts, true)?;
        full.catch_up()?;
        Ok(full.book)
    }
}
