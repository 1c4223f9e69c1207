//! What a sink costs: rows into a real store as the sink runner writes them, against the plain bulk insert
//! of the store's client library, the same rows into the same server, one batch at a time.
//!
//! `cargo test --workspace --features full --bench stores -- [STORE] [--rows N]`; each server is named by
//! `QUIKFLOW_TEST_…`, and one that is not named is left out.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "figures are printed, and taken from the real clock")]

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::array::{BooleanArray, Int64Array, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use quikflow_sinks::store::{ItemOutcome, StoreSet, WriteBatch};
use quikflow_sinks::stores::{StoreUrls, Stores};
use quikflow_topics::catalogue::{FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::schema;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Rows of a usual batch: the runner takes so many at most, times what the store gathers.
const BATCH: usize = 4_096;

/// Store, mode of its sink, rows unless they are given.
const CASES: [(&str, &str, usize); 7] = [
    ("mongodb", "messages", 8_192),
    ("elasticsearch", "messages", 65_536),
    ("clickhouse", "latest", 204_800),
    ("redis", "latest", 40_960),
    ("redis", "merge", 40_960),
    ("mysql", "latest", 40_960),
    ("mysql", "merge", 40_960),
];

fn main() -> Outcome<()> {
    let mut wanted: Option<String> = None;
    let mut rows = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rows" => rows = Some(args.next().ok_or("--rows takes a number")?.parse()?),
            "--bench" => {}
            name => wanted = Some(name.to_owned()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for (store, mode, count) in CASES {
            if wanted.as_ref().is_some_and(|wanted| wanted != store) {
                continue;
            }
            match std::env::var(format!("QUIKFLOW_TEST_{}", store.to_uppercase())) {
                Ok(url) if !url.is_empty() => compare(store, mode, &url, rows.unwrap_or(count)).await?,
                _ => println!("{store}: skipped, no server is named"),
            }
        }
        Ok(())
    })
}

/// Each of the two ways three times, by turns; the best of each counts.
async fn compare(store: &'static str, mode: &str, url: &str, count: usize) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let name = dir.path().file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let space = format!("quikflow_bench_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let (host, query) = url.split_once('?').unwrap_or((url, ""));
    let host = host.trim_end_matches('/').to_owned();
    let url = match store {
        "redis" => format!("{host}/0?prefix={space}"),
        _ if query.is_empty() => format!("{host}/{space}"),
        _ => format!("{host}/{space}?{query}"),
    };
    let topic = Arc::new(topic(store == "clickhouse"));
    let batches: Vec<RecordBatch> =
        (0..count).step_by(BATCH).map(|from| rows(&topic, from..count.min(from + BATCH))).collect::<Outcome<_>>()?;
    let (mut ours, mut plain) = (Duration::MAX, Duration::MAX);
    for round in 0..3 {
        ours = ours.min(by_sink(store, mode, &url, &topic, &batches, round).await?);
        let started = Instant::now();
        let prepared = plain::prepare(store, &url, &space, round).await?;
        let prepared_in = started.elapsed();
        plain::insert(&prepared, &batches).await?;
        plain = plain.min(started.elapsed() - prepared_in);
    }
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!(
        "{store} ({mode}), {count} rows: sink {:.0}/s, plain bulk insert {:.0}/s: {:.0} %",
        rate(ours),
        rate(plain),
        100.0 * rate(ours) / rate(plain)
    );
    Ok(())
}

/// Writes the batches as the runner does; how long that takes once the table is there.
async fn by_sink(
    store: &str,
    mode: &str,
    url: &str,
    topic: &Arc<TopicSpec>,
    batches: &[RecordBatch],
    round: usize,
) -> Outcome<Duration> {
    let mut sink = SinkSpec {
        name: format!("s{round}-{mode}"),
        from: topic.name.clone(),
        store: store.into(),
        table: "t".into(),
        key: vec!["channelId".into(), "messageId".into()],
        filter: None,
        ttl: None,
        cache: None,
        rollup: BTreeMap::new(),
        doc: String::new(),
        options: toml::Table::new(),
        span: 0..0,
    };
    sink.options.insert("mode".into(), mode.into());
    let sink = Arc::new(sink);
    let mut urls = StoreUrls::default();
    *match store {
        "mongodb" => &mut urls.mongodb,
        "elasticsearch" => &mut urls.elasticsearch,
        "clickhouse" => &mut urls.clickhouse,
        "redis" => &mut urls.redis,
        _ => &mut urls.mysql,
    } = Some(url.to_owned());
    let dir = tempfile::tempdir()?;
    let followed = [(sink.clone(), topic.clone())];
    let path = dir.path().to_owned();
    let opened = tokio::task::spawn_blocking(move || Stores::open_with(&path, SystemClock::shared(), &followed, &urls));
    let stores = opened.await??;
    let target = stores.store_of(&sink)?;
    let mut next = target.progress(&sink.name).await?.positions;
    let gathered = batches.chunks(target.gathers() as usize);
    let gathered: Vec<RecordBatch> = gathered.map(|some| concat_batches(&topic.schema(), some)).collect::<Result<_, _>>()?;
    let started = Instant::now();
    for rows in &gathered {
        next.insert(quikflow_topics::ids::PartitionId(0), quikflow_topics::ids::Offset(rows.num_rows() as u64));
        let batch = WriteBatch { sink: sink.clone(), rows: rows.clone(), generation: 0, next: next.clone() };
        let outcomes = target.write(batch).await?;
        if outcomes.iter().any(|outcome| *outcome != ItemOutcome::Written) {
            return Err(format!("{store}: not all rows were written").into());
        }
    }
    Ok(started.elapsed())
}

const TEXTS: [&str; 5] = ["messageId", "channelId", "workspaceId", "userId", "content"];

fn topic(of_rows: bool) -> TopicSpec {
    let mut topic = TopicSpec::new("messages", if of_rows { TopicKind::Rows } else { TopicKind::Events });
    topic.fields = TEXTS.iter().map(|name| FieldSpec::new(*name, FieldType::String)).collect();
    topic.fields.push(FieldSpec::new("length", FieldType::Int));
    if of_rows {
        topic.fields.push(FieldSpec::new("window_start", FieldType::Timestamp));
        topic.fields.push(FieldSpec::new("final", FieldType::Bool));
    }
    topic
}

/// Messages of some 200 characters; each has a key of its own.
fn rows(topic: &TopicSpec, range: std::ops::Range<usize>) -> Outcome<RecordBatch> {
    const WORDS: [&str; 16] = [
        "please", "confirm", "the", "release", "of", "a", "window", "that", "seems", "to", "work", "for", "me", "and", "not",
        "others",
    ];
    let text = |name: &str, i: usize| match name {
        "messageId" => format!("msg_{i:09}"),
        "channelId" => format!("chn_{:04}", i % 500),
        "workspaceId" => "ws_1".to_owned(),
        "userId" => format!("usr_{:05}", i * 7_919 % 10_007),
        _ => (0..36).map(|word| WORDS[(i * 31 + word * word * 7 + word) % 16]).collect::<Vec<_>>().join(" "),
    };
    let texts = |name: &str| Arc::new(StringArray::from_iter_values(range.clone().map(|i| text(name, i)))) as ArrayRef;
    let times = || {
        let times: Vec<i64> = range.clone().map(|i| 1_700_000_000_000_000 + i as i64 * 1_000).collect();
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef
    };
    let schema = topic.schema();
    let column = |field: &Arc<arrow::datatypes::Field>| -> ArrayRef {
        match field.name().as_str() {
            schema::PARTITION => Arc::new(UInt32Array::from(vec![0; range.len()])),
            schema::OFFSET => Arc::new(UInt64Array::from_iter_values(range.clone().map(|i| i as u64))),
            schema::EVENT_TIME | schema::ARRIVAL_TIME | "window_start" => times(),
            schema::TYPE => {
                let kind = if topic.kind == TopicKind::Rows { "ROW" } else { "MESSAGE_SENT" };
                Arc::new(StringArray::from_iter_values(range.clone().map(|_| kind)))
            }
            "length" => Arc::new(Int64Array::from_iter_values(range.clone().map(|i| i as i64))),
            "final" => Arc::new(BooleanArray::from(vec![false; range.len()])),
            name if TEXTS.contains(&name) => texts(name),
            _ => new_null_array(field.data_type(), range.len()),
        }
    };
    Ok(RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect())?)
}

/// A row's values, for the plain inserts.
#[derive(serde::Serialize, clickhouse::Row)]
struct Plain<'a> {
    #[serde(rename = "messageId")]
    message: &'a str,
    #[serde(rename = "channelId")]
    channel: &'a str,
    #[serde(rename = "workspaceId")]
    workspace: &'a str,
    #[serde(rename = "userId")]
    user: &'a str,
    content: &'a str,
    length: i64,
    at: i64,
}

impl Plain<'_> {
    fn key(&self) -> String {
        format!("{}/{}", self.channel, self.message)
    }
}

fn plain_rows(batch: &RecordBatch) -> Vec<Plain<'_>> {
    let text = |name: &str| batch.column_by_name(name).map(|c| c.as_string::<i32>());
    let (Some(message), Some(channel), Some(workspace), Some(user), Some(content)) =
        (text("messageId"), text("channelId"), text("workspaceId"), text("userId"), text("content"))
    else {
        return Vec::new();
    };
    let at = batch.column_by_name(schema::EVENT_TIME).map(|c| c.as_primitive::<TimestampMicrosecondType>().clone());
    let length = batch.column_by_name("length").map(|c| c.as_primitive::<Int64Type>().clone());
    (0..batch.num_rows())
        .map(|i| Plain {
            message: message.value(i),
            channel: channel.value(i),
            workspace: workspace.value(i),
            user: user.value(i),
            content: content.value(i),
            length: length.as_ref().filter(|l| l.is_valid(i)).map_or(0, |l| l.value(i)),
            at: at.as_ref().map_or(0, |at| at.value(i)),
        })
        .collect()
}

/// Each client's own way to insert many rows.
mod plain {
    use super::{Outcome, RecordBatch, plain_rows};
    use ::mongodb::bson::{Document, doc};
    use elasticsearch::http::Method;
    use elasticsearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
    use elasticsearch::http::transport::Transport;

    /// A client, and an empty table.
    pub(crate) enum Prepared {
        Mongo(::mongodb::Collection<Document>),
        Elastic(Transport, String),
        ClickHouse(Box<clickhouse::Client>, String),
        Redis(redis::aio::MultiplexedConnection, String),
        MySql(sqlx::MySqlPool, String),
    }

    async fn put(transport: &Transport, method: Method, path: &str, kind: &'static str, body: String) -> Outcome<String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let answer = transport.send(method, path, headers, None::<&()>, Some(body), None).await?;
        let status = answer.status_code();
        let text = answer.text().await?;
        if status.is_success() { Ok(text) } else { Err(format!("{path}: {status} {text}").into()) }
    }

    /// Connects and makes the table: the columns of the rows, a key, and the same durability as the sink asks for.
    pub(crate) async fn prepare(store: &str, url: &str, space: &str, round: usize) -> Outcome<Prepared> {
        let table = format!("plain{round}");
        Ok(match store {
            "mongodb" => {
                let client = ::mongodb::Client::with_uri_str(url).await?;
                let database = client.database(space);
                database.create_collection(&table).await?;
                let index = doc! { "createIndexes": &table, "indexes": [
                    { "key": { "at": -1, "_id": -1 }, "name": "a" }, { "key": { "channelId": 1, "at": -1, "_id": -1 }, "name": "b" },
                ] };
                database.run_command(index).await?;
                Prepared::Mongo(database.collection(&table))
            }
            "elasticsearch" => {
                let host = url.rsplit_once('/').map_or(url, |(host, _)| host);
                let transport = Transport::single_node(host)?;
                let index = format!("{space}-{table}");
                let keyword = r#"{"type":"keyword"}"#;
                let mapping = format!(
                    r#"{{"mappings":{{"dynamic":false,"properties":{{"messageId":{keyword},"channelId":{keyword},
                    "workspaceId":{keyword},"userId":{keyword},"content":{{"type":"text"}},"length":{{"type":"long"}},"at":{{"type":"long"}}}}}}}}"#
                );
                put(&transport, Method::Put, &format!("/{index}"), "application/json", mapping).await?;
                Prepared::Elastic(transport, index)
            }
            "clickhouse" => {
                let host = url.rsplit_once('/').map_or(url, |(host, _)| host);
                let client = clickhouse::Client::default().with_url(host);
                client.query(&format!("CREATE DATABASE IF NOT EXISTS {space}")).execute().await?;
                let client = client.with_database(space);
                let create = format!(
                    "CREATE TABLE {table} (messageId String, channelId String, workspaceId String, userId String,
                     content String, length Int64, at Int64) ENGINE = MergeTree ORDER BY (channelId, messageId)
                     SETTINGS fsync_after_insert = 1"
                );
                client.query(&create).execute().await?;
                Prepared::ClickHouse(Box::new(client), table)
            }
            "redis" => {
                let client = redis::Client::open(url.split('?').next().unwrap_or(url))?;
                Prepared::Redis(client.get_multiplexed_async_connection().await?, format!("{space}:{table}"))
            }
            _ => {
                let pool = sqlx::MySqlPool::connect(url).await?;
                let create = format!(
                    "CREATE TABLE {table} (k VARBINARY(600) PRIMARY KEY, messageId LONGTEXT, channelId LONGTEXT, workspaceId LONGTEXT,
                     userId LONGTEXT, content LONGTEXT, length BIGINT, at BIGINT, INDEX (at)) ENGINE = InnoDB"
                );
                sqlx::query(sqlx::AssertSqlSafe(create)).execute(&pool).await?;
                Prepared::MySql(pool, table)
            }
        })
    }

    /// Inserts the batches, one after the other.
    pub(crate) async fn insert(prepared: &Prepared, batches: &[RecordBatch]) -> Outcome<()> {
        for batch in batches {
            let rows = plain_rows(batch);
            match prepared {
                Prepared::Mongo(collection) => {
                    for share in rows.chunks(1_000) {
                        let document = |row: &super::Plain<'_>| {
                            doc! { "_id": row.key(), "messageId": row.message, "channelId": row.channel, "workspaceId": row.workspace,
                            "userId": row.user, "content": row.content, "length": row.length, "at": row.at }
                        };
                        let concern = ::mongodb::options::WriteConcern::majority();
                        collection.insert_many(share.iter().map(document)).ordered(false).write_concern(concern).await?;
                    }
                }
                Prepared::Elastic(transport, index) => {
                    for share in rows.chunks(4_096) {
                        let mut lines = String::new();
                        for row in share {
                            lines.push_str(&format!("{{\"index\":{{\"_id\":\"{}\"}}}}\n", row.key()));
                            lines.push_str(&serde_json::to_string(row)?);
                            lines.push('\n');
                        }
                        let path = format!("/{index}/_bulk");
                        let answer = put(transport, Method::Post, &path, "application/x-ndjson", lines).await?;
                        let answer: serde_json::Value = serde_json::from_str(&answer)?;
                        if answer["errors"] != false {
                            return Err("a row was not taken".into());
                        }
                    }
                }
                Prepared::ClickHouse(client, table) => {
                    let mut insert = client.insert::<super::Plain<'_>>(table).await?;
                    for row in &rows {
                        insert.write(row).await?;
                    }
                    insert.end().await?;
                }
                // With the indexes that the sink keeps, as the other stores' plain tables have theirs.
                Prepared::Redis(connection, prefix) => {
                    for share in rows.chunks(1_000) {
                        let mut pipe = redis::pipe();
                        for row in share {
                            let command = pipe.cmd("HSET").arg(format!("{prefix}:{}", row.key()));
                            command.arg("messageId").arg(row.message).arg("channelId").arg(row.channel);
                            command.arg("workspaceId").arg(row.workspace).arg("userId").arg(row.user);
                            command.arg("content").arg(row.content).arg("length").arg(row.length).arg("at").arg(row.at).ignore();
                        }
                        for (index, by_time) in [("keys", false), ("arrivals", true), ("times", true)] {
                            let command = pipe.cmd("ZADD").arg(format!("{prefix}:{index}"));
                            for row in share {
                                command.arg(if by_time { row.at } else { 0 }).arg(row.key());
                            }
                            command.ignore();
                        }
                        pipe.query_async::<()>(&mut connection.clone()).await?;
                    }
                }
                Prepared::MySql(pool, table) => {
                    for share in rows.chunks(500) {
                        let start =
                            format!("INSERT INTO {table} (k, messageId, channelId, workspaceId, userId, content, length, at) ");
                        let mut sql = sqlx::QueryBuilder::<sqlx::MySql>::new(start);
                        sql.push_values(share, |mut list, row| {
                            list.push_bind(row.key().into_bytes()).push_bind(row.message).push_bind(row.channel);
                            list.push_bind(row.workspace).push_bind(row.user).push_bind(row.content);
                            list.push_bind(row.length).push_bind(row.at);
                        });
                        sql.build().execute(pool).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
