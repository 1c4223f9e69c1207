//! A log in memory that can be read: topics of one commit each, and dead letters. What the query side
//! never does to a broker answers `Closed`.

use arrow::array::RecordBatch;
use parking_lot::Mutex;
use quikflow_topics::broker::*;
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct MemoryLog {
    /// Rows in the topic's whole schema, sorted by partition, each partition from offset 0.
    pub(super) topics: Mutex<Vec<(Arc<TopicSpec>, RecordBatch)>>,
    pub(super) letters: Mutex<Vec<DeadLetter>>,
    wakeup: Wakeup,
}

impl MemoryLog {
    pub(super) fn new() -> MemoryLog {
        MemoryLog::default()
    }

    fn rows(&self, topic: &str) -> Result<(Arc<TopicSpec>, RecordBatch), BrokerError> {
        let topics = self.topics.lock();
        let found = topics.iter().find(|(spec, _)| spec.name == topic);
        found.cloned().ok_or_else(|| BrokerError::UnknownTopic(topic.to_owned()))
    }
}

fn counts(spec: &TopicSpec, rows: &RecordBatch) -> Vec<u64> {
    use arrow::array::AsArray;
    let partitions = rows.column(0).as_primitive::<arrow::datatypes::UInt32Type>();
    let mut counts = vec![0; spec.partitions as usize];
    for partition in partitions.values() {
        counts[*partition as usize] += 1;
    }
    counts
}

struct Reader {
    spec: Arc<TopicSpec>,
    rows: RecordBatch,
    at: Positions,
}

struct MemorySlice {
    spec: Arc<TopicSpec>,
    rows: RecordBatch,
    parts: Vec<SlicePart>,
}

impl Slice for MemorySlice {
    fn topic(&self) -> &Arc<TopicSpec> {
        &self.spec
    }

    fn parts(&self) -> &[SlicePart] {
        &self.parts
    }

    fn bytes(&self) -> usize {
        self.rows.get_array_memory_size()
    }

    fn decode(&self, projection: &Projection) -> Result<RecordBatch, BrokerError> {
        let schema = self.rows.schema();
        let indices: Vec<usize> = projection.columns.iter().map(|c| schema.index_of(c).unwrap()).collect();
        Ok(self.rows.project(&indices).unwrap())
    }
}

impl TopicReader for Reader {
    fn poll(&mut self, max_rows: usize) -> Result<Option<Arc<dyn Slice>>, BrokerError> {
        let (mut begin, mut left) = (0, max_rows as u64);
        let (mut parts, mut pieces) = (Vec::new(), Vec::new());
        for (p, count) in (0u32..).map(PartitionId).zip(counts(&self.spec, &self.rows)) {
            let first = self.at.get(&p).map_or(0, |o| o.0).min(count);
            let rows = (count - first).min(left);
            if rows > 0 {
                pieces.push(self.rows.slice((begin + first) as usize, rows as usize));
                let (first, next) = (Offset(first), Offset(first + rows));
                let time = EventTime::MAX;
                parts.push(SlicePart {
                    partition: p,
                    first,
                    next,
                    rows: rows as u32,
                    max_event_time: time,
                    max_arrival_time: time,
                });
                self.at.insert(p, next);
                left -= rows;
            }
            begin += count;
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let rows = arrow::compute::concat_batches(&self.rows.schema(), &pieces).unwrap();
        Ok(Some(Arc::new(MemorySlice { spec: self.spec.clone(), rows, parts })))
    }

    fn positions(&self) -> Positions {
        self.at.clone()
    }
}

impl Broker for MemoryLog {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }
    fn ensure_topics(&self, _topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        Err(BrokerError::Closed)
    }
    fn topic(&self, name: &str) -> Option<Arc<TopicSpec>> {
        self.rows(name).ok().map(|(spec, _)| spec)
    }
    fn topics(&self) -> Vec<Arc<TopicSpec>> {
        self.topics.lock().iter().map(|(spec, _)| spec.clone()).collect()
    }
    fn append(&self, _append: Append) -> Result<Ticket<Appended>, BrokerError> {
        Err(BrokerError::Closed)
    }
    fn commit_epoch(&self, _commit: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        Err(BrokerError::Closed)
    }
    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        let (spec, rows) = self.rows(topic)?;
        Ok(Box::new(Reader { spec, rows, at: from.clone() }))
    }
    fn read_record(&self, _topic: &str, _partition: PartitionId, _offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        Err(BrokerError::Closed)
    }
    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        let (spec, rows) = self.rows(topic)?;
        let end = counts(&spec, &rows);
        let records = end.iter().sum();
        Ok(TopicStats { topic: topic.into(), start: vec![0; end.len()], end, records, chunks: 1, bytes: 1 })
    }
    fn group_offsets(&self, _group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        let topics = self.topics.lock();
        Ok(topics.iter().map(|(spec, _)| ((spec.name.clone(), PartitionId(0)), Offset(1))).collect())
    }
    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        Ok(vec!["sink:messages".into()])
    }
    fn report_progress(&self, _group: &str, _topic: &str, _positions: &Positions) -> Result<(), BrokerError> {
        Err(BrokerError::Closed)
    }
    fn topology_state(&self, _topology: &str) -> Result<TopologyState, BrokerError> {
        Err(BrokerError::Closed)
    }
    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        Ok(Epoch(0))
    }
    fn reset_topology(&self, _topology: &str, _outputs: &[String], _from: ResetFrom) -> Result<(), BrokerError> {
        Err(BrokerError::Closed)
    }
    fn generation(&self, _topic: &str) -> Result<u64, BrokerError> {
        Ok(3)
    }
    fn append_dead_letters(&self, _letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        Err(BrokerError::Closed)
    }
    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        let letters = self.letters.lock();
        let all = letters.iter().enumerate().map(|(i, l)| (i as u64 + 1, l)).rev();
        let fits = |(seq, l): &(u64, &DeadLetter)| filter.matches(l) && filter.before_seq.is_none_or(|b| *seq < b);
        Ok(all.filter(fits).take(filter.at_most()).map(|(seq, l)| (seq, l.clone())).collect())
    }
    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        let mut letters = self.letters.lock();
        let chosen = letters.iter_mut().filter(|l| ids.contains(&l.id));
        Ok(chosen.map(|l| l.status = status).count())
    }
    fn lane_line(&self, _producer: &str) -> Result<u64, BrokerError> {
        Ok(0)
    }
    fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
    fn close(&self) {}
}
