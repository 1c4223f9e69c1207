//! What is kept beside a file while it is sent: which run this is and how far it has come (R17).
//!
//! A producer is the file's fingerprint and the run's token. The token lives in
//! `FILE.quikflow-run` until the file has been sent, so that a killed run goes on as the same
//! producer, and sending the same file again on purpose is a new one.

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A run: stored as JSON, replaced atomically.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Of the file, when the run began.
    pub(crate) fingerprint: String,
    /// Unique to the run.
    pub(crate) token: String,
    /// All lines up to this one were answered, and what was refused is in the refused file.
    pub(crate) done: u64,
    /// Of those: written.
    pub(crate) accepted: u64,
    /// Of those: there already.
    pub(crate) duplicates: u64,
}

impl Run {
    /// A new run of a file with this fingerprint.
    ///
    /// # Errors
    /// When the system has no random bits.
    pub(crate) fn new(fingerprint: String) -> io::Result<Run> {
        Ok(Run { fingerprint, token: token()?, ..Run::default() })
    }

    /// The producer's id.
    pub(crate) fn producer(&self) -> String {
        format!("{}-{}", self.fingerprint, self.token)
    }
}

/// 96 random bits in hex.
fn token() -> io::Result<String> {
    let bits = || SysRng.try_next_u64().map_err(|error| io::Error::other(format!("no random bits: {error}")));
    Ok(format!("{:016x}{:08x}", bits()?, bits()? >> 32))
}

/// A hash of a file's size and of its first and last 64 KiB.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn fingerprint(path: &Path) -> io::Result<String> {
    const PART: u64 = 64 << 10;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&size.to_le_bytes());
    let mut part = Vec::new();
    (&mut file).take(PART).read_to_end(&mut part)?;
    hash.update(&part);
    if size > PART {
        part.clear();
        file.seek(SeekFrom::Start(size.saturating_sub(PART)))?;
        file.take(PART).read_to_end(&mut part)?;
        hash.update(&part);
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// A path for something that belongs to `file`: beside it, or, where that directory cannot be
/// written, in the current one. An existing one wins.
pub(crate) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let named = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let near = named(file);
    let here = file.file_name().map_or_else(|| near.clone(), |name| named(Path::new(name)));
    if near.exists() || (!here.exists() && writable(file.parent())) { near } else { here }
}

fn writable(dir: Option<&Path>) -> bool {
    let dir = dir.filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = dir.join(format!(".quikflow-probe-{}", std::process::id()));
    let made = File::create(&probe).is_ok();
    made && std::fs::remove_file(&probe).is_ok()
}

/// The run stored at `path`, if there is one.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn load(path: &Path) -> io::Result<Option<Run>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Stores a run: whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn save(path: &Path, run: &Run) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, run)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r17_a_killed_run_goes_on_as_the_same_producer_and_a_new_one_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.jsonl");
        std::fs::write(&file, "x\n").unwrap();
        let path = beside(&file, ".quikflow-run");
        assert_eq!(load(&path).unwrap(), None);
        let run = Run { done: 7, ..Run::new(fingerprint(&file).unwrap()).unwrap() };
        save(&path, &run).unwrap();
        assert_eq!(load(&path).unwrap().unwrap().producer(), run.producer());
        std::fs::remove_file(&path).unwrap();
        assert_ne!(Run::new(fingerprint(&file).unwrap()).unwrap().producer(), run.producer());
    }

    #[test]
    fn a_fingerprint_sees_size_start_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            fingerprint(&path).unwrap()
        };
        let long = vec![b'x'; 200_000];
        let mut other_start = long.clone();
        other_start[0] = b'y';
        let mut other_end = long.clone();
        other_end[199_999] = b'y';
        let all = [of(b""), of(b"x"), of(&long), of(&other_start), of(&other_end), of(&long[1..])];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[2], of(&long));
    }
}
