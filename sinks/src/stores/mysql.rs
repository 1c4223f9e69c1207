//! MySQL (and MariaDB): a table a sink, a row a key, through `sqlx`.
//!
//! Rows are inserted as they are while keys are new; else locked, compared with their guards, and
//! written by `INSERT … ON DUPLICATE KEY UPDATE` whose assignments hold the guard once more. Keys are binary, as MySQL's texts compare with
//! padding. Times are microseconds. Reads go to the replica where one is set, offsets included, so
//! that `as_of` is of what the replica holds. Shared tables come by migrations; values are bound.

pub(crate) mod accounts;
mod faults;
mod write;

use super::layout::Layout;
use super::remote::read::ByPage;
use super::remote::{Backend, Batches, Order, Put, PutOutcome, Select, Stored, refused, unavailable};
use crate::store::{ScanRequest, StoreError};
use faults::{fault, number_of, replica_fault};
use parking_lot::Mutex;
use quikflow_topics::catalogue::FieldType;
use quikflow_topics::clock::{SharedClock, SystemClock};
use quikflow_topics::ids::EventTime;
use rusqlite::types::Value;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Error, Executor, MySql, QueryBuilder, Row, SqlSafeStr};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use write::LONGEST_KEY;

const NAME: &str = "mysql";
/// How long a replica may take before the primary is asked, and for how long it is left alone then.
const PATIENCE: Duration = Duration::from_secs(5);
const AWAY: Duration = Duration::from_secs(10);
const NOTES: &str = "CREATE TABLE IF NOT EXISTS _quikflow_notes (name VARBINARY(700) PRIMARY KEY, text LONGTEXT \
                     CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL) ENGINE = InnoDB";

/// A server, and perhaps a replica of it.
pub(crate) struct Sql {
    primary: MySqlConnectOptions,
    database: String,
    replica: Option<MySqlConnectOptions>,
    pools: (OnceCell<MySqlPool>, OnceCell<MySqlPool>),
    clock: SharedClock,
    /// Until when the replica is left alone, in the clock's monotonic time.
    away_until: Mutex<Duration>,
    /// By sink: whether keys of the newest batch were there already. Where none was, rows are inserted
    /// without a look.
    seen: Mutex<BTreeMap<String, bool>>,
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn sql_type(ty: FieldType) -> &'static str {
    match ty {
        FieldType::Int | FieldType::Bool | FieldType::Timestamp => "BIGINT",
        FieldType::Float => "DOUBLE",
        FieldType::String | FieldType::Json | FieldType::StringList => "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    }
}

fn options(url: &str) -> Result<MySqlConnectOptions, StoreError> {
    let bad = || refused(NAME, "the URL cannot be read: write mysql://user:password@host:port/database");
    if !url.starts_with("mysql://") && !url.starts_with("mariadb://") {
        return Err(bad());
    }
    MySqlConnectOptions::from_str(url).map(ConnectOptions::disable_statement_logging).map_err(|_| bad())
}

fn stored(layout: &Layout, row: &MySqlRow) -> Result<Stored, Error> {
    let mut values = Vec::with_capacity(layout.columns.len());
    for (i, column) in layout.columns.iter().enumerate() {
        let value = match column.ty {
            FieldType::Int | FieldType::Bool | FieldType::Timestamp => row.try_get::<Option<i64>, _>(i + 7)?.map(Value::Integer),
            FieldType::Float => row.try_get::<Option<f64>, _>(i + 7)?.map(Value::Real),
            FieldType::String | FieldType::Json | FieldType::StringList => {
                row.try_get::<Option<String>, _>(i + 7)?.map(Value::Text)
            }
        };
        values.push(value.unwrap_or(Value::Null));
    }
    Ok(Stored {
        key: String::from_utf8_lossy(&row.try_get::<Vec<u8>, _>(0)?).into_owned(),
        base: row.try_get(1)?,
        gone: row.try_get::<i64, _>(2)? != 0,
        arrival: row.try_get(3)?,
        revision: row.try_get(4)?,
        versions: row.try_get(5)?,
        sets: row.try_get(6)?,
        values,
    })
}

impl Sql {
    /// The server at `url`; nothing is asked of it yet.
    pub(crate) fn new(url: &str, replica: Option<&str>) -> Result<Sql, StoreError> {
        let primary = options(url)?;
        let database = primary.get_database().unwrap_or("quikflow").to_owned();
        let replica = replica.map(options).transpose()?;
        let replica = replica.map(|r| if r.get_database().is_some() { r } else { r.database(&database) });
        let primary = primary.database(&database);
        let clock = SystemClock::shared();
        Ok(Sql {
            primary,
            database,
            replica,
            pools: Default::default(),
            clock,
            away_until: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    async fn pool(&self) -> Result<&MySqlPool, StoreError> {
        self.pools.0.get_or_try_init(|| async { connect(&self.primary, &self.database).await }).await
    }

    /// The replica, where there is one that has answered lately.
    async fn replica(&self) -> Result<Option<&MySqlPool>, StoreError> {
        let Some(replica) = &self.replica else { return Ok(None) };
        if self.clock.elapsed() < *self.away_until.lock() {
            return Ok(None);
        }
        let connect = || async { pool_options().connect_with(replica.clone()).await.map_err(replica_fault) };
        self.pools.1.get_or_try_init(connect).await.map(Some)
    }

    /// Reads from the replica, and from the primary while the replica is away.
    async fn reading<'a, T, F>(&'a self, call: impl Fn(&'a MySqlPool) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let answer = match self.replica().await {
            Ok(None) => return call(self.pool().await?).await,
            Ok(Some(pool)) => {
                tokio::time::timeout(PATIENCE, call(pool)).await.unwrap_or_else(|_| Err(unavailable(NAME, "too slow")))
            }
            Err(error) => Err(error),
        };
        match answer {
            Err(error @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%error, "the replica is away: reads go to the primary");
                *self.away_until.lock() = self.clock.elapsed().saturating_add(AWAY);
                call(self.pool().await?).await
            }
            answer => answer,
        }
    }

    async fn note_from(&self, pool: &MySqlPool, name: &str) -> Result<Option<String>, StoreError> {
        let found = sqlx::query("SELECT text FROM _quikflow_notes WHERE name = ?").bind(name.as_bytes()).fetch_optional(pool);
        found.await.map_err(fault)?.map(|row| row.try_get(0).map_err(fault)).transpose()
    }

    async fn rows(&self, pool: &MySqlPool, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        let mut rows = Vec::with_capacity(keys.len());
        for share in keys.chunks(1_000) {
            let mut sql = QueryBuilder::<MySql>::new(select(layout));
            sql.push("_k IN (");
            let mut list = sql.separated(", ");
            for key in share {
                list.push_bind(key.as_bytes());
            }
            sql.push(")");
            for row in sql.build().fetch_all(pool).await.map_err(fault)? {
                rows.push(stored(layout, &row).map_err(fault)?);
            }
        }
        Ok(rows)
    }

    async fn page_from(&self, pool: &MySqlPool, layout: &Layout, wanted: &Select) -> Result<Vec<Stored>, StoreError> {
        let time = quoted(&layout.columns[layout.time].name);
        let mut sql = QueryBuilder::<MySql>::new(select(layout));
        sql.push("_gone = 0");
        for (bound, sign) in [(wanted.from, ">="), (wanted.to, "<")] {
            if let Some(bound) = bound {
                sql.push(format!(" AND {time} {sign} ")).push_bind(bound);
            }
        }
        for (at, value) in &wanted.equals {
            let column = quoted(&layout.columns[*at].name);
            match (layout.columns[*at].ty, value) {
                (FieldType::StringList, Value::Text(text)) => {
                    sql.push(format!(" AND JSON_CONTAINS({column}, JSON_QUOTE(")).push_bind(text.clone()).push("))");
                }
                // Texts compare with padding: their lengths must agree as well.
                (_, Value::Text(text)) => {
                    sql.push(format!(" AND {column} = ")).push_bind(text.clone());
                    sql.push(format!(" AND OCTET_LENGTH({column}) = ")).push_bind(text.len() as i64);
                }
                (_, Value::Integer(i)) => {
                    sql.push(format!(" AND {column} = ")).push_bind(*i);
                }
                (_, Value::Real(r)) => {
                    sql.push(format!(" AND {column} = ")).push_bind(*r);
                }
                (_, Value::Null | Value::Blob(_)) => {
                    sql.push(" AND FALSE");
                }
            }
        }
        match &wanted.order {
            Order::ByKey(after) => {
                if let Some(after) = after {
                    sql.push(" AND _k > ").push_bind(after.as_bytes().to_vec());
                }
                sql.push(" ORDER BY _k");
            }
            Order::Newest(after) => {
                if let Some((at, key)) = after {
                    sql.push(format!(" AND ({time} < ")).push_bind(*at).push(format!(" OR ({time} = ")).push_bind(*at);
                    sql.push(" AND _k < ").push_bind(key.as_bytes().to_vec()).push("))");
                }
                sql.push(format!(" ORDER BY {time} DESC, _k DESC"));
            }
        }
        sql.push(" LIMIT ").push_bind(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
        let rows = sql.build().fetch_all(pool).await.map_err(fault)?;
        rows.iter().map(|row| stored(layout, row).map_err(fault)).collect()
    }
}

fn pool_options() -> MySqlPoolOptions {
    // Rows that are not there are locked as gaps at this level only.
    let level = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
    MySqlPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(Duration::from_secs(5))
        .after_connect(move |connection, _| Box::pin(async move { connection.execute(level).await.map(|_| ()) }))
}

/// Connects, and makes the database where it is missing and may be made.
async fn connect(options: &MySqlConnectOptions, database: &str) -> Result<MySqlPool, StoreError> {
    match pool_options().connect_with(options.clone()).await {
        Err(error) if number_of(&error) == 1049 => {
            let anywhere = pool_options().max_connections(1).connect_with(options.clone().database("")).await.map_err(fault)?;
            let sql = format!("CREATE DATABASE IF NOT EXISTS {} CHARACTER SET utf8mb4", quoted(database));
            sqlx::query(AssertSqlSafe(sql)).execute(&anywhere).await.map_err(fault)?;
            anywhere.close().await;
            pool_options().connect_with(options.clone()).await.map_err(fault)
        }
        other => other.map_err(fault),
    }
}

fn names(layout: &Layout) -> String {
    let columns: Vec<String> = layout.columns.iter().map(|c| quoted(&c.name)).collect();
    format!("_k, _v, _gone, _arr, _rev, _vs, _sets, {}", columns.join(", "))
}

fn select(layout: &Layout) -> String {
    format!("SELECT {} FROM {} WHERE ", names(layout), quoted(&layout.sink.name))
}

#[async_trait::async_trait]
impl Backend for Sql {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let pool = self.pool().await?;
        let row = sqlx::query("SELECT CAST(VERSION() AS CHAR), CAST(@@global.read_only AS SIGNED)")
            .fetch_one(pool)
            .await
            .map_err(fault)?;
        let (version, read_only): (String, i64) = (row.try_get(0).map_err(fault)?, row.try_get(1).map_err(fault)?);
        let mut numbers = version.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (5, 7) {
            return Err(refused(
                NAME,
                format!("the server is of version {version}, MySQL 5.7 or MariaDB 10.2 or later is needed"),
            ));
        }
        if read_only != 0 {
            return Err(refused(NAME, "the server is read-only; is it a replica?"));
        }
        if let Err(error @ StoreError::Refused { .. }) = self.replica().await {
            return Err(error);
        }
        let all = [("notes of sinks", NOTES)].into_iter().chain(accounts::TABLES);
        let migration = |(at, (name, sql)): (i64, (&'static str, &'static str))| {
            Migration::new(at, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let migrations = (1..).zip(all).map(migration).collect();
        // A version of before goes on beside a later one's tables, so that processes can be rolled and rolled back.
        let migrator = Migrator { migrations: Cow::Owned(migrations), ignore_missing: true, ..Migrator::DEFAULT };
        let mut ran = migrator.run(pool).await;
        if let Err(sqlx::migrate::MigrateError::Dirty(_)) = ran {
            // The server was killed in the middle of one: each of them can be run again.
            let broken = "DELETE FROM _sqlx_migrations WHERE success = FALSE";
            sqlx::query(broken).execute(pool).await.map_err(fault)?;
            ran = migrator.run(pool).await;
        }
        ran.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => fault(error),
            other => refused(NAME, format!("the migrations of the database do not fit: {other}")),
        })
    }

    async fn ensure(&self, layout: &Layout) -> Result<(), StoreError> {
        let pool = self.pool().await?;
        let table = quoted(&layout.sink.name);
        let column = |c: &super::layout::Column| format!("{} {} NULL", quoted(&c.name), sql_type(c.ty));
        let columns: Vec<String> = layout.columns.iter().map(column).collect();
        let time = quoted(&layout.columns[layout.time].name);
        let mut indexes = format!("INDEX `by time` ({time}), INDEX `by arrival` (_arr)");
        for at in layout.index.iter().filter(|at| **at != layout.time) {
            let column = &layout.columns[*at];
            let prefix = if sql_type(column.ty).starts_with("LONGTEXT") { "(191)" } else { "" };
            indexes.push_str(&format!(", INDEX {} ({}{prefix}, {time})", quoted(&format!("by {at}")), quoted(&column.name)));
        }
        let text = sql_type(FieldType::String);
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table} (_k VARBINARY({LONGEST_KEY}) NOT NULL PRIMARY KEY, _v BIGINT NOT NULL,
             _gone BIGINT NOT NULL, _arr BIGINT NOT NULL, _rev BIGINT NOT NULL, _vs {text} NULL, _sets {text} NULL, {}, {indexes})
             ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
            columns.join(", ")
        );
        sqlx::query(AssertSqlSafe(create)).execute(pool).await.map_err(fault)?;
        let there = sqlx::query(
            "SELECT CAST(column_name AS CHAR) FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?",
        );
        let there = there.bind(&layout.sink.name).fetch_all(pool).await.map_err(fault)?;
        let there: Vec<String> = there.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(fault)?;
        let more: Vec<String> = layout
            .columns
            .iter()
            .filter(|c| !there.iter().any(|name| name.eq_ignore_ascii_case(&c.name)))
            .map(|c| format!("ADD COLUMN {}", column(c)))
            .collect();
        if more.is_empty() {
            return Ok(());
        }
        let alter = format!("ALTER TABLE {table} {}", more.join(", "));
        sqlx::query(AssertSqlSafe(alter)).execute(pool).await.map(|_| ()).map_err(fault)
    }

    async fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.note_from(self.pool().await?, name).await
    }

    async fn read_note(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.reading(|pool| self.note_from(pool, name)).await
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO _quikflow_notes (name, text) VALUES (?, ?) ON DUPLICATE KEY UPDATE text = VALUES(text)";
        let run = sqlx::query(sql).bind(name.as_bytes()).bind(text).execute(self.pool().await?);
        run.await.map(|_| ()).map_err(fault)
    }

    async fn clear(&self, layout: &Layout) -> Result<(), StoreError> {
        let sql = format!("TRUNCATE TABLE {}", quoted(&layout.sink.name));
        sqlx::query(AssertSqlSafe(sql)).execute(self.pool().await?).await.map(|_| ()).map_err(fault)
    }

    async fn expire(&self, layout: &Layout, before: EventTime) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM {} WHERE _arr < ? LIMIT 2000", quoted(&layout.sink.name));
        loop {
            let run = sqlx::query(AssertSqlSafe(sql.clone())).bind(before.0).execute(self.pool().await?);
            if run.await.map_err(fault)?.rows_affected() < 2_000 {
                return Ok(());
            }
        }
    }

    async fn fetch(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        self.rows(self.pool().await?, layout, keys).await
    }

    async fn read(&self, layout: &Layout, keys: &[String]) -> Result<Vec<Stored>, StoreError> {
        self.reading(|pool| self.rows(pool, layout, keys)).await
    }

    async fn put(&self, layout: &Layout, puts: Vec<Put>, calls: usize) -> Result<Vec<PutOutcome>, StoreError> {
        self.put_all(layout, puts, calls).await
    }

    async fn page(&self, layout: &Layout, wanted: &Select) -> Result<Vec<Stored>, StoreError> {
        self.reading(|pool| self.page_from(pool, layout, wanted)).await
    }

    async fn scan(
        self: Arc<Self>,
        layout: Arc<Layout>,
        columns: Vec<usize>,
        request: ScanRequest,
    ) -> Result<Box<dyn Batches>, StoreError> {
        Ok(Box::new(ByPage::start(self, layout, columns, &request)?))
    }
}
