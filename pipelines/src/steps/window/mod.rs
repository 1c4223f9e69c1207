//! `window`: aggregates by group and window of event time.
//!
//! * [`assign`]: which window a time belongs to, when it closes
//! * [`calls`]: what the aggregates need and who computes them
//! * [`prepare`]: keys and arguments, where the rows are
//! * [`apply`]: the open windows
//! * [`groups`]: (window, key) → slot
//! * [`state`]: the stored form
//! * [`halves`]: divided among processes

mod apply;
mod assign;
mod calls;
mod groups;
mod halves;
mod prepare;
mod state;
#[cfg(test)]
mod tests;

use super::common::{Mistakes, columns_of, even, micros, plain, text_of_one};
use super::halves::halves;
use super::keys::{KeyCodec, can_be_key};
use super::map::column_name;
use crate::expr::{AggregateCall, Expr, StreamSchema};
use crate::operator::Operator;
use crate::step::{FieldDoc, Step, StepContext, StepKind};
use apply::Apply;
use arrow::datatypes::{DataType, Field, Schema};
use assign::Windows;
use calls::{Calls, Planned};
use prepare::Prepare;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::declaration::{Node, Table};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::schema;
use quikflow_topics::units::show_duration;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The kind.
pub(crate) static KIND: StepKind = StepKind {
    name: "window",
    summary: "aggregates by group and window of event time",
    doc: "A tumbling window [start, end) takes the records whose event time lies in it. At the end of each epoch every \
          group that changed is emitted once, with its values so far; when the watermark reaches end + grace the window \
          closes and each of its groups is emitted once more with `final` true, then forgotten. Rows are upserts by group \
          and window: `final` wins, else the higher `epoch`.\n\n\
          The answer does not depend on the order of records within the declared disorder, on batches, on restarts or on the \
          number of workers. A record is late if the watermark of its own source partition, as it was just before it, has \
          reached end + grace, or if the window has closed; it is counted as `late` and copied whole to the late topic.\n\n\
          `count`, `count(distinct)` (128-bit hashes), `sum`, `avg` (both exact; a sum of whole numbers that does not fit \
          into 64 bits is null), `min`, `max`, `first_value`, `last_value` (by event time) are exact; `approx_distinct` has \
          a standard error of 0.81 %, `approx_percentile_cont` a relative error of at most 1 % (values that stand alone in \
          their part of the scale are exact). Nulls are not counted. Each takes `filter (where …)`. A record for which an \
          expression fails becomes a dead letter.",
    fields: &[
        FieldDoc {
            name: "window",
            ty: "{ tumbling = duration, grace = duration, offset = duration }",
            required: true,
            doc: "`tumbling`: the size; `grace`: how long after its end a window takes late-comers (0 if not given); `offset`: moves the windows' starts (\"-1h\" moves them back).",
        },
        FieldDoc {
            name: "group_by",
            ty: "table<sql>",
            required: false,
            doc: "The group columns; without them all records are one group.",
        },
        FieldDoc {
            name: "aggregate",
            ty: "table<sql>",
            required: true,
            doc: "The aggregate columns, each one call such as `count(*)`.",
        },
    ],
    example: r#"
[[topology]]
name = "messages-a-minute"
from = "QuikApp.messages"
steps = [
  { filter = "type = 'MESSAGE_SENT'" },
  { window = { tumbling = "1m", grace = "30s" }, group_by = { channel = "payload.channelId" }, aggregate = { messages = "count(*)", authors = "count(distinct payload.userId)" }, name = "minute" },
]
to = "analytics.messages-a-minute"

[[test]]
topology = "messages-a-minute"
given = [
  { at = "12:00:01", type = "MESSAGE_SENT", payload = { messageId = "m1", channelId = "c1", userId = "u1", content = "hello" } },
  { at = "12:00:59", type = "MESSAGE_SENT", payload = { messageId = "m2", channelId = "c1", userId = "u1", content = "again" } },
  { at = "12:01:00", type = "MESSAGE_SENT", payload = { messageId = "m3", channelId = "c1", userId = "u2", content = "next" } },
]
expect = [
  { channel = "c1", window_start = "12:00:00", messages = 2, authors = 1 },
  { channel = "c1", window_start = "12:01:00", messages = 1, authors = 1 },
]
"#,
    stateful: true,
    plan,
};

/// Columns that every window writes.
const OWN: [&str; 4] = ["window_start", "window_end", "final", "epoch"];

fn plan(ctx: &mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>> {
    let mut mistakes = Mistakes::default();
    mistakes.fields(ctx, &KIND);
    let windows = windows(ctx.value, &mut mistakes);
    let mut names: Vec<String> = OWN.map(str::to_owned).to_vec();
    let mut groups = Vec::new();
    if let Some(table) = mistakes.optional(ctx.table, "group_by", |node| node.table()) {
        for (name, _, node) in columns(table, &mut names, &mut mistakes) {
            let Some(expr) = mistakes.ok(ctx.expr(node)) else { continue };
            match can_be_key(&expr.data_type) {
                true => groups.push((name.clone(), expr)),
                false => mistakes.push(node.error(format!("cannot group by {}", expr.data_type)).help("explode the list first")),
            }
        }
    }
    let mut planned: Vec<Planned> = Vec::new();
    if let Some(table) = mistakes.required(ctx.table, "aggregate", |node| node.table()) {
        for (name, _, node) in columns(table, &mut names, &mut mistakes) {
            if let Some(call) = mistakes.ok(AggregateCall::compile(node, &ctx.inputs[0])) {
                planned.extend(mistakes.ok(Planned::new(name, call, node)));
            }
        }
    }
    match windows {
        Some(windows) if !mistakes.any() => Ok(Box::new(WindowStep::new(ctx.name.clone(), windows, groups, planned))),
        _ => mistakes.into_error(),
    }
}

fn columns<'a>(
    table: &'a Table,
    names: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Vec<&'a (String, std::ops::Range<usize>, Node)> {
    for (name, span, _) in &table.entries {
        let mistake = match column_name(name) {
            Err(message) => Some(message),
            Ok(()) if names.contains(name) => {
                Some(format!("the column `{name}` is there twice (a window writes {})", OWN.join(", ")))
            }
            Ok(()) => None,
        };
        if let Some(message) = mistake {
            mistakes.push(Diagnostic::error(&table.file, span.clone(), message).help("give it another name"));
        }
        names.push(name.clone());
    }
    table.entries.iter().collect()
}

fn windows(node: &Node, mistakes: &mut Mistakes) -> Option<Windows> {
    let table = mistakes.ok(node.table())?;
    mistakes.unknown(table, "`window`", &["tumbling", "grace", "offset"]);
    let size = mistakes.required(table, "tumbling", |node| match micros(node)? {
        0 => Err(node.error("a window must last some time").help("such as \"1m\"")),
        size => Ok(size),
    });
    let grace = mistakes.optional(table, "grace", micros).unwrap_or(0);
    let offset = mistakes.optional(table, "offset", signed).unwrap_or(0);
    Some(Windows { size: size?, offset, grace })
}

/// A duration that may have a minus in front, in microseconds.
fn signed(node: &Node) -> Result<i64, Diagnostic> {
    let text = node.str()?;
    let (sign, length) = text.trim().strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let length = quikflow_topics::units::parse_duration(length).map_err(|message| node.error(message))?;
    i64::try_from(length.as_micros()).map(|m| sign * m).map_err(|_| node.error("too long a duration"))
}

#[derive(Clone)]
struct WindowStep {
    name: String,
    windows: Windows,
    groups: Vec<(String, Expr)>,
    calls: Calls,
    codec: KeyCodec,
    output: StreamSchema,
}

impl WindowStep {
    fn new(name: String, windows: Windows, groups: Vec<(String, Expr)>, planned: Vec<Planned>) -> WindowStep {
        let codec = KeyCodec::new(groups.iter().map(|(_, expr)| expr.data_type.clone()).collect());
        let calls = Calls::new(groups.iter().map(|(_, expr)| expr.clone()).collect(), planned);
        let mut fields: Vec<Field> = crate::operator::ORIGIN_COLUMNS.map(schema::system_field).to_vec();
        fields.push(schema::system_field(schema::KEY));
        fields.push(Field::new("window_start", schema::time_type(), true));
        fields.push(Field::new("window_end", schema::time_type(), true));
        fields.extend(groups.iter().map(|(name, expr)| Field::new(name, expr.data_type.clone(), true)));
        fields.extend(calls.planned.iter().map(|call| Field::new(&call.name, call.data_type(), true)));
        fields.push(Field::new("final", DataType::Boolean, true));
        fields.push(Field::new("epoch", DataType::Int64, true));
        let output = StreamSchema { arrow: Arc::new(Schema::new(fields)), kind: TopicKind::Rows };
        WindowStep { name, windows, groups, calls, codec, output }
    }

    fn prepare(&self) -> Prepare {
        Prepare::new(&self.name, self.calls.exprs.clone(), self.codec.clone(), self.calls.arguments.clone())
    }

    fn apply(&self) -> Apply {
        let accumulators = self.calls.accumulators();
        Apply::new(&self.name, self.windows, self.codec.clone(), accumulators, self.output.arrow.clone())
    }
}

impl Step for WindowStep {
    fn outputs(&self) -> Vec<StreamSchema> {
        vec![self.output.clone()]
    }

    fn build(&self) -> Operator {
        Operator::Keyed { prepare: vec![Box::new(self.prepare())], apply: Box::new(self.apply()) }
    }

    fn fingerprint(&self) -> Option<String> {
        let Windows { size, offset, grace } = self.windows;
        let groups = self.groups.iter().map(|(name, expr)| format!("{name}={} {}", even(&expr.text), expr.data_type));
        let calls = self.calls.planned.iter().map(|call| format!("{}={} {}", call.name, even(&call.call.text), call.data_type()));
        Some(format!(
            "window tumbling {size} offset {offset} grace {grace} group by [{}] aggregate [{}]",
            groups.collect::<Vec<_>>().join(", "),
            calls.collect::<Vec<_>>().join(", "),
        ))
    }

    fn reads(&self, _: usize) -> Option<Vec<String>> {
        Some(columns_of(&self.calls.exprs))
    }

    fn state_columns(&self) -> Option<Vec<BTreeSet<String>>> {
        Some(vec![plain(self.groups.iter().map(|(_, expr)| expr))])
    }

    fn halves(&self, shares: u32) -> Option<(Arc<dyn Step>, Arc<dyn Step>)> {
        Some(halves(self, shares))
    }

    fn passes_through(&self) -> bool {
        false
    }

    fn can_be_late(&self) -> bool {
        true
    }

    fn key_columns(&self, _: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        let own = std::iter::once(schema::KEY.to_owned()).collect();
        vec![own, self.groups.iter().map(|(name, _)| name.clone()).collect()]
    }

    fn key_texts(&self, _: &BTreeSet<String>) -> BTreeSet<String> {
        text_of_one(&self.groups)
    }

    fn describe(&self) -> Vec<String> {
        let length = |micros: i64| show_duration(Duration::from_micros(micros.unsigned_abs()));
        let Windows { size, offset, grace } = self.windows;
        let sign = if offset < 0 { "-" } else { "" };
        let shift = if offset == 0 { String::new() } else { format!(", starting {sign}{} off the hour", length(offset)) };
        let mut lines =
            vec![format!("tumbling windows of {} by event time{shift}; closed {} after their end", length(size), length(grace))];
        match self.groups.is_empty() {
            true => lines.push("one group: one worker does all of it".to_owned()),
            false => {
                lines.extend(self.groups.iter().map(|(name, expr)| format!("key {name} = {} ({})", expr.text, expr.data_type)))
            }
        }
        lines.extend(self.calls.planned.iter().map(|call| format!("{} = {}: {}", call.name, call.call.text, call.cost())));
        lines
            .push("emits changed groups at each epoch's end, and each group once more when its window closes (final)".to_owned());
        lines
    }
}
