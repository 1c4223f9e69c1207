//! Sign-in: credentials become a session, an access token of fifteen minutes and a refresh token of seven days.
//!
//! * [`accounts`], [`sessions`]: what is asked of the stores, as traits; `quikflow-sinks` implements them
//! * [`keys`]: access tokens, signed; `passwords`: their hashes
//! * [`documents`]: what the routes are, for OpenAPI; [`routes`]: `/api/auth/…` and accounts; `workspaces`: who is what in them
//!
//! A refresh token is `<root>.<secret>`. A session's id is the root's digest, and the store has the secret's: neither
//! an access token nor the store gives a refresh token away, and whoever shows the root of a session has had one of
//! its tokens. Each use exchanges the secret for the next one. Who shows one that was exchanged before, and not just
//! now, holds a copy: the session ends for both.
//!
//! An access token is checked by its signature, and its session by the store, whose answer is kept for
//! [`KEPT`]: so long may a session that was ended elsewhere still be let in. Every attempt to sign in is
//! published as an audit event before it is answered; one that cannot be published does not succeed.

pub mod accounts;
pub mod documents;
pub mod keys;
mod passwords;
pub mod routes;
pub mod sessions;
mod workspaces;

use accounts::{Account, Accounts, Role};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::{Claims, Keys};
use moka::future::Cache;
use passwords::Passwords;
use quikflow_topics::clock::SharedClock;
use quikflow_topics::ids::EventTime;
use rand::TryRng;
use sessions::{Session, Sessions, Turn, Turned};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long an access token is good for.
pub const ACCESS: Duration = Duration::from_secs(15 * 60);
/// How long a session lasts without being refreshed.
pub const REFRESH: Duration = Duration::from_secs(7 * 24 * 3600);
/// So long after an exchange a refresh token may be shown once more.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long it is taken for granted that a session is in force.
pub const KEPT: Duration = Duration::from_secs(5);
/// Who tried, in the audit log, where there is no such account.
const NOBODY: &str = "unknown";
/// Sessions of which that is kept.
const MOST_KEPT: u64 = 100_000;

/// Why a store did not answer; no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Away {
    /// Not now: it is down, or slow.
    #[error("{0}")]
    Unavailable(String),
    /// Too much is under way here.
    #[error("{0}")]
    Busy(String),
    /// It will not, until somebody mends something.
    #[error("{0}")]
    Refused(String),
}

/// Whether a user may be signed in although there is an account: what the system's records say of it.
#[async_trait::async_trait]
pub trait Standing: Send + Sync {
    /// Why not: banned, deleted. None: it may.
    async fn barred(&self, user: &str) -> Result<Option<&'static str>, Away>;
}

/// Who asks, by an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedIn {
    /// The user's id.
    pub user: String,
    /// The session's id.
    pub session: String,
    /// What it may in every workspace.
    pub role: Role,
}

/// What a client gets.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) session: String,
    pub(crate) account: Account,
}

/// What became of an attempt.
pub(crate) enum Attempt {
    In(Box<Tokens>),
    /// For whom, and why not: for the audit log, not for the client.
    Out {
        user: String,
        why: &'static str,
        /// Somebody holds a copy of a token.
        stolen: bool,
    },
}

/// Signs users in and out, and knows who is.
pub struct SignIn {
    pub(crate) accounts: Arc<dyn Accounts>,
    pub(crate) sessions: Arc<dyn Sessions>,
    standing: Arc<dyn Standing>,
    keys: Arc<Keys>,
    passwords: Passwords,
    pub(crate) clock: SharedClock,
    /// Sessions that are in force, by id.
    kept: Cache<String, ()>,
    /// How often sessions have been ended here: what was looked up meanwhile is not kept.
    ended: AtomicU64,
}

/// Whose a refresh token is.
pub(crate) struct Holder {
    pub(crate) user: String,
    pub(crate) session: String,
    /// It has not been exchanged yet.
    pub(crate) in_force: bool,
}

impl SignIn {
    /// Over stores and a key.
    pub fn new(
        accounts: Arc<dyn Accounts>,
        sessions: Arc<dyn Sessions>,
        standing: Arc<dyn Standing>,
        keys: Arc<Keys>,
        clock: SharedClock,
    ) -> SignIn {
        let kept = Cache::builder().max_capacity(MOST_KEPT).time_to_live(KEPT).build();
        SignIn { accounts, sessions, standing, keys, passwords: Passwords::default(), clock, kept, ended: AtomicU64::new(0) }
    }

    /// Who shows this access token; none where it is none of ours, or its session is over.
    ///
    /// # Errors
    /// A store that does not answer: nobody is let in meanwhile.
    pub async fn who(&self, token: &str) -> Result<Option<SignedIn>, Away> {
        let now = self.clock.now();
        let Some(claims) = self.keys.read(token, seconds(now)) else { return Ok(None) };
        let Some(role) = Role::of(&claims.role) else { return Ok(None) };
        if self.kept.get(&claims.sid).await.is_none() {
            let ended = self.ended.load(Ordering::SeqCst);
            let found = self.sessions.session(&claims.sid, now).await?;
            if found.is_none_or(|session| session.user != claims.sub) || self.standing.barred(&claims.sub).await?.is_some() {
                return Ok(None);
            }
            self.kept.insert(claims.sid.clone(), ()).await;
            if self.ended.load(Ordering::SeqCst) != ended {
                self.kept.invalidate(&claims.sid).await;
            }
        }
        Ok(Some(SignedIn { user: claims.sub, session: claims.sid, role }))
    }

    /// Begins a session for whoever knows the password.
    pub(crate) async fn sign_in(&self, email: &str, password: String, about: String) -> Result<Attempt, Away> {
        let account = self.accounts.account_by_email(email).await?;
        let right = self.passwords.check(password, account.as_ref().map(|account| account.password.clone())).await?;
        let Some(account) = account else {
            return Ok(Attempt::Out { user: NOBODY.to_owned(), why: "no such account", stolen: false });
        };
        let out = |why| Attempt::Out { user: account.user.clone(), why, stolen: false };
        if !right {
            return Ok(out("wrong password"));
        }
        if let Some(why) = self.standing.barred(&account.user).await? {
            return Ok(out(why));
        }
        let (root, secret, now) = (drawn(16)?, drawn(32)?, self.clock.now());
        let (id, token, user) = (digest(&root), digest(&secret), account.user.clone());
        let session = Session { id: id.clone(), user, token, created: now, expires: after(now, REFRESH), about };
        self.sessions.open(&session).await?;
        // The account may have been changed while the password was checked; one that changes from now on finds the session.
        if self.accounts.account(&account.user).await?.as_ref() != Some(&account) {
            self.end(&id).await?;
            return Ok(out("the account was changed"));
        }
        self.tokens(account, &id, &root, &secret).await.map(|tokens| Attempt::In(Box::new(tokens)))
    }

    /// Exchanges a refresh token for the next one, and an access token.
    pub(crate) async fn refresh(&self, token: &str) -> Result<Attempt, Away> {
        let nobody = || Attempt::Out { user: String::new(), why: "no such session", stolen: false };
        let now = self.clock.now();
        let Some((root, shown)) = token.split_once('.') else { return Ok(nobody()) };
        let id = &digest(root);
        let Some(session) = self.sessions.session(id, now).await? else { return Ok(nobody()) };
        let out = |why, stolen| Attempt::Out { user: session.user.clone(), why, stolen };
        let account = match (self.accounts.account(&session.user).await?, self.standing.barred(&session.user).await?) {
            (Some(account), None) => account,
            (_, why) => {
                self.end(id).await?;
                return Ok(out(why.unwrap_or("no such account"), false));
            }
        };
        let secret = drawn(32)?;
        let (session_id, from, to) = (id.clone(), digest(shown), digest(&secret));
        let turn = Turn { session: session_id, from, to, now, expires: after(now, REFRESH), grace: GRACE };
        match self.sessions.turn(&turn).await? {
            Turned::Done => self.tokens(account, id, root, &secret).await.map(|tokens| Attempt::In(Box::new(tokens))),
            Turned::Gone => Ok(nobody()),
            Turned::Stolen => {
                self.forget(id).await;
                Ok(out("a refresh token was used twice", true))
            }
        }
    }

    /// Whose a refresh token is, whether or not it has been exchanged.
    pub(crate) async fn holder(&self, token: &str) -> Result<Option<Holder>, Away> {
        let Some((root, secret)) = token.split_once('.') else { return Ok(None) };
        let found = self.sessions.session(&digest(root), self.clock.now()).await?;
        let holder = |found: Session| Holder { in_force: found.token == digest(secret), user: found.user, session: found.id };
        Ok(found.map(holder))
    }

    /// Ends a session. False: there was none.
    pub(crate) async fn end(&self, session: &str) -> Result<bool, Away> {
        let ended = self.sessions.end(session).await?;
        self.forget(session).await;
        Ok(ended)
    }

    async fn forget(&self, session: &str) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.kept.invalidate(session).await;
    }

    /// Ends all sessions of a user.
    pub(crate) async fn end_all(&self, user: &str) -> Result<u64, Away> {
        let ended = self.sessions.end_all(user).await?;
        // One that was opened a moment ago may be kept too: all are looked up anew.
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.kept.invalidate_all();
        Ok(ended)
    }

    /// Makes or replaces an account; whoever was signed in by an earlier password is signed out. False:
    /// another one has the e-mail address.
    pub(crate) async fn put_account(&self, user: &str, email: String, password: String, role: Role) -> Result<bool, Away> {
        let password = self.passwords.hash(password).await?;
        let account = Account { user: user.to_owned(), email, password, role };
        // Before, so that none goes on if this process ends after the change; and after, for those that began meanwhile.
        self.end_all(user).await?;
        let put = self.accounts.put_account(&account).await?;
        if put {
            self.end_all(user).await?;
        }
        Ok(put)
    }

    async fn tokens(&self, account: Account, session: &str, root: &str, secret: &str) -> Result<Tokens, Away> {
        let lasting = i64::try_from(ACCESS.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims::new(&account.user, session, account.role, seconds(self.clock.now()), lasting);
        let keys = self.keys.clone();
        // The first signature may have to make the key.
        let signed = tokio::task::spawn_blocking(move || keys.sign(&claims)).await;
        let access =
            signed.map_err(|error| Away::Refused(error.to_string()))?.map_err(|error| Away::Refused(error.to_string()))?;
        Ok(Tokens { access, refresh: format!("{root}.{secret}"), session: session.to_owned(), account })
    }
}

/// An e-mail address as it is compared: without white space around it, in small letters.
pub(crate) fn email_of(text: &str) -> String {
    text.trim().to_lowercase()
}

fn seconds(time: EventTime) -> i64 {
    time.0.div_euclid(1_000_000)
}

fn after(time: EventTime, duration: Duration) -> EventTime {
    time.plus(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

/// Random bytes of the system's, as text for tokens.
fn drawn(bytes: usize) -> Result<String, Away> {
    let mut drawn = vec![0; bytes];
    let filled = rand::rngs::SysRng.try_fill_bytes(&mut drawn);
    filled.map_err(|error| Away::Unavailable(format!("the system gives no random bytes: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(drawn))
}

/// What is stored of a part of a token.
fn digest(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests;
