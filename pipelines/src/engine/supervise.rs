//! An engine for the shares of the work that this process has (R19).
//!
//! After an epoch that could not be committed (the disk is full, the broker was away, or another
//! process has the share by now) everything in memory is thrown away and the engine starts again from
//! the last commit, inside the same process; any other failure of the engine is the process's.
//! Where processes share the work, shares come and go: the engine is stopped before a share is given
//! up, and started anew for what is left.

use super::status::EngineStatus;
use super::{Engine, EngineError, EngineOptions};
use crate::plan::Plan;
use parking_lot::{Condvar, Mutex};
use quikflow_topics::broker::{Broker, BrokerError};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::Epoch;
use quikflow_topics::share::{Membership, ShareHolder, Work};
use std::sync::Arc;
use std::time::Duration;

/// How often a running engine is looked at where shares come and go.
const LOOK: Duration = Duration::from_millis(200);
/// How often where there are none; an engine that ends is heard of at once.
const LOOK_ALONE: Duration = Duration::from_secs(1);
/// How long the start waits for shares before it says that it is ready without.
const FIRST: usize = 100;
/// The longest wait between two attempts to start.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    /// The shares that this process has; none before the group has said. Empty where the work is not shared.
    wanted: Option<Vec<u32>>,
    /// The shares that the engine runs.
    running: Option<Vec<u32>>,
    /// The last epoch committed when the engine failed last.
    failed_at: Option<Epoch>,
    /// How long it waited last before it started again.
    pause: Duration,
    /// Nothing is started any more.
    ended: bool,
    /// What starting again does not mend.
    failure: Option<EngineError>,
    /// Why the engine does not run at the moment.
    waiting: Option<String>,
    restarts: u64,
}

impl State {
    /// The next pause between two attempts to start.
    fn longer(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(LOOK, PATIENCE);
        self.pause
    }
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
    moved: Arc<Condvar>,
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

    /// Starts an engine for these shares, or for all of the work where it is not shared; the turn is held.
    fn start_engine(&self, shares: &[u32]) -> Result<(), EngineError> {
        let (plan, broker, clock) = (self.plan.clone(), self.broker.clone(), self.clock.clone());
        let moved = self.moved.clone();
        let on_end = move || {
            moved.notify_all();
        };
        let options = EngineOptions { on_end: Some(Arc::new(on_end)), ..self.options.clone() };
        let engine = Engine::start_shares(plan, broker, clock, options, self.shared.then_some(shares))?;
        *self.engine.lock() = Some(engine);
        let mut state = self.state.lock();
        state.running = Some(shares.to_vec());
        state.waiting = None;
        state.restarts += 1;
        Ok(())
    }

    /// What the engine that runs has failed of.
    fn failed(&self) -> Option<EngineError> {
        self.engine.lock().as_ref().and_then(Engine::failure)
    }

    /// Puts away an engine that has failed. Returns how long to wait before the next start: not at all
    /// where something was committed since the failure before.
    fn put_away(&self) -> Option<Duration> {
        let engine = self.engine.lock().take_if(|engine| engine.failure().is_some())?;
        let (error, epoch) = (engine.failure()?, engine.status().epoch);
        drop(engine);
        let mut state = self.state.lock();
        state.running = None;
        if !self.mends(&error) {
            state.failure = Some(error);
            return None;
        }
        tracing::warn!(%error, "the engine starts again from the last commit");
        state.waiting = Some(error.to_string());
        if state.failed_at.replace(epoch) != Some(epoch) {
            state.pause = Duration::ZERO;
            return None;
        }
        Some(state.longer())
    }

    /// Looks whether the engine is the one that should run; returns how long to rest after a failure.
    fn look(&self) -> Option<Duration> {
        let _turn = self.turn.lock();
        if let Some(rest) = self.put_away() {
            return Some(rest);
        }
        let wanted = {
            let state = self.state.lock();
            let over = state.ended || state.failure.is_some() || state.wanted == state.running;
            state.wanted.clone().filter(|_| !over)?
        };
        self.stop_engine();
        let error = self.start_engine(&wanted).err()?;
        let mut state = self.state.lock();
        if !self.mends(&error) {
            state.failure = Some(error);
            return None;
        }
        tracing::warn!(%error, "the engine cannot be started yet");
        state.waiting = Some(error.to_string());
        Some(state.longer())
    }

    fn run(&self) {
        loop {
            let rest = self.look();
            self.moved.notify_all();
            let mut state = self.state.lock();
            if state.ended {
                return;
            }
            let due = state.wanted.is_some() && state.wanted != state.running && state.failure.is_none();
            if rest.is_some() || !due {
                let look = if self.shared { LOOK } else { LOOK_ALONE };
                self.moved.wait_for(&mut state, rest.unwrap_or(look));
            }
        }
    }

    /// Whether starting again from the last commit may mend it.
    fn mends(&self, error: &EngineError) -> bool {
        match error {
            EngineError::Broker(BrokerError::Unavailable(_)) => true,
            // What another process may answer better, or the broker when it is back.
            EngineError::Broker(BrokerError::Storage(_) | BrokerError::Closed | BrokerError::Busy(_)) => self.shared,
            _ => false,
        }
    }
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
        let shared = broker.shares(Work::Pipelines) > 1;
        let inner = Arc::new(Inner {
            plan,
            broker: broker.clone(),
            clock,
            options,
            shared,
            turn: Mutex::default(),
            engine: Mutex::default(),
            state: Mutex::default(),
            moved: Arc::default(),
        });
        let supervisor = Supervisor { inner: inner.clone(), membership: Mutex::default(), thread: Mutex::default() };
        if shared {
            *supervisor.membership.lock() = broker.join(Work::Pipelines, inner.clone())?;
        } else {
            inner.state.lock().wanted = Some(Vec::new());
            inner.start_engine(&[])?;
        }
        let runner = inner.clone();
        let thread = std::thread::Builder::new().name("engine-starts".to_owned()).spawn(move || runner.run());
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
        failure.or_else(|| self.inner.failed().filter(|error| !self.inner.mends(error)))
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
        self.inner.start_engine(&[])?;
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
            tracing::warn!("the thread that starts the engine ended by a panic");
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
