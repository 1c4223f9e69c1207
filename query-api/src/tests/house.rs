//! A state over memory, and requests to its router.

use super::log::MemoryLog;
use crate::state::{Freshness, IntrospectionError, LagReport, PartHealth, QueryLimits, lag_of_broker};
use crate::{Introspection, QueryState, router};
use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use quikflow_sinks::changes::{Changes, Follower};
use quikflow_sinks::store::*;
use quikflow_topics::broker::{Positions, ResetFrom};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use quikflow_topics::schema::time_type;
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt;

/// 2026-01-01T12:00:00Z
pub(super) const NOON: i64 = 1_767_268_800_000_000;
pub(super) const MINUTE: i64 = 60_000_000;

#[derive(Clone)]
pub(super) struct MemoryStores {
    pub(super) tables: Vec<(TableInfo, Vec<RecordBatch>)>,
    pub(super) documents: Vec<(String, Value)>,
}

impl Tables for MemoryStores {
    fn tables(&self) -> Vec<TableInfo> {
        self.tables.iter().map(|(info, _)| info.clone()).collect()
    }

    fn scan(&self, table: &str, request: &ScanRequest) -> Result<Scan, StoreError> {
        let found = self.tables.iter().find(|(info, _)| info.name == table);
        let (info, batches) = found.ok_or_else(|| StoreError::BadRequest(format!("no table {table}")))?;
        let indices: Vec<usize> = match &request.columns {
            Some(columns) => columns.iter().map(|c| info.schema.index_of(c).unwrap()).collect(),
            None => (0..info.schema.fields().len()).collect(),
        };
        let schema = Arc::new(info.schema.project(&indices).unwrap());
        let batches: Vec<_> = batches.iter().map(|b| Ok(b.project(&indices).unwrap())).collect();
        let as_of = Positions::from([(PartitionId(0), Offset(42))]);
        Ok(Scan { schema, as_of, batches: Box::new(batches.into_iter()) })
    }
}

fn text<'a>(document: &'a Value, field: &str) -> Option<&'a str> {
    document.get(field).and_then(Value::as_str)
}

#[async_trait::async_trait]
impl Documents for MemoryStores {
    async fn get(&self, table: &str, id: &str) -> Result<Option<Value>, StoreError> {
        let id = id.replace('\u{1f}', "/");
        Ok(self.documents.iter().find(|(t, d)| t == table && text(d, "_id") == Some(&id)).map(|(_, d)| d.clone()))
    }

    async fn list(
        &self,
        table: &str,
        equals: &[(String, String)],
        from: Option<EventTime>,
        to: Option<EventTime>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let after: usize = match cursor {
            Some(cursor) => cursor.parse().map_err(|_| StoreError::BadRequest("`cursor` is not one that a page gave".into()))?,
            None => 0,
        };
        let time = |d: &Value| text(d, "sent_at").and_then(crate::times::read);
        let fits = |d: &Value| {
            equals.iter().all(|(f, v)| text(d, f) == Some(v))
                && from.is_none_or(|from| time(d) >= Some(from))
                && to.is_none_or(|to| time(d) < Some(to))
        };
        let mut all: Vec<&Value> = self.documents.iter().filter(|(t, d)| t == table && fits(d)).map(|(_, d)| d).collect();
        all.sort_by_key(|d| std::cmp::Reverse(time(d)));
        let items: Vec<Value> = all.iter().skip(after).take(limit).map(|d| (*d).clone()).collect();
        let next = after + items.len();
        Ok(Page { items, cursor: (next < all.len()).then(|| next.to_string()) })
    }
}

#[async_trait::async_trait]
impl Search for MemoryStores {
    async fn search(
        &self,
        query: &str,
        filter: &[(String, String)],
        _cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let hit = |d: &Value| {
            text(d, "content").is_some_and(|c| c.contains(query)) && filter.iter().all(|(f, v)| text(d, f) == Some(v))
        };
        let items = self.documents.iter().map(|(_, d)| d).filter(|d| hit(d)).take(limit).cloned().collect();
        Ok(Page { items, cursor: None })
    }
}

#[async_trait::async_trait]
impl NotificationInbox for MemoryStores {
    async fn badge(&self, user: &str) -> Result<u64, StoreError> {
        Ok(self.documents.iter().filter(|(t, d)| t == "notifications" && text(d, "user") == Some(user)).count() as u64)
    }

    async fn mark_read(&self, user: &str, id: &str) -> Result<bool, StoreError> {
        let found = |t: &str, d: &Value| t == "notifications" && text(d, "user") == Some(user) && text(d, "_id") == Some(id);
        Ok(self.documents.iter().any(|(t, d)| found(t, d)))
    }
}

impl Changes for MemoryStores {
    fn follow(&self, table: &str) -> Result<Follower, StoreError> {
        Err(StoreError::BadRequest(format!("table `{table}` cannot be followed")))
    }
}

pub(super) struct Process {
    pub(super) log: Arc<MemoryLog>,
    pub(super) freshness: Freshness,
}

#[async_trait::async_trait]
impl Introspection for Process {
    fn lag(&self) -> Result<LagReport, IntrospectionError> {
        lag_of_broker(self.log.as_ref()).map_err(|e| IntrospectionError::Failed(e.to_string()))
    }

    fn topologies(&self) -> Result<Vec<Value>, IntrospectionError> {
        Ok(vec![json!({"name": "channel-activity", "doc": "by minute"})])
    }

    fn freshness(&self, _table: &TableInfo) -> Freshness {
        self.freshness
    }

    fn health(&self) -> Vec<PartHealth> {
        vec![PartHealth { part: "broker".into(), ready: true, detail: "open".into() }]
    }

    fn metrics(&self) -> String {
        "quikflow_lag 0\n".into()
    }

    async fn reset(&self, topology: &str, from: ResetFrom) -> Result<Value, IntrospectionError> {
        match topology {
            "channel-activity" => Ok(json!({"topology": topology, "from": format!("{from:?}").to_lowercase()})),
            other => Err(IntrospectionError::UnknownTopology { name: other.into(), known: vec!["channel-activity".into()] }),
        }
    }
}

/// `minutes` × `channels` rows of `channel_activity`; the last minute is open.
pub(super) fn channel_activity(minutes: i64, channels: i64) -> (TableInfo, Vec<RecordBatch>) {
    let fields = vec![
        Field::new("window_start", time_type(), true),
        Field::new("window_end", time_type(), true),
        Field::new("channel", DataType::Utf8, true),
        Field::new("messages", DataType::Int64, true),
        Field::new("authors", DataType::Int64, true),
        Field::new("characters", DataType::Int64, true),
        Field::new("p95_length", DataType::Float64, true),
        Field::new("final", DataType::Boolean, true),
        Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), true),
    ];
    let info = TableInfo {
        name: "channel_activity".into(),
        doc: "Messages by channel and minute.".into(),
        schema: Arc::new(Schema::new(fields)),
        key: vec!["channel".into(), "window_start".into()],
        time_column: Some("window_start".into()),
        final_column: Some("final".into()),
        rollup: [("messages", "sum"), ("characters", "sum")].map(|(c, r)| (c.to_owned(), r.to_owned())).into(),
        topic: "analytics.channel-activity".into(),
        sink: "channel-activity".into(),
    };
    let batch = |minute: i64| {
        let ids: Vec<i64> = (0..channels).collect();
        let mut tags = ListBuilder::new(StringBuilder::new());
        for id in &ids {
            tags.values().append_value(format!("t{id}"));
            tags.values().append_value("a \"b\", c");
            tags.append(true);
        }
        let times = |at: i64| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(vec![at; ids.len()]).with_timezone("UTC")) };
        let columns: Vec<ArrayRef> = vec![
            times(NOON + minute * MINUTE),
            times(NOON + (minute + 1) * MINUTE),
            Arc::new(ids.iter().map(|i| Some(format!("c{i}"))).collect::<StringArray>()),
            Arc::new(ids.iter().map(|i| Some(minute * 10 + i)).collect::<Int64Array>()),
            Arc::new(ids.iter().map(|i| (i % 3 != 0).then_some(*i)).collect::<Int64Array>()),
            Arc::new(ids.iter().map(|i| Some(i * 100)).collect::<Int64Array>()),
            Arc::new(ids.iter().map(|i| Some(*i as f64 + 0.5)).collect::<Float64Array>()),
            Arc::new(ids.iter().map(|_| Some(minute + 1 < minutes)).collect::<BooleanArray>()),
            Arc::new(tags.finish()),
        ];
        RecordBatch::try_new(info.schema.clone(), columns).unwrap()
    };
    let batches = (0..minutes).map(batch).collect();
    (info, batches)
}

/// A house in memory.
pub(super) struct House {
    pub(super) state: QueryState,
    pub(super) log: Arc<MemoryLog>,
}

impl House {
    pub(super) fn new(stores: MemoryStores, freshness: Freshness, limits: QueryLimits) -> House {
        let stores = Arc::new(stores);
        let log = Arc::new(MemoryLog::new());
        let read = ReadSide {
            tables: stores.clone(),
            documents: stores.clone(),
            search: stores.clone(),
            inbox: stores.clone(),
            changes: stores,
            elsewhere: false,
        };
        let process = Arc::new(Process { log: log.clone(), freshness });
        let clock = ManualClock::at(EventTime(NOON));
        let state = QueryState::new(read, log.clone(), process, clock, limits, tokio::sync::watch::channel(false).1).unwrap();
        House { state, log }
    }

    /// With 90 minutes of three channels; windows up to 13:29 are closed.
    pub(super) fn usual() -> House {
        House::with_limits(QueryLimits::default())
    }

    pub(super) fn with_limits(limits: QueryLimits) -> House {
        let stores = MemoryStores { tables: vec![channel_activity(90, 3)], documents: Vec::new() };
        let closed = EventTime(NOON + 89 * MINUTE);
        let freshness = Freshness { watermark: Some(EventTime(NOON + 90 * MINUTE)), closed: Some(closed) };
        House::new(stores, freshness, limits)
    }

    pub(super) async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = router(self.state.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, bytes.to_vec())
    }

    pub(super) async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, bytes) = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
        let (status, _, bytes) = self.send(request).await;
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(super) async fn sql(&self, sql: &str) -> (StatusCode, Value) {
        self.post("/v1/sql", json!({ "sql": sql })).await
    }
}
