//! Several engines that divide the work against one that has all of it (R19): the same answer, however
//! the log is cut, the shares lie, and the engines are killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says its seed"
)]

#[path = "../../tests/support/random.rs"]
#[allow(unreachable_pub, reason = "of the main job's tests")]
mod random;

use quikflow_pipelines::driver::{Giver, Row, rows_of, topics};
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_pipelines::memory::MemoryBroker;
use quikflow_pipelines::plan::{Division, Half, Plan, load};
use quikflow_pipelines::topology::cases::{Given, GivenRecord};
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::{ManualClock, SharedClock};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter};
use quikflow_topics::diagnostics::SourceFile;
use quikflow_topics::ids::EventTime;
use random::Random;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

const SECOND: i64 = 1_000_000;
/// 2026-01-01, in seconds.
const DAY: i64 = 1_767_225_600;
const PATIENCE: Duration = Duration::from_secs(20);

const DECLARATION: &str = r#"
[topics.hits]
partitions = 6
disorder = "5s"

[events.HIT]
topic = "hits"
key = "user"
payload = { user = "string", page = "string", took = "int", weight = { type = "float", optional = true } }

[topics.rooms]
partitions = 5
disorder = "5s"

[topics.names]
partitions = 3
disorder = "5s"

[topics.says]
partitions = 6
disorder = "5s"

[events.JOINED]
topic = "rooms"
key = ["room", "user"]
payload = { room = "string", user = "string", seat = { type = "string", optional = true } }

[events.LEFT]
topic = "rooms"
key = ["room", "user"]
payload = { room = "string", user = "string", seat = { type = "string", optional = true } }

[events.NAMED]
topic = "names"
key = "user"
payload = { user = "string", name = "string", number = { type = "string", optional = true } }

[events.SAID]
topic = "says"
key = "room"
payload = { room = "string", text = "string" }

[[topology]]
name = "heard"
from = "says"
steps = [
  { join = { table = "rooms", on = "payload.room", table_on = "payload.room", table_key = ["payload.user"], table_delete = "type = 'LEFT'", select = { listener = "payload.user", seat = "cast(payload.seat as bigint)" }, kind = "inner" }, name = "listeners" },
  { join = { table = "names", on = "listener", table_on = "payload.user", select = { name = "payload.name", number = "cast(payload.number as bigint)" }, kind = "left" }, name = "names" },
  { map = { room = "payload.room", text = "payload.text", listener = "listener", seat = "seat", name = "name", number = "number" } },
]
to = "heard"

[[topology]]
name = "pages"
from = "hits"
steps = [
  { filter = "payload.page <> 'none'" },
  { window = { tumbling = "1m", grace = "10s" }, group_by = { page = "payload.page" }, aggregate = { hits = "count(*)", users = "count(distinct payload.user)", about = "approx_distinct(payload.user)", took = "sum(payload.took)", mean = "avg(payload.weight)", least = "min(payload.took)", most = "max(payload.user)", p90 = "approx_percentile_cont(payload.took, 0.9)", first = "first_value(payload.user)", last = "last_value(payload.user)", slow = "count(*) filter (where payload.took > 50)" }, name = "minute" },
  { filter = "hits > 0" },
]
to = "pages-a-minute"

[[topology]]
name = "users"
from = "hits"
steps = [
  { window = { tumbling = "1m" }, group_by = { user = "payload.user" }, aggregate = { hits = "count(*)" }, name = "minute" },
  { filter = "100 / (hits % 3) is not null", name = "not-by-three" },
]
to = "users-a-minute"

[[topology]]
name = "bursts"
from = "hits"
steps = [
  { count_within = { n = 4, time = "20s" }, by = { who = "concat(payload.user, '')" }, name = "burst" },
]
to = "user-bursts"
"#;

fn plan() -> Plan {
    let loaded = load(&SourceFile::new("shares.toml", DECLARATION.to_owned()));
    let mistakes: Vec<String> = loaded.diagnostics.iter().map(|diagnostic| diagnostic.message.clone()).collect();
    loaded.plan.unwrap_or_else(|| panic!("{mistakes:?}"))
}

struct World {
    broker: Arc<MemoryBroker>,
    clock: Arc<ManualClock>,
    plan: Arc<Plan>,
    giver: Giver,
}

impl World {
    fn new(shares: u32) -> World {
        // Far from the events' times: a replay, which the clock does not move.
        let clock = ManualClock::at(EventTime((DAY + 10_000_000) * SECOND));
        let shared: SharedClock = clock.clone();
        let broker = MemoryBroker::shared(shared, shares);
        let plan = plan().for_shares(shares);
        broker.ensure_topics(&topics(&plan)).unwrap();
        let giver = Giver::new(&plan.catalogue, broker.clone(), clock.clone());
        World { broker, clock, plan: Arc::new(plan), giver }
    }

    fn give(&self, at: i64, user: &str, page: &str, took: i64, partition: Option<u32>) {
        let mut payload = Map::new();
        payload.insert("user".to_owned(), json!(user));
        payload.insert("page".to_owned(), json!(page));
        payload.insert("took".to_owned(), json!(took));
        payload.insert("weight".to_owned(), json!(took as f64 / 7.0));
        self.give_event("hits", "HIT", payload, at, partition);
    }

    fn give_texts(&self, topic: &str, event: &str, texts: &[(&str, &str)], at: i64, partition: Option<u32>) {
        let payload = texts.iter().map(|(name, text)| ((*name).to_owned(), json!(text)));
        self.give_event(topic, event, payload.collect(), at, partition);
    }

    fn give_event(&self, topic: &str, event: &str, payload: Map<String, Value>, at: i64, partition: Option<u32>) {
        let record = GivenRecord { topic: topic.to_owned(), event: event.to_owned(), payload, key: None, id: None, partition };
        self.giver.give(&Given { at: EventTime((DAY + at) * SECOND), record: Some(record), span: 0..0 }).unwrap();
        // Giving moves the clock to the event; it arrives long after.
        self.clock.set(EventTime((DAY + 10_000_000) * SECOND));
    }

    /// Records of some minutes, a few of them late; in the end one in each partition closes all windows.
    fn fill(&self, seed: u64, records: i64) {
        let mut random = Random(seed);
        for at in 0..records {
            let back = if random.below(9) == 0 { random.below(200) as i64 } else { random.below(5) as i64 };
            let (user, page) = (format!("u{}", random.below(17)), ["home", "about", "none", "help"][random.below(4) as usize]);
            self.give((at / 3 - back).max(0), &user, page, random.below(100) as i64, None);
        }
        for partition in 0..6 {
            self.give(1_000_000, "end", "home", 1, Some(partition));
        }
        self.talk(&mut random, records);
    }

    /// Who is in which room, what they are called, and what is said there; in the end the tables' time passes all.
    fn talk(&self, random: &mut Random, records: i64) {
        for at in 0..records {
            let near = |random: &mut Random| (at / 3 - random.below(5) as i64).max(0);
            let (room, user) = (format!("r{}", random.below(9)), format!("u{}", random.below(12)));
            let change = if random.below(3) == 0 { "LEFT" } else { "JOINED" };
            // Now and then one on which the join fails.
            let number = if random.below(8) == 0 { "none".to_owned() } else { at.to_string() };
            let (at, text) = (near(random), at.to_string());
            match random.below(4) {
                0 => self.give_texts("rooms", change, &[("room", &room), ("user", &user), ("seat", &number)], at, None),
                1 => self.give_texts("names", "NAMED", &[("user", &user), ("name", &text), ("number", &number)], at, None),
                _ => self.give_texts("says", "SAID", &[("room", &room), ("text", &text)], at, None),
            }
        }
        (0..6).for_each(|p| self.give_texts("says", "SAID", &[("room", "end"), ("text", "end")], 1_000_000, Some(p)));
        (0..5).for_each(|p| self.give_texts("rooms", "JOINED", &[("room", "-"), ("user", "end")], 2_000_000, Some(p)));
        (0..3).for_each(|p| self.give_texts("names", "NAMED", &[("user", "end"), ("name", "end")], 2_000_000, Some(p)));
    }

    fn start(&self, shares: &[u32], workers: usize, random: &mut Random) -> Engine {
        let options = EngineOptions {
            workers,
            epoch_interval: Duration::ZERO,
            max_epoch_rows: 1 + random.below(40) as usize,
            slice_rows: 1 + random.below(30) as usize,
            ..EngineOptions::default()
        };
        Engine::start_shares(self.plan.clone(), self.broker.clone(), self.clock.clone(), options, Some(shares)).unwrap()
    }

    /// The final rows, and how many records were late.
    fn answer(&self) -> [Vec<String>; 8] {
        let rows = |topic: &str| {
            let rows = rows_of(&self.broker.records(topic).unwrap());
            let last = rows.into_iter().filter(|row| row.get("final").is_none_or(|last| last == &json!(true)));
            let shown = |mut row: Row| {
                row.retain(|name, _| name != "epoch" && !["_offset", "_partition", "_arrival_time"].contains(&name.as_str()));
                json!(row).to_string()
            };
            let mut rows: Vec<String> = last.map(shown).collect();
            rows.sort();
            rows
        };
        let topics = ["pages-a-minute", "users-a-minute", "late.pages", "user-bursts", "late.bursts", "heard", "late.heard"];
        let [a, b, c, d, e, f, g] = topics.map(rows);
        let all = DeadLetterFilter { limit: 10_000, ..DeadLetterFilter::default() };
        let letters = self.broker.dead_letters(&all).unwrap().into_iter().map(|(_, letter)| letter);
        let mut dead: Vec<String> = letters.filter_map(|letter| shown(&letter)).collect();
        dead.sort();
        [a, b, c, d, e, f, g, dead]
    }
}

/// A letter's id; of a window's last row the row in place of its hash, of others, which epochs make, nothing.
fn shown(letter: &DeadLetter) -> Option<String> {
    let Some((step, _)) = letter.id.split_once(":row:") else { return Some(letter.id.clone()) };
    let mut row: Row = serde_json::from_slice(&letter.bytes).unwrap();
    row.remove("epoch");
    (row["final"] == json!(true)).then(|| format!("{step}:row:{}", json!(row)))
}

/// Waits until nobody has anything to do; false where one has ended.
fn settle(world: &World, engines: &[Engine]) -> bool {
    loop {
        let before = world.broker.wakeup().version();
        if !engines.iter().all(|engine| engine.wait_caught_up(PATIENCE)) {
            return false;
        }
        if world.broker.wakeup().version() == before {
            return true;
        }
    }
}

/// Fails with the first rows that are in one of both alone.
fn same(found: &[Vec<String>; 8], expected: &[Vec<String>; 8], what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        let only = |a: &[String], b: &[String]| a.iter().filter(|row| !b.contains(row)).take(3).cloned().collect::<Vec<_>>();
        let (more, missing) = (only(found, expected), only(expected, found));
        assert!(
            found == expected,
            "{what}: {} rows, not {}; more: {more:#?}, missing: {missing:#?}",
            found.len(),
            expected.len()
        );
    }
}

fn alone(seed: u64, records: i64) -> [Vec<String>; 8] {
    let world = World::new(1);
    world.fill(seed, records);
    let engine = world.start(&[0], 1, &mut Random(3));
    assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.status());
    engine.stop().unwrap();
    world.answer()
}

#[test]
fn r19_a_step_by_another_key_is_halved_and_one_by_the_records_key_is_not() {
    let plan = plan();
    let divisions: Vec<Division> = plan.topologies.iter().map(|topology| topology.division()).collect();
    assert_eq!(divisions, [Division::BySource, Division::Combined, Division::BySource, Division::Combined]);
    let halved = plan.for_shares(3);
    let names: Vec<&str> = halved.topologies.iter().map(|topology| topology.name.as_str()).collect();
    assert_eq!(names, ["heard", "pages.combine", "pages", "users", "bursts.combine", "bursts"]);
    assert!(
        matches!(&halved.topologies[2].half, Some(Half::Merges { combining, shares: 3, .. }) if combining == "pages.combine")
    );
    assert_eq!(halved.topologies[2].sources[0].topic.partitions, 9);
}

#[test]
fn r19_engines_that_divide_the_work_answer_as_one_does() {
    for seed in 1..=8u64 {
        let expected = alone(seed, 700);
        assert!(expected[0].len() > 10 && expected[3].len() > 10, "seed {seed} tests nothing");
        assert!(!expected[2].is_empty() && !expected[4].is_empty(), "seed {seed}: nothing is late");
        assert!(expected[5].len() > 100, "seed {seed}: {} heard", expected[5].len());
        let dead = |start: &str| expected[7].iter().filter(|id| id.starts_with(start)).count();
        let kinds = ["step:heard:listeners:rooms:", "step:heard:names:names:", "step:users:not-by-three:row:"].map(dead);
        assert!(kinds.iter().all(|count| *count > 0), "seed {seed}: {kinds:?} dead letters");
        // What a window made has no place in a topic: each of its rows that failed is in a letter of its own.
        let made: Vec<&String> = expected[7].iter().filter(|letter| letter.contains(":users:not-by-three:row:")).collect();
        assert!(made.len() > 1 && made.iter().all(|letter| letter.contains("\"hits\":")), "{made:?}");
        let mut random = Random(seed * 7919);
        let shares = 2 + random.below(4) as u32;
        let world = World::new(shares);
        world.fill(seed, 700);
        let (one, other): (Vec<u32>, Vec<u32>) = (0..shares).partition(|share| (u64::from(*share) + seed) % 2 == 0);
        let engines = [world.start(&one, 1 + (seed % 3) as usize, &mut random), world.start(&other, 1, &mut random)];
        assert!(settle(&world, &engines), "seed {seed}: {:?}", engines.map(|engine| engine.failure()));
        let mut read = Vec::new();
        for engine in &engines {
            for topology in engine.status().topologies {
                assert_eq!(topology.unbalanced, Vec::<String>::new(), "R20, seed {seed}, {}", topology.name);
                assert_eq!(topology.lag, 0, "seed {seed}, {}", topology.name);
                if topology.name == "heard" {
                    read.push(topology.books.sources);
                }
            }
        }
        same(&world.answer(), &expected, &format!("seed {seed}, {shares} shares"));
        let records = |topic: &str| world.broker.stats(topic).unwrap().records;
        let all = |source: usize| read.iter().map(|read: &Vec<u64>| read[source]).sum::<u64>();
        assert_eq!((all(0), all(1)), (records("says"), records("rooms")), "a record is one share's, seed {seed}");
        assert_eq!(all(2), u64::from(shares) * records("names"), "each share has all names, seed {seed}");
    }
}

#[test]
fn r19_engines_that_are_killed_and_change_shares_answer_the_same() {
    let expected = alone(77, 500);
    let mut random = Random(4242);
    let world = World::new(4);
    world.fill(77, 500);
    let mut kills = 0;
    loop {
        world.broker.limit_commits(Some(1 + random.below(6) as usize));
        let (one, other): (Vec<u32>, Vec<u32>) = (0..4).partition(|_| random.below(2) == 0);
        let engines = [&one, &other].map(|shares| world.start(shares, 1 + kills % 3, &mut random));
        if settle(&world, &engines) {
            break;
        }
        drop(engines);
        kills += 1;
        assert!(kills < 1_000);
    }
    assert!(kills > 10, "{kills}");
    same(&world.answer(), &expected, &format!("{kills} kills"));
}

#[test]
fn r19_a_share_that_is_behind_holds_windows_open() {
    let expected = alone(5, 400);
    let world = World::new(2);
    world.fill(5, 400);
    let mut random = Random(31);
    // The other share is nobody's for now: no window may close without it.
    let first = world.start(&[0], 1, &mut random);
    first.wait_caught_up(Duration::from_millis(600));
    assert_eq!(world.answer()[0], Vec::<String>::new());
    let engines = [first, world.start(&[1], 1, &mut random)];
    assert!(settle(&world, &engines));
    same(&world.answer(), &expected, "a share behind");
}
