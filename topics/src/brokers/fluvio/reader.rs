//! Reading a topic: each partition from its place on, repeats left out.

use super::Shared;
use super::record::incoming;
use super::sieve::Sieve;
use crate::broker::{BrokerError, Positions, Slice, TopicReader};
use crate::brokers::records::{Incoming, RecordSlice};
use crate::catalogue::TopicSpec;
use crate::ids::{Offset, PartitionId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Records of each partition asked for in one call.
const STEP: usize = 1024;
/// Before its first record a reader looks at so many earlier ones, to know their writers' numbers:
/// a repeat further behind the record it repeats is not known as one.
const BEHIND: u64 = 65_536;

/// See [`TopicReader`].
pub(super) struct FluvioReader {
    shared: Arc<Shared>,
    topic: Arc<TopicSpec>,
    physical: String,
    /// By partition: the next offset to be fetched.
    next: Vec<u64>,
    /// By partition: the next offset to be handed out.
    positions: Vec<u64>,
    /// By partition: made with the first record.
    sieves: Vec<Option<Sieve>>,
    fetched: VecDeque<Incoming>,
}

impl FluvioReader {
    pub(super) fn open(shared: &Arc<Shared>, topic: Arc<TopicSpec>, from: &Positions) -> Result<FluvioReader, BrokerError> {
        let mut positions = shared.floors(&topic)?;
        for (partition, offset) in from {
            if let Some(position) = positions.get_mut(partition.0 as usize) {
                *position = (*position).max(offset.0);
            }
        }
        let physical = shared.physical(&topic.name);
        let sieves = vec![None; positions.len()];
        Ok(FluvioReader {
            shared: shared.clone(),
            topic,
            physical,
            next: positions.clone(),
            positions,
            sieves,
            fetched: VecDeque::new(),
        })
    }

    /// Fetches some of every partition, by one question; whether there was anything.
    fn fetch(&mut self) -> Result<bool, BrokerError> {
        let from: Vec<(u32, u64)> = (0..).zip(self.next.iter().copied()).collect();
        let portions = self.shared.cluster.read_all(&self.physical, &from, STEP)?;
        let mut any = false;
        for ((number, from), portion) in from.into_iter().zip(portions) {
            if portion.records.is_empty() {
                continue;
            }
            any = true;
            let partition = number as usize;
            let sieve = match self.sieves[partition].take() {
                Some(sieve) => sieve,
                None => self.sieve_at(number, from)?,
            };
            let sieve = self.sieves[partition].insert(sieve);
            for record in portion.records {
                self.next[partition] = record.offset + 1;
                let (record, id) = incoming(number, record);
                if sieve.passes(record.offset, &id) {
                    self.fetched.push_back(record);
                }
            }
        }
        Ok(any)
    }

    /// A sieve that knows the records before `at`.
    fn sieve_at(&self, partition: u32, at: u64) -> Result<Sieve, BrokerError> {
        let mut sieve = Sieve::default();
        let mut from = at.saturating_sub(BEHIND);
        while from < at {
            let found = self.shared.cluster.read(&self.physical, partition, from, STEP)?.records;
            let Some(last) = found.last() else { break };
            from = last.offset + 1;
            for record in found.into_iter().filter(|record| record.offset < at) {
                let (record, id) = incoming(partition, record);
                sieve.passes(record.offset, &id);
            }
        }
        Ok(sieve)
    }
}

impl TopicReader for FluvioReader {
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError> {
        if self.shared.is_closed() {
            return Err(BrokerError::Closed);
        }
        let partitions = self.next.len();
        // What was fetched may be repeats only, with more behind them.
        while self.fetched.is_empty() && self.fetch()? {}
        if self.fetched.is_empty() {
            // Read to the end; what stood behind the last record was repeats.
            for partition in 0..partitions {
                self.shared.remember_tail(&self.topic.name, partition, self.positions[partition], self.next[partition]);
            }
            return Ok(None);
        }
        let count = self.fetched.len().min(max_rows.max(1));
        self.shared.handed.fetch_add(1, Ordering::SeqCst);
        let slice = RecordSlice::new(&self.shared, self.topic.clone(), self.fetched.drain(..count).collect());
        for part in slice.parts() {
            if let Some(position) = self.positions.get_mut(part.partition.0 as usize) {
                *position = part.next.0;
            }
        }
        Ok(Some(Arc::new(slice)))
    }

    fn positions(&self) -> Positions {
        (0..).zip(&self.positions).map(|(partition, offset)| (PartitionId(partition), Offset(*offset))).collect()
    }
}
