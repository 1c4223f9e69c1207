//! The paths of views: the list, one JSON page, or a whole view as a stream.

use crate::formats::{self, Encoder, Format};
use crate::params::Params;
use crate::problem::Problem;
use crate::relations::Relation;
use crate::sql::runtime::{Lane, Piece};
use crate::sql::{errors, session};
use crate::state::{Freshness, QueryState};
use crate::times;
use crate::views::plan::{self, ViewPlan};
use crate::views::request::ViewRequest;
use crate::views::{cursor, describe};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use quikflow_topics::broker::Positions;
use tokio::sync::mpsc::Sender;

/// `GET /v1/views`
pub(crate) async fn list(
    State(state): State<QueryState>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<serde_json::Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let views: Vec<serde_json::Value> = state.relations.views().iter().map(describe).collect();
    Ok(axum::Json(serde_json::json!({ "views": views })))
}

/// `GET /v1/views/{view}`
pub(crate) async fn get(
    State(state): State<QueryState>,
    Path(view): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let relation = state.relations.view(&view)?;
    let request = ViewRequest::read(query.as_deref(), &headers, &relation.info)?;
    match request.format {
        Format::Json => Ok(page(&state, relation, request).await?.into_response()),
        _ => stream(&state, relation, request).await,
    }
}

/// One page of a view, in memory.
pub(crate) struct Page {
    /// The rows, only the columns of the answer.
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) schema: SchemaRef,
    pub(crate) cursor: Option<String>,
    head: Head,
    view: String,
}

struct Head {
    freshness: Freshness,
    as_of: serde_json::Value,
}

fn as_of_json(relation: &Relation, as_of: Option<Positions>) -> serde_json::Value {
    let offsets: serde_json::Map<String, serde_json::Value> =
        as_of.unwrap_or_default().iter().map(|(p, o)| (p.to_string(), o.0.into())).collect();
    serde_json::json!({ "topic": relation.info.topic, "offsets": offsets })
}

impl Page {
    /// The rows as JSON objects, in an array's brackets.
    pub(crate) fn rows_json(&self) -> Result<String, Problem> {
        let mut out = String::from("[");
        let mut count = 0;
        for batch in &self.batches {
            formats::rows(batch, count > 0, &mut out).map_err(|e| errors::execution(&e.into()))?;
            count += batch.num_rows();
        }
        out.push(']');
        Ok(out)
    }

    /// The whole answer.
    pub(crate) fn json(&self) -> Result<String, Problem> {
        let watermark = self.head.freshness.watermark.and_then(times::show);
        let rows = self.rows_json()?;
        Ok(format!(
            "{{\"view\":{},\"columns\":{},\"rows\":{rows},\"cursor\":{},\"watermark\":{},\"as_of\":{}}}",
            serde_json::json!(self.view),
            formats::columns(&self.schema),
            serde_json::json!(self.cursor),
            serde_json::json!(watermark),
            self.head.as_of,
        ))
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        match self.json() {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(problem) => problem.into_response(),
        }
    }
}

/// Reads one page.
pub(crate) async fn page(state: &QueryState, relation: Relation, request: ViewRequest) -> Result<Page, Problem> {
    let (limits, process) = (state.limits.clone(), state.process.clone());
    let time = limits.sql_time;
    state
        .runtime
        .run(Lane::Pages, time, async move {
            // Taken before the rows are read: the rows are never behind it.
            let freshness = process.freshness(&relation.info);
            let context = session::empty(&limits)?;
            let ViewPlan { frame, order, output, as_of } = plan::plan(&context, &relation, &request, freshness, true).await?;
            let most = request.page();
            let frame = frame.limit(0, Some(most + 1)).map_err(|e| errors::planning(&e))?;
            let collected = crate::sql::route::collect(frame, most + 1, limits.result_bytes).await?;
            let mut batches = collected.batches;
            let mut more = collected.truncated.is_some();
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if rows > most
                && let Some(last) = batches.pop()
            {
                more = true;
                let rest = last.slice(0, last.num_rows() - (rows - most));
                if rest.num_rows() > 0 {
                    batches.push(rest);
                }
            }
            let cursor = match (more, batches.last()) {
                (true, Some(batch)) => {
                    let fingerprint = request.fingerprint(&relation.info.name);
                    Some(cursor::after_row(batch, batch.num_rows() - 1, &order, fingerprint)?)
                }
                (true, None) => return Err(too_wide()),
                (false, _) => None,
            };
            let indices: Result<Vec<usize>, _> = output.iter().map(|c| collected.schema.index_of(c)).collect();
            let indices = indices.map_err(Problem::internal)?;
            let project = |b: &RecordBatch| b.project(&indices).map_err(Problem::internal);
            let batches = batches.iter().map(project).collect::<Result<Vec<_>, _>>()?;
            let schema = std::sync::Arc::new(collected.schema.project(&indices).map_err(Problem::internal)?);
            let stand = as_of.lock().clone();
            let head = Head { freshness, as_of: as_of_json(&relation, stand) };
            Ok(Page { batches, schema, cursor, head, view: relation.info.name.clone() })
        })
        .await
}

fn too_wide() -> Problem {
    Problem::field("limit", "max_bytes", "a page of this view is too large: ask for fewer columns, or as CSV")
}

/// Streams a whole view.
async fn stream(state: &QueryState, relation: Relation, request: ViewRequest) -> Result<Response, Problem> {
    let (limits, process) = (state.limits.clone(), state.process.clone());
    let format = request.format;
    let time = limits.view_time;
    let work = move |sender: Sender<Piece<Head>>| async move {
        let result = write(&sender, &relation, &request, &limits, process.as_ref()).await;
        let last = match result {
            Ok(()) => Piece::End,
            Err(problem) => Piece::Fail(problem),
        };
        if sender.send(last).await.is_err() {
            tracing::debug!("the reader of a view went away");
        }
    };
    let (head, body) = state.runtime.stream(Lane::Exports, time, work).await?;
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    if let Some(watermark) = head.freshness.watermark.and_then(times::show) {
        headers.insert("x-watermark", HeaderValue::try_from(watermark).map_err(Problem::internal)?);
    }
    headers.insert("x-as-of", HeaderValue::try_from(head.as_of.to_string()).map_err(Problem::internal)?);
    Ok(response)
}

async fn write(
    sender: &Sender<Piece<Head>>,
    relation: &Relation,
    request: &ViewRequest,
    limits: &crate::state::QueryLimits,
    process: &dyn crate::state::Introspection,
) -> Result<(), Problem> {
    let freshness = process.freshness(&relation.info);
    let context = session::empty(limits)?;
    let ordered = !request.order_by.is_empty() || request.limit.is_some() || request.cursor.is_some();
    let plan = plan::plan(&context, relation, request, freshness, ordered).await?;
    let columns = plan.output.iter().map(datafusion::prelude::ident);
    let mut frame = match request.limit {
        Some(limit) => plan.frame.limit(0, Some(limit)).map_err(|e| errors::planning(&e))?,
        None => plan.frame,
    };
    frame = frame.select(columns).map_err(|e| errors::planning(&e))?;
    let mut batches = frame.execute_stream().await.map_err(|e| errors::execution(&e))?;
    // The first batch decides whether there is an answer at all, and the scan has begun by then.
    let mut next = batches.next().await.transpose().map_err(|e| errors::execution(&e))?;
    let schema = batches.schema();
    let wrong = |e: arrow::error::ArrowError| errors::execution(&e.into());
    let mut encoder = Encoder::new(request.format, &schema).map_err(wrong)?;
    let stand = plan.as_of.lock().clone();

    let head = Head { freshness, as_of: as_of_json(relation, stand) };
    if sender.send(Piece::Head(head)).await.is_err() {
        return Ok(());
    }
    while let Some(batch) = next {
        encoder.write(&batch).map_err(wrong)?;
        let bytes = encoder.take();
        if !bytes.is_empty() && sender.send(Piece::Bytes(Bytes::from(bytes))).await.is_err() {
            return Ok(());
        }
        next = batches.next().await.transpose().map_err(|e| errors::execution(&e))?;
    }
    encoder.finish().map_err(wrong)?;
    if sender.send(Piece::Bytes(Bytes::from(encoder.take()))).await.is_err() {
        tracing::debug!("the reader of a view went away at its end");
    }
    Ok(())
}
