//! Embedded stores that another process has: read through its query address ([`crate::ask`]), never written.

use super::layout::Layout;
use super::remote::client::Pool;
use crate::ask::{self, AS_OF, Ask, PATH};
use crate::store::{Page, Scan, ScanRequest, StoreError};
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use parking_lot::RwLock;
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How it is called in errors.
const NAME: &str = "embedded";
/// So long may the other process be asked at the start, where others wait.
const AT_START: Duration = Duration::from_secs(10);
/// So long may connecting take.
const CONNECTING: Duration = Duration::from_secs(5);
/// So many bytes may an answer other than a scan have.
const LARGEST: usize = 64 << 20;

/// Where the embedded stores are.
#[derive(Clone)]
pub struct Elsewhere {
    /// `http(s)://host:port`, the query address of the process that has them.
    pub url: String,
    /// Its bearer token. Never shown.
    pub token: Option<String>,
}

/// The process that has the embedded stores.
pub(crate) struct Owner {
    at: String,
    token: Option<HeaderValue>,
    http: reqwest::Client,
    pool: Arc<Pool>,
    longest: Duration,
    tables: RwLock<BTreeMap<String, Arc<Layout>>>,
}

fn refused(message: impl std::fmt::Display) -> StoreError {
    StoreError::Refused { store: NAME, message: format!("{message}; look at QUIKFLOW_EMBEDDED_STORES_URL") }
}

fn unavailable(message: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable {
        store: NAME,
        message: format!("the process that has the embedded stores: {message}; look at QUIKFLOW_EMBEDDED_STORES_URL"),
        retry_after: None,
    }
}

impl Owner {
    /// Nothing is asked of it yet.
    pub(crate) fn new(elsewhere: &Elsewhere, pool: Arc<Pool>, longest: Duration) -> Result<Arc<Owner>, StoreError> {
        let wrong = || refused("the address of the process that has the embedded stores is none: write http://host:port");
        let url = reqwest::Url::parse(&elsewhere.url).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !url.username().is_empty() {
            return Err(wrong());
        }
        let token = elsewhere.token.as_ref().map(|token| {
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| refused("the token has letters that none may"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let http = reqwest::Client::builder().connect_timeout(CONNECTING).tcp_nodelay(true).no_proxy();
        let http = http.redirect(reqwest::redirect::Policy::none()).build().map_err(refused)?;
        let at = format!("{}{PATH}", elsewhere.url.trim_end_matches('/'));
        Ok(Arc::new(Owner { at, token: token.transpose()?, http, pool, longest, tables: RwLock::default() }))
    }

    /// Declares a sink's table.
    pub(crate) fn add(&self, sink: &Arc<SinkSpec>, topic: &TopicSpec) -> Result<(), StoreError> {
        self.tables.write().insert(sink.name.clone(), Arc::new(Layout::new(sink, topic)?));
        Ok(())
    }

    /// A sink's table.
    pub(crate) fn layout(&self, sink: &str) -> Result<Arc<Layout>, StoreError> {
        let missing = || StoreError::BadRequest(format!("sink `{sink}` is not known to the embedded stores"));
        self.tables.read().get(sink).cloned().ok_or_else(missing)
    }

    /// Asks whether it has the tables; one that is away will be asked again. Blocking.
    pub(crate) fn look(self: &Arc<Self>) -> Result<(), StoreError> {
        let this = self.clone();
        match self.pool.block(NAME, self.longest.min(AT_START), async move { this.ask(&Ask::Tables).await }) {
            Ok(there) => {
                let has = |table: &str| there.as_array().is_some_and(|there| there.iter().any(|name| name == table));
                let tables = self.tables.read();
                let missing: Vec<&str> = tables.values().map(|layout| layout.sink.table.as_str()).filter(|t| !has(t)).collect();
                match missing.as_slice() {
                    [] => Ok(()),
                    missing => Err(refused(format!("that process has no table {}: it has other topologies", missing.join(", ")))),
                }
            }
            Err(error @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%error, "the embedded stores are away, they will be asked again");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for documents.
    pub(crate) async fn documents(self: &Arc<Self>, ask: Ask) -> Result<Value, StoreError> {
        let this = self.clone();
        self.pool.on(NAME, self.longest, async move { this.ask(&ask).await }).await
    }

    /// Asks for a page.
    pub(crate) async fn page(self: &Arc<Self>, ask: Ask) -> Result<Page, StoreError> {
        ask::page_of(self.documents(ask).await?).ok_or_else(strange)
    }

    /// Reads a table, whose rows have this schema. Blocking.
    pub(crate) fn scan(self: &Arc<Self>, table: &str, request: &ScanRequest, schema: SchemaRef) -> Result<Scan, StoreError> {
        let (this, ask) = (self.clone(), Ask::scan(table, request));
        let response = self.pool.block(NAME, self.longest, async move { this.send(&ask).await })?;
        let header = response.headers().get(AS_OF).and_then(|value| value.to_str().ok());
        let as_of = header.and_then(ask::as_of).ok_or_else(strange)?;
        let pulled = Pulled {
            owner: self.clone(),
            response: Some(response),
            decoder: StreamDecoder::new(),
            rest: Buffer::from(&[] as &[u8]),
            schema: schema.clone(),
        };
        Ok(Scan { schema, as_of, batches: Box::new(pulled) })
    }

    async fn send(&self, ask: &Ask) -> Result<Response, StoreError> {
        let mut request = self.http.post(&self.at).json(ask);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let response = request.send().await.map_err(|error| unavailable(error.without_url()))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(StoreError::Refused {
                store: NAME,
                message: "the process that has the embedded stores refuses this process's token; look at QUIKFLOW_TOKEN, \
                          which is the same for both"
                    .into(),
            }),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(refused("there is no query API at that address")),
            StatusCode::MISDIRECTED_REQUEST => Err(refused("that process has no embedded stores of its own")),
            StatusCode::UNPROCESSABLE_ENTITY => Err(StoreError::BadRequest(said(response).await)),
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Err(unavailable(said(response).await))
            }
            status => Err(refused(format!("that process answers {status}"))),
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Value, StoreError> {
        let body = whole(self.send(ask).await?).await?;
        serde_json::from_slice(&body).map_err(|_| strange())
    }
}

/// An answer that this version does not know.
pub(crate) fn strange() -> StoreError {
    refused("that process answers in a form that is not known here: its version is another")
}

/// The body of an answer.
async fn whole(mut response: Response) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| unavailable(error.without_url()))? {
        if body.len() + piece.len() > LARGEST {
            return Err(StoreError::BadRequest(format!("the answer has more than {LARGEST} bytes: ask for less")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// What a problem document says.
async fn said(response: Response) -> String {
    let status = response.status();
    let body = whole(response).await.unwrap_or_default();
    let detail =
        serde_json::from_slice::<Value>(&body).ok().and_then(|problem| Some(problem.get("detail")?.as_str()?.to_owned()));
    detail.unwrap_or_else(|| status.to_string())
}

/// Batches decoded as they are taken.
struct Pulled {
    owner: Arc<Owner>,
    response: Option<Response>,
    decoder: StreamDecoder,
    rest: Buffer,
    schema: SchemaRef,
}

impl Pulled {
    /// The next batch; none at the end.
    fn pull(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        loop {
            if !self.rest.is_empty() {
                let decoded = self.decoder.decode(&mut self.rest).map_err(|_| strange())?;
                match decoded {
                    Some(batch) if batch.schema().fields() == self.schema.fields() => return Ok(Some(batch)),
                    Some(_) => return Err(refused("that process has other columns: it has other topologies")),
                    None => continue,
                }
            }
            let Some(mut response) = self.response.take() else { return Ok(None) };
            let pulled = async move {
                let piece = response.chunk().await.map_err(|error| unavailable(error.without_url()))?;
                Ok((response, piece))
            };
            let (response, piece) = self.owner.pool.block(NAME, self.owner.longest, pulled)?;
            match piece {
                Some(piece) => {
                    self.response = Some(response);
                    self.rest = Buffer::from(piece);
                }
                None => return self.decoder.finish().map(|()| None).map_err(|_| unavailable("its answer broke off")),
            }
        }
    }
}

impl Iterator for Pulled {
    type Item = Result<RecordBatch, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let pulled = self.pull();
        if pulled.is_err() {
            self.response = None;
            self.rest = Buffer::from(&[] as &[u8]);
        }
        pulled.transpose()
    }
}
