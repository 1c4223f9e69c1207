//! The read side of a real store: scans as Arrow, documents as JSON.
//!
//! `as_of` is read before the rows: a scan holds at least the records below it (a store without
//! snapshots may already show some later ones).

use super::client::Remote;
use super::write::typed;
use super::{Backend, Batches, Looked, Order, Select, Stored};
use crate::store::{Page, Scan, ScanRequest, StoreError};
use crate::stores::badges;
use crate::stores::cells::{Builder, to_json};
use crate::stores::layout::Layout;
use crate::stores::read::{key_of, schema, wanted};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use quikflow_topics::ids::EventTime;
use rusqlite::types::{Value, ValueRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows a page of a scan holds at most.
pub(crate) const PAGE: usize = 2_048;

/// The columns of a scan and their schema.
pub(crate) fn shape(layout: &Layout, columns: &[usize]) -> Result<SchemaRef, StoreError> {
    schema(layout).project(columns).map(Arc::new).map_err(|e| StoreError::BadRequest(e.to_string()))
}

/// Reads a table of one sink. Blocking.
pub(crate) fn scan(remote: &Arc<Remote>, layout: &Arc<Layout>, request: &ScanRequest) -> Result<Scan, StoreError> {
    let columns = wanted(layout, request.columns.as_deref())?;
    let schema = shape(layout, &columns)?;
    let (this, of, asked) = (remote.clone(), layout.clone(), request.clone());
    let (as_of, batches) = remote.block(async move {
        this.ready(&of).await?;
        let as_of = this.as_of(&of.sink.name).await?.positions;
        let batches = this.backend.clone().scan(of, columns, asked).await?;
        Ok((as_of, batches))
    })?;
    Ok(Scan { schema, as_of, batches: Box::new(Pulled { remote: remote.clone(), batches: Some(batches) }) })
}

/// Batches fetched as they are taken.
struct Pulled {
    remote: Arc<Remote>,
    batches: Option<Box<dyn Batches>>,
}

impl Iterator for Pulled {
    type Item = Result<RecordBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batches = self.batches.take()?;
        let pulled = self.remote.block(async move {
            let next = batches.next().await;
            Ok((batches, next))
        });
        match pulled {
            Ok((batches, Ok(Some(batch)))) => {
                self.batches = Some(batches);
                Some(Ok(batch))
            }
            Ok((_, Ok(None))) => None,
            Ok((_, Err(error))) | Err(error) => Some(Err(error)),
        }
    }
}

/// How many unread rows each user has, over the sinks that share a table. Blocking.
pub(crate) fn counts(remote: &Arc<Remote>, layouts: Vec<Arc<Layout>>, request: &ScanRequest) -> Result<Scan, StoreError> {
    let this = remote.clone();
    let (as_of, users) = remote.block(async move {
        let mut users: BTreeMap<String, u64> = BTreeMap::new();
        let mut as_of = None;
        for layout in layouts {
            this.ready(&layout).await?;
            let progress = this.as_of(&layout.sink.name).await?;
            as_of.get_or_insert(progress.positions);
            for (user, unread) in this.backend.all_unread(&layout).await? {
                *users.entry(user).or_default() += unread;
            }
        }
        Ok((as_of.unwrap_or_default(), users))
    })?;
    let rows = users.into_iter().map(|(user, unread)| (Some(user), i64::try_from(unread).unwrap_or(i64::MAX)));
    badges::table(as_of, rows, request)
}

/// A reader's conditions; none: no row fulfils them.
pub(crate) fn select(
    layout: &Layout,
    equals: &[(String, String)],
    range: (Option<EventTime>, Option<EventTime>),
    order: Order,
    limit: usize,
) -> Result<Option<Select>, StoreError> {
    let mut all = Vec::with_capacity(equals.len());
    for (name, text) in equals {
        let at = wanted(layout, Some(std::slice::from_ref(name)))?[0];
        match typed(layout.columns[at].ty, text) {
            Some(value) => all.push((at, value)),
            None => return Ok(None),
        }
    }
    Ok(Some(Select { equals: all, from: range.0.map(|t| t.0), to: range.1.map(|t| t.0), order, limit }))
}

/// A scan by pages of keys, for stores of rows.
pub(crate) struct ByPage<B: Backend + ?Sized> {
    backend: Arc<B>,
    layout: Arc<Layout>,
    columns: Vec<usize>,
    schema: SchemaRef,
    select: Option<Select>,
}

impl<B: Backend + ?Sized> ByPage<B> {
    /// From the first key on.
    pub(crate) fn start(
        backend: Arc<B>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: &ScanRequest,
    ) -> Result<ByPage<B>, StoreError> {
        let schema = shape(&layout, &columns)?;
        let select = select(&layout, &request.equals, (request.from, request.to), Order::ByKey(None), PAGE)?;
        Ok(ByPage { backend, layout, columns, schema, select })
    }
}

#[async_trait::async_trait]
impl<B: Backend + ?Sized> Batches for ByPage<B> {
    async fn next(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let Some(select) = self.select.take() else { return Ok(None) };
        let rows = self.backend.page(&self.layout, &select).await?;
        if let Some(last) = rows.last().filter(|_| rows.len() >= select.limit) {
            self.select = Some(Select { order: Order::ByKey(Some(last.key.clone())), ..select });
        }
        if rows.is_empty() {
            return Ok(None);
        }
        batch_of(&self.layout, &self.columns, &self.schema, &rows).map(Some)
    }
}

/// Columns of rows as a batch.
pub(crate) fn batch_of(
    layout: &Layout,
    columns: &[usize],
    schema: &SchemaRef,
    rows: &[Stored],
) -> Result<RecordBatch, StoreError> {
    let mut builders: Vec<Builder> = columns.iter().map(|c| Builder::new(layout.columns[*c].ty)).collect();
    for row in rows {
        for (builder, column) in builders.iter_mut().zip(columns) {
            builder.push(row.values.get(*column).map_or(ValueRef::Null, ValueRef::from));
        }
    }
    let arrays: Vec<ArrayRef> = builders.into_iter().map(Builder::finish).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options).map_err(|e| StoreError::BadRequest(e.to_string()))
}

/// A document: the columns that are not null, and `_id`.
pub(crate) fn document(layout: &Layout, row: &Stored) -> serde_json::Value {
    let mut fields = serde_json::Map::new();
    fields.insert("_id".into(), serde_json::Value::String(row.key.replace('\u{1f}', "/")));
    for (column, value) in layout.columns.iter().zip(&row.values) {
        let value = to_json(column.ty, ValueRef::from(value));
        if !value.is_null() {
            fields.insert(column.name.clone(), value);
        }
    }
    serde_json::Value::Object(fields)
}

/// One document.
pub(crate) async fn get(
    remote: &Arc<Remote>,
    layouts: Vec<Arc<Layout>>,
    id: String,
) -> Result<Option<serde_json::Value>, StoreError> {
    let this = remote.clone();
    let run = async move {
        for layout in layouts {
            this.ready(&layout).await?;
            let key = key_of(&layout, &id);
            let cached = cached(&this, &layout, &key).await;
            if let Some(Looked::Kept(document)) = cached {
                return Ok(Some(document));
            }
            let rows = this.backend.read(&layout, std::slice::from_ref(&key)).await?;
            if let Some(row) = rows.iter().find(|row| row.key == key && !row.gone) {
                let document = document(&layout, row);
                keep(&this, &layout, cached, &document).await;
                return Ok(Some(document));
            }
        }
        Ok(None)
    };
    remote.on(run).await
}

/// What the cache says of a document; none where there is no cache, or none that answers.
async fn cached(remote: &Remote, layout: &Layout, key: &str) -> Option<Looked> {
    let (cache, _) = remote.cache_of(layout)?;
    let looked = cache.look(&layout.sink.name, key).await;
    let outcome = match &looked {
        Ok(Looked::Kept(_)) => "kept",
        Ok(Looked::Missing { .. }) => "missing",
        Ok(Looked::Changing) => "changing",
        Err(_) => "away",
    };
    metrics::counter!("quikflow_cache_total", "sink" => layout.sink.name.clone(), "outcome" => outcome).increment(1);
    looked.inspect_err(|error| tracing::debug!(%error, "the cache does not answer, the store is asked")).ok()
}

/// Keeps a document that was read from the store.
async fn keep(remote: &Remote, layout: &Layout, looked: Option<Looked>, document: &serde_json::Value) {
    if let (Some((cache, keep)), Some(Looked::Missing { place, lease })) = (remote.cache_of(layout), looked)
        && let Err(error) = cache.fill(&place, lease, document, keep).await
    {
        tracing::debug!(%error, "a document is not kept");
    }
}

/// Where a document stands in a list: time, place of its sink among those of the table, key.
type Place = (i64, usize, String);

fn place_of(cursor: &str) -> Result<Place, StoreError> {
    let mut parts = cursor.splitn(3, '.');
    let place = (|| Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.to_owned())))();
    place.ok_or_else(|| StoreError::BadRequest("`cursor` is not one that a page gave".into()))
}

/// What a page of documents is asked for.
pub(crate) struct Asked {
    pub(crate) equals: Vec<(String, String)>,
    pub(crate) range: (Option<EventTime>, Option<EventTime>),
    pub(crate) cursor: Option<String>,
    pub(crate) limit: usize,
}

/// Documents of a table, newest first.
pub(crate) async fn list(remote: &Arc<Remote>, layouts: Vec<Arc<Layout>>, asked: Asked) -> Result<Page, StoreError> {
    let this = remote.clone();
    let run = async move {
        let limit = asked.limit.clamp(1, 10_000);
        let after = asked.cursor.as_deref().map(place_of).transpose()?;
        let mut found: Vec<(Place, serde_json::Value)> = Vec::new();
        for (rank, layout) in layouts.iter().enumerate() {
            this.ready(layout).await?;
            // Of one time, sinks follow each other from the last to the first.
            let from = after.as_ref().map(|(time, of, key)| match rank.cmp(of) {
                std::cmp::Ordering::Equal => (*time, key.clone()),
                std::cmp::Ordering::Less => (time.saturating_add(1), String::new()),
                std::cmp::Ordering::Greater => (*time, String::new()),
            });
            let order = Order::Newest(from);
            let Some(select) = select(layout, &asked.equals, asked.range, order, limit + 1)? else { continue };
            for row in this.backend.page(layout, &select).await? {
                let time = if let Some(Value::Integer(time)) = row.values.get(layout.time) { *time } else { i64::MIN };
                found.push(((time, rank, row.key.clone()), document(layout, &row)));
            }
        }
        found.sort_by(|(a, _), (b, _)| b.cmp(a));
        let more = found.len() > limit;
        found.truncate(limit);
        let cursor = found.last().filter(|_| more).map(|((time, rank, key), _)| format!("{time}.{rank}.{key}"));
        Ok(Page { items: found.into_iter().map(|(_, item)| item).collect(), cursor })
    };
    remote.on(run).await
}
