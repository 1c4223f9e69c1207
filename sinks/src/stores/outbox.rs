//! What is to be delivered, as files: e-mail as `.eml`, push as lines of JSON.
//!
//! * `outbox/push/<sink>-<number>.jsonl`: a push a line, appended; the next file begins at 64 MiB.
//!   A file's length is committed with the rows and the sink's offset, so a line is there once: what
//!   a crash left behind the committed end is cut off by the next batch ([`pushes`]).
//! * `outbox/email/<name>.eml`: an e-mail a file. The name comes from the sink and the row's key and
//!   the content from the row alone, so a row written again after a crash gives the same file.
//!
//! A batch is synced once for all its pushes; its e-mails are synced side by side, and their folder
//! once. Options of the sink:
//!
//! * `deliver`: what to make of each row, `["push", "email"]`; default `["push"]`. A column
//!   `deliver` (a list, or texts joined by commas), or columns `push` and `email` (bool), say it
//!   row by row instead.
//! * `user`: the column with the recipient; default `recipient`, `user`, `userId`.
//! * `from`, `domain`: the sender's address, and the domain of recipients whose row has no `email`.
//! * `subject`, `body`: texts with `{column}`; default the columns `title` and `body` or `content`.

mod message;
mod pushes;

use super::layout::Layout;
use super::rows::Input;
use crate::store::StoreError;
use message::Fields;
use pushes::Pushes;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// E-mails held before they are written.
const MAILS: usize = 256;

/// Threads that write and sync e-mails: the disk takes their syncs together.
const SIDE_BY_SIDE: usize = 8;

/// The folders.
pub(crate) struct Outbox {
    email: PathBuf,
    push: PathBuf,
    /// Bytes after which the next file of pushes begins.
    limit: u64,
}

fn unavailable(what: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable { store: "outbox", message: format!("cannot write {}: {error}", what.display()), retry_after: None }
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| unavailable(folder, &e))
}

impl Outbox {
    /// Makes the folders `dir/outbox/email` and `dir/outbox/push`, and the table of their ends.
    pub(crate) fn open(dir: &Path, connection: &Connection) -> Result<Outbox, StoreError> {
        pushes::create(connection)?;
        let outbox = Outbox { email: dir.join("outbox/email"), push: dir.join("outbox/push"), limit: 64 << 20 };
        for folder in [&outbox.email, &outbox.push] {
            std::fs::create_dir_all(folder).map_err(|e| unavailable(folder, &e))?;
        }
        Ok(outbox)
    }

    /// Begins a batch of a sink, in the caller's transaction.
    pub(crate) fn begin<'a>(&'a self, connection: &Connection, layout: &'a Layout) -> Result<Delivery<'a>, StoreError> {
        let pushes = Pushes::begin(connection, &self.push, &layout.sink.name, self.limit)?;
        Ok(Delivery { outbox: self, layout, pushes, mails: Vec::new(), mailed: false })
    }

    /// Forgets a sink's pushes in the caller's transaction; their files go when it has been committed.
    pub(crate) fn forget(&self, connection: &Connection, sink: &str) -> Result<(), StoreError> {
        pushes::forget(connection, sink)
    }

    /// Takes away a sink's files of pushes behind the committed end.
    pub(crate) fn sweep(&self, connection: &Connection, sink: &str) -> Result<(), StoreError> {
        pushes::sweep(connection, &self.push, sink)
    }

    /// Writes and syncs e-mails side by side: each is there whole or not at all.
    fn put(&self, mails: &[(String, Vec<u8>)]) -> Result<(), StoreError> {
        let one = |(name, bytes): &(String, Vec<u8>)| {
            let (path, beside) = (self.email.join(name), self.email.join(format!(".{name}.part")));
            let written = File::create(&beside).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
            written.and_then(|()| std::fs::rename(&beside, &path)).map_err(|e| unavailable(&path, &e))
        };
        let share = mails.len().div_ceil(SIDE_BY_SIDE).max(1);
        let mut shares = mails.chunks(share);
        let first = shares.next().unwrap_or_default();
        std::thread::scope(|scope| {
            let others: Vec<_> = shares.map(|share| scope.spawn(move || share.iter().try_for_each(one))).collect();
            let mut done = first.iter().try_for_each(one);
            for other in others {
                let ended = other.join().unwrap_or_else(|_| {
                    Err(StoreError::Refused { store: "outbox", message: "a thread that writes e-mails ended by a panic".into() })
                });
                done = done.and(ended);
            }
            done
        })
    }
}

/// A batch on its way out.
pub(crate) struct Delivery<'a> {
    outbox: &'a Outbox,
    layout: &'a Layout,
    pushes: Pushes<'a>,
    mails: Vec<(String, Vec<u8>)>,
    mailed: bool,
}

impl Delivery<'_> {
    /// Hands over what a row says.
    pub(crate) fn row(&mut self, input: &Input<'_>, row: usize) -> Result<(), StoreError> {
        let Ok(key) = input.key(row) else { return Ok(()) };
        let fields = Fields { layout: self.layout, input, row };
        for way in fields.ways()? {
            match way.as_str() {
                "email" => {
                    let digest = Sha256::digest(format!("{}\u{1f}{key}", self.layout.sink.name).as_bytes());
                    let name = hex::encode(&digest[..16]);
                    self.mails.push((format!("{name}.eml"), fields.email(&name)?));
                    if self.mails.len() == MAILS {
                        self.mail()?;
                    }
                }
                "push" => self.pushes.append(&fields.push(&key)?)?,
                // The row itself is the badge and the inbox.
                _ => {}
            }
        }
        Ok(())
    }

    fn mail(&mut self) -> Result<(), StoreError> {
        self.mailed |= !self.mails.is_empty();
        self.outbox.put(&self.mails)?;
        self.mails.clear();
        Ok(())
    }

    /// Makes the batch's files durable, and notes the new end of the pushes in the transaction.
    pub(crate) fn finish(mut self, connection: &Connection) -> Result<(), StoreError> {
        self.mail()?;
        if self.mailed {
            sync_folder(&self.outbox.email)?;
        }
        self.pushes.finish(connection)
    }
}
