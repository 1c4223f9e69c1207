//! A declaration file as a tree that knows where each value stands, and readers that turn what is
//! missing, mistyped or unknown into [`Diagnostic`]s.

use crate::diagnostics::{Diagnostic, SourceFile, closest};
use crate::units;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Bytes in the file.
    pub span: Range<usize>,
    /// The file.
    pub file: Arc<SourceFile>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// A TOML date or time, as written.
    Datetime(String),
    /// `[ … ]`
    Array(Vec<Node>),
    /// `{ … }` or `[table]`
    Table(Table),
}

/// A table's entries in the order of the file.
#[derive(Clone, Debug)]
pub struct Table {
    /// Name, where the name stands, value.
    pub entries: Vec<(String, Range<usize>, Node)>,
    /// Where the table stands.
    pub span: Range<usize>,
    /// The file.
    pub file: Arc<SourceFile>,
}

/// Reads a file's text.
///
/// # Errors
/// Every syntax error.
pub fn parse(file: &Arc<SourceFile>) -> Result<Table, Vec<Diagnostic>> {
    let (table, errors) = DeTable::parse_recoverable(&file.text);
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(|e| Diagnostic::error(file, e.span().unwrap_or(0..0), e.message().lines().next().unwrap_or("").to_owned()))
            .collect());
    }
    Ok(table_from(table.get_ref(), table.span(), file))
}

fn table_from(table: &DeTable<'_>, span: Range<usize>, file: &Arc<SourceFile>) -> Table {
    let mut entries: Vec<_> =
        table.iter().map(|(key, value)| (key.get_ref().to_string(), key.span(), node_from(value, file))).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    Table { entries, span, file: file.clone() }
}

fn node_from(value: &Spanned<DeValue<'_>>, file: &Arc<SourceFile>) -> Node {
    let span = value.span();
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Float(f64::NAN), Value::Integer)
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(value) => Value::Datetime(value.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| node_from(item, file)).collect()),
        DeValue::Table(table) => Value::Table(table_from(table, span.clone(), file)),
    };
    Node { value, span, file: file.clone() }
}

impl Node {
    /// An error at this value.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.file, self.span.clone(), message)
    }

    fn expected(&self, what: &str) -> Diagnostic {
        let found = match &self.value {
            Value::String(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Datetime(_) => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        };
        self.error(format!("expected {what}, found {found}"))
    }

    /// Text.
    ///
    /// # Errors
    /// Anything else. The same holds for the readers below.
    pub fn str(&self) -> Result<&str, Diagnostic> {
        if let Value::String(text) = &self.value { Ok(text) } else { Err(self.expected("text")) }
    }

    /// A whole number.
    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn int(&self) -> Result<i64, Diagnostic> {
        if let Value::Integer(number) = self.value { Ok(number) } else { Err(self.expected("a whole number")) }
    }

    /// A whole number that is not negative.
    #[allow(clippy::missing_errors_doc)]
    pub fn uint(&self) -> Result<u64, Diagnostic> {
        u64::try_from(self.int()?).map_err(|_| self.error("expected a number of 0 or more"))
    }

    /// A number.
    #[allow(clippy::missing_errors_doc)]
    pub fn float(&self) -> Result<f64, Diagnostic> {
        match self.value {
            Value::Integer(number) => Ok(number as f64),
            Value::Float(number) => Ok(number),
            _ => Err(self.expected("a number")),
        }
    }

    /// true or false.
    #[allow(clippy::missing_errors_doc)]
    pub fn bool(&self) -> Result<bool, Diagnostic> {
        if let Value::Bool(value) = self.value { Ok(value) } else { Err(self.expected("true or false")) }
    }

    /// A list.
    #[allow(clippy::missing_errors_doc)]
    pub fn array(&self) -> Result<&[Node], Diagnostic> {
        if let Value::Array(items) = &self.value { Ok(items) } else { Err(self.expected("a list")) }
    }

    /// A list of text; a lone text is a list of one.
    #[allow(clippy::missing_errors_doc)]
    pub fn strings(&self) -> Result<Vec<String>, Diagnostic> {
        match &self.value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|item| item.str().map(str::to_owned)).collect(),
            _ => Err(self.expected("text or a list of text")),
        }
    }

    /// A table.
    #[allow(clippy::missing_errors_doc)]
    pub fn table(&self) -> Result<&Table, Diagnostic> {
        if let Value::Table(table) = &self.value { Ok(table) } else { Err(self.expected("a table")) }
    }

    /// `30s`, `1m`, `30d`.
    #[allow(clippy::missing_errors_doc)]
    pub fn duration(&self) -> Result<Duration, Diagnostic> {
        units::parse_duration(self.str()?).map_err(|message| self.error(message))
    }

    /// `10MiB`.
    #[allow(clippy::missing_errors_doc)]
    pub fn size(&self) -> Result<u64, Diagnostic> {
        units::parse_size(self.str()?).map_err(|message| self.error(message))
    }
}

impl Table {
    /// The value called `name`.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries.iter().find(|(entry, _, _)| entry == name).map(|(_, _, node)| node)
    }

    /// Where the name `name` stands; the table's own place where it is absent.
    pub fn name_span(&self, name: &str) -> Range<usize> {
        self.entries.iter().find(|(entry, _, _)| entry == name).map_or_else(|| self.span.clone(), |(_, span, _)| span.clone())
    }

    /// The value called `name`.
    ///
    /// # Errors
    /// "missing field `name`", at the table.
    pub fn require(&self, name: &str) -> Result<&Node, Diagnostic> {
        self.get(name).ok_or_else(|| self.error(format!("missing field `{name}`")))
    }

    /// An error at the table's first line.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.file, self.span.clone(), message)
    }

    /// One error for each entry that is not in `allowed`, with what is allowed.
    pub fn unknown_fields(&self, what: &str, allowed: &[&str]) -> Vec<Diagnostic> {
        self.entries
            .iter()
            .filter(|(name, _, _)| !allowed.contains(&name.as_str()))
            .map(|(name, span, _)| {
                let error = Diagnostic::error(&self.file, span.clone(), format!("unknown field `{name}` in {what}"));
                match closest(name, allowed.iter().copied()) {
                    Some(near) => error.help(format!("did you mean `{near}`? available: {}", allowed.join(", "))),
                    None => error.help(format!("available: {}", allowed.join(", "))),
                }
            })
            .collect()
    }
}
