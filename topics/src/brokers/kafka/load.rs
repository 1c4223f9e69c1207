//! A share of `quikflow.state` as its last epoch left it, put together entry by entry.

use super::config::KafkaOptions;
use super::index::{EPOCH, Head, Index, damaged, piece_key};
use super::table::{Entry, Table};
use crate::broker::{BrokerError, StateKind, StatePiece};
use std::collections::BTreeMap;

/// A share, whole.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// All pieces, by topology as it is stored, in the order of their commits.
    pub(super) pieces: BTreeMap<String, Vec<StatePiece>>,
}

/// What was read of a share so far.
pub(super) struct Loading {
    index: Index,
    open: BTreeMap<i64, Open>,
}

/// A piece whose parts come one after the other.
struct Open {
    topology: String,
    step: String,
    head: Head,
    parts: BTreeMap<u32, Vec<u8>>,
}

impl Loading {
    pub(super) fn new(share: u32) -> Loading {
        Loading { index: Index::new(share), open: BTreeMap::new() }
    }

    /// Takes the next entry in.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), BrokerError> {
        self.index.take(entry)?;
        let Some((topology, step, id, part)) = piece_key(entry.key) else { return Ok(()) };
        let Some(value) = entry.value else {
            self.open.remove(&id);
            return Ok(());
        };
        let head = entry.head.and_then(Head::parse).ok_or_else(|| damaged(entry.key))?;
        let new = || Open { topology: topology.to_owned(), step: step.to_owned(), head, parts: BTreeMap::new() };
        self.open.entry(id).or_insert_with(new).parts.insert(part, value.to_vec());
        Ok(())
    }

    /// Whether all that was taken in is what the last epoch left; none where no epoch says it.
    pub(super) fn is_whole(&self) -> Option<bool> {
        self.index.is_whole()
    }

    /// The share.
    ///
    /// # Errors
    /// Entries are missing or old.
    pub(super) fn finish(self) -> Result<Loaded, BrokerError> {
        if self.is_whole() == Some(false) {
            return Err(damaged(EPOCH));
        }
        let mut pieces: BTreeMap<String, Vec<StatePiece>> = BTreeMap::new();
        for (id, piece) in self.open {
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
        Ok(Loaded { index: self.index, pieces })
    }
}

/// Reads a share whole from Kafka.
pub(super) fn load(options: &KafkaOptions, topic: &str, share: u32) -> Result<Loaded, BrokerError> {
    let mut loading = Loading::new(share);
    Table::of(options, topic, share)?.catch_up(|entry| loading.take(entry))?;
    loading.finish()
}
