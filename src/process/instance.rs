//! The name by which a process is known to the others that share its work.
//!
//! It lies in the data directory, so that a process that starts again is the same one and takes over
//! from itself at once. Several processes may have one data directory: each takes a name that no
//! other one holds at the moment.

use crate::exit::{Context, Failure};
use rand::TryRng;
use rand::rngs::SysRng;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Mutex;

/// Processes of one data directory.
const MOST: usize = 64;

/// The files whose locks this process holds until it ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Takes the first name that is free.
///
/// # Errors
/// A data directory that cannot be written; too many processes on it.
pub(crate) fn take(data: &Path) -> Result<String, Failure> {
    for slot in 0..MOST {
        let path = data.join(format!("process-{slot}"));
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.usage(path.display())?;
        if file.try_lock().is_err() {
            continue;
        }
        let mut name = String::new();
        file.read_to_string(&mut name).usage(path.display())?;
        if name.len() != 32 {
            name = fresh()?;
            file.set_len(0).and_then(|()| file.rewind()).usage(path.display())?;
            file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).usage(path.display())?;
        }
        if let Ok(mut held) = HELD.lock() {
            held.push(file);
        }
        return Ok(name);
    }
    Err(Failure::usage(format!("{MOST} processes have {} as their data directory already", data.display())))
}

fn fresh() -> Result<String, Failure> {
    let mut bytes = [0_u8; 16];
    SysRng.try_fill_bytes(&mut bytes).map_err(|error| Failure::failed(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
