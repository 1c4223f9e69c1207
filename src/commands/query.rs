//! `quikflow query`: the query API's SQL from the shell.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use crate::table::Table;
use serde_json::Value;
use std::io::IsTerminal;

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
    Parquet,
}

/// Runs read-only SQL over views, stores, topics and dead letters of a running process
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow query 'SELECT channel, sum(messages) FROM channel_activity GROUP BY channel ORDER BY 2 DESC LIMIT 5'"
)]
pub(crate) struct Args {
    /// The statement
    sql: String,
    /// How the answer is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    if args.format == Format::Parquet && std::io::stdout().is_terminal() {
        return Err(Failure::usage("parquet is not for a terminal: redirect it to a file, as in `> answer.parquet`"));
    }
    block_on(async {
        let client = Client::connect(settings, args.url.as_deref(), Side::Query).await?;
        let accept = match args.format {
            Format::Table | Format::Json => "application/json",
            Format::Csv => "text/csv",
            Format::Parquet => "application/vnd.apache.parquet",
        };
        let body = serde_json::json!({ "sql": args.sql });
        let request = client.request(reqwest::Method::POST, "/v1/sql").header("accept", accept).json(&body);
        let mut response = client.send(request).await?;
        match args.format {
            Format::Csv | Format::Parquet => {
                while let Some(chunk) =
                    response.chunk().await.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))?
                {
                    out::bytes(&chunk)?;
                }
            }
            Format::Json => {
                let whole = response.bytes().await.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))?;
                out::bytes(&whole)?;
                if whole.last() != Some(&b'\n') {
                    out::bytes(b"\n")?;
                }
            }
            Format::Table => {
                let answer: Value = response.json().await.map_err(|e| Failure::failed(format!("the answer is not JSON: {e}")))?;
                let rows = rows_of(&answer);
                let table = Table::of_objects(rows);
                out::line(table.render())?;
                out::note(format!("{} rows", table.len()));
            }
        }
        Ok(Outcome::Done)
    })
}

/// The rows of an answer: `{"rows": […]}`, or the array itself.
pub(crate) fn rows_of(answer: &Value) -> &[Value] {
    let rows = answer.get("rows").or_else(|| answer.get("items")).unwrap_or(answer);
    rows.as_array().map_or(&[], Vec::as_slice)
}
