//! What a complete epoch did on all workers becomes one commit.

use super::EngineError;
use super::books::TopologyBooks;
use super::core::{Effects, EpochWork, OutRows};
use super::graph::Graph;
use super::output::{in_order, joined, to_topic};
use super::recover::meta;
use super::schedule::MadeEpoch;
use super::shuffle::Route;
use crate::operator::{DeadRow, LateRow};
use crate::plan::fingerprint;
use arrow::array::{Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::take_record_batch;
use quikflow_topics::broker::{Broker, EpochCommit, Projection, TopicRows};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterStatus, Origin};
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use quikflow_topics::schema::OFFSET;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Gathers epochs in their order; holds the running accounts.
pub struct Gatherer {
    graph: Arc<Graph>,
    broker: Arc<dyn Broker>,
    books: Vec<TopologyBooks>,
    /// By (topology, node), by worker: (in flight, bytes of state).
    gauges: BTreeMap<(usize, usize), BTreeMap<usize, (u64, usize)>>,
    /// Topologies whose fingerprint is stored.
    known: Vec<bool>,
    /// By topology: where it writes what it combines.
    routes: Vec<Option<Route>>,
}

impl Gatherer {
    /// Goes on from restored accounts.
    pub fn new(graph: Arc<Graph>, broker: Arc<dyn Broker>, books: Vec<TopologyBooks>) -> Gatherer {
        let known = vec![false; books.len()];
        let routes = graph.topologies.iter().map(Route::of).collect();
        Gatherer { graph, broker, books, gauges: BTreeMap::new(), known, routes }
    }

    /// The accounts as of the epoch gathered last, by topology.
    pub fn books(&self) -> &[TopologyBooks] {
        &self.books
    }

    /// Whose effects it gathers.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What does not balance in a topology's accounts (R20).
    pub fn unbalanced(&self, topology: usize) -> Vec<String> {
        self.books[topology].check(&self.graph.topologies[topology])
    }

    /// Bytes of state that a topology's steps hold.
    pub fn state_bytes(&self, topology: usize) -> usize {
        self.gauges.range((topology, 0)..(topology + 1, 0)).flat_map(|(_, by)| by.values()).map(|(_, bytes)| bytes).sum()
    }

    /// One commit of an epoch's effects, `effects` by worker. `now` dates dead letters.
    ///
    /// # Errors
    /// Records that are gone or damaged; columns that do not fit.
    pub fn gather(&mut self, made: &MadeEpoch, effects: Vec<Effects>, now: EventTime) -> Result<EpochCommit, EngineError> {
        let mut commit = EpochCommit { epoch: made.work.epoch, offsets: made.offsets.clone(), ..EpochCommit::default() };
        let mut rows: Vec<OutRows> = Vec::new();
        let mut dead: BTreeMap<String, (usize, usize, DeadRow)> = BTreeMap::new();
        let mut late: BTreeSet<(usize, u32, PartitionId, Offset)> = BTreeSet::new();
        let mut refused: BTreeMap<String, String> = BTreeMap::new();
        for (worker, effects) in effects.into_iter().enumerate() {
            refused.extend(effects.refused);
            rows.extend(effects.rows);
            commit.state.extend(effects.state);
            for (topology, books) in &effects.books {
                self.books[*topology].add(books);
            }
            for gauge in effects.gauges {
                let by = self.gauges.entry((gauge.topology, gauge.node)).or_default();
                by.insert(worker, (gauge.in_flight, gauge.state_bytes));
                let open = by.values().map(|(in_flight, _)| in_flight).sum();
                self.books[gauge.topology].set_in_flight(gauge.node, open);
            }
            for (topology, node, row) in effects.dead {
                if !self.graph.topologies[topology].speaks_of(row.source as usize, row.partition) {
                    continue;
                }
                dead.insert(self.dead_letter_id(topology, node, &row), (topology, node, row));
            }
            late.extend(
                effects
                    .late
                    .iter()
                    .map(|(topology, LateRow { source, partition, offset })| (*topology, *source, *partition, *offset)),
            );
        }
        self.outputs(rows, &mut commit)?;
        self.late_rows(&late, &made.work, &mut commit)?;
        for task in &made.work.replays {
            let id = &task.letter.id;
            match task.entry.as_ref().err().or_else(|| refused.get(id)) {
                Some(reason) => {
                    tracing::warn!(id, reason, "a dead letter cannot be replayed, it is open again");
                    commit.dead_letters.push(task.open_again(reason, now));
                }
                // It failed again: the letter below takes its place.
                None if dead.contains_key(id) => {}
                None => commit.replayed.push(id.clone()),
            }
        }
        for (id, (topology, node, row)) in dead {
            self.books[topology].dead += u64::from(made.work.replays.iter().all(|task| task.letter.id != id));
            commit.dead_letters.push(self.dead_letter(id, topology, node, row, &made.work, now)?);
        }
        for (topology, time) in &made.times {
            // After all pieces of the epoch.
            if let Some(route) = &mut self.routes[*topology] {
                commit.outputs.extend(route.tell(time.watermark)?);
            }
            let part = &self.graph.topologies[*topology];
            let (plan, stored_as) = (&part.plan, &part.stored_as);
            let figures = self.books[*topology].figures(time.watermark.known(), self.state_bytes(*topology));
            commit.figures.push((stored_as.clone(), figures));
            let books = serde_json::to_vec(&self.books[*topology]).map_err(|e| EngineError::Internal(e.to_string()))?;
            commit.meta.push((stored_as.clone(), meta::TIME.to_owned(), time.to_bytes()));
            commit.meta.push((stored_as.clone(), meta::BOOKS.to_owned(), books));
            if !std::mem::replace(&mut self.known[*topology], true) {
                let text = serde_json::to_vec(&fingerprint(plan, part.share.is_some()))
                    .map_err(|e| EngineError::Internal(e.to_string()))?;
                commit.meta.push((stored_as.clone(), meta::FINGERPRINT.to_owned(), text));
            }
        }
        Ok(commit)
    }

    /// Rows in the order in which one worker would have written them, one batch a topic.
    fn outputs(&self, mut rows: Vec<OutRows>, commit: &mut EpochCommit) -> Result<(), EngineError> {
        rows.sort_by_key(|rows| (rows.topology, rows.seq, rows.nth));
        let mut by_topic: BTreeMap<(usize, String), (Arc<TopicSpec>, Vec<OutRows>)> = BTreeMap::new();
        for rows in rows {
            let topic = &self.graph.topologies[rows.topology].plan.outputs[rows.output].topic;
            by_topic.entry((rows.topology, topic.name.clone())).or_insert_with(|| (topic.clone(), Vec::new())).1.push(rows);
        }
        for ((topology, _), (topic, rows)) in by_topic {
            let mut rows = in_order(rows)?;
            if let Some(route) = self.routes[topology].as_ref().filter(|route| route.is(&topic)) {
                rows = route.address(&rows)?;
            }
            commit.outputs.push(TopicRows { rows, topic });
        }
        Ok(())
    }

    /// Copies late records whole to their late topics, each once a topology.
    fn late_rows(
        &mut self,
        late: &BTreeSet<(usize, u32, PartitionId, Offset)>,
        work: &EpochWork,
        commit: &mut EpochCommit,
    ) -> Result<(), EngineError> {
        let mut by_source: BTreeMap<(usize, u32), Vec<(PartitionId, Offset)>> = BTreeMap::new();
        for (topology, source, partition, offset) in late {
            by_source.entry((*topology, *source)).or_default().push((*partition, *offset));
        }
        for ((topology, source), places) in by_source {
            let plan = self.graph.topologies[topology].plan.clone();
            let Some(topic) = plan.late.get(source as usize).cloned().flatten() else {
                return Err(EngineError::Internal(format!("topology `{}` has late records and no topic for them", plan.name)));
            };
            let records = self.records(&plan.sources[source as usize].topic, &places, work)?;
            let batches: Result<Vec<_>, _> = records.iter().map(|record| to_topic(record, &topic.append_schema())).collect();
            self.books[topology].late += places.len() as u64;
            commit.outputs.push(TopicRows { rows: joined(batches?)?, topic });
        }
        Ok(())
    }

    /// Whole records: from the slices of the epoch where they are in it, else from the log.
    fn records(
        &self,
        topic: &TopicSpec,
        places: &[(PartitionId, Offset)],
        work: &EpochWork,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        let mut missing: BTreeSet<(PartitionId, Offset)> = places.iter().copied().collect();
        let mut found = Vec::new();
        for task in work.tasks.iter().filter(|task| task.slice.topic().name == topic.name) {
            let mut wanted: Vec<(u32, PartitionId, Offset)> = Vec::new();
            let mut decoded: Option<RecordBatch> = None;
            let mut first_row = 0;
            for part in task.slice.parts() {
                let here: Vec<Offset> =
                    missing.range((part.partition, part.first)..(part.partition, part.next)).map(|(_, offset)| *offset).collect();
                if !here.is_empty() {
                    let whole = match decoded.take() {
                        Some(whole) => whole,
                        None => task.slice.decode_all(&Projection::all(topic))?.0,
                    };
                    let offsets = whole.column_by_name(OFFSET).and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
                    let offsets = offsets.ok_or_else(|| EngineError::Internal("a slice has no offsets".to_owned()))?;
                    let rows = &offsets.values()[first_row..first_row + part.rows as usize];
                    wanted.extend(here.iter().filter_map(|offset| {
                        let at = rows.binary_search(&offset.0).ok()?;
                        Some(((first_row + at) as u32, part.partition, *offset))
                    }));
                    decoded = Some(whole);
                }
                first_row += part.rows as usize;
            }
            if let Some(whole) = decoded {
                found.push(take_record_batch(&whole, &UInt32Array::from_iter_values(wanted.iter().map(|(row, _, _)| *row)))?);
                for (_, partition, offset) in wanted {
                    missing.remove(&(partition, offset));
                }
            }
        }
        for (partition, offset) in missing {
            found.push(self.broker.read_record(&topic.name, partition, offset)?.ok_or_else(|| {
                EngineError::Internal(format!("record {offset} of partition {partition} of topic `{}` is gone", topic.name))
            })?);
        }
        Ok(found)
    }

    fn dead_letter_id(&self, topology: usize, node: usize, row: &DeadRow) -> String {
        let plan = &self.graph.topologies[topology].plan;
        let topic = &plan.sources[row.source as usize].topic.name;
        let (topology, step) = (&plan.name, &plan.nodes[node].name);
        match &row.row {
            Some(made) => format!("step:{topology}:{step}:row:{:016x}", xxh3_64(made.as_bytes())),
            None => format!("step:{topology}:{step}:{topic}:{}:{}", row.partition, row.offset),
        }
    }

    fn dead_letter(
        &self,
        id: String,
        topology: usize,
        node: usize,
        row: DeadRow,
        work: &EpochWork,
        now: EventTime,
    ) -> Result<DeadLetter, EngineError> {
        let plan = &self.graph.topologies[topology].plan;
        let topic = &plan.sources[row.source as usize].topic;
        let place = Origin { topic: topic.name.clone(), partition: row.partition, offset: row.offset };
        let (origin, bytes) = match row.row {
            Some(made) => (None, made.into_bytes()),
            None => {
                let records = self.records(topic, &[(row.partition, row.offset)], work)?;
                match records.iter().find(|record| record.num_rows() > 0) {
                    Some(record) => (Some(place), super::original::canonical_json(topic, record)?),
                    None => return Err(EngineError::Internal(format!("the record of dead letter `{id}` is gone"))),
                }
            }
        };
        Ok(DeadLetter {
            id,
            at: now,
            cause: row.cause.to_owned(),
            code: row.code,
            path: row.path,
            message: row.message,
            topology: Some(plan.name.clone()),
            step: Some(plan.nodes[node].name.clone()),
            origin,
            full_size: bytes.len() as u64,
            bytes,
            status: DeadLetterStatus::Open,
        })
    }
}
