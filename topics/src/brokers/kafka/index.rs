//! What epochs leave in the compacted topic `quikflow.state`, by key:
//!
//! | key | value |
//! | --- | --- |
//! | `epoch` | the last committed epoch |
//! | `m` ␟ topology ␟ name | a meta value |
//! | `o` ␟ group ␟ topic ␟ partition | the next offset to read |
//! | `g` ␟ topic | its generation |
//! | `p` ␟ topology ␟ step ␟ number ␟ part | a part of a piece of state; header `piece` |
//!
//! All of an epoch's entries are in its transaction. Pieces that a snapshot replaces get
//! tombstones in the same transaction.

use super::config::KafkaOptions;
use super::record::Outgoing;
use super::table::{Entry, Table};
use crate::broker::{BrokerError, EpochCommit, StateKind, StatePiece};
use crate::brokers::pieces::{Stored, useless};
use crate::ids::{Offset, PartitionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Between the parts of a key.
pub(super) const UNIT: char = '\u{1f}';
/// Bytes of a piece in one record.
const PART: usize = 1 << 20;

/// (group, topic, partition)
type Place = (String, String, u32);

/// The topic's content, without the bytes of pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) epoch: u64,
    pub(super) offsets: BTreeMap<Place, u64>,
    pub(super) meta: BTreeMap<(String, String), Vec<u8>>,
    pub(super) generations: BTreeMap<String, u64>,
    /// By (topology, step), ascending.
    pieces: BTreeMap<(String, String), Vec<Stored>>,
    /// How many records a piece has.
    parts: BTreeMap<i64, u32>,
    next: i64,
}

/// A piece's header.
struct Head {
    shard: u32,
    shards: u32,
    snapshot: bool,
    parts: u32,
}

impl Head {
    fn text(&self) -> String {
        format!("{} {} {} {}", self.shard, self.shards, u8::from(self.snapshot), self.parts)
    }

    fn parse(text: &str) -> Option<Head> {
        let mut words = text.split(' ').map(|word| word.parse::<u32>().ok());
        let mut next = || words.next().flatten();
        Some(Head { shard: next()?, shards: next()?, snapshot: next()? == 1, parts: next()? })
    }
}

fn damaged(key: &str) -> BrokerError {
    BrokerError::Corrupt(format!("the entry `{}` of topic quikflow.state cannot be read", key.replace(UNIT, "/")))
}

/// (topology, step, number, part) of a piece's key.
fn piece_key(key: &str) -> Option<(&str, &str, i64, u32)> {
    let mut parts = key.strip_prefix('p')?.strip_prefix(UNIT)?.split(UNIT);
    Some((parts.next()?, parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Index {
    /// Takes an entry in.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), BrokerError> {
        let broken = || damaged(entry.key);
        let number = |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).ok_or_else(broken);
        let mut words = entry.key.split(UNIT);
        match words.next() {
            Some("epoch") => self.epoch = entry.value.map(number).transpose()?.unwrap_or(0),
            Some("m") => {
                let key = (words.next().ok_or_else(broken)?.to_owned(), words.next().ok_or_else(broken)?.to_owned());
                match entry.value {
                    Some(value) => drop(self.meta.insert(key, value.to_vec())),
                    None => drop(self.meta.remove(&key)),
                }
            }
            Some("o") => {
                let mut word = || words.next().map(str::to_owned).ok_or_else(broken);
                let key = (word()?, word()?, word()?.parse().map_err(|_| broken())?);
                match entry.value {
                    Some(value) => drop(self.offsets.insert(key, number(value)?)),
                    None => drop(self.offsets.remove(&key)),
                }
            }
            Some("g") => {
                let topic = words.next().ok_or_else(broken)?;
                self.generations.insert(topic.to_owned(), entry.value.map(number).transpose()?.unwrap_or(0));
            }
            Some("p") => {
                let (topology, step, id, part) = piece_key(entry.key).ok_or_else(broken)?;
                let list = self.pieces.entry((topology.to_owned(), step.to_owned())).or_default();
                if entry.value.is_none() {
                    list.retain(|stored| stored.id != id);
                    self.parts.remove(&id);
                } else if part == 0 {
                    let head = entry.header("piece").and_then(Head::parse).ok_or_else(broken)?;
                    list.retain(|stored| stored.id != id);
                    list.push(Stored { id, shard: head.shard, shards: head.shards, snapshot: head.snapshot });
                    list.sort_by_key(|stored| stored.id);
                    self.parts.insert(id, head.parts);
                    self.next = self.next.max(id + 1);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An epoch's entries, and the index as it is after them.
    pub(super) fn stage(&self, topic: &Arc<str>, commit: &EpochCommit) -> (Vec<Outgoing>, Index) {
        let mut after = self.clone();
        let mut out = Vec::new();
        let text = |value: u64| Some(value.to_string().into_bytes());
        for piece in &commit.state {
            after.add_piece(topic, piece, &mut out);
        }
        for (group, source, partition, next) in &commit.offsets {
            after.offsets.insert((group.clone(), source.clone(), partition.0), next.0);
            out.push(Outgoing::entry(topic, format!("o{UNIT}{group}{UNIT}{source}{UNIT}{partition}"), text(next.0)));
        }
        for (topology, name, value) in &commit.meta {
            after.meta.insert((topology.clone(), name.clone()), value.clone());
            out.push(Outgoing::entry(topic, format!("m{UNIT}{topology}{UNIT}{name}"), Some(value.clone())));
        }
        after.epoch = commit.epoch.0;
        out.push(Outgoing::entry(topic, "epoch".to_owned(), text(commit.epoch.0)));
        (out, after)
    }

    fn add_piece(&mut self, topic: &Arc<str>, piece: &StatePiece, out: &mut Vec<Outgoing>) {
        let (topology, step) = (&piece.topology, &piece.step);
        let id = self.next;
        self.next += 1;
        let snapshot = piece.kind == StateKind::Snapshot;
        let parts = u32::try_from(piece.bytes.len().div_ceil(PART).max(1)).unwrap_or(u32::MAX);
        let head = Head { shard: piece.shard, shards: piece.shards, snapshot, parts }.text();
        let key = |id: i64, part: u32| format!("p{UNIT}{topology}{UNIT}{step}{UNIT}{id}{UNIT}{part}");
        for part in 0..parts {
            let start = (part as usize * PART).min(piece.bytes.len());
            let end = (start + PART).min(piece.bytes.len());
            let mut record = Outgoing::entry(topic, key(id, part), Some(piece.bytes[start..end].to_vec()));
            record.headers.push(("piece", head.clone()));
            out.push(record);
        }
        self.parts.insert(id, parts);
        let list = self.pieces.entry((topology.clone(), step.clone())).or_default();
        list.push(Stored { id, shard: piece.shard, shards: piece.shards, snapshot });
        if snapshot {
            let dropped = useless(list, piece.shards);
            list.retain(|stored| !dropped.contains(&stored.id));
            for id in dropped {
                let parts = self.parts.remove(&id).unwrap_or(1);
                out.extend((0..parts).map(|part| Outgoing::entry(topic, key(id, part), None)));
            }
        }
    }

    /// Forgets a topology: tombstones for its entries. `ends`: where its groups go on instead.
    pub(super) fn forget(&self, topic: &Arc<str>, topology: &str, ends: &BTreeMap<Place, u64>) -> (Vec<Outgoing>, Index) {
        let mut after = self.clone();
        let mut out = Vec::new();
        for ((_, step), list) in self.pieces.iter().filter(|((of, _), _)| of == topology) {
            for stored in list {
                let parts = after.parts.remove(&stored.id).unwrap_or(1);
                let id = stored.id;
                let key = |part: u32| format!("p{UNIT}{topology}{UNIT}{step}{UNIT}{id}{UNIT}{part}");
                out.extend((0..parts).map(|part| Outgoing::entry(topic, key(part), None)));
            }
        }
        after.pieces.retain(|(of, _), _| of != topology);
        for (_, name) in self.meta.keys().filter(|(of, _)| of == topology) {
            out.push(Outgoing::entry(topic, format!("m{UNIT}{topology}{UNIT}{name}"), None));
        }
        after.meta.retain(|(of, _), _| of != topology);
        let group = format!("topology:{topology}");
        for place in self.offsets.keys().filter(|(of, ..)| *of == group) {
            let end = ends.get(place);
            let key = format!("o{UNIT}{}{UNIT}{}{UNIT}{}", place.0, place.1, place.2);
            out.push(Outgoing::entry(topic, key, end.map(|end| end.to_string().into_bytes())));
            match end {
                Some(end) => drop(after.offsets.insert(place.clone(), *end)),
                None => drop(after.offsets.remove(place)),
            }
        }
        (out, after)
    }

    /// One generation more.
    pub(super) fn raise(&mut self, topic: &Arc<str>, of: &str) -> Outgoing {
        let generation = self.generations.entry(of.to_owned()).or_default();
        *generation += 1;
        Outgoing::entry(topic, format!("g{UNIT}{of}"), Some(generation.to_string().into_bytes()))
    }

    /// A group's offsets.
    pub(super) fn group(&self, group: &str) -> BTreeMap<(String, PartitionId), Offset> {
        let own = self.offsets.iter().filter(|((of, ..), _)| of == group);
        own.map(|((_, topic, partition), next)| ((topic.clone(), PartitionId(*partition)), Offset(*next))).collect()
    }
}

/// Reads all pieces of all topologies, in the order of their commits.
pub(super) fn read_pieces(options: &KafkaOptions, topic: &str) -> Result<BTreeMap<String, Vec<StatePiece>>, BrokerError> {
    struct Open {
        topology: String,
        step: String,
        head: Head,
        parts: BTreeMap<u32, Vec<u8>>,
    }
    let mut open: BTreeMap<i64, Open> = BTreeMap::new();
    Table::new(options, topic)?.catch_up(|entry| {
        let Some((topology, step, id, part)) = piece_key(entry.key) else { return Ok(()) };
        let Some(value) = entry.value else {
            open.remove(&id);
            return Ok(());
        };
        let head = entry.header("piece").and_then(Head::parse).ok_or_else(|| damaged(entry.key))?;
        let new = || Open { topology: topology.to_owned(), step: step.to_owned(), head, parts: BTreeMap::new() };
        open.entry(id).or_insert_with(new).parts.insert(part, value.to_vec());
        Ok(())
    })?;
    let mut all: BTreeMap<String, Vec<StatePiece>> = BTreeMap::new();
    for (id, piece) in open {
        if piece.parts.len() != piece.head.parts as usize {
            return Err(damaged(&format!("piece {id} of step `{}` of topology `{}`", piece.step, piece.topology)));
        }
        let kind = if piece.head.snapshot { StateKind::Snapshot } else { StateKind::Delta };
        let bytes = piece.parts.into_values().flatten().collect();
        let (shard, shards) = (piece.head.shard, piece.head.shards);
        all.entry(piece.topology.clone()).or_default().push(StatePiece {
            topology: piece.topology,
            step: piece.step,
            shard,
            shards,
            kind,
            bytes,
        });
    }
    Ok(all)
}
