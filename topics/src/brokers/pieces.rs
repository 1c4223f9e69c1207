//! Which stored pieces of state a new snapshot makes useless: the same rule on every broker.

use std::collections::BTreeMap;

/// A stored piece, without its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) id: i64,
    pub(super) shard: u32,
    pub(super) shards: u32,
    pub(super) snapshot: bool,
}

/// The pieces that the newest snapshots of layout `shards` replace. None while another layout's
/// pieces are needed: until each shard has written a snapshot after the last of those.
pub(super) fn useless(list: &[Stored], shards: u32) -> Vec<i64> {
    let last_other = list.iter().filter(|s| s.shards != shards).map(|s| s.id).max();
    let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
    for stored in list.iter().filter(|s| s.snapshot && s.shards == shards && Some(s.id) > last_other) {
        newest.insert(stored.shard, stored.id);
    }
    if last_other.is_some() && (0..shards).any(|shard| !newest.contains_key(&shard)) {
        return Vec::new();
    }
    let replaced = |s: &&Stored| s.shards != shards || newest.get(&s.shard).is_some_and(|id| s.id < *id);
    list.iter().filter(replaced).map(|s| s.id).collect()
}
