//! A row as a Fluvio record, and back.
//!
//! Key: the record's key; the partition is murmur2 of it, as on Kafka. Value: the canonical JSON,
//! with one member more at its end, since Fluvio's records have no headers:
//!
//! `…,"_quikflow":{"by":"epochs","no":[12,5],"type":"ROW","time":1700000000000000}}`
//!
//! (`by`, `no`) is the record's id. Within a partition the numbers of one writer rise, so a reader
//! knows a repeat by its number not being above the last one it has seen of that writer.

use super::endpoint::{Found, Raw};
use crate::broker::{BrokerError, TopicRows};
use crate::brokers::records::{Incoming, own_time};
use crate::json::Encoder;
use crate::partitioner::partition_of;
use crate::schema::{EVENT_TIME, KEY, TYPE};
use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Before the member that holds a record's id.
const MARK: &str = "\"_quikflow\":{";

/// A record's number: of its epoch or line, and its place within that.
pub(super) type Number = (u64, u64);

/// A record on its way out, without its number yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outgoing {
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) key: Option<String>,
    /// Canonical JSON.
    pub(super) json: String,
    pub(super) ty: String,
    pub(super) time: i64,
}

/// The member.
#[derive(Serialize, Deserialize)]
struct Mark {
    by: String,
    no: Number,
    #[serde(rename = "type")]
    ty: String,
    time: i64,
}

impl Outgoing {
    /// With its id.
    pub(super) fn raw(&self, by: &str, no: Number) -> Result<Raw, BrokerError> {
        let mark = Mark { by: by.to_owned(), no, ty: self.ty.clone(), time: self.time };
        let mark = serde_json::to_string(&mark).map_err(|e| BrokerError::Storage(format!("fluvio: {e}")))?;
        let body = self.json.strip_suffix('}').unwrap_or(&self.json);
        let comma = if body.ends_with('{') { "" } else { "," };
        let mark = mark.strip_prefix('{').unwrap_or(&mark);
        Ok(Raw { key: self.key.clone(), value: format!("{body}{comma}{MARK}{mark}}}").into_bytes() })
    }
}

/// Rows as records.
pub(super) fn encode(rows: &TopicRows) -> Result<Vec<Outgoing>, BrokerError> {
    let batch = &rows.rows;
    let missing = |name: &str| BrokerError::Storage(format!("rows to append have no column `{name}`"));
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| missing(name));
    let text = |name: &'static str| column(name)?.as_string_opt::<i32>().ok_or_else(|| missing(name));
    let (keys, types) = (text(KEY)?, text(TYPE)?);
    let times = column(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| missing(EVENT_TIME))?;
    let encoder = Encoder::new(&rows.topic, batch).map_err(|e| BrokerError::Storage(e.to_string()))?;
    let of = |row: usize| {
        let key = keys.is_valid(row).then(|| keys.value(row).to_owned());
        Outgoing {
            topic: rows.topic.name.clone(),
            partition: partition_of(key.as_deref(), rows.topic.partitions).0,
            key,
            json: encoder.row(row),
            ty: types.value(row).to_owned(),
            time: times.value(row),
        }
    };
    Ok((0..batch.num_rows()).map(of).collect())
}

/// Records by (topic, partition), each with its id: `number` says the first part, the place within
/// the partition is the second.
pub(super) fn numbered(records: &[Outgoing], by: &str, number: u64) -> Result<BTreeMap<(String, u32), Vec<Raw>>, BrokerError> {
    let mut groups: BTreeMap<(String, u32), Vec<Raw>> = BTreeMap::new();
    for record in records {
        let group = groups.entry((record.topic.clone(), record.partition)).or_default();
        let place = group.len() as u64;
        group.push(record.raw(by, (number, place))?);
    }
    Ok(groups)
}

/// Who wrote a record, and its number; none of records that others wrote.
pub(super) type Id = Option<(String, Number)>;

/// A record without its mark, and its id.
pub(super) fn incoming(partition: u32, found: Found) -> (Incoming, Id) {
    let key = found.key.map(|key| Bytes::from(String::from_utf8_lossy(&key).into_owned()));
    let (offset, arrival) = (found.offset, found.arrival);
    match unmark(&found.value) {
        Some((value, mark)) => {
            let record = Incoming {
                partition,
                offset,
                arrival,
                event_time: mark.time,
                key,
                ty: Some(mark.ty.into()),
                value: value.into(),
            };
            (record, Some((mark.by, mark.no)))
        }
        None => {
            let event_time = own_time(&found.value).unwrap_or(arrival);
            (Incoming { partition, offset, arrival, event_time, key, ty: None, value: found.value.into() }, None)
        }
    }
}

/// The value without its mark, and the mark.
fn unmark(value: &[u8]) -> Option<(Vec<u8>, Mark)> {
    let at = memchr::memmem::rfind(value, MARK.as_bytes())?;
    let inner = value.get(at + MARK.len() - 1..)?.strip_suffix(b"}")?;
    let mark: Mark = serde_json::from_slice(inner).ok()?;
    let body = value.get(..at)?;
    let mut bare = body.strip_suffix(b",").unwrap_or(body).to_vec();
    bare.push(b'}');
    Some((bare, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(json: &str) -> Outgoing {
        Outgoing { topic: "t".into(), partition: 0, key: None, json: json.into(), ty: "T".into(), time: 7 }
    }

    #[test]
    fn a_mark_comes_off_as_it_was_put_on() {
        for json in ["{}", "{\"a\":1}", "{\"a\":\",\\\"_quikflow\\\":{\"}", "{\"_quikflow\":{\"by\":\"x\"},\"b\":{}}"] {
            let raw = outgoing(json).raw("a\"b", (3, 4)).unwrap();
            let whole: serde_json::Value = serde_json::from_slice(&raw.value).unwrap();
            assert_eq!(whole["_quikflow"]["no"], serde_json::json!([3, 4]));
            let (incoming, id) = incoming(0, Found { offset: 1, arrival: 9, key: None, value: raw.value });
            assert_eq!(String::from_utf8(incoming.value.to_vec()).unwrap(), json);
            assert_eq!((id, incoming.event_time), (Some(("a\"b".to_owned(), (3, 4))), 7));
        }
    }

    #[test]
    fn what_others_wrote_is_left_as_it_is() {
        let value = b"{\"timestamp\":\"1970-01-01T00:00:01Z\",\"_quikflow\":{\"no\":1}}".to_vec();
        let (incoming, id) = incoming(2, Found { offset: 0, arrival: 5, key: Some(b"k".to_vec()), value: value.clone() });
        assert_eq!((incoming.value, id, incoming.event_time), (Bytes::from(value), None, 1_000_000));
    }
}
