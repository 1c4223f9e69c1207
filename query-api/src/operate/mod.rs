//! What operators ask of a running process: dead letters, lag, topologies, topics, health; and what other
//! processes ask of its embedded stores.

pub mod dlq;
pub mod health;
pub mod process;
pub mod stores;
pub mod topics;

use crate::problem::Problem;

/// Runs a blocking read off the async threads.
///
/// # Errors
/// What it answers; 500 when it broke.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Problem::internal(e)))
}
