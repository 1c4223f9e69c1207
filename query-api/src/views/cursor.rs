//! Pages by key: a cursor holds the ordering values of the last row, so a page begins after it
//! whatever was written meanwhile. Opaque to clients, and bound to the request that it came from.

use crate::problem::Problem;
use crate::views::request::OrderBy;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;
use datafusion::prelude::{ident, lit};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Place {
    /// The request's fingerprint.
    h: u64,
    /// The ordering values as text; null for null.
    v: Vec<Option<String>>,
}

fn refused() -> Problem {
    Problem::field("cursor", "cursor", "`cursor` does not belong to this request: give back the one that its last page had")
}

/// The cursor after a row.
///
/// # Errors
/// 500 when a value cannot be shown.
pub fn after_row(batch: &RecordBatch, row: usize, order: &[OrderBy], fingerprint: u64) -> Result<String, Problem> {
    let mut values = Vec::with_capacity(order.len());
    for by in order {
        let column = batch.column_by_name(&by.column).ok_or_else(|| Problem::internal("an ordering column is missing"))?;
        if column.is_null(row) {
            values.push(None);
            continue;
        }
        let value = ScalarValue::try_from_array(column, row).map_err(Problem::internal)?;
        let value = match column.data_type() {
            DataType::Timestamp(..) => value.cast_to(&DataType::Int64).map_err(Problem::internal)?,
            _ => value,
        };
        values.push(Some(value.to_string()));
    }
    let text = serde_json::to_vec(&Place { h: fingerprint, v: values }).map_err(Problem::internal)?;
    Ok(URL_SAFE_NO_PAD.encode(text))
}

/// The condition that holds for rows after the cursor.
///
/// # Errors
/// 422 when it does not belong to this request.
pub fn condition(cursor: &str, order: &[OrderBy], schema: &Schema, fingerprint: u64) -> Result<Expr, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    let place: Place = serde_json::from_slice(&bytes).map_err(|_| refused())?;
    if place.h != fingerprint || place.v.len() != order.len() {
        return Err(refused());
    }
    let mut after = lit(false);
    for (by, value) in order.iter().zip(&place.v).rev() {
        let ty = schema.field_with_name(&by.column).map_err(|_| refused())?.data_type();
        let column = ident(&by.column);
        let (beyond, equal) = match value {
            None => (lit(false), column.is_null()),
            Some(text) => {
                let value = lit(parse(text, ty).ok_or_else(refused)?);
                let beyond = match by.descending {
                    true => column.clone().lt(value.clone()),
                    false => column.clone().gt(value.clone()),
                };
                (beyond.or(column.clone().is_null()), column.eq(value))
            }
        };
        after = beyond.or(equal.and(after));
    }
    Ok(after)
}

fn parse(text: &str, ty: &DataType) -> Option<ScalarValue> {
    match ty {
        DataType::Timestamp(..) => ScalarValue::Int64(Some(text.parse().ok()?)).cast_to(ty).ok(),
        _ => ScalarValue::try_from_string(text.to_owned(), ty).ok(),
    }
}
