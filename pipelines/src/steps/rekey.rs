//! `rekey`: sets the record's key.

use super::common::{Mistakes, batch, columns_of, evaluate, put_column, to_type, with_column};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::datatypes::{DataType, Field};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::schema;
use std::collections::BTreeSet;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "rekey",
    summary: "sets the record's key",
    doc: "The key decides the partition in the topic that is written, so records of one key keep their order \
          there, and a sink's key must determine it (R13). Numbers and times become their text; null leaves \
          the record without a key. A record for which the expression fails becomes a dead letter.",
    fields: &[FieldDoc { name: "rekey", ty: "sql", required: true, doc: "The new key, as text." }],
    example: r#"
[[topology]]
name = "messages-by-author"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { rekey = "payload.userId" },
  { map = { author = "key", message = "payload.messageId" } },
]
to = "analytics.messages-by-author"

[[test]]
topology = "messages-by-author"
given = [ { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } } ]
expect = [ { author = "u1", message = "m1" } ]
"#,
    stateful: false,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let key = mistakes.ok(ctx.expr(ctx.value));
    if let Some(key) = &key
        && key.data_type.is_nested()
    {
        mistakes.push(ctx.value.error(format!("a key is text, not {}", key.data_type)).help("name one text, number or time"));
    }
    match key {
        Some(key) if !mistakes.any() => {
            let input = &ctx.inputs[0];
            let replaced = input.arrow.index_of(schema::KEY).is_ok();
            let (arrow, at) = with_column(&input.arrow, Field::new(schema::KEY, DataType::Utf8, true));
            let output = StreamSchema { arrow, kind: input.kind };
            Ok(Box::new(Rekey { name: ctx.name.clone(), key, at, replaced, output }))
        }
        _ => mistakes.into_error(),
    }
}

#[derive(Clone)]
struct Rekey {
    name: String,
    key: Expr,
    at: usize,
    replaced: bool,
    output: StreamSchema,
}

impl Step for Rekey {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of([&self.key]))
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn key_columns(&self, _: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        let own = std::iter::once(schema::KEY.to_owned()).collect();
        vec![own, self.key.columns.iter().cloned().collect()]
    }

    fn key_texts(&self, _: &BTreeSet<String>) -> BTreeSet<String> {
        let text = self.key.column().filter(|_| self.key.data_type == DataType::Utf8);
        std::iter::once(schema::KEY.to_owned()).chain(text.cloned()).collect()
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("key = {}", self.key.text)]
    }
}

impl Stateless for Rekey {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let (rows, values) = evaluate(&self.name, &[&self.key], rows, emit)?;
        emit.counts.applied += rows.batch.num_rows() as u64;
        let mut columns = rows.batch.columns().to_vec();
        put_column(&mut columns, self.at, self.replaced, to_type(&self.name, &values[0], &DataType::Utf8)?);
        emit.push(Rows { source: rows.source, batch: batch(&self.name, &self.output.arrow, columns)? });
        Ok(())
    }
}
