//! From where a request came, and how often requests may come from there.

use crate::problem::Problem;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The other end of a connection: among a request's extensions where its path begins with `/api/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Whoever has not been seen for long is forgotten when there are more than so many.
const MANY: usize = 50_000;
/// With so many whoever comes is told to come again.
const MOST: usize = 4 * MANY;
/// So often it is looked whether there are many.
const SWEEP: u32 = 4_096;

/// How often requests may come, for each key.
pub(crate) struct Limit<K: Hash + Eq + Clone> {
    seen: DefaultKeyedRateLimiter<K>,
    clock: DefaultClock,
    checks: AtomicU32,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    /// `burst` at once, then so many in each `period`.
    pub(crate) fn new(number: u32, period: Duration, burst: u32) -> Limit<K> {
        let some = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let one = Quota::with_period(period / number.max(1));
        let quota = one.unwrap_or_else(|| Quota::per_second(some(number))).allow_burst(some(burst));
        Limit { seen: RateLimiter::keyed(quota), clock: DefaultClock::default(), checks: AtomicU32::new(0) }
    }

    /// 429 where it is one too many.
    pub(crate) fn check(&self, key: &K) -> Result<(), Problem> {
        let sweeps = self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP);
        if sweeps && self.seen.len() > MANY {
            self.seen.retain_recent();
            self.seen.shrink_to_fit();
        }
        if self.seen.len() >= MOST {
            return Err(too_many(Duration::from_secs(1)));
        }
        self.seen.check_key(key).map_err(|until| too_many(until.wait_time_from(self.clock.now())))
    }
}

fn too_many(wait: Duration) -> Problem {
    let detail = "too many attempts from this address or for this account";
    Problem::new(429, "too_many_requests", "too many requests").detail(detail).retry_after(wait)
}

/// An address as limits count it: of IPv6 the network that one customer usually has (64 bits).
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6((u128::from(six) >> 64 << 64).into()),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_what_is_beyond_waits() {
        let limit: Limit<IpAddr> = Limit::new(1, Duration::from_secs(1), 3);
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!((0..3).all(|_| limit.check(&one).is_ok()));
        let refused = limit.check(&one).unwrap_err();
        assert_eq!(refused.status, 429);
        assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()));
        assert!(limit.check(&other).is_ok());
        let six = |text: &str| counted(text.parse().unwrap());
        assert_eq!(six("2001:db8::1"), six("2001:db8::ffff"));
        assert_ne!(six("2001:db8::1"), six("2001:db8:0:1::1"));
        assert_eq!(six("::ffff:10.0.0.1"), one);
    }
}
