//! `branch`: each record goes the first way whose condition it meets.

use super::common::{Mistakes, broken, columns_of, condition, evaluate, is_true, take};
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::{BooleanArray, UInt32Array};
use quikflow_topics::diagnostics::Diagnostic;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "branch",
    summary: "each record goes the first way whose condition it meets",
    doc: "The last step of a topology. Ways are tried in their order; a way without `when` takes the rest. \
          A record that meets none is counted as `filtered`. A way may have steps of its own before its topic. \
          A record for which a condition fails becomes a dead letter with cause `expression`.",
    fields: &[FieldDoc {
        name: "branch",
        ty: "list<{ when = sql, steps = steps, to = text }>",
        required: true,
        doc: "The ways: `when` (the condition; absent in the last one for the rest), `steps` (may be absent), `to` (the topic).",
    }],
    example: r#"
[[topology]]
name = "by-length"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { map = { message = "payload.messageId", length = "character_length(payload.content)" } },
  { branch = [ { when = "length > 3", to = "analytics.long" }, { to = "analytics.short" } ] },
]

[[test]]
topology = "by-length"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } },
  { at = "12:00:02", type = "MESSAGE_SENT", payload = { messageId = "m2", channelId = "c1", userId = "u1", content = "hi" } },
]
expect_to = "analytics.long"
expect = [ { message = "m1" } ]
"#,
    stateful: false,
    plan,
};

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let mut ways = Vec::new();
    let nodes = mistakes.ok(ctx.value.array()).unwrap_or(&[]);
    if nodes.is_empty() && !mistakes.any() {
        mistakes.push(
            ctx.value
                .error("a branch needs at least one way")
                .help("write [ { when = \"sql\", to = \"topic\" }, { to = \"rest\" } ]"),
        );
    }
    for (index, node) in nodes.iter().enumerate() {
        let Some(table) = mistakes.ok(node.table()) else { continue };
        mistakes.unknown(table, "a way of a `branch`", &["when", "steps", "to"]);
        match table.get("when") {
            Some(when) => {
                if let Some(when) = mistakes.ok(condition(ctx, 0, when)) {
                    ways.push(Some(when));
                }
            }
            None if index + 1 == nodes.len() => ways.push(None),
            None => {
                mistakes.push(node.error("only the last way may take the rest").help("add `when`, or move this way to the end"))
            }
        }
    }
    match mistakes.any() {
        true => mistakes.into_error(),
        false => Ok(Box::new(Branch { name: ctx.name.clone(), stream: ctx.inputs[0].clone(), ways })),
    }
}

#[derive(Clone)]
struct Branch {
    name: String,
    stream: StreamSchema,
    ways: Vec<Option<Expr>>,
}

impl Step for Branch {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.stream.clone(); self.ways.len()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of(self.ways.iter().flatten()))
    }

    fn passes_through(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        let way = |(port, when): (usize, &Option<Expr>)| match when {
            Some(when) => format!("way {port}: where {}", when.text),
            None => format!("way {port}: the rest"),
        };
        self.ways.iter().enumerate().map(way).collect()
    }
}

impl Stateless for Branch {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let exprs: Vec<&Expr> = self.ways.iter().flatten().collect();
        let (rows, values) = evaluate(&self.name, &exprs, rows, emit)?;
        let mut conditions: Vec<BooleanArray> = Vec::with_capacity(values.len());
        for value in &values {
            conditions.push(is_true(&self.name, value)?);
        }
        let total = u32::try_from(rows.batch.num_rows()).map_err(|e| broken(&self.name, e))?;
        let mut taken: Vec<Vec<u32>> = vec![Vec::new(); self.ways.len()];
        for row in 0..total {
            let way = conditions.iter().position(|met| met.value(row as usize));
            match way.or_else(|| (conditions.len() < self.ways.len()).then_some(conditions.len())) {
                Some(way) => taken[way].push(row),
                None => emit.counts.filtered += 1,
            }
        }
        for (port, indices) in taken.into_iter().enumerate().filter(|(_, indices)| !indices.is_empty()) {
            emit.counts.applied += indices.len() as u64;
            let batch = match indices.len() == total as usize {
                true => rows.batch.clone(),
                false => take(&self.name, &rows.batch, &UInt32Array::from(indices))?,
            };
            emit.push_to(port, Rows { source: rows.source, batch });
        }
        Ok(())
    }
}
