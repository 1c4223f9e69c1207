//! Where in the file a piece of an expression's text stands.

use datafusion::sql::sqlparser::ast::Ident;
use datafusion::sql::sqlparser::tokenizer::{Location, Span};
use quikflow_topics::declaration::Node;
use quikflow_topics::diagnostics::Diagnostic;
use std::ops::Range;

/// An expression's text and the value in the file that holds it.
pub(super) struct Place<'a> {
    pub(super) node: &'a Node,
    text: &'a str,
    /// Byte in the file at which the text begins; none where escapes make the two differ.
    start: Option<usize>,
}

impl<'a> Place<'a> {
    pub(super) fn new(node: &'a Node, text: &'a str) -> Place<'a> {
        let raw = node.file.text.get(node.span.clone()).unwrap_or("");
        let quotes = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| raw.len() >= 2 * q.len() && raw.starts_with(q));
        let start = quotes.and_then(|quotes| {
            let mut skip = quotes.len();
            let mut inner = raw.get(skip..raw.len() - quotes.len())?;
            if quotes.len() == 3 {
                let trimmed = inner.strip_prefix("\r\n").or_else(|| inner.strip_prefix('\n')).unwrap_or(inner);
                skip += inner.len() - trimmed.len();
                inner = trimmed;
            }
            (inner == text).then_some(node.span.start + skip)
        });
        Place { node, text, start }
    }

    /// Byte in the text of a place that the parser names by line and column (from 1, in characters).
    fn byte(&self, at: Location) -> Option<usize> {
        if at.line == 0 || at.column == 0 {
            return None;
        }
        let line = usize::try_from(at.line).ok()?;
        let column = usize::try_from(at.column).ok()?;
        let begin = self.text.split_inclusive('\n').take(line - 1).map(str::len).sum::<usize>();
        let rest = self.text.get(begin..)?;
        Some(begin + rest.char_indices().nth(column - 1).map_or(rest.len(), |(i, _)| i))
    }

    /// An error whose caret marks these bytes of the text.
    pub(super) fn error_at(&self, bytes: Option<Range<usize>>, message: impl Into<String>) -> Diagnostic {
        let span = match (self.start, bytes) {
            (Some(start), Some(bytes)) => start + bytes.start..start + bytes.end.max(bytes.start + 1),
            _ => self.node.span.clone(),
        };
        Diagnostic::error(&self.node.file, span, message)
    }

    /// An error at a piece of the tree.
    pub(super) fn error_in(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        let bytes = self.byte(span.start).zip(self.byte(span.end)).map(|(from, to)| from..to);
        self.error_at(bytes, message)
    }

    /// An error at a name, however many parts it has.
    pub(super) fn error_at_name(&self, parts: &[Ident], message: impl Into<String>) -> Diagnostic {
        let bytes = parts.first().zip(parts.last()).and_then(|(first, last)| {
            let from = self.byte(first.span.start)?;
            let quotes = if last.quote_style.is_some() { 2 } else { 0 };
            Some(from..self.byte(last.span.start)? + last.value.len() + quotes)
        });
        self.error_at(bytes, message)
    }

    /// An error of the parser: "Expected: …, found: x at Line: 1, Column: 8".
    pub(super) fn syntax(&self, message: &str) -> Diagnostic {
        let message = message.trim_start_matches("sql parser error: ");
        let (what, at) = match message.rsplit_once(" at Line: ") {
            Some((what, at)) => (
                what,
                at.split_once(", Column: ")
                    .and_then(|(line, column)| self.byte(Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?))),
            ),
            None => (message, None),
        };
        let what = what.replace("found: EOF", "found the end").replace("Expected: ", "expected ").replace("found: ", "found ");
        let bytes = at.map(|from| {
            let rest = self.text.get(from..).unwrap_or("");
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            from..from + word.max(1)
        });
        self.error_at(bytes, format!("this is no SQL expression: {what}"))
    }
}
