//! A timely worker: takes epochs, steps the dataflow, hands back what a complete epoch did.
//!
//! One dataflow holds all topologies: a source shell, then one keyed shell a level. timely's
//! timestamp is the epoch. Between epochs the thread blocks on its queue of commands, not in timely.

use super::EngineError;
use super::core::{Core, Effects, EpochWork, Gauge, Task};
use super::shell;
use quikflow_topics::ids::Epoch;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Duration;
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::worker::Worker;

/// What a worker is told.
pub(crate) enum Command {
    /// Compute an epoch.
    Epoch(Arc<EpochWork>),
    /// End at once; epochs that are not complete are lost, and come again after a restart.
    Stop,
}

/// What the driver's inbox takes.
pub(crate) enum Report {
    /// A worker has brought back its state and waits; the thread is woken after each command.
    Ready { worker: usize, thread: std::thread::Thread, gauges: Vec<Gauge> },
    /// An epoch is complete; this is the worker's part of it.
    Done { worker: usize, epoch: Epoch, effects: Box<Effects> },
    /// An epoch is durable.
    Committed { epoch: Epoch },
    /// Something failed: the engine stops.
    Failed(EngineError),
    /// The log has moved.
    News,
    /// The engine shall end.
    Stop,
}

/// Shared by the shells of one worker.
pub(crate) struct Shared {
    pub(crate) core: RefCell<Core>,
    /// Epochs that have been handed in and are not complete.
    pub(crate) epochs: RefCell<BTreeMap<u64, Arc<EpochWork>>>,
    pub(crate) inbox: Sender<Report>,
    /// A shell has failed: nothing more is computed.
    pub(crate) failed: RefCell<bool>,
    pub(crate) hooks: Hooks,
    pub(crate) index: usize,
}

/// Where tests stall or reorder what moves between workers.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Called on a worker (its index, the epoch) before it reads its slices; may block.
    pub before_read: Option<Arc<dyn Fn(usize, Epoch) + Send + Sync>>,
    /// Whether each keyed shell turns around the order of what it was sent.
    pub reverse_exchange: bool,
}

impl Shared {
    /// Runs a shell's work; what fails or panics is reported, and ends the engine.
    pub(crate) fn guard(&self, work: impl FnOnce(&mut Core) -> Result<(), EngineError>) {
        if *self.failed.borrow() {
            return;
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut self.core.borrow_mut())));
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => EngineError::Panicked(message_of(panic.as_ref())),
        };
        self.failed.replace(true);
        // The driver may be gone already; then nobody needs to know.
        self.inbox.send(Report::Failed(error)).ok();
    }
}

/// What a panic says.
pub(crate) fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a worker panicked".to_owned())
}

/// Runs until it is told to stop or its commands end.
pub(crate) fn run(
    worker: &mut Worker,
    core: Core,
    levels: usize,
    commands: &Receiver<Command>,
    inbox: Sender<Report>,
    hooks: Hooks,
) {
    let gauges = core.gauges();
    let shared = Rc::new(Shared {
        core: RefCell::new(core),
        epochs: RefCell::new(BTreeMap::new()),
        inbox: inbox.clone(),
        failed: RefCell::new(false),
        hooks,
        index: worker.index(),
    });
    let (mut input, probe) = shell::build(worker, &shared, levels);
    let ready = Report::Ready { worker: worker.index(), thread: std::thread::current(), gauges };
    if inbox.send(ready).is_ok() {
        let peers = worker.peers() as u64;
        let index = worker.index() as u64;
        while let Some(work) = next(&shared, worker, commands, &probe) {
            let epoch = work.epoch.0;
            shared.epochs.borrow_mut().insert(epoch, work.clone());
            if *input.time() < epoch {
                input.advance_to(epoch);
            }
            for task in work.tasks.iter().filter(|task| task.seq % peers == index) {
                input.send(Rc::new(Task::Slice(task.clone())));
            }
            for task in work.replays.iter().filter(|task| task.seq % peers == index) {
                input.send(Rc::new(Task::Replay(Box::new(task.clone()))));
            }
            input.advance_to(epoch + 1);
        }
    }
    drop(input);
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

/// Steps until there is another epoch to hand in; `None` at the end.
fn next(
    shared: &Rc<Shared>,
    worker: &mut Worker,
    commands: &Receiver<Command>,
    probe: &ProbeHandle<u64>,
) -> Option<Arc<EpochWork>> {
    loop {
        report(shared, probe)?;
        if *shared.failed.borrow() {
            return None;
        }
        let idle = shared.epochs.borrow().is_empty();
        let command = if idle {
            commands.recv().ok()
        } else {
            match commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    worker.step_or_park(Some(Duration::from_millis(250)));
                    continue;
                }
            }
        };
        return match command? {
            Command::Epoch(work) => Some(work),
            Command::Stop => None,
        };
    }
}

/// Hands over the epochs that are complete on all workers; `None` when the driver is gone.
fn report(shared: &Rc<Shared>, probe: &ProbeHandle<u64>) -> Option<()> {
    loop {
        let first = shared.epochs.borrow().first_key_value().map(|(epoch, work)| (*epoch, work.clone()));
        let Some((epoch, work)) = first.filter(|(epoch, _)| !probe.less_equal(epoch)) else { return Some(()) };
        shared.epochs.borrow_mut().remove(&epoch);
        let effects = Box::new(shared.core.borrow_mut().take_effects(&work));
        if *shared.failed.borrow() {
            return None;
        }
        shared.inbox.send(Report::Done { worker: shared.index, epoch: work.epoch, effects }).ok()?;
    }
}
