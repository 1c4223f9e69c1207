//! `POST /v1/sql`.

use crate::formats::{self, Encoder, Format};
use crate::params::Params;
use crate::problem::Problem;
use crate::sql::runtime::Lane;
use crate::sql::{errors, guard, session, values};
use crate::state::{QueryLimits, QueryState};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use datafusion::common::ParamValues;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    sql: String,
    #[serde(default)]
    params: Option<serde_json::Value>,
}

/// What a query gave, within the bounds.
pub(crate) struct Collected {
    /// Its columns, each name once.
    pub(crate) schema: SchemaRef,
    /// Its rows.
    pub(crate) batches: Vec<RecordBatch>,
    /// `rows` or `bytes`, when there was more.
    pub(crate) truncated: Option<&'static str>,
}

/// The handler.
pub(crate) async fn post(
    State(state): State<QueryState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["format"])?;
    let format = Format::wanted(params.text("format"), &headers)?;
    let body = crate::router::body(body)?;
    let body: Body = crate::router::json(&body)?;
    guard::check_text(&body.sql, &state.limits)?;
    let values = values::read(body.params.as_ref())?;
    let (limits, relations) = (state.limits.clone(), state.relations.clone());
    let time = limits.sql_time;
    let answer = state
        .runtime
        .run(Lane::Sql, time, async move {
            let context = session::whole(&limits, &relations)?;
            let collected = execute(&context, &body.sql, values, &limits).await?;
            encode(&collected, format)
        })
        .await?;
    Ok(answer.into_response())
}

async fn execute(
    context: &SessionContext,
    sql: &str,
    values: Option<ParamValues>,
    limits: &Arc<QueryLimits>,
) -> Result<Collected, Problem> {
    let mut plan = guard::plan(context, sql).await?;
    if let Some(values) = values {
        plan = plan.with_param_values(values).map_err(|e| Problem::field("params", "bind", errors::message(&e)))?;
    }
    let frame = context.execute_logical_plan(plan).await.map_err(|e| errors::planning(&e))?;
    collect(frame, limits.sql_rows, limits.result_bytes).await
}

/// Collects at most so many rows and bytes.
pub(crate) async fn collect(
    frame: datafusion::dataframe::DataFrame,
    most_rows: usize,
    most_bytes: usize,
) -> Result<Collected, Problem> {
    let mut stream = frame.execute_stream().await.map_err(|e| errors::execution(&e))?;
    let schema = formats::unique_names(&stream.schema());
    let (mut batches, mut rows, mut bytes, mut truncated) = (Vec::new(), 0, 0, None);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|e| errors::execution(&e))?;
        let mut batch =
            RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).map_err(|e| errors::execution(&e.into()))?;
        if rows + batch.num_rows() > most_rows {
            batch = batch.slice(0, most_rows - rows);
            truncated = Some("rows");
        }
        let size: usize = batch.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum();
        if bytes + size > most_bytes {
            truncated = Some("bytes");
            break;
        }
        rows += batch.num_rows();
        bytes += size;
        batches.push(batch);
        if truncated.is_some() {
            break;
        }
    }
    Ok(Collected { schema, batches, truncated })
}

struct Encoded {
    format: Format,
    bytes: Vec<u8>,
    truncated: bool,
}

fn encode(collected: &Collected, format: Format) -> Result<Encoded, Problem> {
    let wrong = |e: arrow::error::ArrowError| errors::execution(&e.into());
    let truncated = collected.truncated.is_some();
    if format == Format::Json {
        let mut out = format!("{{\"columns\":{},\"rows\":[", formats::columns(&collected.schema));
        let mut count = 0;
        for batch in &collected.batches {
            formats::rows(batch, count > 0, &mut out).map_err(wrong)?;
            count += batch.num_rows();
        }
        out.push_str(&format!("],\"row_count\":{count},\"truncated\":{truncated}"));
        if let Some(by) = collected.truncated {
            out.push_str(&format!(",\"truncated_by\":\"{by}\""));
        }
        out.push('}');
        return Ok(Encoded { format, bytes: out.into_bytes(), truncated });
    }
    let mut encoder = Encoder::new(format, &collected.schema).map_err(wrong)?;
    for batch in &collected.batches {
        encoder.write(batch).map_err(wrong)?;
    }
    encoder.finish().map_err(wrong)?;
    Ok(Encoded { format, bytes: encoder.take(), truncated })
}

impl IntoResponse for Encoded {
    fn into_response(self) -> Response {
        let mut response = self.bytes.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.format.media_type()));
        headers.insert("x-truncated", HeaderValue::from_static(if self.truncated { "true" } else { "false" }));
        response
    }
}
