//! Lag, topologies, reset.

use super::blocking;
use crate::params::{Params, unknown};
use crate::problem::Problem;
use crate::state::{IntrospectionError, QueryState};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use quikflow_topics::broker::ResetFrom;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl From<IntrospectionError> for Problem {
    fn from(error: IntrospectionError) -> Problem {
        match error {
            IntrospectionError::UnknownTopology { name, known } => {
                Problem::not_found(unknown("topology", &name, known.iter().map(String::as_str)))
            }
            IntrospectionError::NotHere(message) => Problem::new(StatusCode::NOT_IMPLEMENTED, "not_here", message),
            IntrospectionError::Failed(message) => Problem::new(StatusCode::CONFLICT, "failed", message),
        }
    }
}

/// `GET /v1/lag`: by group, and whether all is settled.
pub(crate) async fn lag(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let process = state.process.clone();
    let report = blocking(move || process.lag().map_err(Problem::from)).await?;
    let mut groups: BTreeMap<&str, Vec<&crate::state::LagRow>> = BTreeMap::new();
    for row in &report.rows {
        groups.entry(&row.group).or_default().push(row);
    }
    let shown: Vec<Value> = groups
        .into_iter()
        .map(|(group, rows)| {
            let lag: u64 = rows.iter().map(|r| r.lag).sum();
            json!({ "group": group, "lag": lag, "partitions": rows })
        })
        .collect();
    let total: u64 = report.rows.iter().map(|r| r.lag).sum();
    Ok(axum::Json(
        json!({ "lag": total, "settled": report.settled, "late": report.late, "sinks": report.sinks, "groups": shown }),
    ))
}

/// `GET /v1/topologies`
pub(crate) async fn topologies(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let process = state.process.clone();
    let topologies = blocking(move || process.topologies().map_err(Problem::from)).await?;
    Ok(axum::Json(json!({ "topologies": topologies })))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Reset {
    #[serde(default)]
    from: Option<String>,
}

/// `POST /v1/topologies/{name}/reset {"from": "earliest" | "latest"}`
pub(crate) async fn reset(
    State(state): State<QueryState>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let body = crate::router::body(body)?;
    let body: Reset = if body.is_empty() { Reset::default() } else { crate::router::json(&body)? };
    let from = match body.from.as_deref() {
        None | Some("earliest") => ResetFrom::Earliest,
        Some("latest") => ResetFrom::Latest,
        Some(_) => return Err(Problem::field("from", "one_of", "`from` is `earliest` or `latest`")),
    };
    Ok(axum::Json(state.process.reset(&name, from).await?))
}
