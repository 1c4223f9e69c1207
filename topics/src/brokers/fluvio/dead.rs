//! Dead letters: an own topic of one partition, in which the first letter of an id counts.

use super::endpoint::{Cluster, Raw};
use crate::broker::BrokerError;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A record of the topic.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Note {
    /// The bytes are apart, in base64.
    Letter {
        letter: Box<DeadLetter>,
        bytes: String,
    },
    Status {
        ids: Vec<String>,
        status: DeadLetterStatus,
    },
}

/// What was read of the topic; the letters' bytes are read when they are asked for.
pub(super) struct DeadLetters {
    cluster: Cluster,
    topic: String,
    next: u64,
    letters: BTreeMap<u64, DeadLetter>,
    by_id: HashMap<String, u64>,
}

fn broken(what: impl std::fmt::Display) -> BrokerError {
    BrokerError::Corrupt(format!("a dead letter cannot be read or written: {what}"))
}

/// A letter as it is written.
pub(super) fn encode(letter: &DeadLetter) -> Result<String, BrokerError> {
    let bytes = STANDARD.encode(&letter.bytes);
    let note = Note::Letter { letter: Box::new(DeadLetter { bytes: Vec::new(), ..letter.clone() }), bytes };
    serde_json::to_string(&note).map_err(broken)
}

impl DeadLetters {
    pub(super) fn new(cluster: &Cluster, topic: &str) -> DeadLetters {
        let (letters, by_id) = (BTreeMap::new(), HashMap::new());
        DeadLetters { cluster: cluster.clone(), topic: topic.to_owned(), next: 0, letters, by_id }
    }

    fn catch_up(&mut self) -> Result<(), BrokerError> {
        self.cluster.follow(&self.topic, &mut self.next, |record| {
            match serde_json::from_slice(&record.value).map_err(broken)? {
                Note::Letter { letter, .. } if !self.by_id.contains_key(&letter.id) => {
                    self.by_id.insert(letter.id.clone(), record.offset);
                    self.letters.insert(record.offset, *letter);
                }
                Note::Letter { .. } => {}
                Note::Status { ids, status } => {
                    for id in ids {
                        if let Some(letter) = self.by_id.get(&id).and_then(|offset| self.letters.get_mut(offset)) {
                            letter.status = status;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// Writes letters that are not there yet (as [`encode`] gives them) and marks those replayed.
    pub(super) fn write(&mut self, letters: &[String], replayed: &[String]) -> Result<(), BrokerError> {
        if letters.is_empty() && replayed.is_empty() {
            return Ok(());
        }
        self.catch_up()?;
        let mut records = Vec::new();
        let mut seen = HashSet::new();
        for text in letters {
            let note: Note = serde_json::from_str(text).map_err(broken)?;
            if let Note::Letter { letter, .. } = &note
                && !self.by_id.contains_key(&letter.id)
                && seen.insert(letter.id.clone())
            {
                records.push(Raw { key: None, value: text.clone().into_bytes() });
            }
        }
        self.mark_into(replayed, DeadLetterStatus::Replayed, &mut records)?;
        if records.is_empty() {
            return Ok(());
        }
        self.cluster.produce(&self.topic, 0, &records).map(drop)
    }

    fn mark_into(&self, ids: &[String], status: DeadLetterStatus, records: &mut Vec<Raw>) -> Result<usize, BrokerError> {
        let ids: Vec<String> = ids.iter().filter(|id| self.by_id.contains_key(*id)).cloned().collect();
        let count = ids.len();
        if count > 0 {
            let value = serde_json::to_vec(&Note::Status { ids, status }).map_err(broken)?;
            records.push(Raw { key: None, value });
        }
        Ok(count)
    }

    /// Sets a status; how many letters there were.
    pub(super) fn mark(&mut self, ids: &[String], status: DeadLetterStatus) -> Result<usize, BrokerError> {
        self.catch_up()?;
        let mut records = Vec::new();
        let count = self.mark_into(ids, status, &mut records)?;
        if !records.is_empty() {
            self.cluster.produce(&self.topic, 0, &records)?;
        }
        Ok(count)
    }

    /// Lists, newest first, with their bytes.
    pub(super) fn list(&mut self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        self.catch_up()?;
        // A letter's number is its offset and one, so that none is 0.
        let before = filter.before_seq.unwrap_or(u64::MAX).saturating_sub(1);
        let chosen: Vec<(u64, DeadLetter)> = self
            .letters
            .range(..before)
            .rev()
            .filter(|(_, letter)| filter.matches(letter))
            .take(filter.at_most())
            .map(|(offset, letter)| (*offset, letter.clone()))
            .collect();
        chosen.into_iter().map(|(offset, letter)| Ok((offset + 1, DeadLetter { bytes: self.bytes(offset)?, ..letter }))).collect()
    }

    fn bytes(&self, offset: u64) -> Result<Vec<u8>, BrokerError> {
        let found = self.cluster.record(&self.topic, 0, offset)?;
        // What retention took in between has no bytes any more.
        let Some(found) = found else { return Ok(Vec::new()) };
        match serde_json::from_slice(&found.value).map_err(broken)? {
            Note::Letter { bytes, .. } => STANDARD.decode(bytes).map_err(broken),
            Note::Status { .. } => Ok(Vec::new()),
        }
    }
}
