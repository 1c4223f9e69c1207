//! Elasticsearch: an index a sink behind an alias of its name, a document a row.
//!
//! The guard of a write is an external version: the record's version, or the revision of a merged
//! row. A 409 is "older" (or "read again"); a 429 inside a 200 is "busy". Words are those of the
//! embedded index (its tokenizer cuts them), so that both find the same; marks are made as there.
//! A write refreshes the index before it returns, so that stored offsets are of visible rows.

mod bulk;
mod names;

use super::layout::Layout;
use super::remote::address::Address;
use super::remote::read::{ByPage, document, select};
use super::remote::write::{SMALL, from_object, in_shares};
use super::remote::{
    Backend, Batches, NOT_PEM, Order, Put, PutOutcome, Select, Stored, distrusted, refused, unavailable, unreachable,
};
use super::search::{fragments, text_column};
use super::text::{Query, plain};
use super::words::words;
use crate::store::{Page, ScanRequest, StoreError};
use elasticsearch::auth::Credentials;
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use elasticsearch::http::{Method, Url};
use names::{id_of, plain_name};
use quikflow_topics::catalogue::FieldType;
use quikflow_topics::ids::EventTime;
use rusqlite::types::Value;
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "elasticsearch";
/// Rows and bytes of one request: a batch of the runner's, as a rule.
const AT_ONCE: (usize, usize) = (4_096, 8 << 20);
/// Longer texts are not indexed as a whole: the index takes 32,766 bytes.
const LONGEST: usize = 8_191;

/// Of the index templates made here; an operator's of a higher one is taken.
const PRIORITY: u32 = 500;
const MAY_NOT: &str = "the user may not do this";

/// An Elasticsearch cluster.
pub(crate) struct Elastic {
    transport: Transport,
    prefix: String,
}

fn reason(answer: &Json) -> String {
    let error = &answer["error"];
    let text = error["reason"].as_str().or_else(|| error.as_str()).unwrap_or("no reason given");
    text.chars().take(300).collect()
}

fn stored(layout: &Layout, source: &Json) -> Stored {
    let mut fields = source["doc"].as_object().cloned().unwrap_or_default();
    for column in &layout.columns {
        let Some(json) = fields.get_mut(&column.name) else { continue };
        match json {
            Json::Bool(b) => *json = i64::from(*b).into(),
            Json::Array(_) => *json = Json::String(json.to_string()),
            _ => {}
        }
    }
    let text = |name: &str| source[name].as_str().map(str::to_owned);
    Stored {
        key: text("k").unwrap_or_default(),
        base: source["v"].as_i64().unwrap_or(-1),
        gone: source["gone"].as_bool().unwrap_or(true),
        arrival: source["arr"].as_i64().unwrap_or(0),
        revision: source["rev"].as_i64().unwrap_or(0),
        versions: text("vs"),
        sets: text("sets"),
        values: from_object(layout, &fields),
    }
}

impl Elastic {
    /// The cluster at `url`; nothing is asked of it yet.
    pub(crate) fn new(url: &str) -> Result<Elastic, StoreError> {
        let bad = || refused(NAME, "the URL cannot be read: write http(s)://user:password@host:port/prefix?ca=FILE");
        let address = Address::parse(url).filter(|a| matches!(a.scheme.as_str(), "http" | "https")).ok_or_else(bad)?;
        let prefix = plain_name(if address.path.is_empty() { "quikflow" } else { &address.path });
        let url = Url::parse(&address.base()).map_err(|_| bad())?;
        let mut builder =
            TransportBuilder::new(SingleNodeConnectionPool::new(url)).timeout(Duration::from_secs(60)).disable_proxy();
        if let Some(pem) = address.authorities(NAME)? {
            let certificates = Certificate::from_pem(&pem).map_err(|_| refused(NAME, NOT_PEM))?;
            builder = builder.cert_validation(CertificateValidation::Full(certificates));
        }
        if let (Some(user), Some(password)) = (address.user, address.password) {
            builder = builder.auth(Credentials::Basic(user, password));
        }
        Ok(Elastic { transport: builder.build().map_err(|_| bad())?, prefix })
    }

    /// The alias of a sink.
    fn alias(&self, layout: &Layout) -> String {
        format!("{}-{}", self.prefix, plain_name(&layout.sink.name))
    }

    fn notes(&self) -> String {
        format!("{}-notes.quikflow", self.prefix)
    }

    /// Status and answer; what concerns the whole store is an error.
    async fn call(&self, method: Method, path: &str, body: Option<String>, lines: bool) -> Result<(u16, Json), StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(if lines { "application/x-ndjson" } else { "application/json" }));
        let sent = self.transport.send(method, path, headers, None::<&()>, body, None).await;
        let response = sent.map_err(|e| {
            if e.is_timeout() {
                unreachable(NAME, "the server took too long")
            } else {
                distrusted(NAME, &e).unwrap_or_else(|| unreachable(NAME, "the server cannot be reached"))
            }
        })?;
        let status = response.status_code().as_u16();
        let hint = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let text = response.text().await.map_err(|_| unavailable(NAME, "the answer broke off"))?;
        let answer: Json = serde_json::from_str(&text).unwrap_or(Json::Null);
        match status {
            401 => Err(refused(NAME, "wrong user or password")),
            403 => Err(refused(NAME, format!("{MAY_NOT}, or the index is read-only: {}", reason(&answer)))),
            413 => Err(StoreError::BadRequest("the request is longer than Elasticsearch takes (http.max_content_length)".into())),
            429 | 500.. => {
                let message = format!("status {status}: {}", reason(&answer));
                Err(StoreError::Unavailable { store: NAME, message, retry_after: hint })
            }
            _ => Ok((status, answer)),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &Json) -> Result<(u16, Json), StoreError> {
        let body = if body.is_null() { None } else { Some(body.to_string()) };
        self.call(method, path, body, false).await
    }

    fn good(&self, (status, answer): (u16, Json)) -> Result<Json, StoreError> {
        match status {
            200..=299 => Ok(answer),
            404 => Err(unavailable(NAME, format!("an index is missing: {}", reason(&answer)))),
            _ => Err(refused(NAME, format!("status {status}: {}", reason(&answer)))),
        }
    }

    /// Sends the lines of a bulk request; its items.
    async fn bulk(&self, path: &str, lines: String) -> Result<Vec<Json>, StoreError> {
        let mut answer = self.good(self.call(Method::Post, path, Some(lines), true).await?)?;
        match answer["items"].take() {
            Json::Array(items) => Ok(items),
            _ => Err(unavailable(NAME, "a bulk request was answered without items")),
        }
    }

    async fn hits(&self, layout: &Layout, body: &Json) -> Result<Vec<Json>, StoreError> {
        let path = format!("/{}/_search", self.alias(layout));
        let mut answer = self.good(self.ask(Method::Post, &path, body).await?)?;
        // A share of the answer would look like rows that are not there.
        if answer["timed_out"] == true || answer["_shards"]["failed"].as_u64().unwrap_or(0) > 0 {
            return Err(unavailable(NAME, "some shards did not answer"));
        }
        match answer["hits"]["hits"].take() {
            Json::Array(hits) => Ok(hits),
            _ => Ok(Vec::new()),
        }
    }

    fn properties(layout: &Layout) -> Json {
        let mut columns = serde_json::Map::new();
        for column in &layout.columns {
            let ty = match column.ty {
                FieldType::String | FieldType::StringList => json!({ "type": "keyword", "ignore_above": LONGEST }),
                FieldType::Int | FieldType::Timestamp => json!({ "type": "long" }),
                FieldType::Float => json!({ "type": "double" }),
                FieldType::Bool => json!({ "type": "boolean" }),
                FieldType::Json => continue,
            };
            columns.insert(column.name.clone(), ty);
        }
        json!({
            "k": { "type": "keyword" }, "gone": { "type": "boolean" }, "arr": { "type": "long" },
            "words": { "type": "text", "analyzer": "whitespace" },
            "doc": { "dynamic": false, "properties": columns },
        })
    }

    /// The form of a sink's index, and of every index that is made for it later.
    fn form(layout: &Layout) -> Json {
        json!({
            "settings": { "index": { "max_result_window": 20_000 } },
            "mappings": { "dynamic": false, "properties": Elastic::properties(layout) },
        })
    }

    /// Tells the server the form of a sink's index, and of those that an operator makes to take its place: a
    /// component, and a template of it and nothing else. Replicas and shards are the operator's, by a template of
    /// higher priority that is composed of the component too. Who may manage no templates does without.
    async fn template(&self, layout: &Layout) -> Result<(), StoreError> {
        let alias = self.alias(layout);
        let index = json!({ "index_patterns": [format!("{alias}-0*")], "priority": PRIORITY, "composed_of": [alias] });
        for (kind, body) in [("component", json!({ "template": Elastic::form(layout) })), ("index", index)] {
            let path = format!("/_{kind}_template/{alias}");
            let (status, answer) = match self.ask(Method::Put, &path, &body).await {
                Err(StoreError::Refused { message, .. }) if message.contains(MAY_NOT) => (403, Json::Null),
                answer => answer?,
            };
            // An operator's own of the same priority stands for the same indexes.
            let theirs = status == 400 && reason(&answer).contains("that have the same priority");
            if theirs || status == 403 {
                tracing::warn!(store = NAME, sink = layout.sink.name, status, "no {kind} template was made: {}", reason(&answer));
                return Ok(());
            }
            self.good((status, answer))?;
        }
        Ok(())
    }

    async fn create(&self, layout: &Layout) -> Result<(), StoreError> {
        let alias = self.alias(layout);
        let mut body = Elastic::form(layout);
        body["aliases"][&alias] = json!({ "is_write_index": true });
        let (status, answer) = self.ask(Method::Put, &format!("/{alias}-000001"), &body).await?;
        // Another process was quicker.
        if status == 400 && answer["error"]["type"] == "resource_already_exists_exception" {
            return Ok(());
        }
        self.good((status, answer)).map(|_| ())
    }

    /// The indexes behind a sink's alias.
    async fn indexes(&self, layout: &Layout) -> Result<Vec<String>, StoreError> {
        let (status, answer) = self.ask(Method::Get, &format!("/_alias/{}", self.alias(layout)), &Json::Null).await?;
        if status == 404 {
            return Ok(Vec::new());
        }
        let answer = self.good((status, answer))?;
        Ok(answer.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect())
    }

    fn conditions(layout: &Layout, select: &Select) -> Vec<Json> {
        let time = format!("doc.{}", layout.columns[layout.time].name);
        let one = |kind: &str, field: &str, value: Json| {
            let mut inner = serde_json::Map::new();
            inner.insert(field.to_owned(), value);
            let mut outer = serde_json::Map::new();
            outer.insert(kind.to_owned(), Json::Object(inner));
            Json::Object(outer)
        };
        let mut all = vec![json!({ "term": { "gone": false } })];
        all.extend(select.from.map(|from| one("range", &time, json!({ "gte": from }))));
        all.extend(select.to.map(|to| one("range", &time, json!({ "lt": to }))));
        for (at, value) in &select.equals {
            let column = &layout.columns[*at];
            let value = match (column.ty, value) {
                (FieldType::Bool, Value::Integer(i)) => Json::Bool(*i != 0),
                (_, Value::Integer(i)) => (*i).into(),
                (_, Value::Real(r)) => (*r).into(),
                (_, Value::Text(t)) => t.clone().into(),
                (_, Value::Null | Value::Blob(_)) => Json::Null,
            };
            all.push(one("term", &format!("doc.{}", column.name), value));
        }
        all
    }

    /// The words of rows that can be found.
    fn words(layout: &Layout, puts: &[Put]) -> Result<Vec<String>, StoreError> {
        let (text, deleted) = (text_column(layout)?, layout.column("deleted"));
        let texts: Vec<&str> = puts
            .iter()
            .map(|Put { row, .. }| match (&row.values[text], deleted.map(|at| &row.values[at])) {
                (_, Some(Value::Integer(1))) => "",
                (Value::Text(t), _) if !row.gone => t,
                _ => "",
            })
            .collect();
        words(&texts).map_err(super::file::fault(NAME))
    }
}

#[async_trait::async_trait]
impl Backend for Elastic {
    fn name(&self) -> &'static str {
        NAME
    }

    /// A refresh costs about what some thousand rows do, however many it shows: one for four usual batches.
    fn gathers(&self) -> u32 {
        4
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let answer = self.good(self.ask(Method::Get, "/", &Json::Null).await?)?;
        let version = answer["version"]["number"].as_str().unwrap_or_default();
        match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= 7 => {}
            Some(_) => return Err(refused(NAME, format!("the server is of version {version}, 7 or later is needed"))),
            None => return Err(refused(NAME, "what answers is not Elasticsearch")),
        }
        let (status, answer) =
            self.ask(Method::Put, &format!("/{}", self.notes()), &json!({ "mappings": { "enabled": false } })).await?;
        if status == 400 && answer["error"]["type"] == "resource_already_exists_exception" {
            return Ok(());
        }
        self.good((status, answer)).map(|_| ())
    }

    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError> {
        text_column(layout)?;
        self.template(layout).await?;
        if self.indexes(layout).await?.is_empty() {
            return self.create(layout).await;
        }
        let body = json!({ "properties": Elastic::properties(layout) });
        self.good(self.ask(Method::Put, &format!("/{}/_mapping", self.alias(layout)), &body).await?).map(|_| ())
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        let body = json!({ "ids": [name] });
        let answer = self.good(self.ask(Method::Post, &format!("/{}/_mget", self.notes()), &body).await?)?;
        Ok(answer["docs"][0]["_source"]["text"].as_str().map(str::to_owned))
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let lines = format!("{}\n{}\n", json!({ "index": { "_id": name } }), json!({ "text": text }));
        let items = self.bulk(&format!("/{}/_bulk", self.notes()), lines).await?;
        match items.first().and_then(|item| item["index"]["status"].as_u64()) {
            Some(200..=299) => Ok(()),
            Some(403) => Err(refused(NAME, format!("the index is read-only: {}", reason(&items[0]["index"])))),
            status => Err(unavailable(NAME, format!("the offsets were not taken: status {}", status.unwrap_or(0)))),
        }
    }

    async fn clear(&self, layout: &Layout) -> Result<(), StoreError> {
        for index in self.indexes(layout).await? {
            let (status, answer) = self.ask(Method::Delete, &format!("/{index}"), &Json::Null).await?;
            if status != 404 {
                self.good((status, answer))?;
            }
        }
        self.create(layout).await
    }

    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        let body =
            json!({ "size": AT_ONCE.0, "_source": false, "query": { "range": { "arr": { "lt": before.0 } } }, "sort": ["_doc"] });
        loop {
            let hits = self.hits(layout, &body).await?;
            if hits.is_empty() {
                return Ok(());
            }
            let line = |hit: &Json| format!("{}\n", json!({ "delete": { "_id": hit["_id"] } }));
            let lines: String = hits.iter().map(line).collect();
            let path = format!("/{}/_bulk?refresh=true&require_alias=true", self.alias(layout));
            let items = self.bulk(&path, lines).await?;
            if let Some(status) = items.iter().filter_map(|i| i["delete"]["status"].as_u64()).find(|s| *s >= 300 && *s != 404) {
                return Err(unavailable(NAME, format!("old rows were not taken away: status {status}")));
            }
        }
    }

    async fn fetch(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        for share in keys.chunks(AT_ONCE.0) {
            let body = json!({ "ids": share.iter().map(|key| id_of(key)).collect::<Vec<_>>() });
            let answer = self.good(self.ask(Method::Post, &format!("/{}/_mget", self.alias(layout)), &body).await?)?;
            for found in answer["docs"].as_array().into_iter().flatten() {
                if found["found"] == true {
                    rows.push(stored(layout, &found["_source"]));
                } else if let Some(error) = found["error"]["reason"].as_str() {
                    return Err(unavailable(NAME, error));
                }
            }
        }
        Ok(rows)
    }

    async fn put(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        // One refresh shows them all; a batch of one call brings it along.
        let alone = puts.len() <= SMALL;
        let shown = if alone { "&refresh=true" } else { "" };
        let path = format!("/{}/_bulk?require_alias=true&filter_path=items.*.status,items.*.error{shown}", self.alias(layout));
        let outcomes = in_shares(puts, AT_ONCE, calls, async |share| {
            let words = Elastic::words(layout, &share)?;
            let items = self.bulk(&path, bulk::lines(layout, &share, &words)?).await?;
            if items.len() != share.len() {
                return Err(unavailable(NAME, "a bulk request was answered for other rows"));
            }
            items.iter().map(bulk::outcome).collect()
        })
        .await?;
        if !alone {
            self.good(self.ask(Method::Post, &format!("/{}/_refresh", self.alias(layout)), &Json::Null).await?)?;
        }
        Ok(outcomes)
    }

    async fn page(&self, layout: &Layout, select: &Select) -> Result<Vec<Stored>, StoreError> {
        let time = format!("doc.{}", layout.columns[layout.time].name);
        let mut body = json!({
            "size": select.limit, "track_total_hits": false, "query": { "bool": { "filter": Elastic::conditions(layout, select) } },
        });
        match &select.order {
            Order::ByKey(after) => {
                body["sort"] = json!([{ "k": "asc" }]);
                if let Some(after) = after {
                    body["search_after"] = json!([after]);
                }
            }
            Order::Newest(after) => {
                let mut by_time = serde_json::Map::new();
                by_time.insert(time, json!({ "order": "desc", "missing": "_last" }));
                body["sort"] = json!([by_time, { "k": "desc" }]);
                if let Some((at, key)) = after {
                    body["search_after"] = json!([at, key]);
                }
            }
        }
        Ok(self.hits(layout, &body).await?.iter().map(|hit| stored(layout, &hit["_source"])).collect())
    }

    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError> {
        Ok(Box::new(ByPage::start(self, layout, columns, &request)?))
    }

    async fn search(
        &self,
        layout: &Layout,
        query: &str,
        filter: &[(String, String)],
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let Some(query) = Query::parse(query) else {
            return Err(StoreError::BadRequest("the query holds no word; write words or \"a phrase\"".into()));
        };
        let limit = limit.clamp(1, 1_000);
        let at = super::file::fault(NAME);
        let phrases: Vec<String> = words(query.phrases()).map_err(at)?.into_iter().filter(|w| !w.is_empty()).collect();
        let Some(select) = select(layout, filter, (None, None), Order::ByKey(None), limit)? else { return Ok(Page::default()) };
        if phrases.is_empty() {
            return Ok(Page::default());
        }
        let must: Vec<Json> = phrases.iter().map(|phrase| json!({ "match_phrase": { "words": phrase } })).collect();
        let mut body = json!({
            "size": limit + 1, "track_total_hits": false, "sort": [{ "_score": "desc" }, { "k": "asc" }],
            "query": { "bool": { "must": must, "filter": Elastic::conditions(layout, &select) } },
        });
        if let Some(cursor) = cursor {
            let bad = || StoreError::BadRequest("`cursor` is not one that a page gave".into());
            let (bits, key) = cursor.split_once('.').ok_or_else(bad)?;
            let bits = u64::from_str_radix(bits, 16).map_err(|_| bad())?;
            body["search_after"] = json!([f64::from_bits(bits), key]);
        }
        let mut hits = self.hits(layout, &body).await?;
        let more = hits.len() > limit;
        hits.truncate(limit);
        let place = |hit: &Json| Some((hit["sort"][0].as_f64()?, hit["sort"][1].as_str()?.to_owned()));
        let next = hits.last().filter(|_| more).and_then(place).map(|(score, key)| format!("{:x}.{key}", score.to_bits()));
        let rows: Vec<Stored> = hits.iter().map(|hit| stored(layout, &hit["_source"])).collect();
        let text = text_column(layout)?;
        let texts: Vec<String> = rows
            .iter()
            .map(|row| if let Value::Text(t) = &row.values[text] { plain(t).into_owned() } else { String::new() })
            .collect();
        let marked = fragments(&texts, &query).map_err(at)?;
        let mut items = Vec::with_capacity(rows.len());
        for ((row, hit), fragment) in rows.iter().zip(&hits).zip(marked) {
            let mut item = document(layout, row);
            item["score"] = hit["sort"][0].clone();
            item["highlights"] = Json::Array(fragment.into_iter().map(Json::String).collect());
            items.push(item);
        }
        Ok(Page { items, cursor: next })
    }
}
