//! Sinks' filters, compiled by the pipelines' expressions: sinks know no SQL.

use crate::exit::Failure;
use arrow::array::{AsArray, BooleanArray};
use arrow::record_batch::RecordBatch;
use quikflow_pipelines::expr::{Expr, StreamSchema};
use quikflow_sinks::runner::{SinkFilter, SinkSetup};
use quikflow_topics::declaration::{self, Node};
use quikflow_topics::diagnostics::SourceFile;
use quikflow_topics::{SinkSpec, TopicSpec};
use std::sync::Arc;

/// The sinks as the runner takes them.
///
/// # Errors
/// Exit 2 for a filter that does not compile; planning has said so before.
pub(crate) fn setups(file: &Arc<SourceFile>, followed: Vec<(Arc<SinkSpec>, Arc<TopicSpec>)>) -> Result<Vec<SinkSetup>, Failure> {
    let table = declaration::parse(file)
        .map_err(|mistakes| Failure::usage(mistakes.first().map_or_else(String::new, ToString::to_string)))?;
    let sinks = table.get("sink").and_then(|node| node.array().ok()).unwrap_or(&[]);
    let filter_of = |sink: &SinkSpec| -> Option<&Node> {
        let tables = sinks.iter().filter_map(|node| node.table().ok());
        let mut own = tables.filter(|table| table.get("name").and_then(|name| name.str().ok()) == Some(sink.name.as_str()));
        own.next()?.get("filter")
    };
    let setup = |(sink, topic): (Arc<SinkSpec>, Arc<TopicSpec>)| {
        let filter = filter_of(&sink).map(|node| compile(node, &topic)).transpose()?;
        Ok(SinkSetup { sink, topic, filter })
    };
    followed.into_iter().map(setup).collect()
}

fn compile(node: &Node, topic: &TopicSpec) -> Result<SinkFilter, Failure> {
    let stream = StreamSchema { arrow: topic.schema(), kind: topic.kind };
    let expr = Expr::compile_bool(node, &stream).map_err(|mistake| Failure::usage(mistake.to_string()))?;
    Ok(Arc::new(move |batch: &RecordBatch| -> Result<BooleanArray, String> {
        let wanted = expr.evaluate(batch).map_err(|error| error.to_string())?;
        wanted.as_boolean_opt().cloned().ok_or_else(|| format!("`{}` yields no boolean", expr.text))
    }))
}
