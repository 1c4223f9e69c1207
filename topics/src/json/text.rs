//! Escapes of JSON strings, and canonical JSON.

use super::fault::Fault;
use super::scan::{Kind, Member, Scanner, Value, plain_end};

/// The text of a string's inside whose escapes the scanner has found right.
pub(super) fn unescaped(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    unescape_into(raw, &mut text);
    text
}

/// Appends the text of a string's inside whose escapes the scanner has found right.
pub(super) fn unescape_into(raw: &str, out: &mut String) {
    let mut rest = raw;
    loop {
        // Only a backslash can end a run here: the scanner has refused the rest.
        let (plain, escape) = rest.split_at(plain_end(rest.as_bytes(), 0));
        out.push_str(plain);
        if escape.is_empty() {
            return;
        }
        let mut used = 2;
        match escape.as_bytes().get(1) {
            Some(b'b') => out.push('\u{8}'),
            Some(b'f') => out.push('\u{c}'),
            Some(b'n') => out.push('\n'),
            Some(b'r') => out.push('\r'),
            Some(b't') => out.push('\t'),
            Some(b'u') => {
                used = 6;
                let mut code = hex(escape, 2);
                if (0xd800..=0xdbff).contains(&code) {
                    used = 12;
                    code = 0x1_0000 + ((code - 0xd800) << 10) + (hex(escape, 8) & 0x3ff);
                }
                out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(&other) => out.push(char::from(other)),
            None => return,
        }
        rest = escape.get(used..).unwrap_or_default();
    }
}

fn hex(escape: &str, at: usize) -> u32 {
    escape.get(at..at + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Appends `text` as a JSON string, quotes and all, in canonical form.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    loop {
        let at = plain_end(rest.as_bytes(), 0);
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let Some(&byte) = special.as_bytes().first() else { break };
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            8 => out.push_str("\\b"),
            12 => out.push_str("\\f"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
        rest = special.get(1..).unwrap_or_default();
    }
    out.push('"');
}

/// Appends a value that the scanner has crossed in canonical form.
pub(super) fn write_value(text: &str, value: &Value, out: &mut String) {
    match value.kind {
        Kind::Null | Kind::Bool(_) | Kind::Number => out.push_str(value.raw(text)),
        Kind::Text { escaped: false } => {
            out.push('"');
            out.push_str(value.raw(text));
            out.push('"');
        }
        Kind::Text { escaped: true } => write_string(&unescaped(value.raw(text)), out),
        Kind::Array => {
            let raw = value.raw(text);
            let mut names = Vec::new();
            let mut scanner = Scanner::new(raw, usize::MAX, &mut names);
            out.push('[');
            // The scanner has crossed it before: it cannot fail now.
            let _crossed = scanner.array(1, |scanner, index| {
                let item = scanner.value(2)?;
                if index > 0 {
                    out.push(',');
                }
                write_value(raw, &item, out);
                Ok(())
            });
            out.push(']');
        }
        Kind::Object => {
            let raw = value.raw(text);
            let mut names = Vec::new();
            let mut members = Vec::new();
            let _crossed = Scanner::new(raw, usize::MAX, &mut names).members(1, &mut members);
            sort(raw, &mut members);
            out.push('{');
            for (index, member) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_name(raw, &member.name, out);
                write_value(raw, &member.value, out);
            }
            out.push('}');
        }
    }
}

/// Sorts members by the UTF-8 bytes of their names.
pub(super) fn sort(text: &str, members: &mut [Member]) {
    members.sort_by(|a, b| a.name.text(text).as_bytes().cmp(b.name.text(text).as_bytes()));
}

/// Appends a name and its colon.
pub(super) fn write_name(text: &str, name: &Value, out: &mut String) {
    write_value(text, name, out);
    out.push(':');
}

/// `json` in canonical form: see the [room's page](super).
///
/// # Errors
/// Not JSON, nested deeper than 128 levels, or a name twice in an object.
pub fn canonical(json: &str) -> Result<String, Fault> {
    let mut names = Vec::new();
    let mut scanner = Scanner::new(json, 128, &mut names);
    let crossed = scanner.value(1).and_then(|value| scanner.end().map(|()| value));
    let value = crossed.map_err(|trouble| trouble.into_fault())?;
    let mut out = String::with_capacity(json.len());
    write_value(json, &value, &mut out);
    Ok(out)
}

/// A member of an object: its name's text, and its value as it was written.
pub type RawMember<'a> = (std::borrow::Cow<'a, str>, &'a str);

/// The members of the object `json`: what wraps an event can be taken off without reading the event.
///
/// # Errors
/// Not JSON, not an object, nested deeper than `max_depth`, or a name twice in an object.
pub fn members(json: &str, max_depth: usize) -> Result<Vec<RawMember<'_>>, Fault> {
    let mut names = Vec::new();
    let mut members = Vec::new();
    let mut scanner = Scanner::new(json, max_depth.min(128), &mut names);
    let crossed = scanner.members(1, &mut members).and_then(|_| scanner.end());
    crossed.map_err(|trouble| trouble.into_fault())?;
    let raw = |value: &Value| match value.kind {
        Kind::Text { .. } => json.get(value.start - 1..value.end + 1).unwrap_or_default(),
        _ => value.raw(json),
    };
    Ok(members.iter().map(|m| (m.name.text(json), raw(&m.value))).collect())
}
