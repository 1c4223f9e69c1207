//! Keyed steps against naive models: records shuffled within the allowed disorder, epochs cut
//! anywhere, the engine killed and started again with other numbers of workers. Failing seeds are
//! named.

use super::{DAY, SECOND, World, plan};
use quikflow_pipelines::driver::rows_of;
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_pipelines::plan::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const SEEDS: std::ops::Range<u64> = 1..9;

/// A small generator, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, n: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as i64
    }
}

/// Runs until everything is committed; a few epochs, then a kill and another number of workers.
fn run_with_kills(world: &World, plan: &Arc<Plan>, random: &mut Random) -> usize {
    for kills in 0..10_000 {
        world.broker.limit_commits(Some(1 + random.below(4) as usize));
        let options = EngineOptions {
            workers: 1 + random.below(3) as usize,
            epoch_interval: Duration::ZERO,
            max_epoch_rows: 5 + random.below(30) as usize,
            slice_rows: 1 + random.below(20) as usize,
            ..EngineOptions::default()
        };
        let engine = Engine::start(plan.clone(), world.broker.clone(), world.clock.clone(), options).unwrap();
        if engine.wait_caught_up(PATIENCE) {
            for topology in engine.status().topologies {
                assert_eq!(topology.unbalanced, Vec::<String>::new(), "R20");
            }
            return kills;
        }
    }
    panic!("it never caught up");
}

fn declaration(steps: &str) -> Arc<Plan> {
    let topic = |name: &str, fields: &str| {
        format!(
            r#"
[topics.{name}]
partitions = 3
disorder = "6s"
[events.{name}]
topic = "{name}"
key = "k"
[events.{name}.payload]
k = "string"
seq = "int"
{fields}
"#
        )
    };
    plan(&format!(
        "{}{}\n[[topology]]\nname = \"t\"\nfrom = \"s\"\nsteps = [ {steps} ]\nto = \"out\"\n",
        topic("s", ""),
        topic("m", "u = \"string\"\nv = { type = \"int\", optional = true }"),
    ))
}

/// Event times in microseconds of the day, out of order by at most five seconds, no two alike.
fn times(random: &mut Random, records: i64) -> Vec<i64> {
    (0..records).map(|at| (at * 700_000 - random.below(5 * SECOND)).max(0) / 1_000 * 1_000 + at).collect()
}

fn sorted(rows: impl Iterator<Item = Value>) -> Vec<String> {
    let mut rows: Vec<String> = rows.map(|row| row.to_string()).collect();
    rows.sort();
    rows
}

#[test]
fn r4_dedupe_is_its_model() {
    let plan = declaration(r#"{ dedupe = ["payload.k"], within = "9s", name = "d" }, { map = { seq = "payload.seq" } }"#);
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let world = World::new(&plan);
        let mut passed: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let mut expected = Vec::new();
        for (seq, at) in times(&mut random, 300).into_iter().enumerate() {
            let key = format!("k{}", random.below(9));
            world.give_at("s", "s", at, json!({ "k": key, "seq": seq }), None);
            let before = passed.entry(key).or_default();
            if before.iter().all(|other| (other - at).abs() >= 9 * SECOND) {
                before.push(at);
                expected.push(json!([seq]));
            }
        }
        let kills = run_with_kills(&world, &plan, &mut random);
        assert_eq!(world.rows("out", &["seq"]), sorted(expected.into_iter()), "seed {seed}, {kills} kills");
        assert!(kills > 1, "seed {seed}");
    }
}

#[test]
fn r4_count_within_is_its_model() {
    let plan = declaration(r#"{ count_within = { n = 3, time = "4s" }, by = { who = "payload.k" }, name = "c" }"#);
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let world = World::new(&plan);
        let span = 4 * SECOND;
        let mut keys: BTreeMap<String, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
        let mut expected = Vec::new();
        for (seq, at) in times(&mut random, 300).into_iter().enumerate() {
            let key = format!("k{}", random.below(4));
            world.give_at("s", "s", at, json!({ "k": key, "seq": seq }), None);
            let (events, fired) = keys.entry(key.clone()).or_default();
            events.push(at);
            events.sort_unstable();
            // The first three in a row that hold the new event and are near, unless it fired nearby.
            let burst = events.windows(3).find(|three| {
                three.contains(&at) && three[2] - three[0] <= span && fired.iter().all(|f| (f - three[2]).abs() > span)
            });
            if let Some(last) = burst.map(|three| three[2]) {
                fired.push(last);
                let inside: Vec<i64> = events.iter().copied().filter(|e| (last - span..=last).contains(e)).collect();
                let day = DAY * SECOND;
                expected.push(json!([key, inside.len(), inside[0] + day, last + day]));
            }
        }
        let kills = run_with_kills(&world, &plan, &mut random);
        let found = world.rows("out", &["who", "count", "first_time", "last_time"]);
        assert!(expected.len() > 10, "seed {seed}");
        assert_eq!(found, sorted(expected.into_iter()), "seed {seed}, {kills} kills");
    }
}

#[test]
fn r8_join_is_its_model() {
    for (kind, seed) in SEEDS.flat_map(|seed| [("inner", seed), ("left", seed)]) {
        let plan = declaration(&format!(
            r#"{{ filter = "payload.seq >= 0" }},
               {{ join = {{ table = "m", on = "payload.k", table_on = "payload.k", table_key = ["payload.u"], table_delete = "payload.v is null", select = {{ u = "payload.u", v = "payload.v" }}, kind = "{kind}", max_wait = "1h" }}, name = "j" }},
               {{ map = {{ seq = "payload.seq", u = "u", v = "v" }} }}"#
        ));
        let mut random = Random::new(seed);
        let world = World::new(&plan);
        let mut table: BTreeMap<(String, String), Vec<(i64, Option<i64>)>> = BTreeMap::new();
        let mut stream = Vec::new();
        for (seq, at) in times(&mut random, 300).into_iter().enumerate() {
            let key = format!("k{}", random.below(6));
            if random.below(2) == 0 {
                let user = format!("u{}", random.below(3));
                let value = (random.below(3) > 0).then_some(seq as i64);
                world.give_at("m", "m", at, json!({ "k": key, "u": user, "v": value, "seq": 0 }), None);
                table.entry((key, user)).or_default().push((at, value));
            } else {
                world.give_at("s", "s", at, json!({ "k": key, "seq": seq }), None);
                stream.push((seq, at, key));
            }
        }
        let half_an_hour = 1_800 * SECOND;
        for partition in 0..3 {
            for topic in ["m", "s"] {
                let end = json!({ "k": "end", "u": "u", "seq": -1 });
                let end = if topic == "s" { json!({ "k": "end", "seq": -1 }) } else { end };
                world.give_at(topic, topic, half_an_hour, end, Some(partition));
            }
        }
        let mut expected = Vec::new();
        for (seq, at, key) in stream {
            let before = expected.len();
            for ((_, user), versions) in table.iter().filter(|((on, _), _)| *on == key) {
                let newest = versions.iter().filter(|(time, _)| *time <= at).max_by_key(|(time, _)| *time);
                if let Some((_, Some(value))) = newest {
                    expected.push(json!([seq, user, value]));
                }
            }
            if kind == "left" && expected.len() == before {
                expected.push(json!([seq, null, null]));
            }
        }
        let kills = run_with_kills(&world, &plan, &mut random);
        assert_eq!(world.rows("out", &["seq", "u", "v"]), sorted(expected.into_iter()), "{kind}, seed {seed}, {kills} kills");
    }
}

#[test]
fn the_order_of_a_key_holds_behind_two_keyed_steps() {
    let join = r#"{ join = { table = "m", on = "payload.k", table_on = "payload.k", select = { v = "payload.v" }, kind = "left" }, name = "j" }"#;
    let dedupe = r#"{ dedupe = ["payload.seq / 2"], within = "1ms", name = "e" }"#;
    for (second, seed) in SEEDS.flat_map(|seed| [(join, seed), (dedupe, seed)]) {
        let plan = declaration(&format!(
            r#"{{ dedupe = ["payload.seq"], within = "1h", name = "d" }}, {second}, {{ map = {{ k = "payload.k", seq = "payload.seq" }} }}"#
        ));
        let mut random = Random::new(seed);
        let world = World::new(&plan);
        for seq in 0..200 {
            world.give_at("s", "s", seq * 1_000_000, json!({ "k": format!("k{}", random.below(4)), "seq": seq }), None);
        }
        let options = EngineOptions {
            workers: 3,
            epoch_interval: Duration::ZERO,
            max_epoch_rows: 1 + random.below(80) as usize,
            slice_rows: 1 + random.below(20) as usize,
            ..EngineOptions::default()
        };
        let engine = Engine::start(plan.clone(), world.broker.clone(), world.clock.clone(), options).unwrap();
        assert!(engine.wait_caught_up(PATIENCE), "seed {seed}: {:?}", engine.failure());
        engine.stop().unwrap();
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        let rows = rows_of(&world.broker.records("out").unwrap());
        assert_eq!(rows.len(), 200, "seed {seed}");
        for row in rows {
            let seq = row["seq"].as_i64().unwrap();
            let before = last.insert(row["k"].to_string(), seq);
            assert!(before.is_none_or(|before| before < seq), "seed {seed}: {seq} after {before:?}");
        }
    }
}
