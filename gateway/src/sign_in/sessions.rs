//! Who is signed in: what the gateway asks of a store.
//!
//! `quikflow-sinks` has sessions in Redis, and in SQLite where no URL is set. Of a refresh token only
//! its digest is stored.

use super::Away;
use quikflow_topics::ids::EventTime;
use std::time::Duration;

/// Most sessions of one user: with one more the one ends that was not refreshed for longest.
pub const MOST_OF_A_USER: usize = 50;

/// A sign-in that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Drawn; stands in tokens.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// Digest of the refresh token in force.
    pub token: String,
    /// Since when it is signed in.
    pub created: EventTime,
    /// It is over from then on.
    pub expires: EventTime,
    /// From where, as JSON for people: `ip`, `userAgent`.
    pub about: String,
}

/// A refresh token is exchanged for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The session.
    pub session: String,
    /// Digest of the token that was shown.
    pub from: String,
    /// Digest of the next one.
    pub to: String,
    /// Now.
    pub now: EventTime,
    /// The session is over then.
    pub expires: EventTime,
    /// For so long after an exchange the token before may be shown once more: its answer may have been lost.
    pub grace: Duration,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// The next token is in force.
    Done,
    /// The token had been exchanged before: two have it, and the session has been ended.
    Stolen,
    /// There is no such session, or it is over.
    Gone,
}

/// Sessions. Whoever was told that one ended is not let in by it any more, wherever it asks.
#[async_trait::async_trait]
pub trait Sessions: Send + Sync {
    /// Begins one.
    async fn open(&self, session: &Session) -> Result<(), Away>;
    /// One that is not over at `now`.
    async fn session(&self, id: &str, now: EventTime) -> Result<Option<Session>, Away>;
    /// A user's, the oldest first.
    async fn sessions(&self, user: &str, now: EventTime) -> Result<Vec<Session>, Away>;
    /// Exchanges a refresh token; of two who show the same one at once, one is `Done`.
    async fn turn(&self, turn: &Turn) -> Result<Turned, Away>;
    /// Ends one. False: there is none.
    async fn end(&self, id: &str) -> Result<bool, Away>;
    /// Ends all of a user; how many there were.
    async fn end_all(&self, user: &str) -> Result<u64, Away>;
}
