//! `filter`: keeps the records for which a condition is true.

use super::common::{Mistakes, columns_of, condition, evaluate, is_true};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::compute::filter_record_batch;
use quikflow_topics::diagnostics::Diagnostic;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "filter",
    summary: "keeps the records for which a condition is true",
    doc: "Records for which the condition is false or null are left out and counted as `filtered`. \
          A record for which it cannot be evaluated (a division by zero, a bad cast) becomes a dead \
          letter with cause `expression`; its neighbours go on.",
    fields: &[FieldDoc { name: "filter", ty: "sql", required: true, doc: "The condition." }],
    example: r#"
[[topology]]
name = "only-sent"
from = "QuikApp.messages"
steps = [ { filter = "type = 'MESSAGE_SENT'" }, { map = { channel = "payload.channelId" } } ]
to = "analytics.only-sent"

[[test]]
topology = "only-sent"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } },
  { at = "12:00:02", type = "MESSAGE_DELETED", payload = { messageId = "m1", channelId = "c1", userId = "u1" } },
]
expect = [ { channel = "c1" } ]
"#,
    stateful: false,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let condition = mistakes.ok(condition(ctx, 0, ctx.value));
    match condition {
        Some(condition) if !mistakes.any() => {
            Ok(Box::new(Filter { name: ctx.name.clone(), stream: ctx.inputs[0].clone(), condition }))
        }
        _ => mistakes.into_error(),
    }
}

#[derive(Clone)]
struct Filter {
    name: String,
    stream: StreamSchema,
    condition: Expr,
}

impl Step for Filter {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.stream.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of([&self.condition]))
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("keeps records where {}", self.condition.text)]
    }
}

impl Stateless for Filter {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let (rows, values) = evaluate(&self.name, &[&self.condition], rows, emit)?;
        let keep = is_true(&self.name, &values[0])?;
        let kept = keep.true_count();
        emit.counts.applied += kept as u64;
        emit.counts.filtered += (rows.batch.num_rows() - kept) as u64;
        if kept == rows.batch.num_rows() {
            emit.push(rows);
        } else if kept > 0 {
            let batch = filter_record_batch(&rows.batch, &keep).map_err(|e| super::common::broken(&self.name, e))?;
            emit.push(Rows { source: rows.source, batch });
        }
        Ok(())
    }
}
