//! SQL expressions: parsed, typed and run by DataFusion, vectorised over Arrow.
//!
//! The way of a text: sqlparser reads it; [`resolve`] puts Arrow column names in the place of the
//! names that people write and refuses what no replay would repeat; [`typing`] checks types, brings
//! literals to the type they are compared with and folds constants; DataFusion makes it physical.
//! What an expression yields is of one of the types that topics store.

mod aggregate;
mod place;
mod resolve;
mod typing;

pub use aggregate::AggregateCall;
pub(crate) use typing::stored_type;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::scalar::ScalarValue;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::declaration::Node;
use quikflow_topics::diagnostics::Diagnostic;
use std::sync::Arc;

/// The columns on an edge and how expressions name them.
///
/// The Arrow schema begins with the four origin columns, then the other system columns that are
/// needed, then fields by their bare names. On streams of events a field is written `payload.x`,
/// and the system columns `type`, `key`, `id`, `event_time`, `arrival_time`, `metadata`; a column
/// that a step has added is written bare. On streams of rows fields are written bare, and system
/// columns too where no field has their name. Names are compared with regard to case.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamSchema {
    /// The columns.
    pub arrow: SchemaRef,
    /// Events or rows.
    pub kind: TopicKind,
}

/// A compiled SQL expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// As written.
    pub text: String,
    /// The type it yields: one of those that topics store (text, Int64, Float64, Boolean,
    /// Timestamp(µs, UTC), list of text).
    pub data_type: DataType,
    /// Arrow names of the columns it reads, in the schema's order.
    pub columns: Vec<String>,
    /// DataFusion's.
    pub physical: Arc<dyn PhysicalExpr>,
}

/// What kind of value an expression has to yield.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Any,
    Bool,
    Text,
}

impl Expr {
    /// Compiles the SQL text at `node`.
    ///
    /// # Errors
    /// Syntax errors, unknown columns ("did you mean …"), type errors, functions whose answer a
    /// replay would not repeat; the caret stands in the text.
    pub fn compile(node: &Node, schema: &StreamSchema) -> Result<Expr, Diagnostic> {
        compile(node, schema, Want::Any)
    }

    /// The same; it has to yield true or false.
    ///
    /// # Errors
    /// As [`Expr::compile`].
    pub fn compile_bool(node: &Node, schema: &StreamSchema) -> Result<Expr, Diagnostic> {
        compile(node, schema, Want::Bool)
    }

    /// The same; it yields text: numbers, times and booleans become their text.
    ///
    /// # Errors
    /// As [`Expr::compile`]; lists have no text.
    pub fn compile_text(node: &Node, schema: &StreamSchema) -> Result<Expr, Diagnostic> {
        compile(node, schema, Want::Text)
    }

    /// Evaluates over a batch of the schema it was compiled for. A plain column is not copied.
    ///
    /// # Errors
    /// When some row fails; the steps halve the batch to learn which.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        self.physical.evaluate(batch)?.into_array(batch.num_rows())
    }

    /// The Arrow name of the column, where the expression is a plain column.
    pub fn column(&self) -> Option<&String> {
        self.physical.is::<Column>().then(|| self.columns.first()).flatten()
    }

    /// The value, where the expression is a constant.
    pub fn constant(&self) -> Option<ScalarValue> {
        self.physical.downcast_ref::<Literal>().map(|literal| literal.value().clone())
    }
}

fn compile(node: &Node, schema: &StreamSchema, want: Want) -> Result<Expr, Diagnostic> {
    let text = node.str()?;
    let place = place::Place::new(node, text);
    let mut ast = resolve::parse(text, &place)?;
    resolve::resolve(&mut ast, schema, &place)?;
    finish(text.to_owned(), ast, schema, &place, want)
}

/// Types a resolved tree.
fn finish(
    text: String,
    ast: datafusion::sql::sqlparser::ast::Expr,
    schema: &StreamSchema,
    place: &place::Place<'_>,
    want: Want,
) -> Result<Expr, Diagnostic> {
    let (physical, data_type) = typing::physical(&ast, schema, place, want)?;
    let mut columns: Vec<(usize, String)> = datafusion::physical_expr::utils::collect_columns(&physical)
        .iter()
        .map(|column| (column.index(), column.name().to_owned()))
        .collect();
    columns.sort();
    Ok(Expr { text, data_type, columns: columns.into_iter().map(|(_, name)| name).collect(), physical })
}

#[cfg(test)]
mod tests;
