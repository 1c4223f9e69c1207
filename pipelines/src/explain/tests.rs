//! What is shown of the shipped file's topologies, as far as they can be planned.

use super::*;
use crate::plan::load;
use quikflow_topics::diagnostics::SourceFile;

fn plan() -> Plan {
    let text = r#"
        [topics.messages]
        partitions = 4
        [events.SENT]
        topic = "messages"
        key = "channel"
        payload = { channel = "string", user = "string" }
        [[topology]]
        name = "counts"
        doc = "Messages by minute."
        from = "messages"
        steps = [
          { filter = "payload.user <> 'bot'" },
          { window = { tumbling = "1m" }, group_by = { channel = "payload.channel" }, aggregate = { n = "count(*)" }, name = "by-minute" },
        ]
        to = "counts"
        [[topology]]
        name = "busy"
        from = "counts"
        steps = [ { branch = [ { when = "n > 100", to = "very-busy" }, { to = "calm" } ] } ]
        [[sink]]
        name = "counts"
        from = "counts"
        store = "clickhouse"
        key = ["channel", "window_start"]
    "#;
    load(&SourceFile::new("t.toml", text)).plan.unwrap()
}

#[test]
fn the_text_names_columns_state_topics_and_sinks() {
    let shown = text(&plan(), Some("counts")).unwrap();
    for part in [
        "topology counts\n  Messages by minute.\n",
        "from messages (4 partitions",
        "decodes 3 of 9 columns: _event_time, channel, user",
        "window `by-minute`, keeps state",
        "to counts (rows, 12 partitions)",
        "sink counts: clickhouse `counts`, key channel, window_start",
        "late records of messages go to late.counts",
        "guarantee: exactly once",
    ] {
        assert!(shown.contains(part), "{part} not in\n{shown}");
    }
    let all = text(&plan(), None).unwrap();
    assert!(all.contains("topology busy") && all.contains("to calm"), "{all}");
}

#[test]
fn an_unknown_topology_is_an_error_with_the_nearest_name() {
    let error = text(&plan(), Some("count")).unwrap_err().to_string();
    assert_eq!(error, "unknown topology `count`, did you mean `counts`?, available: counts, busy");
}

#[test]
fn json_is_json() {
    let shown: serde_json::Value = serde_json::from_str(&json(&plan(), None).unwrap()).unwrap();
    assert_eq!(shown["topologies"][0]["steps"][1]["name"], "by-minute");
    assert_eq!(shown["topologies"][1]["outputs"][0]["topic"], "very-busy");
}

#[test]
fn drawings_hold_every_box_and_arrow() {
    let mermaid = mermaid(&plan(), None).unwrap();
    assert_eq!(mermaid.matches("-->").count(), 6, "{mermaid}");
    let drawn = svg(&plan(), None).unwrap();
    assert_eq!(drawn.matches("marker-end").count(), 6, "{drawn}");
    for label in ["messages", "counts", "busy", "very-busy", "calm"] {
        assert!(drawn.contains(&format!(">{label}</text>")), "{label}");
    }
    assert_eq!(drawn, svg(&plan(), None).unwrap(), "the same plan is drawn the same way");
}
