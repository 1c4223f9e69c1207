//! `quikflow topics`: look at topics.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use crate::table::{self, Table};
use quikflow_topics::broker::{Broker, Positions, Projection};
use quikflow_topics::brokers::embedded::EmbeddedBroker;
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::json::encode::Encoder;
use serde_json::{Value, json};
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

/// Lists, describes and reads topics, of a running process or (with --data) offline
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow topics read QuikApp.messages --max 5")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Reads this data directory offline instead
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All topics with their figures
    List,
    /// One topic: settings, columns, partitions
    Describe {
        /// The topic
        topic: String,
    },
    /// Records of a topic, one JSON object a line
    Read {
        /// The topic
        topic: String,
        /// The first offset, in every partition
        #[arg(long, value_name = "OFFSET", default_value_t = 0)]
        from: u64,
        /// Only this partition
        #[arg(long)]
        partition: Option<u32>,
        /// Stop after so many records
        #[arg(long, value_name = "N")]
        max: Option<u64>,
        /// Go on with what comes
        #[arg(long)]
        follow: bool,
    },
}

/// Most records asked for at once.
const PAGE: u64 = 1_000;
/// How often `--follow` looks.
const FOLLOW: Duration = Duration::from_millis(250);

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    match &args.data {
        Some(dir) => offline(&args.what, dir)?,
        None => block_on(asked(&args, settings))?,
    }
    Ok(Outcome::Done)
}

async fn asked(args: &Args, settings: &Settings) -> Result<(), Failure> {
    let client = Client::connect(settings, args.url.as_deref(), Side::Query).await?;
    match &args.what {
        What::List => list(&client.get("/v1/topics", &[]).await?),
        What::Describe { topic } => describe(&client.get(&format!("/v1/topics/{}", super::path_segment(topic)), &[]).await?),
        What::Read { topic, from, partition, max, follow } => {
            let path = format!("/v1/topics/{}/records", super::path_segment(topic));
            let (mut next, mut left) = (from.to_string(), max.unwrap_or(u64::MAX));
            while left > 0 {
                let mut query = vec![("from", next.clone()), ("max", left.min(PAGE).to_string())];
                query.extend(partition.map(|p| ("partition", p.to_string())));
                let answer = client.get(&path, &query).await?;
                let records = answer.get("records").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let mut text = String::new();
                for record in records {
                    text.push_str(&record.to_string());
                    text.push('\n');
                }
                out::bytes(text.as_bytes())?;
                left -= left.min(records.len() as u64);
                next = table::cell(answer.get("next"));
                if records.is_empty() {
                    if !*follow {
                        break;
                    }
                    tokio::time::sleep(FOLLOW).await;
                }
            }
            Ok(())
        }
    }
}

fn list(answer: &Value) -> Result<(), Failure> {
    let mut table = Table::new(["topic", "kind", "partitions", "records", "bytes", "doc"]);
    for topic in answer.get("topics").and_then(Value::as_array).into_iter().flatten() {
        let number = |name: &str| out::thousands(topic.get(name).and_then(Value::as_u64).unwrap_or(0));
        let text = |name: &str| table::cell(topic.get(name));
        table.row([text("name"), text("kind"), number("partitions"), number("records"), number("bytes"), text("doc")]);
    }
    out::line(table.render())
}

fn describe(topic: &Value) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for (name, value) in topic.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "columns" | "start" | "end") && !value.is_null() {
            lines.push(format!("{name}: {}", table::cell(Some(value))));
        }
    }
    out::line(lines.join("\n"))?;
    if let Some(columns) = topic.get("columns").and_then(Value::as_array) {
        out::line(format!("\n{}", Table::of_objects(columns).render()))?;
    }
    let numbers = |name: &str| topic.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut table = Table::new(["partition", "start", "end"]);
    for (partition, (start, end)) in numbers("start").iter().zip(numbers("end")).enumerate() {
        table.row([partition.to_string(), start.to_string(), end.to_string()]);
    }
    out::line(format!("\n{}", table.render()))
}

fn offline(what: &What, dir: &Path) -> Result<(), Failure> {
    let broker = EmbeddedBroker::open_read_only(dir)?;
    let figures = |name: &str| -> Result<Value, Failure> {
        let spec = broker.topic(name).ok_or_else(|| Failure::usage(format!("{} has no topic `{name}`", dir.display())))?;
        let stats = broker.stats(name)?;
        let kind = format!("{:?}", spec.kind).to_lowercase();
        Ok(json!({
            "name": name, "doc": spec.doc, "kind": kind, "partitions": spec.partitions, "records": stats.records,
            "chunks": stats.chunks, "bytes": stats.bytes, "start": stats.start, "end": stats.end,
        }))
    };
    match what {
        What::List => {
            let topics = broker.topics().iter().map(|spec| figures(&spec.name)).collect::<Result<Vec<_>, _>>()?;
            list(&json!({ "topics": topics }))
        }
        What::Describe { topic } => describe(&figures(topic)?),
        What::Read { follow: true, .. } => Err(Failure::usage("--follow asks a running process: leave --data out")),
        What::Read { topic, from, partition, max, follow: false } => {
            read(&broker, topic, *from, *partition, max.unwrap_or(u64::MAX))
        }
    }
}

fn read(broker: &EmbeddedBroker, topic: &str, from: u64, only: Option<u32>, max: u64) -> Result<(), Failure> {
    let spec = broker.topic(topic).ok_or_else(|| Failure::usage(format!("there is no topic `{topic}`")))?;
    let start: Positions = (0..spec.partitions)
        .map(|p| (PartitionId(p), Offset(if only.is_none_or(|only| only == p) { from } else { u64::MAX >> 1 })))
        .collect();
    let mut reader = broker.reader(topic, &start)?;
    let projection = Projection::all(&spec);
    let mut left = max;
    while left > 0 {
        let Some(slice) = reader.poll(usize::try_from(left.min(PAGE)).unwrap_or(1))? else { break };
        let batch = slice.decode(&projection)?;
        let encoder = Encoder::new(&spec, &batch).map_err(|error| Failure::failed(error.to_string()))?;
        let mut text = String::new();
        let mut row = 0;
        for part in slice.parts() {
            for _ in 0..part.rows {
                if only.is_none_or(|only| only == part.partition.0) && left > 0 {
                    encoder.write(row, &mut text);
                    text.push('\n');
                    left -= 1;
                }
                row += 1;
            }
        }
        out::bytes(text.as_bytes())?;
    }
    Ok(())
}
