//! The engine against a model: at any number of workers, cut anywhere, killed at any epoch.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{Number, append, ensure, numbers_of, plan, rows_of};
use quikflow_pipelines::engine::supervise::Supervisor;
use quikflow_pipelines::engine::{Engine, EngineError, EngineOptions, Hooks};
use quikflow_pipelines::memory::MemoryBroker;
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::{ManualClock, SharedClock};
use quikflow_topics::dead_letter::DeadLetterFilter;
use quikflow_topics::ids::EventTime;
use quikflow_topics::partitioner::partition_of;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A small generator, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn input(seed: u64, records: usize) -> Vec<Number> {
    let mut random = Random(seed);
    let mut numbers: Vec<Number> = (0..records as i64)
        .map(|at| {
            let n = random.below(30) as i64 - 3;
            (format!("k{}", random.below(9)), n, at / 4 - random.below(6) as i64 * (random.below(4) / 3) as i64 * 4)
        })
        .collect();
    // Every key comes early, so that each partition has a record; at the end one record a partition
    // closes all windows.
    for key in 0..40 {
        numbers.insert(0, (format!("k{}", 39 - key), 1, 0));
        numbers.push((format!("k{key}"), 1, 5_000_000));
    }
    numbers
}

struct World {
    broker: Arc<MemoryBroker>,
    clock: Arc<ManualClock>,
}

impl World {
    fn new() -> World {
        // Far from the events' times: a replay, which the clock does not move.
        let clock = ManualClock::at(EventTime(1_700_000_000_000_000));
        let shared: SharedClock = clock.clone();
        let broker = MemoryBroker::new(shared);
        ensure(broker.as_ref(), &plan());
        World { broker, clock }
    }

    fn append(&self, numbers: &[Number], cuts: &mut Random) {
        let mut rest = numbers;
        while !rest.is_empty() {
            let (now, later) = rest.split_at((1 + cuts.below(60) as usize).min(rest.len()));
            append(self.broker.as_ref(), now);
            rest = later;
        }
    }

    fn start(&self, workers: usize, options: EngineOptions) -> Engine {
        Engine::start(plan(), self.broker.clone(), self.clock.clone(), EngineOptions { workers, ..options }).unwrap()
    }

    fn answer(&self) -> Answer {
        let letters = self.broker.dead_letters(&DeadLetterFilter { limit: 100_000, ..DeadLetterFilter::default() }).unwrap();
        let mut dead: Vec<_> =
            letters.into_iter().map(|(_, letter)| (letter.id, String::from_utf8(letter.bytes).unwrap())).collect();
        dead.sort();
        Answer {
            counts: rows_of(&self.broker.records("counts").unwrap()),
            totals: rows_of(&self.broker.records("totals").unwrap()),
            late: numbers_of(&self.broker.records("late.count").unwrap()),
            dead,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    counts: Vec<(i64, String, i64)>,
    totals: Vec<(i64, String, i64)>,
    late: Vec<Number>,
    dead: Vec<(String, String)>,
}

fn small(random: &mut Random) -> EngineOptions {
    EngineOptions {
        epoch_interval: Duration::ZERO,
        max_epoch_rows: 1 + random.below(90) as usize,
        slice_rows: 1 + random.below(40) as usize,
        ..EngineOptions::default()
    }
}

fn whole(numbers: &[Number]) -> Answer {
    let world = World::new();
    world.append(numbers, &mut Random(11));
    let engine = world.start(1, EngineOptions { epoch_interval: Duration::ZERO, ..EngineOptions::default() });
    assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.status());
    engine.stop().unwrap();
    world.answer()
}

#[test]
fn counts_what_a_loop_counts() {
    let numbers = input(77, 900);
    let answer = whole(&numbers);
    let good = numbers.iter().filter(|(_, n, at)| *n >= 0 && *n != 13 && *at < 5_000_000).count();
    let counted: i64 = answer.counts.iter().map(|(_, _, n)| n % 1_000_000).sum();
    assert_eq!(counted as usize + answer.late.len(), good);
    assert!(!answer.late.is_empty());
    assert_eq!(answer.dead.len(), numbers.iter().filter(|(_, n, _)| *n == 13).count());
    assert!(answer.dead[0].1.contains("\"n\":13"), "{}", answer.dead[0].1);
    assert_eq!(answer.totals.iter().map(|(_, _, n)| n).sum::<i64>(), counted);
}

#[test]
fn r4_r5_the_same_answer_at_any_worker_count_and_cut() {
    let numbers = input(5, 700);
    let expected = whole(&numbers);
    for seed in 1..=12 {
        let mut random = Random(seed * 7919);
        let world = World::new();
        world.append(&numbers, &mut random);
        let workers = 1 + (seed % 3) as usize;
        let options =
            EngineOptions { hooks: Hooks { reverse_exchange: seed % 2 == 0, ..Hooks::default() }, ..small(&mut random) };
        let engine = world.start(workers, options);
        assert!(engine.wait_caught_up(PATIENCE), "seed {seed}: {:?}", engine.failure());
        let status = engine.status();
        engine.stop().unwrap();
        assert_eq!(world.answer(), expected, "seed {seed}, {workers} workers");
        assert_eq!(status.topologies[0].unbalanced, Vec::<String>::new(), "R20, seed {seed}");
        assert_eq!(status.topologies[0].lag, 0);
        assert_eq!(status.topologies[0].books.sources, [numbers.len() as u64]);
    }
}

#[test]
fn r5_killed_at_every_epoch_and_restored_with_other_workers() {
    let numbers = input(9, 400);
    let expected = whole(&numbers);
    let mut random = Random(4242);
    let world = World::new();
    world.append(&numbers, &mut random);
    let mut kills = 0;
    loop {
        world.broker.limit_commits(Some(1));
        let engine = world.start(1 + kills % 3, EngineOptions { max_epoch_rows: 30, ..small(&mut random) });
        if engine.wait_caught_up(PATIENCE) {
            let status = engine.status();
            assert_eq!(status.topologies[0].unbalanced, Vec::<String>::new(), "R20 after {kills} kills");
            assert_eq!(status.topologies[0].books.sources, [numbers.len() as u64], "R20: counted once");
            break;
        }
        assert!(engine.failure().is_some());
        drop(engine);
        kills += 1;
        assert!(kills < 1_000);
    }
    assert!(kills > 10, "{kills}");
    assert_eq!(world.answer(), expected);
}

#[test]
fn r5_a_full_disk_is_waited_for_in_the_same_process() {
    let numbers = input(23, 400);
    let expected = whole(&numbers);
    for seed in 1..=3 {
        let mut random = Random(seed * 104_729);
        let world = World::new();
        world.append(&numbers, &mut random);
        // One commit in four is refused, two after another at most.
        let mut refused: Vec<bool> = (0..24).map(|_| random.below(4) == 0).collect();
        (2..refused.len()).for_each(|at| refused[at] &= !(refused[at - 1] && refused[at - 2]));
        refused[0] = true;
        let failures = refused.iter().filter(|refused| **refused).count() as u64;
        world.broker.refuse_commits(refused);
        let options = EngineOptions { workers: 1 + (seed % 3) as usize, max_epoch_rows: 16, ..small(&mut random) };
        let supervisor = Supervisor::start(plan(), world.broker.clone(), world.clock.clone(), options).unwrap();
        let caught_up = || supervisor.status().is_some_and(|status| status.caught_up && status.in_flight == 0);
        for _ in 0..1_000 {
            if caught_up() {
                break;
            }
            world.broker.wakeup().wait(world.broker.wakeup().version(), Duration::from_millis(20));
        }
        assert!(caught_up(), "seed {seed}: {:?} {:?}", supervisor.failure(), supervisor.waiting());
        let status = supervisor.status().unwrap();
        assert_eq!(status.topologies[0].unbalanced, Vec::<String>::new(), "R20, seed {seed}");
        assert_eq!(status.topologies[0].books.sources, [numbers.len() as u64], "R20: counted once, seed {seed}");
        assert_eq!(supervisor.shares().1, 1 + failures, "seed {seed}: each refusal starts the engine again");
        supervisor.stop().unwrap();
        assert_eq!(world.answer(), expected, "seed {seed}");
    }
}

#[test]
fn r5_a_stalled_worker_holds_back_later_epochs_and_only_three_wait() {
    let numbers = input(31, 600);
    let expected = whole(&numbers);
    let world = World::new();
    world.append(&numbers, &mut Random(3));
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let reached = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (gate, reached) = (gate.clone(), reached.clone());
        move |worker: usize, epoch: quikflow_topics::ids::Epoch| {
            reached.fetch_max(epoch.0 as usize, Ordering::SeqCst);
            if worker == 1 {
                let open = gate.0.lock().unwrap();
                drop(gate.1.wait_while(open, |open| !*open).unwrap());
            }
        }
    };
    let hooks = Hooks { before_read: Some(Arc::new(hook)), reverse_exchange: true };
    let engine = world.start(
        2,
        EngineOptions { epoch_interval: Duration::ZERO, max_epoch_rows: 40, slice_rows: 10, hooks, ..EngineOptions::default() },
    );
    // Worker 0 goes on while worker 1 stands still: nothing can be committed.
    assert!(!engine.wait_caught_up(Duration::from_millis(300)));
    assert_eq!(engine.status().epoch.0, 0);
    assert!(engine.status().in_flight <= 3);
    assert!(reached.load(Ordering::SeqCst) <= 3, "at most three epochs are handed in");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.failure());
    engine.stop().unwrap();
    assert_eq!(world.answer(), expected);
}

#[test]
fn a_panicking_step_ends_the_engine_and_says_so() {
    let world = World::new();
    append(world.broker.as_ref(), &[("a".to_owned(), 666, 1)]);
    for workers in 1..=2 {
        let engine = world.start(workers, EngineOptions::default());
        assert!(!engine.wait_caught_up(PATIENCE));
        assert!(matches!(engine.failure(), Some(EngineError::Panicked(_))), "{:?}", engine.failure());
        assert!(engine.stop().is_err());
    }
}

/// A transaction ends in one partition after the other: a first record of its own that a partition does not
/// show yet keeps windows open.
#[test]
fn r1_a_first_record_that_is_not_shown_yet_is_not_late() {
    let partition = |key: &str| partition_of(Some(key), 4).0;
    let other = ["b", "c", "d", "e"].into_iter().find(|key| partition(key) != partition("a")).unwrap();
    for workers in 1..=2 {
        let world = World::new();
        world.broker.hide(Some(partition("a"))).unwrap();
        let engine = world.start(workers, EngineOptions { epoch_interval: Duration::ZERO, ..EngineOptions::default() });
        let numbers = |times: [i64; 2]| times.map(|time| (if time < 50 { "a" } else { other }.to_owned(), 1, time));
        append(world.broker.as_ref(), &numbers([1, 100]));
        append(world.broker.as_ref(), &numbers([2, 200]));
        assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.status());
        assert_eq!(world.answer().counts, [], "a window has closed");
        world.broker.hide(None).unwrap();
        append(world.broker.as_ref(), &[("a".to_owned(), 1, 300)]);
        assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.status());
        engine.stop().unwrap();
        let answer = world.answer();
        assert_eq!(answer.late, []);
        let windows: Vec<_> = answer.counts.iter().map(|(window, name, _)| (*window, name.as_str())).collect();
        assert_eq!(windows, [(0, "a"), (100, other)]);
    }
}

#[test]
fn live_records_are_committed_as_they_come_and_windows_close_by_the_clock() {
    let world = World::new();
    let engine = world.start(2, EngineOptions { epoch_interval: Duration::ZERO, ..EngineOptions::default() });
    let now = 1_700_000_000;
    append(world.broker.as_ref(), &[("a".to_owned(), 1, now - 1), ("b".to_owned(), 1, now - 1)]);
    assert!(engine.wait_caught_up(PATIENCE));
    assert_eq!(world.answer().counts, []);
    // R2: the partition's maximum and its silence, less the disorder of two seconds.
    let mut waited = 0;
    while world.answer().counts.is_empty() {
        world.clock.advance(Duration::from_secs(1));
        world.broker.wakeup().bump();
        engine.wait_caught_up(PATIENCE);
        waited += 1;
        assert!(waited < 1_000_000, "{:?}", engine.status());
    }
    assert_eq!(world.answer().counts.len(), 2);
    engine.stop().unwrap();
}
