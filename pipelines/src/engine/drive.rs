//! The threads around the workers: one makes epochs and hands them in, one commits them in order,
//! one sleeps until the log moves. An idle engine sleeps in all of them.

use super::books::{TopologyBooks, keyed_nodes};
use super::commit::Gatherer;
use super::core::{Core, Effects};
use super::graph::Graph;
use super::pace::Pace;
use super::recover::{Recovered, recover};
use super::schedule::{Limits, MadeEpoch, Scheduler};
use super::status::{TopologyStatus, Watch};
use super::worker::{Command, Report, run};
use super::{EngineError, EngineOptions};
use crate::plan::Plan;
use parking_lot::Mutex;
use quikflow_topics::broker::{Broker, TopologyState};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::failpoint;
use quikflow_topics::ids::Epoch;
use quikflow_topics::share::Work;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// How long a thread sleeps that waits for the log alone.
const NAP: Duration = Duration::from_secs(1);

/// An epoch whose parts come in from the workers.
struct Pending {
    made: Arc<MadeEpoch>,
    started: Duration,
    /// By worker.
    effects: Vec<Option<Effects>>,
    /// Handed to the committer.
    complete: bool,
}

/// An epoch, ready to be committed.
struct Complete {
    made: Arc<MadeEpoch>,
    effects: Vec<Effects>,
    started: Duration,
}

struct Driver {
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    options: EngineOptions,
    scheduler: Scheduler,
    watch: Arc<Watch>,
    workers: Vec<(Sender<Command>, Thread)>,
    committer: SyncSender<Complete>,
    pending: VecDeque<Pending>,
    /// The log's version before the last look at it.
    seen: u64,
    /// Something may have come since the last look.
    news: bool,
    /// When the last epoch was made.
    last_epoch: Option<Duration>,
    pace: Pace,
}

/// A driver that runs.
pub(crate) struct Started {
    pub(crate) inbox: Sender<Report>,
    pub(crate) driver: JoinHandle<()>,
    pub(crate) graph: Arc<Graph>,
}

/// Reads what is stored, starts the threads; `shares` are this process's, absent: all.
pub(crate) fn start(
    plan: Arc<Plan>,
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    options: EngineOptions,
    watch: Arc<Watch>,
    shares: Option<&[u32]>,
) -> Result<Started, EngineError> {
    let options = EngineOptions { workers: options.workers.max(1), ..options };
    let keyed: Vec<Vec<bool>> = plan.topologies.iter().map(|topology| keyed_nodes(topology)).collect();
    let all: Vec<u32> = (0..broker.shares(Work::Pipelines)).collect();
    let mine = shares.unwrap_or(&all);
    let graph = Arc::new(Graph::of_shares(&plan, &keyed, mine, broker.shares(Work::Pipelines)));
    let last = broker.take_over(mine)?;
    let Recovered { epoch, states, times, books } = recover(&graph, &broker, last)?;
    watch.update(|status| {
        status.epoch = epoch;
        status.topologies = graph
            .topologies
            .iter()
            .zip(times.iter().zip(&books))
            .map(|(topology, (time, books))| TopologyStatus {
                name: topology.plan.name.clone(),
                watermark: time.watermark.known(),
                books: books.clone(),
                ..TopologyStatus::default()
            })
            .collect();
    });
    for (topology, plan) in graph.topologies.iter().enumerate() {
        for ((topic, partition), offset) in broker.group_offsets(&super::source::group(&plan.stored_as))? {
            if !plan.takes(&topic, partition) {
                continue;
            }
            watch.update(|status| {
                status.topologies[topology].positions.entry(topic).or_default().insert(partition, offset);
            });
        }
    }
    let scheduler = Scheduler::new(graph.clone(), broker.clone(), times, epoch)?;
    let gatherer = Gatherer::new(graph.clone(), broker.clone(), books);
    let (inbox, reports) = channel();
    let to_driver = inbox.clone();
    let kept = graph.clone();
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let (watch_end, on_end) = (watch.clone(), options.on_end.clone());
        let outcome = drive(graph, broker, clock, options, scheduler, gatherer, states, watch, to_driver, &reports);
        if let Err(error) = outcome {
            watch_end.fail(error);
        }
        watch_end.ended();
        if let Some(on_end) = on_end {
            on_end();
        }
    });
    let driver = thread.map_err(|error| EngineError::Internal(error.to_string()))?;
    Ok(Started { inbox, driver, graph: kept })
}

#[allow(clippy::too_many_arguments, reason = "called once, by `start`")]
fn drive(
    graph: Arc<Graph>,
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    options: EngineOptions,
    scheduler: Scheduler,
    gatherer: Gatherer,
    states: Vec<TopologyState>,
    watch: Arc<Watch>,
    inbox: Sender<Report>,
    reports: &Receiver<Report>,
) -> Result<(), EngineError> {
    let (commands, guards) = start_workers(&graph, &options, states, &inbox)?;
    let (committer, complete) = sync_channel(options.max_uncommitted);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| EngineError::Internal(error.to_string()))
    };
    let commit_thread = {
        let (broker, clock, watch, inbox) = (broker.clone(), clock.clone(), watch.clone(), inbox.clone());
        spawn("engine-commit", Box::new(move || commit_all(gatherer, &broker, &clock, &watch, &inbox, &complete)))?
    };
    let ended = Arc::new(AtomicBool::new(false));
    let news_thread = {
        let (broker, inbox, ended) = (broker.clone(), inbox.clone(), ended.clone());
        spawn("engine-news", Box::new(move || tell_news(&broker, &inbox, &ended)))?
    };
    let pace = Pace::new(options.max_epoch_rows);
    let mut driver = Driver {
        broker: broker.clone(),
        clock,
        options,
        scheduler,
        watch,
        workers: Vec::new(),
        committer,
        pending: VecDeque::new(),
        seen: 0,
        news: true,
        last_epoch: None,
        pace,
    };
    let outcome = driver.gather_workers(&commands, reports).and_then(|()| driver.run(reports));
    let outcome = outcome.map_err(|error| cause(error, reports));
    for command in &commands {
        // A worker that has ended takes no command.
        command.send(Command::Stop).ok();
    }
    for (_, thread) in &driver.workers {
        thread.unpark();
    }
    drop(driver);
    drop(commands);
    ended.store(true, Ordering::SeqCst);
    broker.wakeup().bump();
    for (what, thread) in [("engine-commit", commit_thread), ("engine-news", news_thread)] {
        if thread.join().is_err() {
            return outcome.and(Err(EngineError::Panicked(format!("thread `{what}`"))));
        }
    }
    for result in guards.join() {
        if let Err(message) = result {
            return outcome.and(Err(EngineError::Panicked(message)));
        }
    }
    outcome
}

/// A thread that is found to have ended has said why, before: that is the cause.
fn cause(error: EngineError, reports: &Receiver<Report>) -> EngineError {
    if !matches!(error, EngineError::Internal(_)) {
        return error;
    }
    let said = |report| match report {
        Report::Failed(error) => Some(error),
        _ => None,
    };
    reports.try_iter().find_map(said).unwrap_or(error)
}

type Guards = timely::communication::WorkerGuards<()>;

fn start_workers(
    graph: &Arc<Graph>,
    options: &EngineOptions,
    states: Vec<TopologyState>,
    inbox: &Sender<Report>,
) -> Result<(Vec<Sender<Command>>, Guards), EngineError> {
    let (commands, receivers): (Vec<_>, Vec<_>) = (0..options.workers).map(|_| channel::<Command>()).unzip();
    let seats = Mutex::new(receivers.into_iter().map(Some).collect::<Vec<_>>());
    let states = Arc::new(states);
    let (graph, inbox, hooks, workers) =
        (graph.clone(), Mutex::new(inbox.clone()), options.hooks.clone(), options.workers as u32);
    let config = if options.workers == 1 { timely::Config::thread() } else { timely::Config::process(options.workers) };
    let guards = timely::execute(config, move |worker| {
        let index = worker.index();
        let Some(commands) = seats.lock().get_mut(index).and_then(Option::take) else { return };
        let inbox = inbox.lock().clone();
        match Core::new(graph.clone(), index as u32, workers, &states) {
            Ok(core) => run(worker, core, graph.levels, &commands, inbox, hooks.clone()),
            // The driver may be gone already; then nobody needs to know.
            Err(error) => {
                inbox.send(Report::Failed(error)).ok();
            }
        }
    });
    Ok((commands, guards.map_err(EngineError::Internal)?))
}

impl Driver {
    fn gather_workers(&mut self, commands: &[Sender<Command>], reports: &Receiver<Report>) -> Result<(), EngineError> {
        let mut threads: Vec<Option<Thread>> = vec![None; commands.len()];
        while threads.iter().any(Option::is_none) {
            match reports.recv() {
                Ok(Report::Ready { worker, thread, gauges }) => {
                    self.scheduler.note(worker, &gauges);
                    threads[worker] = Some(thread);
                }
                Ok(Report::Failed(error)) => return Err(error),
                Ok(_) => {}
                Err(_) => return Err(EngineError::Internal("the workers did not start".to_owned())),
            }
        }
        self.workers = commands.iter().cloned().zip(threads.into_iter().flatten()).collect();
        Ok(())
    }

    fn run(&mut self, reports: &Receiver<Report>) -> Result<(), EngineError> {
        loop {
            let stopping = self.watch.stopping();
            match stopping {
                Some(false) => return Ok(()),
                Some(true) if self.pending.is_empty() => return Ok(()),
                _ => {}
            }
            let wait = if stopping.is_some() { NAP } else { self.perhaps_make()? };
            match reports.recv_timeout(wait) {
                Ok(report) => {
                    self.take(report)?;
                    while let Ok(report) = reports.try_recv() {
                        self.take(report)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(EngineError::Internal("the inbox is closed".to_owned())),
            }
        }
    }

    /// Makes epochs as long as there is cause and room; returns how long to wait for a report.
    fn perhaps_make(&mut self) -> Result<Duration, EngineError> {
        loop {
            let in_flight: usize = self.pending.iter().map(|pending| pending.made.bytes).sum();
            if self.pending.len() >= self.options.max_uncommitted || in_flight >= self.options.in_flight_bytes {
                return Ok(NAP);
            }
            let (now, elapsed) = (self.clock.now(), self.clock.elapsed());
            self.news |= self.broker.wakeup().version() != self.seen;
            let by_time = self.scheduler.wait(now);
            let time_calls = self.pending.is_empty() && by_time == Some(Duration::ZERO);
            if !self.news && !time_calls {
                self.caught_up();
                // While an epoch is in flight, what it waits for is not known yet.
                return Ok(by_time
                    .filter(|_| self.pending.is_empty())
                    .map_or(NAP, |wait| wait.clamp(Duration::from_millis(1), NAP)));
            }
            let rest =
                self.last_epoch.map_or(Duration::ZERO, |last| (last + self.options.epoch_interval).saturating_sub(elapsed));
            if !rest.is_zero() && self.scheduler.at_end() {
                return Ok(rest);
            }
            self.seen = self.broker.wakeup().version();
            let bytes = self.options.max_epoch_bytes.min(self.options.in_flight_bytes - in_flight);
            let slice_rows = self.pace.slice_rows(self.options.slice_rows);
            let limits = Limits { rows: self.pace.rows(), bytes, slice_rows };
            let made = self.scheduler.make(&self.clock, elapsed, limits)?;
            self.news = !self.scheduler.at_end();
            match made {
                Some(made) => {
                    self.last_epoch = Some(elapsed);
                    self.hand_in(made, elapsed)?;
                }
                None if self.news => {}
                None => {
                    self.caught_up();
                    let wait = self.scheduler.wait(now).filter(|_| self.pending.is_empty());
                    return Ok(wait.map_or(NAP, |wait| wait.clamp(Duration::from_millis(1), NAP)));
                }
            }
        }
    }

    fn caught_up(&self) {
        let all = self.pending.is_empty() && self.scheduler.at_end() && self.broker.wakeup().version() == self.seen;
        self.watch.caught_up(all, self.seen, self.scheduler.holds());
    }

    fn hand_in(&mut self, made: MadeEpoch, elapsed: Duration) -> Result<(), EngineError> {
        for (commands, thread) in &self.workers {
            let sent = commands.send(Command::Epoch(made.work.clone()));
            sent.map_err(|_| EngineError::Internal("a worker has ended".to_owned()))?;
            thread.unpark();
        }
        let effects = self.workers.iter().map(|_| None).collect();
        self.pending.push_back(Pending { made: Arc::new(made), started: elapsed, effects, complete: false });
        let in_flight = self.pending.len();
        self.watch.update(|status| {
            status.in_flight = in_flight;
            status.caught_up = false;
        });
        Ok(())
    }

    fn take(&mut self, report: Report) -> Result<(), EngineError> {
        match report {
            Report::Done { worker, epoch, effects } => self.done(worker, epoch, *effects)?,
            Report::Committed { epoch } => self.committed(epoch),
            Report::Failed(error) => return Err(error),
            Report::News => self.news = true,
            Report::Ready { .. } | Report::Stop => {}
        }
        Ok(())
    }

    fn done(&mut self, worker: usize, epoch: Epoch, effects: Effects) -> Result<(), EngineError> {
        self.scheduler.note(worker, &effects.gauges);
        let Some(pending) = self.pending.iter_mut().find(|pending| pending.made.work.epoch == epoch) else { return Ok(()) };
        pending.effects[worker] = Some(effects);
        // Epochs complete in order on each worker, so they are complete in order.
        while let Some(pending) = self.pending.iter_mut().find(|pending| !pending.complete) {
            if pending.effects.iter().any(Option::is_none) {
                break;
            }
            pending.complete = true;
            let effects: Vec<Effects> = pending.effects.iter_mut().filter_map(Option::take).collect();
            let made = effects.iter().flat_map(|effects| effects.books.values()).map(TopologyBooks::made).sum::<u64>();
            self.pace.made(pending.made.rows, usize::try_from(made).unwrap_or(usize::MAX));
            let complete = Complete { made: pending.made.clone(), effects, started: pending.started };
            let sent = self.committer.send(complete);
            sent.map_err(|_| EngineError::Internal("the thread that commits has ended".to_owned()))?;
        }
        Ok(())
    }

    fn committed(&mut self, epoch: Epoch) {
        while self.pending.front().is_some_and(|pending| pending.made.work.epoch <= epoch) {
            if let Some(pending) = self.pending.pop_front() {
                // A letter that was asked for again meanwhile was passed over.
                self.news |= self.scheduler.committed(&pending.made);
            }
        }
        let in_flight = self.pending.len();
        // The commit itself moved the log's version; what it wrote may have readers here.
        self.news |= self.broker.wakeup().version() != self.seen;
        self.watch.update(|status| status.in_flight = in_flight);
    }
}

/// Commits complete epochs in their order.
fn commit_all(
    mut gatherer: Gatherer,
    broker: &Arc<dyn Broker>,
    clock: &SharedClock,
    watch: &Watch,
    inbox: &Sender<Report>,
    complete: &Receiver<Complete>,
) {
    while let Ok(Complete { made, effects, started }) = complete.recv() {
        let outcome = gatherer.gather(&made, effects, clock.now()).and_then(|commit| {
            failpoint::hit("engine.epoch.before_commit");
            broker.commit_epoch(commit)?.wait()?;
            failpoint::hit("engine.epoch.after_commit");
            Ok(())
        });
        let epoch = made.work.epoch;
        let report = match outcome {
            Ok(()) => {
                show(&gatherer, &made, watch);
                let now = clock.elapsed();
                watch.committed(now, now.saturating_sub(started), made.rows);
                Report::Committed { epoch }
            }
            Err(error) => Report::Failed(error),
        };
        let failed = matches!(report, Report::Failed(_));
        if inbox.send(report).is_err() || failed {
            return;
        }
    }
}

fn show(gatherer: &Gatherer, made: &MadeEpoch, watch: &Watch) {
    watch.update(|status| {
        status.epoch = made.work.epoch;
        for (topology, time) in &made.times {
            let shown = &mut status.topologies[*topology];
            shown.watermark = time.watermark.known();
            shown.books = gatherer.books()[*topology].clone();
            shown.unbalanced = gatherer.unbalanced(*topology);
            shown.state_bytes = gatherer.state_bytes(*topology);
        }
        for (group, topic, partition, next) in &made.offsets {
            let stored_as = group.strip_prefix("topology:").unwrap_or(group);
            let at = gatherer.graph().topologies.iter().position(|topology| topology.stored_as == stored_as);
            if let Some(shown) = at.and_then(|at| status.topologies.get_mut(at)) {
                shown.positions.entry(topic.clone()).or_default().insert(*partition, *next);
            }
        }
    });
    for (topology, _) in &made.times {
        for line in gatherer.unbalanced(*topology) {
            tracing::error!(epoch = made.work.epoch.0, line, "the accounts do not balance");
        }
    }
}

/// Tells the driver when the log has moved.
fn tell_news(broker: &Arc<dyn Broker>, inbox: &Sender<Report>, ended: &AtomicBool) {
    // From the start: what came while the engine was starting is news too.
    let mut seen = 0;
    while !ended.load(Ordering::SeqCst) {
        let version = broker.wakeup().wait(seen, NAP);
        if version != seen {
            seen = version;
            if inbox.send(Report::News).is_err() {
                return;
            }
        }
    }
}
