//! ClickHouse: a ReplacingMergeTree a sink, ordered by the key; of a key the highest version stays.
//!
//! A batch is one insert of RowBinary with a deduplication token made of its bytes, so that a batch
//! sent twice is stored once; rows written twice otherwise are one row to readers, who read `FINAL`.
//! A final row wins over open ones (R7): that is part of the version. Where rows expire, partitions by
//! arrival are dropped whole. Notes are in `_quikflow_notes`.

mod tls;

use super::analytics;
use super::cells::{Builder, Cell};
use super::layout::Layout;
use super::remote::address::Address;
use super::remote::read::shape;
use super::remote::write::typed;
use super::remote::{Backend, Batches, NOT_PEM, Put, PutOutcome, Select, Stored, distrusted, refused, unavailable, unreachable};
use super::rows::Input;
use crate::store::{ItemOutcome, ScanRequest, StoreError, WriteBatch};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use clickhouse::Client;
use clickhouse::error::Error;
use clickhouse::query::{BytesCursor, Query};
use quikflow_topics::catalogue::FieldType;
use quikflow_topics::ids::EventTime;
use rusqlite::types::{Value, ValueRef};
use std::sync::Arc;
use tls::trusting;
use xxhash_rust::xxh3::xxh3_128;

const NAME: &str = "clickhouse";
/// Rows a batch of a scan holds at most.
const BATCH: usize = 4_096;
/// Of a table whose rows expire, a partition holds those that arrived within an eighth of their time to
/// live, and within an hour at least.
const PARTITIONS: u128 = 8;
const SHORTEST: u128 = 3_600_000_000;
/// How the partition's expression begins; its width in microseconds and a bracket follow.
const BY_ARRIVAL: &str = "intDiv(_arr, ";

/// A ClickHouse server.
pub(crate) struct ClickHouse {
    client: Client,
    database: String,
}

fn fault(error: Error) -> StoreError {
    let text = match error {
        Error::Network(e) => {
            let away = || unreachable(NAME, format!("the server cannot be reached: {e}"));
            return distrusted(NAME, e.as_ref()).unwrap_or_else(away);
        }
        Error::TimedOut => return unreachable(NAME, "the server took too long"),
        Error::BadResponse(text) => text,
        other => return unavailable(NAME, other),
    };
    let rest = text.split_once("Code: ").map_or("", |(_, rest)| rest);
    let code: u32 = rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|c| c.parse().ok()).unwrap_or(0);
    let short: String = text.lines().next().unwrap_or_default().chars().take(300).collect();
    match code {
        192 | 193 | 194 | 516 => refused(NAME, "wrong user or password"),
        497 => refused(NAME, "the user may not do this in the database that the URL names"),
        164 => refused(NAME, "the user or the server is read-only"),
        81 => refused(NAME, "there is no database of the name that the URL gives"),
        // The server's disk.
        243 => unavailable(NAME, format!("the server's disk is full: {short}")),
        // Data that does not fit: some row is to blame.
        6 | 26 | 27 | 33 | 38 | 41 | 53 | 72 | 117 | 131 | 349 => StoreError::BadRequest(short),
        0 | 60 | 159 | 202 | 203 | 209 | 210 | 236 | 241 | 242 | 252 | 394 | 425 | 439 | 745 | 999 => unavailable(NAME, short),
        _ => refused(NAME, short),
    }
}

/// An identifier in SQL. The client takes `?` for a hole, `??` for the sign.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`").replace('?', "??"))
}

/// How a table is divided whose rows live so many microseconds.
fn partition_by(ttl: u128) -> String {
    format!("PARTITION BY {BY_ARRIVAL}{})", (ttl / PARTITIONS).max(SHORTEST))
}

fn plain_type(ty: FieldType) -> &'static str {
    match ty {
        FieldType::String | FieldType::Json | FieldType::StringList => "String",
        FieldType::Int => "Int64",
        FieldType::Float => "Float64",
        FieldType::Bool => "Bool",
        FieldType::Timestamp => "DateTime64(6, 'UTC')",
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(text.as_bytes());
}

/// A cell as RowBinary.
fn put_cell(out: &mut Vec<u8>, ty: FieldType, nullable: bool, cell: &Cell<'_>) {
    if nullable {
        out.push(u8::from(cell.is_null()));
    }
    match (ty, cell) {
        (_, Cell::Null) => {}
        (FieldType::Bool, Cell::Int(i)) => out.push(u8::from(*i != 0)),
        (FieldType::Float, Cell::Int(i)) => out.extend_from_slice(&(*i as f64).to_le_bytes()),
        (_, Cell::Int(i)) => out.extend_from_slice(&i.to_le_bytes()),
        (_, Cell::Real(r)) => out.extend_from_slice(&r.to_le_bytes()),
        (_, Cell::Text(t)) => put_text(out, t),
    }
}

/// Reads RowBinary from a place on; none: more bytes are needed.
struct Bin<'a>(&'a [u8]);

impl Bin<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn text(&mut self) -> Option<String> {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let [byte] = self.take()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 || shift > 56 {
                break;
            }
        }
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(String::from_utf8_lossy(head).into_owned())
    }

    fn value(&mut self, ty: FieldType, nullable: bool) -> Option<Value> {
        if nullable && self.take()? == [1] {
            return Some(Value::Null);
        }
        Some(match ty {
            FieldType::String | FieldType::Json | FieldType::StringList => Value::Text(self.text()?),
            FieldType::Bool => Value::Integer(i64::from(self.take::<1>()?[0])),
            FieldType::Float => Value::Real(f64::from_le_bytes(self.take()?)),
            FieldType::Int | FieldType::Timestamp => Value::Integer(i64::from_le_bytes(self.take()?)),
        })
    }
}

/// Rows as they come.
struct Rows {
    cursor: BytesCursor,
    types: Vec<(FieldType, bool)>,
    buffer: Vec<u8>,
    at: usize,
    done: bool,
}

impl Rows {
    fn new(query: Query, types: Vec<(FieldType, bool)>) -> Result<Rows, StoreError> {
        let cursor = query.fetch_bytes("RowBinary").map_err(fault)?;
        Ok(Rows { cursor, types, buffer: Vec::new(), at: 0, done: false })
    }

    async fn next(&mut self) -> Result<Option<Vec<Value>>, StoreError> {
        loop {
            let mut bin = Bin(self.buffer.get(self.at..).unwrap_or_default());
            if !bin.0.is_empty() {
                let row: Option<Vec<Value>> = self.types.iter().map(|(ty, nullable)| bin.value(*ty, *nullable)).collect();
                if let Some(row) = row {
                    self.at = self.buffer.len() - bin.0.len();
                    return Ok(Some(row));
                }
            }
            if self.done {
                let whole = self.at == self.buffer.len();
                return if whole { Ok(None) } else { Err(unavailable(NAME, "the answer broke off")) };
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            match self.cursor.next().await.map_err(fault)? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => self.done = true,
            }
        }
    }
}

/// A scan under way.
struct Scanned {
    rows: Rows,
    schema: SchemaRef,
    types: Vec<FieldType>,
}

#[async_trait::async_trait]
impl Batches for Scanned {
    async fn next(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let mut builders: Vec<Builder> = self.types.iter().map(|ty| Builder::new(*ty)).collect();
        let mut count = 0;
        while count < BATCH {
            let Some(row) = self.rows.next().await? else { break };
            for (builder, value) in builders.iter_mut().zip(&row) {
                builder.push(ValueRef::from(value));
            }
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        let arrays: Vec<ArrayRef> = builders.into_iter().map(Builder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map(Some)
            .map_err(|e| StoreError::BadRequest(e.to_string()))
    }
}

impl ClickHouse {
    /// The server at `url`; nothing is asked of it yet.
    pub(crate) fn new(url: &str) -> Result<ClickHouse, StoreError> {
        let bad = || refused(NAME, "the URL cannot be read: write http(s)://user:password@host:port/database?ca=FILE");
        let address = Address::parse(url).filter(|a| matches!(a.scheme.as_str(), "http" | "https")).ok_or_else(bad)?;
        let client = match address.authorities(NAME)? {
            Some(pem) => trusting(&pem).ok_or_else(|| refused(NAME, NOT_PEM))?,
            None => Client::default(),
        };
        let mut client = client.with_url(address.base());
        if let Some(user) = &address.user {
            client = client.with_user(user);
        }
        if let Some(password) = &address.password {
            client = client.with_password(password);
        }
        let database = if address.path.is_empty() { "quikflow".to_owned() } else { address.path };
        Ok(ClickHouse { client, database })
    }

    fn table(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.database), quoted(name))
    }

    async fn run(&self, query: Query) -> Result<(), StoreError> {
        query.execute().await.map_err(fault)
    }

    /// The first row of an answer of one column.
    async fn first(&self, query: Query, ty: FieldType) -> Result<Option<Value>, StoreError> {
        let row = Rows::new(query, vec![(ty, false)])?.next().await?;
        Ok(row.and_then(|row| row.into_iter().next()))
    }

    /// The microseconds of arrival that a partition holds; none: the table is not divided so (it is from
    /// before, or its sink had no time-to-live when it was made).
    async fn partition_width(&self, layout: &Layout) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT partition_key FROM system.tables WHERE database = {db:String} AND name = {name:String}";
        let query = self.client.query(sql).param("db", &self.database).param("name", &layout.sink.name);
        let Some(Value::Text(key)) = self.first(query, FieldType::String).await? else { return Ok(None) };
        let width = key.strip_prefix(BY_ARRIVAL).and_then(|rest| rest.strip_suffix(')')?.parse().ok());
        Ok(width.filter(|width| *width > 0))
    }

    fn nullable(layout: &Layout, column: usize) -> bool {
        !layout.key_columns.contains(&column)
    }

    fn sql_type(layout: &Layout, column: usize) -> String {
        let plain = plain_type(layout.columns[column].ty);
        if ClickHouse::nullable(layout, column) { format!("Nullable({plain})") } else { plain.to_owned() }
    }
}

#[async_trait::async_trait]
impl Backend for ClickHouse {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let version = self.first(self.client.query("SELECT version()"), FieldType::String).await?;
        let Some(Value::Text(version)) = version else { return Err(refused(NAME, "what answers is not ClickHouse")) };
        if version.split('.').next().and_then(|y| y.parse::<u32>().ok()).is_some_and(|year| year < 22) {
            return Err(refused(NAME, format!("the server is of version {version}, 22 or later is needed")));
        }
        let there = self.client.query("SELECT name FROM system.databases WHERE name = {db:String}").param("db", &self.database);
        if self.first(there, FieldType::String).await?.is_none() {
            self.run(self.client.query(&format!("CREATE DATABASE IF NOT EXISTS {}", quoted(&self.database)))).await?;
        }
        let notes = format!(
            "CREATE TABLE IF NOT EXISTS {} (name String, text String, n UInt64) ENGINE = ReplacingMergeTree(n) ORDER BY name
             SETTINGS fsync_after_insert = 1",
            self.table("_quikflow_notes")
        );
        self.run(self.client.query(&notes)).await
    }

    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError> {
        analytics::check(layout)?;
        let table = self.table(&layout.sink.name);
        let column = |at: usize| format!("{} {}", quoted(&layout.columns[at].name), ClickHouse::sql_type(layout, at));
        let columns: Vec<String> = (0..layout.columns.len()).map(column).collect();
        let key: Vec<String> = layout.key_columns.iter().map(|at| quoted(&layout.columns[*at].name)).collect();
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table} ({}, _v Int64, _arr Int64) ENGINE = ReplacingMergeTree(_v) {} ORDER BY ({})
             SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1",
            columns.join(", "),
            layout.sink.ttl.map(|ttl| partition_by(ttl.as_micros())).unwrap_or_default(),
            key.join(", ")
        );
        self.run(self.client.query(&create)).await?;
        let more: Vec<String> = (0..layout.columns.len())
            .filter(|at| ClickHouse::nullable(layout, *at))
            .map(|at| format!("ADD COLUMN IF NOT EXISTS {}", column(at)))
            .collect();
        if more.is_empty() {
            return Ok(());
        }
        self.run(self.client.query(&format!("ALTER TABLE {table} {}", more.join(", ")))).await
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql =
            format!("SELECT text FROM {} WHERE name = {{name:String}} ORDER BY n DESC LIMIT 1", self.table("_quikflow_notes"));
        let found = self.first(self.client.query(&sql).param("name", name), FieldType::String).await?;
        Ok(if let Some(Value::Text(text)) = found { Some(text) } else { None })
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let table = self.table("_quikflow_notes");
        let sql = format!(
            "INSERT INTO {table} (name, text, n)
             SELECT {{name:String}}, {{text:String}}, (SELECT max(n) + 1 FROM {table} WHERE name = {{name:String}})"
        );
        self.run(self.client.query(&sql).param("name", name).param("text", text)).await
    }

    async fn clear(&self, layout: &Layout) -> Result<(), StoreError> {
        // Batches written again later are new ones to the deduplication.
        let note = format!("{}/cleared", layout.sink.name);
        let count: u64 = self.note(&note).await?.and_then(|t| t.parse().ok()).unwrap_or(0);
        self.set_note(&note, &(count + 1).to_string()).await?;
        self.run(self.client.query(&format!("TRUNCATE TABLE {}", self.table(&layout.sink.name)))).await
    }

    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        let table = self.table(&layout.sink.name);
        if let Some(width) = self.partition_width(layout).await? {
            // Whatever comes into such a partition meanwhile is as old.
            let edge = before.0.div_euclid(width) * width;
            let whole = format!("SELECT DISTINCT _partition_id FROM {table} WHERE _arr >= 0 AND _arr < {edge}");
            let mut rows = Rows::new(self.client.query(&whole), vec![(FieldType::String, false)])?;
            while let Some(row) = rows.next().await? {
                let [Value::Text(id)] = row.as_slice() else { continue };
                if id.bytes().all(|byte| byte.is_ascii_digit()) {
                    self.run(self.client.query(&format!("ALTER TABLE {table} DROP PARTITION ID '{id}'"))).await?;
                }
            }
        }
        let old = format!("SELECT _arr FROM {table} WHERE _arr < {} LIMIT 1", before.0);
        if self.first(self.client.query(&old), FieldType::Int).await?.is_none() {
            return Ok(());
        }
        let sql = format!("ALTER TABLE {table} DELETE WHERE _arr < {}", before.0);
        self.run(self.client.query(&sql).with_setting("mutations_sync", "1")).await
    }

    async fn fetch(&self, layout: &Layout, _keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        Err(StoreError::BadRequest(format!("table `{}` is a view: scan it", layout.sink.table)))
    }

    async fn put(&self, layout: &Layout, _puts: Vec<Put>, _calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        Err(StoreError::BadRequest(format!("table `{}` is a view: it takes whole batches", layout.sink.table)))
    }

    async fn page(&self, layout: &Layout, _select: &Select) -> Result<Vec<Stored>, StoreError> {
        Err(StoreError::BadRequest(format!("table `{}` is a view: scan it", layout.sink.table)))
    }

    async fn write(&self, layout: &Layout, batch: &WriteBatch, _calls: usize) -> Result<Vec<ItemOutcome>, StoreError> {
        let (bytes, outcomes) = encode(layout, batch)?;
        if bytes.is_empty() {
            return Ok(outcomes);
        }
        let cleared = self.note(&format!("{}/cleared", layout.sink.name)).await?.unwrap_or_default();
        let token = format!("{}:{}:{cleared}:{:032x}", layout.sink.name, batch.generation, xxh3_128(&bytes));
        let names: Vec<String> = layout.columns.iter().map(|c| quoted(&c.name)).collect();
        let sql = format!("INSERT INTO {} ({}, _v, _arr) FORMAT RowBinary", self.table(&layout.sink.name), names.join(", "));
        let insert = self.client.insert_formatted_with(sql).with_setting("insert_deduplication_token", token);
        let insert = insert.with_setting("async_insert", "0");
        // What was read after a long time may have arrived in many partitions.
        let mut insert = insert.with_setting("max_partitions_per_insert_block", "0").buffered();
        insert.write_buffered(&bytes);
        insert.end().await.map_err(fault)?;
        Ok(outcomes)
    }

    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError> {
        let schema = shape(&layout, &columns)?;
        let time = quoted(&layout.columns[layout.time].name);
        let mut all = vec!["1".to_owned()];
        let mut values = Vec::new();
        for (bound, sign) in [(request.from, ">="), (request.to, "<")] {
            if let Some(bound) = bound {
                all.push(format!("{time} {sign} fromUnixTimestamp64Micro(toInt64({}), 'UTC')", bound.0));
            }
        }
        for (name, text) in &request.equals {
            let at = super::read::wanted(&layout, Some(std::slice::from_ref(name)))?[0];
            let column = quoted(name);
            let hole = format!("p{}", values.len());
            all.push(match (layout.columns[at].ty, typed(layout.columns[at].ty, text)) {
                (_, None) => "0".to_owned(),
                (FieldType::StringList, _) => continue,
                (FieldType::Timestamp, Some(Value::Integer(i))) => {
                    format!("{column} = fromUnixTimestamp64Micro(toInt64({i}), 'UTC')")
                }
                (FieldType::Bool, Some(Value::Integer(i))) => format!("{column} = {}", if i == 0 { "false" } else { "true" }),
                (_, Some(Value::Integer(i))) => format!("{column} = {i}"),
                (ty, Some(_)) => {
                    values.push((hole.clone(), text.clone()));
                    format!("{column} = {{{hole}:{}}}", plain_type(ty))
                }
            });
        }
        // A scan of no columns counts rows.
        let mut names: Vec<String> = columns.iter().map(|c| quoted(&layout.columns[*c].name)).collect();
        let mut types: Vec<(FieldType, bool)> =
            columns.iter().map(|c| (layout.columns[*c].ty, ClickHouse::nullable(&layout, *c))).collect();
        if names.is_empty() {
            names.push("true".into());
            types.push((FieldType::Bool, false));
        }
        let sql = format!("SELECT {} FROM {} FINAL WHERE {}", names.join(", "), self.table(&layout.sink.name), all.join(" AND "));
        let mut query = self.client.query(&sql);
        for (name, value) in values {
            query = query.param(&name, value);
        }
        let kinds = columns.iter().map(|c| layout.columns[*c].ty).collect();
        Ok(Box::new(Scanned { rows: Rows::new(query, types)?, schema, types: kinds }))
    }
}

/// A batch as RowBinary, and what becomes of each row.
fn encode(layout: &Layout, batch: &WriteBatch) -> Result<(Vec<u8>, Vec<ItemOutcome>), StoreError> {
    let input = Input::new(layout, &batch.rows, batch.generation)?;
    let closed = layout.final_column.as_ref().and_then(|name| layout.column(name));
    let mut bytes = Vec::with_capacity(batch.rows.num_rows() * 64);
    let mut outcomes = Vec::with_capacity(batch.rows.num_rows());
    for row in 0..batch.rows.num_rows() {
        if let Some(at) = layout.key_columns.iter().position(|c| input.cell(*c, row).is_null()) {
            let message = format!("the key column `{}` is null, so the row cannot be told apart", layout.sink.key[at]);
            outcomes.push(ItemOutcome::Rejected { code: "null_key".into(), message });
            continue;
        }
        let last = closed.is_some_and(|c| matches!(input.cell(c, row), Cell::Int(i) if i != 0));
        let Some(version) = analytics::version(batch.generation, last, input.offset(row)) else {
            let message = "the offset or the topic's generation is out of range".to_owned();
            outcomes.push(ItemOutcome::Rejected { code: "offset_range".into(), message });
            continue;
        };
        for (at, column) in layout.columns.iter().enumerate() {
            put_cell(&mut bytes, column.ty, ClickHouse::nullable(layout, at), &input.cell(at, row));
        }
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&input.arrival(row).to_le_bytes());
        outcomes.push(ItemOutcome::Written);
    }
    Ok((bytes, outcomes))
}
