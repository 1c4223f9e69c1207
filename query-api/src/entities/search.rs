//! Full-text search over messages, with highlights.

use super::answer;
use crate::params::Params;
use crate::problem::Problem;
use crate::state::QueryState;
use axum::extract::{RawQuery, State};
use serde_json::Value;

/// The longest search text, in characters.
const TEXT: usize = 500;

/// `GET /api/v1/search`: messages that hold all words of `q`, best first.
pub(crate) async fn get(State(state): State<QueryState>, RawQuery(query): RawQuery) -> Result<axum::Json<Value>, Problem> {
    let known = ["q", "type", "workspaceId", "channelId", "userId", "limit", "cursor"];
    let params = Params::read(query.as_deref(), &known)?;
    let text = params.required("q")?;
    if text.chars().count() > TEXT {
        return Err(Problem::field("q", "max_length", format!("`q` has more than {TEXT} characters")));
    }
    match params.text("type") {
        None | Some("messages" | "message") => {}
        Some(other) => {
            let message = crate::params::unknown("type", other, ["messages"].into_iter());
            return Err(Problem::field("type", "one_of", message));
        }
    }
    let filter: Vec<(String, String)> = ["workspaceId", "channelId", "userId"]
        .iter()
        .filter_map(|name| params.text(name).map(|value| ((*name).to_owned(), value.to_owned())))
        .collect();
    let limit = params.number("limit", 1, 100)?.unwrap_or(20);
    Ok(answer(state.read.search.search(text, &filter, params.text("cursor"), limit).await?))
}
