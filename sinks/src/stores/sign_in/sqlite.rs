//! A small SQLite file, made by the first write; each call on a thread for blocking work.

use crate::store::StoreError;
use crate::stores::file::fault;
use crate::stores::sign_in::away;
use parking_lot::Mutex;
use quikflow_gateway::sign_in::Away;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A file with its tables.
#[derive(Clone)]
pub(super) struct Small {
    name: &'static str,
    path: PathBuf,
    tables: &'static str,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Small {
    pub(super) fn new(name: &'static str, path: PathBuf, tables: &'static str) -> Small {
        Small { name, path, tables, connection: Arc::default() }
    }

    fn open(&self) -> Result<Connection, StoreError> {
        let at = fault(self.name);
        let unwritten = |error: std::io::Error| StoreError::Unavailable {
            store: self.name,
            message: format!("cannot write {}: {error}", self.path.display()),
            retry_after: None,
        };
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(unwritten)?;
        }
        // Hashes and digests are for the owner's eyes; the files beside it get the same rights.
        let own = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path);
        own.map_err(unwritten)?;
        let connection = Connection::open(&self.path).map_err(at)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(at)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(at)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(at)?;
        connection.execute_batch(self.tables).map_err(at)?;
        Ok(connection)
    }

    /// Reads; the default where there is no file yet.
    pub(super) async fn read<T: Default + Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Away> {
        let this = self.clone();
        blocking(move || {
            let mut connection = this.connection.lock();
            if connection.is_none() && !this.path.exists() {
                return Ok(T::default());
            }
            let open = match connection.take() {
                Some(open) => open,
                None => this.open()?,
            };
            query(connection.insert(open)).map_err(fault(this.name))
        })
        .await
    }

    /// Changes, in one transaction that is durable when it has been answered.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Away> {
        let this = self.clone();
        blocking(move || {
            let mut connection = this.connection.lock();
            let open = match connection.take() {
                Some(open) => open,
                None => this.open()?,
            };
            let at = fault(this.name);
            let transaction = connection.insert(open).transaction_with_behavior(TransactionBehavior::Immediate).map_err(at)?;
            let done = change(&transaction).map_err(at)?;
            transaction.commit().map_err(at)?;
            Ok(done)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, Away> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| Away::Refused(error.to_string()))?.map_err(away)
}
