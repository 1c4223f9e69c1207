//! Where a partition's last record ends, and where its log does: between them stand the markers that
//! end transactions, which are no records and nobody's lag.
//!
//! Readers in this process note it when they come to an end. Of topics that nobody reads here it is
//! looked up, once a partition has come to rest.

use super::config::Client;
use super::watch::Watched;
use super::{FRESH, Shared};
use crate::broker::{BrokerError, Positions};
use crate::ids::PartitionId;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So long a partition has been at rest before it is looked into.
const REST: Duration = Duration::from_millis(300);
/// So many offsets before the end are looked at, first; where nothing is shown of them (a transaction of many records
/// was aborted), [`FURTHER`] times as many, until the start.
const LOOK: u64 = 64;
const FURTHER: u64 = 16;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of partitions' ends.
#[derive(Default)]
pub(super) struct Tails {
    /// (topic, partition) → (after the last record, end of the log).
    known: HashMap<(String, u32), (u64, u64)>,
    /// (topic, partition) → (end of the log, since when).
    seen: HashMap<(String, u32), (u64, Duration)>,
    reader: Option<Watched<Client>>,
}

impl Tails {
    /// Between `next` and `end` stand markers only.
    pub(super) fn remember(&mut self, topic: &str, partition: u32, next: u64, end: u64) {
        let tail = self.known.entry((topic.to_owned(), partition)).or_insert((next, end));
        *tail = if tail.1 == end { (tail.0.min(next), end) } else { (next, end) };
    }

    /// Takes markers off the ends.
    pub(super) fn cut(&self, topic: &str, start: &[u64], end: &mut [u64]) {
        for (partition, (end, start)) in (0_u32..).zip(end.iter_mut().zip(start)) {
            if let Some((next, _)) = self.known.get(&(topic.to_owned(), partition)).filter(|(_, at)| at == end) {
                *end = (*next).max(*start);
            }
        }
    }

    /// Partitions at rest of whose ends nothing is known: (partition, where to look from, end).
    fn unknown(&mut self, topic: &str, start: &[u64], end: &[u64], now: Duration) -> Vec<(u32, u64, u64)> {
        let mut unknown = Vec::new();
        for (partition, (start, end)) in (0_u32..).zip(start.iter().zip(end)) {
            let key = (topic.to_owned(), partition);
            let seen = self.seen.entry(key.clone()).or_insert((*end, now));
            if seen.0 != *end {
                *seen = (*end, now);
            }
            let rested = now.saturating_sub(seen.1) >= REST;
            if rested && end > start && self.known.get(&key).is_none_or(|(_, at)| at != end) {
                unknown.push((partition, end.saturating_sub(LOOK).max(*start), *end));
            }
        }
        unknown
    }
}

/// How far a topic has been written, by partition, whether or not it may be read yet.
pub(super) struct Written {
    ends: Vec<u64>,
    /// Slices that had been handed over when it was asked, and when that was.
    handed: u64,
    at: Duration,
}

impl Shared {
    /// Whether one of these partitions may still show a record, from that offset on, that was written before
    /// this call. What is written and not shown is in a transaction that is open, or that has ended in other
    /// partitions and not yet in this one; behind the last record of a partition that was read to its very
    /// end stand markers only.
    pub(super) fn unread(&self, topic: &str, from: &Positions) -> Result<bool, BrokerError> {
        if self.options.link.is_absent() {
            return Ok(true);
        }
        let ends = self.written(topic)?;
        let tails = self.tails.lock();
        let end = |partition: &PartitionId| ends.get(partition.0 as usize).copied().unwrap_or(0);
        Ok(from.iter().any(|(partition, next)| {
            let end = end(partition);
            let known = tails.known.get(&(topic.to_owned(), partition.0));
            next.0 < end && known.is_none_or(|(last, at)| *at != end || *last > next.0)
        }))
    }

    /// The ends of everything written, asked for after the last slice that was handed over: its
    /// transaction's records stood in all their partitions before any of them was shown.
    fn written(&self, topic: &str) -> Result<Vec<u64>, BrokerError> {
        let (handed, now) = (self.handed.load(Ordering::SeqCst), self.options.clock.elapsed());
        let fresh = |known: &&Written| known.handed == handed && now.saturating_sub(known.at) < FRESH;
        if let Some(known) = self.written.lock().get(topic).filter(fresh) {
            return Ok(known.ends.clone());
        }
        let ends = self.offsets(&*self.everything.get()?, self.spec(topic)?.as_ref(), Offset::End)?;
        self.written.lock().insert(topic.to_owned(), Written { ends: ends.clone(), handed, at: now });
        Ok(ends)
    }

    /// Looks at the ends of partitions of which nothing is known yet.
    pub(super) fn look_at_tails(&self, topic: &str, start: &[u64], end: &[u64], now: Duration) -> Result<(), BrokerError> {
        let mut tails = self.tails.lock();
        let unknown = tails.unknown(topic, start, end, now);
        if unknown.is_empty() {
            return Ok(());
        }
        let reader = match tails.reader.take() {
            Some(reader) if !reader.is_lost() => reader,
            _ => self.options.quick_reader()?,
        };
        let (mut asked, mut back) = (unknown, LOOK);
        while !asked.is_empty() {
            let found = look(&reader, &self.physical(topic), &asked).unwrap_or_default();
            back = back.saturating_mul(FURTHER);
            let begin = |partition: u32| start.get(partition as usize).copied().unwrap_or(0);
            asked.clear();
            for (partition, from, last, end) in found {
                if last.is_none() && from > begin(partition) {
                    asked.push((partition, end.saturating_sub(back).max(begin(partition)), end));
                } else {
                    tails.remember(topic, partition, last.unwrap_or(from), end);
                }
            }
        }
        tails.reader = Some(reader);
        Ok(())
    }
}

/// A partition, from where it was looked at, after the last record that is shown from there on, its end.
type Looked = (u32, u64, Option<u64>, u64);

/// Looks at partitions (which, from where, to where) and returns those that answered.
fn look(reader: &Client, physical: &str, asked: &[(u32, u64, u64)]) -> Result<Vec<Looked>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, from, _) in asked {
        let at = Offset::Offset(i64::try_from(*from).unwrap_or(i64::MAX));
        list.add_partition_offset(physical, i32::try_from(*partition).unwrap_or(i32::MAX), at)?;
    }
    reader.assign(&list)?;
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    let mut ended: Vec<u32> = Vec::new();
    while ended.len() < asked.len() {
        match reader.poll(ANSWER) {
            Some(Ok(message)) => {
                let partition = u32::try_from(message.partition()).unwrap_or(0);
                last.insert(partition, u64::try_from(message.offset()).unwrap_or(0) + 1);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => ended.extend(u32::try_from(partition)),
            _ => break,
        }
    }
    reader.unassign()?;
    let of = |partition: &u32| asked.iter().find(|(asked, ..)| asked == partition);
    let found = ended.iter().filter_map(of).map(|(partition, from, end)| (*partition, *from, last.get(partition).copied(), *end));
    Ok(found.collect())
}
