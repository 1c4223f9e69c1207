//! A sink's pushes: files to which lines are appended, and their committed end.
//!
//! The end (which file, how many bytes) is a row of the store, written in the transaction that also
//! stores the rows and the offset. Bytes behind it come from a batch that was not committed.

use super::super::file::fault;
use super::{sync_folder, unavailable};
use crate::store::StoreError;
use rusqlite::{Connection, OptionalExtension};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const STORE: &str = "outbox";

/// Where a sink's pushes end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    /// The file's number, from 1; 0: there is none.
    number: u64,
    /// Its length in bytes.
    length: u64,
}

/// The table of ends.
pub(super) fn create(connection: &Connection) -> Result<(), StoreError> {
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS _pushes(sink TEXT PRIMARY KEY, number INTEGER NOT NULL, length INTEGER NOT NULL)
             WITHOUT ROWID;",
        )
        .map_err(fault(STORE))
}

fn end(connection: &Connection, sink: &str) -> Result<End, StoreError> {
    let number = |row: &rusqlite::Row<'_>, at: usize| row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0));
    connection
        .prepare_cached("SELECT number, length FROM _pushes WHERE sink = ?1")
        .and_then(|mut s| s.query_row([sink], |r| Ok(End { number: number(r, 0)?, length: number(r, 1)? })).optional())
        .map(Option::unwrap_or_default)
        .map_err(fault(STORE))
}

/// Forgets a sink's end.
pub(super) fn forget(connection: &Connection, sink: &str) -> Result<(), StoreError> {
    connection.execute("DELETE FROM _pushes WHERE sink = ?1", [sink]).map(|_| ()).map_err(fault(STORE))
}

/// The name of a sink's files, up to the number.
fn stem(sink: &str) -> String {
    let safe: String = sink.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    // Two names must not share a file.
    if safe == sink { safe } else { format!("{safe}-{:08x}", xxhash_rust::xxh3::xxh3_64(sink.as_bytes()) as u32) }
}

fn path(folder: &Path, sink: &str, number: u64) -> PathBuf {
    folder.join(format!("{}-{number:06}.jsonl", stem(sink)))
}

/// Takes away the files behind the committed one.
pub(super) fn sweep(connection: &Connection, folder: &Path, sink: &str) -> Result<(), StoreError> {
    let End { number, .. } = end(connection, sink)?;
    let entries = std::fs::read_dir(folder).map_err(|e| unavailable(folder, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| unavailable(folder, &e))?;
        let name = entry.file_name();
        let of_file = name.to_str().and_then(|n| n.strip_suffix(".jsonl")).and_then(|n| n.rsplit_once('-'));
        let behind = of_file.is_some_and(|(of, n)| of == stem(sink) && n.parse::<u64>().is_ok_and(|n| n > number));
        if behind {
            std::fs::remove_file(entry.path()).map_err(|e| unavailable(&entry.path(), &e))?;
        }
    }
    Ok(())
}

/// The pushes of a batch.
pub(super) struct Pushes<'a> {
    folder: &'a Path,
    sink: &'a str,
    end: End,
    limit: u64,
    /// Opened by the first push.
    file: Option<(BufWriter<File>, PathBuf)>,
}

impl<'a> Pushes<'a> {
    /// Begins where the last committed batch ended.
    pub(super) fn begin(connection: &Connection, folder: &'a Path, sink: &'a str, limit: u64) -> Result<Pushes<'a>, StoreError> {
        Ok(Pushes { folder, sink, end: end(connection, sink)?, limit, file: None })
    }

    /// Appends a line.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), StoreError> {
        let (file, path) = match &mut self.file {
            Some(open) => open,
            None => self.file.insert(open(self.folder, self.sink, &mut self.end, self.limit)?),
        };
        file.write_all(line).map_err(|e| unavailable(path, &e))?;
        self.end.length += line.len() as u64;
        Ok(())
    }

    /// Makes the lines durable and notes the end in the transaction.
    pub(super) fn finish(self, connection: &Connection) -> Result<(), StoreError> {
        let Some((mut file, path)) = self.file else { return Ok(()) };
        file.flush().and_then(|()| file.get_ref().sync_data()).map_err(|e| unavailable(&path, &e))?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        connection
            .prepare_cached(
                "INSERT INTO _pushes(sink, number, length) VALUES(?1, ?2, ?3)
                 ON CONFLICT(sink) DO UPDATE SET number = excluded.number, length = excluded.length",
            )
            .and_then(|mut s| s.execute(rusqlite::params![self.sink, number(self.end.number), number(self.end.length)]))
            .map(|_| ())
            .map_err(fault(STORE))
    }
}

/// Opens the file at its committed end; the next one where it is full.
fn open(folder: &Path, sink: &str, end: &mut End, limit: u64) -> Result<(BufWriter<File>, PathBuf), StoreError> {
    if end.number == 0 || end.length >= limit {
        *end = End { number: end.number + 1, length: 0 };
    }
    let path = path(folder, sink, end.number);
    let at = |e: std::io::Error| unavailable(&path, &e);
    // A file that someone took away begins anew: what it held was delivered.
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(at)?;
    let there = file.metadata().map_err(at)?.len();
    if there < end.length {
        end.length = there;
    } else if there > end.length {
        file.set_len(end.length).map_err(at)?;
    }
    file.seek(SeekFrom::Start(end.length)).map_err(at)?;
    if there == 0 {
        sync_folder(folder)?;
    }
    Ok((BufWriter::with_capacity(64 << 10, file), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(connection: &mut Connection, folder: &Path, lines: &[&str], commit: bool) {
        let tx = connection.transaction().unwrap();
        let mut pushes = Pushes::begin(&tx, folder, "s/1", 20).unwrap();
        for line in lines {
            pushes.append(line.as_bytes()).unwrap();
        }
        pushes.finish(&tx).unwrap();
        if commit {
            tx.commit().unwrap();
        }
    }

    fn text(folder: &Path, number: u64) -> String {
        std::fs::read_to_string(path(folder, "s/1", number)).unwrap_or_default()
    }

    #[test]
    fn r13_a_push_is_there_once_however_often_its_batch_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = Connection::open_in_memory().unwrap();
        create(&connection).unwrap();
        batch(&mut connection, folder.path(), &["one\n", "two\n"], true);
        batch(&mut connection, folder.path(), &["three\n", "four\n", "five\n", "six\n"], false);
        assert_eq!(text(folder.path(), 1), "one\ntwo\nthree\nfour\nfive\nsix\n", "written, and not committed");
        batch(&mut connection, folder.path(), &[], true);
        batch(&mut connection, folder.path(), &["three\n"], true);
        batch(&mut connection, folder.path(), &["four\n", "five\n"], true);
        assert_eq!(text(folder.path(), 1), "one\ntwo\nthree\nfour\nfive\n");
        batch(&mut connection, folder.path(), &["six\n"], false);
        assert_eq!(text(folder.path(), 2), "six\n", "the first is full");
        sweep(&connection, folder.path(), "s/1").unwrap();
        assert!(!path(folder.path(), "s/1", 2).exists());
        batch(&mut connection, folder.path(), &["six\n"], true);
        sweep(&connection, folder.path(), "s/1").unwrap();
        assert_eq!((text(folder.path(), 1).len(), text(folder.path(), 2).as_str()), (24, "six\n"));
        std::fs::remove_file(path(folder.path(), "s/1", 2)).unwrap();
        batch(&mut connection, folder.path(), &["seven\n"], true);
        assert_eq!(text(folder.path(), 2), "seven\n", "a file taken away begins anew");
        forget(&connection, "s/1").unwrap();
        sweep(&connection, folder.path(), "s/1").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
