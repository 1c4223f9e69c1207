//! `explode`: one row for each element of a list.

use super::common::{Mistakes, ORIGINS, broken, columns_of, evaluate, put_column, stored_type, take, to_type, with_column};
use super::map::column_name;
use crate::expr::{Expr, StreamSchema};
use crate::operator::{Emit, Operator, OperatorError, Rows, Stateless};
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use arrow::array::{Array, LargeListArray, ListArray, UInt32Array};
use arrow::datatypes::{DataType, Field};
use quikflow_topics::diagnostics::Diagnostic;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "explode",
    summary: "one row for each element of a list",
    doc: "The other columns are repeated beside each element, in the list's order. A record whose list is \
          null or empty yields nothing and is counted as `filtered`; null elements are kept. A record for \
          which the expression fails becomes a dead letter.",
    fields: &[
        FieldDoc { name: "explode", ty: "sql list", required: true, doc: "The list." },
        FieldDoc { name: "as", ty: "text", required: true, doc: "The column that holds the element." },
    ],
    example: r#"
[[topology]]
name = "mentions"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { map = { message = "payload.messageId", mentions = "payload.mentions" } },
  { explode = "mentions", as = "recipient" },
  { map = { message = "message", recipient = "recipient" } },
]
to = "analytics.mentions"

[[test]]
topology = "mentions"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello", mentions = ["u2", "u3"] } },
  { at = "12:00:02", type = "MESSAGE_SENT", payload = { messageId = "m2", channelId = "c1", userId = "u1", content = "nobody" } },
]
expect = [ { message = "m1", recipient = "u2" }, { message = "m1", recipient = "u3" } ]
"#,
    stateful: false,
    plan,
};

/// Rows of one batch that an explosion yields at most.
const MOST_ROWS: usize = 65_536;

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let list = mistakes.ok(ctx.expr(ctx.value));
    let column = mistakes.required(ctx.table, "as", |node| {
        let name = node.str()?;
        column_name(name).map_err(|message| node.error(message))?;
        Ok(name.to_owned())
    });
    let item = list.as_ref().and_then(|list| match &list.data_type {
        DataType::List(item) | DataType::LargeList(item) => {
            mistakes.ok(stored_type(item.data_type()).map_err(|message| ctx.value.error(message)))
        }
        other => {
            mistakes.push(
                ctx.value
                    .error(format!("`explode` needs a list, this is {other}"))
                    .help("name a list<string> field, or use string_to_array(…)"),
            );
            None
        }
    });
    match (list, column, item) {
        (Some(list), Some(column), Some(item)) if !mistakes.any() => {
            let input = &ctx.inputs[0];
            let carried = carried(ctx);
            let fields = Arc::new(input.arrow.project(&carried).map_err(|e| vec![ctx.value.error(e.to_string())])?);
            let replaced = fields.index_of(&column).is_ok();
            let (arrow, at) = with_column(&fields, Field::new(&column, item.clone(), true));
            let output = StreamSchema { arrow, kind: input.kind };
            Ok(Box::new(Explode { name: ctx.name.clone(), list, column, item, carried, at, replaced, output }))
        }
        _ => mistakes.into_error(),
    }
}

/// Places of the input's columns that are read later: a text repeated beside each of its words would
/// be copied as often as it has words.
fn carried(ctx: &StepContext<'_>) -> Vec<usize> {
    let fields = ctx.inputs[0].arrow.fields();
    let wanted = |at: &usize| *at < ORIGINS || ctx.wanted.is_none_or(|wanted| wanted.contains(fields[*at].name()));
    (0..fields.len()).filter(wanted).collect()
}

#[derive(Clone)]
struct Explode {
    name: String,
    list: Expr,
    column: String,
    item: DataType,
    carried: Vec<usize>,
    at: usize,
    replaced: bool,
    output: StreamSchema,
}

impl Step for Explode {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Stateless(Box::new(self.clone()))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of([&self.list]))
    }

    fn passes_through(&self) -> bool {
        true
    }

    /// The input's, but for the column in whose place the elements stand.
    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        input.iter().filter(|set| !set.contains(&self.column)).cloned().collect()
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("one row an element of {} as {}", self.list.text, self.column)]
    }
}

impl Stateless for Explode {
    fn on_rows(&mut self, rows: Rows, emit: &mut Emit) -> Result<(), OperatorError> {
        emit.counts.input += rows.batch.num_rows() as u64;
        let (rows, values) = evaluate(&self.name, &[&self.list], rows, emit)?;
        let list = &values[0];
        let mut parents: Vec<u32> = Vec::new();
        let mut elements: Vec<u32> = Vec::new();
        let mut each = |row: usize, from: usize, to: usize| -> Result<(), OperatorError> {
            if from == to || list.is_null(row) {
                emit.counts.filtered += 1;
                return Ok(());
            }
            emit.counts.applied += 1;
            let row = u32::try_from(row).map_err(|e| broken(&self.name, e))?;
            for element in from..to {
                parents.push(row);
                elements.push(u32::try_from(element).map_err(|e| broken(&self.name, e))?);
            }
            Ok(())
        };
        let items = if let Some(lists) = list.as_any().downcast_ref::<ListArray>() {
            for row in 0..lists.len() {
                each(row, lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize)?;
            }
            lists.values()
        } else if let Some(lists) = list.as_any().downcast_ref::<LargeListArray>() {
            for row in 0..lists.len() {
                each(row, lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize)?;
            }
            lists.values()
        } else {
            return Err(broken(&self.name, format!("`{}` gave {}, not a list", self.list.text, list.data_type())));
        };
        if parents.is_empty() {
            return Ok(());
        }
        let carried = rows.batch.project(&self.carried).map_err(|e| broken(&self.name, e))?;
        for (parents, elements) in parents.chunks(MOST_ROWS).zip(elements.chunks(MOST_ROWS)) {
            let elements = UInt32Array::from(elements.to_vec());
            let items = arrow::compute::take(items, &elements, None).map_err(|e| broken(&self.name, e))?;
            let repeated = take(&self.name, &carried, &UInt32Array::from(parents.to_vec()))?;
            let mut columns = repeated.columns().to_vec();
            put_column(&mut columns, self.at, self.replaced, to_type(&self.name, &items, &self.item)?);
            emit.push(Rows { source: rows.source, batch: super::common::batch(&self.name, &self.output.arrow, columns)? });
        }
        Ok(())
    }
}
