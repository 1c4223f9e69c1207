//! What is asked of a view.

use crate::formats::Format;
use crate::params::{Params, unknown};
use crate::problem::Problem;
use arrow::datatypes::{DataType, Schema};
use axum::http::HeaderMap;
use quikflow_sinks::store::TableInfo;
use quikflow_topics::ids::EventTime;
use std::hash::{Hash, Hasher};

/// The parameters of a view.
pub const PARAMETERS: [&str; 10] =
    ["from", "to", "where", "group_by", "columns", "order_by", "limit", "cursor", "include_open", "format"];
/// Rows of a JSON page.
const PAGE: usize = 1_000;
/// Most rows of a JSON page.
const PAGE_MOST: usize = 10_000;
/// Most columns in a list.
const LIST: usize = 64;

/// A column to group by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupBy {
    /// The column.
    pub column: String,
    /// For a time: the size of the bucket, in microseconds.
    pub bucket: Option<i64>,
}

/// A column to order by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrderBy {
    /// The column.
    pub column: String,
    /// From high to low. Nulls are last either way.
    pub descending: bool,
}

/// What is asked of a view, not yet checked against its types.
#[derive(Clone, Debug)]
pub struct ViewRequest {
    /// Rows whose time is not before.
    pub from: Option<EventTime>,
    /// Rows whose time is before.
    pub to: Option<EventTime>,
    /// A condition, as written.
    pub filter: Option<String>,
    /// Groups; empty for the rows themselves.
    pub group_by: Vec<GroupBy>,
    /// The columns wanted, in order; none for all.
    pub columns: Option<Vec<String>>,
    /// The order; the key follows.
    pub order_by: Vec<OrderBy>,
    /// How many rows.
    pub limit: Option<usize>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// Open rows too.
    pub include_open: bool,
    /// The form of the answer.
    pub format: Format,
}

impl ViewRequest {
    /// Reads the parameters.
    ///
    /// # Errors
    /// 422 naming the parameter; 406.
    pub fn read(query: Option<&str>, headers: &HeaderMap, info: &TableInfo) -> Result<ViewRequest, Problem> {
        let params = Params::read(query, &PARAMETERS)?;
        let (from, to) = params.range()?;
        if (from.is_some() || to.is_some()) && info.time_column.is_none() {
            return Err(Problem::field("from", "no_time", format!("`{}` has no time column", info.name)));
        }
        let format = Format::wanted(params.text("format"), headers)?;
        let most = if format == Format::Json { PAGE_MOST } else { usize::MAX };
        let columns = match params.text("columns") {
            Some(text) => {
                let names: Vec<String> = list("columns", text)?.into_iter().map(str::to_owned).collect();
                for name in &names {
                    column("columns", name, &info.schema)?;
                }
                Some(names)
            }
            None => None,
        };
        let group_by = match params.text("group_by") {
            Some(text) => list("group_by", text)?.into_iter().map(|g| group(g, info)).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let order_by = match params.text("order_by") {
            Some(text) => list("order_by", text)?.into_iter().map(|o| order(o, info)).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(ViewRequest {
            from,
            to,
            filter: params.text("where").map(str::to_owned),
            group_by,
            columns,
            order_by,
            limit: params.number("limit", 1, most)?,
            cursor: params.text("cursor").map(str::to_owned),
            include_open: params.flag("include_open")?,
            format,
        })
    }

    /// Rows of this page.
    pub fn page(&self) -> usize {
        self.limit.unwrap_or(PAGE)
    }

    /// What a cursor is valid for: all that decides which rows there are and in which order.
    pub fn fingerprint(&self, view: &str) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (view, self.from.map(|t| t.0), self.to.map(|t| t.0), &self.filter, self.include_open).hash(&mut hasher);
        (&self.group_by, &self.order_by, &self.columns).hash(&mut hasher);
        hasher.finish()
    }
}

fn list<'a>(name: &str, text: &'a str) -> Result<Vec<&'a str>, Problem> {
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    let twice = |i: &usize| items[..*i].contains(&items[*i]);
    if items.iter().any(|i| i.is_empty()) {
        return Err(Problem::field(name, "empty", format!("`{name}` is a list of columns: a,b")));
    }
    if items.len() > LIST {
        return Err(Problem::field(name, "max_length", format!("`{name}` names more than {LIST} columns")));
    }
    match (0..items.len()).find(twice) {
        Some(i) => Err(Problem::field(name, "repeated", format!("`{name}` names `{}` twice", items[i]))),
        None => Ok(items),
    }
}

fn column<'a>(parameter: &str, name: &str, schema: &'a Schema) -> Result<&'a DataType, Problem> {
    match schema.field_with_name(name) {
        Ok(field) => Ok(field.data_type()),
        Err(_) => {
            let names = schema.fields().iter().map(|f| f.name().as_str());
            Err(Problem::field(parameter, "unknown_column", unknown("column", name, names)))
        }
    }
}

fn group(text: &str, info: &TableInfo) -> Result<GroupBy, Problem> {
    let (name, bucket) = match text.split_once(':') {
        Some((name, bucket)) => (name.trim(), Some(bucket.trim())),
        None => (text, None),
    };
    let ty = column("group_by", name, &info.schema)?;
    if matches!(ty, DataType::List(_)) {
        return Err(Problem::field("group_by", "type", format!("`{name}` is a list, it cannot be grouped by")));
    }
    let Some(bucket) = bucket else { return Ok(GroupBy { column: name.to_owned(), bucket: None }) };
    if !matches!(ty, DataType::Timestamp(..)) {
        let message = format!("`{name}` is no time: a bucket such as `:{bucket}` can only be given for a time");
        return Err(Problem::field("group_by", "type", message));
    }
    let bucket = quikflow_topics::units::parse_duration(bucket).map_err(|e| Problem::field("group_by", "duration", e))?;
    match i64::try_from(bucket.as_micros()) {
        Ok(micros) if micros > 0 => Ok(GroupBy { column: name.to_owned(), bucket: Some(micros) }),
        _ => Err(Problem::field("group_by", "range", "a bucket is longer than nothing and shorter than an age")),
    }
}

fn order(text: &str, info: &TableInfo) -> Result<OrderBy, Problem> {
    let (name, descending) = match text.strip_prefix('-') {
        Some(name) => (name, true),
        None => match text.split_once([' ', ':']).map(|(n, d)| (n, d.trim().to_ascii_lowercase())) {
            None => (text, false),
            Some((name, direction)) if direction == "asc" => (name, false),
            Some((name, direction)) if direction == "desc" => (name, true),
            Some(_) => {
                let message = format!("`{text}` is not an order: write column, column:asc or column:desc");
                return Err(Problem::field("order_by", "direction", message));
            }
        },
    };
    if matches!(column("order_by", name, &info.schema)?, DataType::List(_)) {
        return Err(Problem::field("order_by", "type", format!("`{name}` is a list, it has no order")));
    }
    Ok(OrderBy { column: name.to_owned(), descending })
}
