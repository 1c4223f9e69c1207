//! What the process gives the door, its limits, and the budgets that bound it.

use crate::answer::too_busy;
use crate::joined::Joined;
use metrics::{Histogram, histogram};
use quikflow_gateway::health::{Metrics, Ready};
use quikflow_gateway::{Auth, Problem};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::json::{Decoder, Limits};
use quikflow_topics::{Broker, Catalogue};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Bounds of the door.
#[derive(Clone, Debug)]
pub struct IngestLimits {
    /// Most bytes of a body, as sent and as unpacked (413 beyond).
    pub max_body_bytes: usize,
    /// Most events of one request (413 beyond).
    pub max_events: usize,
    /// Of one event.
    pub event: Limits,
    /// Bytes of bodies that may be under way at once, until they are answered (429 beyond).
    pub budget_bytes: usize,
    /// Bodies larger than this are decoded on a blocking thread.
    pub inline_bytes: usize,
    /// How many blocking threads decode at once.
    pub decoders: usize,
    /// A body has to be there in this time (408 beyond).
    pub body_timeout: Duration,
    /// Unanswered events that a WebSocket may have.
    pub credit: usize,
    /// Most WebSockets at once (503 beyond).
    pub max_sockets: usize,
    /// A WebSocket that takes no answers for so long is closed.
    pub send_timeout: Duration,
}

impl Default for IngestLimits {
    fn default() -> IngestLimits {
        IngestLimits {
            max_body_bytes: 16 << 20,
            max_events: 50_000,
            event: Limits::default(),
            budget_bytes: 64 << 20,
            inline_bytes: 64 << 10,
            decoders: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            body_timeout: Duration::from_secs(60),
            credit: 256,
            max_sockets: 1024,
            send_timeout: Duration::from_secs(30),
        }
    }
}

/// What the process gives.
#[derive(Clone)]
pub struct IngestState {
    /// Where records go; its topics have been ensured.
    pub broker: Arc<dyn Broker>,
    /// The declared events.
    pub catalogue: Arc<Catalogue>,
    /// For arrival times and latencies.
    pub clock: SharedClock,
    /// What requests have to show.
    pub auth: Arc<Auth>,
    /// Bounds.
    pub limits: IngestLimits,
    /// For `/health/ready`.
    pub ready: Ready,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// True when the process drains: WebSockets are closed then.
    pub closing: watch::Receiver<bool>,
}

/// The door at work: shared by all handlers.
pub struct Door {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) clock: SharedClock,
    pub(crate) limits: IngestLimits,
    pub(crate) decoder: Decoder,
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) decoders: Arc<Semaphore>,
    pub(crate) sockets: Arc<Semaphore>,
    pub(crate) joined: Joined,
    /// How long requests take; kept, since looking it up costs more than a record of it.
    pub(crate) seconds: Histogram,
    /// Names requests without a lane in the ids of their dead letters: start of the process, and a count.
    started: i64,
    requests: AtomicU64,
}

/// The budget is counted in units of so many bytes.
const UNIT: usize = 1024;

impl Door {
    pub(crate) fn new(state: IngestState) -> Door {
        let limits = state.limits;
        Door {
            decoder: Decoder::new(&state.catalogue, limits.event.clone()),
            started: state.clock.now().0,
            broker: state.broker,
            clock: state.clock,
            closing: state.closing,
            budget: Arc::new(Semaphore::new((limits.budget_bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS))),
            decoders: Arc::new(Semaphore::new(limits.decoders.max(1))),
            sockets: Arc::new(Semaphore::new(limits.max_sockets)),
            joined: Joined::default(),
            seconds: histogram!("quikflow_ingest_seconds"),
            limits,
            requests: AtomicU64::new(0),
        }
    }

    /// Units of the budget that `bytes` take; never more than there are.
    pub(crate) fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).clamp(1, (self.limits.budget_bytes / UNIT).max(1))).unwrap_or(u32::MAX)
    }

    /// Takes room for `bytes` from the budget, or says 429.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.budget).try_acquire_many_owned(self.units(bytes)).map_err(|_| too_busy(Duration::from_secs(1)))
    }

    /// A name for this request that no other has, also after a restart.
    pub(crate) fn request_name(&self) -> String {
        format!("{}-{}", self.started, self.requests.fetch_add(1, Ordering::Relaxed))
    }
}
