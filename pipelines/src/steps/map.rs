//! `map`: computes new columns.

use super::common::{Mistakes, ORIGINS, batch, columns_of, evaluate, has, stored_type, to_type};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::schema;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "map",
    summary: "computes new columns",
    doc: "Each entry is a new column and its SQL expression. The stream is a stream of rows from here on: \
          columns are named bare. Without `keep` only the new columns (and the record's key) go on; with it \
          the old ones stay, and a new column of an old one's name takes its place. All expressions see the \
          old columns. A record for which an expression fails becomes a dead letter with cause `expression`. \
          Types are those that topics store: text, int, float, bool, timestamp, list<string>; narrower numbers widen.",
    fields: &[
        FieldDoc { name: "map", ty: "table<sql>", required: true, doc: "The new columns." },
        FieldDoc { name: "keep", ty: "bool", required: false, doc: "Whether the old columns stay; no if not given." },
    ],
    example: r#"
[[topology]]
name = "message-lengths"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { map = { message = "payload.messageId", length = "character_length(payload.content)" } },
  { map = { long = "length > 4" }, keep = true },
]
to = "analytics.message-lengths"

[[test]]
topology = "message-lengths"
given = [ { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } } ]
expect = [ { message = "m1", length = 5, long = true } ]
"#,
    stateful: false,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let keep = mistakes.optional(ctx.table, "keep", |node| node.bool()).unwrap_or(false);
    let stream = &ctx.inputs[0];
    let mut columns = Vec::new();
    if let Some(table) = mistakes.ok(ctx.value.table()) {
        if table.entries.is_empty() {
            mistakes.push(ctx.value.error("a map needs at least one column").help("write { map = { name = \"sql\" } }"));
        }
        for (name, span, node) in &table.entries {
            if let Err(message) = column_name(name) {
                mistakes.push(Diagnostic::error(&table.file, span.clone(), message));
            }
            if let Some(expr) = mistakes.ok(ctx.expr(node)) {
                match stored_type(&expr.data_type) {
                    Ok(ty) => columns.push((name.clone(), expr, ty)),
                    Err(message) => mistakes.push(node.error(message)),
                }
            }
        }
    }
    if mistakes.any() {
        return mistakes.into_error();
    }
    let kept: Vec<usize> = match keep {
        true => (0..stream.arrow.fields().len())
            .filter(|i| *i < ORIGINS || !columns.iter().any(|(n, _, _)| n == stream.arrow.field(*i).name()))
            .collect(),
        false => (0..ORIGINS).chain(stream.arrow.index_of(schema::KEY).ok()).collect(),
    };
    let mut fields: Vec<FieldRef> = kept.iter().map(|i| stream.arrow.fields()[*i].clone()).collect();
    fields.extend(columns.iter().map(|(name, _, ty)| Arc::new(Field::new(name, ty.clone(), true))));
    let output = StreamSchema { arrow: Arc::new(Schema::new(fields)), kind: TopicKind::Rows };
    Ok(Box::new(Map { name: ctx.name.clone(), has_key: has(stream, schema::KEY), keep, kept, columns, output }))
}

/// Whether a column may be called so.
pub(crate) fn column_name(name: &str) -> Result<(), String> {
    match name.starts_with('_') {
        true => Err(format!("a column's name cannot begin with an underscore, as `{name}` does: those are the system's")),
        false if name.is_empty() => Err("a column needs a name".to_owned()),
        false => Ok(()),
    }
}

#[derive(Clone)]
struct Map {
    name: String,
    has_key: bool,
    keep: bool,
    kept: Vec<usize>,
    columns: Vec<(String, Expr, DataType)>,
    output: StreamSchema,
}

impl Step for Map {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        let mut names = columns_of(self.columns.iter().map(|(_, expr, _)| expr));
        if self.has_key && !names.iter().any(|name| name == schema::KEY) {
            names.push(schema::KEY.to_owned());
        }
        Some(names)
    }

    fn passes_through(&self) -> bool {
        self.keep
    }

    /// A set stands for its copies: each of its columns must go on under some name.
    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        let copies = |column: &String| {
            let copied = self.columns.iter().filter(|(_, expr, _)| expr.column() == Some(column)).map(|(name, _, _)| name);
            let kept = self.output.arrow.index_of(column).is_ok() && !self.columns.iter().any(|(name, _, _)| name == column);
            kept.then_some(column).into_iter().chain(copied).cloned().collect::<Vec<String>>()
        };
        let mut sets = Vec::new();
        for set in input {
            let mut ways = vec![BTreeSet::new()];
            for column in set {
                let copies = copies(column);
                let longer = ways.iter().flat_map(|way: &BTreeSet<String>| {
                    copies.iter().map(move |copy| way.iter().cloned().chain([copy.clone()]).collect())
                });
                ways = longer.take(64).collect();
            }
            sets.extend(ways);
        }
        sets
    }

    fn describe(&self) -> Vec<String> {
        self.columns.iter().map(|(name, expr, ty)| format!("{name} = {} ({ty})", expr.text)).collect()
    }
}

impl Stateless for Map {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let exprs: Vec<&Expr> = self.columns.iter().map(|(_, expr, _)| expr).collect();
        let (rows, values) = evaluate(&self.name, &exprs, rows, emit)?;
        emit.counts.applied += rows.batch.num_rows() as u64;
        let mut columns: Vec<ArrayRef> = self.kept.iter().map(|i| rows.batch.column(*i).clone()).collect();
        for (value, (_, _, ty)) in values.iter().zip(&self.columns) {
            columns.push(to_type(&self.name, value, ty)?);
        }
        emit.push(Rows { source: rows.source, batch: batch(&self.name, &self.output.arrow, columns)? });
        Ok(())
    }
}
