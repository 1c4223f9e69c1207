//! The forms of an answer: JSON, CSV, Arrow stream, Parquet; asked for by `Accept` or `?format=`.

mod encode;
mod json;

pub use encode::Encoder;
pub use json::{columns, rows};

use crate::problem::Problem;
use arrow::datatypes::{Field, Schema, SchemaRef};
use axum::http::{HeaderMap, StatusCode, header};
use std::sync::Arc;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `text/csv`
    Csv,
    /// `application/vnd.apache.arrow.stream`
    Arrow,
    /// `application/vnd.apache.parquet`
    Parquet,
}

/// Name, media type and form.
const FORMATS: [(&str, &str, Format); 4] = [
    ("json", "application/json", Format::Json),
    ("csv", "text/csv", Format::Csv),
    ("arrow", "application/vnd.apache.arrow.stream", Format::Arrow),
    ("parquet", "application/vnd.apache.parquet", Format::Parquet),
];

impl Format {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Csv => "text/csv; charset=utf-8",
            other => FORMATS.iter().find(|(_, _, f)| *f == other).map_or("application/json", |(_, media, _)| media),
        }
    }

    /// What `?format=` asks for, else what `Accept` does, else JSON.
    ///
    /// # Errors
    /// 422 for an unknown `format`, 406 when nothing in `Accept` can be given.
    pub fn wanted(parameter: Option<&str>, headers: &HeaderMap) -> Result<Format, Problem> {
        if let Some(name) = parameter {
            let names = FORMATS.iter().map(|(name, ..)| *name);
            return FORMATS
                .iter()
                .find(|(known, ..)| *known == name)
                .map(|(_, _, format)| *format)
                .ok_or_else(|| Problem::field("format", "one_of", crate::params::unknown("format", name, names)));
        }
        let accepts: Vec<&str> =
            headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).collect();
        if accepts.is_empty() {
            return Ok(Format::Json);
        }
        // The highest q first; of equals the first that was named.
        let mut ranked: Vec<(u32, &str)> = accepts.iter().map(|a| rank(a)).filter(|(q, _)| *q > 0).collect();
        ranked.sort_by_key(|(q, _)| std::cmp::Reverse(*q));
        for (_, media) in ranked {
            let found = FORMATS.iter().find(|(_, known, _)| known.eq_ignore_ascii_case(media));
            match (found, media) {
                (Some((_, _, format)), _) => return Ok(*format),
                (None, "*/*" | "application/*") => return Ok(Format::Json),
                (None, "text/*") => return Ok(Format::Csv),
                _ => {}
            }
        }
        let known: Vec<&str> = FORMATS.iter().map(|(_, media, _)| *media).collect();
        let detail = format!("nothing in Accept can be given; there is {}", known.join(", "));
        Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
    }
}

fn rank(accept: &str) -> (u32, &str) {
    let mut parts = accept.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let q = parts.find_map(|p| p.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0);
    ((q.clamp(0.0, 1.0) * 1000.0) as u32, media)
}

/// The schema with each name once: a second `x` becomes `x_2`.
pub fn unique_names(schema: &SchemaRef) -> SchemaRef {
    let mut seen = std::collections::HashSet::new();
    let mut fields: Vec<Field> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let mut name = field.name().clone();
        let mut n = 2;
        while !seen.insert(name.clone()) {
            name = format!("{}_{n}", field.name());
            n += 1;
        }
        fields.push(field.as_ref().clone().with_name(name));
    }
    Arc::new(Schema::new(fields))
}
