//! What epochs leave in the compacted topic `quikflow.state`, a partition a share of the work, by key:
//!
//! | key | value |
//! | --- | --- |
//! | `epoch` | the share's last committed epoch |
//! | `m` ␟ topology ␟ name | a meta value |
//! | `o` ␟ group ␟ topic | the next offset to read of each partition: `0:17 1:4` |
//! | `p` ␟ topology ␟ step ␟ number ␟ part | a part of a piece of state; header `piece` |
//!
//! All of an epoch's entries are in its transaction. Pieces that a snapshot replaces get
//! tombstones in the same transaction. Topologies and groups are named as they are stored
//! ([`crate::share::stored_as`]).

use super::config::KafkaOptions;
use super::record::Outgoing;
use super::table::{Entry, Table};
use crate::broker::{BrokerError, EpochCommit, StateKind, StatePiece};
use crate::brokers::pieces::{Stored, useless};
use crate::share::share_of;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Between the parts of a key.
pub(super) const UNIT: char = '\u{1f}';
/// Bytes of a piece in one record.
const PART: usize = 1 << 20;

/// The next offset to read, by partition.
pub(super) type Places = BTreeMap<u32, u64>;

/// As the value of an entry.
pub(super) fn places_text(places: &Places) -> String {
    places.iter().map(|(partition, next)| format!("{partition}:{next}")).collect::<Vec<_>>().join(" ")
}

/// Back from the value of an entry.
pub(super) fn read_places(value: &[u8]) -> Option<Places> {
    let text = std::str::from_utf8(value).ok()?;
    let place = |word: &str| {
        let (partition, next) = word.split_once(':')?;
        Some((partition.parse().ok()?, next.parse().ok()?))
    };
    text.split_whitespace().map(place).collect()
}

/// A share's content, without the bytes of pieces.
#[derive(Debug, Default)]
pub(super) struct Index {
    share: u32,
    pub(super) epoch: u64,
    /// By (group, topic).
    pub(super) offsets: BTreeMap<(String, String), Places>,
    pub(super) meta: BTreeMap<(String, String), Vec<u8>>,
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
    /// Nothing yet.
    pub(super) fn new(share: u32) -> Index {
        Index { share, ..Index::default() }
    }

    /// Takes an entry in.
    fn take(&mut self, entry: &Entry<'_>) -> Result<(), BrokerError> {
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
                let key = (words.next().ok_or_else(broken)?.to_owned(), words.next().ok_or_else(broken)?.to_owned());
                match entry.value {
                    Some(value) => drop(self.offsets.insert(key, read_places(value).ok_or_else(broken)?)),
                    None => drop(self.offsets.remove(&key)),
                }
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

    /// The entries of what an epoch did in this share: for the state, and (as the same key) for
    /// those who follow the progress of all shares.
    pub(super) fn stage(&mut self, topic: &Arc<str>, commit: &EpochCommit) -> (Vec<Outgoing>, Vec<(String, String)>) {
        let mut out = Vec::new();
        let mut progress = Vec::new();
        let share = self.share;
        let mine = |name: &str| share_of(name).1 == share;
        for piece in commit.state.iter().filter(|piece| mine(&piece.topology)) {
            self.add_piece(topic, piece, &mut out);
        }
        let mut moved: BTreeMap<(&str, &str), Vec<(u32, u64)>> = BTreeMap::new();
        for (group, source, partition, next) in commit.offsets.iter().filter(|(group, ..)| mine(group)) {
            moved.entry((group, source)).or_default().push((partition.0, next.0));
        }
        for ((group, source), places) in moved {
            let all = self.offsets.entry((group.to_owned(), source.to_owned())).or_default();
            all.extend(places);
            let (key, text) = (format!("o{UNIT}{group}{UNIT}{source}"), places_text(all));
            out.push(self.entry(topic, key.clone(), Some(text.clone().into_bytes())));
            progress.push((key, text));
        }
        for (topology, name, value) in commit.meta.iter().filter(|(topology, ..)| mine(topology)) {
            self.meta.insert((topology.clone(), name.clone()), value.clone());
            out.push(self.entry(topic, format!("m{UNIT}{topology}{UNIT}{name}"), Some(value.clone())));
        }
        for (topology, figures) in commit.figures.iter().filter(|(topology, _)| mine(topology)) {
            progress.push((format!("f{UNIT}{topology}"), serde_json::to_string(figures).unwrap_or_default()));
        }
        self.epoch = commit.epoch.0;
        out.push(self.entry(topic, "epoch".to_owned(), Some(commit.epoch.0.to_string().into_bytes())));
        (out, progress)
    }

    fn entry(&self, topic: &Arc<str>, key: String, value: Option<Vec<u8>>) -> Outgoing {
        Outgoing { partition: self.share, ..Outgoing::entry(topic, key, value) }
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
            let mut record = self.entry(topic, key(id, part), Some(piece.bytes[start..end].to_vec()));
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
                out.extend((0..parts).map(|part| self.entry(topic, key(id, part), None)));
            }
        }
    }

    /// Forgets a topology: tombstones for its entries here. `ends`: where its group goes on instead, by
    /// (topic, partition). The second of the answer: what became of its offsets.
    pub(super) fn forget(
        &mut self,
        topic: &Arc<str>,
        topology: &str,
        ends: &BTreeMap<(String, u32), u64>,
    ) -> (Vec<Outgoing>, Vec<(String, Option<String>)>) {
        let mut out = Vec::new();
        let is = |stored: &str| share_of(stored).0 == topology;
        let gone: Vec<(String, String)> = self.pieces.keys().filter(|(of, _)| is(of)).cloned().collect();
        for (stored, step) in gone {
            for piece in self.pieces.remove(&(stored.clone(), step.clone())).unwrap_or_default() {
                let parts = self.parts.remove(&piece.id).unwrap_or(1);
                let key = |part: u32| format!("p{UNIT}{stored}{UNIT}{step}{UNIT}{}{UNIT}{part}", piece.id);
                out.extend((0..parts).map(|part| self.entry(topic, key(part), None)));
            }
        }
        let gone: Vec<(String, String)> = self.meta.keys().filter(|(of, _)| is(of)).cloned().collect();
        for (stored, name) in gone {
            out.push(self.entry(topic, format!("m{UNIT}{stored}{UNIT}{name}"), None));
            self.meta.remove(&(stored, name));
        }
        let group = format!("topology:{topology}");
        let groups: Vec<_> = self.offsets.keys().filter(|(of, _)| share_of(of).0 == group).cloned().collect();
        let mut progress = Vec::new();
        for (of, source) in groups {
            let places = self.offsets.remove(&(of.clone(), source.clone())).unwrap_or_default();
            let places = places.into_keys().filter_map(|p| Some((p, *ends.get(&(source.clone(), p))?))).collect::<Places>();
            let text = (!places.is_empty()).then(|| places_text(&places));
            let key = format!("o{UNIT}{of}{UNIT}{source}");
            out.push(self.entry(topic, key.clone(), text.clone().map(String::into_bytes)));
            progress.push((key, text));
            if !places.is_empty() {
                self.offsets.insert((of, source), places);
            }
        }
        (out, progress)
    }

    /// The topics of a topology's group, and their partitions.
    pub(super) fn places_of(&self, topology: &str) -> Vec<(String, u32)> {
        let group = format!("topology:{topology}");
        let own = self.offsets.iter().filter(|((of, _), _)| share_of(of).0 == group);
        own.flat_map(|((_, topic), places)| places.keys().map(|partition| (topic.clone(), *partition))).collect()
    }
}

/// A share as its last epoch left it.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// All pieces, by topology as it is stored, in the order of their commits.
    pub(super) pieces: BTreeMap<String, Vec<StatePiece>>,
}

/// Reads a share whole.
pub(super) fn load(options: &KafkaOptions, topic: &str, share: u32) -> Result<Loaded, BrokerError> {
    struct Open {
        topology: String,
        step: String,
        head: Head,
        parts: BTreeMap<u32, Vec<u8>>,
    }
    let mut index = Index::new(share);
    let mut open: BTreeMap<i64, Open> = BTreeMap::new();
    Table::of(options, topic, share)?.catch_up(|entry| {
        index.take(entry)?;
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
    let mut pieces: BTreeMap<String, Vec<StatePiece>> = BTreeMap::new();
    for (id, piece) in open {
        if piece.parts.len() != piece.head.parts as usize {
            return Err(damaged(&format!("piece {id} of step `{}` of topology `{}`", piece.step, piece.topology)));
        }
        let kind = if piece.head.snapshot { StateKind::Snapshot } else { StateKind::Delta };
        let bytes = piece.parts.into_values().flatten().collect();
        let (shard, shards) = (piece.head.shard, piece.head.shards);
        pieces.entry(piece.topology.clone()).or_default().push(StatePiece {
            topology: piece.topology,
            step: piece.step,
            shard,
            shards,
            kind,
            bytes,
        });
    }
    Ok(Loaded { index, pieces })
}
