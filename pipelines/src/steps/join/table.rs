//! The versions of a table's rows.

use super::super::keyed::Expiry;
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// Event time, source, partition, offset: which of two versions is the newer.
pub(super) type At = (i64, u32, u32, u64);

/// A version: the selected columns, or none where the row was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) at: At,
    pub(super) values: Option<Box<[u8]>>,
}

/// The rows under one `on` value: row key → versions, oldest first.
pub(super) type RowsOf = BTreeMap<Box<[u8]>, Vec<Version>>;

/// All rows, by `on` and row key.
pub(super) struct VersionedTable {
    rows: HashMap<Box<[u8]>, RowsOf>,
    expiry: Expiry<(Box<[u8]>, Box<[u8]>)>,
    bytes: usize,
}

impl VersionedTable {
    pub(super) fn new(history: i64) -> VersionedTable {
        VersionedTable { rows: HashMap::new(), expiry: Expiry::new(history), bytes: 0 }
    }

    /// Adds a version; one that is there already is not added again. Says whether it was new.
    pub(super) fn insert(&mut self, on: &[u8], row: &[u8], version: Version) -> bool {
        if !self.rows.contains_key(on) {
            self.rows.insert(on.into(), BTreeMap::new());
        }
        let Some(rows) = self.rows.get_mut(on) else { return false };
        let versions = rows.entry(row.into()).or_default();
        let at = versions.partition_point(|old| old.at < version.at);
        if versions.get(at).is_some_and(|old| old.at == version.at) {
            return false;
        }
        self.bytes += 96 + on.len() + row.len() + version.values.as_ref().map_or(0, |v| v.len());
        // The version before this one can go once this one is old enough.
        self.expiry.add(version.at.0, (on.into(), row.into()));
        versions.insert(at, version);
        true
    }

    /// The rows under `on` as they were at `time`, in the order of their keys.
    pub(super) fn at<'a>(&'a self, on: &[u8], time: i64) -> impl Iterator<Item = &'a [u8]> {
        self.rows.get(on).into_iter().flat_map(|rows| rows.values()).filter_map(move |versions| {
            let newer = versions.partition_point(|version| version.at.0 <= time);
            versions[..newer].last()?.values.as_deref()
        })
    }

    /// Forgets what no record at or after `before` can ask for.
    pub(super) fn trim(&mut self, before: i64) {
        for (on, row) in self.expiry.take(before) {
            let Some(rows) = self.rows.get_mut(&on) else { continue };
            let Some(versions) = rows.get_mut(&row) else { continue };
            let old = versions.partition_point(|version| version.at.0 <= before);
            // The newest of the old ones still stands, unless it is a deletion.
            let gone = match old.checked_sub(1) {
                Some(last) if versions[last].values.is_none() => old,
                Some(last) => last,
                None => 0,
            };
            for version in versions.drain(..gone) {
                self.bytes = self.bytes.saturating_sub(96 + on.len() + row.len() + version.values.map_or(0, |v| v.len()));
            }
            if versions.is_empty() {
                rows.remove(&row);
            }
            if rows.is_empty() {
                self.rows.remove(&on);
            }
        }
    }

    /// Every version: (on, row key, version), sorted.
    pub(super) fn all(&self) -> Vec<(&[u8], &[u8], &Version)> {
        let mut all = Vec::new();
        for_each_version(&self.rows, |on, row, version| all.push((on, row, version)));
        all.sort_unstable_by_key(|(on, row, version)| (*on, *row, version.at));
        all
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.rows.capacity() * 48 + self.expiry.bytes()
    }
}

fn for_each_version<'a>(rows: &'a HashMap<Box<[u8]>, RowsOf>, mut visit: impl FnMut(&'a [u8], &'a [u8], &'a Version)) {
    rows.iter().for_each(|(on, rows)| {
        for (row, versions) in rows {
            versions.iter().for_each(|version| visit(on, row, version));
        }
    });
}
