//! What epochs leave in the compacted topic `quikflow.state`, a partition a share of the work, by key:
//!
//! | key | value |
//! | --- | --- |
//! | `epoch` | the share's last committed epoch and the sum of all other entries: `17 90ab12cd34ef5678` |
//! | `m` ␟ topology ␟ name | a meta value |
//! | `o` ␟ group ␟ topic | the next offset to read of each partition: `0:17 1:4` |
//! | `p` ␟ topology ␟ step ␟ number ␟ part | a part of a piece of state; header `piece` |
//!
//! All of an epoch's entries are in its transaction. Pieces that a snapshot replaces get
//! tombstones in the same transaction. Topologies and groups are named as they are stored
//! ([`crate::share::stored_as`]).
//!
//! The sum is of hashes of all entries that are valid, each over its key, its header and its value: whoever has read
//! the share, from Kafka or in part from a copy of its own, knows by it that nothing is missing or old.

use super::record::{HeaderText, Outgoing};
use super::table::Entry;
use crate::broker::{BrokerError, EpochCommit, StateKind, StatePiece};
use crate::brokers::pieces::{Stored, useless};
use crate::share::share_of;
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Between the parts of a key.
pub(super) const UNIT: char = '\u{1f}';
/// Bytes of a piece in one record.
const PART: usize = 1 << 20;
/// The key of the last entry of each transaction.
pub(super) const EPOCH: &str = "epoch";
/// The header of a piece's records.
pub(super) const PIECE: &str = "piece";

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
    sums: Sums,
    /// The sum that the last epoch's entry tells; none of entries written before there was one.
    told: Option<u64>,
}

/// What the entries come to, by their hashes.
#[derive(Debug, Default)]
struct Sums {
    by_key: BTreeMap<String, u64>,
    all: u64,
}

impl Sums {
    /// An entry is valid now, or (without a value) no more.
    fn note(&mut self, key: &str, value: Option<&[u8]>, head: Option<&str>) {
        let before = match value {
            Some(value) => {
                let seed = xxh3_64_with_seed(head.unwrap_or_default().as_bytes(), xxh3_64(key.as_bytes()));
                let hash = xxh3_64_with_seed(value, seed);
                self.all = self.all.wrapping_add(hash);
                match self.by_key.get_mut(key) {
                    Some(place) => Some(std::mem::replace(place, hash)),
                    None => self.by_key.insert(key.to_owned(), hash),
                }
            }
            None => self.by_key.remove(key),
        };
        self.all = self.all.wrapping_sub(before.unwrap_or(0));
    }
}

/// A piece's header.
pub(super) struct Head {
    pub(super) shard: u32,
    pub(super) shards: u32,
    pub(super) snapshot: bool,
    pub(super) parts: u32,
}

impl Head {
    fn text(&self) -> String {
        format!("{} {} {} {}", self.shard, self.shards, u8::from(self.snapshot), self.parts)
    }

    pub(super) fn parse(text: &str) -> Option<Head> {
        let mut words = text.split(' ').map(|word| word.parse::<u32>().ok());
        let mut next = || words.next().flatten();
        Some(Head { shard: next()?, shards: next()?, snapshot: next()? == 1, parts: next()? })
    }
}

pub(super) fn damaged(key: &str) -> BrokerError {
    BrokerError::Corrupt(format!("the entry `{}` of topic quikflow.state cannot be read", key.replace(UNIT, "/")))
}

/// (topology, step, number, part) of a piece's key.
pub(super) fn piece_key(key: &str) -> Option<(&str, &str, i64, u32)> {
    let mut parts = key.strip_prefix('p')?.strip_prefix(UNIT)?.split(UNIT);
    Some((parts.next()?, parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Index {
    /// Nothing yet.
    pub(super) fn new(share: u32) -> Index {
        Index { share, ..Index::default() }
    }

    /// Takes an entry in.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), BrokerError> {
        let broken = || damaged(entry.key);
        let mut words = entry.key.split(UNIT);
        match words.next() {
            Some(EPOCH) => {
                let text = entry.value.map(std::str::from_utf8).transpose().map_err(|_| broken())?.unwrap_or("0");
                let (epoch, sum) = text.split_once(' ').map_or((text, None), |(epoch, sum)| (epoch, Some(sum)));
                self.epoch = epoch.parse().map_err(|_| broken())?;
                self.told = sum.map(|sum| u64::from_str_radix(sum, 16)).transpose().map_err(|_| broken())?;
                return Ok(());
            }
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
                    let head = entry.head.and_then(Head::parse).ok_or_else(broken)?;
                    list.retain(|stored| stored.id != id);
                    list.push(Stored { id, shard: head.shard, shards: head.shards, snapshot: head.snapshot });
                    list.sort_by_key(|stored| stored.id);
                    self.parts.insert(id, head.parts);
                    self.next = self.next.max(id + 1);
                }
            }
            _ => {}
        }
        self.sums.note(entry.key, entry.value, entry.head);
        Ok(())
    }

    /// Whether what was taken in is what the last epoch left; none where its entry does not say.
    pub(super) fn is_whole(&self) -> Option<bool> {
        self.told.map(|told| told == self.sums.all)
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
        out.push(self.last(topic));
        (out, progress)
    }

    fn entry(&mut self, topic: &Arc<str>, key: String, value: Option<Vec<u8>>) -> Outgoing {
        self.sums.note(&key, value.as_deref(), None);
        Outgoing { partition: self.share, ..Outgoing::entry(topic, key, value) }
    }

    /// The entry behind all others of a transaction: the epoch, and what the entries come to.
    fn last(&self, topic: &Arc<str>) -> Outgoing {
        let text = format!("{} {:016x}", self.epoch, self.sums.all);
        Outgoing { partition: self.share, ..Outgoing::entry(topic, EPOCH.to_owned(), Some(text.into_bytes())) }
    }

    fn add_piece(&mut self, topic: &Arc<str>, piece: &StatePiece, out: &mut Vec<Outgoing>) {
        let (topology, step) = (&piece.topology, &piece.step);
        let id = self.next;
        self.next += 1;
        let snapshot = piece.kind == StateKind::Snapshot;
        let parts = u32::try_from(piece.bytes.len().div_ceil(PART).max(1)).unwrap_or(u32::MAX);
        let head = Head { shard: piece.shard, shards: piece.shards, snapshot, parts }.text();
        let shared: Arc<str> = head.as_str().into();
        let key = |id: i64, part: u32| format!("p{UNIT}{topology}{UNIT}{step}{UNIT}{id}{UNIT}{part}");
        for part in 0..parts {
            let start = (part as usize * PART).min(piece.bytes.len());
            let end = (start + PART).min(piece.bytes.len());
            let (key, bytes) = (key(id, part), piece.bytes[start..end].to_vec());
            self.sums.note(&key, Some(&bytes), Some(&head));
            let entry = Outgoing::entry(topic, key, Some(bytes));
            out.push(Outgoing { partition: self.share, headers: vec![(PIECE, HeaderText::Shared(shared.clone()))], ..entry });
        }
        self.parts.insert(id, parts);
        let list = self.pieces.entry((topology.clone(), step.clone())).or_default();
        list.push(Stored { id, shard: piece.shard, shards: piece.shards, snapshot });
        if snapshot {
            let dropped = useless(list, piece.shards);
            list.retain(|stored| !dropped.contains(&stored.id));
            for id in dropped {
                let parts = self.parts.remove(&id).unwrap_or(1);
                for part in 0..parts {
                    out.push(self.entry(topic, key(id, part), None));
                }
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
                for part in 0..parts {
                    let key = format!("p{UNIT}{stored}{UNIT}{step}{UNIT}{}{UNIT}{part}", piece.id);
                    out.push(self.entry(topic, key, None));
                }
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
        out.push(self.last(topic));
        (out, progress)
    }

    /// The topics of a topology's group, and their partitions.
    pub(super) fn places_of(&self, topology: &str) -> Vec<(String, u32)> {
        let group = format!("topology:{topology}");
        let own = self.offsets.iter().filter(|((of, _), _)| share_of(of).0 == group);
        own.flat_map(|((_, topic), places)| places.keys().map(|partition| (topic.clone(), *partition))).collect()
    }
}
