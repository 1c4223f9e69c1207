//! One SQLite file of a store: one writer, a pool of readers, and the sinks' progress beside the rows.

use crate::store::{SinkProgress, StoreError};
use parking_lot::{Mutex, MutexGuard};
use quikflow_topics::broker::Positions;
use quikflow_topics::ids::{Offset, PartitionId};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Idle read connections kept.
const POOL: usize = 8;
/// Bytes of the write-ahead log after which it is written back: a page that changes often is written
/// back once for all of its changes.
const WAL_BYTES: i64 = 64 << 20;

/// A store's file.
pub(crate) struct StoreFile {
    /// The store's name, for messages.
    pub(crate) name: &'static str,
    path: PathBuf,
    writer: Mutex<Connection>,
    pool: Arc<Mutex<Vec<Connection>>>,
}

/// Says which store an SQLite error came from, and whether to try again.
pub(crate) fn fault(store: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + Copy {
    move |error| {
        let again = matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::OutOfMemory
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::CannotOpen
            )
        );
        let message = error.to_string();
        if again {
            StoreError::Unavailable { store, message, retry_after: None }
        } else {
            StoreError::Refused { store, message: format!("{message}; is the file one of this version, and undamaged?") }
        }
    }
}

/// An identifier in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl StoreFile {
    /// Opens or creates the file. `page` is the page size of a new file, in bytes; `cache` what the
    /// writer keeps of it, in KiB.
    pub(crate) fn open(name: &'static str, path: &Path, page: u32, cache: i32) -> Result<StoreFile, StoreError> {
        let at = fault(name);
        let writer = Connection::open(path).map_err(at)?;
        writer.pragma_update(None, "page_size", page).map_err(at)?;
        writer.pragma_update(None, "journal_mode", "WAL").map_err(at)?;
        writer.pragma_update(None, "synchronous", "FULL").map_err(at)?;
        writer.pragma_update(None, "cache_size", -cache).map_err(at)?;
        writer.pragma_update(None, "journal_size_limit", WAL_BYTES).map_err(at)?;
        writer.pragma_update(None, "wal_autocheckpoint", WAL_BYTES / i64::from(page)).map_err(at)?;
        writer.busy_timeout(Duration::from_secs(5)).map_err(at)?;
        writer.set_prepared_statement_cache_capacity(128);
        writer
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS _sinks(name TEXT PRIMARY KEY, generation INTEGER NOT NULL, positions TEXT NOT NULL,
                    expired_before INTEGER NOT NULL, layout TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS _read(user TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY(user, id)) WITHOUT ROWID;",
            )
            .map_err(at)?;
        Ok(StoreFile { name, path: path.to_owned(), writer: Mutex::new(writer), pool: Arc::default() })
    }

    /// The one writer.
    pub(crate) fn writer(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock()
    }

    /// A read transaction on a connection of its own; its snapshot is taken by the first query.
    pub(crate) fn reader(&self) -> Result<Reader, StoreError> {
        let at = fault(self.name);
        let pooled = self.pool.lock().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => {
                let connection = Connection::open(&self.path).map_err(at)?;
                connection.busy_timeout(Duration::from_secs(5)).map_err(at)?;
                connection.pragma_update(None, "query_only", true).map_err(at)?;
                connection.pragma_update(None, "cache_size", -2_048).map_err(at)?;
                connection.set_prepared_statement_cache_capacity(32);
                connection
            }
        };
        connection.execute_batch("BEGIN").map_err(at)?;
        Ok(Reader { connection: Some(connection), pool: self.pool.clone() })
    }
}

/// Begins the one write transaction.
pub(crate) fn begin<'a>(store: &'static str, writer: &'a mut Connection) -> Result<Transaction<'a>, StoreError> {
    writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault(store))
}

/// A read transaction; ends when dropped.
pub(crate) struct Reader {
    connection: Option<Connection>,
    pool: Arc<Mutex<Vec<Connection>>>,
}

impl Reader {
    /// The connection, within the transaction.
    pub(crate) fn get(&self) -> Result<&Connection, StoreError> {
        self.connection.as_ref().ok_or_else(|| StoreError::BadRequest("this read has ended".into()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && connection.execute_batch("ROLLBACK").is_ok()
        {
            let mut pool = self.pool.lock();
            if pool.len() < POOL {
                pool.push(connection);
            }
        }
    }
}

/// A sink's stored progress; the default where it has none.
pub(crate) fn progress(connection: &Connection, store: &'static str, sink: &str) -> Result<SinkProgress, StoreError> {
    let row = connection
        .prepare_cached("SELECT generation, positions FROM _sinks WHERE name = ?1")
        .and_then(|mut s| s.query_row([sink], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?))).optional())
        .map_err(fault(store))?;
    let Some((generation, positions)) = row else { return Ok(SinkProgress::default()) };
    let pairs: Vec<(u32, u64)> = serde_json::from_str(&positions)
        .map_err(|e| StoreError::Refused { store, message: format!("the offsets of sink `{sink}` cannot be read: {e}") })?;
    Ok(SinkProgress {
        positions: pairs.into_iter().map(|(p, o)| (PartitionId(p), Offset(o))).collect(),
        generation: u64::try_from(generation).unwrap_or(0),
    })
}

/// Stores a sink's progress, in the caller's transaction.
pub(crate) fn set_progress(
    connection: &Connection,
    store: &'static str,
    sink: &str,
    next: &Positions,
    generation: u64,
) -> Result<(), StoreError> {
    let pairs: Vec<(u32, u64)> = next.iter().map(|(p, o)| (p.0, o.0)).collect();
    let text = serde_json::to_string(&pairs).map_err(|e| StoreError::Refused { store, message: e.to_string() })?;
    connection
        .prepare_cached(
            "INSERT INTO _sinks(name, generation, positions, expired_before, layout) VALUES(?1, ?2, ?3, 0, '')
             ON CONFLICT(name) DO UPDATE SET generation = excluded.generation, positions = excluded.positions",
        )
        .and_then(|mut s| s.execute(rusqlite::params![sink, i64::try_from(generation).unwrap_or(i64::MAX), text]))
        .map_err(fault(store))?;
    Ok(())
}
