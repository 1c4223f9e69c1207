//! Copies of the state beside Kafka: what they spare, and that nothing rests on them.
//!
//! `QUIKFLOW_TEST_KAFKA=127.0.0.1:9092 cargo test --workspace --features kafka --test kafka_copies`

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

#[path = "../../tests/support/harness.rs"]
mod harness;

use quikflow_topics::broker::{Broker, EpochCommit, StateKind, StatePiece, TopologyState};
use quikflow_topics::brokers::kafka::{KafkaBroker, KafkaOptions, Restored, StateCopies};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::ids::{Epoch, Offset, PartitionId};
use quikflow_topics::share::{ShareHolder, Work, stored_as};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

crate::tests! {
    r19_a_share_is_taken_over_from_its_copy_and_what_came_since,
    r19_a_copy_that_is_not_what_the_last_epoch_left_does_not_count,
    r19_a_standby_has_the_state_of_the_others_at_hand,
}

/// Shares of the work in these tests.
const SHARES: u32 = 4;

fn url(test: &str) -> String {
    let brokers = harness::server("QUIKFLOW_TEST_KAFKA");
    format!("kafka://{brokers}/{test}-{}", SystemClock::shared().now().0)
}

fn open(url: &str, directory: Option<&Path>, standby: bool) -> Arc<KafkaBroker> {
    let copies = directory.map(|directory| StateCopies { directory: directory.to_owned(), standby });
    let options = KafkaOptions::from_url(url, SystemClock::shared()).unwrap();
    KafkaBroker::open(KafkaOptions { copies, ..options }).unwrap()
}

fn piece(share: u32, kind: StateKind, bytes: Vec<u8>) -> StatePiece {
    StatePiece { topology: stored_as("t", share), step: "count".to_owned(), shard: 0, shards: 1, kind, bytes }
}

/// An epoch that writes `bytes` of state in each share, made from the epoch's number.
fn epoch(number: u64, kind: StateKind, bytes: usize) -> EpochCommit {
    let fill = |share: u32| (0..bytes).map(|at| (at as u64 * 31 + number * 7 + u64::from(share)) as u8).collect();
    EpochCommit {
        epoch: Epoch(number),
        state: (0..SHARES).map(|share| piece(share, kind, fill(share))).collect(),
        meta: (0..SHARES).map(|share| (stored_as("t", share), "time".to_owned(), number.to_string().into_bytes())).collect(),
        offsets: (0..SHARES)
            .map(|share| (stored_as("topology:t", share), "events".to_owned(), PartitionId(share), Offset(number * 10)))
            .collect(),
        ..EpochCommit::default()
    }
}

fn commit(broker: &KafkaBroker, commit: EpochCommit) {
    broker.commit_epoch(commit).unwrap().wait().unwrap();
}

fn states(broker: &KafkaBroker) -> Vec<TopologyState> {
    (0..SHARES).map(|share| broker.topology_state(&stored_as("t", share)).unwrap()).collect()
}

/// What a process finds that takes everything over, and how much of it came from where.
fn taken_over(url: &str, directory: Option<&Path>) -> (Epoch, Vec<TopologyState>, Restored) {
    let broker = open(url, directory, false);
    let epoch = broker.last_epoch().unwrap();
    (epoch, states(&broker), broker.restored())
}

/// Both ways give the same; answers what came from where.
#[track_caller]
fn same(url: &str, directory: &Path) -> Restored {
    let (epoch, whole, none) = taken_over(url, None);
    assert_eq!(none, Restored::default());
    assert!(whole.iter().all(|state| !state.pieces.is_empty() && !state.meta.is_empty()));
    let (found_epoch, found, restored) = taken_over(url, Some(directory));
    assert_eq!((found_epoch, found == whole), (epoch, true));
    restored
}

fn r19_a_share_is_taken_over_from_its_copy_and_what_came_since() {
    let (url, directory) = (url("copies"), tempfile::tempdir().unwrap());
    let worker = open(&url, Some(directory.path()), false);
    assert_eq!(worker.last_epoch().unwrap(), Epoch(0));
    commit(&worker, epoch(1, StateKind::Snapshot, 1_500_000));
    commit(&worker, epoch(2, StateKind::Delta, 100));
    drop(worker);
    // The first time all of it is read from Kafka, and kept.
    let first = same(&url, directory.path());
    assert!(first.from_kafka > 6_000_000, "{first:?}");
    let again = same(&url, directory.path());
    assert!(again.copied > 6_000_000 && again.from_kafka < 1_000, "{again:?}");
    // What others committed since, with a snapshot that replaces all, is read from Kafka.
    let other = open(&url, None, false);
    assert_eq!(other.last_epoch().unwrap(), Epoch(2));
    commit(&other, epoch(3, StateKind::Delta, 5_000));
    drop(other);
    let since = same(&url, directory.path());
    assert!(since.copied > 6_000_000 && (20_000..30_000).contains(&since.from_kafka), "{since:?}");
    let other = open(&url, None, false);
    assert_eq!(other.last_epoch().unwrap(), Epoch(3));
    commit(&other, epoch(4, StateKind::Snapshot, 1_000));
    other.reset_topology("t", &[], quikflow_topics::broker::ResetFrom::Earliest).unwrap();
    commit(&other, epoch(5, StateKind::Snapshot, 2_000));
    drop(other);
    let replaced = same(&url, directory.path());
    assert!((4_000..20_000).contains(&replaced.from_kafka), "{replaced:?}");
}

fn r19_a_copy_that_is_not_what_the_last_epoch_left_does_not_count() {
    let (url, directory) = (url("stale"), tempfile::tempdir().unwrap());
    let worker = open(&url, Some(directory.path()), false);
    assert_eq!(worker.last_epoch().unwrap(), Epoch(0));
    commit(&worker, epoch(1, StateKind::Snapshot, 20_000));
    commit(&worker, epoch(2, StateKind::Delta, 1_000));
    drop(worker);
    same(&url, directory.path());
    let file = directory.path().join("share-2.sqlite");
    let spoil = |what: &str| {
        let sound = same(&url, directory.path());
        assert!(sound.copied > 80_000 && sound.from_kafka < 1_000, "before {what}: {sound:?}");
        let changed = Connection::open(&file).unwrap().execute(what, []).unwrap();
        assert_eq!(changed, 1, "{what}");
        // Kafka was read instead, without a word of how much: what counts is the same.
        let found = same(&url, directory.path());
        assert!(found.copied < sound.copied, "after {what}: {found:?}");
        same(&url, directory.path());
    };
    // As if a tombstone had been forgotten by Kafka before the copy had seen it.
    spoil(
        "insert into entries values (replace((select key from entries where key like 'p%' limit 1), '/', '0') || '9', '0 1 1 1', x'00')",
    );
    spoil("delete from entries where rowid in (select rowid from entries where key like 'p%' limit 1)");
    spoil("update entries set value = x'31' where key like 'm%'");
    spoil("update place set epoch = epoch + 1000");
    // Another topic's copy, in part newer than this one.
    let (other_url, other) = (self::url("stale-other"), tempfile::tempdir().unwrap());
    let worker = open(&other_url, Some(other.path()), false);
    assert_eq!(worker.last_epoch().unwrap(), Epoch(0));
    (1..=9).for_each(|number| commit(&worker, epoch(number, StateKind::Delta, 2_000)));
    drop(worker);
    same(&other_url, other.path());
    same(&url, other.path());
    same(&other_url, other.path());
    // No database at all, and a directory that is none.
    std::fs::write(&file, b"no database, but long enough to be looked at as one: 0123456789").unwrap();
    same(&url, directory.path());
    same(&url, &file.join("none"));
}

/// Hears of shares, and takes what it is given.
struct Nobody;

impl ShareHolder for Nobody {
    fn taken(&self, _: &[u32]) {}
    fn given_up(&self, _: &[u32]) {}
}

fn r19_a_standby_has_the_state_of_the_others_at_hand() {
    let (url, directory) = (url("standby"), tempfile::tempdir().unwrap());
    let worker = open(&url, None, false);
    assert_eq!(worker.last_epoch().unwrap(), Epoch(0));
    commit(&worker, epoch(1, StateKind::Snapshot, 300_000));
    let standby = open(&url, Some(directory.path()), true);
    let membership = standby.join(Work::Pipelines, Arc::new(Nobody)).unwrap();
    commit(&worker, epoch(2, StateKind::Delta, 3_000));
    // In files of its own it has all, soon.
    let clock = SystemClock::shared();
    let began = clock.elapsed();
    let followed = |share: u32| {
        let file = directory.path().join(format!("share-{share}.sqlite"));
        let count =
            |database: Connection| database.query_row("select count(*) from entries where key like 'p%'", [], |row| row.get(0));
        file.exists() && Connection::open(file).and_then(count).unwrap_or(0_i64) == 2
    };
    while !(0..SHARES).all(followed) {
        assert!(clock.elapsed() - began < Duration::from_secs(30), "the standby has not followed");
        standby.wakeup().wait(standby.wakeup().version(), Duration::from_millis(100));
    }
    drop(membership);
    let found = standby.take_over(&[0, 1, 2, 3]).unwrap();
    let restored = standby.restored();
    assert!(found == Epoch(2) && restored.copied > 1_200_000 && restored.from_kafka < 1_000, "{restored:?}");
    assert!(states(&standby) == states(&open(&url, None, false)));
}
