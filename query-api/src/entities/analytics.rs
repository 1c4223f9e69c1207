//! Metrics, and a dashboard composed of the views there are.

use crate::formats::Format;
use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use crate::views::request::{OrderBy, ViewRequest};
use crate::views::route;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use quikflow_topics::ids::EventTime;
use serde_json::{Map, Value, json};

/// View, and the columns by which its newest or greatest rows come first.
const PANELS: [(&str, &[&str]); 9] = [
    ("channel_activity", &["window_start", "messages"]),
    ("active_users", &["window_start", "users"]),
    ("reactions", &["window_start", "count"]),
    ("calls", &["window_start"]),
    ("features", &["window_start", "count"]),
    ("page_views", &["window_start", "count"]),
    ("errors", &["window_start", "count"]),
    ("performance", &["window_start"]),
    ("audit_alerts", &["last_time"]),
];

fn request(range: (Option<EventTime>, Option<EventTime>), order: &[&str], limit: usize, open: bool) -> ViewRequest {
    ViewRequest {
        from: range.0,
        to: range.1,
        filter: None,
        group_by: Vec::new(),
        columns: None,
        order_by: order.iter().map(|c| OrderBy { column: (*c).to_owned(), descending: true }).collect(),
        limit: Some(limit),
        cursor: None,
        include_open: open,
        format: Format::Json,
    }
}

/// `GET /api/v1/analytics/metrics`: the view `performance`, newest first.
pub(crate) async fn metrics(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["from", "to", "limit", "cursor", "include_open"])?;
    let relation = state.relations.view("performance")?;
    let limit = params.number("limit", 1, 1_000)?.unwrap_or(100);
    let mut request = request(params.range()?, &["window_start"], limit, params.flag("include_open")?);
    request.cursor = params.text("cursor").map(str::to_owned);
    Ok(route::page(&state, relation, request).await?.into_response())
}

/// `GET /api/v1/analytics/dashboard`: the newest rows of each analytics view. A view that the
/// declarations lack is named in `unavailable`.
pub(crate) async fn dashboard(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    let params = Params::read(query.as_deref(), &["from", "to", "limit", "include_open"])?;
    let limit = params.number("limit", 1, 100)?.unwrap_or(10);
    let (range, open) = (params.range()?, params.flag("include_open")?);
    let (mut panels, mut unavailable) = (Map::new(), Vec::new());
    for (name, order) in PANELS {
        let Ok(relation) = state.relations.view(name) else {
            unavailable.push(name);
            continue;
        };
        let known: Vec<&str> = order.iter().copied().filter(|c| relation.info.schema.index_of(c).is_ok()).collect();
        let range = if relation.info.time_column.is_some() { range } else { (None, None) };
        let page = route::page(&state, relation, request(range, &known, limit, open)).await?;
        let whole: Value = serde_json::from_str(&page.json()?).map_err(Problem::internal)?;
        panels
            .insert(name.to_owned(), json!({ "rows": whole["rows"], "watermark": whole["watermark"], "as_of": whole["as_of"] }));
    }
    Ok(axum::Json(json!({ "views": panels, "unavailable": unavailable })))
}
