//! The stateless kinds: nulls, failures that become dead letters with their cause, and one fate a
//! record (R20).

use super::{World, plan};
use quikflow_pipelines::operator::Counts;
use quikflow_topics::broker::Broker;
use quikflow_topics::dead_letter::DeadLetterFilter;
use serde_json::{Value, json};

/// What a step does with these payloads: its rows (columns of `shown`), its fates, its dead letters
/// as (offset, cause, code, path).
struct Done {
    rows: Vec<String>,
    counts: Counts,
    dead: Vec<(u64, String, String, Option<String>)>,
}

fn run(step: &str, shown: &[&str], payloads: &[Value]) -> Done {
    run_to(step, "out", "to = \"out\"", shown, payloads)
}

fn run_to(step: &str, topic: &str, to: &str, shown: &[&str], payloads: &[Value]) -> Done {
    let plan = plan(&format!(
        r#"
[topics.things]
partitions = 1
[events.THING]
topic = "things"
key = "id"
[events.THING.payload]
id = "string"
n = {{ type = "int", optional = true }}
text = {{ type = "string", optional = true }}
flag = {{ type = "bool", optional = true }}
tags = {{ type = "list<string>", optional = true }}

[[topology]]
name = "t"
from = "things"
steps = [ {step} ]
{to}
"#
    ));
    let world = World::new(&plan);
    for (at, payload) in (0..).zip(payloads) {
        let mut payload = payload.clone();
        payload["id"] = json!(format!("k{at}"));
        world.give("things", "THING", at, payload);
    }
    let mut engine = world.engine(&plan);
    engine.run_to_the_end().unwrap();
    assert_eq!(engine.unbalanced(), Vec::<String>::new(), "R20");
    let letters = world.broker.dead_letters(&DeadLetterFilter::default()).unwrap();
    let mut dead: Vec<_> = letters.into_iter().map(|(_, l)| (l.origin.unwrap().offset.0, l.cause, l.code, l.path)).collect();
    dead.sort();
    Done { rows: world.rows(topic, shown), counts: engine.books()[0].steps[0].inputs[0], dead }
}

fn fates(input: u64, applied: u64, filtered: u64, dead: u64) -> Counts {
    Counts { input, applied, filtered, dead, ..Counts::default() }
}

fn letter(offset: u64, cause: &str, code: &str, path: Option<&str>) -> (u64, String, String, Option<String>) {
    (offset, cause.to_owned(), code.to_owned(), path.map(str::to_owned))
}

#[test]
fn r20_filter_leaves_out_false_and_null_and_lets_failures_die() {
    let given = [json!({ "n": 1 }), json!({ "n": 0 }), json!({}), json!({ "n": 5 }), json!({ "n": -2 })];
    let done = run(r#"{ filter = "10 / payload.n > 3" }"#, &["n"], &given);
    assert_eq!(done.rows, ["[1]"]);
    assert_eq!(done.counts, fates(5, 1, 3, 1));
    assert_eq!(done.dead, [letter(1, "expression", "divide_by_zero", None)]);
}

#[test]
fn r20_validate_lets_false_and_null_die_by_its_own_code() {
    let given = [json!({ "n": 1 }), json!({ "n": -1 }), json!({}), json!({ "n": 2 })];
    let done = run(r#"{ validate = "payload.n > 0", code = "not_positive" }"#, &["n"], &given);
    assert_eq!(done.rows, ["[1]", "[2]"]);
    assert_eq!(done.counts, fates(4, 2, 0, 2));
    let bad = |offset| letter(offset, "validation", "not_positive", Some("payload.n"));
    assert_eq!(done.dead, [bad(1), bad(2)]);
    let done =
        run(r#"{ validate = "cast(payload.text as int) > 0" }"#, &["text"], &[json!({ "text": "7" }), json!({ "text": "x" })]);
    assert_eq!(done.rows, [r#"["7"]"#]);
    assert_eq!(done.dead, [letter(1, "expression", "bad_cast", None)], "a rule that cannot be evaluated is another cause");
}

#[test]
fn r20_map_carries_nulls_and_lets_only_the_rows_at_fault_die() {
    let given = [json!({ "text": "1" }), json!({ "text": "one" }), json!({}), json!({ "text": "3" }), json!({ "text": "" })];
    let step = r#"{ map = { n = "cast(payload.text as int)", twice = "cast(payload.text as int) * 2", id = "payload.id" } }"#;
    let done = run(step, &["id", "n", "twice"], &given);
    assert_eq!(done.rows, [r#"["k0",1,2]"#, r#"["k2",null,null]"#, r#"["k3",3,6]"#]);
    assert_eq!(done.counts, fates(5, 3, 0, 2));
    assert_eq!(done.dead, [letter(1, "expression", "bad_cast", None), letter(4, "expression", "bad_cast", None)]);
}

#[test]
fn r20_branch_takes_the_first_way_and_null_is_no_way() {
    let given = [json!({ "n": 9 }), json!({ "n": 2 }), json!({}), json!({ "n": 0 }), json!({ "n": -5 })];
    let ways = r#"{ branch = [ { when = "10 / payload.n < 2", to = "few" }, { when = "payload.n > 0", to = "some" } ] }"#;
    let few = run_to(ways, "few", "", &["n"], &given);
    assert_eq!(few.rows, ["[-5]", "[9]"]);
    assert_eq!(few.counts, fates(5, 3, 1, 1));
    assert_eq!(few.dead, [letter(3, "expression", "divide_by_zero", None)]);
    assert_eq!(run_to(ways, "some", "", &["n"], &given).rows, ["[2]"]);
    let rest = r#"{ branch = [ { when = "payload.n > 0", to = "few" }, { to = "rest" } ] }"#;
    let rest = run_to(rest, "rest", "", &["id"], &given);
    assert_eq!(rest.rows, [r#"["k2"]"#, r#"["k3"]"#, r#"["k4"]"#], "the rest takes what is null");
    assert_eq!(rest.counts, fates(5, 5, 0, 0));
}

#[test]
fn r20_explode_filters_what_has_no_element() {
    let given = [json!({ "tags": ["a", "b"] }), json!({ "tags": [] }), json!({}), json!({ "tags": ["c"] })];
    let done = run(r#"{ explode = "payload.tags", as = "tag" }, { map = { tag = "tag" } }"#, &["tag"], &given);
    assert_eq!(done.rows, [r#"["a"]"#, r#"["b"]"#, r#"["c"]"#]);
    assert_eq!(done.counts, fates(4, 2, 2, 0));
    assert_eq!(done.dead, []);
}

#[test]
fn r20_rekey_takes_null_for_a_key_and_failures_for_dead() {
    let given = [json!({ "text": "7", "n": 1 }), json!({ "n": 2 }), json!({ "text": "x", "n": 3 })];
    let done = run(r#"{ rekey = "cast(cast(payload.text as int) + 1 as varchar)" }"#, &["n", "_key"], &given);
    assert_eq!(done.rows, [r#"[1,"8"]"#, "[2,null]"]);
    assert_eq!(done.counts, fates(3, 2, 0, 1));
    assert_eq!(done.dead, [letter(2, "expression", "bad_cast", None)]);
}
