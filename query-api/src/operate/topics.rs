//! Topics: list, describe, read records.

use super::blocking;
use crate::formats;
use crate::params::{Params, unknown};
use crate::problem::Problem;
use crate::state::QueryState;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use quikflow_topics::broker::{Broker, Positions, Projection};
use quikflow_topics::catalogue::{Cleanup, TopicKind, TopicSpec};
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::units::show_duration;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most records of an answer.
const MOST: usize = 1_000;
/// Most bytes of an answer.
const BYTES: usize = 16 << 20;

fn spec(broker: &dyn Broker, name: &str) -> Result<Arc<TopicSpec>, Problem> {
    if let Some(spec) = broker.topic(name) {
        return Ok(spec);
    }
    let names: Vec<String> = broker.topics().iter().map(|t| t.name.clone()).collect();
    let detail = unknown("topic", name, names.iter().map(String::as_str));
    Err(Problem::not_found(detail).with("topics", json!(names)))
}

fn described(broker: &dyn Broker, spec: &TopicSpec) -> Result<Value, Problem> {
    let stats = broker.stats(&spec.name)?;
    Ok(json!({
        "name": spec.name,
        "doc": spec.doc,
        "kind": match spec.kind { TopicKind::Events => "events", TopicKind::Rows => "rows" },
        "cleanup": match spec.cleanup { Cleanup::Delete => "delete", Cleanup::Compact => "compact", Cleanup::Consumed => "consumed" },
        "retention": spec.retention.map(show_duration),
        "partitions": spec.partitions,
        "records": stats.records,
        "chunks": stats.chunks,
        "bytes": stats.bytes,
        "start": stats.start,
        "end": stats.end,
    }))
}

/// `GET /v1/topics`
pub(crate) async fn list(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let broker = state.broker.clone();
    let topics =
        blocking(move || broker.topics().iter().map(|spec| described(broker.as_ref(), spec)).collect::<Result<Vec<_>, _>>());
    Ok(axum::Json(json!({ "topics": topics.await? })))
}

/// `GET /v1/topics/{topic}`: with its columns, times and generation.
pub(crate) async fn describe(
    State(state): State<QueryState>,
    Path(topic): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Problem> {
    Params::read(query.as_deref(), &[])?;
    let broker = state.broker.clone();
    blocking(move || {
        let spec = spec(broker.as_ref(), &topic)?;
        let mut value = described(broker.as_ref(), &spec)?;
        value["columns"] = formats::columns(&spec.schema());
        value["disorder"] = show_duration(spec.disorder).into();
        value["idle_after"] = show_duration(spec.idle_after).into();
        value["generation"] = broker.generation(&topic)?.into();
        Ok(axum::Json(value))
    })
    .await
}

/// `GET /v1/topics/{topic}/records?from=&max=&partition=`: records in order, from an offset. Without
/// `partition` from that offset in every partition. `next` is where to go on, by partition.
pub(crate) async fn records(
    State(state): State<QueryState>,
    Path(topic): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::read(query.as_deref(), &["from", "max", "partition"])?;
    let max = params.number("max", 1, MOST)?.unwrap_or(100);
    let partition = params.number("partition", 0, 1 << 20)?;
    let from = positions(params.text("from"), partition)?;
    let broker = state.broker.clone();
    let body = blocking(move || read(broker.as_ref(), &topic, &from, partition, max)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// What `from` says.
enum From {
    /// The same offset everywhere.
    All(u64),
    /// By partition, as `next` of an earlier answer: `0:12,3:40`.
    Each(Positions),
}

fn positions(text: Option<&str>, partition: Option<usize>) -> Result<From, Problem> {
    let bad = || Problem::field("from", "offset", "`from` is an offset, or offsets by partition as in `next`: 0:12,3:40");
    let Some(text) = text else { return Ok(From::All(0)) };
    if let Ok(offset) = text.parse() {
        return Ok(From::All(offset));
    }
    if partition.is_some() {
        return Err(bad());
    }
    let one = |pair: &str| {
        let (partition, offset) = pair.split_once(':')?;
        Some((PartitionId(partition.parse().ok()?), Offset(offset.parse().ok()?)))
    };
    text.split(',').map(one).collect::<Option<Positions>>().map(From::Each).ok_or_else(bad)
}

fn read(broker: &dyn Broker, topic: &str, from: &From, partition: Option<usize>, max: usize) -> Result<String, Problem> {
    let spec = spec(broker, topic)?;
    let stats = broker.stats(topic)?;
    let wanted = match partition {
        None => None,
        Some(p) => match u32::try_from(p).ok().filter(|p| *p < spec.partitions) {
            Some(p) => Some(PartitionId(p)),
            None => {
                let message = format!("`{topic}` has {} partitions, counted from 0", spec.partitions);
                return Err(Problem::field("partition", "range", message));
            }
        },
    };
    let end_of = |p: u32| stats.end.get(p as usize).copied().unwrap_or(0);
    let start: Positions = (0..spec.partitions)
        .map(|p| {
            let offset = match (from, wanted) {
                (_, Some(w)) if w.0 != p => end_of(p), // nothing of the others
                (From::All(offset), _) => *offset,
                (From::Each(each), _) => each.get(&PartitionId(p)).map_or(0, |o| o.0),
            };
            (PartitionId(p), Offset(offset))
        })
        .collect();
    let mut reader = broker.reader(topic, &start)?;
    let projection = Projection::all(&spec);
    let (mut out, mut count) = (String::from("{\"records\":["), 0);
    let mut next = start;
    while count < max && out.len() < BYTES {
        let Some(slice) = reader.poll(max - count)? else { break };
        let batch = slice.decode(&projection)?;
        let mut row = 0;
        for part in slice.parts() {
            let rows = part.rows as usize;
            if wanted.is_none_or(|w| w == part.partition) {
                let share = batch.slice(row, rows);
                formats::rows(&share, count > 0, &mut out).map_err(Problem::internal)?;
                count += rows;
            }
            row += rows;
            next.insert(part.partition, part.next);
        }
    }
    let shown: Vec<String> =
        next.iter().filter(|(p, _)| wanted.is_none_or(|w| w == **p)).map(|(p, offset)| format!("{p}:{offset}")).collect();
    let next = match wanted {
        Some(w) => json!(next.get(&w).map(|o| o.0.to_string())),
        None => json!(shown.join(",")),
    };
    out.push_str(&format!("],\"count\":{count},\"next\":{next}}}"));
    Ok(out)
}
