//! What tests of stores share: a small topic of rows, batches drawn by seed, a shadow model.
#![allow(dead_code, reason = "each test file uses a part")]

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
    new_null_array,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType, UInt64Type};
use quikflow_sinks::changes::{Change, Follower};
use quikflow_sinks::store::{ReadSide, ScanRequest, StoreError, WriteBatch};
use quikflow_sinks::stores::{StoreUrls, Stores};
use quikflow_topics::broker::{Append, Broker, TopicRows};
use quikflow_topics::catalogue::{FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::ids::EventTime;
use quikflow_topics::schema;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) mod guard;
#[path = "../../../tests/support/harness.rs"]
pub(crate) mod harness;
pub(crate) mod mongodb;
pub(crate) mod mysql;
pub(crate) mod old;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod tls;

/// Real stores, with the variable that names a test server of each, and whether its client is compiled in.
const REAL: [(&str, &str, bool); 5] = [
    ("mongodb", "QUIKFLOW_TEST_MONGODB", cfg!(feature = "mongodb")),
    ("elasticsearch", "QUIKFLOW_TEST_ELASTICSEARCH", cfg!(feature = "elasticsearch")),
    ("clickhouse", "QUIKFLOW_TEST_CLICKHOUSE", cfg!(feature = "clickhouse")),
    ("redis", "QUIKFLOW_TEST_REDIS", cfg!(feature = "redis")),
    ("mysql", "QUIKFLOW_TEST_MYSQL", cfg!(feature = "mysql")),
];

/// A store of the suites: an embedded twin by its name, a real one as `real:<name>`. Skips the test
/// where no server of a real one is named, or its client is not compiled in.
pub(crate) fn need(store: &str) {
    let Some(real) = store.strip_prefix("real:") else { return };
    let (name, variable, compiled) = REAL.into_iter().find(|(name, ..)| *name == real).expect("a known store");
    if !compiled {
        harness::skip(format!("built without the feature `{name}`"));
    }
    harness::server(variable);
}

/// The real stores that can be tested here, each as `real:<name>`; skips the test where there is none.
pub(crate) fn real_stores() -> Vec<String> {
    let there = |(_, variable, compiled): &(&str, &str, bool)| *compiled && std::env::var(variable).is_ok_and(|v| !v.is_empty());
    let stores: Vec<String> = REAL.iter().filter(|real| there(real)).map(|(name, ..)| format!("real:{name}")).collect();
    if stores.is_empty() {
        harness::skip("no QUIKFLOW_TEST_… variable names a server");
    }
    stores
}

/// URLs of real stores, each with a namespace of its own that `dir`'s name gives.
pub(crate) fn urls_for(dir: &std::path::Path, stores: &[String]) -> StoreUrls {
    let name = dir.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let space = format!("quikflow_test_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let mut urls = StoreUrls::default();
    for (store, variable, _) in REAL.into_iter().filter(|(store, ..)| stores.contains(&format!("real:{store}"))) {
        let url = std::env::var(variable).expect("a server's URL");
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let host = rest.split('/').next().unwrap_or_default();
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let spaced = match store {
            "redis" => format!("{scheme}://{host}/0?prefix={space}"),
            _ => format!("{scheme}://{host}/{space}{query}"),
        };
        *url_of(&mut urls, store) = Some(spaced);
    }
    urls
}

/// A store's URL among them.
pub(crate) fn url_of<'u>(urls: &'u mut StoreUrls, store: &str) -> &'u mut Option<String> {
    match store.trim_start_matches("real:") {
        "mongodb" => &mut urls.mongodb,
        "elasticsearch" => &mut urls.elasticsearch,
        "clickhouse" => &mut urls.clickhouse,
        "redis" => &mut urls.redis,
        _ => &mut urls.mysql,
    }
}

/// One record: key, window, value.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) key: Option<String>,
    pub(crate) window: i64,
    pub(crate) value: i64,
    pub(crate) last: bool,
}

/// `window` in seconds.
pub(crate) fn row(partition: u32, offset: u64, key: &str, window: i64, value: i64, last: bool) -> Row {
    Row { partition, offset, key: Some(key.to_owned()), window: window * 1_000_000, value, last }
}

/// A simple generator: the numbers of one seed are the same everywhere.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// A sink in a store, and records for it.
pub(crate) struct Plan {
    pub(crate) sink: Arc<SinkSpec>,
    pub(crate) topic: Arc<TopicSpec>,
    dir: tempfile::TempDir,
    pub(crate) urls: StoreUrls,
    rows: Vec<Row>,
    seed: u64,
}

pub(crate) fn sink(name: &str, from: &str, store: &str, table: &str, key: &[&str]) -> SinkSpec {
    SinkSpec {
        name: name.into(),
        from: from.into(),
        store: store.into(),
        table: table.into(),
        key: key.iter().map(|k| (*k).to_owned()).collect(),
        filter: None,
        ttl: None,
        cache: None,
        rollup: BTreeMap::new(),
        doc: String::new(),
        options: toml::Table::new(),
        span: 0..0,
    }
}

impl Plan {
    pub(crate) fn new(store: &str, seed: u64) -> Plan {
        Plan::make(store, seed, None)
    }

    pub(crate) fn with_ttl(store: &str, ttl: Duration) -> Plan {
        Plan::make(store, 0, Some(ttl))
    }

    fn make(store: &str, seed: u64, ttl: Option<Duration>) -> Plan {
        let mut topic = TopicSpec::new("rows", TopicKind::Rows);
        topic.fields = [
            ("k", FieldType::String),
            ("window_start", FieldType::Timestamp),
            ("value", FieldType::Int),
            ("content", FieldType::String),
            ("final", FieldType::Bool),
        ]
        .map(|(name, ty)| FieldSpec::new(name, ty))
        .into();
        let mut sink = sink("s", "rows", store.trim_start_matches("real:"), "t", &["k", "window_start"]);
        sink.ttl = ttl;
        let mut dice = Dice(seed);
        // A key is always in the same partition; a window's rows are open until one is final.
        let mut next = [0_u64; 3];
        let mut closed = std::collections::BTreeSet::new();
        let rows = (0..600)
            .filter_map(|i| {
                let (key, window) = (dice.below(20), dice.below(6) as i64 * 60);
                let last = dice.below(8) == 0;
                if closed.contains(&(key, window)) {
                    return None;
                }
                if last {
                    closed.insert((key, window));
                }
                let partition = (key % 3) as u32;
                let offset = next[partition as usize];
                next[partition as usize] += 1 + dice.below(2);
                Some(row(partition, offset, &format!("key{key}"), window, i, last))
            })
            .collect();
        let dir = tempfile::tempdir().expect("a folder");
        let urls = urls_for(dir.path(), &[store.to_owned()]);
        Plan { sink: Arc::new(sink), topic: Arc::new(topic), dir, urls, rows, seed }
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn open(&self) -> Stores {
        self.open_as(self.sink.clone()).expect("the stores")
    }

    pub(crate) fn open_as(&self, sink: Arc<SinkSpec>) -> Result<Stores, StoreError> {
        Stores::open_with(self.dir.path(), ManualClock::at(EventTime(0)), &[(sink, self.topic.clone())], &self.urls)
    }

    pub(crate) fn batch(&self, rows: &[Row]) -> WriteBatch {
        WriteBatch { sink: self.sink.clone(), rows: batch_of(&self.topic, rows), generation: 0, next: BTreeMap::new() }
    }

    /// In order, cut at places drawn by seed.
    pub(crate) fn batches(&self) -> Vec<WriteBatch> {
        let mut dice = Dice(self.seed ^ 0xabc);
        let (mut batches, mut rest) = (Vec::new(), self.rows.as_slice());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(1 + dice.below(60) as usize));
            batches.push(self.batch(head));
            rest = tail;
        }
        batches
    }

    /// Out of order, and some twice.
    pub(crate) fn shuffled_batches(&self) -> Vec<WriteBatch> {
        let mut dice = Dice(self.seed ^ 0xdef);
        let mut batches = self.batches();
        for i in 0..batches.len() {
            if dice.below(4) == 0 {
                batches.push(batches[i].clone());
            }
        }
        for i in (1..batches.len()).rev() {
            batches.swap(i, dice.below(i as u64 + 1) as usize);
        }
        batches
    }
}

fn batch_of(topic: &TopicSpec, rows: &[Row]) -> RecordBatch {
    let time = |micros: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")) as ArrayRef;
    let none = || Arc::new(StringArray::from(vec![None::<&str>; rows.len()])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.partition))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.offset))),
        Arc::new(StringArray::from_iter(rows.iter().map(|r| r.key.as_deref()))),
        time(rows.iter().map(|r| r.window).collect()),
        time(rows.iter().map(|r| 1_000_000_000 + r.offset as i64 * 1_000_000).collect()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "ROW"))),
        none(),
        none(),
        none(),
        Arc::new(StringArray::from_iter(rows.iter().map(|r| r.key.as_deref()))),
        time(rows.iter().map(|r| r.window).collect()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.value))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| format!("<p>word{} &amp; more</p>", r.value)))),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.last)))),
    ];
    RecordBatch::try_new(topic.schema(), columns).expect("a batch")
}

/// What the table must hold: the newest row of each key.
#[derive(Default)]
pub(crate) struct Model(BTreeMap<(String, i64), (u64, i64)>);

impl Model {
    pub(crate) fn apply(&mut self, rows: &RecordBatch) {
        let offsets = rows.column_by_name("_offset").expect("offsets").as_primitive::<UInt64Type>();
        for (at, (key, window, value)) in triples(rows).into_iter().enumerate() {
            let kept = self.0.entry((key, window)).or_insert((offsets.value(at), value));
            if offsets.value(at) > kept.0 {
                *kept = (offsets.value(at), value);
            }
        }
    }

    pub(crate) fn rows(&self) -> Vec<(String, i64, i64)> {
        self.0.iter().map(|((key, window), (_, value))| (key.clone(), *window, *value)).collect()
    }
}

fn triples(batch: &RecordBatch) -> Vec<(String, i64, i64)> {
    let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
    let (k, w, v) = (column("k"), column("window_start"), column("value"));
    let (k, w, v) = (k.as_string::<i32>(), w.as_primitive::<TimestampMicrosecondType>(), v.as_primitive::<Int64Type>());
    (0..batch.num_rows()).map(|i| (k.value(i).to_owned(), w.value(i), v.value(i))).collect()
}

/// The rows of one key, with what a store may leave out when it is told the key.
pub(crate) fn rows_where(side: &ReadSide, table: &str, key: &str) -> Vec<(String, i64, i64)> {
    let request = ScanRequest { equals: vec![("k".to_owned(), key.to_owned())], ..ScanRequest::default() };
    let scan = side.tables.scan(table, &request).expect("a scan");
    let mut rows: Vec<_> = scan.batches.flat_map(|b| triples(&b.expect("a batch"))).filter(|row| row.0 == key).collect();
    rows.sort();
    rows
}

/// What a follower is told next.
pub(crate) async fn next_change(follower: &mut Follower) -> Change {
    let told = tokio::time::timeout(Duration::from_secs(20), follower.next()).await;
    told.expect("nothing is told").expect("the last change was told")
}

/// All rows of a table, by key.
pub(crate) fn rows_of(side: &ReadSide, table: &str) -> Vec<(String, i64, i64)> {
    let scan = side.tables.scan(table, &ScanRequest::default()).expect("a scan");
    let mut rows: Vec<_> = scan.batches.flat_map(|b| triples(&b.expect("a batch"))).collect();
    rows.sort();
    rows
}

/// Appends a row for each value to a topic, each of a key of its own and a time, in microseconds.
pub(crate) fn append(broker: &dyn Broker, topic: &Arc<TopicSpec>, values: std::ops::Range<i64>, time: impl Fn(i64) -> i64) {
    let count = (values.end - values.start) as usize;
    let keys = || Arc::new(StringArray::from_iter_values(values.clone().map(|v| format!("k{v:04}")))) as ArrayRef;
    let times = || {
        let times = TimestampMicrosecondArray::from_iter_values(values.clone().map(&time));
        Arc::new(times.with_timezone("UTC")) as ArrayRef
    };
    let spec = topic.append_schema();
    let columns = spec.fields().iter().map(|f| match f.name().as_str() {
        schema::KEY | "k" => keys(),
        schema::EVENT_TIME | "window_start" => times(),
        schema::TYPE => Arc::new(StringArray::from_iter_values(values.clone().map(|_| "ROW"))) as ArrayRef,
        "value" => Arc::new(Int64Array::from_iter_values(values.clone())) as ArrayRef,
        _ => new_null_array(f.data_type(), count),
    });
    let rows = RecordBatch::try_new(spec.clone(), columns.collect()).expect("a batch");
    let rows = vec![TopicRows { topic: topic.clone(), rows }];
    broker.append(Append { rows, ..Append::default() }).expect("taken").wait().expect("durable");
}
