//! `quikflow run`: all parts in one process, or the ones named.

use crate::client::checked_base;
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::process::{self, Process, Setup};
use crate::settings::Settings;
use quikflow_gateway::Auth;
use quikflow_gateway::sign_in::keys::Keys;
use quikflow_sinks::stores::Elsewhere;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Where /health and /metrics are answered whichever parts run; port 0 takes a free one [default: nowhere]
    #[arg(long, value_name = "ADDR")]
    health_addr: Option<String>,
    /// Timely workers [default: the number of cores, at most 4]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// What the flags and the settings say together.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Which parts; all when none is named.
    pub(crate) parts: Vec<Part>,
    pub(crate) topologies: Option<PathBuf>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) ingest_addr: Option<String>,
    pub(crate) query_addr: Option<String>,
    pub(crate) health_addr: Option<String>,
    pub(crate) workers: Option<usize>,
}

impl Wanted {
    /// Everything a process needs to start.
    ///
    /// # Errors
    /// Exit 2 for what makes no sense.
    pub(crate) fn setup(self, settings: &Settings) -> Result<Setup, Failure> {
        settings.check_components()?;
        let auth = match settings.get("token") {
            Some(token) => Auth::with_token(token, "QUIKFLOW_TOKEN").map_err(|error| Failure::usage(error.to_string()))?,
            None => Auth::open(),
        };
        let keys = settings.get("jwt_key").map(|pem| Keys::given(pem, "QUIKFLOW_JWT_KEY")).transpose();
        let keys = keys.map_err(|error| Failure::usage(error.to_string()))?.map(Arc::new);
        let address = |flag: Option<String>, name: &str, default: &str| listen_address(&settings.or(flag, name, default));
        let health = self.health_addr.as_deref().or_else(|| settings.get("health_addr")).map(listen_address).transpose()?;
        let path = |flag: Option<PathBuf>, name: &str, default: &str| {
            flag.or_else(|| settings.get(name).map(PathBuf::from)).unwrap_or_else(|| PathBuf::from(default))
        };
        let workers = match (self.workers, settings.get("workers")) {
            (Some(workers), _) => workers,
            (None, Some(text)) => text.parse().map_err(|_| Failure::usage(format!("`{text}` is not a number of workers")))?,
            (None, None) => process::default_workers(),
        };
        if !(1..=128).contains(&workers) {
            return Err(Failure::usage("--workers is from 1 to 128"));
        }
        let broker = process::Choice::from(settings)?;
        let local_sinks = settings.switch("local_sinks", true)?;
        if !local_sinks && broker.is_embedded() {
            return Err(Failure::usage("`local_sinks` is off and the broker is embedded: no other process can have those sinks"));
        }
        let all = [Part::Ingest, Part::Pipelines, Part::Sinks, Part::Query];
        let parts = if self.parts.is_empty() { all.to_vec() } else { self.parts };
        let mut stores = settings.store_urls()?;
        stores.embedded = embedded_elsewhere(settings, &parts, local_sinks)?;
        Ok(Setup {
            parts,
            topologies: path(self.topologies, "topologies", "topologies.toml"),
            data: path(self.data, "data", "quikflow-data"),
            broker,
            ingest: address(self.ingest_addr, "ingest_addr", "127.0.0.1:8080")?,
            query: address(self.query_addr, "query_addr", "127.0.0.1:8090")?,
            health,
            workers,
            auth,
            keys,
            stores,
            local_sinks,
        })
    }
}

/// The process that has the embedded stores, where it is another one and this one is asked for what is in them.
fn embedded_elsewhere(settings: &Settings, parts: &[Part], local_sinks: bool) -> Result<Option<Elsewhere>, Failure> {
    let Some(url) = settings.get("embedded_stores_url") else { return Ok(None) };
    if parts.contains(&Part::Sinks) && local_sinks {
        return Err(Failure::usage(
            "`embedded_stores_url` names another process, and this one runs the sinks of the embedded stores itself: \
             unset it, or set QUIKFLOW_LOCAL_SINKS=off",
        ));
    }
    let url = checked_base(url).map_err(|error| Failure::usage(format!("QUIKFLOW_EMBEDDED_STORES_URL: {error}")))?;
    let token = settings.get("token").map(str::to_owned);
    Ok(parts.contains(&Part::Query).then_some(Elsewhere { url, token }))
}

/// An address to listen on.
///
/// # Errors
/// Exit 2 when it is none.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| {
        Failure::usage(format!("`{text}` is not an address to listen on: write 127.0.0.1:8080, or port 0 for a free one"))
    })
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    process::init_logging();
    let Args { parts, topologies, data, ingest_addr, query_addr, health_addr, workers } = args;
    let setup = Wanted { parts, topologies, data, ingest_addr, query_addr, health_addr, workers }.setup(settings)?;
    let data = setup.data.display().to_string();
    if setup.parts.len() < 4 && setup.broker.is_embedded() {
        out::note(format!(
            "the embedded broker belongs to one process: the parts not named do not run, and no second process can run them on {data}"
        ));
    }
    let process = Process::start(setup)?;
    // Before anyone is told that it is ready, and may ask it to end.
    let signals = process.catch_signals()?;
    out::line(ready_line(&process, &data))?;
    let waited = process.wait(signals);
    let stopped = process.stop();
    waited.and(stopped)?;
    Ok(Outcome::Done)
}

/// The one line that says it is ready, with its addresses.
pub(crate) fn ready_line(process: &Process, data: &str) -> String {
    let part = |name: &str, url: Option<String>| url.map_or_else(String::new, |url| format!(" {name}={url}"));
    let (ingest, query, health) =
        (part("ingest", process.ingest()), part("query", process.query()), part("health", process.health()));
    format!("quikflow is ready:{ingest}{query}{health} data={data}")
}
