//! `quikflow run`: all parts in one process, or the ones named.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::path::PathBuf;

/// A part of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// REST and WebSocket traffic into topics
    Ingest,
    /// Topologies
    Pipelines,
    /// Topics into stores
    Sinks,
    /// The query API
    Query,
}

/// Runs all parts in one process, or the ones named
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow run --data quikflow-data --ingest-addr 127.0.0.1:8080 --query-addr 127.0.0.1:8090")]
pub(crate) struct Args {
    /// Which parts; all when none is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
    /// The data directory; one process owns it [default: quikflow-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where ingest listens; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    ingest_addr: Option<String>,
    /// Where the query API listens; port 0 takes a free one [default: 127.0.0.1:8090]
    #[arg(long, value_name = "ADDR")]
    query_addr: Option<String>,
    /// Timely workers [default: the number of cores, at most 4]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    settings.check_components()?;
    Err(Failure::failed(format!("running is not in this build: {args:?}")))
}
