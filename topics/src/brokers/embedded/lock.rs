//! One process owns the directory (R9): a lock file that names its owner.

use crate::broker::BrokerError;
use crate::ids::EventTime;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// The held lock; the operating system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock of `dir`, or says who holds it.
pub(super) fn take(dir: &Path, now: EventTime) -> Result<Lock, BrokerError> {
    let path = dir.join("lock");
    let fail = |e: std::io::Error| BrokerError::Storage(format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let read = file.read_to_string(&mut owner);
            let owner = owner.trim();
            let owner = if read.is_ok() && !owner.is_empty() { owner } else { "a process that left no name" };
            return Err(BrokerError::Owned(format!(
                "the data directory {} is owned by {owner}: stop it, or ask it by --url",
                dir.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(fail(e)),
    }
    let since = chrono::DateTime::from_timestamp_micros(now.0).map_or_else(String::new, |t| t.to_rfc3339());
    file.set_len(0).map_err(fail)?;
    file.rewind().map_err(fail)?;
    writeln!(file, "process {} since {since}", std::process::id()).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    Ok(Lock { _file: file })
}
