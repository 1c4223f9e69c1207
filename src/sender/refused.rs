//! `FILE.refused.jsonl`: every refused line once, with its reason, whatever happened in between.

use base64::Engine;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Why a line was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The line's number in the file, from 1.
    pub(crate) line: u64,
    /// Machine-readable: `max_length`, `bad_json`, ….
    pub(crate) code: String,
    /// The field at fault, if one is.
    pub(crate) path: Option<String>,
    /// For people.
    pub(crate) message: String,
}

/// The file, opened when the first line is refused.
#[derive(Debug)]
pub(crate) struct RefusedFile {
    path: PathBuf,
    file: Option<File>,
    lines: BTreeSet<u64>,
    codes: BTreeMap<String, u64>,
}

impl RefusedFile {
    /// At `path`: continued by a run that goes on, replaced by a new one.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub(crate) fn open(path: PathBuf, goes_on: bool) -> io::Result<RefusedFile> {
        let mut refused = RefusedFile { path, file: None, lines: BTreeSet::new(), codes: BTreeMap::new() };
        if goes_on {
            refused.read_back()?;
        } else if refused.path.exists() {
            std::fs::remove_file(&refused.path)?;
        }
        Ok(refused)
    }

    /// Learns what an interrupted run has written; a last line without an end is cut off.
    fn read_back(&mut self) -> io::Result<()> {
        let mut file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(&file);
        let mut whole: u64 = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            let parsed = serde_json::from_slice::<serde_json::Value>(&line).ok().filter(|_| line.last() == Some(&b'\n'));
            let Some(value) = parsed else { break };
            if let Some(number) = value.get("line").and_then(serde_json::Value::as_u64) {
                let code = value.get("code").and_then(serde_json::Value::as_str).unwrap_or("unknown");
                self.remember(number, code);
            }
            whole += read as u64;
        }
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        self.file = Some(file);
        Ok(())
    }

    fn remember(&mut self, line: u64, code: &str) -> bool {
        let new = self.lines.insert(line);
        if new {
            *self.codes.entry(code.to_owned()).or_default() += 1;
        }
        new
    }

    /// Writes refused lines with their bytes, but for those that are in the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn add<'a>(&mut self, refusals: impl IntoIterator<Item = (Refusal, &'a [u8])>) -> io::Result<()> {
        let mut text = Vec::new();
        for (refusal, bytes) in refusals {
            if !self.remember(refusal.line, &refusal.code) {
                continue;
            }
            let mut entry = serde_json::json!({
                "line": refusal.line, "code": refusal.code, "path": refusal.path, "message": refusal.message,
            });
            match std::str::from_utf8(bytes) {
                Ok(record) => entry["record"] = record.into(),
                Err(_) => entry["bytes"] = base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            }
            serde_json::to_writer(&mut text, &entry)?;
            text.push(b'\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        file.write_all(&text)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_all)
    }

    /// How many lines were refused, by code.
    pub(crate) fn codes(&self) -> &BTreeMap<String, u64> {
        &self.codes
    }

    /// How many lines were refused.
    pub(crate) fn len(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: u64) -> Refusal {
        Refusal { line, code: "max_length".into(), path: Some("payload.content".into()), message: "too long".into() }
    }

    #[test]
    fn r17_a_resume_writes_no_line_twice_and_mends_a_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl.refused.jsonl");
        let mut first = RefusedFile::open(path.clone(), false).unwrap();
        first.add([(refusal(3), &b"three"[..]), (refusal(5), &b"\xff\xfe"[..])]).unwrap();
        drop(first);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"line\":9,\"co").unwrap();
        let mut second = RefusedFile::open(path.clone(), true).unwrap();
        second.add([(refusal(5), &b"\xff\xfe"[..]), (refusal(9), &b"nine"[..])]).unwrap();
        assert_eq!((second.len(), second.codes()["max_length"]), (3, 3));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().map(|l| l["line"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 5, 9]);
        assert_eq!((&lines[0]["record"], &lines[1]["bytes"]), (&"three".into(), &"//4=".into()));
        assert_eq!(lines[2]["path"], "payload.content");
    }

    #[test]
    fn a_new_run_begins_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        RefusedFile::open(path.clone(), false).unwrap().add([(refusal(1), &b"x"[..])]).unwrap();
        let fresh = RefusedFile::open(path.clone(), false).unwrap();
        assert_eq!(fresh.len(), 0);
        assert!(!path.exists());
    }
}
