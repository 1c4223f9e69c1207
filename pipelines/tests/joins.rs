//! The stream–table joins of Kafka Streams' own tests, where they mean what R8 means: the table is
//! versioned and read as of the stream record's event time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

#[path = "../../tests/support/harness.rs"]
mod harness;
#[path = "steps/world.rs"]
mod world;

use serde_json::{Value, json};
use std::time::Duration;
use world::{World, plan};

crate::tests! { r8_joins_with_a_versioned_table_as_kafka_streams_does }

fn r8_joins_with_a_versioned_table_as_kafka_streams_does() {
    let file = harness::shared("cases/kstreams_joins.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut ran = 0;
    for case in cases["cases"].as_array().unwrap() {
        if case["file"] != "StreamTableJoinIntegrationTest.java" || case["versioned"] != true {
            continue;
        }
        let kind = if case["kind"][0] == "leftJoin" { "left" } else { "inner" };
        let inputs = cases["inputs"][case["input"].as_str().unwrap()].as_array().unwrap();
        let expected = case["expected"].as_array().unwrap();
        assert_eq!(inputs.len(), expected.len());
        let plan = plan(&declaration(kind));
        let world = World::new(&plan);
        let mut engine = world.engine(&plan);
        let mut before = Vec::new();
        for (step, (input, expected)) in inputs.iter().zip(expected).enumerate() {
            let topic = input["side"].as_str().unwrap();
            let payload = json!({ "key": input["key"], "value": input["value"] });
            world.give(topic, topic, input["ts"].as_i64().unwrap(), payload);
            engine.run().unwrap();
            // Kafka Streams joins with what it has seen: so the wait is over at once.
            world.clock.advance(Duration::from_millis(2));
            engine.run().unwrap();
            let rows = world.rows("joined", &["left", "right", "ts"]);
            let new: Vec<&String> = rows.iter().filter(|row| !before.contains(*row)).collect();
            let wanted: Vec<String> = expected
                .as_array()
                .into_iter()
                .flatten()
                .map(|row| {
                    let (left, right) = row["value"].as_str().unwrap().split_once('-').unwrap();
                    let right = if right == "null" { Value::Null } else { json!(right) };
                    json!([left, right, row["ts"]]).to_string()
                })
                .collect();
            assert_eq!(new, wanted.iter().collect::<Vec<_>>(), "{} step {step}: {input}", case["test"]);
            before = rows;
        }
        assert_eq!(engine.unbalanced(), Vec::<String>::new(), "R20");
        ran += 1;
    }
    assert_eq!(ran, 2, "inner and left");
}

fn declaration(kind: &str) -> String {
    let side = |name: &str| {
        format!(
            r#"
[topics.{name}]
partitions = 1
disorder = "1m"
[events.{name}]
topic = "{name}"
key = "key"
[events.{name}.payload]
key = "int"
value = {{ type = "string", optional = true }}
"#
        )
    };
    format!(
        r#"{}{}
[[topology]]
name = "joined"
from = "left"
steps = [
  {{ filter = "payload.value is not null" }},
  {{ join = {{ table = "right", on = "payload.key", table_on = "payload.key", table_delete = "payload.value is null", select = {{ other = "payload.value" }}, kind = "{kind}", max_wait = "1ms" }}, name = "j" }},
  {{ map = {{ left = "payload.value", right = "other", ts = "cast(extract(second from event_time) as int)" }} }},
]
to = "joined"
"#,
        side("left"),
        side("right")
    )
}
