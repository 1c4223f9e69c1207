//! Every case of `tests/cases/` and of the shipped `topologies.toml`: in the driver; then the same records in the engine at 1, 2 and 3
//! workers, cut at random places, and killed and restored with another number of workers: the same rows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

use quikflow_pipelines::driver::{Giver, VirtualEngine, rows_of, run_tests, topics};
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_pipelines::memory::MemoryBroker;
use quikflow_pipelines::plan::{Plan, load};
use quikflow_pipelines::topology::cases::TestCase;
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::{ManualClock, SharedClock};
use quikflow_topics::diagnostics::SourceFile;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn files() -> Vec<(String, Arc<Plan>, Vec<TestCase>)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.push(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies.toml"));
    let loaded = files.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "toml")).map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = Arc::new(SourceFile { name: name.clone(), text: std::fs::read_to_string(&path).unwrap() });
        let loaded = load(&file);
        let plan = loaded.plan.unwrap_or_else(|| panic!("{name}: {:?}", loaded.diagnostics));
        (name, Arc::new(plan), loaded.tests)
    });
    loaded.collect()
}

struct Log {
    broker: Arc<MemoryBroker>,
    clock: Arc<ManualClock>,
    giver: Giver,
}

fn log(plan: &Plan, case: &TestCase) -> Log {
    let clock = ManualClock::at(case.given[0].at);
    let shared: SharedClock = clock.clone();
    let broker = MemoryBroker::new(shared);
    broker.ensure_topics(&topics(plan)).unwrap();
    let giver = Giver::new(&plan.catalogue, broker.clone(), clock.clone());
    Log { broker, clock, giver }
}

/// All rows of all topics that topologies write, but for what depends on cuts and random salts.
fn answer(plan: &Plan, broker: &MemoryBroker) -> Vec<String> {
    let mut rows = Vec::new();
    for topology in &plan.topologies {
        let written = topology.outputs.iter().map(|output| &output.topic).chain(topology.late.iter().flatten());
        for topic in written {
            for mut row in rows_of(&broker.records(&topic.name).unwrap()) {
                for column in ["_partition", "_offset", "_arrival_time", "epoch", "salt", "digests", "hash", "prev_hash"] {
                    row.remove(column);
                }
                rows.push(format!("{}: {row:?}", topic.name));
            }
        }
    }
    rows.sort();
    rows.dedup();
    rows
}

#[test]
fn the_driver_gives_what_each_case_expects() {
    let mut ran = 0;
    for (name, plan, cases) in files() {
        for report in run_tests(&plan, &cases) {
            assert!(report.passed, "{name}, {} ({}):\n{}", report.topology, report.doc, report.diff);
            ran += 1;
        }
    }
    assert!(ran > 0);
}

#[test]
fn r4_r5_r7_r20_the_engine_gives_the_same_at_any_worker_count_and_after_kills() {
    let mut seed: u64 = 20_261_122;
    let mut below = |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for (name, plan, cases) in files() {
        for case in cases.iter().filter(|case| !case.given.is_empty()) {
            let expected = {
                let Log { broker, clock, giver } = log(&plan, case);
                let mut engine = VirtualEngine::new(plan.clone(), broker.clone(), clock).unwrap();
                for given in &case.given {
                    giver.give(given).unwrap();
                    engine.run().unwrap();
                }
                assert_eq!(engine.unbalanced(), Vec::<String>::new(), "R20: {name}, {}", case.doc);
                answer(&plan, &broker)
            };
            // (workers, one in so many records is followed by a kill)
            for (workers, kills) in [(1, 0), (2, 0), (3, 0), (1, 1), (2, 2), (3, 3)] {
                let Log { broker, clock, giver } = log(&plan, case);
                let start = |workers: usize, rows: usize| {
                    let options = EngineOptions {
                        workers,
                        epoch_interval: Duration::ZERO,
                        max_epoch_rows: rows,
                        slice_rows: rows,
                        ..EngineOptions::default()
                    };
                    Engine::start(plan.clone(), broker.clone(), clock.clone(), options).unwrap()
                };
                let mut engine = start(workers, 1 + below(5) as usize);
                for (index, given) in case.given.iter().enumerate() {
                    giver.give(given).unwrap();
                    let advances = case.given.iter().any(|given| given.record.is_none());
                    if advances || below(2) == 0 || index + 1 == case.given.len() {
                        assert!(engine.wait_caught_up(PATIENCE), "{name}, {} {}: {:?}", case.topology, case.doc, engine.status());
                    }
                    // Silence is not measured across a kill (R2), so cases with `advance` are not killed.
                    if kills > 0 && !advances && below(kills) == 0 {
                        drop(engine);
                        engine = start(1 + (workers + index) % 3, 1 + below(5) as usize);
                    }
                }
                assert!(engine.wait_caught_up(PATIENCE), "{name}, {} {}: {:?}", case.topology, case.doc, engine.status());
                for topology in engine.status().topologies {
                    assert_eq!(topology.unbalanced, Vec::<String>::new(), "R20: {name}, {}", case.doc);
                }
                engine.stop().unwrap();
                let found = answer(&plan, &broker);
                let missing: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
                let more: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
                let place = format!("{name}, {} {}, {workers} workers, kills {kills}", case.topology, case.doc);
                assert!(missing.is_empty() && more.is_empty(), "{place}:\n- {missing:#?}\n+ {more:#?}");
            }
        }
    }
}
