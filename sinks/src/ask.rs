//! Reads of embedded stores as one process asks another that has them: embedded stores are files of
//! one process, and whoever else is asked for what is in them passes the question on.
//!
//! An [`Ask`] is the JSON body of a request; a table's scan is answered as an Arrow stream, anything
//! else as JSON.

use crate::store::{Page, ReadSide, ScanRequest, StoreError};
use quikflow_topics::broker::Positions;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The path that takes an [`Ask`].
pub const PATH: &str = "/v1/stores";
/// The header of a scan's answer that says which offsets it reflects: a JSON object by partition.
pub const AS_OF: &str = "x-as-of";
/// Documents of a page at most.
const LONGEST: usize = 1_000;

/// A read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// The names of the tables that the process has itself.
    Tables,
    /// A table's rows, as an Arrow stream ([`crate::store::Tables::scan`]).
    Scan {
        /// The table.
        table: String,
        /// Columns in the order wanted; all where absent.
        columns: Option<Vec<String>>,
        /// Not before, in microseconds.
        from: Option<i64>,
        /// Before, in microseconds.
        to: Option<i64>,
        /// A hint: column = text.
        equals: Vec<(String, String)>,
    },
    /// One document ([`crate::store::Documents::get`]).
    Get {
        /// The table.
        table: String,
        /// The document's id.
        id: String,
    },
    /// A page of documents ([`crate::store::Documents::list`]).
    List {
        /// The table.
        table: String,
        /// Field = value.
        equals: Vec<(String, String)>,
        /// Not before, in microseconds.
        from: Option<i64>,
        /// Before, in microseconds.
        to: Option<i64>,
        /// Where the page before ended.
        cursor: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// A page of what a search finds ([`crate::store::Search::search`]).
    Search {
        /// The words.
        query: String,
        /// Field = value.
        filter: Vec<(String, String)>,
        /// Where the page before ended.
        cursor: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// How many notifications a user has not read ([`crate::store::NotificationInbox::badge`]).
    Badge {
        /// Whose.
        user: String,
    },
    /// Marks a notification as read ([`crate::store::NotificationInbox::mark_read`]).
    MarkRead {
        /// Whose.
        user: String,
        /// Which.
        id: String,
    },
}

impl Ask {
    /// A scan.
    pub fn scan(table: &str, request: &ScanRequest) -> Ask {
        Ask::Scan {
            table: table.to_owned(),
            columns: request.columns.clone(),
            from: request.from.map(|time| time.0),
            to: request.to.map(|time| time.0),
            equals: request.equals.clone(),
        }
    }
}

impl ReadSide {
    /// Answers anything but a scan, which is answered by [`crate::store::Tables::scan`].
    ///
    /// # Errors
    /// What the store answers; `BadRequest` for a scan.
    pub async fn answer(&self, ask: Ask) -> Result<Value, StoreError> {
        match ask {
            Ask::Tables => Ok(self.tables.tables().into_iter().map(|table| Value::from(table.name)).collect()),
            Ask::Scan { .. } => Err(StoreError::BadRequest("a scan is answered as a stream".into())),
            Ask::Get { table, id } => Ok(json!(self.documents.get(&table, &id).await?)),
            Ask::List { table, equals, from, to, cursor, limit } => {
                let limit = limit.min(LONGEST);
                let (from, to) = (from.map(EventTime), to.map(EventTime));
                Ok(page_json(self.documents.list(&table, &equals, from, to, cursor.as_deref(), limit).await?))
            }
            Ask::Search { query, filter, cursor, limit } => {
                Ok(page_json(self.search.search(&query, &filter, cursor.as_deref(), limit.min(LONGEST)).await?))
            }
            Ask::Badge { user } => Ok(self.inbox.badge(&user).await?.into()),
            Ask::MarkRead { user, id } => Ok(self.inbox.mark_read(&user, &id).await?.into()),
        }
    }
}

fn page_json(page: Page) -> Value {
    json!({ "items": page.items, "cursor": page.cursor })
}

/// A page out of its answer; none where it is not one.
pub(crate) fn page_of(answer: Value) -> Option<Page> {
    let Value::Object(mut answer) = answer else { return None };
    let Some(Value::Array(items)) = answer.remove("items") else { return None };
    let cursor = answer.remove("cursor").and_then(|cursor| cursor.as_str().map(str::to_owned));
    Some(Page { items, cursor })
}

/// Offsets as the header [`AS_OF`] says them.
pub fn show_as_of(as_of: &Positions) -> String {
    let offsets: BTreeMap<u32, u64> = as_of.iter().map(|(partition, offset)| (partition.0, offset.0)).collect();
    json!(offsets).to_string()
}

/// Offsets out of the header [`AS_OF`]; none where it says none.
pub(crate) fn as_of(header: &str) -> Option<Positions> {
    let offsets: BTreeMap<u32, u64> = serde_json::from_str(header).ok()?;
    Some(offsets.into_iter().map(|(partition, offset)| (PartitionId(partition), Offset(offset))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_survives_its_way() {
        let request = ScanRequest {
            columns: Some(vec!["a".into()]),
            from: Some(EventTime(-1)),
            to: None,
            equals: vec![("user".into(), "u'1".into())],
        };
        for ask in [Ask::Tables, Ask::scan("audit_log", &request), Ask::Badge { user: "ü".into() }] {
            let text = serde_json::to_string(&ask).unwrap();
            assert_eq!(serde_json::from_str::<Ask>(&text).unwrap(), ask, "{text}");
        }
        let positions = Positions::from([(PartitionId(0), Offset(0)), (PartitionId(11), Offset(u64::MAX))]);
        assert_eq!(as_of(&show_as_of(&positions)), Some(positions));
        assert_eq!(as_of("[]"), None);
        let page = page_of(page_json(Page { items: vec![json!({"a": 1})], cursor: Some("c".into()) })).unwrap();
        assert_eq!((page.items, page.cursor), (vec![json!({"a": 1})], Some("c".into())));
        assert!(page_of(json!({ "cursor": "c" })).is_none());
    }
}
