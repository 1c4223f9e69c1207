//! Dead letters in the compacted topic `quikflow.dead`: key the letter's id; `s` ␟ id is its status.
//! An id is taken once (R14): of two processes that write the same, the first one's is listed.

use super::config::{CALL, KafkaOptions, failed};
use super::index::UNIT;
use super::record::Outgoing;
use super::table::Table;
use crate::broker::BrokerError;
use crate::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// All letters, without their bytes.
pub(super) struct DeadLetters {
    table: Table,
    topic: Arc<str>,
    options: KafkaOptions,
    /// By offset.
    letters: BTreeMap<u64, DeadLetter>,
    by_id: HashMap<String, u64>,
    /// When the topic was looked at last; none after something was written here.
    looked: Option<Duration>,
}

/// So long what was read of the topic may be old when letters are listed.
const FRESH: Duration = Duration::from_millis(100);

impl DeadLetters {
    pub(super) fn new(options: &KafkaOptions, topic: &str) -> Result<DeadLetters, BrokerError> {
        let table = Table::new(options, topic)?;
        Ok(DeadLetters {
            table,
            topic: topic.into(),
            options: options.clone(),
            letters: BTreeMap::new(),
            by_id: HashMap::new(),
            looked: None,
        })
    }

    fn catch_up(&mut self) -> Result<(), BrokerError> {
        let DeadLetters { table, letters, by_id, .. } = self;
        table.catch_up(|entry| {
            let Some(value) = entry.value else { return Ok(()) };
            if let Some(id) = entry.key.strip_prefix('s').and_then(|key| key.strip_prefix(UNIT)) {
                let status = serde_json::from_slice(value).map_err(|e| damaged(entry.key, &e))?;
                if let Some(letter) = by_id.get(id).and_then(|offset| letters.get_mut(offset)) {
                    letter.status = status;
                }
            } else if !by_id.contains_key(entry.key) {
                let mut letter = decode(entry.key, value)?;
                letter.bytes = Vec::new();
                by_id.insert(letter.id.clone(), entry.offset);
                letters.insert(entry.offset, letter);
            }
            Ok(())
        })
    }

    /// The records of letters that are not there yet.
    pub(super) fn stage(&mut self, letters: &[DeadLetter]) -> Result<Vec<Outgoing>, BrokerError> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        self.looked = None;
        self.catch_up()?;
        let mut seen = std::collections::HashSet::new();
        let new = letters.iter().filter(|letter| !self.by_id.contains_key(&letter.id) && seen.insert(&letter.id));
        new.map(|letter| Ok(Outgoing::entry(&self.topic, letter.id.clone(), Some(encode(letter)?)))).collect()
    }

    /// The marks of letters that exist.
    pub(super) fn mark(&mut self, ids: &[String], status: DeadLetterStatus) -> Result<Vec<Outgoing>, BrokerError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.looked = None;
        self.catch_up()?;
        let value = serde_json::to_vec(&status).map_err(|e| damaged("status", &e))?;
        let known = ids.iter().filter(|id| self.by_id.contains_key(*id));
        Ok(known.map(|id| Outgoing::entry(&self.topic, format!("s{UNIT}{id}"), Some(value.clone()))).collect())
    }

    /// Lists, newest first, with their bytes.
    pub(super) fn list(&mut self, filter: &DeadLetterFilter) -> Result<Vec<(u64, DeadLetter)>, BrokerError> {
        let now = self.options.clock.elapsed();
        if self.looked.is_none_or(|looked| now.saturating_sub(looked) >= FRESH) {
            self.catch_up()?;
            self.looked = Some(now);
        }
        let before = filter.before_seq.unwrap_or(u64::MAX);
        // A letter's number is its offset and one, so that none is 0.
        let found = self.letters.range(..before.saturating_sub(1)).rev().filter(|(_, letter)| filter.matches(letter));
        let mut found: Vec<(u64, DeadLetter)> =
            found.take(filter.at_most()).map(|(offset, letter)| (*offset, letter.clone())).collect();
        self.fill(&mut found)?;
        Ok(found.into_iter().map(|(offset, letter)| (offset + 1, letter)).collect())
    }

    /// Reads the bytes of the letters at these offsets.
    fn fill(&self, found: &mut [(u64, DeadLetter)]) -> Result<(), BrokerError> {
        let (Some(first), Some(last)) = (found.iter().map(|f| f.0).min(), found.iter().map(|f| f.0).max()) else { return Ok(()) };
        let what = "reading dead letters";
        let consumer = self.options.quick_reader()?;
        let mut list = TopicPartitionList::new();
        let from = Offset::Offset(i64::try_from(first).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic, 0, from).map_err(|e| failed(what, &e))?;
        consumer.assign(&list).map_err(|e| failed(what, &e))?;
        let mut places: HashMap<u64, &mut DeadLetter> = found.iter_mut().map(|(offset, letter)| (*offset, letter)).collect();
        while let Some(Ok(message)) = consumer.poll(CALL) {
            let offset = u64::try_from(message.offset()).unwrap_or(0);
            if let (Some(letter), Some(value)) = (places.remove(&offset), message.payload()) {
                letter.bytes = decode(&letter.id, value)?.bytes;
            }
            if offset >= last || places.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn damaged(what: &str, error: &serde_json::Error) -> BrokerError {
    BrokerError::Corrupt(format!("the dead letter `{what}` cannot be read or written: {error}"))
}

/// JSON, the bytes in base64.
fn encode(letter: &DeadLetter) -> Result<Vec<u8>, BrokerError> {
    let bare = DeadLetter { bytes: Vec::new(), ..letter.clone() };
    let mut value = serde_json::to_value(&bare).map_err(|e| damaged(&letter.id, &e))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("bytes".to_owned(), STANDARD.encode(&letter.bytes).into());
    }
    serde_json::to_vec(&value).map_err(|e| damaged(&letter.id, &e))
}

fn decode(id: &str, stored: &[u8]) -> Result<DeadLetter, BrokerError> {
    let mut value: serde_json::Value = serde_json::from_slice(stored).map_err(|e| damaged(id, &e))?;
    let text = value.get("bytes").and_then(|bytes| bytes.as_str()).unwrap_or("").to_owned();
    if let Some(object) = value.as_object_mut() {
        object.insert("bytes".to_owned(), serde_json::Value::Array(Vec::new()));
    }
    let mut letter: DeadLetter = serde_json::from_value(value).map_err(|e| damaged(id, &e))?;
    letter.bytes =
        STANDARD.decode(text).map_err(|e| BrokerError::Corrupt(format!("the dead letter `{id}` cannot be read: {e}")))?;
    Ok(letter)
}
