//! When an epoch is made, and of what.
//!
//! Knows no thread and no timely: it is asked for the next epoch with what the clocks show, reads
//! the log, lets time move, and says what the workers have to do and what will be committed with it.

use super::EngineError;
use super::core::{EpochWork, Gauge, SliceTask};
use super::graph::Graph;
use super::reading::Member;
use super::replay::Replays;
use super::source::{Feed, group};
use super::time::{SourceView, TopologyTime};
use crate::operator::Due;
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::{Epoch, EventTime, Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How much an epoch may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records.
    pub rows: usize,
    /// Stored bytes.
    pub bytes: usize,
    /// Records of one slice.
    pub slice_rows: usize,
}

/// An epoch, as it is handed to the workers, and what it commits besides their effects.
pub struct MadeEpoch {
    /// For the workers.
    pub work: Arc<EpochWork>,
    /// Stored bytes of its slices.
    pub bytes: usize,
    /// Records of its slices, each counted once.
    pub rows: usize,
    /// (group, topic, partition, next offset).
    pub offsets: Vec<(String, String, PartitionId, Offset)>,
    /// (index of the topology, its time at the end of the epoch) (R4).
    pub times: Vec<(usize, TopologyTime)>,
}

/// Makes epochs.
pub struct Scheduler {
    graph: Arc<Graph>,
    broker: Arc<dyn Broker>,
    feeds: Vec<Feed>,
    times: Vec<TopologyTime>,
    /// By topology, by (worker, node).
    due: Vec<BTreeMap<(usize, usize), Due>>,
    /// By topology: the watermark that its steps were told last.
    told: Vec<EventTime>,
    replays: Replays,
    /// Windows are held open by records that were not shown yet, and perhaps never are, or by another share
    /// that has not come to its end.
    hidden: bool,
    next: Epoch,
}

/// How often it is looked whether what holds windows open is gone.
const LOOK: Duration = Duration::from_millis(200);

impl Scheduler {
    /// Goes on after `last`, from the groups' committed offsets and the times restored.
    ///
    /// # Errors
    /// Storage errors.
    pub fn new(
        graph: Arc<Graph>,
        broker: Arc<dyn Broker>,
        times: Vec<TopologyTime>,
        last: Epoch,
    ) -> Result<Scheduler, EngineError> {
        let feeds = Feed::open_all(&graph, &broker)?;
        let due = vec![BTreeMap::new(); graph.topologies.len()];
        let told = vec![EventTime::MIN; times.len()];
        Ok(Scheduler {
            graph,
            broker,
            feeds,
            times,
            due,
            told,
            replays: Replays::default(),
            hidden: false,
            next: Epoch(last.0 + 1),
        })
    }

    /// Takes what keyed steps of `worker` wait for.
    pub fn note(&mut self, worker: usize, gauges: &[Gauge]) {
        for gauge in gauges {
            self.due[gauge.topology].insert((worker, gauge.node), gauge.due);
        }
    }

    /// An epoch is durable; returns whether dead letters were part of it.
    pub fn committed(&mut self, made: &MadeEpoch) -> bool {
        self.replays.settled(&made.work.replays)
    }

    /// Whether every feed has been read to the end of the log.
    pub fn at_end(&self) -> bool {
        self.feeds.iter().all(|feed| feed.at_end)
    }

    /// Whether a step holds records back until a time by the clock (`max_wait`): what they become
    /// is still to be written.
    pub fn holds(&self) -> bool {
        self.due.iter().flat_map(BTreeMap::values).any(|due| due.wall_clock.is_some())
    }

    fn due_of(&self, topology: usize) -> Due {
        self.due[topology].values().fold(Due::default(), |all, due| all.earliest(*due))
    }

    /// In how long time alone would call for an epoch.
    pub fn wait(&self, now: EventTime) -> Option<Duration> {
        let waits = self.times.iter().enumerate().filter_map(|(topology, time)| {
            let mut due = self.due_of(topology);
            if due.watermark.is_some_and(|at| at <= self.told[topology]) {
                // It was told and still asks: then it asks for every movement.
                due.watermark = Some(EventTime::MIN);
            }
            time.wait_for(&due, now)
        });
        waits.chain(self.hidden.then_some(LOOK)).min()
    }

    /// Reads what there is and lets time move; none when nothing calls for an epoch. `elapsed` is taken
    /// before reading, so that no partition counts as silent that was not; the wall clock after, so
    /// that no wait begins before its record could be read.
    ///
    /// # Errors
    /// Storage errors.
    pub fn make(&mut self, clock: &SharedClock, elapsed: Duration, limits: Limits) -> Result<Option<MadeEpoch>, EngineError> {
        let mut tasks = Vec::new();
        let mut touched = vec![false; self.times.len()];
        let mut views: Vec<Vec<SourceView>> =
            self.times.iter().map(|time| vec![SourceView::default(); time.sources.len()]).collect();
        let mut offsets: BTreeMap<(usize, String, PartitionId), Offset> = BTreeMap::new();
        let (mut rows, mut bytes) = (0, 0);
        // Each feed has its share, and may use what others leave.
        let share = limits.rows.div_ceil(self.feeds.len().max(1));
        for feed in &mut self.feeds {
            feed.ask_upstream(&self.broker, elapsed)?;
        }
        for index in 0..self.feeds.len() {
            let others = self.feeds.len() - index - 1;
            let most = limits.rows.saturating_sub(rows).saturating_sub(others * share / 2).max(1);
            let mut taken = 0;
            let feed = &mut self.feeds[index];
            while taken < most && bytes < limits.bytes {
                let room = (most - taken).min(limits.slice_rows);
                let Some(slice) = feed.poll(room, limits.bytes - bytes, taken == 0)? else { break };
                taken += slice.rows();
                bytes += slice.bytes();
                let mut starts: Vec<Arc<Vec<EventTime>>> = Vec::new();
                for (index, member) in feed.reading.members.iter().enumerate() {
                    let (parts, _) = feed.reading.parts(index, slice.as_ref());
                    touched[member.topology] |= !parts.is_empty();
                    let read = self.times[member.topology].sources[member.source].read(parts);
                    match starts.last() {
                        Some(last) if **last == read => starts.push(last.clone()),
                        _ => starts.push(Arc::new(read)),
                    }
                    for part in parts {
                        offsets.insert((member.topology, feed.reading.topic.name.clone(), part.partition), part.next);
                    }
                }
                tasks.push(SliceTask { seq: tasks.len() as u64, slice, reading: feed.reading.clone(), starts });
            }
            rows += taken;
        }
        // After all reading: whatever a slice was written together with was written before this.
        let answers = self.broker.answers();
        self.hidden = false;
        for feed in &self.feeds {
            let silent = feed.silent(&self.broker)?;
            let waits = |member: &Member| self.due_of(member.topology).watermark.is_some();
            self.hidden |= feed.at_end && !silent && feed.reading.members.iter().any(waits);
            for (index, member) in feed.reading.members.iter().enumerate() {
                let partitions = &self.times[member.topology].sources[member.source].partitions;
                let unread = feed.unread(&self.broker, index, &|partition| partitions.contains_key(&partition))?;
                views[member.topology][member.source] = SourceView { at_end: silent && answers, unread };
            }
        }
        self.hidden |= views.iter().flatten().any(|view| view.unread);
        Feed::join(&self.graph, &mut self.feeds);
        let replays = self.replays.take(&self.graph, &self.broker, &self.told, tasks.len() as u64)?;
        replays.iter().for_each(|task| touched[task.topology] = true);
        let now = clock.now();
        let epoch = self.next;
        let mut times = Vec::new();
        let mut epoch_times = Vec::with_capacity(self.times.len());
        for (topology, time) in self.times.iter_mut().enumerate() {
            time.tick(elapsed, &views[topology]);
            let moved = time.watermark > self.told[topology];
            let due = self.due[topology].values().fold(Due::default(), |all, due| all.earliest(*due));
            let called =
                (moved && due.watermark.is_some_and(|at| at <= time.watermark)) || due.wall_clock.is_some_and(|at| at <= now);
            if touched[topology] || called {
                self.told[topology] = time.watermark;
                times.push((topology, time.clone()));
                epoch_times.push(Some(time.epoch_time(epoch, now)));
            } else {
                epoch_times.push(None);
            }
        }
        if times.is_empty() {
            return Ok(None);
        }
        self.next = Epoch(epoch.0 + 1);
        let offsets = offsets
            .into_iter()
            .map(|((topology, topic, partition), next)| {
                (group(&self.graph.topologies[topology].stored_as), topic, partition, next)
            })
            .collect();
        let work = Arc::new(EpochWork { epoch, tasks, replays, times: epoch_times });
        Ok(Some(MadeEpoch { work, bytes, rows, offsets, times }))
    }

    /// An epoch without records that brings one topology's time to `end`: for tests, which let time
    /// run to its end.
    pub fn finish(&mut self, topology: usize, end: EventTime) -> MadeEpoch {
        let epoch = self.next;
        self.next = Epoch(epoch.0 + 1);
        let time = &mut self.times[topology];
        time.watermark = end;
        for source in &mut time.sources {
            source.watermark = end;
        }
        let mut times = vec![None; self.times.len()];
        times[topology] = Some(self.times[topology].epoch_time(epoch, end));
        MadeEpoch {
            work: Arc::new(EpochWork { epoch, tasks: Vec::new(), replays: Vec::new(), times }),
            bytes: 0,
            rows: 0,
            offsets: Vec::new(),
            times: vec![(topology, self.times[topology].clone())],
        }
    }
}
