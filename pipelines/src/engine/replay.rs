//! Dead letters of steps on their second way (R14): the record goes in again at the step that
//! failed, within an epoch that marks the letter as replayed, so it is applied once.
//!
//! What the step takes is made from the record anew, by the steps before it. Where that would not
//! be the very rows that failed (behind a step with state, or one of several rows of a record), the
//! letter stays open and says why. A record in again is late where a window of it has closed.

use super::EngineError;
use super::core::Core;
use super::graph::{Graph, PortKey, TopologyGraph};
use super::parcel::Parcel;
use crate::operator::{Emit, Operator, Rows};
use crate::plan::{Port, SourcePlan};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, new_null_array};
use quikflow_topics::broker::{Broker, BrokerError};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::{Epoch, EventTime};
use quikflow_topics::schema::WATERMARK;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Letters of a topology taken in one epoch.
const AT_ONCE: usize = 100;
/// What parts a letter's message from why it was not replayed.
const NOT_REPLAYED: &str = "; not replayed: ";

/// A dead letter that an epoch takes.
#[derive(Clone)]
pub struct ReplayTask {
    /// Its number within the epoch, after all slices.
    pub seq: u64,
    /// The letter.
    pub letter: DeadLetter,
    /// Index of the topology in the plan.
    pub topology: usize,
    /// Where the record goes in again, or why it cannot.
    pub entry: Result<Entry, String>,
}

/// Where a record goes in again.
#[derive(Clone)]
pub struct Entry {
    node: usize,
    input: usize,
    /// The steps before it, none with state: (node, port by which rows leave it).
    way: Vec<(usize, usize)>,
    rows: Rows,
}

impl ReplayTask {
    /// The letter, open again, with the reason.
    pub fn open_again(&self, reason: &str, now: EventTime) -> DeadLetter {
        let before = self.letter.message.split(NOT_REPLAYED).next().unwrap_or_default();
        DeadLetter {
            at: now,
            message: format!("{before}{NOT_REPLAYED}{reason}"),
            status: DeadLetterStatus::Open,
            ..self.letter.clone()
        }
    }
}

/// The letters that epochs in flight have taken.
#[derive(Default)]
pub struct Replays {
    taken: BTreeSet<String>,
}

impl Replays {
    /// The letters that wait for their replay, in the order in which they died. `horizons` is by
    /// topology: the watermark that its steps were told last.
    ///
    /// # Errors
    /// Storage errors.
    pub fn take(
        &mut self,
        graph: &Graph,
        broker: &Arc<dyn Broker>,
        horizons: &[EventTime],
        first_seq: u64,
    ) -> Result<Vec<ReplayTask>, BrokerError> {
        let mut tasks = Vec::new();
        for (index, topology) in graph.topologies.iter().enumerate() {
            let filter = DeadLetterFilter {
                topology: Some(topology.plan.name.clone()),
                status: Some(DeadLetterStatus::Replaying),
                limit: AT_ONCE,
                ..DeadLetterFilter::default()
            };
            for (_, letter) in broker.dead_letters(&filter)?.into_iter().rev() {
                let here = letter.origin.as_ref().is_none_or(|origin| topology.answers_for(&origin.topic, origin.partition));
                if here && letter.id.starts_with("step:") && self.taken.insert(letter.id.clone()) {
                    let entry = entry(topology, &letter, broker, horizons[index])?;
                    tasks.push(ReplayTask { seq: first_seq + tasks.len() as u64, letter, topology: index, entry });
                }
            }
        }
        Ok(tasks)
    }

    /// The epoch that took them is durable; returns whether there were any.
    pub fn settled(&mut self, tasks: &[ReplayTask]) -> bool {
        self.taken.retain(|id| tasks.iter().all(|task| task.letter.id != *id));
        !tasks.is_empty()
    }
}

fn entry(
    topology: &TopologyGraph,
    letter: &DeadLetter,
    broker: &Arc<dyn Broker>,
    horizon: EventTime,
) -> Result<Result<Entry, String>, BrokerError> {
    let plan = &topology.plan;
    let step = letter.step.as_deref().unwrap_or_default();
    let Some(node) = plan.nodes.iter().position(|node| node.name == step) else {
        return Ok(Err(format!("topology `{}` has no step `{step}` any more", plan.name)));
    };
    let Some(origin) = &letter.origin else { return Ok(Err("the letter has no origin".to_owned())) };
    let sources = (0..plan.sources.len()).filter(|source| plan.sources[*source].topic.name == origin.topic);
    let mut ways: Vec<(usize, usize, Vec<(usize, usize)>)> = Vec::new();
    for source in sources {
        for input in 0..plan.nodes[node].inputs.len() {
            ways.extend(ways_to(topology, node, input, source).into_iter().map(|way| (source, input, way)));
        }
    }
    let (source, input, way) = match ways.len() {
        0 => return Ok(Err(format!("step `{step}` takes no records of topic `{}` any more", origin.topic))),
        1 => ways.remove(0),
        _ => return Ok(Err(format!("records of topic `{}` come to step `{step}` in several ways", origin.topic))),
    };
    if topology.share.is_some() && plan.sources[source].whole.is_some() {
        return Ok(Err(format!(
            "every share of the work reads table `{}` for itself; mend the topology, then `quikflow reset --topology {}` \
             rebuilds it",
            origin.topic, plan.name
        )));
    }
    if let Some((keyed, _)) = way.iter().find(|(node, _)| topology.levels[*node] > 0) {
        return Ok(Err(format!(
            "step `{step}` stands behind `{}`, which keeps state and has taken the record; mend the topology, then \
             `quikflow reset --topology {}` rebuilds it",
            plan.nodes[*keyed].name, plan.name
        )));
    }
    let Some(record) = broker.read_record(&origin.topic, origin.partition, origin.offset)? else {
        return Ok(Err("its record is no longer in the topic".to_owned()));
    };
    let rows = rows_of(&plan.sources[source], &record, horizon).map(|batch| Rows { source: source as u32, batch });
    Ok(rows.map(|rows| Entry { node, input, way, rows }).map_err(|error| error.to_string()))
}

/// The ways from a source to an input of a node.
fn ways_to(topology: &TopologyGraph, node: usize, input: usize, source: usize) -> Vec<Vec<(usize, usize)>> {
    let mut ways = Vec::new();
    for port in &topology.plan.nodes[node].inputs[input] {
        match *port {
            Port::Source(index) if index == source => ways.push(Vec::new()),
            Port::Source(_) => {}
            Port::Node { node, port } => {
                for input in 0..topology.plan.nodes[node].inputs.len() {
                    ways.extend(ways_to(topology, node, input, source).into_iter().map(|mut way| {
                        way.push((node, port));
                        way
                    }));
                }
            }
        }
    }
    ways
}

/// The record as the source's rows have it; its watermark is the steps' own, so that what is still
/// open takes it.
fn rows_of(source: &SourcePlan, record: &RecordBatch, horizon: EventTime) -> Result<RecordBatch, arrow::error::ArrowError> {
    let column = |field: &Arc<arrow::datatypes::Field>| -> ArrayRef {
        let name = field.name();
        let stored = record.column_by_name(name).filter(|_| source.projection.columns.contains(name));
        match stored {
            _ if name == WATERMARK => Arc::new(Int64Array::from(vec![horizon.0])),
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), 1),
        }
    };
    let schema = source.schema.arrow.clone();
    let columns = schema.fields().iter().map(column).collect();
    RecordBatch::try_new(schema, columns)
}

impl Core {
    /// Brings a dead letter's record to the step that failed, and what comes of it onward.
    ///
    /// # Errors
    /// A failed operator.
    pub fn replay(&mut self, epoch: Epoch, task: &ReplayTask, parcels: &mut Vec<Parcel>) -> Result<(), EngineError> {
        let Ok(entry) = &task.entry else { return Ok(()) };
        match self.row_again(task.topology, entry)? {
            Ok(Some(rows)) => {
                self.books(epoch, task.topology).steps[entry.node].replayed += rows.batch.num_rows() as u64;
                for (port, rows) in self.enter(epoch, task.topology, (entry.node, entry.input), rows, task.seq, parcels)? {
                    self.flow(epoch, task.topology, PortKey::Node(entry.node, port), rows, task.seq, parcels)?;
                }
            }
            // A step before it keeps the record out by now, on purpose.
            Ok(None) => {}
            Err(reason) => self.effects.entry(epoch).or_default().refused.push((task.letter.id.clone(), reason)),
        }
        Ok(())
    }

    /// What the steps before the one that failed make of the record now: one row or none.
    fn row_again(&mut self, topology: usize, entry: &Entry) -> Result<Result<Option<Rows>, String>, EngineError> {
        let mut rows = entry.rows.clone();
        for (node, port) in &entry.way {
            let name = &self.graph.topologies[topology].plan.nodes[*node].name;
            let mut emit = Emit::default();
            match &mut self.operators[topology][*node] {
                Operator::Stateless(operator) => operator.on_rows(rows, &mut emit)?,
                Operator::Keyed { .. } => return Err(EngineError::Internal(format!("a replay went through step `{name}`"))),
            }
            if let Some(dead) = emit.dead.first() {
                return Ok(Err(format!("step `{name}` fails on it before: {}", dead.message)));
            }
            let mut left = emit.rows.into_iter().filter(|(by, _)| by == port).map(|(_, rows)| rows);
            rows = match (left.next(), left.next()) {
                (None, _) => return Ok(Ok(None)),
                (Some(one), None) if one.batch.num_rows() == 1 => one,
                _ => {
                    return Ok(Err(format!(
                        "step `{name}` makes several rows of the record, and which of them failed is not kept; mend the \
                         topology, then `quikflow reset --topology {}` rebuilds it",
                        self.graph.topologies[topology].plan.name
                    )));
                }
            };
        }
        Ok(Ok(Some(rows)))
    }
}
