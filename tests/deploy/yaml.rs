//! YAML as JSON values: aliases resolved, `<<` merged, nothing twice.

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// Every document of a file.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>, String> {
    let documents = Yaml::load_from_str(text).map_err(|error| format!("not YAML: {error}"))?;
    if documents.is_empty() {
        return Err("not YAML: no document".to_owned());
    }
    documents.iter().map(value).collect()
}

fn value(node: &Yaml<'_>) -> Result<Value, String> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(flag)) => Value::Bool(*flag),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => Value::String(text.to_string()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(value).collect::<Result<_, _>>()?),
        Yaml::Mapping(pairs) => {
            let mut map = Map::new();
            let mut merged = Map::new();
            for (key, item) in pairs {
                let key = match value(key)? {
                    Value::String(key) => key,
                    other => return Err(format!("the key {other} is not text")),
                };
                match (key.as_str(), value(item)?) {
                    ("<<", Value::Object(from)) => merged.extend(from),
                    ("<<", other) => return Err(format!("<< takes a mapping, not {other}")),
                    (_, item) => drop(map.insert(key, item)),
                }
            }
            for (key, item) in merged {
                map.entry(key).or_insert(item);
            }
            Value::Object(map)
        }
        Yaml::Tagged(_, inner) => value(inner)?,
        other => return Err(format!("cannot read {other:?}")),
    })
}

/// A place in a value, `a/b/0`; null where there is nothing.
pub(crate) fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    static NOTHING: Value = Value::Null;
    path.split('/').filter(|part| !part.is_empty()).fold(value, |value, part| {
        let found = match value {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|index| items.get(index)),
            other => other.get(part),
        };
        found.unwrap_or(&NOTHING)
    })
}

/// The texts of a list, or of a single one.
pub(crate) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        Value::Null => Vec::new(),
        other => vec![text(other)],
    }
}

/// A scalar as text.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The names and values of a mapping.
pub(crate) fn pairs(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
