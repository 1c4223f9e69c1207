//! What epochs leave behind: the entries of the journal, and what they add up to.
//!
//! The journal is a topic of one partition, so its entries have one order that everyone sees. An
//! entry counts if it follows: `seq` one above the last that counted, by the process that has taken
//! over last. So an entry written twice counts once, and one that a process writes after another
//! has taken over does not count: everyone who reads the journal comes to the same book.

use super::record::Outgoing;
use crate::broker::{BrokerError, StateKind, StatePiece};
use crate::brokers::pieces::{Stored, useless};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of an entry in one record.
const PART: usize = 512 << 10;
/// What every part begins with: the form's version.
const MAGIC: &[u8; 4] = b"QFJ1";
/// Entries whose parts are not all there, kept at most: those of processes that died.
const OPEN: usize = 64;

/// A group's place: (group, topic, partition).
pub(super) type Place = (String, String, u32);

/// Bytes as base64.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        STANDARD.encode(bytes.0)
    }
}

impl TryFrom<String> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Bytes, base64::DecodeError> {
        STANDARD.decode(text).map(Bytes)
    }
}

/// A piece of state in an entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Piece {
    topology: String,
    step: String,
    shard: u32,
    shards: u32,
    snapshot: bool,
    bytes: Bytes,
}

/// What an epoch still has to write to topics: known again after a restart, under the same ids.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Delivery {
    pub(super) epoch: u64,
    pub(super) outputs: Vec<Outgoing>,
    /// Dead letters as JSON.
    pub(super) letters: Vec<String>,
    pub(super) replayed: Vec<String>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A process takes over.
    Takeover,
    /// It changes the book.
    Change,
    /// It is the whole book: what was before is not needed.
    Whole,
}

/// An entry of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// How often the journal was taken over, this time included.
    pub(super) by: u64,
    /// The process.
    pub(super) who: String,
    pub(super) seq: u64,
    pub(super) epoch: Option<u64>,
    pub(super) delivery: Option<Delivery>,
    /// A topology whose state, meta and offsets are thrown away first.
    pub(super) forget: Option<String>,
    pub(super) pieces: Vec<Piece>,
    /// Group, topic, partition, next offset.
    pub(super) offsets: Vec<(String, String, u32, u64)>,
    /// Topology, name, value.
    pub(super) meta: Vec<(String, String, Bytes)>,
    pub(super) generations: Vec<(String, u64)>,
    /// Topic: the first offset of each partition that is not thrown away.
    pub(super) floors: Vec<(String, Vec<u64>)>,
}

impl Entry {
    /// One that changes nothing yet.
    pub(super) fn new(kind: Kind, by: u64, who: &str, seq: u64) -> Entry {
        Entry {
            kind,
            by,
            who: who.to_owned(),
            seq,
            epoch: None,
            delivery: None,
            forget: None,
            pieces: Vec::new(),
            offsets: Vec::new(),
            meta: Vec::new(),
            generations: Vec::new(),
            floors: Vec::new(),
        }
    }

    pub(super) fn add_piece(&mut self, piece: &StatePiece) {
        self.pieces.push(Piece {
            topology: piece.topology.clone(),
            step: piece.step.clone(),
            shard: piece.shard,
            shards: piece.shards,
            snapshot: piece.kind == StateKind::Snapshot,
            bytes: Bytes(piece.bytes.clone()),
        });
    }

    /// Its checksum, and the values of its records: compressed, in parts, each with the checksum.
    pub(super) fn parts(&self) -> Result<(u64, Vec<Vec<u8>>), BrokerError> {
        let json = serde_json::to_vec(self).map_err(|e| BrokerError::Storage(format!("fluvio: {e}")))?;
        let packed = lz4_flex::compress_prepend_size(&json);
        let id = xxhash_rust::xxh3::xxh3_64(&packed);
        let chunks: Vec<&[u8]> = packed.chunks(PART).collect();
        let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let part = |(number, chunk): (u32, &&[u8])| {
            let mut value = Vec::with_capacity(20 + chunk.len());
            value.extend_from_slice(MAGIC);
            value.extend_from_slice(&id.to_le_bytes());
            value.extend_from_slice(&number.to_le_bytes());
            value.extend_from_slice(&count.to_le_bytes());
            value.extend_from_slice(chunk);
            value
        };
        Ok((id, (0..).zip(&chunks).map(part).collect()))
    }
}

/// Puts entries together from their parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Assembler {
    /// By checksum: which place it was begun at, and its parts.
    open: BTreeMap<u64, (u64, BTreeMap<u32, Vec<u8>>)>,
    /// What this process has written, by checksum: it need not be unpacked when it comes back.
    expected: Option<(u64, Entry)>,
}

impl Assembler {
    /// An entry that is being written.
    pub(super) fn expect(&mut self, id: u64, entry: Entry) {
        self.expected = Some((id, entry));
    }

    /// Takes a record's value in; the entry, if that was its last part.
    pub(super) fn take(&mut self, offset: u64, value: &[u8]) -> Result<Option<Entry>, BrokerError> {
        let broken = |why: &str| BrokerError::Corrupt(format!("the record at {offset} of Fluvio's journal {why}"));
        let head = value.split_at_checked(20).filter(|(head, _)| head.starts_with(MAGIC));
        let Some((head, body)) = head else { return Err(broken("is none of this version")) };
        let number = |from: usize| head.get(from..from + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let id = head.get(4..12).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let (Some(id), Some(part), Some(count)) = (id, number(12), number(16)) else { return Err(broken("is cut off")) };
        let (_, parts) = self.open.entry(id).or_insert_with(|| (offset, BTreeMap::new()));
        parts.insert(part, body.to_vec());
        if parts.len() < count as usize {
            while self.open.len() > OPEN {
                let oldest = self.open.iter().min_by_key(|(_, (begun, _))| *begun).map(|(id, _)| *id);
                oldest.map(|id| self.open.remove(&id));
            }
            return Ok(None);
        }
        let packed: Vec<u8> = self.open.remove(&id).map(|(_, parts)| parts.into_values().flatten().collect()).unwrap_or_default();
        if xxhash_rust::xxh3::xxh3_64(&packed) != id {
            return Err(broken("does not match its checksum"));
        }
        if let Some((_, entry)) = self.expected.take_if(|(expected, _)| *expected == id) {
            return Ok(Some(entry));
        }
        let json = lz4_flex::decompress_size_prepended(&packed).map_err(|e| broken(&format!("cannot be unpacked: {e}")))?;
        serde_json::from_slice(&json).map(Some).map_err(|e| broken(&format!("cannot be read: {e}")))
    }
}

/// A piece, with its bytes where they are kept.
#[derive(Clone, Debug)]
struct Kept {
    stored: Stored,
    bytes: Option<Vec<u8>>,
}

/// What all entries that count add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// Whether the bytes of pieces are kept.
    keep: bool,
    pub(super) by: u64,
    pub(super) who: String,
    pub(super) seq: u64,
    pub(super) epoch: u64,
    pub(super) offsets: BTreeMap<Place, u64>,
    pub(super) meta: BTreeMap<(String, String), Vec<u8>>,
    pub(super) generations: BTreeMap<String, u64>,
    pub(super) floors: BTreeMap<String, Vec<u64>>,
    /// By (topology, step), in the order of their commits.
    pieces: BTreeMap<(String, String), Vec<Kept>>,
    next_piece: i64,
    /// The last epoch's: the ones before were delivered before it was written.
    pub(super) delivery: Arc<Delivery>,
}

impl Book {
    pub(super) fn new(keep: bool) -> Book {
        Book { keep, ..Book::default() }
    }

    /// Takes an entry in; whether it counted.
    pub(super) fn take(&mut self, entry: Entry) -> bool {
        let first = self.by == 0 && self.seq == 0;
        let counts = match entry.kind {
            Kind::Takeover => entry.by > self.by,
            // Reading begins at a whole book, where there is one.
            Kind::Whole if first => true,
            Kind::Change | Kind::Whole => entry.by == self.by && entry.who == self.who && entry.seq == self.seq + 1,
        };
        if !counts {
            return false;
        }
        if entry.kind == Kind::Takeover {
            (self.by, self.who) = (entry.by, entry.who);
            return true;
        }
        if entry.kind == Kind::Whole {
            *self = Book::new(self.keep);
            (self.by, self.who) = (entry.by, entry.who);
        }
        self.seq = entry.seq;
        self.epoch = entry.epoch.unwrap_or(self.epoch);
        if let Some(delivery) = entry.delivery {
            self.delivery = Arc::new(delivery);
        }
        if let Some(topology) = entry.forget {
            let group = format!("topology:{topology}");
            self.pieces.retain(|(of, _), _| *of != topology);
            self.meta.retain(|(of, _), _| *of != topology);
            self.offsets.retain(|(of, ..), _| *of != group);
        }
        for piece in entry.pieces {
            self.add(piece);
        }
        self.offsets.extend(entry.offsets.into_iter().map(|(group, topic, partition, next)| ((group, topic, partition), next)));
        self.meta.extend(entry.meta.into_iter().map(|(topology, name, value)| ((topology, name), value.0)));
        self.generations.extend(entry.generations);
        self.floors.extend(entry.floors);
        true
    }

    fn add(&mut self, piece: Piece) {
        let stored = Stored { id: self.next_piece, shard: piece.shard, shards: piece.shards, snapshot: piece.snapshot };
        self.next_piece += 1;
        let list = self.pieces.entry((piece.topology, piece.step)).or_default();
        list.push(Kept { stored, bytes: self.keep.then_some(piece.bytes.0) });
        if piece.snapshot {
            let all: Vec<Stored> = list.iter().map(|kept| kept.stored).collect();
            let dropped = useless(&all, piece.shards);
            list.retain(|kept| !dropped.contains(&kept.stored.id));
        }
    }

    /// A topology's pieces, of a book that keeps bytes.
    pub(super) fn pieces(&self, topology: &str) -> Vec<StatePiece> {
        let mut found: Vec<(i64, StatePiece)> = Vec::new();
        for ((of, step), list) in self.pieces.iter().filter(|((of, _), _)| of == topology) {
            for Kept { stored, bytes } in list {
                let kind = if stored.snapshot { StateKind::Snapshot } else { StateKind::Delta };
                let (shard, shards) = (stored.shard, stored.shards);
                let bytes = bytes.clone().unwrap_or_default();
                found.push((stored.id, StatePiece { topology: of.clone(), step: step.clone(), shard, shards, kind, bytes }));
            }
        }
        found.sort_by_key(|(id, _)| *id);
        found.into_iter().map(|(_, piece)| piece).collect()
    }

    /// The book as one entry; it has to keep bytes.
    pub(super) fn whole(&self, by: u64, who: &str, seq: u64) -> Entry {
        let mut entry = Entry::new(Kind::Whole, by, who, seq);
        entry.epoch = Some(self.epoch);
        entry.delivery = Some(Delivery::clone(&self.delivery));
        let topologies: std::collections::BTreeSet<&String> = self.pieces.keys().map(|(topology, _)| topology).collect();
        for topology in topologies {
            self.pieces(topology).iter().for_each(|piece| entry.add_piece(piece));
        }
        entry.offsets = self.offsets.iter().map(|((g, t, p), next)| (g.clone(), t.clone(), *p, *next)).collect();
        entry.meta = self.meta.iter().map(|((t, n), value)| (t.clone(), n.clone(), Bytes(value.clone()))).collect();
        entry.generations = self.generations.clone().into_iter().collect();
        entry.floors = self.floors.clone().into_iter().collect();
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(by: u64, who: &str, seq: u64, epoch: u64) -> Entry {
        Entry { epoch: Some(epoch), ..Entry::new(Kind::Change, by, who, seq) }
    }

    #[test]
    fn an_entry_counts_once_and_none_of_a_process_that_was_taken_over_from() {
        let mut book = Book::new(false);
        let takeover = |by: u64, who: &str| Entry::new(Kind::Takeover, by, who, 0);
        assert!(book.take(takeover(1, "a")));
        assert!(book.take(change(1, "a", 1, 7)));
        assert!(!book.take(change(1, "a", 1, 7)) && !book.take(change(1, "a", 3, 9)));
        // Two take over at once: the first in the journal has it.
        assert!(book.take(takeover(2, "b")) && !book.take(takeover(2, "c")));
        assert!(!book.take(change(1, "a", 2, 8)) && !book.take(change(2, "c", 2, 8)));
        assert!(book.take(change(2, "b", 2, 8)));
        assert_eq!((book.epoch, book.seq, book.who.as_str()), (8, 2, "b"));
    }

    #[test]
    fn a_whole_book_begins_anew_and_parts_come_in_any_company() {
        let piece = |bytes: Vec<u8>| StatePiece {
            topology: "t".into(),
            step: "s".into(),
            shard: 0,
            shards: 1,
            kind: StateKind::Delta,
            bytes,
        };
        let noise: Vec<u8> = (0..300_000_u64).flat_map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes()).collect();
        let mut entry = change(1, "a", 1, 5);
        entry.add_piece(&piece(noise.clone()));
        let (parts, other) = (entry.parts().unwrap().1, change(1, "a", 2, 6).parts().unwrap().1);
        assert!(parts.len() > 2, "{}", parts.len());
        let mut assembler = Assembler::default();
        let mut book = Book::new(true);
        book.take(Entry::new(Kind::Takeover, 1, "a", 0));
        for (offset, value) in (0..).zip(parts[..2].iter().chain(&parts[..1]).chain(&other)) {
            if let Some(entry) = assembler.take(offset, value).unwrap() {
                // The other entry is complete first, and does not follow.
                assert!(!book.take(entry));
            }
        }
        let mut done = Vec::new();
        for value in &parts[2..] {
            done.extend(assembler.take(9, value).unwrap());
        }
        assert!(done.len() == 1 && book.take(done.remove(0)));
        let whole = book.whole(1, "a", 2);
        let mut again = Book::new(true);
        assert!(again.take(whole));
        assert_eq!((again.epoch, again.seq, again.by), (5, 2, 1));
        assert_eq!(again.pieces("t")[0].bytes, noise);
        let mut damaged = other[0].clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(assembler.take(10, &damaged), Err(BrokerError::Corrupt(_))));
        assert!(matches!(assembler.take(11, b"{}"), Err(BrokerError::Corrupt(_))));
    }
}
