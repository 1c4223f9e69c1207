//! Threads of their own for queries, so that a long one does not take time from ingest: fewer than
//! the machine's cores, with bounded waiting, and really ended when time is up. SQL and whole views
//! run at low priority. Pages do not: they are a few milliseconds of work, which on a machine whose
//! cores are all busy would wait for a quarter of a second and more.

use crate::problem::Problem;
use crate::state::QueryLimits;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::Stream;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

/// The stack of a query thread: planning recurses as deep as an expression is long.
const STACK: usize = 64 << 20;
/// Pages, and whole views, that are read at once, and that wait.
const VIEWS: (usize, usize) = (4, 64);
/// Pieces of an answer that wait for a slow reader.
const PIECES: usize = 4;

/// Whose places a query takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// `POST /v1/sql`.
    Sql,
    /// Whole views, and whatever reads a whole table; they don't wait behind SQL.
    Exports,
    /// Pages of views and entities: cheap, many.
    Pages,
}

#[derive(Debug)]
struct Gate {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Gate {
    fn new(running: usize, queue: usize) -> Gate {
        Gate { running: Arc::new(Semaphore::new(running.max(1))), places: Arc::new(Semaphore::new(running.max(1) + queue)) }
    }
}

/// The right to run; given back when the work has ended, also when it was cancelled.
struct Permit {
    _place: OwnedSemaphorePermit,
    _running: OwnedSemaphorePermit,
}

/// A piece of a streamed answer.
pub enum Piece<H> {
    /// First: what the headers need.
    Head(H),
    /// Then bytes.
    Bytes(Bytes),
    /// Last, when all is there.
    End,
    /// Instead of the head: why there is no answer.
    Fail(Problem),
}

/// The threads.
#[derive(Debug)]
pub struct QueryRuntime {
    /// Of low priority, and of the process's own; none: they have ended.
    runtimes: Option<(Runtime, Runtime)>,
    sql: Gate,
    exports: Gate,
    pages: Gate,
    sql_running: usize,
}

fn threads(name: &str, count: usize, low: bool) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count.max(1)).max_blocking_threads(32).thread_name(name).thread_stack_size(STACK).enable_time();
    if low {
        builder.on_thread_start(|| {
            if let Err(error) = thread_priority::set_current_thread_priority(thread_priority::ThreadPriority::Min) {
                tracing::debug!(%error, "query threads keep the priority of the process");
            }
        });
    }
    builder.build()
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl QueryRuntime {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub fn start(limits: &QueryLimits) -> std::io::Result<QueryRuntime> {
        let runtimes = (threads("query", limits.threads, true)?, threads("query:pages", limits.page_threads, false)?);
        let sql = Gate::new(limits.running, limits.queue);
        let views = || Gate::new(VIEWS.0, VIEWS.1);
        Ok(QueryRuntime { runtimes: Some(runtimes), sql, exports: views(), pages: views(), sql_running: limits.running.max(1) })
    }

    /// SQL queries that run now.
    pub fn running(&self) -> usize {
        self.sql_running.saturating_sub(self.sql.running.available_permits())
    }

    /// Waits until no SQL query runs.
    ///
    /// # Errors
    /// 500 when the threads have ended.
    pub async fn idle(&self) -> Result<(), Problem> {
        let all = u32::try_from(self.sql_running).unwrap_or(u32::MAX);
        self.sql.running.acquire_many(all).await.map(drop).map_err(Problem::internal)
    }

    fn gate(&self, lane: Lane) -> &Gate {
        match lane {
            Lane::Sql => &self.sql,
            Lane::Exports => &self.exports,
            Lane::Pages => &self.pages,
        }
    }

    async fn enter(&self, lane: Lane) -> Result<Permit, Problem> {
        let gate = self.gate(lane);
        let place = gate.places.clone().try_acquire_owned().map_err(|_| {
            let detail = "as many queries as allowed are running and waiting, try again in a moment";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_queries", detail).retry_after(Duration::from_secs(1))
        })?;
        let running = gate.running.clone().acquire_owned().await.map_err(Problem::internal)?;
        Ok(Permit { _place: place, _running: running })
    }

    fn spawn<T, F>(&self, lane: Lane, permit: Permit, work: F) -> Result<tokio::task::JoinHandle<T>, Problem>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (low, own) = self.runtimes.as_ref().ok_or_else(|| Problem::internal("the query threads have ended"))?;
        let runtime = if lane == Lane::Pages { own } else { low };
        Ok(runtime.spawn(async move {
            let _permit = permit;
            work.await
        }))
    }

    /// Runs `work` on the query threads within `limit`, waiting included. It is cancelled when time
    /// is up and when the caller goes away.
    ///
    /// # Errors
    /// 429 when too many wait, 504 when time is up, what `work` answers.
    pub async fn run<T, F>(&self, lane: Lane, limit: Duration, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let whole = async {
            let permit = self.enter(lane).await?;
            let handle = self.spawn(lane, permit, work)?;
            let _abort = AbortOnDrop(handle.abort_handle());
            handle.await.unwrap_or_else(|error| Err(Problem::internal(error)))
        };
        tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| Err(out_of_time(limit)))
    }

    /// Runs `work`, which sends pieces: a head first, then bytes, then the end. Returns the head and
    /// the bytes as a stream; the stream ends with an error where the work did not reach its end.
    ///
    /// # Errors
    /// As [`QueryRuntime::run`], and what comes instead of the head.
    pub async fn stream<H, W, F>(
        &self,
        lane: Lane,
        limit: Duration,
        work: W,
    ) -> Result<(H, impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<H, W, F>), Problem>
    where
        H: Send + 'static,
        W: FnOnce(mpsc::Sender<Piece<H>>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let deadline = tokio::time::Instant::now() + limit;
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let begin = async {
            let permit = self.enter(lane).await?;
            let handle = self.spawn(lane, permit, work(sender))?;
            let abort = AbortOnDrop(handle.abort_handle());
            match receiver.recv().await {
                Some(Piece::Head(head)) => Ok((head, receiver, abort)),
                Some(Piece::Fail(problem)) => Err(problem),
                Some(Piece::Bytes(_) | Piece::End) | None => Err(Problem::internal("an answer began without its head")),
            }
        };
        let begun = tokio::time::timeout_at(deadline, begin).await.unwrap_or_else(|_| Err(out_of_time(limit)));
        let (head, receiver, abort) = begun?;
        let body = futures::stream::unfold(Some((receiver, abort)), move |state| async move {
            let (mut receiver, abort) = state?;
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(Piece::Bytes(bytes))) => Some((Ok(bytes), Some((receiver, abort)))),
                Ok(Some(Piece::End)) => None,
                Ok(_) => Some((Err(std::io::Error::other("the answer broke off")), None)),
                Err(_) => Some((Err(std::io::Error::other("the answer took too long")), None)),
            }
        });
        Ok((head, body))
    }
}

impl Drop for QueryRuntime {
    fn drop(&mut self) {
        if let Some((low, own)) = self.runtimes.take() {
            low.shutdown_background();
            own.shutdown_background();
        }
    }
}

fn out_of_time(limit: Duration) -> Problem {
    let limit = quikflow_topics::units::show_duration(limit);
    Problem::new(
        StatusCode::GATEWAY_TIMEOUT,
        "time_limit",
        format!("the query took longer than {limit} and was cancelled: narrow the time range or ask for less"),
    )
}
