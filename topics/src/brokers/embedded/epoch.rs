//! An epoch's commit (R9): outputs, state, offsets, meta, dead letters and replay marks together.
//!
//! State is append-only pieces. A snapshot drops what came before of its shard, as long as all
//! pieces of the step were written with the same number of shards. After a restart with another
//! number, pieces of both layouts are kept, deltas and snapshots alike, until every shard of the
//! new layout has written a snapshot; then all older pieces go at once. Until then a restore
//! reads all of them in the order of their commits, so a key removed since is not brought back.

use super::dead;
use super::prepare::{self, PreparedRows};
use super::sql::{self, UNIT, space};
use super::topic::Topics;
use crate::broker::{Answer, BrokerError, EpochCommit, StateKind, StatePiece, TopicRows, TopologyState};
use crate::brokers::pieces::{Stored, useless};
use crate::chunk::checksum;
use crate::dead_letter::DeadLetterStatus;
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};

/// An epoch in the queue. `commit.outputs` has moved to `rows`.
#[derive(Debug)]
pub(super) struct PendingEpoch {
    pub(super) commit: EpochCommit,
    pub(super) rows: Vec<PreparedRows>,
    pub(super) answer: Answer<()>,
}

/// Joins an epoch's outputs by topic, in order, and encodes the big ones.
pub(super) fn prepare_outputs(topics: &Topics, outputs: Vec<TopicRows>) -> Result<Vec<PreparedRows>, BrokerError> {
    let mut order = Vec::new();
    let mut by_topic: HashMap<String, Vec<_>> = HashMap::new();
    for output in outputs.into_iter().filter(|o| o.rows.num_rows() > 0) {
        let name = output.topic.name.clone();
        let batches = by_topic.entry(name.clone()).or_default();
        if batches.is_empty() {
            order.push(name);
        }
        batches.push(output.rows);
    }
    let mut prepared = Vec::new();
    for name in order {
        let topic = topics.get(&name).ok_or_else(|| BrokerError::UnknownTopic(name.clone()))?;
        let batches = by_topic.remove(&name).unwrap_or_default();
        let Some(first) = batches.first() else { continue };
        let rows = arrow::compute::concat_batches(&first.schema(), &batches).map_err(|e| BrokerError::Storage(e.to_string()))?;
        let partitions = prepare::partitions(&rows, topic.spec().partitions)?;
        let encoded = if rows.num_rows() >= prepare::BIG { prepare::encode(topic, &rows, &partitions)? } else { Vec::new() };
        prepared.push(PreparedRows { topic: topic.clone(), rows, partitions, ids: Vec::new(), encoded, lines: Vec::new() });
    }
    Ok(prepared)
}

/// Which pieces are stored, by (topology, step), in the order of their commits.
#[derive(Clone, Debug, Default)]
pub(super) struct StateIndex {
    pieces: BTreeMap<(String, String), Vec<Stored>>,
    next: i64,
}

impl StateIndex {
    /// Reads it from the table.
    pub(super) fn load(conn: &Connection) -> Result<StateIndex, BrokerError> {
        let mut index = StateIndex { pieces: BTreeMap::new(), next: 1 };
        let mut statement = conn.prepare("select id, topology, step, shard, shards, snapshot from state order by id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let stored = Stored { id: row.get(0)?, shard: row.get(3)?, shards: row.get(4)?, snapshot: row.get(5)? };
            index.next = index.next.max(stored.id + 1);
            index.pieces.entry((row.get(1)?, row.get(2)?)).or_default().push(stored);
        }
        Ok(index)
    }

    /// Stores pieces and drops what their snapshots make useless. Returns the changed entries, to
    /// be put in place by [`apply`](Self::apply) after the commit.
    fn stage(&self, conn: &Connection, epoch: u64, pieces: &[StatePiece]) -> Result<Changed, BrokerError> {
        let mut changed = Changed { pieces: BTreeMap::new(), next: self.next };
        for piece in pieces {
            let key = (piece.topology.clone(), piece.step.clone());
            let list = changed.pieces.entry(key).or_insert_with_key(|key| self.pieces.get(key).cloned().unwrap_or_default());
            let stored = Stored {
                id: changed.next,
                shard: piece.shard,
                shards: piece.shards,
                snapshot: piece.kind == StateKind::Snapshot,
            };
            changed.next += 1;
            let mut statement = conn.prepare_cached(
                "insert into state(id, topology, step, shard, shards, snapshot, epoch, checksum, bytes)
                 values(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            statement.execute(rusqlite::params![
                stored.id,
                piece.topology,
                piece.step,
                piece.shard,
                piece.shards,
                stored.snapshot,
                epoch as i64,
                checksum(&piece.bytes) as i64,
                piece.bytes,
            ])?;
            list.push(stored);
            if stored.snapshot {
                let dropped = useless(list, stored.shards);
                let mut statement = conn.prepare_cached("delete from state where id = ?1")?;
                for id in &dropped {
                    statement.execute([id])?;
                }
                list.retain(|s| !dropped.contains(&s.id));
            }
        }
        Ok(changed)
    }

    /// Puts in place what [`stage`] found.
    pub(super) fn apply(&mut self, changed: Changed) {
        self.next = changed.next;
        self.pieces.extend(changed.pieces);
    }

    /// Forgets a topology.
    pub(super) fn forget(&mut self, topology: &str) {
        self.pieces.retain(|(t, _), _| t != topology);
    }
}

/// Entries that a transaction changed.
#[derive(Debug)]
pub(super) struct Changed {
    pieces: BTreeMap<(String, String), Vec<Stored>>,
    next: i64,
}

/// Writes all of an epoch but its outputs.
pub(super) fn stage(conn: &Connection, index: &StateIndex, commit: &EpochCommit) -> Result<Changed, BrokerError> {
    let changed = index.stage(conn, commit.epoch.0, &commit.state)?;
    for (group, topic, partition, next) in &commit.offsets {
        sql::put_number(conn, space::OFFSET, &dead::place_key(group, topic, *partition), next.0)?;
    }
    for (topology, name, value) in &commit.meta {
        sql::put(conn, space::META, &format!("{topology}{UNIT}{name}"), value)?;
    }
    for letter in &commit.dead_letters {
        if !dead::fails_again(conn, letter)? {
            dead::insert(conn, letter)?;
        }
    }
    dead::mark(conn, &commit.replayed, DeadLetterStatus::Replayed)?;
    sql::put_number(conn, space::LOG, "epoch", commit.epoch.0)?;
    Ok(changed)
}

/// What a topology left.
pub(super) fn read_state(conn: &Connection, topology: &str) -> Result<TopologyState, BrokerError> {
    let mut state = TopologyState::default();
    let mut statement =
        conn.prepare_cached("select step, shard, shards, snapshot, checksum, bytes from state where topology = ?1 order by id")?;
    let mut rows = statement.query([topology])?;
    while let Some(row) = rows.next()? {
        let (step, bytes): (String, Vec<u8>) = (row.get(0)?, row.get(5)?);
        if checksum(&bytes) as i64 != row.get::<_, i64>(4)? {
            return Err(BrokerError::Corrupt(format!(
                "state of step `{step}` of topology `{topology}` does not match its checksum"
            )));
        }
        let kind = if row.get(3)? { StateKind::Snapshot } else { StateKind::Delta };
        let piece = StatePiece { topology: topology.to_owned(), step, shard: row.get(1)?, shards: row.get(2)?, kind, bytes };
        state.pieces.push(piece);
    }
    let prefix = format!("{topology}{UNIT}");
    for (key, value) in sql::list(conn, space::META, &prefix)? {
        if let Some(name) = key.strip_prefix(&prefix) {
            state.meta.insert(name.to_owned(), value);
        }
    }
    Ok(state)
}
