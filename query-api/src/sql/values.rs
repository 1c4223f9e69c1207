//! Parameters of a query as values: `$1` from an array, `$name` from an object. Never text in text.

use crate::problem::Problem;
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::{ParamValues, ScalarValue};
use serde_json::Value;

/// Most parameters of a query.
const MOST: usize = 100;

/// Reads `params`.
///
/// # Errors
/// 422 naming the one that is no plain value.
pub fn read(params: Option<&Value>) -> Result<Option<ParamValues>, Problem> {
    match params {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            bounded(list.len())?;
            let values: Result<Vec<ScalarAndMetadata>, Problem> =
                list.iter().enumerate().map(|(i, v)| scalar(&format!("params[{i}]"), v)).collect();
            Ok(Some(ParamValues::List(values?)))
        }
        Some(Value::Object(map)) => {
            bounded(map.len())?;
            let named = map.iter().map(|(n, v)| Ok((n.clone(), scalar(&format!("params.{n}"), v)?)));
            Ok(Some(ParamValues::Map(named.collect::<Result<_, Problem>>()?)))
        }
        Some(_) => Err(Problem::field("params", "type", "`params` is an array ($1, $2, …) or an object ($name)")),
    }
}

fn bounded(count: usize) -> Result<(), Problem> {
    match count > MOST {
        true => Err(Problem::field("params", "max_length", format!("`params` has more than {MOST} values"))),
        false => Ok(()),
    }
}

fn scalar(path: &str, value: &Value) -> Result<ScalarAndMetadata, Problem> {
    let value = match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(b) => ScalarValue::Boolean(Some(*b)),
        Value::String(s) => ScalarValue::Utf8(Some(s.clone())),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(int), _) => ScalarValue::Int64(Some(int)),
            (None, Some(float)) if float.is_finite() => ScalarValue::Float64(Some(float)),
            _ => return Err(Problem::field(path, "range", format!("`{path}` is out of range"))),
        },
        Value::Array(_) | Value::Object(_) => {
            return Err(Problem::field(path, "type", format!("`{path}` is a text, a number, true, false or null")));
        }
    };
    Ok(ScalarAndMetadata::from(value))
}
