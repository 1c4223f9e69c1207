//! The audit log: listed, looked up, searched; and the compliance counts.

use super::{answer, id};
use crate::formats::Format;
use crate::params::Params;
use crate::problem::Problem;
use crate::relations::provider::{AsOf, RelationTable};
use crate::sql::runtime::Lane;
use crate::sql::{errors, session};
use crate::state::QueryState;
use crate::views::request::ViewRequest;
use crate::views::route;
use arrow::datatypes::DataType;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use datafusion::functions::expr_fn::{contains, lower};
use datafusion::logical_expr::{SortExpr, cast};
use datafusion::prelude::{ident, lit};
use serde_json::{Value, json};
use std::sync::Arc;

const TABLE: &str = "audit_log";
/// Columns by which the log can be listed.
const FILTERS: [&str; 6] = ["type", "userId", "severity", "ip", "action", "resource"];

/// `GET /api/v1/audit/logs`: newest first.
pub(crate) async fn logs(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    let known = ["type", "userId", "severity", "ip", "action", "resource", "from", "to", "limit", "cursor"];
    let params = Params::read(query.as_deref(), &known)?;
    let (from, to) = params.range()?;
    let limit = params.number("limit", 1, 1_000)?.unwrap_or(100);
    let schema = state.relations.view(TABLE)?.info.schema;
    let mut equals = Vec::new();
    for name in FILTERS {
        let Some(value) = params.text(name) else { continue };
        let column = [name, "user"].into_iter().find(|c| (*c == name || name == "userId") && schema.index_of(c).is_ok());
        let column =
            column.ok_or_else(|| Problem::field(name, "unknown_column", format!("`{name}` is not kept in the audit log")))?;
        equals.push((column.to_owned(), value.to_owned()));
    }
    Ok(answer(state.read.documents.list(TABLE, &equals, from, to, params.text("cursor"), limit).await?))
}

/// `GET /api/v1/audit/logs/{id}`
pub(crate) async fn one(
    State(state): State<QueryState>,
    Path(entry): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let found = state.read.documents.get(TABLE, id(&entry)?).await?;
    found.map(axum::Json).ok_or_else(|| Problem::not_found("there is no such audit entry"))
}

/// `GET /api/v1/audit/logs/search?q=`: entries that hold the text in any column, newest first.
pub(crate) async fn search(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["q", "from", "to", "limit"])?;
    let text = params.required("q")?.to_lowercase();
    let (from, to) = params.range()?;
    let limit = params.number("limit", 1, 1_000)?.unwrap_or(100);
    let relation = state.relations.view(TABLE)?;
    let (limits, time) = (state.limits.clone(), state.limits.sql_time);
    let rows = state
        .runtime
        .run(Lane::Exports, time, async move {
            let info = relation.info.clone();
            let context = session::empty(&limits)?;
            let table = Arc::new(RelationTable::new(relation, AsOf::default()));
            let mut frame = context.read_table(table).map_err(|e| errors::planning(&e))?;
            let texts = info.schema.fields().iter().filter(|f| *f.data_type() == DataType::Utf8);
            let holds = texts.map(|f| contains(lower(ident(f.name())), lit(text.clone()))).reduce(|a, b| a.or(b));
            frame = frame.filter(holds.unwrap_or_else(|| lit(false))).map_err(|e| errors::planning(&e))?;
            if let Some(column) = &info.time_column {
                let micros = || cast(ident(column), DataType::Int64);
                if let Some(from) = from {
                    frame = frame.filter(micros().gt_eq(lit(from.0))).map_err(|e| errors::planning(&e))?;
                }
                if let Some(to) = to {
                    frame = frame.filter(micros().lt(lit(to.0))).map_err(|e| errors::planning(&e))?;
                }
                let mut order = vec![SortExpr::new(ident(column), false, false)];
                order.extend(info.key.iter().map(|k| SortExpr::new(ident(k), true, false)));
                frame = frame.sort(order).map_err(|e| errors::planning(&e))?;
            }
            let frame = frame.limit(0, Some(limit)).map_err(|e| errors::planning(&e))?;
            let found = crate::sql::route::collect(frame, limit, limits.result_bytes).await?;
            let (mut out, mut count) = (String::from("{\"items\":["), 0);
            for batch in &found.batches {
                crate::formats::rows(batch, count > 0, &mut out).map_err(|e| errors::execution(&e.into()))?;
                count += batch.num_rows();
            }
            out.push_str("]}");
            Ok(out)
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], rows).into_response())
}

/// `GET /api/v1/audit/reports/compliance`: audit events a day by severity and kind, and their totals.
pub(crate) async fn compliance(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["from", "to", "include_open"])?;
    let (from, to) = params.range()?;
    let include_open = params.flag("include_open")?;
    let relation = state.relations.view("compliance")?;
    let request = |group_by: Vec<crate::views::request::GroupBy>, columns: Option<Vec<String>>| ViewRequest {
        from,
        to,
        filter: None,
        group_by,
        columns,
        order_by: Vec::new(),
        limit: Some(10_000),
        cursor: None,
        include_open,
        format: Format::Json,
    };
    let by = |column: &str| crate::views::request::GroupBy { column: column.to_owned(), bucket: None };
    let days = route::page(&state, relation.clone(), request(Vec::new(), None)).await?;
    let sums = request(vec![by("severity"), by("kind")], Some(vec!["count".to_owned()]));
    let totals = route::page(&state, relation, sums).await?;
    let read = |page: &route::Page| serde_json::from_str::<Value>(&page.rows_json()?).map_err(Problem::internal);
    let whole: Value = serde_json::from_str(&days.json()?).map_err(Problem::internal)?;
    Ok(axum::Json(json!({
        "from": params.text("from"),
        "to": params.text("to"),
        "days": whole["rows"],
        "totals": read(&totals)?,
        "complete": days.cursor.is_none(),
        "watermark": whole["watermark"],
        "as_of": whole["as_of"],
    })))
}
