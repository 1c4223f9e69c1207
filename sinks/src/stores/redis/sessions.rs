//! Sessions: a hash each, `{prefix}:session:<id>`, that Redis forgets when it is over; by user a sorted set,
//! `{prefix}:sessions:<user>`, by the time at which they are over. Each change is one script.

use super::{NAME, Redis, fault};
use crate::stores::remote::Backend;
use crate::stores::remote::client::Pool;
use crate::stores::sign_in::away;
use quikflow_gateway::sign_in::Away;
use quikflow_gateway::sign_in::sessions::{MOST_OF_A_USER, Session, Sessions, Turn, Turned};
use quikflow_topics::ids::EventTime;
use redis::{Script, ScriptInvocation};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Shared beginning: a session's key, those of its user, and how one ends.
macro_rules! script {
    ($text:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                r"
local p, call = KEYS[1], redis.call
local function at(id) return p .. ':session:' .. id end
local function of(user) return p .. ':sessions:' .. user end
local function finish(id, user)
  call('ZREM', of(user), id)
  return call('DEL', at(id))
end
",
                $text
            ))
        })
    };
}

/// id, user, token, created, expires, about, milliseconds that it lasts, most of a user.
static OPEN: LazyLock<Script> = script!(
    r"
local id, user = ARGV[1], ARGV[2]
call('HSET', at(id), 'user', user, 'token', ARGV[3], 'before', '', 'turned', '0', 'created', ARGV[4], 'expires', ARGV[5], 'about', ARGV[6])
call('PEXPIRE', at(id), ARGV[7])
call('ZREMRANGEBYSCORE', of(user), '-inf', ARGV[4])
call('ZADD', of(user), ARGV[5], id)
call('PEXPIRE', of(user), ARGV[7])
local over = call('ZCARD', of(user)) - tonumber(ARGV[8])
if over > 0 then for _, old in ipairs(call('ZRANGE', of(user), 0, over - 1)) do finish(old, user) end end
return 1"
);

/// id → what `session` reads.
static ONE: LazyLock<Script> = script!(
    r"
return call('HMGET', at(ARGV[1]), 'user', 'token', 'created', 'expires', 'about')"
);

/// user, now → ids and what `session` reads of each.
static ALL: LazyLock<Script> = script!(
    r"
local out = {}
for _, id in ipairs(call('ZRANGEBYSCORE', of(ARGV[1]), '(' .. ARGV[2], '+inf')) do
  out[#out + 1] = { id, call('HMGET', at(id), 'user', 'token', 'created', 'expires', 'about') }
end
return out"
);

/// id, token shown, next token, now, expires, grace (microseconds), milliseconds that it lasts: 1 done, 2 stolen, 0 gone.
static TURN: LazyLock<Script> = script!(
    r"
local id, key = ARGV[1], at(ARGV[1])
local user, token, before, turned, expires = unpack(call('HMGET', key, 'user', 'token', 'before', 'turned', 'expires'))
if not user or tonumber(expires) <= tonumber(ARGV[4]) then return 0 end
if token ~= ARGV[2] and (before ~= ARGV[2] or tonumber(ARGV[4]) - tonumber(turned) >= tonumber(ARGV[6])) then
  finish(id, user)
  return 2
end
call('HSET', key, 'token', ARGV[3], 'before', token, 'turned', ARGV[4], 'expires', ARGV[5])
call('PEXPIRE', key, ARGV[7])
call('ZADD', of(user), ARGV[5], id)
call('PEXPIRE', of(user), ARGV[7])
return 1"
);

static END: LazyLock<Script> = script!(
    r"
local user = call('HGET', at(ARGV[1]), 'user')
if not user then return 0 end
return finish(ARGV[1], user)"
);

static END_ALL: LazyLock<Script> = script!(
    r"
local ended = 0
for _, id in ipairs(call('ZRANGE', of(ARGV[1]), 0, -1)) do ended = ended + finish(id, ARGV[1]) end
return ended"
);

/// What a session is stored as, without its id.
type Stored = Vec<Option<String>>;

/// Sessions on a Redis server, for callers on any thread.
pub(crate) struct Shared {
    redis: Arc<Redis>,
    pool: Arc<Pool>,
    longest: Duration,
    prepared: Arc<OnceCell<()>>,
}

impl Shared {
    pub(crate) fn new(redis: Redis, pool: Arc<Pool>, longest: Duration) -> Shared {
        Shared { redis: Arc::new(redis), pool, longest, prepared: Arc::default() }
    }

    /// Runs a script with its arguments.
    async fn run<T>(&self, script: &'static Script, arguments: Vec<String>) -> Result<T, Away>
    where
        T: redis::FromRedisValue + Send + 'static,
    {
        let (redis, prepared) = (self.redis.clone(), self.prepared.clone());
        let call = async move {
            prepared.get_or_try_init(|| redis.prepare()).await?;
            let mut connection = redis.connection().await?;
            let mut call: ScriptInvocation<'_> = script.prepare_invoke();
            call.key(&redis.prefix);
            for argument in arguments {
                call.arg(argument);
            }
            call.invoke_async(&mut connection).await.map_err(fault)
        };
        self.pool.on(NAME, self.longest, call).await.map_err(away)
    }
}

fn session(id: &str, stored: &Stored) -> Option<Session> {
    let text = |at: usize| stored.get(at)?.clone();
    let time = |at: usize| text(at)?.parse().ok().map(EventTime);
    let (user, token, about) = (text(0)?, text(1)?, text(4)?);
    Some(Session { id: id.to_owned(), user, token, created: time(2)?, expires: time(3)?, about })
}

/// Milliseconds from one time to another, as Redis takes them: one at least.
fn lasting(from: EventTime, to: EventTime) -> String {
    (to.minus(from.0).0 / 1_000).max(1).to_string()
}

#[async_trait::async_trait]
impl Sessions for Shared {
    async fn open(&self, session: &Session) -> Result<(), Away> {
        let Session { id, user, token, created, expires, about } = session.clone();
        let (lasts, most) = (lasting(created, expires), MOST_OF_A_USER.to_string());
        let arguments = vec![id, user, token, created.0.to_string(), expires.0.to_string(), about, lasts, most];
        self.run::<u8>(&OPEN, arguments).await.map(drop)
    }

    async fn session(&self, id: &str, now: EventTime) -> Result<Option<Session>, Away> {
        let stored: Stored = self.run(&ONE, vec![id.to_owned()]).await?;
        Ok(session(id, &stored).filter(|session| session.expires > now))
    }

    async fn sessions(&self, user: &str, now: EventTime) -> Result<Vec<Session>, Away> {
        let stored: Vec<(String, Stored)> = self.run(&ALL, vec![user.to_owned(), now.0.to_string()]).await?;
        let mut found: Vec<Session> = stored.iter().filter_map(|(id, stored)| session(id, stored)).collect();
        found.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        Ok(found)
    }

    async fn turn(&self, turn: &Turn) -> Result<Turned, Away> {
        let Turn { session, from, to, now, expires, grace } = turn.clone();
        let (lasts, grace) = (lasting(now, expires), grace.as_micros().to_string());
        let arguments = vec![session, from, to, now.0.to_string(), expires.0.to_string(), grace, lasts];
        Ok(match self.run::<u8>(&TURN, arguments).await? {
            1 => Turned::Done,
            2 => Turned::Stolen,
            _ => Turned::Gone,
        })
    }

    async fn end(&self, id: &str) -> Result<bool, Away> {
        Ok(self.run::<u8>(&END, vec![id.to_owned()]).await? > 0)
    }

    async fn end_all(&self, user: &str) -> Result<u64, Away> {
        self.run(&END_ALL, vec![user.to_owned()]).await
    }
}
