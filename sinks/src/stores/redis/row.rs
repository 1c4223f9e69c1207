//! A row as one value: a head of fixed width, which scripts look into, and what only this side reads.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | the form of this table, `2` |
//! | 1 | `1`: readers do not see the row |
//! | 2–21 | version of the record that made it |
//! | 22–40 | revision |
//! | 41–48 | length of the user, hexadecimal, as the lengths that follow |
//! | 49– | the user; newest arrival (20), lengths of versions (8) and of sets (8); versions, sets, columns |
//!
//! One value takes less of the server's time than a hash, which is a table as soon as one of its fields is long;
//! memory is about the same. Form 1 was such a hash.

use super::{NAME, refused};
use crate::store::StoreError;
use crate::stores::layout::Layout;
use crate::stores::remote::Stored;
use crate::stores::remote::write::from_object;
use rusqlite::types::Value;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// The form that rows have.
pub(super) const FORM: &str = "2";

/// Versions compare as texts of one length: Lua's numbers hold 53 bits only. A row before its `create`
/// has a negative one, which as a text is the lowest too.
fn version_text(version: i64) -> String {
    if version < 0 { format!("{version:<20}") } else { format!("{version:020}") }
}

/// A revision as the guard compares it.
pub(super) fn revision_text(revision: i64) -> String {
    format!("{revision:019}")
}

/// The row as it is stored.
pub(super) fn pack(layout: &Layout, row: &Stored) -> Result<Vec<u8>, StoreError> {
    let user = layout.user().map_or("", |at| if let Value::Text(user) = &row.values[at] { user } else { "" });
    let (versions, sets) = (row.versions.as_deref().unwrap_or_default(), row.sets.as_deref().unwrap_or_default());
    let (gone, base, revision) = (u8::from(row.gone), version_text(row.base), revision_text(row.revision));
    let (arrival, lengths) = (row.arrival, format!("{:08x}{:08x}", versions.len(), sets.len()));
    let mut out =
        format!("{FORM}{gone}{base}{revision}{:08x}{user}{arrival:020}{lengths}{versions}{sets}", user.len()).into_bytes();
    serde_json::to_writer(&mut out, &Columns { layout, values: &row.values })
        .map_err(|e| refused(NAME, format!("a row cannot be written as JSON: {e}")))?;
    Ok(out)
}

/// A stored row; none: it cannot be read.
pub(super) fn unpack(layout: &Layout, key: &str, packed: &str) -> Option<Stored> {
    let mut rest = packed;
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(taken)
    };
    let length = |text: &str| usize::from_str_radix(text, 16).ok();
    if take(FORM.len())? != FORM {
        return None;
    }
    let gone = take(1)? != "0";
    let base = take(20)?.trim_end().parse().ok()?;
    let revision = take(19)?.parse().ok()?;
    let user = length(take(8)?)?;
    take(user)?;
    let arrival = take(20)?.parse().ok()?;
    let (versions, sets) = (length(take(8)?)?, length(take(8)?)?);
    let part = |text: &str| if text.is_empty() { None } else { Some(text.to_owned()) };
    let (versions, sets) = (part(take(versions)?), part(take(sets)?));
    let values = from_object(layout, &serde_json::from_str(rest).ok()?);
    Some(Stored { key: key.to_owned(), base, gone, arrival, revision, versions, sets, values })
}

/// The columns as a JSON object: booleans and times as whole numbers, nulls left out.
struct Columns<'a> {
    layout: &'a Layout,
    values: &'a [Value],
}

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (column, value) in self.layout.columns.iter().zip(self.values) {
            match value {
                Value::Null | Value::Blob(_) => {}
                Value::Integer(i) => map.serialize_entry(&column.name, i)?,
                Value::Real(r) => map.serialize_entry(&column.name, r)?,
                Value::Text(t) => map.serialize_entry(&column.name, t)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quikflow_topics::catalogue::{FieldSpec, FieldType, SinkSpec, TopicKind, TopicSpec};
    use std::sync::Arc;

    /// A head up to the user.
    const HEAD: usize = 49;

    fn layout() -> Option<Layout> {
        let mut topic = TopicSpec::new("t", TopicKind::Events);
        topic.fields = ["id", "userId", "text"].map(|name| FieldSpec::new(name, FieldType::String)).into();
        topic.fields.push(FieldSpec::new("share", FieldType::Float));
        let sink = SinkSpec {
            name: "s".into(),
            from: "t".into(),
            store: "redis".into(),
            table: "t".into(),
            key: vec!["id".into()],
            filter: None,
            ttl: None,
            cache: None,
            rollup: Default::default(),
            doc: String::new(),
            options: toml::Table::new(),
            span: 0..0,
        };
        Layout::new(&Arc::new(sink), &topic).ok()
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let layout = layout();
        let Some(layout) = layout else { unreachable!("a layout") };
        let text = |text: &str| Value::Text(text.to_owned());
        let with = |base, user: Value, versions: Option<&str>, sets: Option<&str>| {
            let mut values = vec![Value::Null; layout.columns.len()];
            values[0] = text("k");
            values[1] = user;
            values[2] = text("naïve \u{1f389} \"quoted\"\n");
            values[3] = Value::Real(0.5);
            let (versions, sets) = (versions.map(str::to_owned), sets.map(str::to_owned));
            Stored { key: "k".into(), base, gone: base < 0, arrival: i64::MIN, revision: 7, versions, sets, values }
        };
        for row in [
            with(1 << 62, text("u1"), None, None),
            with(-1, text("ü\u{1f389}"), Some("{\"text\":9}"), Some("{\"a\":{\"ä\":[1,2]}}")),
            with(0, Value::Null, None, Some("{}")),
        ] {
            let packed = pack(&layout, &row).unwrap_or_default();
            let packed = String::from_utf8(packed).unwrap_or_default();
            assert_eq!(unpack(&layout, "k", &packed), Some(row));
            assert_eq!(unpack(&layout, "k", packed.get(..HEAD).unwrap_or_default()), None, "a row that is cut off");
            assert_eq!(unpack(&layout, "k", &packed.replacen('2', "3", 1)), None, "another form");
        }
    }

    #[test]
    fn versions_compare_as_texts() {
        let mut versions = vec![-1, 0, 1, 9, 10, 1 << 44, i64::MAX];
        let sorted = versions.clone();
        versions.sort_by_key(|version| version_text(*version));
        assert_eq!(versions, sorted);
        assert!(sorted.iter().all(|version| version_text(*version).len() == 20));
    }
}
