//! What is to be delivered, as files: e-mail as `.eml`, push as JSON.
//!
//! A file's name comes from the sink and the row's key, and its content from the row alone; so a
//! row written again after a crash gives the same file. Options of the sink:
//!
//! * `deliver`: what to make of each row, `["push", "email"]`; default `["push"]`. A column
//!   `deliver` (a list, or texts joined by commas), or columns `push` and `email` (bool), say it
//!   row by row instead.
//! * `user`: the column with the recipient; default `recipient`, `user`, `userId`.
//! * `from`, `domain`: the sender's address, and the domain of recipients whose row has no `email`.
//! * `subject`, `body`: texts with `{column}`; default the columns `title` and `body` or `content`.

use super::cells::Cell;
use super::layout::{Layout, option_list, option_text};
use super::rows::Input;
use crate::store::StoreError;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use parking_lot::Mutex;
use quikflow_topics::catalogue::FieldType;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The folders, and those with files not synced yet.
pub(crate) struct Outbox {
    email: PathBuf,
    push: PathBuf,
    dirty: Mutex<BTreeSet<PathBuf>>,
}

fn unavailable(what: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable { store: "outbox", message: format!("cannot write {}: {error}", what.display()), retry_after: None }
}

impl Outbox {
    /// Makes the folders `dir/outbox/email` and `dir/outbox/push`.
    pub(crate) fn open(dir: &Path) -> Result<Outbox, StoreError> {
        let outbox =
            Outbox { email: dir.join("outbox/email"), push: dir.join("outbox/push"), dirty: Mutex::new(BTreeSet::new()) };
        for folder in [&outbox.email, &outbox.push] {
            std::fs::create_dir_all(folder).map_err(|e| unavailable(folder, &e))?;
        }
        Ok(outbox)
    }

    /// Writes the files of one row.
    pub(crate) fn deliver(&self, layout: &Layout, input: &Input<'_>, row: usize) -> Result<(), StoreError> {
        let Ok(key) = input.key(row) else { return Ok(()) };
        let digest = Sha256::digest(format!("{}\u{1f}{key}", layout.sink.name).as_bytes());
        let name = hex::encode(&digest[..16]);
        let fields = Fields { layout, input, row };
        for way in fields.ways()? {
            match way.as_str() {
                "email" => self.put(&self.email, &format!("{name}.eml"), &fields.email(&name)?)?,
                "push" => self.put(&self.push, &format!("{name}.json"), &fields.push(&key)?)?,
                // The row itself is the badge and the inbox.
                _ => {}
            }
        }
        Ok(())
    }

    /// A whole file or none: written beside, synced, renamed.
    fn put(&self, folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (path, beside) = (folder.join(name), folder.join(format!(".{name}.part")));
        let written = File::create(&beside).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.and_then(|()| std::fs::rename(&beside, &path)).map_err(|e| unavailable(&path, &e))?;
        self.dirty.lock().insert(folder.to_owned());
        Ok(())
    }

    /// Makes the names of the files written durable; before the offset is stored.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let mut dirty = self.dirty.lock();
        for folder in dirty.iter() {
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| unavailable(folder, &e))?;
        }
        dirty.clear();
        Ok(())
    }
}

struct Fields<'a> {
    layout: &'a Layout,
    input: &'a Input<'a>,
    row: usize,
}

impl Fields<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let at = self.layout.column(name)?;
        match self.input.cell(at, self.row) {
            Cell::Null => None,
            Cell::Text(text) => Some(text.into_owned()),
            Cell::Int(i) if self.layout.columns[at].ty == FieldType::Timestamp => Some(super::cells::time_text(i)),
            Cell::Int(i) => Some(i.to_string()),
            Cell::Real(r) => Some(r.to_string()),
        }
    }

    fn ways(&self) -> Result<Vec<String>, StoreError> {
        if self.layout.column("deliver").is_some() {
            let Some(text) = self.text("deliver") else { return Ok(Vec::new()) };
            return Ok(serde_json::from_str::<Vec<String>>(&text)
                .unwrap_or_else(|_| text.split(',').map(|w| w.trim().to_owned()).collect()));
        }
        let ways = ["push", "email"]
            .map(|way| (way, self.layout.column(way).filter(|at| self.layout.columns[*at].ty == FieldType::Bool)));
        if ways.iter().any(|(_, at)| at.is_some()) {
            let on = |at: Option<usize>| at.is_some_and(|at| self.input.cell(at, self.row) == Cell::Int(1));
            return Ok(ways.iter().filter(|(_, at)| on(*at)).map(|(way, _)| (*way).to_owned()).collect());
        }
        let declared = option_list(&self.layout.sink, "deliver").map_err(StoreError::BadRequest)?;
        Ok(if declared.is_empty() { vec!["push".into()] } else { declared })
    }

    fn option(&self, name: &str, default: &str) -> Result<String, StoreError> {
        Ok(option_text(&self.layout.sink, name).map_err(StoreError::BadRequest)?.unwrap_or_else(|| default.to_owned()))
    }

    /// A template with `{column}` replaced; line breaks only where `lines`.
    fn fill(&self, template: &str) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some((head, tail)) = rest.split_once('{') {
            out.push_str(head);
            match tail.split_once('}') {
                Some((name, after)) => {
                    out.push_str(&self.text(name).unwrap_or_default());
                    rest = after;
                }
                None => {
                    out.push('{');
                    rest = tail;
                }
            }
        }
        out.push_str(rest);
        out
    }

    fn email(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let wrong = |e: &dyn std::fmt::Display| StoreError::BadRequest(format!("an e-mail cannot be made: {e}"));
        let domain = self.option("domain", "users.invalid")?;
        let user = self.layout.user().and_then(|at| self.text(&self.layout.columns[at].name)).unwrap_or_else(|| "unknown".into());
        let safe: String = user.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
        let to: Mailbox = match self.text("email").and_then(|address| address.parse().ok()) {
            Some(mailbox) => mailbox,
            None => format!("{safe}@{domain}").parse().map_err(|e| wrong(&e))?,
        };
        let from: Mailbox = self.option("from", "QuikApp <notifications@quikapp.invalid>")?.parse().map_err(|e| wrong(&e))?;
        let title = if self.layout.column("title").is_some() { "{title}" } else { "You have a new notification" };
        let subject: String = self.fill(&self.option("subject", title)?).replace(['\r', '\n'], " ");
        let body = if self.layout.column("body").is_some() { "{body}" } else { "{content}" };
        let body = self.fill(&self.option("body", body)?);
        let micros = u64::try_from(self.input.event_time(self.row)).unwrap_or(0);
        let message = Message::builder()
            .from(from)
            .to(to)
            .subject(subject)
            .date(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
            .message_id(Some(format!("<{name}@quikflow>")))
            .header(ContentType::TEXT_PLAIN)
            .body(body)
            .map_err(|e| wrong(&e))?;
        Ok(message.formatted())
    }

    fn push(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let mut fields = serde_json::Map::new();
        fields.insert("_id".into(), serde_json::Value::String(key.replace('\u{1f}', "/")));
        for (at, column) in self.layout.columns.iter().enumerate() {
            // When it was appended is not the row's own: it would differ after a rebuild.
            if column.name == "arrival_time" {
                continue;
            }
            let value = self.input.cell(at, self.row).into_value();
            let json = super::cells::to_json(column.ty, (&value).into());
            if !json.is_null() {
                fields.insert(column.name.clone(), json);
            }
        }
        let mut bytes =
            serde_json::to_vec_pretty(&fields).map_err(|e| StoreError::BadRequest(format!("a push cannot be made: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
