//! The SQLite file: how it is opened, its tables, and small values by key.
//!
//! * `topics`: number, name, spec, layout, generation, and where a topic emptied of chunks goes on
//! * `cN` / `dN`: the chunks of topic N in commit order, and their big columns, `id * 65536 + column`
//! * `ids`: the ids accepted, a segment a commit (R16)
//! * `state`: deltas and snapshots of keyed steps (R9)
//! * `dead`: dead letters
//! * `kv`: small values by (space, key); one table, so that a commit touches few pages

use crate::broker::BrokerError;
use crate::chunk::Damaged;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use std::path::Path;
use std::time::Duration;

impl From<rusqlite::Error> for BrokerError {
    fn from(e: rusqlite::Error) -> BrokerError {
        match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => BrokerError::Corrupt(e.to_string()),
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
                BrokerError::Unavailable(e.to_string())
            }
            _ => BrokerError::Storage(e.to_string()),
        }
    }
}

impl From<Damaged> for BrokerError {
    fn from(e: Damaged) -> BrokerError {
        BrokerError::Corrupt(e.0)
    }
}

/// The name of the file in the data directory.
pub(super) const FILE: &str = "log.sqlite";

/// Spaces of `kv`.
pub(super) mod space {
    /// Values of the log itself.
    pub(crate) const LOG: i64 = 0;
    /// Lane → highest accepted line (R17).
    pub(crate) const LANE: i64 = 1;
    /// Group, topic, partition → next offset.
    pub(crate) const OFFSET: i64 = 2;
    /// Topology, name → value.
    pub(crate) const META: i64 = 3;
    /// Group, topic, partition → next offset, as a follower last reported it.
    pub(crate) const PROGRESS: i64 = 4;
}

/// Between the parts of a key.
pub(super) const UNIT: char = '\u{1f}';

const TABLES: &str = "
create table if not exists topics(id integer primary key, name text not null unique, spec text not null,
  layout text not null, generation integer not null, ends blob not null, next_chunk integer not null);
create table if not exists ids(id integer primary key, arrival integer not null, data blob not null);
create table if not exists state(id integer primary key, topology text not null, step text not null, shard integer not null,
  shards integer not null, snapshot integer not null, epoch integer not null, checksum integer not null, bytes blob not null);
create table if not exists dead(seq integer primary key autoincrement, id text not null unique, at integer not null,
  cause text not null, code text not null, path text, message text not null, topology text, step text,
  topic text, partition integer, \"offset\" integer, full_size integer not null, status text not null, bytes blob not null);
create index if not exists dead_replaying on dead(topology) where status = 'replaying';
create table if not exists kv(space integer not null, key text not null, value blob not null, primary key(space, key)) without rowid;
";

/// Opens the writer's connection, creating the file where it is missing.
pub(super) fn open_writer(dir: &Path, sync: bool) -> Result<Connection, BrokerError> {
    let conn = Connection::open(dir.join(FILE))?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.pragma_update(None, "page_size", 16_384)?;
    conn.pragma_update(None, "auto_vacuum", "incremental")?;
    let mode: String = conn.query_row("pragma journal_mode=wal", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(BrokerError::Storage(format!("the file system gives journal mode {mode}, the log needs wal")));
    }
    conn.pragma_update(None, "synchronous", if sync { "full" } else { "off" })?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "cache_size", -16_384)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    conn.execute_batch(TABLES)?;
    conn.set_prepared_statement_cache_capacity(128);
    let version: i64 = conn.query_row("pragma user_version", [], |row| row.get(0))?;
    match version {
        0 => conn.pragma_update(None, "user_version", i64::from(crate::chunk::FORMAT_VERSION))?,
        v if v == i64::from(crate::chunk::FORMAT_VERSION) => {}
        v => {
            return Err(BrokerError::Storage(format!(
                "the log has form {v}, this program reads form 1: use the program that wrote it"
            )));
        }
    }
    Ok(conn)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(dir: &Path) -> Result<Connection, BrokerError> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Err(BrokerError::Storage(format!("there is no log at {}", path.display())));
    }
    let conn = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.pragma_update(None, "cache_size", -2_048)?;
    Ok(conn)
}

/// A small value.
pub(super) fn get(conn: &Connection, space: i64, key: &str) -> Result<Option<Vec<u8>>, BrokerError> {
    let mut statement = conn.prepare_cached("select value from kv where space = ?1 and key = ?2")?;
    Ok(statement.query_row((space, key), |row| row.get(0)).optional()?)
}

/// A number among the small values.
pub(super) fn get_number(conn: &Connection, space: i64, key: &str) -> Result<u64, BrokerError> {
    let value = get(conn, space, key)?;
    Ok(value.and_then(|v| v.try_into().ok()).map_or(0, u64::from_le_bytes))
}

/// Stores a small value.
pub(super) fn put(conn: &Connection, space: i64, key: &str, value: &[u8]) -> Result<(), BrokerError> {
    let mut statement = conn.prepare_cached("insert or replace into kv(space, key, value) values(?1, ?2, ?3)")?;
    statement.execute((space, key, value))?;
    Ok(())
}

/// Stores a number.
pub(super) fn put_number(conn: &Connection, space: i64, key: &str, value: u64) -> Result<(), BrokerError> {
    put(conn, space, key, &value.to_le_bytes())
}

/// All small values of a space whose key begins with `prefix`.
pub(super) fn list(conn: &Connection, space: i64, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, BrokerError> {
    let mut statement = conn.prepare_cached("select key, value from kv where space = ?1 and key >= ?2 order by key")?;
    let mut rows = statement.query((space, prefix))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        if !key.starts_with(prefix) {
            break;
        }
        found.push((key, row.get(1)?));
    }
    Ok(found)
}
