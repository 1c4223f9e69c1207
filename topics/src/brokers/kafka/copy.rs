//! A copy of a share's entries in a file of this process: who takes the share over again, or as a standby, reads from
//! Kafka only what came since.
//!
//! Nothing rests on it. It is never synced, may be old, cut off or of another topic: what it gives counts only where an
//! epoch read from Kafka says that it is whole ([`super::index`]); else it is thrown away and all is read from Kafka. So
//! Kafka may forget tombstones that the copy has never seen, and the topic may be made anew.

use super::config::KafkaOptions;
use super::index::EPOCH;
use super::load::{Loaded, Loading};
use super::table::{Entry, Table};
use crate::broker::BrokerError;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};

/// Entries that are written together.
const TOGETHER: usize = 1_024;
/// Bytes that are written together.
const TOGETHER_BYTES: usize = 4 << 20;

const TABLES: &str = "
pragma journal_mode = wal; pragma synchronous = off; pragma cache_size = -1024; pragma journal_size_limit = 16777216;
create table if not exists entries(key text primary key, head text, value blob not null);
create table if not exists place(one integer primary key check (one = 1), epoch integer not null);";

/// Why a copy gives nothing.
pub(super) enum Useless {
    /// Its file cannot be used.
    File(String),
    /// It is not what the last epoch left.
    Stale,
    /// Kafka does not answer, or what it holds is damaged.
    Broker(BrokerError),
}

impl From<rusqlite::Error> for Useless {
    fn from(error: rusqlite::Error) -> Useless {
        Useless::File(error.to_string())
    }
}

impl From<BrokerError> for Useless {
    fn from(error: BrokerError) -> Useless {
        Useless::Broker(error)
    }
}

/// What was read of a share, and from where.
pub(super) struct Read {
    pub(super) loaded: Loaded,
    /// Bytes of entries.
    pub(super) copied: u64,
    pub(super) from_kafka: u64,
}

/// See the module.
pub(super) struct Copy {
    share: u32,
    database: Connection,
    table: Table,
    /// Offset of the last epoch's entry that is in the copy; reading goes on there, so that an epoch is read in any case.
    epoch: Option<u64>,
}

/// Entries read and not written yet.
#[derive(Default)]
struct Batch {
    entries: Vec<(String, Option<String>, Option<Vec<u8>>)>,
    bytes: usize,
    epoch: Option<u64>,
}

impl Batch {
    fn take(&mut self, entry: &Entry<'_>) {
        if entry.key == EPOCH {
            self.epoch = Some(entry.offset);
        }
        self.bytes += entry.key.len() + entry.value.map_or(0, <[u8]>::len);
        self.entries.push((entry.key.to_owned(), entry.head.map(str::to_owned), entry.value.map(<[u8]>::to_vec)));
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= TOGETHER || self.bytes >= TOGETHER_BYTES
    }
}

/// Where a share's copy lies.
fn file_of(directory: &Path, share: u32) -> PathBuf {
    directory.join(format!("share-{share}.sqlite"))
}

/// Throws a share's copy away.
pub(super) fn remove(directory: &Path, share: u32) {
    let file = file_of(directory, share);
    for end in ["", "-wal", "-shm"] {
        let mut name = file.clone().into_os_string();
        name.push(end);
        if let Err(error) = std::fs::remove_file(&name)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "a copy of the state cannot be removed");
        }
    }
}

impl Copy {
    /// The copy of a share, empty where there was none.
    pub(super) fn open(directory: &Path, options: &KafkaOptions, topic: &str, share: u32) -> Result<Copy, Useless> {
        std::fs::create_dir_all(directory).map_err(|error| Useless::File(error.to_string()))?;
        let database = Connection::open(file_of(directory, share))?;
        database.execute_batch(TABLES)?;
        let epoch: Option<i64> = database.query_row("select epoch from place", [], |row| row.get(0)).optional()?;
        let epoch = epoch.and_then(|offset| u64::try_from(offset).ok());
        let mut table = Table::of(options, topic, share)?;
        table.rewind(epoch.unwrap_or(0));
        Ok(Copy { share, database, table, epoch })
    }

    /// Takes in what was committed since the last time. Answers the bytes read.
    pub(super) fn follow(&mut self) -> Result<u64, Useless> {
        let mut batch = Batch::default();
        let mut read = 0;
        let mut broken = None;
        let database = &mut self.database;
        let followed = self.table.catch_up(|entry| {
            batch.take(entry);
            if batch.is_full() {
                let full = std::mem::take(&mut batch);
                read += full.bytes as u64;
                self.epoch = full.epoch.or(self.epoch);
                if let Err(error) = write(database, &full) {
                    broken = Some(error);
                    return Err(BrokerError::Storage("the copy cannot be written".to_owned()));
                }
            }
            Ok(())
        });
        if let Some(error) = broken {
            return Err(error.into());
        }
        // What came before a disturbance is taken: reading goes on behind it.
        read += batch.bytes as u64;
        self.epoch = batch.epoch.or(self.epoch);
        write(database, &batch)?;
        followed?;
        Ok(read)
    }

    /// The share as its last epoch left it.
    pub(super) fn load(&mut self) -> Result<Read, Useless> {
        let resumed = self.epoch;
        self.table.rewind(resumed.unwrap_or(0));
        let before = self.database.query_row("select value from entries where key = ?1", [EPOCH], |row| row.get::<_, Vec<u8>>(0));
        let before = before.optional()?;
        // An epoch that is not read from Kafka now does not count.
        self.database.execute("delete from entries where key = ?1", [EPOCH])?;
        let from_kafka = self.follow()?;
        let mut loading = Loading::new(self.share);
        let mut copied = 0;
        let mut statement = self.database.prepare("select key, head, value from entries order by key = ?1, key")?;
        let mut rows = statement.query([EPOCH])?;
        while let Some(row) = rows.next()? {
            let text = |at: usize| row.get_ref(at)?.as_str_or_null().map_err(rusqlite::Error::from);
            let (Some(key), head) = (text(0)?, text(1)?) else { return Err(Useless::Stale) };
            let value = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            copied += (key.len() + value.len()) as u64;
            loading.take(&Entry { offset: 0, key, value: Some(value), head }).map_err(|_| Useless::Stale)?;
        }
        match loading.is_whole() {
            Some(true) => {}
            // Entries of before there were sums, or none at all: all of it was read just now.
            None if resumed.is_none() && before.is_none() => {}
            _ => return Err(Useless::Stale),
        }
        Ok(Read { loaded: loading.finish()?, copied: copied.saturating_sub(from_kafka), from_kafka })
    }
}

/// Writes what was read, and where the last epoch in it stands.
fn write(database: &mut Connection, batch: &Batch) -> Result<(), rusqlite::Error> {
    if batch.entries.is_empty() {
        return Ok(());
    }
    let transaction = database.transaction()?;
    {
        let mut put = transaction.prepare_cached("insert or replace into entries(key, head, value) values (?1, ?2, ?3)")?;
        let mut remove = transaction.prepare_cached("delete from entries where key = ?1")?;
        for (key, head, value) in &batch.entries {
            match value {
                Some(value) => put.execute(params![key, head, value])?,
                None => remove.execute([key])?,
            };
        }
        if let Some(epoch) = batch.epoch {
            let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
            transaction.execute("insert or replace into place(one, epoch) values (1, ?1)", [epoch])?;
        }
    }
    transaction.commit()
}
