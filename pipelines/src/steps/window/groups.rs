//! The groups of all open windows: (window, key) → slot.
//!
//! Keys are kept once, however many windows they are in. Slots of closed windows are used again.
//! The groups of a window hang together as a list, so that closing it touches nothing else.

use hashbrown::HashTable;
use std::collections::BTreeMap;

/// The end of a list of slots.
const END: u32 = u32::MAX;

/// A group: a key in a window.
#[derive(Clone, Copy)]
struct Group {
    start: i64,
    key: u32,
    /// The next group of the window.
    next: u32,
    /// Changed since the rows of this epoch were last emitted.
    touched: bool,
    /// Changed since state was last written.
    unwritten: bool,
}

/// Where the bytes of a key are, and how many groups have it.
#[derive(Clone, Copy)]
struct Key {
    hash: u64,
    from: usize,
    length: u32,
    groups: u32,
}

#[derive(Default)]
struct Keys {
    keys: Vec<Key>,
    bytes: Vec<u8>,
    unused: usize,
    free: Vec<u32>,
    table: HashTable<u32>,
}

/// The low bits of a key's hash are its key group, the same for many keys here.
fn spread(hash: u64) -> u64 {
    hash ^ (hash >> 32)
}

impl Keys {
    fn bytes(&self, key: u32) -> &[u8] {
        let Key { from, length, .. } = self.keys[key as usize];
        &self.bytes[from..from + length as usize]
    }

    fn intern(&mut self, bytes: &[u8], hash: u64) -> u32 {
        let found = self.table.find(spread(hash), |key| self.keys[*key as usize].hash == hash && self.bytes(*key) == bytes);
        if let Some(key) = found {
            return *key;
        }
        if self.unused > 4096 && self.unused * 2 > self.bytes.len() {
            self.compact();
        }
        let entry = Key { hash, from: self.bytes.len(), length: bytes.len() as u32, groups: 0 };
        self.bytes.extend_from_slice(bytes);
        let key = match self.free.pop() {
            Some(key) => {
                self.keys[key as usize] = entry;
                key
            }
            None => {
                self.keys.push(entry);
                (self.keys.len() - 1) as u32
            }
        };
        let keys = &self.keys;
        self.table.insert_unique(spread(hash), key, |key| spread(keys[*key as usize].hash));
        key
    }

    fn release(&mut self, key: u32) {
        let entry = &mut self.keys[key as usize];
        entry.groups -= 1;
        if entry.groups == 0 {
            self.unused += entry.length as usize;
            let hash = entry.hash;
            entry.length = 0;
            if let Ok(found) = self.table.find_entry(spread(hash), |k| *k == key) {
                found.remove();
            }
            self.free.push(key);
        }
    }

    fn compact(&mut self) {
        let mut bytes = Vec::with_capacity(self.bytes.len() - self.unused);
        for key in self.keys.iter_mut().filter(|key| key.groups > 0) {
            let from = bytes.len();
            bytes.extend_from_slice(&self.bytes[key.from..key.from + key.length as usize]);
            key.from = from;
        }
        self.bytes = bytes;
        self.unused = 0;
    }
}

/// The groups of all open windows.
#[derive(Default)]
pub(crate) struct Groups {
    keys: Keys,
    groups: Vec<Group>,
    free: Vec<u32>,
    table: HashTable<(u32, u32)>,
    /// The first group of each open window.
    windows: BTreeMap<i64, u32>,
    touched: Vec<u32>,
    unwritten: Vec<u32>,
    live: usize,
}

fn short(key_hash: u64, start: i64) -> u32 {
    ((spread(key_hash) ^ (start as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

fn long(short: u32) -> u64 {
    u64::from(short).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

impl Groups {
    /// The slot of a group, made if need be, and marked as changed.
    pub(crate) fn touch(&mut self, start: i64, key: &[u8], key_hash: u64) -> u32 {
        let id = self.keys.intern(key, key_hash);
        let short = short(key_hash, start);
        let groups = &self.groups;
        let found = self.table.find(long(short), |(s, slot)| {
            *s == short && groups[*slot as usize].key == id && groups[*slot as usize].start == start
        });
        let slot = match found {
            Some((_, slot)) => *slot,
            None => self.insert(start, id, short),
        };
        self.mark(slot);
        slot
    }

    /// Marks a group as changed.
    pub(crate) fn mark(&mut self, slot: u32) {
        let group = &mut self.groups[slot as usize];
        if !group.touched {
            group.touched = true;
            self.touched.push(slot);
        }
        if !group.unwritten {
            group.unwritten = true;
            self.unwritten.push(slot);
        }
    }

    fn insert(&mut self, start: i64, key: u32, short: u32) -> u32 {
        self.keys.keys[key as usize].groups += 1;
        let mut group = Group { start, key, next: END, touched: false, unwritten: false };
        let slot = self.free.pop();
        let number = slot.unwrap_or(self.groups.len() as u32);
        let head = self.windows.entry(start).or_insert(END);
        group.next = *head;
        *head = number;
        match slot {
            Some(slot) => self.groups[slot as usize] = group,
            None => self.groups.push(group),
        }
        self.table.insert_unique(long(short), (short, number), |(short, _)| long(*short));
        self.live += 1;
        number
    }

    /// So many slots are or were in use.
    pub(crate) fn slots(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn start(&self, slot: u32) -> i64 {
        self.groups[slot as usize].start
    }

    pub(crate) fn key(&self, slot: u32) -> &[u8] {
        self.keys.bytes(self.groups[slot as usize].key)
    }

    /// The number of the group's key: equal for groups of one key in several windows.
    pub(crate) fn key_number(&self, slot: u32) -> u32 {
        self.groups[slot as usize].key
    }

    pub(crate) fn key_hash(&self, slot: u32) -> u64 {
        self.keys.keys[self.groups[slot as usize].key as usize].hash
    }

    /// The earliest open window.
    pub(crate) fn first_window(&self) -> Option<i64> {
        self.windows.first_key_value().map(|(start, _)| *start)
    }

    /// All open windows that are closed by `closed`, earliest first.
    pub(crate) fn closing(&self, closed: impl Fn(i64) -> bool) -> Vec<i64> {
        self.windows.keys().copied().take_while(|start| closed(*start)).collect()
    }

    /// The slots of a window.
    pub(crate) fn of_window(&self, start: i64, into: &mut Vec<u32>) {
        let mut at = self.windows.get(&start).copied().unwrap_or(END);
        while at != END {
            into.push(at);
            at = self.groups[at as usize].next;
        }
    }

    /// The slots of all groups.
    pub(crate) fn all(&self) -> Vec<u32> {
        let mut all = Vec::with_capacity(self.live);
        for start in self.windows.keys() {
            self.of_window(*start, &mut all);
        }
        all
    }

    /// The groups changed since the last call; a closed window's are not among them.
    pub(crate) fn take_touched(&mut self) -> Vec<u32> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|slot| std::mem::take(&mut self.groups[*slot as usize].touched));
        touched
    }

    /// The groups changed since state was last written; a closed window's are not among them.
    pub(crate) fn take_unwritten(&mut self) -> Vec<u32> {
        let mut unwritten = std::mem::take(&mut self.unwritten);
        unwritten.retain(|slot| std::mem::take(&mut self.groups[*slot as usize].unwritten));
        unwritten
    }

    /// Forgets a window and its groups; their slots (which the caller has from
    /// [`Groups::of_window`]) will be used again.
    pub(crate) fn drop_window(&mut self, start: i64, slots: &[u32]) {
        self.windows.remove(&start);
        for slot in slots {
            let group = &mut self.groups[*slot as usize];
            group.touched = false;
            group.unwritten = false;
            let key = group.key;
            let short = short(self.keys.keys[key as usize].hash, start);
            if let Ok(found) = self.table.find_entry(long(short), |(_, s)| s == slot) {
                found.remove();
            }
            self.keys.release(key);
        }
        self.free.extend_from_slice(slots);
        self.live -= slots.len();
        // Where nobody writes state, the list of what is unwritten must not grow for ever.
        if self.unwritten.len() > 1024 + 2 * self.live {
            let groups = &self.groups;
            self.unwritten.retain(|slot| groups[*slot as usize].unwritten);
            self.unwritten.sort_unstable();
            self.unwritten.dedup();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Group>()
            + (self.free.capacity() + self.touched.capacity() + self.unwritten.capacity()) * 4
            + self.table.capacity() * 9
            + self.windows.len() * 24
            + self.keys.keys.capacity() * size_of::<Key>()
            + self.keys.bytes.capacity()
            + self.keys.table.capacity() * 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_keys_of_closed_windows_are_used_again() {
        let mut groups = Groups::default();
        for round in 0..1000i64 {
            let slots: Vec<u32> = (0..50u32)
                .map(|i| {
                    let key = format!("key {} {round}", i).into_bytes();
                    let hash = crate::steps::keys::hash(&key);
                    let slot = groups.touch(round, &key, hash);
                    assert_eq!(groups.touch(round, &key, hash), slot);
                    assert_eq!(groups.key(slot), key);
                    slot
                })
                .collect();
            assert_eq!(groups.take_touched(), slots);
            let mut of = Vec::new();
            groups.of_window(round, &mut of);
            assert_eq!(of.len(), 50);
            groups.drop_window(round, &of);
            assert!(groups.take_unwritten().is_empty());
        }
        assert_eq!(groups.live, 0);
        assert_eq!(groups.slots(), 50);
        assert!(groups.bytes() < 200_000, "{}", groups.bytes());
    }
}
