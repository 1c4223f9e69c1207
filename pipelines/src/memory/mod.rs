//! A log in memory: what the test driver and cases run on. It keeps everything until it is
//! dropped; ids are not deduplicated and lanes are not kept, since nothing is sent to it twice.

mod reader;

use arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::compute::{concat_batches, filter_record_batch, not, take_record_batch};
use parking_lot::Mutex;
use quikflow_topics::broker::{
    Append, Appended, Broker, BrokerError, EpochCommit, Guarantee, Positions, ResetFrom, StateKind, StatePiece, Ticket,
    TopicReader, TopicStats, TopologyState, Wakeup,
};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::clock::SharedClock;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use quikflow_topics::partitioner::partition_of;
use quikflow_topics::schema::{ARRIVAL_TIME, KEY, OFFSET, PARTITION};
use quikflow_topics::share::{Work, note_last, share_of};
use reader::MemoryReader;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

#[derive(Clone)]
struct Topic {
    spec: Arc<TopicSpec>,
    /// One batch a commit: the whole schema, sorted by partition.
    commits: Vec<RecordBatch>,
    ends: Vec<u64>,
    generation: u64,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Topic>,
    offsets: BTreeMap<String, BTreeMap<(String, PartitionId), Offset>>,
    pieces: Vec<StatePiece>,
    meta: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    dead: Vec<DeadLetter>,
    epoch: Epoch,
    /// The last one of each share.
    epochs: BTreeMap<u32, Epoch>,
    commits_left: Option<usize>,
    /// Of the next commits, which are refused.
    refused: VecDeque<bool>,
    /// A partition whose new records are not shown, and those of each topic.
    hidden: Option<(u32, Vec<(String, RecordBatch)>)>,
}

/// The broker.
pub struct MemoryBroker {
    state: Arc<Mutex<State>>,
    wakeup: Wakeup,
    clock: SharedClock,
    shares: u32,
}

impl MemoryBroker {
    /// An empty log.
    pub fn new(clock: SharedClock) -> Arc<MemoryBroker> {
        MemoryBroker::shared(clock, 1)
    }

    /// An empty log for several engines that divide the work into so many shares; who has which is up to the caller.
    pub fn shared(clock: SharedClock, shares: u32) -> Arc<MemoryBroker> {
        Arc::new(MemoryBroker { state: Arc::default(), wakeup: Wakeup::default(), clock, shares })
    }

    /// From now on only so many epochs can be committed, then `Closed` is answered: as if the
    /// process ended there. `None`: no limit.
    pub fn limit_commits(&self, commits: Option<usize>) {
        self.state.lock().commits_left = commits;
    }

    /// Each of the next commits is refused where `true`, as by a disk that is full for a while.
    pub fn refuse_commits(&self, refused: impl IntoIterator<Item = bool>) {
        self.state.lock().refused = refused.into_iter().collect();
    }

    /// Appends to the partition given instead of the keys' own.
    ///
    /// # Errors
    /// Unknown topics and partitions.
    pub fn append_to(&self, append: Append, partition: Option<u32>) -> Result<(), BrokerError> {
        self.take(append, partition).map(drop)
    }

    fn take(&self, append: Append, partition: Option<u32>) -> Result<Appended, BrokerError> {
        let mut state = self.state.lock();
        let State { topics, hidden, .. } = &mut *state;
        let mut appended = Appended::default();
        for rows in &append.rows {
            let topic = topics.get_mut(&rows.topic.name).ok_or_else(|| BrokerError::UnknownTopic(rows.topic.name.clone()))?;
            let places = topic.append(&rows.rows, self.clock.now(), partition)?;
            if let Some((partition, hidden)) = hidden {
                hidden.push((rows.topic.name.clone(), topic.take_out(*partition)?));
            }
            appended.accepted += places.len() as u64;
            appended.positions.push(places.into_iter().map(Some).collect());
        }
        state.dead.extend(append.dead_letters);
        drop(state);
        self.wakeup.bump();
        Ok(appended)
    }

    /// From now on the partition's new records are not shown, as where a transaction has ended in the other
    /// partitions and not yet in this one; `None` shows them.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub fn hide(&self, partition: Option<u32>) -> Result<(), BrokerError> {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.hidden, partition.map(|partition| (partition, Vec::new())));
        for (topic, rows) in before.into_iter().flat_map(|(_, hidden)| hidden) {
            state.topics.get_mut(&topic).ok_or(BrokerError::UnknownTopic(topic))?.commits.push(rows);
        }
        drop(state);
        self.wakeup.bump();
        Ok(())
    }

    /// All records of a topic in its whole schema, in the order of commits.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub fn records(&self, topic: &str) -> Result<RecordBatch, BrokerError> {
        let state = self.state.lock();
        let topic = known(&state, topic)?;
        concat_batches(&topic.spec.schema(), &topic.commits).map_err(storage)
    }
}

fn storage(error: impl ToString) -> BrokerError {
    BrokerError::Storage(error.to_string())
}

fn known<'a>(state: &'a State, topic: &str) -> Result<&'a Topic, BrokerError> {
    state.topics.get(topic).ok_or_else(|| BrokerError::UnknownTopic(topic.to_owned()))
}

fn answered<T>(value: T) -> Ticket<T> {
    let (answer, ticket) = Ticket::new();
    // The ticket is still here, so it takes its answer.
    answer.send(Ok(value)).ok();
    ticket
}

fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, BrokerError> {
    let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<T>());
    column.ok_or_else(|| storage(format!("column `{name}` is missing or has another type")))
}

impl Topic {
    /// Takes a partition's rows out of the last commit.
    fn take_out(&mut self, partition: u32) -> Result<RecordBatch, BrokerError> {
        let commit = self.commits.pop().ok_or_else(|| storage("there is no commit"))?;
        let partitions: &UInt32Array = column(&commit, PARTITION)?;
        let hidden: BooleanArray = partitions.values().iter().map(|of| Some(*of == partition)).collect();
        self.commits.push(filter_record_batch(&commit, &not(&hidden).map_err(storage)?).map_err(storage)?);
        filter_record_batch(&commit, &hidden).map_err(storage)
    }

    /// Gives rows their partitions, offsets and arrival time; yields the places by row.
    fn append(&mut self, rows: &RecordBatch, now: EventTime, to: Option<u32>) -> Result<Vec<(PartitionId, Offset)>, BrokerError> {
        let keys: &StringArray = column(rows, KEY)?;
        if to.is_some_and(|to| to >= self.spec.partitions) {
            return Err(storage(format!("topic `{}` has only {} partitions", self.spec.name, self.spec.partitions)));
        }
        let own = |row| partition_of(keys.is_valid(row).then(|| keys.value(row)), self.spec.partitions).0;
        let partitions: Vec<u32> = (0..rows.num_rows()).map(|row| to.unwrap_or_else(|| own(row))).collect();
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        order.sort_by_key(|row| partitions[*row as usize]);
        let mut places = vec![(PartitionId(0), Offset(0)); rows.num_rows()];
        let mut offsets = Vec::with_capacity(order.len());
        for row in &order {
            let partition = partitions[*row as usize];
            let end = &mut self.ends[partition as usize];
            offsets.push(*end);
            places[*row as usize] = (PartitionId(partition), Offset(*end));
            *end += 1;
        }
        let sorted = take_record_batch(rows, &UInt32Array::from(order.clone())).map_err(storage)?;
        let schema = self.spec.schema();
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match field.name().as_str() {
                PARTITION => Arc::new(UInt32Array::from_iter_values(order.iter().map(|row| partitions[*row as usize]))),
                OFFSET => Arc::new(UInt64Array::from(offsets.clone())),
                ARRIVAL_TIME => Arc::new(TimestampMicrosecondArray::from(vec![now.0; order.len()]).with_timezone("UTC")),
                name => sorted
                    .column_by_name(name)
                    .cloned()
                    .unwrap_or_else(|| arrow::array::new_null_array(field.data_type(), order.len())),
            }
        });
        self.commits.push(RecordBatch::try_new(schema.clone(), columns.collect()).map_err(storage)?);
        Ok(places)
    }
}

impl Broker for MemoryBroker {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn ensure_topics(&self, topics: &[Arc<TopicSpec>]) -> Result<(), BrokerError> {
        let mut state = self.state.lock();
        for spec in topics {
            let ends = vec![0; spec.partitions as usize];
            let topic = Topic { spec: spec.clone(), commits: Vec::new(), ends, generation: 0 };
            state.topics.entry(spec.name.clone()).or_insert(topic);
        }
        Ok(())
    }

    fn topic(&self, name: &str) -> Option<Arc<TopicSpec>> {
        self.state.lock().topics.get(name).map(|topic| topic.spec.clone())
    }

    fn topics(&self) -> Vec<Arc<TopicSpec>> {
        self.state.lock().topics.values().map(|topic| topic.spec.clone()).collect()
    }

    fn append(&self, append: Append) -> Result<Ticket<Appended>, BrokerError> {
        self.take(append, None).map(answered)
    }

    fn commit_epoch(&self, commit: EpochCommit) -> Result<Ticket<()>, BrokerError> {
        let mut state = self.state.lock();
        if state.refused.pop_front() == Some(true) {
            return Err(BrokerError::Unavailable("the disk is full".to_owned()));
        }
        match &mut state.commits_left {
            Some(0) => return Err(BrokerError::Closed),
            Some(left) => *left -= 1,
            None => {}
        }
        let shares: BTreeSet<u32> = commit.meta.iter().map(|(of, ..)| share_of(of).1).collect();
        for share in shares {
            let last = state.epochs.entry(share).or_default();
            if commit.epoch <= *last {
                return Err(storage(format!("epoch {} after epoch {last} of share {share}", commit.epoch)));
            }
            *last = commit.epoch;
        }
        state.epoch = state.epoch.max(commit.epoch);
        for rows in &commit.outputs {
            let topic =
                state.topics.get_mut(&rows.topic.name).ok_or_else(|| BrokerError::UnknownTopic(rows.topic.name.clone()))?;
            topic.append(&rows.rows, self.clock.now(), None)?;
        }
        for piece in commit.state {
            let own = |other: &StatePiece| other.topology == piece.topology && other.step == piece.step;
            if piece.kind == StateKind::Snapshot {
                state.pieces.retain(|other| !own(other) || other.shard != piece.shard || other.shards != piece.shards);
            }
            let (shards, whole) = (piece.shards, piece.kind == StateKind::Snapshot);
            let all: Vec<u32> = state
                .pieces
                .iter()
                .filter(|other| own(other) && other.shards == shards && other.kind == StateKind::Snapshot)
                .map(|other| other.shard)
                .chain(whole.then_some(piece.shard))
                .collect();
            if (0..shards).all(|shard| all.contains(&shard)) {
                state.pieces.retain(|other| !own(other) || other.shards == shards);
            }
            state.pieces.push(piece);
        }
        for (group, topic, partition, next) in commit.offsets {
            state.offsets.entry(group).or_default().insert((topic, partition), next);
        }
        for (topology, name, value) in commit.meta {
            state.meta.entry(topology).or_default().insert(name, value);
        }
        for letter in commit.dead_letters {
            match state.dead.iter_mut().find(|known| known.id == letter.id) {
                Some(known) if known.status == DeadLetterStatus::Replaying => *known = letter,
                Some(_) => {}
                None => state.dead.push(letter),
            }
        }
        for letter in state.dead.iter_mut().filter(|letter| commit.replayed.contains(&letter.id)) {
            letter.status = DeadLetterStatus::Replayed;
        }
        drop(state);
        self.wakeup.bump();
        Ok(answered(()))
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn TopicReader>, BrokerError> {
        known(&self.state.lock(), topic)?;
        Ok(Box::new(MemoryReader {
            state: self.state.clone(),
            topic: topic.to_owned(),
            from: from.clone(),
            commit: 0,
            row: 0,
            positions: from.clone(),
        }))
    }

    fn read_record(&self, topic: &str, partition: PartitionId, offset: Offset) -> Result<Option<RecordBatch>, BrokerError> {
        let state = self.state.lock();
        for commit in &known(&state, topic)?.commits {
            let partitions: &UInt32Array = column(commit, PARTITION)?;
            let offsets: &UInt64Array = column(commit, OFFSET)?;
            if let Some(row) =
                (0..commit.num_rows()).find(|row| partitions.value(*row) == partition.0 && offsets.value(*row) == offset.0)
            {
                return Ok(Some(commit.slice(row, 1)));
            }
        }
        Ok(None)
    }

    fn stats(&self, topic: &str) -> Result<TopicStats, BrokerError> {
        let state = self.state.lock();
        let topic = known(&state, topic)?;
        Ok(TopicStats {
            topic: topic.spec.name.clone(),
            start: vec![0; topic.ends.len()],
            end: topic.ends.clone(),
            records: topic.ends.iter().sum(),
            chunks: topic.commits.len() as u64,
            bytes: topic.commits.iter().map(|commit| commit.get_array_memory_size() as u64).sum(),
        })
    }

    fn unread(&self, topic: &str, from: &Positions, _: bool) -> Result<bool, BrokerError> {
        let state = self.state.lock();
        let ends = &known(&state, topic)?.ends;
        Ok(from.iter().any(|(partition, next)| ends.get(partition.0 as usize).is_some_and(|end| next.0 < *end)))
    }

    fn group_offsets(&self, group: &str) -> Result<BTreeMap<(String, PartitionId), Offset>, BrokerError> {
        let state = self.state.lock();
        let of = |name: &&String| *name == group || (self.shares > 1 && share_of(name).0 == group);
        let mut offsets = BTreeMap::new();
        for (place, next) in state.offsets.keys().filter(of).flat_map(|name| state.offsets[name].clone()) {
            note_last(&mut offsets, place, next);
        }
        Ok(offsets)
    }

    fn groups(&self) -> Result<Vec<String>, BrokerError> {
        Ok(self.state.lock().offsets.keys().cloned().collect())
    }

    fn shares(&self, _: Work) -> u32 {
        self.shares
    }

    fn report_progress(&self, _group: &str, _topic: &str, _positions: &Positions) -> Result<(), BrokerError> {
        Ok(())
    }

    fn topology_state(&self, topology: &str) -> Result<TopologyState, BrokerError> {
        let state = self.state.lock();
        let pieces = state.pieces.iter().filter(|piece| piece.topology == topology).cloned().collect();
        Ok(TopologyState { pieces, meta: state.meta.get(topology).cloned().unwrap_or_default() })
    }

    fn last_epoch(&self) -> Result<Epoch, BrokerError> {
        Ok(self.state.lock().epoch)
    }

    fn reset_topology(&self, topology: &str, outputs: &[String], from: ResetFrom) -> Result<(), BrokerError> {
        let mut state = self.state.lock();
        state.pieces.retain(|piece| piece.topology != topology);
        state.meta.remove(topology);
        let group = format!("topology:{topology}");
        let before = state.offsets.remove(&group).unwrap_or_default();
        if from == ResetFrom::Latest {
            let mut ends = BTreeMap::new();
            for (topic, _) in before.keys() {
                for (partition, end) in known(&state, topic)?.ends.iter().enumerate() {
                    ends.insert((topic.clone(), PartitionId(partition as u32)), Offset(*end));
                }
            }
            state.offsets.insert(group, ends);
        } else {
            state.dead.retain(|letter| letter.topology.as_deref() != Some(topology) || !letter.id.starts_with("step:"));
        }
        for name in outputs {
            if let Some(topic) = state.topics.get_mut(name) {
                topic.commits.clear();
                topic.generation += 1;
            }
        }
        Ok(())
    }

    fn generation(&self, topic: &str) -> Result<u64, BrokerError> {
        Ok(known(&self.state.lock(), topic)?.generation)
    }

    fn append_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<Ticket<()>, BrokerError> {
        self.state.lock().dead.extend(letters);
        Ok(answered(()))
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        let state = self.state.lock();
        let letters = state
            .dead
            .iter()
            .enumerate()
            .rev()
            .filter(|(seq, letter)| filter.matches(letter) && filter.before_seq.is_none_or(|before| (*seq as u64) < before));
        Ok(letters.take(filter.at_most()).map(|(seq, letter)| (seq as u64, letter.clone())).collect())
    }

    fn mark_dead_letters(&self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        let mut state = self.state.lock();
        let mut marked = 0;
        for letter in state.dead.iter_mut().filter(|letter| ids.contains(&letter.id)) {
            letter.status = status;
            marked += 1;
        }
        drop(state);
        self.wakeup.bump();
        Ok(marked)
    }

    fn lane_line(&self, _producer: &str) -> Result<u64, BrokerError> {
        Ok(0)
    }

    fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }

    fn close(&self) {
        self.state.lock().commits_left = Some(0);
    }
}
