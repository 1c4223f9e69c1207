//! One worker's operators, without timely: decode a slice and run what needs no state, apply an
//! epoch to keyed steps. The engine's shells and the test driver both call this.

use super::EngineError;
use super::books::{TopologyBooks, add_fates};
use super::graph::{Graph, PortKey, Target};
use super::output::to_topic;
use super::parcel::{Parcel, divide, owns};
use super::reading::Reading;
use super::replay::ReplayTask;
use crate::operator::{Counts, DeadRow, Due, Emit, EpochTime, LateRow, Operator, Rows};
use arrow::array::{ArrayRef, RecordBatch};
use quikflow_topics::broker::{Slice, StateKind, StatePiece, TopologyState};
use quikflow_topics::ids::{Epoch, EventTime};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A snapshot is due when the deltas since the last one have more bytes than this, and twice the snapshot's.
const SNAPSHOT_AFTER: usize = 4 << 20;

/// Rows that keyed steps emit at an epoch's end have this `seq` and their worker's index.
pub const AT_THE_END: u64 = 1 << 32;

/// A slice and who reads it.
#[derive(Clone)]
pub struct SliceTask {
    /// Its number within the epoch: rows are applied in this order.
    pub seq: u64,
    /// The records.
    pub slice: Arc<dyn Slice>,
    /// Who reads it, and which columns.
    pub reading: Arc<Reading>,
    /// The largest event time of each part's partition before the slice, for each reader.
    pub starts: Vec<Arc<Vec<EventTime>>>,
}

/// What a worker is handed.
pub enum Task {
    /// Records.
    Slice(SliceTask),
    /// A dead letter.
    Replay(Box<ReplayTask>),
}

/// All that workers need to know of an epoch.
pub struct EpochWork {
    /// Which.
    pub epoch: Epoch,
    /// Slice n is decoded on worker n % workers.
    pub tasks: Vec<SliceTask>,
    /// Dead letters that go in again, after the slices; each is run on worker seq % workers.
    pub replays: Vec<ReplayTask>,
    /// Time at its end, by topology; none for topologies that it does not touch.
    pub times: Vec<Option<EpochTime>>,
}

/// Rows for an output.
#[derive(Debug)]
pub struct OutRows {
    /// Index in the plan.
    pub topology: usize,
    /// Index in its outputs.
    pub output: usize,
    /// Order; see [`Parcel`].
    pub seq: u64,
    /// Order within `seq`.
    pub nth: u64,
    /// In the topic's `append_schema`.
    pub batch: RecordBatch,
    /// Index in the topology's sources.
    pub source: u32,
    /// Each row's partition and offset there.
    pub places: [ArrayRef; 2],
}

/// How a keyed step stands at the end of an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    /// Index in the plan.
    pub topology: usize,
    /// Index in its nodes.
    pub node: usize,
    /// Records whose fate is open.
    pub in_flight: u64,
    /// Bytes held.
    pub state_bytes: usize,
    /// What it waits for.
    pub due: Due,
}

/// What an epoch did on one worker.
#[derive(Debug, Default)]
pub struct Effects {
    /// Rows for topics.
    pub rows: Vec<OutRows>,
    /// Deltas and snapshots.
    pub state: Vec<StatePiece>,
    /// By topology; absent where nothing happened.
    pub books: BTreeMap<usize, TopologyBooks>,
    /// (topology, node, record).
    pub dead: Vec<(usize, usize, DeadRow)>,
    /// (topology, record).
    pub late: Vec<(usize, LateRow)>,
    /// (dead letter's id, why it cannot be replayed).
    pub refused: Vec<(String, String)>,
    /// Keyed steps of topologies touched.
    pub gauges: Vec<Gauge>,
}

/// How a keyed step's state is stored.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    deltas: usize,
    snapshot: usize,
    /// The pieces stored are of another number of workers: a snapshot replaces them.
    relayout: bool,
}

/// One worker's operators and what they did in epochs that are not complete yet.
pub struct Core {
    pub(super) graph: Arc<Graph>,
    worker: u32,
    workers: u32,
    pub(super) operators: Vec<Vec<Operator>>,
    stored: Vec<Vec<Stored>>,
    pub(super) effects: BTreeMap<Epoch, Effects>,
    nth: u64,
}

impl Core {
    /// Builds all operators for `worker` of `workers` and brings back their state (`states` is by topology).
    ///
    /// # Errors
    /// State that cannot be read.
    pub fn new(graph: Arc<Graph>, worker: u32, workers: u32, states: &[TopologyState]) -> Result<Core, EngineError> {
        let mut operators = Vec::new();
        let mut stored = Vec::new();
        for (topology, state) in graph.topologies.iter().zip(states) {
            let mut built: Vec<Operator> = topology.plan.nodes.iter().map(|node| node.step.build()).collect();
            let mut sizes = vec![Stored::default(); built.len()];
            for piece in &state.pieces {
                let Some(node) = topology.plan.nodes.iter().position(|node| node.name == piece.step) else { continue };
                let Operator::Keyed { apply, .. } = &mut built[node] else { continue };
                let whole = piece.kind == StateKind::Snapshot;
                apply.restore(&piece.bytes, whole, &|group| owns(group, worker, workers))?;
                let size = &mut sizes[node];
                size.relayout |= piece.shards != workers;
                if piece.shard == worker {
                    if whole {
                        *size = Stored { deltas: 0, snapshot: piece.bytes.len(), ..*size };
                    } else {
                        size.deltas += piece.bytes.len();
                    }
                }
            }
            operators.push(built);
            stored.push(sizes);
        }
        Ok(Core { graph, worker, workers, operators, stored, effects: BTreeMap::new(), nth: 0 })
    }

    /// How the keyed steps stand, of all topologies.
    pub fn gauges(&self) -> Vec<Gauge> {
        (0..self.operators.len()).flat_map(|topology| self.gauges_of(topology)).collect()
    }

    fn gauges_of(&self, topology: usize) -> impl Iterator<Item = Gauge> + '_ {
        (0..self.operators[topology].len()).filter_map(move |node| self.gauge(topology, node))
    }

    fn gauge(&self, topology: usize, node: usize) -> Option<Gauge> {
        match &self.operators[topology][node] {
            Operator::Keyed { apply, .. } => {
                Some(Gauge { topology, node, in_flight: apply.in_flight(), state_bytes: apply.state_bytes(), due: apply.due() })
            }
            Operator::Stateless(_) => None,
        }
    }

    /// Takes what a complete epoch did.
    pub fn take_effects(&mut self, work: &EpochWork) -> Effects {
        self.effects.remove(&work.epoch).unwrap_or_default()
    }

    /// Does a task.
    ///
    /// # Errors
    /// As [`Core::read`] and [`Core::replay`].
    pub fn take(&mut self, epoch: Epoch, task: &Task, parcels: &mut Vec<Parcel>) -> Result<(), EngineError> {
        match task {
            Task::Slice(task) => self.read(epoch, task, parcels),
            Task::Replay(task) => self.replay(epoch, task, parcels),
        }
    }

    /// Decodes a slice and runs it through all steps that need no state.
    ///
    /// # Errors
    /// A damaged slice; a failed operator.
    pub fn read(&mut self, epoch: Epoch, task: &SliceTask, parcels: &mut Vec<Parcel>) -> Result<(), EngineError> {
        for (member, batch) in task.reading.decode(task.slice.as_ref(), &task.starts)? {
            let rows = Rows { source: member.source as u32, batch };
            self.flow(epoch, member.topology, PortKey::Source(member.source), rows, task.seq, parcels)?;
        }
        Ok(())
    }

    /// Applies an epoch to the keyed steps of one level: parcels in the log's order, then the
    /// epoch's end, then what has changed is taken (R5).
    ///
    /// # Errors
    /// A failed operator.
    pub fn apply(
        &mut self,
        level: usize,
        work: &EpochWork,
        mut taken: Vec<Parcel>,
        parcels: &mut Vec<Parcel>,
    ) -> Result<(), EngineError> {
        taken.sort_by_key(|parcel| (parcel.topology, parcel.node, parcel.input, parcel.seq, parcel.nth));
        let seq = AT_THE_END + u64::from(self.worker);
        for parcel in taken {
            let (topology, node, input) = (parcel.topology as usize, parcel.node as usize, parcel.input as usize);
            let mut emit = Emit::default();
            let rows = parcel.rows.batch.num_rows() as u64;
            if let Operator::Keyed { apply, .. } = &mut self.operators[topology][node] {
                apply.on_rows(input, parcel.rows, &mut emit)?;
            }
            self.books(work.epoch, topology).steps[node].taken += rows;
            let emitted = self.absorb(work.epoch, topology, node, input, emit);
            for (port, rows) in emitted {
                self.flow(work.epoch, topology, PortKey::Node(node, port), rows, parcel.seq, parcels)?;
            }
        }
        let graph = self.graph.clone();
        for (topology, plan) in graph.topologies.iter().enumerate() {
            let Some(time) = &work.times[topology] else { continue };
            for node in (0..plan.levels.len()).filter(|node| plan.levels[*node] == level) {
                let mut emit = Emit::default();
                if let Operator::Keyed { apply, .. } = &mut self.operators[topology][node] {
                    apply.on_epoch_end(time, &mut emit)?;
                }
                let emitted = self.absorb(work.epoch, topology, node, 0, emit);
                self.store(work.epoch, topology, node);
                // As it stands at this epoch's end: the next epoch's rows may come before this one's
                // effects are taken.
                let gauge = self.gauge(topology, node);
                self.effects.entry(work.epoch).or_default().gauges.extend(gauge);
                for (port, rows) in emitted {
                    self.flow(work.epoch, topology, PortKey::Node(node, port), rows, seq, parcels)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a keyed step's changes of the epoch: a delta, or now and then a snapshot.
    fn store(&mut self, epoch: Epoch, topology: usize, node: usize) {
        let Operator::Keyed { apply, .. } = &mut self.operators[topology][node] else { return };
        let stored = &mut self.stored[topology][node];
        let delta = if stored.relayout { None } else { apply.delta() };
        let due = stored.deltas + delta.as_ref().map_or(0, Vec::len) > SNAPSHOT_AFTER.max(2 * stored.snapshot);
        let (kind, bytes) = if stored.relayout || (due && delta.is_some()) {
            let bytes = apply.snapshot();
            *stored = Stored { deltas: 0, snapshot: bytes.len(), relayout: false };
            (StateKind::Snapshot, bytes)
        } else if let Some(delta) = delta {
            stored.deltas += delta.len();
            (StateKind::Delta, delta)
        } else {
            return;
        };
        let plan = &self.graph.topologies[topology].plan;
        let piece = StatePiece {
            topology: self.graph.topologies[topology].stored_as.clone(),
            step: plan.nodes[node].name.clone(),
            shard: self.worker,
            shards: self.workers,
            kind,
            bytes,
        };
        self.effects.entry(epoch).or_default().state.push(piece);
    }

    pub(super) fn books(&mut self, epoch: Epoch, topology: usize) -> &mut TopologyBooks {
        let plan = &self.graph.topologies[topology].plan;
        self.effects.entry(epoch).or_default().books.entry(topology).or_insert_with(|| TopologyBooks::new(plan))
    }

    /// Books what an operator put out besides rows, and returns the rows.
    fn absorb(&mut self, epoch: Epoch, topology: usize, node: usize, input: usize, emit: Emit) -> Vec<(usize, Rows)> {
        let step = &mut self.books(epoch, topology).steps[node];
        add_fates(&mut step.inputs[input], &Counts { output: 0, ..emit.counts });
        let effects = self.effects.entry(epoch).or_default();
        effects.dead.extend(emit.dead.into_iter().map(|row| (topology, node, row)));
        effects.late.extend(emit.late.into_iter().map(|row| (topology, row)));
        emit.rows
    }

    /// Brings rows of a port to all who follow it, through stateless steps, until they leave for a
    /// topic or for a keyed step.
    pub(super) fn flow(
        &mut self,
        epoch: Epoch,
        topology: usize,
        port: PortKey,
        rows: Rows,
        seq: u64,
        parcels: &mut Vec<Parcel>,
    ) -> Result<(), EngineError> {
        let graph = self.graph.clone();
        let plan = &graph.topologies[topology];
        let mut waiting = vec![(port, rows)];
        while let Some((port, rows)) = waiting.pop() {
            let count = rows.batch.num_rows() as u64;
            if count == 0 {
                continue;
            }
            let books = self.books(epoch, topology);
            match port {
                PortKey::Source(index) => books.sources[index] += count,
                PortKey::Node(node, port) => books.steps[node].ports[port] += count,
            }
            for target in plan.followers.get(&port).map_or(&[][..], Vec::as_slice) {
                match *target {
                    Target::Output(output) => {
                        let batch = to_topic(&rows.batch, &plan.plan.outputs[output].topic.append_schema())?;
                        self.nth += 1;
                        let nth = self.nth;
                        self.books(epoch, topology).outputs[output] += count;
                        let effects = self.effects.entry(epoch).or_default();
                        let places = [rows.batch.column(0).clone(), rows.batch.column(1).clone()];
                        effects.rows.push(OutRows { topology, output, seq, nth, batch, source: rows.source, places });
                    }
                    Target::Step { node, input } => {
                        let emitted = self.enter(epoch, topology, (node, input), rows.clone(), seq, parcels)?;
                        waiting.extend(emitted.into_iter().rev().map(|(port, rows)| (PortKey::Node(node, port), rows)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands rows to a step. What a stateless one makes of them is returned, by port; what a keyed
    /// one prepares leaves as parcels.
    pub(super) fn enter(
        &mut self,
        epoch: Epoch,
        topology: usize,
        (node, input): (usize, usize),
        rows: Rows,
        seq: u64,
        parcels: &mut Vec<Parcel>,
    ) -> Result<Vec<(usize, Rows)>, EngineError> {
        self.books(epoch, topology).steps[node].inputs[input].input += rows.batch.num_rows() as u64;
        let mut emit = Emit { made: self.graph.topologies[topology].made[node], ..Emit::default() };
        match &mut self.operators[topology][node] {
            Operator::Stateless(operator) => operator.on_rows(rows, &mut emit)?,
            Operator::Keyed { prepare, .. } => prepare[input].on_rows(rows, &mut emit)?,
        }
        let emitted = self.absorb(epoch, topology, node, input, emit);
        let level = self.graph.topologies[topology].levels[node];
        if level == 0 {
            return Ok(emitted);
        }
        for (_, rows) in emitted {
            self.books(epoch, topology).steps[node].sent += rows.batch.num_rows() as u64;
            for (worker, rows) in divide(rows, self.workers)? {
                self.nth += 1;
                parcels.push(Parcel {
                    worker,
                    level: level as u32,
                    topology: topology as u32,
                    node: node as u32,
                    input: input as u32,
                    seq,
                    nth: self.nth,
                    rows,
                });
            }
        }
        Ok(Vec::new())
    }
}
