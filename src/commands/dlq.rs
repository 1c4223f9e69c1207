//! `quikflow dlq`: dead letters.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use crate::table::{self, Table};
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::EmbeddedBroker;
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use quikflow_topics::ids::EventTime;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Lists, shows, replays and resolves dead letters, by cause, topology and time
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow dlq list --cause validation --limit 20")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Reads this data directory offline instead (list and show)
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only this cause: decode, validation, expression, sink, …
    #[arg(long)]
    cause: Option<String>,
    /// Only this code
    #[arg(long)]
    code: Option<String>,
    /// Only this topology
    #[arg(long)]
    topology: Option<String>,
    /// Only this step or sink
    #[arg(long)]
    step: Option<String>,
    /// Only this status: open, replaying, replayed, resolved
    #[arg(long)]
    status: Option<String>,
    /// Not before (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Before (RFC 3339)
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Dead letters, newest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// One dead letter with its bytes
    Show {
        /// Its id
        id: String,
    },
    /// Gives dead letters to the failed step or sink again, each at most once
    Replay {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Puts dead letters aside for good
    Resolve {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    let answer = match &args.data {
        Some(dir) => offline(&args.what, dir)?,
        None => block_on(asked(&args, settings))?,
    };
    if args.json {
        out::line(answer.to_string())?;
        return Ok(Outcome::Done);
    }
    match &args.what {
        What::List { .. } => {
            let items = super::query::rows_of(&answer);
            let mut table = Table::new(["at", "cause", "code", "step", "status", "id", "message"]);
            for item in items {
                table.row(["at", "cause", "code", "step", "status", "id", "message"].map(|name| table::cell(item.get(name))));
            }
            out::line(table.render())?;
            let more = answer.get("cursor").is_some_and(|cursor| !cursor.is_null());
            out::note(format!(
                "{} dead letters{}",
                table.len(),
                if more { ", and older ones: narrow it, or raise --limit" } else { "" }
            ));
        }
        What::Show { .. } => {
            let pretty = serde_json::to_string_pretty(&answer).map_err(|error| Failure::failed(error.to_string()))?;
            out::line(pretty)?;
        }
        What::Replay { .. } | What::Resolve { .. } => {
            out::line(format!("{} marked {}", answer["marked"], table::cell(answer.get("status"))))?;
            if matches!(args.what, What::Replay { .. }) && answer["marked"] != 0 {
                out::note(
                    "the step or sink that failed takes them now, each at most once; `quikflow dlq show ID` says what came of it: \
                     replayed, or open again with the reason",
                );
            }
            let skipped = answer.get("skipped").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for one in skipped {
                out::note(format!("{}: {}", table::cell(one.get("id")), table::cell(one.get("reason"))));
            }
            if !skipped.is_empty() {
                return Ok(Outcome::Failed);
            }
        }
    }
    Ok(Outcome::Done)
}

async fn asked(args: &Args, settings: &Settings) -> Result<Value, Failure> {
    let client = Client::connect(settings, args.url.as_deref(), Side::Query).await?;
    match &args.what {
        What::List { filter, limit } => {
            let mut query = vec![("limit", limit.to_string())];
            let given = [
                ("cause", &filter.cause),
                ("code", &filter.code),
                ("topology", &filter.topology),
                ("step", &filter.step),
                ("status", &filter.status),
                ("from", &filter.from),
                ("to", &filter.to),
            ];
            query.extend(given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
            client.get("/v1/dlq", &query).await
        }
        What::Show { id } => client.get(&format!("/v1/dlq/{}", super::path_segment(id)), &[]).await,
        What::Replay { ids } => client.post("/v1/dlq/replay", &json!({ "ids": ids })).await,
        What::Resolve { ids } => client.post("/v1/dlq/resolve", &json!({ "ids": ids })).await,
    }
}

fn offline(what: &What, dir: &std::path::Path) -> Result<Value, Failure> {
    let broker = EmbeddedBroker::open_read_only(dir)?;
    let find = |filter: &DeadLetterFilter| broker.dead_letters(filter).map_err(Failure::from);
    match what {
        What::List { filter, limit } => {
            let time = |text: &Option<String>| text.as_deref().map(super::micros).transpose().map(|t| t.map(EventTime));
            let status = filter.status.as_deref().map(|text| {
                serde_json::from_value::<DeadLetterStatus>(text.into())
                    .map_err(|_| Failure::usage(format!("`{text}` is no status: open, replaying, replayed, resolved")))
            });
            let wanted = DeadLetterFilter {
                cause: filter.cause.clone(),
                code: filter.code.clone(),
                topology: filter.topology.clone(),
                step: filter.step.clone(),
                status: status.transpose()?,
                from: time(&filter.from)?,
                to: time(&filter.to)?,
                limit: *limit,
                ..DeadLetterFilter::default()
            };
            let items: Vec<Value> = find(&wanted)?.iter().map(|(_, letter)| shown(letter)).collect();
            Ok(json!({ "items": items }))
        }
        What::Show { id } => {
            let wanted = DeadLetterFilter { id: Some(id.clone()), limit: 1, ..DeadLetterFilter::default() };
            let found = find(&wanted)?;
            let (_, letter) = found.first().ok_or_else(|| Failure::usage(format!("there is no dead letter `{id}`")))?;
            Ok(shown(letter))
        }
        What::Replay { .. } | What::Resolve { .. } => {
            Err(Failure::usage("dead letters are replayed and resolved by a running process: leave --data out"))
        }
    }
}

fn shown(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id, "at": super::rfc3339(letter.at.0), "cause": letter.cause, "code": letter.code, "path": letter.path,
        "message": letter.message, "topology": letter.topology, "step": letter.step, "origin": letter.origin, "status": letter.status,
        "size": letter.full_size, "record": String::from_utf8_lossy(&letter.bytes),
    })
}
