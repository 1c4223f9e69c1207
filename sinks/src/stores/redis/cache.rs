//! Documents of other stores, kept for a while by the key they are read by (cache-aside).
//!
//! Under `{prefix}:cache:<sink>:<round>:<key>` stands one of
//!
//! * `=` and the document as JSON: it may be answered;
//! * `?` and a lease: whoever holds it is reading the store and may put here what it found;
//! * `!`: the row was changed a moment ago. Nothing is put here until a replica has followed.
//!
//! A change takes a lease away, so a document that was read before the change is not kept after it.

use super::{NAME, Redis};
use crate::store::StoreError;
use crate::stores::remote::{Cache, Looked, unreachable};
use redis::Script;
use serde_json::Value as Json;
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

/// How long one who reads a document may take to put it here.
const LEASE: Duration = Duration::from_secs(10);
/// How long after a change nothing is kept: a replica follows meanwhile.
const HOLD: Duration = Duration::from_secs(5);
/// A reader does not wait longer for the cache.
const PATIENCE: Duration = Duration::from_millis(100);
/// A change does.
const LONGEST: Duration = Duration::from_secs(1);
/// Keys that a call forgets at most.
const AT_ONCE: usize = 1_024;

/// → what stands there; else a lease.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local base = KEYS[1] .. ':cache:' .. ARGV[1]
local place = base .. ':' .. (redis.call('GET', base) or '0') .. ':' .. ARGV[2]
local found = redis.call('GET', place)
if found then return { 0, found } end
local lease = redis.call('INCR', KEYS[1] .. ':cache-leases')
redis.call('SET', place, '?' .. lease, 'PX', ARGV[3])
return { lease, place }",
    )
});

/// Keeps a document where the lease still holds.
static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= '?' .. ARGV[1] then return 0 end
redis.call('SET', KEYS[1], '=' .. ARGV[2], 'PX', ARGV[3])
return 1",
    )
});

static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local base = KEYS[1] .. ':cache:' .. ARGV[1]
local round = redis.call('GET', base) or '0'
for at = 3, #ARGV do redis.call('SET', base .. ':' .. round .. ':' .. ARGV[at], '!', 'PX', ARGV[2]) end
return 1",
    )
});

/// Milliseconds, as Redis takes them.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

async fn within<T>(longest: Duration, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = || Err(unreachable(NAME, format!("no answer within {longest:?}")));
    tokio::time::timeout(longest, call).await.unwrap_or_else(|_| late())
}

#[async_trait::async_trait]
impl Cache for Redis {
    async fn look(&self, sink: &str, key: &str) -> Result<Looked, StoreError> {
        within(PATIENCE, async {
            let mut connection = self.connection().await?;
            let mut call = LOOK.prepare_invoke();
            call.key(&self.prefix).arg(sink).arg(key).arg(millis(LEASE));
            let (lease, text): (u64, String) = call.invoke_async(&mut connection).await.map_err(super::fault)?;
            if lease > 0 {
                return Ok(Looked::Missing { place: text, lease });
            }
            // What cannot be read is left to the store.
            let kept = text.strip_prefix('=').and_then(|json| serde_json::from_str(json).ok());
            Ok(kept.map_or(Looked::Changing, Looked::Kept))
        })
        .await
    }

    async fn fill(&self, place: &str, lease: u64, document: &Json, keep: Duration) -> Result<(), StoreError> {
        within(PATIENCE, async {
            let mut connection = self.connection().await?;
            let mut call = FILL.prepare_invoke();
            call.key(place).arg(lease).arg(document.to_string()).arg(millis(keep));
            call.invoke_async::<u64>(&mut connection).await.map(drop).map_err(super::fault)
        })
        .await
    }

    async fn forget(&self, sink: &str, keys: &[String]) -> Result<(), StoreError> {
        within(LONGEST, async {
            let mut connection = self.connection().await?;
            for share in keys.chunks(AT_ONCE) {
                let mut call = FORGET.prepare_invoke();
                call.key(&self.prefix).arg(sink).arg(millis(HOLD)).arg(share);
                call.invoke_async::<u64>(&mut connection).await.map_err(super::fault)?;
            }
            Ok(())
        })
        .await
    }

    async fn forget_all(&self, sink: &str) -> Result<(), StoreError> {
        within(LONGEST, async {
            let mut connection = self.connection().await?;
            let mut call = redis::cmd("INCR");
            call.arg(format!("{}:cache:{sink}", self.prefix));
            call.query_async::<u64>(&mut connection).await.map(drop).map_err(super::fault)
        })
        .await
    }
}
