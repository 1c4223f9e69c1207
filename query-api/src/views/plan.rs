//! A view's plan: range, condition, finality, groups, order, columns; all as typed expressions.

use crate::problem::Problem;
use crate::relations::Relation;
use crate::relations::provider::{AsOf, RelationTable};
use crate::sql::{errors, guard};
use crate::state::Freshness;
use crate::views::request::{OrderBy, ViewRequest};
use crate::views::{cursor, rollup};
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, ExprSchemable, SortExpr, cast};
use datafusion::prelude::{SessionContext, ident, lit};
use quikflow_topics::ids::EventTime;
use std::sync::Arc;

/// Most tokens of a `where`.
const TOKENS: usize = 400;

/// A plan that has not run.
pub struct ViewPlan {
    /// The rows; sorted where `sorted`.
    pub frame: DataFrame,
    /// The whole order, the key included.
    pub order: Vec<OrderBy>,
    /// The columns of the answer.
    pub output: Vec<String>,
    /// Where the answer stands, once it runs.
    pub as_of: AsOf,
}

fn planning(error: &DataFusionError) -> Problem {
    errors::planning(error)
}

/// Plans a request. JSON is always ordered, since it is paged; a stream only where an order, a limit
/// or a cursor asks for it, so that it needs no memory.
///
/// # Errors
/// 422 naming the parameter or column.
pub async fn plan(
    context: &SessionContext,
    relation: &Relation,
    request: &ViewRequest,
    freshness: Freshness,
    ordered: bool,
) -> Result<ViewPlan, Problem> {
    let info = &relation.info;
    let as_of = AsOf::default();
    let table = Arc::new(RelationTable::new(relation.clone(), as_of.clone()));
    let mut frame = context.read_table(table).map_err(|e| planning(&e))?;
    if let Some(time) = &info.time_column {
        if let Some(from) = request.from {
            frame = frame.filter(ident(time).gt_eq(time_literal(from))).map_err(|e| planning(&e))?;
        }
        if let Some(to) = request.to {
            frame = frame.filter(ident(time).lt(time_literal(to))).map_err(|e| planning(&e))?;
        }
    }
    if let Some(text) = &request.filter {
        let condition = condition(context, text, frame.schema())?;
        frame = frame.filter(condition).map_err(|e| where_error(&e))?;
    }
    let mut only_final = info.final_column.clone().filter(|_| !request.include_open);
    if let Some(column) = &only_final {
        frame = frame.filter(ident(column).is_true()).map_err(|e| planning(&e))?;
    }
    let mut key = info.key.clone();
    let mut output: Vec<String> = match &request.columns {
        Some(columns) => columns.clone(),
        None => info.schema.fields().iter().map(|f| f.name().clone()).collect(),
    };
    if !request.group_by.is_empty() {
        whole_windows(context, relation, request).await?;
        let grouping = rollup::grouping(info, request, freshness.closed.or(freshness.watermark))?;
        if grouping.needed {
            frame = frame.aggregate(grouping.keys, grouping.aggregates).map_err(|e| planning(&e))?;
        }
        frame = frame.select(grouping.output).map_err(|e| planning(&e))?;
        if freshness == Freshness::default() {
            only_final = None; // unknown how far windows are closed: `final` of a bucket is null
        }
        if let Some(column) = &only_final {
            frame = frame.filter(ident(column).is_true()).map_err(|e| planning(&e))?;
        }
        key = request.group_by.iter().map(|g| g.column.clone()).collect();
        output = grouping.names;
    }
    let order = whole_order(&frame, request, info.time_column.as_deref(), key)?;
    if let Some(text) = &request.cursor {
        let after = cursor::condition(text, &order, frame.schema().as_arrow(), request.fingerprint(&info.name))?;
        frame = frame.filter(after).map_err(|e| planning(&e))?;
    }
    let mut columns = output.clone();
    if ordered {
        columns.extend(order.iter().map(|o| o.column.clone()).filter(|c| !output.contains(c)));
    }
    frame = frame.select(columns.iter().map(ident)).map_err(|e| planning(&e))?;
    if ordered {
        let sort = |o: &OrderBy| SortExpr::new(ident(&o.column), !o.descending, false);
        frame = frame.sort(order.iter().map(sort).collect()).map_err(|e| planning(&e))?;
    }
    Ok(ViewPlan { frame, order, output, as_of })
}

fn time_literal(time: EventTime) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(time.0), Some("UTC".into())))
}

fn where_error(error: &DataFusionError) -> Problem {
    Problem::field("where", "expression", errors::message(error))
}

/// Reads a condition over the view's columns.
fn condition(context: &SessionContext, text: &str, schema: &DFSchema) -> Result<Expr, Problem> {
    guard::check_tokens("where", text, TOKENS)?;
    let expr = context.parse_sql_expr(text, schema).map_err(|e| where_error(&e))?;
    let foreign = |e: &Expr| {
        matches!(
            e,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
                | Expr::Placeholder(_)
                | Expr::Unnest(_)
                | Expr::Alias(_)
        )
    };
    if expr.exists(|e| Ok(foreign(e))).map_err(|e| where_error(&e))? {
        let message = "`where` is a condition on one row: no subquery, aggregate, window or placeholder";
        return Err(Problem::field("where", "expression", message));
    }
    match expr.get_type(schema).map_err(|e| where_error(&e))? {
        DataType::Boolean => Ok(expr),
        other => Err(Problem::field("where", "type", format!("`where` must be true or false, this is {other}"))),
    }
}

/// The order asked for, then the time and the key, so that it is total.
fn whole_order(frame: &DataFrame, request: &ViewRequest, time: Option<&str>, key: Vec<String>) -> Result<Vec<OrderBy>, Problem> {
    let schema = frame.schema().as_arrow().clone();
    let mut order = request.order_by.clone();
    for by in &order {
        if schema.field_with_name(&by.column).is_err() {
            let message = format!("`{}` is not in the grouped answer, it cannot order it", by.column);
            return Err(Problem::field("order_by", "unknown_column", message));
        }
    }
    let mut last: Vec<String> = Vec::new();
    if let Some(time) = time
        && key.iter().any(|k| k == time)
    {
        last.push(time.to_owned());
    }
    match key.is_empty() {
        false => last.extend(key),
        true => last.extend(schema.fields().iter().map(|f| f.name().clone())),
    }
    for column in last {
        let orderable = schema.field_with_name(&column).is_ok_and(|f| !f.data_type().is_nested());
        if orderable && !order.iter().any(|o| o.column == column) {
            order.push(OrderBy { column, descending: false });
        }
    }
    Ok(order)
}

/// A bucket may not cut a window in two: its size is a multiple of the window's.
async fn whole_windows(context: &SessionContext, relation: &Relation, request: &ViewRequest) -> Result<(), Problem> {
    let info = &relation.info;
    let Some(time) = &info.time_column else { return Ok(()) };
    let Some(bucket) = request.group_by.iter().find(|g| g.column == *time).and_then(|g| g.bucket) else { return Ok(()) };
    if info.schema.field_with_name(rollup::WINDOW_END).is_err() {
        return Ok(());
    }
    let table = Arc::new(RelationTable::new(relation.clone(), AsOf::default()));
    let size = cast(ident(rollup::WINDOW_END), DataType::Int64) - cast(ident(time), DataType::Int64);
    let frame = context.read_table(table).and_then(|f| f.select([size.alias("size")])).and_then(|f| f.limit(0, Some(1)));
    let batches = frame.map_err(|e| planning(&e))?.collect().await.map_err(|e| errors::execution(&e))?;
    let size = batches.iter().find(|b| b.num_rows() > 0).map(|b| b.column(0).as_primitive::<Int64Type>().value(0));
    match size {
        Some(size) if size > 0 && bucket % size != 0 => {
            let micros = |n: i64| std::time::Duration::from_micros(u64::try_from(n).unwrap_or(0));
            let message = format!(
                "buckets of {} would cut the windows of `{}`, which are {} long: take a multiple",
                quikflow_topics::units::show_duration(micros(bucket)),
                info.name,
                quikflow_topics::units::show_duration(micros(size))
            );
            Err(Problem::field("group_by", "bucket", message))
        }
        _ => Ok(()),
    }
}
