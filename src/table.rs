//! Plain tables for the terminal: columns padded, numbers to the right.

use crate::out;
use serde_json::Value;

/// A table of text.
#[derive(Debug, Default)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Table {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A table of JSON objects: columns in the order in which their names first appear.
    pub(crate) fn of_objects(items: &[Value]) -> Table {
        let mut head: Vec<String> = Vec::new();
        for object in items.iter().filter_map(Value::as_object) {
            for name in object.keys() {
                if !head.contains(name) {
                    head.push(name.clone());
                }
            }
        }
        let mut table = Table::new(head.clone());
        for item in items {
            table.row(head.iter().map(|name| cell(item.get(name))));
        }
        table
    }

    /// The table as lines, the last without a newline; the head in bold where a terminal looks on.
    pub(crate) fn render(&self) -> String {
        let plain = self.plain();
        match plain.split_once('\n') {
            Some((head, rows)) => format!("{}\n{rows}", out::bold(head)),
            None => out::bold(&plain),
        }
    }

    /// The same without colours.
    pub(crate) fn plain(&self) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|h| width(h)).collect();
        for row in &self.rows {
            for (cell, width_so_far) in row.iter().zip(&mut widths) {
                *width_so_far = (*width_so_far).max(width(cell));
            }
        }
        let numeric: Vec<bool> = (0..widths.len())
            .map(|column| {
                self.rows.iter().any(|r| is_number(r, column)) && self.rows.iter().all(|r| is_number_or_empty(r, column))
            })
            .collect();
        let line = |cells: &[String]| {
            let shown: Vec<String> = cells
                .iter()
                .zip(&widths)
                .zip(&numeric)
                .map(|((cell, width_wanted), right)| {
                    let pad = " ".repeat(width_wanted.saturating_sub(width(cell)));
                    if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
                })
                .collect();
            shown.join("  ").trim_end().to_owned()
        };
        let mut lines = vec![line(&self.head)];
        lines.extend(self.rows.iter().map(|row| line(row)));
        lines.join("\n")
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn is_number(row: &[String], column: usize) -> bool {
    row.get(column).is_some_and(|cell| !cell.is_empty() && cell.replace(',', "").parse::<f64>().is_ok())
}

fn is_number_or_empty(row: &[String], column: usize) -> bool {
    row.get(column).is_none_or(String::is_empty) || is_number(row, column)
}

/// A JSON value as a cell: text bare, nothing for null, control characters made visible, cut at 80 characters.
pub(crate) fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let mut shown: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_text_left() {
        let items =
            [serde_json::json!({"channel": "general", "messages": 12}), serde_json::json!({"channel": "x", "messages": 3})];
        let shown = Table::of_objects(&items).render();
        assert_eq!(shown, "channel  messages\ngeneral        12\nx               3");
    }

    #[test]
    fn long_cells_and_line_breaks_are_tamed() {
        let long = serde_json::json!("a\nb".repeat(60));
        let shown = cell(Some(&long));
        assert!(shown.ends_with('…') && !shown.contains('\n'), "{shown}");
    }
}
