//! An engine for the shares of the work that this process has (R19).
//!
//! Where one process does all of the work there is one engine, and its failure is the process's.
//! Where processes share it, shares come and go: the engine is stopped before a share is given up,
//! and started anew for what is left. After an epoch that could not be committed (the broker was
//! away, or another process has the share by now) everything in memory is thrown away and the engine
//! starts again from the last commit, inside the same process.

use super::status::EngineStatus;
use super::{Engine, EngineError, EngineOptions};
use crate::plan::Plan;
use parking_lot::{Condvar, Mutex};
use quikflow_topics::broker::{Broker, BrokerError};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::share::{Membership, ShareHolder};
use std::sync::Arc;
use std::time::Duration;

/// How often a running engine is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long the start waits for shares before it says that it is ready without.
const FIRST: usize = 100;
/// The longest wait between two attempts to start.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    /// The shares that this process has; none before the group has said.
    wanted: Option<Vec<u32>>,
    /// The shares that the engine runs.
    running: Option<Vec<u32>>,
    /// Nothing is started any more.
    ended: bool,
    /// What starting again does not mend.
    failure: Option<EngineError>,
    /// Why the engine does not run at the moment.
    waiting: Option<String>,
    restarts: u64,
}

struct Inner {
    plan: Arc<Plan>,
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    options: EngineOptions,
    /// Whether other processes share the work.
    shared: bool,
    /// Held while an engine is started or stopped.
    turn: Mutex<()>,
    engine: Mutex<Option<Engine>>,
    state: Mutex<State>,
    moved: Condvar,
}

/// Keeps an engine running. Dropping it stops the engine without draining, as a crash would.
pub struct Supervisor {
    inner: Arc<Inner>,
    membership: Mutex<Option<Box<dyn Membership>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl ShareHolder for Inner {
    fn taken(&self, shares: &[u32]) {
        self.state.lock().wanted = Some(shares.to_vec());
        self.moved.notify_all();
    }

    fn given_up(&self, shares: &[u32]) {
        {
            let mut state = self.state.lock();
            if let Some(wanted) = &mut state.wanted {
                wanted.retain(|share| !shares.contains(share));
            }
        }
        let _turn = self.turn.lock();
        let concerned = self.state.lock().running.as_ref().is_some_and(|running| running.iter().any(|s| shares.contains(s)));
        if concerned {
            self.stop_engine();
        }
        self.moved.notify_all();
    }
}

impl Inner {
    /// Stops what runs; the turn is held.
    fn stop_engine(&self) {
        let engine = self.engine.lock().take();
        self.state.lock().running = None;
        if let Some(engine) = engine
            && let Err(error) = engine.stop()
        {
            tracing::warn!(%error, "the engine had ended before it was stopped");
        }
    }

    /// Starts an engine for these shares; the turn is held.
    fn start_engine(&self, shares: Option<&[u32]>) -> Result<(), EngineError> {
        let (plan, broker, clock) = (self.plan.clone(), self.broker.clone(), self.clock.clone());
        let engine = Engine::start_shares(plan, broker, clock, self.options.clone(), shares)?;
        *self.engine.lock() = Some(engine);
        self.state.lock().running = Some(shares.unwrap_or_default().to_vec());
        Ok(())
    }

    /// What the engine that runs has failed of.
    fn failed(&self) -> Option<EngineError> {
        self.engine.lock().as_ref().and_then(Engine::failure)
    }

    /// Looks whether the engine is the one that should run; returns how long to wait before looking again.
    fn look(&self, pause: Duration) -> Duration {
        let _turn = self.turn.lock();
        let failure = self.failed();
        let (wanted, running, over) = {
            let state = self.state.lock();
            (state.wanted.clone(), state.running.clone(), state.ended || state.failure.is_some())
        };
        if over || (failure.is_none() && wanted == running) {
            return LOOK;
        }
        if let Some(error) = &failure {
            tracing::warn!(%error, "the engine starts again from the last commit");
        }
        self.stop_engine();
        if let Some(error) = failure.filter(|error| !mends(error)) {
            self.state.lock().failure = Some(error);
            return LOOK;
        }
        let Some(wanted) = wanted else { return LOOK };
        match self.start_engine(Some(&wanted)) {
            Ok(()) => {
                let mut state = self.state.lock();
                state.waiting = None;
                state.restarts += 1;
                LOOK
            }
            Err(error) if mends(&error) => {
                tracing::warn!(%error, "the engine cannot be started yet");
                self.state.lock().waiting = Some(error.to_string());
                (pause * 2).clamp(LOOK, PATIENCE)
            }
            Err(error) => {
                self.state.lock().failure = Some(error);
                LOOK
            }
        }
    }

    fn run(&self) {
        let mut pause = LOOK;
        loop {
            pause = self.look(pause);
            self.moved.notify_all();
            let mut state = self.state.lock();
            if state.ended {
                return;
            }
            let asked = state.wanted != state.running && pause == LOOK && state.failure.is_none();
            if !asked || state.wanted.is_none() {
                self.moved.wait_for(&mut state, pause);
            }
        }
    }
}

/// Whether starting again from the last commit may mend it.
fn mends(error: &EngineError) -> bool {
    matches!(error, EngineError::Broker(BrokerError::Storage(_) | BrokerError::Closed | BrokerError::Busy(_)))
}

impl Supervisor {
    /// Starts an engine, or joins those who share the work and starts one for what falls to this process.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start(
        plan: Arc<Plan>,
        broker: Arc<dyn Broker>,
        clock: SharedClock,
        options: EngineOptions,
    ) -> Result<Supervisor, EngineError> {
        let shared = broker.shares() > 1;
        let inner = Arc::new(Inner {
            plan,
            broker: broker.clone(),
            clock,
            options,
            shared,
            turn: Mutex::default(),
            engine: Mutex::default(),
            state: Mutex::default(),
            moved: Condvar::new(),
        });
        let supervisor = Supervisor { inner: inner.clone(), membership: Mutex::default(), thread: Mutex::default() };
        if !shared {
            inner.start_engine(None)?;
            return Ok(supervisor);
        }
        *supervisor.membership.lock() = broker.join(inner.clone())?;
        let runner = inner.clone();
        let thread = std::thread::Builder::new().name("engine-shares".to_owned()).spawn(move || runner.run());
        *supervisor.thread.lock() = Some(thread.map_err(|error| EngineError::Internal(error.to_string()))?);
        let mut state = inner.state.lock();
        for _ in 0..FIRST {
            if let Some(failure) = state.failure.clone() {
                return Err(failure);
            }
            if state.running.is_some() {
                break;
            }
            inner.moved.wait_for(&mut state, Duration::from_millis(100));
        }
        drop(state);
        Ok(supervisor)
    }

    /// How the topologies that run here stand; none while no engine runs.
    pub fn status(&self) -> Option<EngineStatus> {
        self.inner.engine.lock().as_ref().map(Engine::status)
    }

    /// Why nothing runs and nothing will, if so.
    pub fn failure(&self) -> Option<EngineError> {
        let failure = self.inner.state.lock().failure.clone();
        failure.or_else(|| self.inner.failed().filter(|error| !self.inner.shared || !mends(error)))
    }

    /// What it waits for, if the engine does not run.
    pub fn waiting(&self) -> Option<String> {
        let running = self.inner.engine.lock().is_some();
        let state = self.inner.state.lock();
        (!running).then(|| state.waiting.clone().unwrap_or_else(|| "the engine is starting".to_owned()))
    }

    /// The shares of the work that run here, and how often an engine was started for them.
    pub fn shares(&self) -> (Vec<u32>, u64) {
        let state = self.inner.state.lock();
        (state.running.clone().unwrap_or_default(), state.restarts)
    }

    /// Stops the engine, does something to the log, and starts it again.
    ///
    /// # Errors
    /// What could not be started again.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> Result<T, EngineError> {
        let _turn = self.inner.turn.lock();
        let running = self.inner.state.lock().running.clone();
        self.inner.stop_engine();
        if self.inner.shared {
            // What the reset writes goes through the same producer: the shares are still this process's.
            if let Some(shares) = &running {
                self.inner.broker.take_over(shares)?;
            }
            let done = work();
            self.inner.moved.notify_all();
            return Ok(done);
        }
        let done = work();
        self.inner.start_engine(None)?;
        Ok(done)
    }

    /// Finishes and commits what is in flight, then ends.
    ///
    /// # Errors
    /// Why the engine had ended before, if it had.
    pub fn stop(&self) -> Result<(), EngineError> {
        self.end();
        let engine = self.inner.engine.lock().take();
        let stopped = engine.map_or(Ok(()), Engine::stop);
        self.membership.lock().take();
        stopped
    }

    fn end(&self) {
        self.inner.state.lock().ended = true;
        self.inner.moved.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that follows the shares ended by a panic");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end();
        self.inner.engine.lock().take();
        self.membership.lock().take();
    }
}
