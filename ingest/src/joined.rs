//! Single events of requests under way, joined: one batch of columns and one append for all of them.
//!
//! One joined append is under way at a time; what comes meanwhile waits and goes with the next (two at
//! a time made more and smaller commits). Those just answered are likely to ask again: the next append
//! waits for most of them, a millisecond or two at most. So a request alone goes at once, and among
//! many the cost of a batch and of its commit is shared. Each request has its own answer: a refused
//! event, or an id that came before with another content (R16), refuses its request alone.
//!
//! **Invariant**: what waits holds its room in the door's budget, so it is bounded by it.

use crate::accept::{Fate, Order, Outcome, count_rejects, fates, outcome};
use crate::answer::{Accepted, Duplicates, Named, Place, of_broker, refused};
use crate::state::Door;
use bytes::Bytes;
use metrics::{counter, histogram};
use parking_lot::Mutex;
use quikflow_gateway::Problem;
use quikflow_topics::broker::{Append, Appended, BrokerError};
use quikflow_topics::failpoint;
use quikflow_topics::json::Decoded;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

/// How long an append waits for those just answered.
const PATIENCE: Duration = Duration::from_millis(1);
/// When others have run so often and none has joined, the append goes.
const QUIET_TURNS: usize = 4;
/// Most events of one.
const EVENTS: usize = 1024;
/// Most bytes of one, unless a single event has more: they are decoded on an async thread.
const BYTES: usize = 512 << 10;

/// A request that waits.
struct Single {
    body: Bytes,
    order: Order,
    room: OwnedSemaphorePermit,
    answer: oneshot::Sender<Result<Accepted, Problem>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Single>,
    /// With so many waiting the next append goes.
    enough: usize,
    /// Somebody works it off.
    worked: bool,
}

/// The requests that wait for the next append.
#[derive(Default)]
pub(crate) struct Joined {
    queue: Mutex<Queue>,
    /// Enough wait.
    enough: Notify,
}

impl Joined {
    /// Lets a request wait; whether someone has to be set to work.
    fn push(&self, single: Single) -> bool {
        let mut queue = self.queue.lock();
        queue.waiting.push_back(single);
        if queue.waiting.len() == queue.enough {
            self.enough.notify_waiters();
        }
        !std::mem::replace(&mut queue.worked, true)
    }

    /// Lets so many who were just answered ask again, beside those that wait already.
    async fn wait_for(&self, answered: usize) {
        // It hears of all that come from now on, before it is waited for too.
        let enough = self.enough.notified();
        let all_here = {
            let mut queue = self.queue.lock();
            let known = (queue.waiting.len() + answered).min(EVENTS);
            // One in eight may be slow, or gone.
            queue.enough = known - known / 8;
            queue.waiting.len() >= queue.enough
        };
        if !all_here {
            // The time being over is an answer too.
            tokio::time::timeout(PATIENCE, enough).await.ok();
        }
        self.queue.lock().enough = 0;
    }

    /// Lets requests that are being read join, as long as more of them come.
    async fn settle(&self) {
        let (mut had, mut quiet) = (self.queue.lock().waiting.len(), 0);
        while quiet < QUIET_TURNS && had < EVENTS {
            tokio::task::yield_now().await;
            let have = self.queue.lock().waiting.len();
            quiet = if have > had { 0 } else { quiet + 1 };
            had = have;
        }
    }

    /// What goes with the next append: requests of one principal, in the order they came.
    fn next(&self) -> Vec<Single> {
        let mut queue = self.queue.lock();
        let (mut singles, mut bytes): (Vec<Single>, usize) = (Vec::new(), 0);
        while let Some(next) = queue.waiting.front() {
            bytes += next.body.len();
            let fits = singles.len() < EVENTS && bytes <= BYTES;
            if singles.first().is_some_and(|first| !fits || first.order.principal != next.order.principal) {
                break;
            }
            singles.extend(queue.waiting.pop_front());
        }
        singles
    }
}

/// The one who works off the queue; the place is free again however the work ends.
struct Turn(Arc<Door>);

impl Turn {
    async fn work(self) {
        loop {
            self.0.joined.settle().await;
            let singles = self.0.joined.next();
            if singles.is_empty() {
                return;
            }
            let answered = singles.len();
            carry(&self.0, singles).await;
            self.0.joined.wait_for(answered).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.0.joined.queue.lock();
        // Somebody may have come between the last look and now.
        queue.worked = !queue.waiting.is_empty() && tokio::runtime::Handle::try_current().is_ok();
        if queue.worked {
            tokio::spawn(Turn(Arc::clone(&self.0)).work());
        }
    }
}

/// Takes a request's only event; answers when it is durable.
///
/// # Errors
/// 422 with what is wrong, 409 for an id with another content, what the broker refuses.
pub(crate) async fn join(door: &Arc<Door>, body: Bytes, order: Order, room: OwnedSemaphorePermit) -> Result<Accepted, Problem> {
    let (answer, outcome) = oneshot::channel();
    if door.joined.push(Single { body, order, room, answer }) {
        tokio::spawn(Turn(Arc::clone(door)).work());
    }
    let lost = |_| Err(Problem::new(500, "internal", "internal error").detail("see the server's log"));
    outcome.await.unwrap_or_else(lost)
}

/// Decodes, appends, waits, answers.
async fn carry(door: &Door, singles: Vec<Single>) {
    let (append, fates) = decode(door, &singles);
    let topics: Vec<String> = append.rows.iter().map(|rows| rows.topic.name.clone()).collect();
    let appended = if append.rows.is_empty() {
        Ok(Appended::default())
    } else {
        match door.broker.append(append) {
            Ok(ticket) => ticket.await,
            Err(error) => Err(error),
        }
    };
    failpoint::hit("ingest.answer.before");
    if let Ok(appended) = &appended {
        counter!("quikflow_ingest_accepted_total").increment(appended.accepted);
        counter!("quikflow_ingest_duplicates_total").increment(appended.duplicates);
    }
    for (single, fate) in singles.into_iter().zip(fates) {
        let answer = answer(&single.order, fate, &appended, &topics);
        // Nobody may be waiting any more, which is fine.
        drop(single.answer.send(answer));
        drop(single.room);
    }
}

fn decode(door: &Door, singles: &[Single]) -> (Append, Vec<Option<Fate>>) {
    let started = door.clock.elapsed();
    let mut batch = door.decoder.batch(door.clock.now(), None);
    for (line, single) in singles.iter().enumerate() {
        batch.only(single.order.topic.as_deref());
        batch.event(&single.body, line as u64, single.order.key.as_deref());
    }
    let decoded = batch.finish().unwrap_or_else(|error| {
        tracing::error!(%error, "decoded columns do not fit their schema");
        Decoded::default()
    });
    histogram!("quikflow_ingest_decode_seconds").record(door.clock.elapsed().saturating_sub(started));
    counter!("quikflow_ingest_body_bytes_total").increment(singles.iter().map(|s| s.body.len() as u64).sum());
    count_rejects(&decoded.rejects);
    let fates = fates(&decoded, singles.len());
    let principal = singles.first().map(|s| s.order.principal.clone()).unwrap_or_default();
    (Append { rows: decoded.rows, principal, want_positions: true, apart: true, ..Append::default() }, fates)
}

fn answer(
    order: &Order,
    fate: Option<Fate>,
    appended: &Result<Appended, BrokerError>,
    topics: &[String],
) -> Result<Accepted, Problem> {
    let (set, row) = match fate {
        Some(Fate::Row(set, row)) => (set, row),
        Some(Fate::Refused(reject)) => return Err(refused(&[reject], Named::Single)),
        None => return Err(Problem::new(500, "internal", "internal error").detail("see the server's log")),
    };
    let appended = appended.as_ref().map_err(of_broker)?;
    match outcome(appended, set, row) {
        Outcome::Conflict(id) => Err(of_broker(&BrokerError::IdConflict { row: 0, id: id.to_owned() })),
        Outcome::Stored { place, repeated } => {
            let topic = topics.get(set).cloned().unwrap_or_default();
            let place = Place { topic, partition: place.map(|p| p.0.0), offset: place.map(|p| p.1.0) };
            Ok(Accepted {
                accepted: u64::from(!repeated),
                // Of one of several appended together this is said of all.
                duplicates: if appended.duplicates_unknown {
                    Duplicates::Unknown
                } else {
                    Duplicates::Known(u64::from(repeated))
                },
                records: order.places.then(|| vec![place]),
                ..Accepted::default()
            })
        }
    }
}
