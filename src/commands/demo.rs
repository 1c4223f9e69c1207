//! `quikflow demo`: everything at once, with generated traffic.

mod traffic;

use super::lag;
use super::run::Wanted;
use crate::client::Client;
use crate::exit::{Context, Ended, Failure, Outcome};
use crate::out;
use crate::process::{self, Process};
use crate::settings::Settings;
use crate::table::Table;
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::clock::SystemClock;
use std::path::PathBuf;
use std::time::Duration;

/// Runs everything with a fresh data directory, sends realistic traffic through it, shows the aggregates
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow demo --exit")]
pub(crate) struct Args {
    /// JSONL to send instead of generated traffic (plain, .gz or .zst)
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// How many events to generate
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    events: u64,
    /// Seed of the generated traffic
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// The data directory, which must be empty or absent [default: a fresh one, quikflow-demo-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
    /// Where ingest listens [default: 127.0.0.1:8080, or a free port]
    #[arg(long, value_name = "ADDR")]
    ingest_addr: Option<String>,
    /// Where the query API listens [default: 127.0.0.1:8090, or a free port]
    #[arg(long, value_name = "ADDR")]
    query_addr: Option<String>,
    /// Timely workers [default: the number of cores, at most 4]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// End after the aggregates were shown
    #[arg(long)]
    exit: bool,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    process::init_logging();
    let data = fresh(args.data.clone())?;
    let free = |wanted: &Option<String>, setting: &str, default: &str| match wanted {
        Some(address) => Some(address.clone()),
        None if settings.get(setting).is_some() => None,
        // Another process has the usual port: take a free one.
        None if std::net::TcpListener::bind(default).is_err() => Some("127.0.0.1:0".to_owned()),
        None => None,
    };
    let wanted = Wanted {
        parts: Vec::new(),
        topologies: args.topologies.clone(),
        data: Some(data.clone()),
        ingest_addr: free(&args.ingest_addr, "ingest_addr", "127.0.0.1:8080"),
        query_addr: free(&args.query_addr, "query_addr", "127.0.0.1:8090"),
        health_addr: None,
        workers: args.workers,
    };
    let process = Process::start(wanted.setup(settings)?)?;
    out::line(super::run::ready_line(&process, &data.display().to_string()))?;
    let (Some(ingest), Some(query)) = (process.ingest(), process.query()) else {
        return Err(Failure::failed("the demo needs both addresses"));
    };
    let token = settings.get("token").map(str::to_owned);
    let shown = process.block_on(async {
        traffic::send(&args, &data, &ingest, token.as_deref()).await?;
        settle(&query, token.as_deref()).await?;
        show(&query, token.as_deref()).await
    });
    let outcome = match shown {
        Ok(()) if args.exit => Ok(()),
        Ok(()) => {
            out::line(format!("\nLook around: {query}/docs · {query}/v1/views · {ingest}/docs"))?;
            out::line(format!("Ask: quikflow query --url {query} 'SELECT * FROM channel_activity LIMIT 5'"))?;
            out::line("Ctrl-C ends it.")?;
            process.catch_signals().and_then(|signals| process.wait(signals))
        }
        Err(failure) => Err(failure),
    };
    let stopped = process.stop();
    outcome.and(stopped)?;
    Ok(Outcome::Done)
}

/// A directory that nothing else uses: the one named, which must be empty, or `quikflow-demo-data` made anew.
fn fresh(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let Some(dir) = named else {
        let dir = PathBuf::from("quikflow-demo-data");
        if dir.exists() {
            // Only what a demo has made is thrown away, and never one that runs.
            let mine = dir.join("log.sqlite").is_file() || dir.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            if !mine {
                return Err(Failure::usage("quikflow-demo-data is not a demo's data directory; name another with --data"));
            }
            let broker = EmbeddedBroker::open(EmbeddedOptions::new(&dir, SystemClock::shared()))?;
            broker.close();
            drop(broker);
            std::fs::remove_dir_all(&dir).usage(dir.display())?;
        }
        return Ok(dir);
    };
    if dir.exists() && dir.read_dir().usage(dir.display())?.next().is_some() {
        return Err(Failure::usage(format!("{} is not empty: the demo takes a fresh data directory", dir.display())));
    }
    Ok(dir)
}

/// Waits until everything sent has come through to the stores.
async fn settle(query: &str, token: Option<&str>) -> Result<(), Failure> {
    let client = Client::exactly(query, token)?;
    let clock = SystemClock::shared();
    out::note("waiting until everything has come through…");
    while clock.elapsed() < Duration::from_secs(300) {
        if lag::is_settled(&client.get("/v1/lag", &[]).await?) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(Failure::failed("the pipeline did not come to rest within five minutes; `quikflow top` shows where it stands"))
}

/// The aggregates as tables.
async fn show(query: &str, token: Option<&str>) -> Result<(), Failure> {
    let client = Client::exactly(query, token)?;
    for (title, sql) in SHOWN {
        let answer = client.post("/v1/sql", &serde_json::json!({ "sql": sql })).await;
        match answer {
            Ok(answer) => {
                let table = Table::of_objects(super::query::rows_of(&answer));
                out::line(format!("\n── {title}\n{}", table.render()))?;
            }
            // Topologies of one's own need not have this view.
            Err(failure) => out::note(format!("\n── {title}: {}", failure.message)),
        }
    }
    Ok(())
}

/// What is shown: title, SQL.
const SHOWN: [(&str, &str); 6] = [
    (
        "busiest channels and minutes (channel_activity)",
        "SELECT window_start, channel, messages, authors, characters, p95_length, final FROM channel_activity ORDER BY messages DESC, channel LIMIT 10",
    ),
    ("features", "SELECT * FROM features ORDER BY window_start DESC LIMIT 8"),
    ("calls", "SELECT * FROM calls ORDER BY window_start DESC, kind LIMIT 8"),
    ("audit alerts", "SELECT * FROM audit_alerts LIMIT 8"),
    ("notifications", "SELECT count(*) AS notifications FROM notifications"),
    ("dead letters", "SELECT count(*) AS dead_letters FROM dead_letters"),
];
