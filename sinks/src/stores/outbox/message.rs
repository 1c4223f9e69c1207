//! What a row says to its recipient: the ways, the e-mail, the push.

use super::super::cells::{Cell, time_text, to_json};
use super::super::layout::{Layout, option_list, option_text};
use super::super::rows::Input;
use crate::store::StoreError;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use quikflow_topics::catalogue::FieldType;
use std::time::{Duration, SystemTime};

/// A row, to be told to its recipient.
pub(super) struct Fields<'a> {
    pub(super) layout: &'a Layout,
    pub(super) input: &'a Input<'a>,
    pub(super) row: usize,
}

impl Fields<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let at = self.layout.column(name)?;
        match self.input.cell(at, self.row) {
            Cell::Null => None,
            Cell::Text(text) => Some(text.into_owned()),
            Cell::Int(i) if self.layout.columns[at].ty == FieldType::Timestamp => Some(time_text(i)),
            Cell::Int(i) => Some(i.to_string()),
            Cell::Real(r) => Some(r.to_string()),
        }
    }

    /// The ways this row goes: `push`, `email`, others that need no delivery.
    pub(super) fn ways(&self) -> Result<Vec<String>, StoreError> {
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

    /// The e-mail as it is sent; `name` makes its id.
    pub(super) fn email(&self, name: &str) -> Result<Vec<u8>, StoreError> {
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

    /// The push: one line of JSON.
    pub(super) fn push(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let mut fields = serde_json::Map::new();
        fields.insert("_id".into(), serde_json::Value::String(key.replace('\u{1f}', "/")));
        for (at, column) in self.layout.columns.iter().enumerate() {
            // When it was appended is not the row's own: it would differ after a rebuild.
            if column.name == "arrival_time" {
                continue;
            }
            let value = self.input.cell(at, self.row).into_value();
            let json = to_json(column.ty, (&value).into());
            if !json.is_null() {
                fields.insert(column.name.clone(), json);
            }
        }
        let mut bytes = serde_json::to_vec(&fields).map_err(|e| StoreError::BadRequest(format!("a push cannot be made: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
