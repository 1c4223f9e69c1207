//! A relation as DataFusion sees it: columns, time range and equalities go down to the store; its
//! blocking batches come up through a bounded channel.

use super::Relation;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use parking_lot::Mutex;
use quikflow_sinks::store::{ScanRequest, StoreError};
use quikflow_topics::broker::Positions;
use quikflow_topics::ids::EventTime;
use std::sync::Arc;

/// Batches that wait for the query at most.
const AHEAD: usize = 2;

/// Where the answer stands; known once the scan has begun.
pub type AsOf = Arc<Mutex<Option<Positions>>>;

/// A relation as a table of DataFusion.
#[derive(Debug)]
pub struct RelationTable {
    relation: Relation,
    as_of: AsOf,
}

impl RelationTable {
    /// Over a relation; `as_of` is filled when its scan begins.
    pub fn new(relation: Relation, as_of: AsOf) -> RelationTable {
        RelationTable { relation, as_of }
    }
}

/// A store's error inside DataFusion's, so that it can be taken out again.
pub(crate) fn external(error: StoreError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[async_trait]
impl TableProvider for RelationTable {
    fn schema(&self) -> SchemaRef {
        self.relation.info.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let mut request = ScanRequest::default();
        let time = self.relation.info.time_column.as_deref();
        Ok(filters
            .iter()
            .map(|filter| match push_down(filter, time, &mut request) {
                true => TableProviderFilterPushDown::Inexact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let whole = self.schema();
        let mut request = ScanRequest::default();
        for filter in filters {
            push_down(filter, self.relation.info.time_column.as_deref(), &mut request);
        }
        let schema = match projection {
            Some(columns) => Arc::new(whole.project(columns)?),
            None => whole.clone(),
        };
        // No column at all (a bare count) still needs the number of rows: read the narrowest.
        let read = if schema.fields().is_empty() { narrowest(&whole)? } else { schema.clone() };
        request.columns = Some(read.fields().iter().map(|f| f.name().clone()).collect());
        let part = Part { relation: self.relation.clone(), request, schema: schema.clone(), as_of: self.as_of.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(part)], None, None, false, None)?))
    }
}

fn narrowest(schema: &SchemaRef) -> Result<SchemaRef> {
    let width = |i: &usize| schema.field(*i).data_type().primitive_width().unwrap_or(64);
    let index = (0..schema.fields().len()).min_by_key(width);
    let indices: Vec<usize> = index.into_iter().collect();
    Ok(Arc::new(schema.project(&indices)?))
}

/// One scan, not begun.
#[derive(Debug)]
struct Part {
    relation: Relation,
    request: ScanRequest,
    schema: SchemaRef,
    as_of: AsOf,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), AHEAD);
        let sender = builder.tx();
        let (relation, request, schema, as_of) =
            (self.relation.clone(), self.request.clone(), self.schema.clone(), self.as_of.clone());
        builder.spawn_blocking(move || {
            if sender.is_closed() {
                return Ok(());
            }
            let scan = relation.scan(&request).map_err(external)?;
            as_of.lock().get_or_insert(scan.as_of);
            for batch in scan.batches {
                let batch = batch.map_err(external).and_then(|b| conform(&b, &schema));
                if sender.blocking_send(batch).is_err() {
                    break; // the query has ended or was cancelled
                }
            }
            Ok(())
        });
        builder.build()
    }
}

/// The batch in exactly the schema that was promised.
fn conform(batch: &arrow::array::RecordBatch, schema: &SchemaRef) -> Result<arrow::array::RecordBatch> {
    use arrow::array::{RecordBatch, RecordBatchOptions};
    let from: Arc<Schema> = batch.schema();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = batch.column(from.index_of(field.name())?);
        columns.push(match column.data_type() == field.data_type() {
            true => column.clone(),
            false => arrow::compute::cast(column, field.data_type())?,
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// Adds to `request` what `filter` says, if that is something a store understands.
fn push_down(filter: &Expr, time: Option<&str>, request: &mut ScanRequest) -> bool {
    if let Expr::Between(between) = filter
        && !between.negated
        && let (Some(column), Some(low), Some(high)) = (name_of(&between.expr), micros_of(&between.low), micros_of(&between.high))
    {
        return Some(column) == time && narrow(request, Operator::GtEq, low) && narrow(request, Operator::LtEq, high);
    }
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return false };
    if *op == Operator::And {
        let (left, right) = (push_down(left, time, request), push_down(right, time, request));
        return left || right;
    }
    let (column, literal, op) = match (name_of(left), name_of(right)) {
        (Some(column), None) => (column, right, *op),
        (None, Some(column)) => match op.swap() {
            Some(op) => (column, left, op),
            None => return false,
        },
        _ => return false,
    };
    if Some(column) == time
        && let Some(micros) = micros_of(literal)
    {
        return narrow(request, op, micros);
    }
    if op == Operator::Eq
        && let Expr::Literal(value, _) = literal.as_ref()
        && let Some(Some(text)) = value.try_as_str()
    {
        request.equals.push((column.to_owned(), text.to_owned()));
        return true;
    }
    false
}

fn name_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(&column.name),
        _ => None,
    }
}

fn micros_of(expr: &Expr) -> Option<i64> {
    let Expr::Literal(value, _) = expr else { return None };
    match value {
        ScalarValue::TimestampMicrosecond(Some(v), _) => Some(*v),
        ScalarValue::TimestampMillisecond(Some(v), _) => v.checked_mul(1_000),
        ScalarValue::TimestampSecond(Some(v), _) => v.checked_mul(1_000_000),
        _ => None, // nanoseconds would have to be rounded
    }
}

/// Narrows the time range: never to less than `op` allows.
fn narrow(request: &mut ScanRequest, op: Operator, micros: i64) -> bool {
    let after = EventTime(micros).plus(1);
    let (from, to) = match op {
        Operator::GtEq => (Some(EventTime(micros)), None),
        Operator::Gt => (Some(after), None),
        Operator::Lt => (None, Some(EventTime(micros))),
        Operator::LtEq => (None, Some(after)),
        Operator::Eq => (Some(EventTime(micros)), Some(after)),
        _ => return false,
    };
    request.from = [request.from, from].into_iter().flatten().max();
    request.to = [request.to, to].into_iter().flatten().min();
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    fn at(micros: i64) -> Expr {
        lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
    }

    #[test]
    fn ranges_and_equalities_go_down_and_nothing_else() {
        let mut request = ScanRequest::default();
        assert!(push_down(&col("t").gt_eq(at(5)).and(at(9).gt(col("t"))), Some("t"), &mut request));
        assert_eq!((request.from, request.to), (Some(EventTime(5)), Some(EventTime(9))));
        assert!(push_down(&col("t").between(at(6), at(7)), Some("t"), &mut request));
        assert_eq!((request.from, request.to), (Some(EventTime(6)), Some(EventTime(8))));
        assert!(push_down(&col("channel").eq(lit("c1")), Some("t"), &mut request));
        assert_eq!(request.equals, [("channel".to_owned(), "c1".to_owned())]);
        let before = format!("{request:?}");
        assert!(!push_down(&col("a").eq(lit("x")).or(col("b").eq(lit("y"))), Some("t"), &mut request));
        assert!(!push_down(&col("n").gt(lit(5)), Some("t"), &mut request));
        assert!(!push_down(&col("other").gt(at(5)), Some("t"), &mut request));
        assert_eq!(format!("{request:?}"), before);
    }
}
