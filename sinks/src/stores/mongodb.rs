//! MongoDB: a collection a sink, a document a row, `_id` the row's key.
//!
//! A row is written by an upsert whose filter holds the guard; where it does not hold, the server
//! tries an insert and says "duplicate key", which is that row's outcome. The updates of a batch go
//! unordered, so that one row's fate is not another's. Times are microseconds (MongoDB's own dates
//! hold milliseconds only). Notes are in the collection `_quikflow`.

use super::layout::Layout;
use super::remote::read::{PAGE, batch_of, select, shape};
use super::remote::write::in_shares;
use super::remote::{
    Backend, Batches, Guard, Order, Put, PutOutcome, Select, Stored, refused, setting, unavailable, unreachable,
};
use crate::store::{ScanRequest, StoreError};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Cursor, Database};
use quikflow_topics::catalogue::FieldType;
use quikflow_topics::ids::EventTime;
use rusqlite::types::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

const NAME: &str = "mongodb";
const NOTES: &str = "_quikflow";
/// Rows and bytes of one request.
const AT_ONCE: (usize, usize) = (1_000, 8 << 20);
/// The oldest wire version that the driver speaks: MongoDB 4.4.
const OLDEST: i32 = 9;
/// Codes of errors that pass: elections, shutdowns, conflicts, timeouts.
const PASSING: [i32; 18] =
    [6, 7, 24, 50, 64, 89, 91, 112, 189, 262, 9_001, 10_058, 10_107, 11_600, 11_602, 13_388, 13_435, 13_436];
/// Those of a server that is no primary, or no longer.
const NO_PRIMARY: [i32; 3] = [10_058, 10_107, 13_435];
/// A key that is there already.
const DUPLICATE: i32 = 11_000;

/// A MongoDB deployment.
pub(crate) struct Mongo {
    url: String,
    database: OnceCell<Database>,
}

fn code_of(code: i32, message: &str) -> StoreError {
    match code {
        _ if full(code, message) => unavailable(NAME, "the server's disk is full"),
        13 => no_right(),
        // Atlas says by words what other servers say by codes.
        8_000 if message.contains("not allowed") => no_right(),
        18 | 8_000 => refused(NAME, "wrong user or password"),
        371 => refused(NAME, "the server is read-only: writes are blocked (setUserWriteBlockMode)"),
        code if NO_PRIMARY.contains(&code) => no_primary(),
        code if PASSING.contains(&code) => unavailable(NAME, message),
        code => refused(NAME, format!("error {code}: {message}")),
    }
}

/// Whether the server says that its disk is full, or that the space which the user rents is.
fn full(code: i32, message: &str) -> bool {
    code == 14_031
        || (code == 371 && message.contains("Disk"))
        || (code == 8_000 && message.contains("space quota"))
        || message.contains("No space left on device")
}

fn no_right() -> StoreError {
    refused(NAME, "the user may not do this in the database that the URL names")
}

fn no_primary() -> StoreError {
    let setting = setting(NAME);
    let hint = format!("look at {setting} if it stays so: its host may be a secondary, which is read-only");
    unavailable(NAME, format!("no primary of the replica set takes writes now; {hint}"))
}

/// What becomes of a row that a write was refused for; an error where it is not the row's fault.
fn outcome_of(code: i32, message: String) -> Result<PutOutcome, StoreError> {
    match code {
        DUPLICATE => Ok(PutOutcome::Lost),
        13 | 371 | 8_000 => Err(code_of(code, &message)),
        _ if full(code, &message) => Err(code_of(code, &message)),
        code if PASSING.contains(&code) => Ok(PutOutcome::Busy),
        code => Ok(PutOutcome::Rejected { code: format!("mongodb_{code}"), message }),
    }
}

fn fault(error: Error) -> StoreError {
    match error.kind.as_ref() {
        ErrorKind::Authentication { .. } => refused(NAME, "wrong user or password"),
        ErrorKind::Command(error) => code_of(error.code, &error.message),
        ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => {
            refused(NAME, "the URL or its TLS options are not valid")
        }
        ErrorKind::IncompatibleServer { message, .. } => refused(NAME, format!("the server is of another version: {message}")),
        // The driver finds out first.
        ErrorKind::ServerSelection { message, .. } if message.contains("wire version") => {
            refused(NAME, format!("the server is of another version: {}", message.chars().take(300).collect::<String>()))
        }
        ErrorKind::ServerSelection { message, .. } if message.contains("certificate") => refused(
            NAME,
            "TLS: the server's certificate is of no authority that is trusted, or not valid (the URL's tlsCAFile names the authority)",
        ),
        ErrorKind::ServerSelection { message, .. } if message.contains("ReplicaSetNoPrimary") => no_primary(),
        // What the driver says of all servers it tried is long and says nothing more.
        ErrorKind::ServerSelection { .. } => unreachable(NAME, "no server of the URL answers"),
        ErrorKind::DnsResolve { .. } => unreachable(NAME, "the URL's host is not known"),
        ErrorKind::Io(error) => unreachable(NAME, error),
        ErrorKind::ConnectionPoolCleared { .. } => unavailable(NAME, "the connection was lost"),
        _ => unavailable(NAME, &error),
    }
}

fn bson(ty: FieldType, value: &Value) -> Bson {
    match (ty, value) {
        (_, Value::Null | Value::Blob(_)) => Bson::Null,
        (FieldType::Bool, Value::Integer(i)) => Bson::Boolean(*i != 0),
        (_, Value::Integer(i)) => Bson::Int64(*i),
        (_, Value::Real(r)) => Bson::Double(*r),
        (FieldType::StringList, Value::Text(t)) => match serde_json::from_str::<Vec<Option<String>>>(t) {
            Ok(items) => Bson::Array(items.into_iter().map(|item| item.map_or(Bson::Null, Bson::String)).collect()),
            Err(_) => Bson::Null,
        },
        (_, Value::Text(t)) => Bson::String(t.clone()),
    }
}

fn value(ty: FieldType, bson: Option<&Bson>) -> Value {
    match (ty, bson) {
        (_, Some(Bson::Boolean(b))) => Value::Integer(i64::from(*b)),
        (FieldType::Float, Some(Bson::Int64(i))) => Value::Real(*i as f64),
        (_, Some(Bson::Int64(i))) => Value::Integer(*i),
        (_, Some(Bson::Int32(i))) => Value::Integer(i64::from(*i)),
        (_, Some(Bson::Double(d))) => Value::Real(*d),
        (_, Some(Bson::String(t))) => Value::Text(t.clone()),
        (_, Some(Bson::Array(items))) => {
            let texts: Vec<Option<&str>> = items.iter().map(Bson::as_str).collect();
            serde_json::to_string(&texts).map_or(Value::Null, Value::Text)
        }
        _ => Value::Null,
    }
}

fn document(layout: &Layout, row: &Stored) -> Document {
    let mut fields = doc! { "_id": &row.key, "_v": row.base, "_gone": row.gone, "_arr": row.arrival, "_rev": row.revision };
    for (name, text) in [("_vs", &row.versions), ("_sets", &row.sets)] {
        if let Some(text) = text {
            fields.insert(name, text);
        }
    }
    for (column, value) in layout.columns.iter().zip(&row.values) {
        if *value != Value::Null {
            fields.insert(&column.name, bson(column.ty, value));
        }
    }
    fields
}

fn stored(layout: &Layout, fields: &Document) -> Stored {
    let number = |name: &str| fields.get(name).map_or(0, |b| b.as_i64().or_else(|| b.as_i32().map(i64::from)).unwrap_or(0));
    let text = |name: &str| fields.get_str(name).ok().map(str::to_owned);
    Stored {
        key: text("_id").unwrap_or_default(),
        base: number("_v"),
        gone: fields.get_bool("_gone").unwrap_or(true),
        arrival: number("_arr"),
        revision: number("_rev"),
        versions: text("_vs"),
        sets: text("_sets"),
        values: layout.columns.iter().map(|c| value(c.ty, fields.get(&c.name))).collect(),
    }
}

impl Mongo {
    /// The deployment at `url`; nothing is asked of it yet.
    pub(crate) fn new(url: &str) -> Result<Mongo, StoreError> {
        if url.starts_with("mongodb://") || url.starts_with("mongodb+srv://") {
            return Ok(Mongo { url: url.to_owned(), database: OnceCell::new() });
        }
        Err(refused(NAME, "the URL does not begin with mongodb:// or mongodb+srv://"))
    }

    async fn database(&self) -> Result<&Database, StoreError> {
        let connect = || async {
            let mut options = ClientOptions::parse(&self.url).await.map_err(fault)?;
            options.app_name.get_or_insert_with(|| "quikflow".to_owned());
            options.server_selection_timeout.get_or_insert(Duration::from_secs(5));
            options.connect_timeout.get_or_insert(Duration::from_secs(5));
            let name = options.default_database.clone().unwrap_or_else(|| "quikflow".to_owned());
            Ok(Client::with_options(options).map_err(fault)?.database(&name))
        };
        self.database.get_or_try_init(connect).await
    }

    async fn collection(&self, layout: &Layout) -> Result<Collection<Document>, StoreError> {
        Ok(self.database().await?.collection(&layout.sink.name))
    }

    /// Runs a write command, acknowledged by a majority.
    async fn write_command(&self, mut command: Document) -> Result<Document, StoreError> {
        command.insert("writeConcern", doc! { "w": "majority", "wtimeout": 30_000 });
        let answer = self.database().await?.run_command(command).await.map_err(fault)?;
        if let Ok(error) = answer.get_document("writeConcernError") {
            return Err(unavailable(
                NAME,
                format!("not acknowledged by a majority: {}", error.get_str("errmsg").unwrap_or_default()),
            ));
        }
        Ok(answer)
    }

    async fn delete(&self, layout: &Layout, filter: Document) -> Result<(), StoreError> {
        let command = doc! { "delete": &layout.sink.name, "deletes": [{ "q": filter, "limit": 0 }] };
        let answer = self.write_command(command).await?;
        match errors(&answer).next() {
            Some((_, code, message)) => Err(code_of(code, &message)),
            None => Ok(()),
        }
    }

    async fn find(&self, layout: &Layout, filter: Document, sort: Document, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut cursor = self.collection(layout).await?.find(filter).sort(sort).limit(limit).await.map_err(fault)?;
        let mut rows = Vec::new();
        while cursor.advance().await.map_err(fault)? {
            rows.push(stored(layout, &cursor.deserialize_current().map_err(fault)?));
        }
        Ok(rows)
    }
}

/// A scan under way: one query, so that a server which sorts does so once.
struct Scanned {
    cursor: Option<Cursor<Document>>,
    layout: Arc<Layout>,
    columns: Vec<usize>,
    schema: SchemaRef,
}

#[async_trait::async_trait]
impl Batches for Scanned {
    async fn next(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(None) };
        let mut rows = Vec::new();
        while rows.len() < PAGE {
            if !cursor.advance().await.map_err(fault)? {
                let batch = batch_of(&self.layout, &self.columns, &self.schema, &rows);
                return if rows.is_empty() { Ok(None) } else { batch.map(Some) };
            }
            rows.push(stored(&self.layout, &cursor.deserialize_current().map_err(fault)?));
        }
        self.cursor = Some(cursor);
        batch_of(&self.layout, &self.columns, &self.schema, &rows).map(Some)
    }
}

/// What a selection asks of each document, without its order.
fn wanted(layout: &Layout, select: &Select) -> Vec<Document> {
    let time = layout.columns[layout.time].name.as_str();
    let mut all = vec![doc! { "_gone": false }];
    all.extend(select.from.map(|from| doc! { time: { "$gte": from } }));
    all.extend(select.to.map(|to| doc! { time: { "$lt": to } }));
    for (at, value) in &select.equals {
        let column = &layout.columns[*at];
        // A list holds the text where an element is it.
        let ty = if column.ty == FieldType::StringList { FieldType::String } else { column.ty };
        all.push(doc! { &column.name: { "$eq": bson(ty, value) } });
    }
    all
}

/// A write's errors: place, code, message.
fn errors(answer: &Document) -> impl Iterator<Item = (usize, i32, String)> + '_ {
    answer.get_array("writeErrors").into_iter().flatten().filter_map(|error| {
        let error = error.as_document()?;
        let at = usize::try_from(error.get_i32("index").ok()?).ok()?;
        Some((at, error.get_i32("code").unwrap_or(0), error.get_str("errmsg").unwrap_or_default().to_owned()))
    })
}

#[async_trait::async_trait]
impl Backend for Mongo {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let hello = self.database().await?.run_command(doc! { "hello": 1 }).await.map_err(fault)?;
        let wire = hello.get_i32("maxWireVersion").unwrap_or(0);
        if wire < OLDEST {
            return Err(refused(
                NAME,
                format!("the server speaks wire version {wire}, {OLDEST} (MongoDB 4.4) or later is needed"),
            ));
        }
        if hello.get_bool("readOnly").unwrap_or(false) {
            return Err(refused(NAME, "the server is read-only"));
        }
        if hello.get_bool("secondary").unwrap_or(false) {
            // The set has a primary elsewhere; without one, an election is under way.
            return Err(match hello.get_str("primary") {
                Ok(primary) => refused(NAME, format!("the server is a secondary, which is read-only; the primary is {primary}")),
                Err(_) => no_primary(),
            });
        }
        Ok(())
    }

    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError> {
        let strange = |name: &str| name.starts_with(['$', '_']) || name.contains('.');
        if let Some(column) = layout.columns.iter().find(|c| strange(&c.name)) {
            let message = format!("sink `{}`: MongoDB takes no field called `{}`", layout.sink.name, column.name);
            return Err(StoreError::BadRequest(message));
        }
        let time = layout.columns[layout.time].name.as_str();
        let mut indexes = vec![doc! { "key": { time: -1, "_id": -1 }, "name": "by time" }];
        for at in &layout.index {
            let name = layout.columns[*at].name.as_str();
            if name != time {
                indexes.push(doc! { "key": { name: 1, time: -1, "_id": -1 }, "name": format!("by {name}") });
            }
        }
        if layout.sink.ttl.is_some() {
            indexes.push(doc! { "key": { "_arr": 1 }, "name": "by arrival" });
        }
        let command = doc! { "createIndexes": &layout.sink.name, "indexes": indexes };
        self.database().await?.run_command(command).await.map(|_| ()).map_err(fault)
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        let notes: Collection<Document> = self.database().await?.collection(NOTES);
        let found = notes.find_one(doc! { "_id": name }).await.map_err(fault)?;
        Ok(found.and_then(|note| note.get_str("text").ok().map(str::to_owned)))
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let update = doc! { "q": { "_id": name }, "u": { "$set": { "text": text } }, "upsert": true };
        let answer = self.write_command(doc! { "update": NOTES, "updates": [update] }).await?;
        match errors(&answer).next() {
            Some((_, DUPLICATE, message)) => Err(unavailable(NAME, message)),
            Some((_, code, message)) => Err(code_of(code, &message)),
            None => Ok(()),
        }
    }

    async fn clear(&self, layout: &Layout) -> Result<(), StoreError> {
        self.delete(layout, doc! {}).await
    }

    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        self.delete(layout, doc! { "_arr": { "$lt": before.0 } }).await
    }

    async fn fetch(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        for share in keys.chunks(AT_ONCE.0) {
            rows.extend(self.find(layout, doc! { "_id": { "$in": share } }, doc! { "_id": 1 }, share.len()).await?);
        }
        Ok(rows)
    }

    async fn put(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        in_shares(puts, AT_ONCE, calls, async |share| {
            // Rows that must not be there yet are plain inserts, which cost a server far less than upserts.
            let new = |at: &usize| matches!(share[*at].guard, Guard::Absent | Guard::Revision(None));
            let (fresh, known): (Vec<usize>, Vec<usize>) = (0..share.len()).partition(new);
            let documents: Vec<Document> = fresh.iter().map(|at| document(layout, &share[*at].row)).collect();
            let update = |at: &usize| {
                let Put { row, guard } = &share[*at];
                let query = match guard {
                    Guard::Revision(Some(revision)) => doc! { "_id": &row.key, "_rev": *revision },
                    _ => doc! { "_id": &row.key, "_v": { "$lt": row.base } },
                };
                doc! { "q": query, "u": document(layout, row), "upsert": true }
            };
            let updates: Vec<Document> = known.iter().map(update).collect();
            let inserts = doc! { "insert": &layout.sink.name, "documents": documents, "ordered": false };
            let updates = doc! { "update": &layout.sink.name, "updates": updates, "ordered": false };
            let mut slots = vec![PutOutcome::Done; share.len()];
            for (places, command) in [(fresh, inserts), (known, updates)] {
                if places.is_empty() {
                    continue;
                }
                for (at, code, message) in errors(&self.write_command(command).await?) {
                    let outcome = outcome_of(code, message)?;
                    if let Some(slot) = places.get(at).and_then(|place| slots.get_mut(*place)) {
                        *slot = outcome;
                    }
                }
            }
            Ok(slots)
        })
        .await
    }

    async fn page(&self, layout: &Layout, select: &Select) -> Result<Vec<Stored>, StoreError> {
        let time = layout.columns[layout.time].name.as_str();
        let mut all = wanted(layout, select);
        let sort = match &select.order {
            Order::ByKey(after) => {
                all.extend(after.as_ref().map(|after| doc! { "_id": { "$gt": after } }));
                doc! { "_id": 1 }
            }
            Order::Newest(after) => {
                if let Some((at, key)) = after {
                    all.push(doc! { "$or": [{ time: { "$lt": at } }, { time: at, "_id": { "$lt": key } }] });
                }
                doc! { time: -1, "_id": -1 }
            }
        };
        self.find(layout, doc! { "$and": all }, sort, select.limit).await
    }

    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError> {
        let schema = shape(&layout, &columns)?;
        let range = (request.from, request.to);
        let cursor = match select(&layout, &request.equals, range, Order::ByKey(None), PAGE)? {
            Some(select) => {
                // The key is what each document is told by.
                let read: Document = columns.iter().map(|at| (layout.columns[*at].name.clone(), Bson::Int32(1))).collect();
                let batch = u32::try_from(PAGE).unwrap_or(u32::MAX);
                let rows = self.collection(&layout).await?;
                let found = rows.find(doc! { "$and": wanted(&layout, &select) });
                let found = found.sort(doc! { "_id": 1 }).projection(read).batch_size(batch).allow_disk_use(true);
                Some(found.await.map_err(fault)?)
            }
            None => None,
        };
        Ok(Box::new(Scanned { cursor, layout, columns, schema }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a row's refusal, what concerns the whole store is no fault of the row: it would become a dead letter.
    #[test]
    fn a_refusal_of_the_whole_store_is_not_the_rows() {
        let waits = [
            (14_031, "x"),
            (371, "User writes blocked (DiskUseThresholdExceeded)"),
            (8_000, "you are over your space quota, using 512 MB of 512 MB"),
            (8, "28: No space left on device"),
        ];
        for (code, message) in waits {
            let error = outcome_of(code, message.into()).unwrap_err();
            assert!(matches!(&error, StoreError::Unavailable { message, .. } if message.contains("disk is full")), "{error}");
        }
        for (code, message, words) in [
            (13, "not authorized on q to execute command", "the user may not do this"),
            (8_000, "user is not allowed to do action [insert] on [q.s]", "the user may not do this"),
            (8_000, "bad auth : Authentication failed.", "wrong user or password"),
            (371, "User writes blocked", "read-only"),
        ] {
            let error = outcome_of(code, message.into()).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("QUIKFLOW_MONGODB_URL"), "{error}");
        }
        assert_eq!(outcome_of(DUPLICATE, String::new()).unwrap(), PutOutcome::Lost);
        assert_eq!(outcome_of(10_107, String::new()).unwrap(), PutOutcome::Busy);
        assert!(matches!(outcome_of(121, "schema".into()).unwrap(), PutOutcome::Rejected { code, .. } if code == "mongodb_121"));
    }
}
