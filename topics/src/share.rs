//! Shares of the pipelines' work (R19): how several processes divide it.
//!
//! A broker has a fixed number of shares. Of a topology that can be divided, a share is a run of
//! neighbouring partitions of each of its sources; a topology that cannot be divided is whole in one
//! share. What it left behind there is stored under its name, `@` and the share, so it follows the
//! share to whichever process has it.

use crate::ids::Offset;
use crate::partitioner::murmur2;
use std::collections::BTreeMap;
use std::ops::Range;

/// What several processes divide among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Topologies.
    Pipelines,
    /// Sinks into stores that several processes may write.
    Sinks,
}

/// One of several shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

impl Share {
    /// The partitions of a topic that has `count` of them.
    pub fn partitions(&self, count: u32) -> Range<u32> {
        let start = |index: u32| (u64::from(index) * u64::from(count)).div_ceil(u64::from(self.of.max(1))) as u32;
        start(self.index)..start(self.index + 1)
    }
}

/// The share that has the whole of a topology that cannot be divided, or of a sink.
pub fn whole_in(name: &str, of: u32) -> u32 {
    (murmur2(name.as_bytes()) & 0x7fff_ffff) % of.max(1)
}

/// Under which name a share of a topology is stored.
pub fn stored_as(topology: &str, share: u32) -> String {
    format!("{topology}@{share}")
}

/// The topology (or group) and the share that a stored name is of; a name without a share is of share 0.
pub fn share_of(stored: &str) -> (&str, u32) {
    let found = stored.rsplit_once('@').and_then(|(name, share)| Some((name, share.parse().ok()?)));
    found.unwrap_or((stored, 0))
}

/// Notes how far a share has come somewhere: of what several shares read, the last of them says.
pub fn note_last<P: Ord>(places: &mut BTreeMap<P, Offset>, place: P, next: Offset) {
    let least = places.entry(place).or_insert(next);
    *least = next.min(*least);
}

/// Hears which shares fall to this process. Calls come from one thread, one after the other.
pub trait ShareHolder: Send + Sync {
    /// These shares, all of them, are this process's from now on.
    fn taken(&self, shares: &[u32]);
    /// These are given up: when this returns, none of their epochs is in flight.
    fn given_up(&self, shares: &[u32]);
}

/// This process's place among those that share the work; dropping it leaves them.
pub trait Membership: Send + Sync {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_in_one_share() {
        for of in 1..9 {
            for count in 1..20 {
                let all: Vec<u32> = (0..of).flat_map(|index| Share { index, of }.partitions(count)).collect();
                assert_eq!(all, (0..count).collect::<Vec<_>>(), "{count} partitions in {of} shares");
            }
        }
    }

    #[test]
    fn a_stored_name_says_its_share() {
        assert_eq!(share_of(&stored_as("a@b", 3)), ("a@b", 3));
        assert_eq!(share_of("channel-activity"), ("channel-activity", 0));
        assert!(whole_in("channel-activity", 4) < 4);
    }
}
