//! `quikflow reset`: throw away a topology's state and output and rebuild them.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::process;
use crate::settings::Settings;
use quikflow_topics::broker::{Broker, BrokerError, ResetFrom};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::clock::SystemClock;
use std::path::PathBuf;

/// Where the topology starts anew.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum From {
    Earliest,
    Latest,
}

/// Throws away a topology's state and output and rebuilds them, in a running process or a stopped one's data; those that read what it writes are reset with it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow reset --topology channel-activity --from earliest")]
pub(crate) struct Args {
    /// The topology
    #[arg(long, value_name = "NAME")]
    topology: String,
    /// Where it starts anew
    #[arg(long, value_enum, default_value_t = From::Earliest)]
    from: From,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    url: Option<String>,
    /// The data directory [default: quikflow-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    let (from, word) = match args.from {
        From::Earliest => (ResetFrom::Earliest, "earliest"),
        From::Latest => (ResetFrom::Latest, "latest"),
    };
    let data = args.data.clone().or_else(|| settings.get("data").map(PathBuf::from)).unwrap_or_else(|| "quikflow-data".into());
    if args.url.is_none() && data.is_dir() {
        // A process that refused to start (R12) leaves the directory free: it is reset right here.
        match EmbeddedBroker::open(EmbeddedOptions::new(&data, SystemClock::shared())) {
            Ok(broker) => {
                let done = here(&args, settings, &broker, from);
                broker.close();
                let readers = done?;
                out::line(format!("`{}` is reset: it starts at the {word} record with the next `quikflow run`", args.topology))?;
                say_readers(&readers);
                return Ok(Outcome::Done);
            }
            Err(BrokerError::Owned(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let path = format!("/v1/topologies/{}/reset", super::path_segment(&args.topology));
    let answer = block_on(async {
        let client = Client::connect(settings, args.url.as_deref(), Side::Query).await?;
        client.post(&path, &serde_json::json!({ "from": word })).await
    })?;
    out::line(format!("`{}` is reset: it rebuilds from the {word} record; `quikflow lag --wait` waits for it", args.topology))?;
    let readers = answer.get("readers").and_then(serde_json::Value::as_array).into_iter().flatten();
    say_readers(&readers.filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>());
    Ok(Outcome::Done)
}

fn say_readers(readers: &[String]) {
    if !readers.is_empty() {
        out::note(format!("reset with it, as they read what it writes: {}", readers.join(", ")));
    }
}

/// Returns the topologies that were reset with it.
fn here(args: &Args, settings: &Settings, broker: &EmbeddedBroker, from: ResetFrom) -> Result<Vec<String>, Failure> {
    let path = super::topologies(args.topologies.as_deref(), settings);
    let (_, loaded) = process::load(&path)?;
    let plan = loaded.plan.ok_or_else(|| Failure::usage(format!("{} has mistakes; nothing was reset", path.display())))?;
    let topologies = process::reset_with(&plan, &args.topology);
    if topologies.is_empty() {
        let names: Vec<&str> = plan.topologies.iter().map(|t| t.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "{} has no topology `{}`; available: {}",
            path.display(),
            args.topology,
            names.join(", ")
        )));
    }
    for topology in &topologies {
        broker.reset_topology(&topology.name, &process::outputs_of(topology), from)?;
    }
    Ok(topologies.iter().rev().skip(1).map(|topology| topology.name.clone()).collect())
}
