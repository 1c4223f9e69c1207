//! Redis: a row as one value, indexes as sorted sets, unread counts as sets, sessions as hashes; Lua where atomic.
//!
//! All keys begin with `{prefix}` (the URL's `?prefix=…`, else `quikflow`), so that a cluster keeps
//! them together. A row and all that is derived from it change in one script. The keys that a script
//! has changed are published as a JSON array on `{prefix}:changes:<sink>`.
//!
//! Durability is the server's `appendfsync`: with `always`, what is acknowledged survives a crash
//! of the machine; rows come before offsets in its log, so that no offset outlives its rows. Whatever
//! it is, a sink whose server was started anew begins again at the offsets that are stored.
//!
//! `?ca=FILE` in a `rediss://` URL names the authorities (PEM) to trust besides the public ones.

mod cache;
mod listen;
mod row;
mod scripts;
pub(crate) mod sessions;

use super::layout::Layout;
use super::remote::address::authorities;
use super::remote::read::ByPage;
use super::remote::write::{fits, in_shares};
use super::remote::{Backend, Batches, Guard, Order, Put, PutOutcome, Select, Stored, refused, unavailable, unreachable};
use crate::changes::Hub;
use crate::store::{ScanRequest, StoreError};
use parking_lot::Mutex;
use quikflow_topics::ids::EventTime;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{ErrorKind, RedisError, Script, ServerErrorKind};
use rusqlite::types::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

const NAME: &str = "redis";
/// Rows a script changes at most: the server does nothing else meanwhile, and Lua's stack holds them twice.
const AT_ONCE: usize = 256;
/// What is said of rows that another version of this program wrote.
const OTHER: &str = "of another form, written by another version of quikflow: give a new `?prefix=`, and they are written again";
/// About so many bytes a script takes at most.
const BYTES: usize = 8 << 20;

/// What a sink knows of the server that holds its progress.
#[derive(Clone, Default)]
struct Known {
    /// The run of the server that the progress was read from.
    run: String,
    /// Whether it has stored any.
    there: bool,
}

/// A Redis server.
pub(crate) struct Redis {
    client: redis::Client,
    prefix: String,
    /// By note of progress.
    known: Mutex<BTreeMap<String, Known>>,
    connection: OnceCell<ConnectionManager>,
    put: Script,
    take_away: Script,
    mark: Script,
}

fn fault(error: RedisError) -> StoreError {
    use ServerErrorKind as S;
    let code = error.code().unwrap_or_default().to_owned();
    match error.kind() {
        ErrorKind::AuthenticationFailed => refused(NAME, "wrong user or password"),
        ErrorKind::InvalidClientConfig => refused(NAME, "the URL does not name a server that can be spoken to"),
        ErrorKind::Server(S::ReadOnly) => refused(NAME, "the server is a read-only replica"),
        ErrorKind::Server(S::NoScript | S::BusyLoading | S::TryAgain | S::MasterDown | S::ClusterDown) => unavailable(NAME, code),
        _ if ["WRONGPASS", "NOAUTH"].contains(&code.as_str()) => refused(NAME, "wrong user or password"),
        _ if code == "NOPERM" => refused(NAME, "the user may not do this"),
        _ if code == "OOM" => unavailable(NAME, "the server's memory is full (maxmemory)"),
        _ if code == "MISCONF" => unavailable(NAME, "the server cannot write to its disk"),
        _ if code == "NOREPLICAS" => unavailable(NAME, "too few replicas of the server answer (min-replicas-to-write)"),
        _ if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => unreachable(NAME, error),
        // A script that fails says the cause within its own error.
        _ if error.to_string().contains("OOM command not allowed") => {
            unavailable(NAME, "the server's memory is full (maxmemory)")
        }
        _ if error.to_string().contains("NOREPLICAS") => {
            unavailable(NAME, "too few replicas of the server answer (min-replicas-to-write)")
        }
        _ if error.to_string().contains("WRONGTYPE") => refused(NAME, format!("rows are {OTHER}")),
        _ if error.to_string().contains("READONLY") => refused(NAME, "the server is a read-only replica"),
        _ => unavailable(NAME, error),
    }
}

impl Redis {
    /// The server at `url`; nothing is asked of it yet.
    pub(crate) fn new(url: &str) -> Result<Redis, StoreError> {
        let (url, options) = url.split_once('?').unwrap_or((url, ""));
        let mut prefix = "quikflow".to_owned();
        let (mut rest, mut ca) = (Vec::new(), None);
        for option in options.split('&').filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some(("ca", file)) if !file.is_empty() => ca = Some(file.to_owned()),
                Some(("prefix", wanted)) if !wanted.is_empty() && !wanted.contains(['{', '}']) => prefix = wanted.to_owned(),
                _ => rest.push(option),
            }
        }
        let url = if rest.is_empty() { url.to_owned() } else { format!("{url}?{}", rest.join("&")) };
        let unread = |_| refused(NAME, "the URL cannot be read");
        let client = match ca {
            None => redis::Client::open(url).map_err(unread)?,
            Some(file) => {
                let pem = authorities(NAME, &file)?;
                let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem) };
                redis::Client::build_with_tls(url, certificates).map_err(unread)?
            }
        };
        Ok(Redis {
            client,
            prefix: format!("{{{prefix}}}"),
            known: Mutex::default(),
            connection: OnceCell::new(),
            put: Script::new(scripts::PUT),
            take_away: Script::new(scripts::TAKE_AWAY),
            mark: Script::new(scripts::MARK),
        })
    }

    async fn connection(&self) -> Result<ConnectionManager, StoreError> {
        let connect = || async {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(Duration::from_secs(3)))
                .set_response_timeout(Some(Duration::from_secs(30)))
                .set_number_of_retries(1);
            ConnectionManager::new_with_config(self.client.clone(), config).await.map_err(fault)
        };
        self.connection.get_or_try_init(connect).await.cloned()
    }

    fn key(&self, kind: &str, layout: &Layout) -> String {
        format!("{}:{kind}:{}", self.prefix, layout.sink.name)
    }

    async fn take_away(&self, layout: &Layout, before: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        loop {
            let mut call = self.take_away.prepare_invoke();
            call.key(&self.prefix).arg(&layout.sink.name).arg(u8::from(layout.counts)).arg(before);
            let taken: usize = call.invoke_async(&mut connection).await.map_err(fault)?;
            if taken == 0 {
                return Ok(());
            }
        }
    }

    async fn rows(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        let mut connection = self.connection().await?;
        let mut found = Vec::with_capacity(keys.len());
        let row = self.key("row", layout);
        for share in keys.chunks(AT_ONCE) {
            let mut command = redis::cmd("MGET");
            for key in share {
                command.arg(format!("{row}:{key}"));
            }
            let answers: Vec<Option<String>> = command.query_async(&mut connection).await.map_err(fault)?;
            for (key, packed) in share.iter().zip(answers) {
                let Some(packed) = packed else { continue };
                let damaged = || refused(NAME, format!("a row of sink `{}` cannot be read", layout.sink.name));
                found.push(row::unpack(layout, key, &packed).ok_or_else(damaged)?);
            }
        }
        Ok(found)
    }

    /// Puts rows by one script; 1 for each that is stored, 0 for each whose guard forbids it.
    async fn put_share(&self, layout: &Layout, share: &[Put]) -> Result<Vec<u8>, StoreError> {
        let mut connection = self.connection().await?;
        let mut call = self.put.prepare_invoke();
        call.key(&self.prefix).arg(&layout.sink.name).arg(u8::from(layout.counts));
        for Put { row, guard } in share {
            let time = if let Some(Value::Integer(time)) = row.values.get(layout.time) { *time } else { i64::MIN };
            match guard {
                Guard::Newer => call.arg("n"),
                Guard::Absent => call.arg("a"),
                Guard::Revision(revision) => call.arg(revision.map_or_else(String::new, row::revision_text)),
            };
            call.arg(&row.key).arg(row::pack(layout, row)?).arg(row.arrival).arg(time);
        }
        call.invoke_async(&mut connection).await.map_err(fault)
    }

    /// The run of the server that answers, and the note of a sink's progress there.
    async fn noted(&self, name: &str) -> Result<(String, Option<String>), StoreError> {
        let mut connection = self.connection().await?;
        let script = Script::new(scripts::BEGIN);
        let mut call = script.prepare_invoke();
        call.key(&self.prefix).arg(name).invoke_async(&mut connection).await.map_err(fault)
    }
}

#[async_trait::async_trait]
impl Backend for Redis {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await.map_err(fault)?;
        let says = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim();
        let version = says("redis_version");
        if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 5) {
            return Err(refused(NAME, format!("the server is of version {version}, 5 or later is needed")));
        }
        if says("role") == "slave" {
            return Err(refused(NAME, "the server is a read-only replica"));
        }
        if says("maxmemory_policy").starts_with("allkeys-") {
            let policy = says("maxmemory_policy");
            return Err(refused(
                NAME,
                format!("the server throws rows away when its memory is full (maxmemory-policy {policy})"),
            ));
        }
        Ok(())
    }

    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let script = Script::new(scripts::FORM);
        let mut call = script.prepare_invoke();
        call.key(&self.prefix).arg(&layout.sink.name);
        let form: Option<String> = call.invoke_async(&mut connection).await.map_err(fault)?;
        match form {
            Some(form) if form != row::FORM => Err(refused(NAME, format!("the rows of sink `{}` are {OTHER}", layout.sink.name))),
            _ => Ok(()),
        }
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("HGET").arg(format!("{}:notes", self.prefix)).arg(name).query_async(&mut connection).await.map_err(fault)
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let mut command = redis::cmd("HSET");
        command.arg(format!("{}:notes", self.prefix)).arg(name).arg(text);
        command.query_async::<()>(&mut connection).await.map_err(fault)
    }

    async fn begin(&self, name: &str) -> Result<Option<String>, StoreError> {
        let (run, text) = self.noted(name).await?;
        self.known.lock().insert(name.to_owned(), Known { run, there: text.is_some() });
        Ok(text)
    }

    async fn remembers(&self, name: &str) -> Result<(), StoreError> {
        let Some(known) = self.known.lock().get(name).cloned() else { return Ok(()) };
        let (run, text) = self.noted(name).await?;
        if run == known.run && (text.is_some() || !known.there) { Ok(()) } else { Err(StoreError::Forgot { store: NAME }) }
    }

    async fn advance(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let Known { run, there } = self.known.lock().get(name).cloned().unwrap_or_default();
        let script = Script::new(scripts::ADVANCE);
        let mut call = script.prepare_invoke();
        call.key(&self.prefix).arg(name).arg(text).arg(run).arg(u8::from(there));
        let (stored, run): (u8, String) = call.invoke_async(&mut connection).await.map_err(fault)?;
        if stored == 0 {
            return Err(StoreError::Forgot { store: NAME });
        }
        self.known.lock().insert(name.to_owned(), Known { run, there: true });
        Ok(())
    }

    async fn clear(&self, layout: &Layout) -> Result<(), StoreError> {
        self.take_away(layout, "").await
    }

    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        self.take_away(layout, &before.0.to_string()).await
    }

    async fn fetch(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        self.rows(layout, keys).await
    }

    async fn put(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        let outcome = |done| if done == 1 { PutOutcome::Done } else { PutOutcome::Lost };
        in_shares(puts, (AT_ONCE, BYTES), calls, async |share| {
            Ok(self.put_share(layout, &share).await?.into_iter().map(outcome).collect())
        })
        .await
    }

    async fn page(&self, layout: &Layout, select: &Select) -> Result<Vec<Stored>, StoreError> {
        let mut connection = self.connection().await?;
        let mut found = Vec::new();
        let mut order = select.order.clone();
        let (mut offset, step) = (0_usize, select.limit.clamp(16, 2_048));
        loop {
            let keys: Vec<String> = match &order {
                Order::ByKey(after) => {
                    let from = after.as_ref().map_or_else(|| "-".to_owned(), |after| format!("({after}"));
                    let mut command = redis::cmd("ZRANGEBYLEX");
                    command.arg(self.key("keys", layout)).arg(from).arg("+").arg("LIMIT").arg(0).arg(step);
                    command.query_async(&mut connection).await.map_err(fault)?
                }
                Order::Newest(after) => {
                    let below = select.to.map_or_else(|| "+inf".to_owned(), |to| format!("({to}"));
                    let high = match after {
                        Some((time, _)) if select.to.is_none_or(|to| *time < to) => time.to_string(),
                        _ => below,
                    };
                    let low = select.from.map_or_else(|| "-inf".to_owned(), |from| from.to_string());
                    let mut command = redis::cmd("ZREVRANGEBYSCORE");
                    command.arg(self.key("time", layout)).arg(high).arg(low).arg("LIMIT").arg(offset).arg(step);
                    command.query_async(&mut connection).await.map_err(fault)?
                }
            };
            let more = keys.len() == step;
            offset += keys.len();
            if let (Order::ByKey(after), Some(last)) = (&mut order, keys.last()) {
                *after = Some(last.clone());
            }
            for row in self.rows(layout, &keys).await? {
                let time = if let Some(Value::Integer(time)) = row.values.get(layout.time) { *time } else { i64::MIN };
                let before = match &order {
                    Order::Newest(Some((at, key))) => (time, row.key.as_str()) < (*at, key.as_str()),
                    _ => true,
                };
                if before && fits(layout, &row, select) {
                    found.push(row);
                    if found.len() == select.limit {
                        return Ok(found);
                    }
                }
            }
            if !more {
                return Ok(found);
            }
        }
    }

    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError> {
        Ok(Box::new(ByPage::start(self, layout, columns, &request)?))
    }

    async fn listen(self: Arc<Self>, tables: BTreeMap<String, String>, hub: Arc<Hub>) {
        self.listen_for_ever(tables, hub).await;
    }

    fn tells_changes(&self) -> bool {
        true
    }

    fn counts(&self) -> bool {
        true
    }

    async fn unread(&self, layout: &Layout, user: &str) -> Result<u64, StoreError> {
        let mut connection = self.connection().await?;
        let key = format!("{}:{user}", self.key("unread", layout));
        redis::cmd("SCARD").arg(key).query_async(&mut connection).await.map_err(fault)
    }

    async fn mark(&self, layouts: &[Arc<Layout>], user: &str, key: &str) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let mut call = self.mark.prepare_invoke();
        call.key(&self.prefix).arg(user).arg(key);
        for layout in layouts {
            call.arg(&layout.sink.name);
        }
        call.invoke_async::<i64>(&mut connection).await.map(|_| ()).map_err(fault)
    }

    async fn all_unread(&self, layout: &Layout) -> Result<Vec<(String, u64)>, StoreError> {
        let mut connection = self.connection().await?;
        let users: Vec<String> = redis::cmd("ZRANGE")
            .arg(self.key("users", layout))
            .arg(0)
            .arg(-1)
            .query_async(&mut connection)
            .await
            .map_err(fault)?;
        let mut counts = Vec::with_capacity(users.len());
        for share in users.chunks(1_024) {
            let mut pipe = redis::pipe();
            for user in share {
                pipe.cmd("SCARD").arg(format!("{}:{user}", self.key("unread", layout)));
            }
            let unread: Vec<u64> = pipe.query_async(&mut connection).await.map_err(fault)?;
            counts.extend(share.iter().cloned().zip(unread));
        }
        Ok(counts)
    }
}
