//! R12: state is not used by a plan that it does not fit.

use super::{World, plan};
use quikflow_pipelines::engine::{Engine, EngineError, EngineOptions};
use quikflow_pipelines::plan::Plan;
use quikflow_topics::broker::{Broker, ResetFrom};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

fn with_window(window: &str) -> Arc<Plan> {
    plan(&format!(
        r#"
[topics.things]
[events.THING]
topic = "things"
key = "id"
[events.THING.payload]
id = "int"

[[topology]]
name = "counted"
from = "things"
steps = [ {{ window = {{ {window} }}, aggregate = {{ n = "count(*) filter (where payload.id in (60000000, 1))" }}, name = "minute" }} ]
to = "counted"
"#
    ))
}

#[test]
fn r12_a_window_changed_over_its_state_is_refused_and_reset_is_named() {
    let before = with_window(r#"tumbling = "60s", grace = "30s""#);
    let after = with_window(r#"tumbling = "2m""#);
    let world = World::new(&before);
    world.give("things", "THING", 1, json!({ "id": 1 }));
    world.engine(&before).run().unwrap();
    let start = |plan: &Arc<Plan>| {
        let options = EngineOptions { epoch_interval: Duration::ZERO, ..EngineOptions::default() };
        Engine::start(plan.clone(), world.broker.clone(), world.clock.clone(), options)
    };
    let Err(EngineError::Incompatible(message)) = start(&after) else { panic!("it started") };
    for part in [
        "step `minute` of topology `counted`",
        "`window tumbling 1m offset 0s grace 30s",
        "to `window tumbling 2m offset 0s grace 0s",
        "in (60000000, 1)",
        "run `quikflow reset --topology counted`",
    ] {
        assert!(message.contains(part), "`{part}` in: {message}");
    }
    // Nothing was touched: the old plan goes on, and after the reset the new one starts.
    let engine = start(&before).unwrap();
    assert!(engine.wait_caught_up(Duration::from_secs(20)));
    drop(engine);
    world.broker.reset_topology("counted", &["counted".to_owned(), "late.counted".to_owned()], ResetFrom::Earliest).unwrap();
    let engine = start(&after).unwrap();
    assert!(engine.wait_caught_up(Duration::from_secs(20)), "{:?}", engine.failure());
    drop(engine);
    assert_eq!(world.rows("counted", &["n"]), ["[1]"]);
}
