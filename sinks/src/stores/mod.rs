//! The stores: for each production store a twin in SQLite, one file each, and the real one by its URL.
//!
//! | `store` | file | form |
//! |---|---|---|
//! | `mongodb` | `messages.sqlite` | rows by key |
//! | `elasticsearch` | `search.sqlite` | rows and a full-text index |
//! | `clickhouse` | `analytics.sqlite` | columnar parts |
//! | `redis` | `badges.sqlite` | rows by key, counts |
//! | `mysql` | `users.sqlite` | rows by key |
//! | `audit` | `audit.sqlite` | rows that never change |
//! | `outbox` | `outbox.sqlite` | rows, and files to be delivered |
//!
//! * [`layout`]: a sink's table; [`rules`]: what an event type does to a row
//! * [`rows`], [`merge`], [`read`]: tables of rows
//! * [`search`], [`text`]: the full-text index; `words`: its words, for an index elsewhere
//! * [`analytics`]: columnar parts
//! * [`outbox`], [`badges`]: notifications
//! * [`file`]: the SQLite file; [`twin`]: a store; [`reads`]: the read sides, by table
//! * [`sign_in`]: the gateway's accounts and sessions
//! * [`elsewhere`]: embedded stores that another process has
//! * [`remote`]: what real stores have in common; `redis`, `mongodb`, …: each of them, behind the
//!   feature of its name

mod analytics;
mod badges;
mod cells;
#[cfg(feature = "clickhouse")]
mod clickhouse;
#[cfg(feature = "elasticsearch")]
mod elasticsearch;
mod elsewhere;
mod file;
mod layout;
mod merge;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "mysql")]
mod mysql;
mod outbox;
mod read;
mod reads;
#[cfg(feature = "redis")]
mod redis;
#[cfg_attr(
    not(any(feature = "redis", feature = "mongodb", feature = "elasticsearch", feature = "mysql", feature = "clickhouse")),
    allow(dead_code, reason = "only real stores use all of it")
)]
mod remote;
mod rows;
mod rules;
mod search;
pub mod sign_in;
mod text;
mod twin;
mod union;
#[cfg(feature = "elasticsearch")]
mod words;

use crate::store::{ReadSide, Store, StoreError, StoreSet};
pub use elsewhere::Elsewhere;
use elsewhere::Owner;
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SharedClock;
use reads::Reads;
use remote::Backend;
use remote::client::{LONGEST, Pool, Remote, Shared};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use twin::{Form, Twin, form_of};

/// The names that `store` may have in a sink.
pub const STORES: [&str; 7] = ["mongodb", "elasticsearch", "clickhouse", "redis", "mysql", "audit", "outbox"];

/// Where the real stores are; a store without a URL is embedded. URLs hold passwords: never shown.
#[derive(Clone, Default)]
pub struct StoreUrls {
    /// `mongodb://user:password@host:port/database`.
    pub mongodb: Option<String>,
    /// `http(s)://user:password@host:port/prefix?ca=FILE`.
    pub elasticsearch: Option<String>,
    /// `http(s)://user:password@host:port/database?ca=FILE`.
    pub clickhouse: Option<String>,
    /// `redis(s)://user:password@host:port/number?prefix=…`.
    pub redis: Option<String>,
    /// `mysql://user:password@host:port/database`.
    pub mysql: Option<String>,
    /// The same, of a replica that answers reads.
    pub mysql_replica: Option<String>,
    /// The process that has the embedded stores, where it is another one.
    pub embedded: Option<Elsewhere>,
    /// How long a call of a real store may take before it is given up and made again; a minute.
    pub longest_call: Option<Duration>,
}

impl StoreUrls {
    fn of(&self, store: &str) -> Option<&str> {
        match store {
            "mongodb" => self.mongodb.as_deref(),
            "elasticsearch" => self.elasticsearch.as_deref(),
            "clickhouse" => self.clickhouse.as_deref(),
            "redis" => self.redis.as_deref(),
            "mysql" => self.mysql.as_deref(),
            _ => None,
        }
    }
}

impl StoreUrls {
    fn longest(&self) -> Duration {
        self.longest_call.unwrap_or(LONGEST)
    }
}

impl std::fmt::Debug for StoreUrls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(STORES.iter().filter(|store| self.of(store).is_some())).finish()
    }
}

/// All stores that some sink needs: embedded ones in a data directory, and real ones by their URLs.
pub struct Stores {
    twins: BTreeMap<&'static str, Twin>,
    reals: BTreeMap<String, Arc<Remote>>,
    reads: Arc<Reads>,
}

/// The stores of a process without any real one.
pub type EmbeddedStores = Stores;

impl Stores {
    /// Opens the embedded stores under `dir` (`dir/stores/<name>.sqlite`, `dir/outbox/`) and creates
    /// what the sinks lack. Blocking.
    ///
    /// # Errors
    /// An unknown store name, two sinks with one table, options that make no sense, a stored table
    /// of another form, storage errors.
    pub fn open(dir: &Path, clock: SharedClock, sinks: &[(Arc<SinkSpec>, Arc<TopicSpec>)]) -> Result<Stores, StoreError> {
        Stores::open_with(dir, clock, sinks, &StoreUrls::default())
    }

    /// The same, with real stores where `urls` names them. One that does not answer yet is asked
    /// again with the first call; its sinks wait.
    ///
    /// # Errors
    /// Besides those of [`Stores::open`]: what a real store refuses, and one that is not compiled in.
    pub fn open_with(
        dir: &Path,
        clock: SharedClock,
        sinks: &[(Arc<SinkSpec>, Arc<TopicSpec>)],
        urls: &StoreUrls,
    ) -> Result<Stores, StoreError> {
        let mut twins: BTreeMap<&'static str, Twin> = BTreeMap::new();
        let mut reals: BTreeMap<String, Arc<Remote>> = BTreeMap::new();
        let mut pool: Option<Arc<Pool>> = None;
        let mut owner: Option<Arc<Owner>> = None;
        let mut reads = Reads::default();
        let cache = cache(urls)?;
        for (sink, topic) in sinks {
            let (name, form) = known(sink)?;
            if urls.of(&sink.store).is_some() {
                let pool = Pool::of(&mut pool)?;
                let store = match reals.get(&sink.store) {
                    Some(store) => store.clone(),
                    None => {
                        let longest = urls.longest();
                        let cache = cache.clone().filter(|_| sink.store != "redis");
                        let store = Remote::new(backend(&sink.store, urls)?, cache, pool, longest, clock.clone());
                        reals.insert(sink.store.clone(), store.clone());
                        store
                    }
                };
                store.add(sink, topic)?;
                reads.add_real(&store, form, sink)?;
                continue;
            }
            if let Some(elsewhere) = &urls.embedded {
                let owner = match &owner {
                    Some(owner) => owner,
                    None => owner.insert(Owner::new(elsewhere, Pool::of(&mut pool)?, urls.longest())?),
                };
                owner.add(sink, topic)?;
                reads.add_elsewhere(owner, form, sink)?;
                continue;
            }
            let twin = match twins.get(name) {
                Some(twin) => twin.clone(),
                None => {
                    let twin = Twin::open(dir, name, form)?;
                    twins.insert(name, twin.clone());
                    twin
                }
            };
            twin.add(sink, topic)?;
            reads.add(&twin, sink)?;
        }
        owner.map_or(Ok(()), |owner| owner.look())?;
        Ok(Stores { twins, reals, reads: Arc::new(reads) })
    }

    /// Says that another process writes the embedded stores: what changes in them is not known here.
    pub fn only_reads(&self) {
        self.reads.only_reads();
    }

    /// The read sides of all stores.
    pub fn read_side(&self) -> ReadSide {
        ReadSide {
            tables: self.reads.clone(),
            documents: self.reads.clone(),
            search: self.reads.clone(),
            inbox: self.reads.clone(),
            changes: self.reads.clone(),
            elsewhere: self.reads.elsewhere(),
        }
    }
}

/// The cache of the real stores' documents: Redis, where it is set.
#[cfg(feature = "redis")]
fn cache(urls: &StoreUrls) -> Result<Option<Arc<dyn remote::Cache>>, StoreError> {
    urls.redis.as_deref().map(|url| Ok(Arc::new(redis::Redis::new(url)?) as Arc<dyn remote::Cache>)).transpose()
}

/// Without Redis there is none; that its URL names a client which is not compiled in is said by its sinks.
#[cfg(not(feature = "redis"))]
fn cache(_: &StoreUrls) -> Result<Option<Arc<dyn remote::Cache>>, StoreError> {
    Ok(None)
}

/// The client of a real store.
fn backend(store: &str, urls: &StoreUrls) -> Result<Arc<dyn Backend>, StoreError> {
    let url = urls.of(store).unwrap_or_default();
    match (store, url) {
        #[cfg(feature = "redis")]
        ("redis", url) => Ok(Arc::new(redis::Redis::new(url)?)),
        #[cfg(feature = "mongodb")]
        ("mongodb", url) => Ok(Arc::new(mongodb::Mongo::new(url)?)),
        #[cfg(feature = "elasticsearch")]
        ("elasticsearch", url) => Ok(Arc::new(elasticsearch::Elastic::new(url)?)),
        #[cfg(feature = "clickhouse")]
        ("clickhouse", url) => Ok(Arc::new(clickhouse::ClickHouse::new(url)?)),
        #[cfg(feature = "mysql")]
        ("mysql", url) => Ok(Arc::new(mysql::Sql::new(url, urls.mysql_replica.as_deref())?)),
        (other, _) => Err(not_compiled_in(other)),
    }
}

/// A URL names a store that this build has no client of.
fn not_compiled_in(store: &str) -> StoreError {
    let setting = remote::setting(store);
    StoreError::Refused {
        store: "stores",
        message: format!("{setting} names a store whose client is not compiled in: build with `--features {store}`, or unset it"),
    }
}

fn known(sink: &SinkSpec) -> Result<(&'static str, Form), StoreError> {
    form_of(&sink.store).ok_or_else(|| {
        let message = format!("sink `{}` names the store `{}`; available: {}", sink.name, sink.store, STORES.join(", "));
        StoreError::Refused { store: "embedded", message }
    })
}

impl StoreSet for Stores {
    fn store_of(&self, sink: &SinkSpec) -> Result<Arc<dyn Store>, StoreError> {
        let (name, _) = known(sink)?;
        if let Some(store) = self.reals.get(&sink.store) {
            return Ok(Arc::new(Shared(store.clone())));
        }
        let missing = || StoreError::BadRequest(format!("sink `{}` was not among those the stores were opened with", sink.name));
        Ok(Arc::new(self.twins.get(name).ok_or_else(missing)?.clone()))
    }

    fn is_elsewhere(&self, sink: &SinkSpec) -> bool {
        !self.reals.contains_key(&sink.store) && self.reads.elsewhere()
    }

    fn all(&self) -> Vec<Arc<dyn Store>> {
        let twins = self.twins.values().map(|twin| Arc::new(twin.clone()) as Arc<dyn Store>);
        twins.chain(self.reals.values().map(|store| Arc::new(Shared(store.clone())) as Arc<dyn Store>)).collect()
    }
}
