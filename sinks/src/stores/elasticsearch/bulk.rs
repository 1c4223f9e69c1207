//! The lines of a bulk request, written straight from the rows, and what its answer says of each.

use super::{NAME, id_of};
use crate::store::StoreError;
use crate::stores::layout::Layout;
use crate::stores::remote::{Guard, Put, PutOutcome, Stored, refused, unavailable};
use quikflow_topics::catalogue::FieldType;
use rusqlite::types::Value;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// An action and a document for each row.
pub(super) fn lines(layout: &Layout, puts: &[Put], words: &[String]) -> Result<String, StoreError> {
    let mut out = Vec::with_capacity(puts.len() * 512);
    for (Put { row, guard }, words) in puts.iter().zip(words) {
        let broken = |e: serde_json::Error| refused(NAME, format!("a row cannot be written as JSON: {e}"));
        serde_json::to_writer(&mut out, &Action { id: &id_of(&row.key), row, guard: *guard }).map_err(broken)?;
        out.push(b'\n');
        serde_json::to_writer(&mut out, &Source { layout, row, words }).map_err(broken)?;
        out.push(b'\n');
    }
    String::from_utf8(out).map_err(|e| refused(NAME, format!("a row is no text: {e}")))
}

struct Action<'a> {
    id: &'a str,
    row: &'a Stored,
    guard: Guard,
}

impl Serialize for Action<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Target<'a> {
            #[serde(rename = "_id")]
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            version: Option<i64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            version_type: Option<&'static str>,
        }
        let (name, version) = match self.guard {
            Guard::Newer => ("index", Some(self.row.base)),
            Guard::Revision(_) => ("index", Some(self.row.revision)),
            Guard::Absent => ("create", None),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(name, &Target { id: self.id, version, version_type: version.map(|_| "external") })?;
        map.end()
    }
}

struct Source<'a> {
    layout: &'a Layout,
    row: &'a Stored,
    words: &'a str,
}

impl Serialize for Source<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = self.row;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("k", &row.key)?;
        map.serialize_entry("v", &row.base)?;
        map.serialize_entry("gone", &row.gone)?;
        map.serialize_entry("arr", &row.arrival)?;
        map.serialize_entry("rev", &row.revision)?;
        map.serialize_entry("words", self.words)?;
        map.serialize_entry("doc", &Doc { layout: self.layout, row })?;
        for (name, text) in [("vs", &row.versions), ("sets", &row.sets)] {
            if let Some(text) = text {
                map.serialize_entry(name, text)?;
            }
        }
        map.end()
    }
}

/// The visible columns: nulls left out, times as whole numbers, lists as lists.
struct Doc<'a> {
    layout: &'a Layout,
    row: &'a Stored,
}

impl Serialize for Doc<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (column, value) in self.layout.columns.iter().zip(&self.row.values) {
            match (column.ty, value) {
                (_, Value::Null | Value::Blob(_)) => {}
                (FieldType::Bool, Value::Integer(i)) => map.serialize_entry(&column.name, &(*i != 0))?,
                (_, Value::Integer(i)) => map.serialize_entry(&column.name, i)?,
                (_, Value::Real(r)) => map.serialize_entry(&column.name, r)?,
                (FieldType::StringList, Value::Text(t)) => {
                    map.serialize_entry(&column.name, &serde_json::from_str::<&RawValue>(t).ok())?;
                }
                (_, Value::Text(t)) => map.serialize_entry(&column.name, t)?,
            }
        }
        map.end()
    }
}

/// What an item of the answer says of its row.
pub(super) fn outcome(item: &Json) -> Result<PutOutcome, StoreError> {
    let item = if item["index"].is_object() { &item["index"] } else { &item["create"] };
    let reason = || super::reason(item);
    Ok(match item["status"].as_u64().unwrap_or(0) {
        200..=299 => PutOutcome::Done,
        409 => PutOutcome::Lost,
        // Not this row: the index takes none.
        429 if item["error"]["type"] == "cluster_block_exception" => {
            return Err(unavailable(NAME, format!("the server's disk is full: {}", reason())));
        }
        429 | 0 | 500.. | 404 => PutOutcome::Busy,
        403 => return Err(refused(NAME, format!("the index is read-only: {}", reason()))),
        status => {
            let kind = item["error"]["type"].as_str().unwrap_or("refused");
            PutOutcome::Rejected { code: kind.to_owned(), message: format!("status {status}: {}", reason()) }
        }
    })
}
