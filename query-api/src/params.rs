//! Query parameters, strictly: unknown, repeated and overlong ones are refused, with the nearest
//! name as a hint.

use crate::problem::{FieldError, Problem};
use crate::times;
use quikflow_topics::ids::EventTime;
use std::collections::BTreeMap;

/// The longest value of an ordinary parameter, in bytes.
pub const MAX_VALUE: usize = 1024;
/// The longest `where`, in bytes.
pub const MAX_EXPRESSION: usize = 4096;

/// The parameters of a request, checked against the names that its path knows.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<&'static str, String>);

impl Params {
    /// Reads a query string.
    ///
    /// # Errors
    /// 422 naming each parameter that is unknown, repeated, overlong or not UTF-8.
    pub fn read(query: Option<&str>, known: &[&'static str]) -> Result<Params, Problem> {
        let mut values = BTreeMap::new();
        let mut errors = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                errors.push(fault("?", "encoding", "the query string is not percent-encoded UTF-8".to_owned()));
                continue;
            };
            let Some(known_name) = known.iter().find(|k| **k == name) else {
                let shown: String = name.chars().take(40).collect();
                errors.push(fault(&shown, "unknown_parameter", unknown("parameter", &name, known.iter().copied())));
                continue;
            };
            let most = if *known_name == "where" { MAX_EXPRESSION } else { MAX_VALUE };
            if value.len() > most {
                errors.push(fault(known_name, "max_length", format!("`{known_name}` is longer than {most} bytes")));
            } else if values.insert(*known_name, value).is_some() {
                errors.push(fault(known_name, "repeated", format!("`{known_name}` is given twice")));
            }
        }
        if errors.is_empty() { Ok(Params(values)) } else { Err(Problem::fields(errors)) }
    }

    /// The value of a parameter, if given and not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// 422 naming it.
    pub fn required(&self, name: &str) -> Result<&str, Problem> {
        self.text(name).ok_or_else(|| Problem::field(name, "required", format!("`{name}` is required")))
    }

    /// A whole number within bounds.
    ///
    /// # Errors
    /// 422 when it isn't one.
    pub fn number(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<usize>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Problem::field(name, "range", format!("`{name}` is a whole number from {least} to {most}"))),
        }
    }

    /// A time: RFC 3339 or a date.
    ///
    /// # Errors
    /// 422 when it isn't one.
    pub fn time(&self, name: &str) -> Result<Option<EventTime>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        times::read(text)
            .map(Some)
            .ok_or_else(|| Problem::field(name, "time", format!("`{name}` is a time in RFC 3339, such as 2026-01-01T12:00:00Z")))
    }

    /// `from` and `to`, in order.
    ///
    /// # Errors
    /// 422 when either is no time, or the range is upside down.
    pub fn range(&self) -> Result<(Option<EventTime>, Option<EventTime>), Problem> {
        let (from, to) = (self.time("from")?, self.time("to")?);
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            return Err(Problem::field("from", "range", "`from` is after `to`"));
        }
        Ok((from, to))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// 422 for anything else.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::field(name, "bool", format!("`{name}` is true or false"))),
        }
    }
}

fn fault(path: &str, rule: &str, message: String) -> FieldError {
    FieldError { path: path.to_owned(), rule: rule.to_owned(), message, ..FieldError::default() }
}

/// `unknown parameter `form`, did you mean `from`? known: …`
pub fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let shown: String = name.chars().take(60).collect();
    let list = known.clone().take(60).collect::<Vec<_>>().join(", ");
    let nearest = known.map(|k| (distance(&shown, k), k)).filter(|(d, k)| *d <= 1 + k.len() / 3).min();
    match nearest {
        Some((_, near)) => format!("unknown {what} `{shown}`, did you mean `{near}`? known: {list}"),
        None if list.is_empty() => format!("unknown {what} `{shown}`: none is known here"),
        None => format!("unknown {what} `{shown}`; known: {list}"),
    }
}

/// Edit distance with neighbours swapped counted as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => {
                let pair = std::str::from_utf8(bytes.get(i + 1..i + 3)?).ok()?;
                out.push(u8::from_str_radix(pair, 16).ok()?);
                i += 2;
            }
            byte => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_get_a_hint() {
        let problem = Params::read(Some("form=2026-01-01"), &["from", "to", "limit"]).unwrap_err();
        assert_eq!(problem.status, 422);
        assert!(problem.detail.contains("did you mean `from`?"), "{}", problem.detail);
        assert_eq!(problem.errors[0].rule, "unknown_parameter");
    }

    #[test]
    fn values_are_decoded_bounded_and_given_once() {
        let params = Params::read(Some("where=a+%3D%20'%C3%A9'&limit=7"), &["where", "limit"]).unwrap();
        assert_eq!(params.text("where"), Some("a = 'é'"));
        assert_eq!(params.number("limit", 1, 10).unwrap(), Some(7));
        assert!(params.number("limit", 1, 5).is_err());
        assert!(Params::read(Some("limit=1&limit=2"), &["limit"]).is_err());
        assert!(Params::read(Some(&format!("limit={}", "1".repeat(2000))), &["limit"]).is_err());
        assert!(Params::read(Some("limit=%ff"), &["limit"]).is_err());
        assert!(Params::read(Some("limit=%"), &["limit"]).is_err());
    }
}
