//! Texts for the index: HTML to plain words, what readers type to a query, matches to `<em>`.

use std::borrow::Cow;

/// Elements whose tags are taken out; anything else in angle brackets is text ("a <b and c> d").
const ELEMENTS: [&str; 48] = [
    "a",
    "audio",
    "b",
    "blockquote",
    "br",
    "code",
    "del",
    "details",
    "div",
    "em",
    "font",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "i",
    "img",
    "kbd",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "small",
    "span",
    "strike",
    "strong",
    "sub",
    "summary",
    "sup",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "time",
    "tr",
    "u",
    "ul",
    "video",
    "center",
    "dl",
    "dt",
    "dd",
    "ins",
];

/// Inline elements: taking them out joins nothing that was apart, so no space is put in their place.
const INLINE: [&str; 18] = [
    "a", "b", "code", "del", "em", "font", "i", "ins", "kbd", "s", "small", "span", "strike", "strong", "sub", "sup", "time", "u",
];

/// The text without HTML tags, and with entities as the characters they stand for.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr2(b'<', b'&', text.as_bytes()) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    let (head, mut rest) = text.split_at(first);
    out.push_str(head);
    loop {
        let next = memchr::memchr2(b'<', b'&', rest.as_bytes()).unwrap_or(rest.len());
        let (words, tail) = rest.split_at(next);
        out.push_str(words);
        if tail.is_empty() {
            return Cow::Owned(out);
        }
        let (length, instead) = if tail.starts_with('<') { tag(tail) } else { entity(tail) };
        match instead {
            Some(instead) => out.extend(instead),
            None => out.push_str(tail.get(..length).unwrap_or("")),
        }
        rest = tail.get(length..).unwrap_or("");
    }
}

/// Length of a tag at the start of `text`, and what stands for it: `Some(None)` nothing.
fn tag(text: &str) -> (usize, Option<Option<char>>) {
    let name = text.get(1..).unwrap_or("").trim_start_matches('/');
    let end = name.bytes().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(name.len());
    let (name, after) = name.split_at(end);
    let closes = after.starts_with(['>', '/', ' ', '\n', '\t']);
    let lower = name.to_ascii_lowercase();
    if !closes || !ELEMENTS.contains(&lower.as_str()) {
        return (1, None);
    }
    let mut quote = None;
    for (i, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return (i + 1, Some(if INLINE.contains(&lower.as_str()) { None } else { Some(' ') })),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    (1, None)
}

/// Length of an entity at the start of `text`, and its character.
fn entity(text: &str) -> (usize, Option<Option<char>>) {
    let Some(end) = text.bytes().take(12).position(|b| b == b';') else { return (1, None) };
    let name = text.get(1..end).unwrap_or("");
    let character = match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some(' '),
        "hellip" => Some('…'),
        _ => name.strip_prefix('#').and_then(|number| {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => number.parse().ok(),
            };
            char::from_u32(code?)
        }),
    };
    character.map_or((1, None), |c| (end + 1, Some(Some(c))))
}

/// What a reader looks for.
pub(crate) struct Query {
    fts: String,
    phrases: Vec<String>,
}

impl Query {
    /// Words and "quoted phrases"; all must be there. None: there is no word in it.
    pub(crate) fn parse(text: &str) -> Option<Query> {
        let mut phrases: Vec<String> = Vec::new();
        for (i, part) in text.split('"').enumerate() {
            if i % 2 == 1 {
                phrases.push(part.to_owned());
            } else {
                phrases.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        let phrases: Vec<String> = phrases
            .iter()
            .map(|phrase| plain(phrase).replace(['"', '\0'], " "))
            .filter(|phrase| phrase.chars().any(char::is_alphanumeric))
            .collect();
        let quoted: Vec<String> = phrases.iter().map(|phrase| format!("\"{phrase}\"")).collect();
        (!quoted.is_empty()).then(|| Query { fts: quoted.join(" AND "), phrases })
    }

    /// The phrases, each without quotes.
    #[cfg_attr(not(feature = "elasticsearch"), allow(dead_code, reason = "only Elasticsearch takes them one by one"))]
    pub(crate) fn phrases(&self) -> &[String] {
        &self.phrases
    }

    /// In FTS5's syntax: quoted strings and AND only.
    pub(crate) fn fts(&self) -> &str {
        &self.fts
    }
}

/// Escapes a fragment as HTML, and puts `<em>` where U+0001 and U+0002 stand.
pub(crate) fn mark(fragment: &str) -> String {
    let mut out = String::with_capacity(fragment.len() + 16);
    for c in fragment.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{1}' => out.push_str("<em>"),
            '\u{2}' => out.push_str("</em>"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_and_text_stays() {
        assert_eq!(plain("<p>it&#39;s <b>bo</b>ld &amp; a<br>b</p>"), " it's bold & a b ");
        assert_eq!(plain("if x<y and z>w"), "if x<y and z>w");
        assert_eq!(plain("<a title=\"a > b\" href='x'>link</a>"), "link");
        assert_eq!(plain("cut <p off & on &#x110000; <"), "cut <p off & on &#x110000; <");
        assert!(matches!(plain("plain words"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_readers_type_is_never_syntax() {
        let fts = |text: &str| Query::parse(text).map(|q| q.fts().to_owned());
        assert_eq!(fts("one \"two three\"").as_deref(), Some("\"one\" AND \"two three\""));
        assert_eq!(fts("a* OR NEAR(b) body:c").as_deref(), Some("\"a*\" AND \"OR\" AND \"NEAR(b)\" AND \"body:c\""));
        assert_eq!(fts("\"open").as_deref(), Some("\"open\""));
        assert_eq!(fts(" && \"--\" "), None);
        assert_eq!(mark("a \u{1}<b>\u{2} & c"), "a <em>&lt;b&gt;</em> &amp; c");
    }
}
