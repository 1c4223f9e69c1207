//! R14: a dead letter of a step is applied once when it is replayed, whatever happens on the way.

use super::{World, plan};
use quikflow_pipelines::engine::accounts::verify;
use quikflow_pipelines::engine::{Engine, EngineOptions};
use quikflow_pipelines::plan::Plan;
use quikflow_topics::broker::{Broker, ResetFrom};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn with_steps(steps: &str) -> Arc<Plan> {
    plan(&format!(
        r#"
[topics.numbers]
partitions = 2
disorder = "2s"
[events.N]
topic = "numbers"
key = "name"
[events.N.payload]
name = "string"
n = "int"
tags = {{ type = "list<string>", optional = true }}

[[topology]]
name = "sums"
from = "numbers"
steps = [ {steps} ]
to = "sums"
"#
    ))
}

fn sums(most: i64) -> Arc<Plan> {
    with_steps(&format!(
        r#"{{ filter = "payload.n >= 0" }}, {{ validate = "payload.n < {most}", code = "too_big", name = "small" }},
           {{ window = {{ tumbling = "10s" }}, group_by = {{ who = "payload.name" }}, aggregate = {{ count = "count(*)", total = "sum(payload.n)" }}, name = "by-name" }}"#
    ))
}

fn letters(world: &World) -> Vec<DeadLetter> {
    world.broker.dead_letters(&DeadLetterFilter::default()).unwrap().into_iter().map(|(_, letter)| letter).collect()
}

fn ask(world: &World) -> usize {
    let ids: Vec<String> = letters(world).into_iter().map(|letter| letter.id).collect();
    world.broker.mark_dead_letters(&ids, DeadLetterStatus::Replaying).unwrap()
}

fn number(world: &World, at: i64, n: i64) {
    world.give("numbers", "N", at, json!({ "name": "a", "n": n }));
}

/// Three records of which the second dies.
fn with_one_dead() -> World {
    let world = World::new(&sums(13));
    for (at, n) in [(1, 1), (2, 50), (3, 2)] {
        number(&world, at, n);
    }
    world.engine(&sums(13)).run().unwrap();
    assert_eq!(letters(&world).len(), 1);
    world
}

/// R20: nothing is wrong with the accounts.
fn balanced(world: &World, plan: &Plan) {
    for account in verify(plan, world.broker.as_ref()).unwrap() {
        assert_eq!(account.findings, Vec::<String>::new(), "R20: {account:?}");
    }
}

fn final_rows(world: &World) -> Vec<String> {
    world.rows("sums", &["final", "who", "count", "total"]).into_iter().filter(|row| row.starts_with("[true")).collect()
}

#[test]
fn r14_r20_a_replay_after_the_cause_is_gone_applies_once() {
    let world = with_one_dead();
    balanced(&world, &sums(13));
    assert_eq!(ask(&world), 1);
    for _ in 0..3 {
        let mut engine = world.engine(&sums(100));
        engine.run().unwrap();
        assert_eq!(letters(&world)[0].status, DeadLetterStatus::Replayed);
        assert_eq!(engine.unbalanced(), Vec::<String>::new());
        assert_eq!(engine.books()[0].steps[1].replayed, 1);
        assert_eq!(engine.books()[0].sources, [3], "it is no new record");
    }
    balanced(&world, &sums(100));
    world.engine(&sums(100)).run_to_the_end().unwrap();
    assert_eq!(final_rows(&world), [r#"[true,"a",3,53]"#]);
    balanced(&world, &sums(100));
}

#[test]
fn r14_a_replay_that_fails_again_is_one_open_letter() {
    let world = with_one_dead();
    for round in 1..=3 {
        ask(&world);
        let mut engine = world.engine(&sums(20));
        engine.run().unwrap();
        let letters = letters(&world);
        assert_eq!((letters.len(), letters[0].status), (1, DeadLetterStatus::Open));
        assert_eq!(engine.books()[0].dead, 1, "R20: the same letter");
        assert_eq!(engine.books()[0].steps[1].inputs[0].dead, 1 + round);
        assert_eq!(engine.unbalanced(), Vec::<String>::new());
        balanced(&world, &sums(20));
    }
    ask(&world);
    world.engine(&sums(100)).run_to_the_end().unwrap();
    assert_eq!(final_rows(&world), [r#"[true,"a",3,53]"#]);
}

#[test]
fn r14_killed_between_a_replay_is_applied_once_at_any_worker_count() {
    for workers in 1..=3 {
        let world = with_one_dead();
        ask(&world);
        let options = || EngineOptions { workers, epoch_interval: Duration::ZERO, ..EngineOptions::default() };
        let start = || Engine::start(sums(100), world.broker.clone(), world.clock.clone(), options()).unwrap();
        // The epoch was computed and could not be committed, twice.
        for _ in 0..2 {
            world.broker.limit_commits(Some(0));
            let engine = start();
            assert!(!engine.wait_caught_up(PATIENCE));
            drop(engine);
            assert_eq!(letters(&world)[0].status, DeadLetterStatus::Replaying);
        }
        world.broker.limit_commits(None);
        let engine = start();
        assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.failure());
        assert_eq!(letters(&world)[0].status, DeadLetterStatus::Replayed);
        // Asked again while it runs, and more records come: a letter applied is left alone by `dlq`, a new one is not.
        number(&world, 4, 500);
        assert!(engine.wait_caught_up(PATIENCE));
        assert_eq!(letters(&world)[0].status, DeadLetterStatus::Open);
        let id = letters(&world)[0].id.clone();
        world.broker.mark_dead_letters(&[id], DeadLetterStatus::Replaying).unwrap();
        assert!(engine.wait_caught_up(PATIENCE), "{:?}", engine.failure());
        assert_eq!(
            letters(&world).iter().map(|l| l.status).collect::<Vec<_>>(),
            [DeadLetterStatus::Open, DeadLetterStatus::Replayed]
        );
        assert_eq!(engine.status().topologies[0].unbalanced, Vec::<String>::new(), "R20");
        drop(engine);
        world.engine(&sums(100)).run_to_the_end().unwrap();
        assert_eq!(final_rows(&world), [r#"[true,"a",3,53]"#], "{workers} workers");
        balanced(&world, &sums(100));
    }
}

#[test]
fn r14_what_is_replayed_after_its_window_has_closed_is_late() {
    let world = with_one_dead();
    number(&world, 3_600, 1);
    world.engine(&sums(13)).run_to_the_end().unwrap();
    ask(&world);
    let mut engine = world.engine(&sums(100));
    engine.run().unwrap();
    assert_eq!(letters(&world)[0].status, DeadLetterStatus::Replayed);
    assert_eq!(world.rows("late.sums", &["n"]), ["[50]"]);
    assert_eq!(final_rows(&world), [r#"[true,"a",1,1]"#, r#"[true,"a",2,3]"#]);
    assert_eq!(engine.books()[0].late, 1);
    balanced(&world, &sums(100));
}

#[test]
fn r14_what_cannot_be_replayed_exactly_stays_open_and_says_why() {
    let world = World::new(&with_steps(r#"{ filter = "true" }"#));
    let dedupe = r#"{ dedupe = ["payload.n"], within = "1h", name = "once" }, "#;
    let explode = r#"{ explode = "payload.tags", as = "tag" }, "#;
    let map = |sql: &str| format!(r#"{{ map = {{ n = "{sql}" }}, name = "last" }}"#);
    world.give("numbers", "N", 1, json!({ "name": "a", "n": 1, "tags": ["1", "x"] }));
    for (first, sql, reason) in [(dedupe, "1 / (payload.n - 1)", "keeps state"), (explode, "cast(tag as int)", "several rows")] {
        world.broker.reset_topology("sums", &["sums".to_owned()], ResetFrom::Earliest).unwrap();
        assert_eq!(letters(&world), [], "they come anew");
        world.engine(&with_steps(&format!("{first}{}", map(sql)))).run().unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&world), 1);
            world.engine(&with_steps(&format!("{first}{}", map("payload.n")))).run().unwrap();
            let letter = letters(&world).remove(0);
            assert_eq!(letter.status, DeadLetterStatus::Open);
            assert!(letter.message.contains(reason), "{}", letter.message);
            assert_eq!(letter.message.matches("not replayed").count(), 1, "{}", letter.message);
        }
    }
    // The step is gone.
    ask(&world);
    world.engine(&with_steps(r#"{ filter = "true" }"#)).run().unwrap();
    assert!(letters(&world)[0].message.contains("no step `last` any more"), "{}", letters(&world)[0].message);
}
