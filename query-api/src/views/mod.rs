//! `GET /v1/views` and `GET /v1/views/{view}`: the materialised aggregates.
//!
//! [`request`] reads what is asked for, [`plan`] makes a DataFusion plan of it (values, never text),
//! [`rollup`] groups by the rules of R21, [`cursor`] pages by key, [`route`] answers;
//! [`changes`] tells what changes from then on.

pub mod changes;
pub mod cursor;
pub mod plan;
pub mod request;
pub mod rollup;
pub mod route;

use crate::formats;
use crate::relations::Relation;

/// A view as it is described in the list.
pub fn describe(relation: &Relation) -> serde_json::Value {
    let info = &relation.info;
    serde_json::json!({
        "name": info.name,
        "doc": info.doc,
        "columns": formats::columns(&info.schema),
        "key": info.key,
        "time_column": info.time_column,
        "final_column": info.final_column,
        "rollup": info.rollup,
        "topic": info.topic,
        "sink": info.sink,
    })
}
