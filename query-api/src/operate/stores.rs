//! Reads of this process's embedded stores for other processes of the same system ([`quikflow_sinks::ask`]).

use crate::formats::{Encoder, Format};
use crate::params::Params;
use crate::problem::Problem;
use crate::sql::errors;
use crate::sql::runtime::{Lane, Piece};
use crate::state::QueryState;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use quikflow_sinks::ask::{AS_OF, Ask, show_as_of};
use quikflow_sinks::store::{Scan, ScanRequest, Tables};
use quikflow_topics::broker::Positions;
use quikflow_topics::ids::EventTime;
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// `POST /v1/stores`: one read; a scan is answered as an Arrow stream.
pub(crate) async fn read(
    State(state): State<QueryState>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    if state.read.elsewhere {
        let detail = "this process has no embedded stores of its own: ask the one that its QUIKFLOW_EMBEDDED_STORES_URL names";
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "not_here", detail));
    }
    match crate::router::json(&crate::router::body(body)?)? {
        Ask::Scan { table, columns, from, to, equals } => {
            let request = ScanRequest { columns, from: from.map(EventTime), to: to.map(EventTime), equals };
            scan(&state, table, request).await
        }
        ask => Ok(axum::Json(state.read.answer(ask).await?).into_response()),
    }
}

async fn scan(state: &QueryState, table: String, request: ScanRequest) -> Result<Response, Problem> {
    let tables = state.read.tables.clone();
    let work = move |sender: Sender<Piece<Positions>>| async move {
        // Reading blocks, and so does waiting for a slow reader.
        let sending = tokio::task::spawn_blocking(move || {
            let last = match write(&sender, &tables, &table, &request) {
                Ok(()) => Piece::End,
                Err(problem) => Piece::Fail(problem),
            };
            if sender.blocking_send(last).is_err() {
                tracing::debug!("the reader of a table went away");
            }
        });
        if let Err(error) = sending.await {
            tracing::error!(%error, "the reading of a table did not end");
        }
    };
    let (as_of, body) = state.runtime.stream(Lane::Exports, state.limits.view_time, work).await?;
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Format::Arrow.media_type()));
    headers.insert(AS_OF, HeaderValue::try_from(show_as_of(&as_of)).map_err(Problem::internal)?);
    Ok(response)
}

/// Sends the head and the bytes, as long as someone takes them.
fn write(sender: &Sender<Piece<Positions>>, tables: &Arc<dyn Tables>, table: &str, request: &ScanRequest) -> Result<(), Problem> {
    let wrong = |error: arrow::error::ArrowError| errors::execution(&error.into());
    let Scan { schema, as_of, batches } = tables.scan(table, request)?;
    let mut encoder = Encoder::new(Format::Arrow, &schema).map_err(wrong)?;
    if sender.blocking_send(Piece::Head(as_of)).is_err() {
        return Ok(());
    }
    for batch in batches {
        encoder.write(&batch?).map_err(wrong)?;
        if sender.blocking_send(Piece::Bytes(Bytes::from(encoder.take()))).is_err() {
            return Ok(());
        }
    }
    encoder.finish().map_err(wrong)?;
    // A reader that has gone away is told by the last piece.
    drop(sender.blocking_send(Piece::Bytes(Bytes::from(encoder.take()))));
    Ok(())
}
