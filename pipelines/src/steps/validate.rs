//! `validate`: records that break a rule become dead letters.

use super::common::{Mistakes, Origin, broken, columns_of, condition, evaluate, is_true, row_json};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{DeadRow, Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::compute::filter_record_batch;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::diagnostics::Diagnostic;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "validate",
    summary: "records that break a rule become dead letters",
    doc: "A record for which the rule is false or null becomes a dead letter with cause `validation` and \
          the step's `code`; the others go on. Nothing is lost: the dead letter holds the whole record as \
          canonical JSON and can be replayed into this step. Where the rule reads one field only, the dead \
          letter names that field's path.",
    fields: &[
        FieldDoc { name: "validate", ty: "sql", required: true, doc: "The rule that every record must meet." },
        FieldDoc {
            name: "code",
            ty: "text",
            required: false,
            doc: "The dead letter's code, for machines; `rule_broken` if not given.",
        },
        FieldDoc {
            name: "message",
            ty: "text",
            required: false,
            doc: "The dead letter's message, for people; names the rule if not given.",
        },
    ],
    example: r#"
[[topology]]
name = "checked-messages"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { validate = "character_length(trim(payload.content)) > 0", code = "blank", message = "a message needs text" },
  { map = { message = "payload.messageId" } },
]
to = "analytics.checked-messages"

[[test]]
topology = "checked-messages"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } },
  { at = "12:00:02", type = "MESSAGE_SENT", payload = { messageId = "m2", channelId = "c1", userId = "u1", content = "  " } },
]
expect = [ { message = "m1" } ]
expect_dead = 1
"#,
    stateful: false,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let rule = mistakes.ok(condition(ctx, 0, ctx.value));
    let code = mistakes.optional(ctx.table, "code", |node| {
        let code = node.str()?;
        match !code.is_empty() && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            true => Ok(code.to_owned()),
            false => Err(node
                .error("a code is one word for machines")
                .help("write small letters, digits and underscores, such as `too_old`")),
        }
    });
    let message = mistakes.optional(ctx.table, "message", |node| node.str().map(str::to_owned));
    match rule {
        Some(rule) if !mistakes.any() => {
            let stream = ctx.inputs[0].clone();
            let path = match rule.columns.as_slice() {
                [one] if !one.starts_with('_') && stream.kind == TopicKind::Events => Some(format!("payload.{one}")),
                [one] if !one.starts_with('_') => Some(one.clone()),
                _ => None,
            };
            Ok(Box::new(Validate {
                name: ctx.name.clone(),
                code: code.unwrap_or_else(|| "rule_broken".to_owned()),
                message: message.unwrap_or_else(|| format!("the record does not meet `{}`", rule.text)),
                path,
                stream,
                rule,
            }))
        }
        _ => mistakes.into_error(),
    }
}

#[derive(Clone)]
struct Validate {
    name: String,
    stream: StreamSchema,
    rule: Expr,
    code: String,
    message: String,
    path: Option<String>,
}

impl Step for Validate {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.stream.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of([&self.rule]))
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("dead letter `{}` unless {}", self.code, self.rule.text)]
    }
}

impl Stateless for Validate {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let (rows, values) = evaluate(&self.name, &[&self.rule], rows, emit)?;
        let good = is_true(&self.name, &values[0])?;
        let kept = good.true_count();
        emit.counts.applied += kept as u64;
        if kept == good.len() {
            emit.push(rows);
            return Ok(());
        }
        let origin = Origin::of(&self.name, &rows.batch)?;
        for row in (0..good.len()).filter(|row| !good.value(*row)) {
            let (partition, offset) = origin.place(row);
            emit.counts.dead += 1;
            emit.dead.push(DeadRow {
                source: rows.source,
                partition,
                offset,
                cause: "validation",
                code: self.code.clone(),
                path: self.path.clone(),
                message: self.message.clone(),
                row: emit.made.then(|| row_json(&rows.batch, row)),
            });
        }
        let batch = filter_record_batch(&rows.batch, &good).map_err(|e| broken(&self.name, e))?;
        emit.push(Rows { source: rows.source, batch });
        Ok(())
    }
}
