//! A running process: the rooms wired together over one data directory.
//!
//! Start: file → plan → log → stores → engine → sinks → addresses. Stop is the other way round:
//! no new requests, what was taken is answered, the last epoch commits, sinks write what they hold,
//! the log closes.

mod anchors;
mod broker;
mod filters;
#[cfg(feature = "kafka")]
mod instance;
mod introspect;
mod logging;
mod served;
mod sign_in;

pub(crate) use anchors::read as read_anchors;
pub(crate) use broker::{Choice, promise};
pub(crate) use introspect::{outputs_of, reset_with};
pub(crate) use logging::init as init_logging;

use crate::commands::Part;
use crate::exit::{Context, Failure};
use crate::out;
use introspect::Inside;
use quikflow_gateway::sign_in::keys::Keys;
use quikflow_gateway::{Auth, may_bind};
use quikflow_pipelines::engine::EngineOptions;
use quikflow_pipelines::engine::supervise::Supervisor;
use quikflow_pipelines::plan::{self, Plan};
use quikflow_sinks::runner::{RunnerOptions, SinkRunner};
use quikflow_sinks::stores::{StoreUrls, Stores};
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::{SharedClock, SystemClock};
use quikflow_topics::diagnostics::{Severity, SourceFile};
use quikflow_topics::share::Work;
use quikflow_topics::{SinkSpec, TopicSpec};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// So long may sinks take to write what the topics hold when the process stops.
const SINKS_DRAIN: Duration = Duration::from_secs(20);
/// How often it is looked whether a part has failed by itself.
const LOOK: Duration = Duration::from_secs(2);

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The parts that run.
    pub(crate) parts: Vec<Part>,
    /// The declaration file.
    pub(crate) topologies: PathBuf,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The broker.
    pub(crate) broker: Choice,
    /// Where ingest listens.
    pub(crate) ingest: SocketAddr,
    /// Where the query API listens.
    pub(crate) query: SocketAddr,
    /// Where the process says how it is, if anywhere.
    pub(crate) health: Option<SocketAddr>,
    /// Timely workers.
    pub(crate) workers: usize,
    /// What requests have to show.
    pub(crate) auth: Auth,
    /// What access tokens are signed with; the process's own key where absent.
    pub(crate) keys: Option<Arc<Keys>>,
    /// The real stores; the others are embedded.
    pub(crate) stores: StoreUrls,
    /// Sinks of embedded stores run here too.
    pub(crate) local_sinks: bool,
}

/// The signals that ask a process to end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// A running process.
pub(crate) struct Process {
    runtime: tokio::runtime::Runtime,
    inside: Arc<Inside>,
    anchors: Arc<anchors::Anchors>,
    broker: Arc<dyn Broker>,
    closing: watch::Sender<bool>,
    servers: Vec<tokio::task::JoinHandle<std::io::Result<()>>>,
    ingest: Option<SocketAddr>,
    query: Option<SocketAddr>,
    health: Option<SocketAddr>,
}

/// Reads a declaration file and plans it; diagnostics go to standard error.
///
/// # Errors
/// Exit 2 when it cannot be read; `None` when it has mistakes.
pub(crate) fn load(path: &Path) -> Result<(Arc<SourceFile>, plan::Loaded), Failure> {
    let text = std::fs::read_to_string(path).usage(format!("{}: name the declaration file, or make one", path.display()))?;
    let file = SourceFile::new(path.display().to_string(), text);
    let loaded = plan::load(&file);
    for diagnostic in &loaded.diagnostics {
        out::diagnostic(&diagnostic.to_string());
    }
    Ok((file, loaded))
}

/// How many errors and warnings there are, in words.
pub(crate) fn tally(loaded: &plan::Loaded) -> String {
    let errors = loaded.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    let warnings = loaded.diagnostics.len() - errors;
    format!("{errors} errors, {warnings} warnings")
}

impl Process {
    /// Starts all parts that `setup` names.
    ///
    /// # Errors
    /// Exit 2 for configuration, exit 1 for what fails.
    pub(crate) fn start(setup: Setup) -> Result<Process, Failure> {
        let has = |part: Part| setup.parts.contains(&part);
        let (ingest, query) = (has(Part::Ingest).then_some(setup.ingest), has(Part::Query).then_some(setup.query));
        for address in [ingest, query, setup.health].into_iter().flatten() {
            may_bind(address, &setup.auth).map_err(|error| Failure::usage(error.to_string()))?;
        }
        let (file, loaded) = load(&setup.topologies)?;
        let tally = tally(&loaded);
        let Some(plan) = loaded.plan else {
            return Err(Failure::usage(format!("{}: {tally}; nothing was started", setup.topologies.display())));
        };
        let metrics = logging::recorder()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build()?;
        let bind = |address: Option<SocketAddr>| -> Result<Option<TcpListener>, Failure> {
            let listen = |address| runtime.block_on(TcpListener::bind(address)).usage(format!("cannot listen on {address}"));
            address.map(listen).transpose()
        };
        let listeners = (bind(ingest)?, bind(query)?, bind(setup.health)?);
        let clock = SystemClock::shared();
        let (broker, log) = setup.broker.open(&setup.data, &clock)?;
        let plan = Arc::new(plan.for_shares(broker.shares(Work::Pipelines)));
        let followed = followed(&plan);
        broker.ensure_topics(&all_topics(&plan)).map_err(|error| Failure::usage(error.to_string()))?;
        let stores = Stores::open_with(&setup.data, clock.clone(), &followed, &setup.stores).usage("stores")?;
        if !(has(Part::Sinks) && setup.local_sinks) {
            stores.only_reads();
        }
        let read = stores.read_side();
        let sign_in = sign_in::open(&setup, &plan, &read, &clock)?;
        let auth = Arc::new(match &sign_in {
            Some(sign_in) => setup.auth.with_sign_in(sign_in.clone()),
            None => setup.auth,
        });
        let engine = if has(Part::Pipelines) { Some(start_engine(&plan, &broker, &clock, setup.workers)?) } else { None };
        let sinks = if has(Part::Sinks) {
            let _on = runtime.enter();
            let setups = filters::setups(&file, followed)?;
            let options = RunnerOptions { local: setup.local_sinks, ..RunnerOptions::default() };
            let runner = SinkRunner::start(broker.clone(), Arc::new(stores), setups, clock.clone(), options);
            Some(runner.map_err(|error| Failure::usage(error.to_string()))?)
        } else {
            None
        };
        let (closing, closed) = watch::channel(false);
        let address = |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        let (ingest, query, health) = (address(&listeners.0), address(&listeners.1), address(&listeners.2));
        let anchors = Arc::new(anchors::Anchors::new(&plan, broker.clone(), clock.clone(), &setup.data));
        if has(Part::Pipelines) {
            runtime.spawn(anchors.clone().run(closed.clone()));
        }
        let inside =
            Arc::new(Inside { plan, broker: broker.clone(), log, engine, sinks, clock: clock.clone(), metrics, ingest, query });
        let mut servers = Vec::new();
        if let Some(listener) = listeners.0 {
            let (router, events) = served::ingest(&inside, &auth, sign_in, closed.clone());
            servers.push(served::spawn_ingest(&runtime, listener, router, events, closed.clone()));
        }
        if let Some(listener) = listeners.1 {
            let router = served::query(&inside, &auth, read, closed.clone())?;
            servers.push(served::spawn(&runtime, listener, router, closed.clone()));
        }
        if let Some(listener) = listeners.2 {
            servers.push(served::spawn(&runtime, listener, served::health(&inside, &auth), closed));
        }
        Ok(Process { runtime, inside, anchors, broker, closing, servers, ingest, query, health })
    }

    /// The ingest address, where it is served.
    pub(crate) fn ingest(&self) -> Option<String> {
        self.ingest.map(|address| format!("http://{address}"))
    }

    /// The query address, where it is served.
    pub(crate) fn query(&self) -> Option<String> {
        self.query.map(|address| format!("http://{address}"))
    }

    /// The address of its health, where it is served.
    pub(crate) fn health(&self) -> Option<String> {
        self.health.map(|address| format!("http://{address}"))
    }

    /// Runs something beside the process on its threads.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// From now on SIGTERM and Ctrl-C do not kill the process: [`Process::wait`] answers them.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn catch_signals(&self) -> Result<Signals, Failure> {
        let _inside = self.runtime.enter();
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// A part that has failed by itself.
    pub(crate) fn wait(&self, mut signals: Signals) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    _ = signals.terminate.recv() => return Ok(()),
                    _ = signals.interrupt.recv() => return Ok(()),
                    _ = look.tick() => {
                        if let Some(failure) = self.inside.failure().or_else(logging::panicked) {
                            return Err(Failure::failed(failure));
                        }
                    }
                }
            }
        })
    }

    /// Stops taking requests, commits what was taken, and closes.
    ///
    /// # Errors
    /// When the last epoch could not be committed.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.closing.send_replace(true);
        for server in self.servers {
            match self.runtime.block_on(server) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "an address was not closed in good order"),
                Err(error) => tracing::warn!(%error, "an address ended in disorder"),
            }
        }
        let stopped = self.inside.engine.as_ref().map_or(Ok(()), Supervisor::stop);
        if let Some(sinks) = &self.inside.sinks {
            sinks.stop(SINKS_DRAIN);
        }
        self.anchors.write();
        self.broker.close();
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        stopped.map_err(|error| Failure::failed(error.to_string()))
    }
}

/// Every topic of a plan: declared, written, late.
fn all_topics(plan: &Plan) -> Vec<Arc<TopicSpec>> {
    let mut topics: std::collections::BTreeMap<String, Arc<TopicSpec>> = plan.catalogue.topics.clone();
    for topology in &plan.topologies {
        for topic in topology.outputs.iter().map(|o| &o.topic).chain(topology.late.iter().flatten()) {
            topics.entry(topic.name.clone()).or_insert_with(|| topic.clone());
        }
    }
    topics.into_values().collect()
}

/// The sinks with the topics that they follow.
fn followed(plan: &Plan) -> Vec<(Arc<SinkSpec>, Arc<TopicSpec>)> {
    let topics = all_topics(plan);
    let of = |name: &str| topics.iter().find(|topic| topic.name == name).cloned();
    plan.catalogue.sinks.iter().filter_map(|sink| Some((sink.clone(), of(&sink.from)?))).collect()
}

fn start_engine(plan: &Arc<Plan>, broker: &Arc<dyn Broker>, clock: &SharedClock, workers: usize) -> Result<Supervisor, Failure> {
    let options = EngineOptions { workers, ..EngineOptions::default() };
    Supervisor::start(plan.clone(), broker.clone(), clock.clone(), options).map_err(|error| Failure::usage(error.to_string()))
}

/// As many workers as cores, at most four.
pub(crate) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}
