//! Accounts and sessions of the gateway: in MySQL and Redis where their URLs are set, else in SQLite.
//!
//! They are no tables of sinks: nothing in the topics says them again. Files of their own
//! (`stores/accounts.sqlite`, `stores/sessions.sqlite`), made with the first account or session.

mod accounts;
mod sessions;
mod sqlite;

use super::StoreUrls;
#[cfg(not(all(feature = "mysql", feature = "redis")))]
use super::not_compiled_in;
use super::remote::client::Pool;
use crate::store::StoreError;
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::accounts::Accounts;
use quikflow_gateway::sign_in::sessions::Sessions;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a call may take at most: somebody waits for it.
const LONGEST: Duration = Duration::from_secs(5);

/// What the gateway signs users in with.
#[derive(Clone)]
pub struct SignInStores {
    /// Accounts, workspaces, roles.
    pub accounts: Arc<dyn Accounts>,
    /// Sessions.
    pub sessions: Arc<dyn Sessions>,
}

/// The stores of accounts and sessions; nothing is asked of them yet.
///
/// # Errors
/// A URL that cannot be read, a client that is not compiled in.
pub fn sign_in(dir: &Path, urls: &StoreUrls) -> Result<SignInStores, StoreError> {
    let mut pool: Option<Arc<Pool>> = None;
    let longest = urls.longest().min(LONGEST);
    let accounts: Arc<dyn Accounts> = match urls.mysql.as_deref() {
        Some(url) => real_accounts(url, urls, longest, Pool::of(&mut pool)?)?,
        None => Arc::new(accounts::Embedded::new(dir)),
    };
    let sessions: Arc<dyn Sessions> = match urls.redis.as_deref() {
        Some(url) => real_sessions(url, longest, Pool::of(&mut pool)?)?,
        None => Arc::new(sessions::Embedded::new(dir)),
    };
    Ok(SignInStores { accounts, sessions })
}

#[cfg(feature = "mysql")]
fn real_accounts(url: &str, urls: &StoreUrls, longest: Duration, pool: Arc<Pool>) -> Result<Arc<dyn Accounts>, StoreError> {
    let sql = super::mysql::Sql::new(url, urls.mysql_replica.as_deref())?;
    Ok(Arc::new(super::mysql::accounts::Shared::new(sql, pool, longest)))
}

#[cfg(not(feature = "mysql"))]
fn real_accounts(_: &str, _: &StoreUrls, _: Duration, _: Arc<Pool>) -> Result<Arc<dyn Accounts>, StoreError> {
    Err(not_compiled_in("mysql"))
}

#[cfg(feature = "redis")]
fn real_sessions(url: &str, longest: Duration, pool: Arc<Pool>) -> Result<Arc<dyn Sessions>, StoreError> {
    let redis = super::redis::Redis::new(url)?;
    Ok(Arc::new(super::redis::sessions::Shared::new(redis, pool, longest)))
}

#[cfg(not(feature = "redis"))]
fn real_sessions(_: &str, _: Duration, _: Arc<Pool>) -> Result<Arc<dyn Sessions>, StoreError> {
    Err(not_compiled_in("redis"))
}

/// A store's answer as the gateway takes it.
pub fn away(error: StoreError) -> Away {
    match error {
        StoreError::Unavailable { .. } | StoreError::Forgot { .. } => Away::Unavailable(error.to_string()),
        _ => Away::Refused(error.to_string()),
    }
}
