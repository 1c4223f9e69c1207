//! Groups of a view's rows (R21): a column adds up, or has a smallest or largest, only where the view
//! declares so; distinct counts and percentiles of groups cannot be had from those of the parts, and
//! asking for them is an error that names the column.

use crate::problem::{FieldError, Problem};
use crate::views::request::{GroupBy, ViewRequest};
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::functions_aggregate::expr_fn::{bool_and, max, min, sum};
use datafusion::logical_expr::{Expr, cast};
use datafusion::prelude::{ident, lit};
use quikflow_sinks::store::TableInfo;
use quikflow_topics::ids::EventTime;
use quikflow_topics::schema::time_type;

/// The column that ends a window.
pub const WINDOW_END: &str = "window_end";
/// 2001-01-01T00:00:00Z, a Monday: buckets of weeks begin on Mondays, all others at round times.
const ORIGIN: i64 = 978_307_200_000_000;

/// How the groups are made.
pub struct Grouping {
    /// The groups.
    pub keys: Vec<Expr>,
    /// What is computed of each; empty when each group is one row already.
    pub aggregates: Vec<Expr>,
    /// The columns of the answer, in order, over keys and aggregates.
    pub output: Vec<Expr>,
    /// Their names.
    pub names: Vec<String>,
    /// Whether an aggregation is needed at all.
    pub needed: bool,
}

/// Columns that say where a row stands and not what was measured.
fn is_system(name: &str, info: &TableInfo) -> bool {
    name == WINDOW_END || name == "epoch" || name.starts_with('_') || info.final_column.as_deref() == Some(name)
}

fn int(column: &str) -> Expr {
    cast(ident(column), DataType::Int64)
}

/// The start of the bucket that a time lies in, as the time type.
pub fn bucket_start(column: &str, bucket: i64) -> Expr {
    let past = (int(column) - lit(ORIGIN)) % lit(bucket);
    let past = (past + lit(bucket)) % lit(bucket);
    cast(int(column) - past, time_type())
}

/// Decides the grouping of a request.
///
/// # Errors
/// 422 naming each column that does not roll up.
pub fn grouping(info: &TableInfo, request: &ViewRequest, closed: Option<EventTime>) -> Result<Grouping, Problem> {
    let groups = &request.group_by;
    let grouped = |name: &str| groups.iter().any(|g| g.column == name);
    let needed = groups.iter().any(|g| g.bucket.is_some()) || !info.key.iter().all(|k| grouped(k)) || info.key.is_empty();
    let all: Vec<&str> = info.schema.fields().iter().map(|f| f.name().as_str()).collect();
    let wanted: Vec<&str> = match &request.columns {
        Some(columns) => columns.iter().map(String::as_str).collect(),
        None => all,
    };
    let key = |name: &str| info.key.iter().any(|k| k == name);
    let measures: Vec<&str> =
        wanted.iter().copied().filter(|n| !grouped(n) && !is_system(n, info) && (request.columns.is_some() || !key(n))).collect();

    let mut keys = Vec::new();
    let mut output = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for group in groups {
        let expr = match group.bucket {
            Some(bucket) => bucket_start(&group.column, bucket).alias(&group.column),
            None => ident(&group.column),
        };
        keys.push(expr);
        output.push(ident(&group.column));
        names.push(group.column.clone());
    }
    let mut aggregates = Vec::new();
    if let Some(window) = window_end(info, groups, needed, &mut aggregates) {
        output.push(window.alias(WINDOW_END));
        names.push(WINDOW_END.to_owned());
    }
    let mut refused = Vec::new();
    for name in measures {
        if !needed {
            output.push(ident(name));
        } else {
            let aggregate = match info.rollup.get(name).map(String::as_str) {
                Some("sum") => sum(ident(name)),
                Some("min") => min(ident(name)),
                Some("max") => max(ident(name)),
                _ => {
                    refused.push(no_rollup(info, name));
                    continue;
                }
            };
            aggregates.push(aggregate.alias(name));
            output.push(ident(name));
        }
        names.push(name.to_owned());
    }
    if !refused.is_empty() {
        return Err(Problem::fields(refused));
    }
    if let Some(name) = &info.final_column {
        if needed {
            aggregates.push(bool_and(ident(name)).alias(name));
        }
        output.push(is_final(name, groups, closed).alias(name));
        names.push(name.clone());
    }
    Ok(Grouping { keys, aggregates, output, names, needed })
}

fn no_rollup(info: &TableInfo, column: &str) -> FieldError {
    let able: Vec<&str> = info.rollup.keys().map(String::as_str).collect();
    let hint = match able.is_empty() {
        true => "no column of this view rolls up".to_owned(),
        false => format!("ask for columns={}", able.join(",")),
    };
    let message = format!(
        "`{column}` of `{}` does not roll up: its value for a group cannot be had from the values of the parts; {hint}",
        info.name
    );
    FieldError { path: column.to_owned(), rule: "no_rollup".to_owned(), message, ..FieldError::default() }
}

/// The end of a group's window: where the group has a window at all.
fn window_end(info: &TableInfo, groups: &[GroupBy], needed: bool, aggregates: &mut Vec<Expr>) -> Option<Expr> {
    info.schema.field_with_name(WINDOW_END).ok()?;
    let time = info.time_column.as_deref()?;
    let group = groups.iter().find(|g| g.column == time)?;
    if groups.iter().any(|g| g.column == WINDOW_END) {
        return None;
    }
    match group.bucket {
        Some(bucket) => Some(cast(int(time) + lit(bucket), time_type())),
        None => {
            if needed {
                aggregates.push(max(ident(WINDOW_END)).alias(WINDOW_END));
            }
            Some(ident(WINDOW_END))
        }
    }
}

/// A bucket is final when all its rows are, and no window in it can still come.
fn is_final(name: &str, groups: &[GroupBy], closed: Option<EventTime>) -> Expr {
    let bucketed = groups.iter().find_map(|g| g.bucket.map(|bucket| (g.column.as_str(), bucket)));
    match (bucketed, closed) {
        (Some((column, bucket)), Some(closed)) => ident(name).and((int(column) + lit(bucket)).lt_eq(lit(closed.0))),
        (Some(_), None) => lit(ScalarValue::Boolean(None)),
        (None, _) => ident(name),
    }
}
