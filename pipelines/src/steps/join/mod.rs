//! `join`: adds columns of a table's rows, as they were at the record's time (R8).
//!
//! * [`table`]: the versions of the table's rows
//! * [`apply`]: the keyed operator: waits, looks up, keeps state

mod apply;
mod table;
#[cfg(test)]
mod tests;

use super::common::{Mistakes, columns_of, even, micros, plain, with_column};
use super::dedupe::key_list;
use super::keyed::KeyPrepare;
use super::keys::{KeyCodec, can_be_key};
use super::map::column_name;
use crate::expr::{Expr, StreamSchema};
use crate::operator::{KEY_HASH, Operator};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use apply::{Apply, Place};
use arrow::datatypes::Field;
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::units::show_duration;
use std::collections::BTreeSet;
use std::time::Duration;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "join",
    summary: "adds columns of a table's rows, as they were at the record's time",
    doc: "The topic `table` is read as a table: its newest record for a `table_key` (within a `table_on`) at or before the \
          record's event time is the row; one for which `table_delete` is true takes the row away. Each row whose `table_on` equals \
          the record's `on` gives one record with the `select` columns added. Null matches nothing.\n\n\
          A record waits until the table's watermark has passed its event time, or for `max_wait` by the clock, whichever comes \
          first; that a wait was over is recorded with the epoch, so a replay joins the same. A table without any record is not \
          waited for. Waiting records are part of the state. Versions are kept for `history` behind the watermark; a record that is \
          older than that is late.",
    fields: &[FieldDoc {
        name: "join",
        ty: "{ table = text, on = sql, table_on = sql, table_key = list<sql>, table_delete = sql, select = table<sql>, kind = text, max_wait = duration, history = duration }",
        required: true,
        doc: "`table`: a topic; `on`, `table_on`: what must be equal; `table_key`: what else tells the table's rows of one `table_on` apart (absent: one row each); `table_delete`: which records delete; `select`: the columns added; `kind`: \"inner\" (records without a match are filtered) or \"left\" (they go on with nulls); `max_wait`: 1s if not given; `history`: 1h if not given.",
    }],
    example: r#"
[[topology]]
name = "recipients"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { join = { table = "QuikApp.members", on = "payload.channelId", table_on = "payload.channelId", table_key = ["payload.userId"], table_delete = "type = 'MEMBER_REMOVED'", select = { recipient = "payload.userId" }, kind = "inner" }, name = "members" },
  { map = { message = "payload.messageId", recipient = "recipient" } },
]
to = "notify.of-members"

[[test]]
topology = "recipients"
given = [
  { at = "12:00:00", type = "MEMBER_ADDED", payload = { channelId = "c1", userId = "u1" } },
  { at = "12:00:00", type = "MEMBER_ADDED", payload = { channelId = "c1", userId = "u2" } },
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } },
  { at = "12:00:02", type = "MEMBER_REMOVED", payload = { channelId = "c1", userId = "u2" } },
  { at = "12:00:03", type = "MESSAGE_SENT", payload = { messageId = "m2", channelId = "c1", userId = "u1", content = "again" } },
]
expect = [ { message = "m1", recipient = "u1" }, { message = "m1", recipient = "u2" }, { message = "m2", recipient = "u1" } ]
"#,
    stateful: true,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let table = ctx.value.table().map_err(|mistake| vec![mistake])?;
    let allowed = ["table", "on", "table_on", "table_key", "table_delete", "select", "kind", "max_wait", "history"];
    mistakes.unknown(table, "`join`", &allowed);
    let topic = mistakes.required(table, "table", |node| node.str().map(str::to_owned));
    if ctx.inputs.len() < 2 {
        return Err(vec![table.error("`table` must name a topic")]);
    }
    let on = mistakes.required(table, "on", |node| ctx.expr_on(0, node));
    let table_on = mistakes.required(table, "table_on", |node| ctx.expr_on(1, node));
    if let (Some(on), Some(table_on), Some(node)) = (&on, &table_on, table.get("on")) {
        if on.data_type != table_on.data_type {
            mistakes.push(
                node.error(format!("`on` is {} and `table_on` is {}", on.data_type, table_on.data_type)).help("cast one of them"),
            );
        } else if !can_be_key(&on.data_type) {
            mistakes.push(node.error(format!("cannot join on {}", on.data_type)));
        }
    }
    let row_key = table.get("table_key").map(|node| key_list(ctx, 1, node, &mut mistakes)).unwrap_or_default();
    let delete = mistakes.optional(table, "table_delete", |node| Expr::compile_bool(node, &ctx.inputs[1]));
    let mut select: Vec<(String, Expr)> = Vec::new();
    if let Some(columns) = mistakes.required(table, "select", |node| node.table()) {
        for (name, span, node) in &columns.entries {
            if let Err(message) = column_name(name) {
                mistakes.push(Diagnostic::error(&columns.file, span.clone(), message));
            }
            let Some(expr) = mistakes.ok(ctx.expr_on(1, node)) else { continue };
            match can_be_key(&expr.data_type) {
                true => select.push((name.clone(), expr)),
                false => mistakes.push(
                    node.error(format!("cannot select {}", expr.data_type)).help("make it text, such as array_to_string(x, ',')"),
                ),
            }
        }
    }
    let left = mistakes.optional(table, "kind", |node| match node.str()? {
        "inner" => Ok(false),
        "left" => Ok(true),
        other => Err(node.error(format!("unknown kind of join `{other}`")).help("available: inner, left")),
    });
    let max_wait = mistakes.optional(table, "max_wait", micros).unwrap_or(1_000_000);
    let history = mistakes.optional(table, "history", micros).unwrap_or(3_600_000_000);
    match (topic, on, table_on) {
        (Some(topic), Some(on), Some(table_on)) if !mistakes.any() => {
            let mut output = ctx.inputs[0].clone();
            let mut places = Vec::new();
            for (name, expr) in &select {
                let replaced = output.arrow.index_of(name).is_ok();
                let (arrow, at) = with_column(&output.arrow, Field::new(name, expr.data_type.clone(), true));
                output.arrow = arrow;
                places.push(Place { at, replaced });
            }
            let sources = ctx.sources.get(1).into_iter().flatten().map(|(index, _)| *index).collect();
            Ok(Box::new(Join {
                name: ctx.name.clone(),
                topic,
                inputs: [ctx.inputs[0].clone(), ctx.inputs[1].clone()],
                on,
                table_on,
                row_key,
                delete,
                select,
                left: left.unwrap_or(false),
                max_wait,
                history,
                output,
                places,
                sources,
            }))
        }
        _ => mistakes.into_error(),
    }
}

struct Join {
    name: String,
    topic: String,
    inputs: [StreamSchema; 2],
    on: Expr,
    table_on: Expr,
    row_key: Vec<Expr>,
    delete: Option<Expr>,
    select: Vec<(String, Expr)>,
    left: bool,
    max_wait: i64,
    history: i64,
    output: StreamSchema,
    places: Vec<Place>,
    /// Where the table's rows come from.
    sources: Vec<usize>,
}

impl Step for Join {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        let types = |exprs: &[Expr]| KeyCodec::new(exprs.iter().map(|expr| expr.data_type.clone()).collect());
        let select: Vec<Expr> = self.select.iter().map(|(_, expr)| expr.clone()).collect();
        let computed: Vec<Expr> = self.row_key.iter().chain(&select).chain(&self.delete).cloned().collect();
        let stream = KeyPrepare::new(&self.name, &self.inputs[0].arrow, true, vec![self.on.clone()], Vec::new(), !self.left);
        let table = KeyPrepare::new(&self.name, &self.inputs[1].arrow, false, vec![self.table_on.clone()], computed, true);
        let apply = Apply::new(apply::Config {
            step: self.name.clone(),
            row_key: types(&self.row_key),
            select: types(&select),
            delete: self.delete.is_some(),
            left: self.left,
            max_wait: self.max_wait,
            history: self.history,
            null_key: types(std::slice::from_ref(&self.on)).null_key(),
            prepared: stream.schema().clone(),
            output: self.output.arrow.clone(),
            places: self.places.clone(),
            sources: self.sources.clone(),
        });
        debug_assert!(stream.schema().index_of(KEY_HASH).is_ok());
        Operator::Keyed { prepare: vec![Box::new(stream), Box::new(table)], apply: Box::new(apply) }
    }

    fn fingerprint(&self) -> Option<String> {
        let text = |expr: &Expr| format!("{} {}", even(&expr.text), expr.data_type);
        let list = |exprs: &[Expr]| exprs.iter().map(text).collect::<Vec<_>>().join(", ");
        let select: Vec<String> = self.select.iter().map(|(name, expr)| format!("{name}={}", text(expr))).collect();
        Some(format!(
            "join {} on {} = {} key [{}] delete [{}] select [{}] history {}",
            self.topic,
            text(&self.on),
            text(&self.table_on),
            list(&self.row_key),
            self.delete.as_ref().map(text).unwrap_or_default(),
            select.join(", "),
            self.history,
        ))
    }

    fn reads(&self, input: usize) -> Option<Vec<String>> {
        Some(match input {
            0 => columns_of([&self.on]),
            _ => columns_of(
                [&self.table_on].into_iter().chain(&self.row_key).chain(&self.delete).chain(self.select.iter().map(|(_, e)| e)),
            ),
        })
    }

    fn state_columns(&self) -> Option<Vec<BTreeSet<String>>> {
        Some(vec![plain([&self.on]), plain([&self.table_on])])
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn can_be_late(&self) -> bool {
        true
    }

    /// The stream's, but for columns in whose place a selected one stands.
    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        let replaced = |set: &&BTreeSet<String>| self.select.iter().any(|(name, _)| set.contains(name));
        input.iter().filter(|set| !replaced(set)).cloned().collect()
    }

    fn describe(&self) -> Vec<String> {
        let length = |micros: i64| show_duration(Duration::from_micros(micros.unsigned_abs()));
        let rows = if self.row_key.is_empty() { "one row each" } else { "any number of rows each" };
        vec![
            format!(
                "{} join with {} on {} = {}, {rows}",
                if self.left { "left" } else { "inner" },
                self.topic,
                self.on.text,
                self.table_on.text
            ),
            format!("waits for the table's watermark, at most {}", length(self.max_wait)),
            format!("state: the table's rows, their versions of the last {} and the records that wait", length(self.history)),
        ]
    }
}
