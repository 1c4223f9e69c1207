//! What the steps share: the origin columns of a batch, expressions over rows of which some may
//! fail, and the column types that may stand on an edge.

use crate::expr::{Expr, StreamSchema};
use crate::operator::{DeadRow, Emit, OperatorError, Rows};
use crate::step::StepContext;
use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, PrimitiveArray, RecordBatch, UInt32Array, new_empty_array,
};
use arrow::compute::{CastOptions, cast_with_options, concat, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, TimestampMicrosecondType, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::util::display::array_value_to_string;
use datafusion::error::DataFusionError;
use quikflow_topics::declaration::{Node, Table};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::schema;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How many columns every edge begins with.
pub(crate) const ORIGINS: usize = crate::operator::ORIGIN_COLUMNS.len();

/// The four origin columns of a batch, as slices.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) partition: &'a [u32],
    pub(crate) offset: &'a [u64],
    /// Microseconds.
    pub(crate) event_time: &'a [i64],
    /// Microseconds; `i64::MIN` where there is none.
    pub(crate) watermark: &'a [i64],
}

impl<'a> Origin<'a> {
    pub(crate) fn of(step: &str, batch: &'a RecordBatch) -> Result<Origin<'a>, OperatorError> {
        Ok(Origin {
            partition: values::<UInt32Type>(step, batch, 0)?,
            offset: values::<UInt64Type>(step, batch, 1)?,
            event_time: values::<TimestampMicrosecondType>(step, batch, 2)?,
            watermark: values::<Int64Type>(step, batch, 3)?,
        })
    }

    /// What a dead letter of row `row` says about where it came from.
    pub(crate) fn place(&self, row: usize) -> (PartitionId, Offset) {
        (PartitionId(self.partition[row]), Offset(self.offset[row]))
    }
}

/// The values of primitive column `index`.
pub(crate) fn values<'a, T: ArrowPrimitiveType>(
    step: &str,
    batch: &'a RecordBatch,
    index: usize,
) -> Result<&'a [T::Native], OperatorError> {
    batch
        .columns()
        .get(index)
        .and_then(|column| column.as_any().downcast_ref::<PrimitiveArray<T>>())
        .map(|column| &column.values()[..])
        .ok_or_else(|| broken(step, format!("column {index} is not of type {}", T::DATA_TYPE)))
}

/// A failure that no record is to blame for.
pub(crate) fn broken(step: &str, message: impl std::fmt::Display) -> OperatorError {
    OperatorError { step: step.to_owned(), message: message.to_string() }
}

/// Evaluates `exprs` over `rows`. Rows for which one of them fails become dead letters and leave
/// the batch; the others go on (a bad cast in one record never touches its neighbours).
pub(crate) fn evaluate(step: &str, exprs: &[&Expr], rows: Rows, emit: &mut Emit) -> Result<(Rows, Vec<ArrayRef>), OperatorError> {
    let whole: Result<Vec<ArrayRef>, DataFusionError> = exprs.iter().map(|expr| expr.evaluate(&rows.batch)).collect();
    if let Ok(arrays) = whole {
        return Ok((rows, arrays));
    }
    let mut pieces = Vec::new();
    let mut failures = Vec::new();
    bisect(exprs, &rows.batch, 0, rows.batch.num_rows(), &mut pieces, &mut failures);
    let origin = Origin::of(step, &rows.batch)?;
    for (row, text, error) in &failures {
        let (partition, offset) = origin.place(*row);
        emit.counts.dead += 1;
        emit.dead.push(DeadRow {
            source: rows.source,
            partition,
            offset,
            cause: "expression",
            code: code(error).to_owned(),
            path: None,
            message: format!("`{text}` failed: {}", first_line(error)),
            row: emit.made.then(|| row_json(&rows.batch, *row)),
        });
    }
    let failed: std::collections::BTreeSet<usize> = failures.iter().map(|(row, _, _)| *row).collect();
    let good: BooleanArray = (0..rows.batch.num_rows()).map(|row| Some(!failed.contains(&row))).collect();
    let batch = filter_record_batch(&rows.batch, &good).map_err(|e| broken(step, e))?;
    let mut arrays = Vec::with_capacity(exprs.len());
    for (index, expr) in exprs.iter().enumerate() {
        let parts: Vec<&dyn Array> = pieces.iter().map(|piece: &Vec<ArrayRef>| piece[index].as_ref()).collect();
        arrays.push(match parts.is_empty() {
            true => new_empty_array(&expr.data_type),
            false => concat(&parts).map_err(|e| broken(step, e))?,
        });
    }
    Ok((Rows { source: rows.source, batch }, arrays))
}

/// A row's own columns as JSON, as far as later steps read them.
pub(crate) fn row_json(batch: &RecordBatch, row: usize) -> String {
    let schema = batch.schema();
    let own = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| !field.name().starts_with('_'));
    let cells = own.map(|(field, column)| {
        let text = array_value_to_string(column, row).unwrap_or_default();
        let plain = field.data_type().is_numeric() || *field.data_type() == DataType::Boolean;
        let value = match plain.then(|| serde_json::from_str(&text)) {
            _ if column.is_null(row) => Json::Null,
            Some(Ok(value)) => value,
            _ => Json::String(text),
        };
        (field.name().clone(), value)
    });
    Json::Object(cells.collect()).to_string()
}

/// Halves the rows until those that fail stand alone.
fn bisect(
    exprs: &[&Expr],
    batch: &RecordBatch,
    from: usize,
    rows: usize,
    pieces: &mut Vec<Vec<ArrayRef>>,
    failures: &mut Vec<(usize, String, DataFusionError)>,
) {
    if rows == 0 {
        return;
    }
    let slice = batch.slice(from, rows);
    let mut arrays = Vec::with_capacity(exprs.len());
    for expr in exprs {
        match expr.evaluate(&slice) {
            Ok(array) => arrays.push(array),
            Err(error) if rows == 1 => {
                failures.push((from, expr.text.clone(), error));
                return;
            }
            Err(_) => {
                let half = rows / 2;
                bisect(exprs, batch, from, half, pieces, failures);
                bisect(exprs, batch, from + half, rows - half, pieces, failures);
                return;
            }
        }
    }
    pieces.push(arrays);
}

/// A word for machines.
fn code(error: &DataFusionError) -> &'static str {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::DivideByZero => "divide_by_zero",
            ArrowError::CastError(_) | ArrowError::ParseError(_) => "bad_cast",
            ArrowError::ArithmeticOverflow(_) => "overflow",
            _ => "expression_failed",
        },
        _ => "expression_failed",
    }
}

fn first_line(error: &DataFusionError) -> String {
    let text = error.find_root().to_string();
    let line = text.lines().next().unwrap_or("");
    line.chars().take(300).collect()
}

/// True where a Boolean array is true; false and null are false.
pub(crate) fn is_true(step: &str, array: &ArrayRef) -> Result<BooleanArray, OperatorError> {
    let bools = array
        .as_any()
        .downcast_ref::<BooleanArray>()
        .ok_or_else(|| broken(step, format!("a condition gave {}, not true or false", array.data_type())))?;
    Ok(match bools.null_count() {
        0 => bools.clone(),
        _ => bools.iter().map(|value| Some(value == Some(true))).collect(),
    })
}

/// The rows at `indices`.
pub(crate) fn take(step: &str, batch: &RecordBatch, indices: &UInt32Array) -> Result<RecordBatch, OperatorError> {
    take_record_batch(batch, indices).map_err(|e| broken(step, e))
}

/// The type a computed column has on an edge: one of those that topics store.
///
/// # Errors
/// Types that no topic stores; the message says what to write instead.
pub(crate) fn stored_type(ty: &DataType) -> Result<DataType, String> {
    crate::expr::stored_type(ty).ok_or_else(|| {
        format!("a column cannot be of type {ty}: use text, a number, true or false, a time, or a list of text (cast it)")
    })
}

/// Casts an array to the type that [`stored_type`] chose.
pub(crate) fn to_type(step: &str, array: &ArrayRef, ty: &DataType) -> Result<ArrayRef, OperatorError> {
    if array.data_type() == ty {
        return Ok(array.clone());
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    cast_with_options(array, ty, &options).map_err(|e| broken(step, e))
}

/// A schema with `field` in the place of the column of its name, or behind the others.
pub(crate) fn with_column(arrow: &Schema, field: Field) -> (Arc<Schema>, usize) {
    let mut fields: Vec<FieldRef> = arrow.fields().iter().cloned().collect();
    let at = fields.iter().position(|f| f.name() == field.name());
    let at = match at {
        Some(at) => {
            fields[at] = Arc::new(field);
            at
        }
        None if field.name() == schema::KEY => {
            fields.insert(ORIGINS, Arc::new(field));
            ORIGINS
        }
        None => {
            fields.push(Arc::new(field));
            fields.len() - 1
        }
    };
    (Arc::new(Schema::new(fields)), at)
}

/// The columns of a batch with `column` put where [`with_column`] said.
pub(crate) fn put_column(columns: &mut Vec<ArrayRef>, at: usize, replaced: bool, column: ArrayRef) {
    if replaced {
        columns[at] = column;
    } else {
        columns.insert(at, column);
    }
}

/// A batch of these columns.
pub(crate) fn batch(step: &str, arrow: &Arc<Schema>, columns: Vec<ArrayRef>) -> Result<RecordBatch, OperatorError> {
    RecordBatch::try_new(arrow.clone(), columns).map_err(|e| broken(step, e))
}

/// The Arrow names that some expressions read, each once.
pub(crate) fn columns_of<'a>(exprs: impl IntoIterator<Item = &'a Expr>) -> Vec<String> {
    let mut names: Vec<String> = exprs.into_iter().flat_map(|expr| expr.columns.iter().cloned()).collect();
    names.sort();
    names.dedup();
    names
}

/// The columns among these expressions that stand alone.
pub(crate) fn plain<'a>(exprs: impl IntoIterator<Item = &'a Expr>) -> BTreeSet<String> {
    exprs.into_iter().filter_map(|expr| expr.column().cloned()).collect()
}

/// `_key`, and the column whose text it is where rows lie by the text of these columns.
pub(crate) fn text_of_one(columns: &[(String, Expr)]) -> BTreeSet<String> {
    let one = match columns {
        [(name, expr)] if expr.data_type == DataType::Utf8 => Some(name.clone()),
        _ => None,
    };
    std::iter::once(schema::KEY.to_owned()).chain(one).collect()
}

/// Whether a stream has a column of this Arrow name.
pub(crate) fn has(stream: &StreamSchema, name: &str) -> bool {
    stream.arrow.index_of(name).is_ok()
}

/// An expression's text with its white space outside of quotes made even, for fingerprints (R12):
/// layout is no change.
pub(crate) fn even(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    for c in text.trim().chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c.is_whitespace() => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
                continue;
            }
            None => {}
        }
        out.push(c);
    }
    out
}

/// A length of time in microseconds.
///
/// # Errors
/// When the node holds none, or one of nothing where something is needed.
pub(crate) fn micros(node: &Node) -> Result<i64, Diagnostic> {
    i64::try_from(node.duration()?.as_micros()).map_err(|_| node.error("too long a duration"))
}

/// Gathers mistakes, so that all of a step's are shown at once.
#[derive(Default)]
pub(crate) struct Mistakes(Vec<Diagnostic>);

impl Mistakes {
    pub(crate) fn unknown(&mut self, table: &Table, what: &str, allowed: &[&str]) {
        self.0.extend(table.unknown_fields(what, allowed));
    }

    /// The fields of the kind and `name`, which every step may have.
    pub(crate) fn fields(&mut self, ctx: &StepContext<'_>, kind: &crate::step::StepKind) {
        let mut allowed: Vec<&str> = kind.fields.iter().map(|field| field.name).collect();
        allowed.push("name");
        self.unknown(ctx.table, &format!("a `{}` step", kind.name), &allowed);
    }

    pub(crate) fn push(&mut self, mistake: Diagnostic) {
        self.0.push(mistake);
    }

    /// The value, or the mistake noted.
    pub(crate) fn ok<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|mistake| self.0.push(mistake)).ok()
    }

    /// A field that may be absent.
    pub(crate) fn optional<'t, T>(
        &mut self,
        table: &'t Table,
        name: &str,
        read: impl FnOnce(&'t Node) -> Result<T, Diagnostic>,
    ) -> Option<T> {
        let node = table.get(name)?;
        self.ok(read(node))
    }

    /// A field that must be there.
    pub(crate) fn required<'t, T>(
        &mut self,
        table: &'t Table,
        name: &str,
        read: impl FnOnce(&'t Node) -> Result<T, Diagnostic>,
    ) -> Option<T> {
        let result = table.require(name).and_then(read);
        self.ok(result)
    }

    /// Whether there are any so far.
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// All of them, as the error.
    pub(crate) fn into_error<T>(self) -> Result<T, Vec<Diagnostic>> {
        Err(self.0)
    }
}

/// Compiles the condition at `node` against an input: its type must be Boolean.
///
/// # Errors
/// As [`Expr::compile`], and any other type.
pub(crate) fn condition(ctx: &StepContext<'_>, input: usize, node: &Node) -> Result<Expr, Diagnostic> {
    Expr::compile_bool(node, &ctx.inputs[input])
}
