//! A real store with its runtime: connecting when it can, ensuring what sinks need, the write side.
//!
//! A store that is down when the process starts is not an error: what it lacks is made before the
//! first call that it answers. One that refuses (a wrong password, a table of another form) is.

use super::breadth::Breadth;
use super::{Backend, Cache, no_counts, refused, unreachable};
use crate::changes::{Follower, Hub};
use crate::store::{ItemOutcome, SinkProgress, Store, StoreError, WriteBatch};
use crate::stores::layout::Layout;
use crate::stores::rows::Input;
use crate::stores::twin::compatible;
use parking_lot::{Mutex, RwLock};
use quikflow_topics::catalogue::{SinkSpec, TopicSpec};
use quikflow_topics::clock::SharedClock;
use quikflow_topics::failpoint;
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};

/// A call that takes longer has met a server that is frozen or cut off: it is given up and tried again.
/// Writing twice changes nothing (R13).
pub(crate) const LONGEST: Duration = Duration::from_secs(60);
/// At the start, where others wait.
const LONGEST_AT_START: Duration = Duration::from_secs(10);
/// So many times as long may it take to throw all rows away.
const CLEARING: u32 = 10;

/// Threads that all clients of real stores share.
pub(crate) struct Pool {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Pool {
    /// Starts the threads.
    pub(crate) fn start() -> Result<Arc<Pool>, StoreError> {
        let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("stores").build();
        let runtime = built.map_err(|e| StoreError::Refused { store: "stores", message: format!("no threads: {e}") })?;
        Ok(Arc::new(Pool { handle: runtime.handle().clone(), runtime: Some(runtime) }))
    }

    /// The threads, started where they are not.
    pub(crate) fn of(pool: &mut Option<Arc<Pool>>) -> Result<Arc<Pool>, StoreError> {
        match pool {
            Some(pool) => Ok(pool.clone()),
            None => Ok(pool.insert(Pool::start()?).clone()),
        }
    }

    /// Runs a call, which may take so long.
    pub(crate) async fn on<T: Send + 'static>(
        &self,
        store: &'static str,
        longest: Duration,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.handle.spawn(in_time(store, longest, call)).await.unwrap_or_else(|error| Err(ended(store, &error)))
    }

    /// The same, for callers that block.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        store: &'static str,
        longest: Duration,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let call = in_time(store, longest, call);
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // Nobody waits for the answer any more: nothing is left to be done with it.
            drop(answer.send(call.await));
        });
        answered.recv().unwrap_or_else(|error| Err(ended(store, &error)))
    }
}

fn ended(store: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Refused { store, message: format!("a call did not end: {error}") }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A real store.
pub(crate) struct Remote {
    pub(crate) backend: Arc<dyn Backend>,
    pool: Arc<Pool>,
    tables: RwLock<BTreeMap<String, Arc<Layout>>>,
    ready: tokio::sync::Mutex<BTreeSet<String>>,
    longest: Duration,
    clock: SharedClock,
    /// By sink, how many calls of a batch are best.
    breadths: Mutex<BTreeMap<String, Breadth>>,
    /// Keeps documents of it, where one is set.
    cache: Option<Arc<dyn Cache>>,
    /// Told what changes, from the first follower on.
    hub: OnceLock<Arc<Hub>>,
    /// It did not answer while the process started: its other sinks do not wait for it as well.
    away: AtomicBool,
}

impl Remote {
    /// Over a store of which a call may take so long; nothing is asked of it yet.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        cache: Option<Arc<dyn Cache>>,
        pool: Arc<Pool>,
        longest: Duration,
        clock: SharedClock,
    ) -> Arc<Remote> {
        let (tables, ready, breadths) = (RwLock::default(), tokio::sync::Mutex::default(), Mutex::default());
        let (hub, away) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Remote { backend, cache, pool, tables, ready, longest, clock, breadths, hub, away })
    }

    /// Follows a table; none: the store tells no changes.
    pub(crate) fn follow(&self, table: &str) -> Option<Follower> {
        if !self.backend.tells_changes() {
            return None;
        }
        let hub = self.hub.get_or_init(|| {
            let tables = self.tables.read();
            let tables = tables.iter().map(|(sink, layout)| (sink.clone(), layout.sink.table.clone())).collect();
            let hub = Arc::new(Hub::default());
            self.pool.handle.spawn(self.backend.clone().listen(tables, hub.clone()));
            hub
        });
        Some(hub.follow(table))
    }

    /// Runs a call on the clients' threads.
    pub(crate) async fn on<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.within(self.longest, call).await
    }

    async fn within<T: Send + 'static>(
        &self,
        longest: Duration,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.pool.on(self.backend.name(), longest, call).await
    }

    /// Runs a call on the clients' threads and waits for it; for callers that block.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.block_within(self.longest, call)
    }

    fn block_within<T: Send + 'static>(
        &self,
        longest: Duration,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.pool.block(self.backend.name(), longest, call)
    }

    /// Declares a sink's table. A store that does not answer now will be asked again.
    pub(crate) fn add(self: &Arc<Self>, sink: &Arc<SinkSpec>, topic: &TopicSpec) -> Result<Arc<Layout>, StoreError> {
        let layout = Arc::new(Layout::new(sink, topic)?);
        if layout.counts && !self.backend.counts() {
            return Err(no_counts(self.backend.name(), &layout));
        }
        self.tables.write().insert(sink.name.clone(), layout.clone());
        if self.away.load(Ordering::Relaxed) {
            return Ok(layout);
        }
        let (this, of) = (self.clone(), layout.clone());
        match self.block_within(self.longest.min(LONGEST_AT_START), async move { this.ready(&of).await }) {
            Err(error @ StoreError::Unavailable { .. }) => {
                self.away.store(true, Ordering::Relaxed);
                tracing::warn!(store = self.backend.name(), sink = sink.name, %error, "the store is away, it will be tried again");
                Ok(layout)
            }
            done => done.map(|()| layout),
        }
    }

    /// A sink's table.
    pub(crate) fn layout(&self, sink: &str) -> Result<Arc<Layout>, StoreError> {
        let missing = || StoreError::BadRequest(format!("sink `{sink}` is not known to the store {}", self.backend.name()));
        self.tables.read().get(sink).cloned().ok_or_else(missing)
    }

    /// Makes what a sink needs, once.
    pub(crate) async fn ready(&self, layout: &Layout) -> Result<(), StoreError> {
        let mut ready = self.ready.lock().await;
        let sink = &layout.sink;
        if ready.contains(&sink.name) {
            return Ok(());
        }
        if ready.is_empty() {
            self.backend.prepare().await?;
        }
        let (note, now) = (format!("{}/form", sink.name), layout.fingerprint());
        let stored = self.backend.note(&note).await?;
        if let Some(stored) = &stored {
            compatible(self.backend.name(), sink, stored, &now)?;
        }
        self.backend.ensure(layout).await?;
        if stored.as_deref() != Some(now.as_str()) {
            self.backend.set_note(&note, &now).await?;
        }
        ready.insert(sink.name.clone());
        Ok(())
    }

    /// A sink's stored progress; the default where it has none.
    pub(crate) async fn progress_of(&self, sink: &str) -> Result<SinkProgress, StoreError> {
        let note = self.backend.begin(&format!("{sink}/progress")).await?;
        self.progress_in(sink, note)
    }

    /// What rows read after it reflect at least.
    pub(crate) async fn as_of(&self, sink: &str) -> Result<SinkProgress, StoreError> {
        let note = self.backend.read_note(&format!("{sink}/progress")).await?;
        self.progress_in(sink, note)
    }

    fn progress_in(&self, sink: &str, note: Option<String>) -> Result<SinkProgress, StoreError> {
        let Some(text) = note else { return Ok(SinkProgress::default()) };
        let read: Result<(u64, Vec<(u32, u64)>), _> = serde_json::from_str(&text);
        let (generation, positions) =
            read.map_err(|e| refused(self.backend.name(), format!("the offsets of sink `{sink}` cannot be read: {e}")))?;
        Ok(SinkProgress { positions: positions.into_iter().map(|(p, o)| (PartitionId(p), Offset(o))).collect(), generation })
    }

    async fn set_progress(&self, sink: &str, progress: &SinkProgress) -> Result<(), StoreError> {
        let positions: Vec<(u32, u64)> = progress.positions.iter().map(|(p, o)| (p.0, o.0)).collect();
        let text = serde_json::to_string(&(progress.generation, positions))
            .map_err(|e| StoreError::Refused { store: self.backend.name(), message: e.to_string() })?;
        self.backend.advance(&format!("{sink}/progress"), &text).await
    }

    /// The cache of a sink's documents, and how long it keeps one.
    pub(crate) fn cache_of(&self, layout: &Layout) -> Option<(&dyn Cache, Duration)> {
        Some((self.cache.as_deref()?, layout.sink.cache?))
    }

    /// Has the cache forget the rows of a batch that is written. Where it does not answer, it says so by itself: nothing is
    /// kept for longer than the sink declares.
    async fn forget(&self, layout: &Layout, batch: &WriteBatch) -> Result<(), StoreError> {
        let Some((cache, _)) = self.cache_of(layout) else { return Ok(()) };
        let input = Input::new(layout, &batch.rows, batch.generation)?;
        let keys: BTreeSet<String> = (0..batch.rows.num_rows()).filter_map(|row| input.key(row).ok()).collect();
        let keys: Vec<String> = keys.into_iter().collect();
        if let Err(error) = cache.forget(&layout.sink.name, &keys).await {
            tracing::warn!(sink = layout.sink.name, %error, "the cache may answer with what was before, until it forgets by itself");
        }
        Ok(())
    }

    /// Writes a batch's rows, with as many calls at once as have been best of late.
    async fn write_rows(&self, layout: &Layout, batch: &WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let sink = &batch.sink.name;
        let calls = self.breadths.lock().entry(sink.clone()).or_default().calls();
        let started = self.clock.elapsed();
        let done = self.backend.write(layout, batch, calls).await;
        let mut all = self.breadths.lock();
        let breadth = all.entry(sink.clone()).or_default();
        match &done {
            Ok(_) => breadth.worked(batch.rows.num_rows(), self.clock.elapsed().saturating_sub(started)),
            Err(_) => breadth.failed(),
        }
        metrics::gauge!("quikflow_sink_calls", "sink" => sink.clone()).set(breadth.calls() as f64);
        done
    }

    /// Rows first, durable; then the offsets. A crash between the two writes the rows again, which
    /// changes nothing (R13).
    async fn write_batch(&self, batch: WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let layout = self.layout(&batch.sink.name)?;
        self.ready(&layout).await?;
        let mut outcomes = Vec::new();
        if batch.rows.num_rows() > 0 {
            outcomes = self.write_rows(&layout, &batch).await?;
            self.forget(&layout, &batch).await?;
        }
        failpoint::hit("sink.offset.before");
        if outcomes.iter().all(|o| matches!(o, ItemOutcome::Written | ItemOutcome::Older)) {
            let progress = SinkProgress { positions: batch.next, generation: batch.generation };
            self.set_progress(&batch.sink.name, &progress).await?;
        }
        failpoint::hit("sink.offset.after");
        Ok(outcomes)
    }
}

/// A call's answer, or that there is none in time.
async fn in_time<T>(
    store: &'static str,
    longest: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = || Err(unreachable(store, format!("no answer within {longest:?}")));
    tokio::time::timeout(longest, call).await.unwrap_or_else(|_| late())
}

/// A [`Remote`] as the runner sees it.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Arc<Remote>);

#[async_trait::async_trait]
impl Store for Shared {
    fn name(&self) -> &'static str {
        self.0.backend.name()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn gathers(&self) -> u32 {
        self.0.backend.gathers()
    }

    async fn ensure(&self, sink: &SinkSpec, topic: &TopicSpec) -> Result<(), StoreError> {
        let layout = Arc::new(Layout::new(&Arc::new(sink.clone()), topic)?);
        self.0.tables.write().insert(sink.name.clone(), layout.clone());
        let this = self.0.clone();
        self.0.on(async move { this.ready(&layout).await }).await
    }

    async fn progress(&self, sink: &str) -> Result<SinkProgress, StoreError> {
        let (this, layout) = (self.0.clone(), self.0.layout(sink)?);
        let call = async move {
            this.ready(&layout).await?;
            this.progress_of(&layout.sink.name).await
        };
        self.0.on(call).await
    }

    async fn remembers(&self, sink: &str) -> Result<(), StoreError> {
        let (this, note) = (self.0.clone(), format!("{sink}/progress"));
        self.0.on(async move { this.backend.remembers(&note).await }).await
    }

    async fn write(&self, batch: WriteBatch) -> Result<Vec<ItemOutcome>, StoreError> {
        let this = self.0.clone();
        self.0.on(async move { this.write_batch(batch).await }).await
    }

    async fn clear(&self, sink: &str) -> Result<(), StoreError> {
        let (this, layout) = (self.0.clone(), self.0.layout(sink)?);
        self.0
            .within(self.0.longest * CLEARING, async move {
                this.ready(&layout).await?;
                // The offsets first: after a crash in between the rest is written again.
                this.set_progress(&layout.sink.name, &SinkProgress::default()).await?;
                this.backend.clear(&layout).await?;
                if let Some((cache, _)) = this.cache_of(&layout)
                    && let Err(error) = cache.forget_all(&layout.sink.name).await
                {
                    tracing::warn!(sink = layout.sink.name, %error, "the cache may answer with what was before");
                }
                Ok(())
            })
            .await
    }

    async fn maintain(&self, now: EventTime) -> Result<(), StoreError> {
        let layouts: Vec<Arc<Layout>> = self.0.tables.read().values().cloned().collect();
        for layout in layouts {
            let Some(ttl) = layout.sink.ttl else { continue };
            let this = self.0.clone();
            let tidy = async move {
                this.ready(&layout).await?;
                let before = now.minus(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
                this.backend.expire(&layout, before).await
            };
            self.0.on(tidy).await?;
        }
        Ok(())
    }
}
