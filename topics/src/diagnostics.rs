//! Mistakes in a declaration file, shown the way rustc shows one: file, line, caret, remedy.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file can run; something is probably not meant.
    Warning,
    /// The file cannot run.
    Error,
}

/// A declaration file's name and text.
#[derive(Debug)]
pub struct SourceFile {
    /// As the user named it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl SourceFile {
    /// A file's text under the name the user gave.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<SourceFile> {
        Arc::new(SourceFile { name: name.into(), text: text.into() })
    }

    /// Line (from 1), column (from 1, in characters) and the line's text at byte `at`.
    pub fn locate(&self, at: usize) -> (usize, usize, &str) {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let (before, after) = self.text.split_at(at);
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let end = after.find('\n').map_or(self.text.len(), |i| at + i);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let column = before.get(start..).unwrap_or("").chars().count() + 1;
        (line, column, self.text.get(start..end).unwrap_or(""))
    }
}

/// One mistake: what, where, and what to do about it.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file it is in.
    pub file: Arc<SourceFile>,
    /// Byte range in the file that the caret marks.
    pub span: Range<usize>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to do: "available: a, b, c", "did you mean x?".
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(file: &Arc<SourceFile>, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Error, file: file.clone(), span, message: message.into(), help: None }
    }

    /// A warning at `span`.
    pub fn warning(file: &Arc<SourceFile>, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(file, span, message) }
    }

    /// The same with a remedy.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column, text) = self.file.locate(self.span.start);
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let gutter = line.to_string().len();
        let marked = self.file.text.get(self.span.clone()).unwrap_or("");
        let width = marked.lines().next().unwrap_or("").chars().count().max(1);
        writeln!(f, "{severity}: {}", self.message)?;
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.file.name)?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line} | {text}")?;
        write!(f, "{:gutter$} | {:pad$}{}", "", "", "^".repeat(width), pad = column - 1)?;
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// The closest of `names` to `word`, if it is close enough to be a slip of the fingers.
pub fn closest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(d, name)| *d <= 1 + name.chars().count() / 4)
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// Levenshtein distance, in characters, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cb, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = substituted.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_marked_word() {
        let file = SourceFile::new("t.toml", "a = 1\nsteps = [ { fliter = \"x\" } ]\n");
        let at = file.text.find("fliter").unwrap();
        let shown = Diagnostic::error(&file, at..at + 6, "unknown step fliter").help("did you mean filter?").to_string();
        assert_eq!(
            shown,
            "error: unknown step fliter\n --> t.toml:2:13\n  |\n2 | steps = [ { fliter = \"x\" } ]\n  |             ^^^^^^\n  = help: did you mean filter?"
        );
    }

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        assert_eq!(closest("fliter", ["filter", "window"]), Some("filter"));
        assert_eq!(closest("zzz", ["filter", "window"]), None);
    }
}
