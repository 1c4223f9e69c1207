//! Reset and replay beside a running process: nothing is counted twice, nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use serde_json::Value;
use std::path::Path;
use support::{Server, Start, both};

/// A topology that sums by name, and one that sums what it writes. Numbers from `most` on die.
fn topologies(path: &Path, most: i64) {
    let text = format!(
        r#"
[topics.numbers]
partitions = 3
[events.NUMBER]
topic = "numbers"
key = "name"
[events.NUMBER.payload]
name = "string"
n = "int"

[[topology]]
name = "small"
from = "numbers"
steps = [ {{ validate = "payload.n < {most}", code = "too_big", name = "bound" }}, {{ map = {{ name = "payload.name", n = "payload.n" }} }} ]
to = "small"

[[topology]]
name = "sums"
from = "small"
steps = [ {{ window = {{ tumbling = "1d" }}, group_by = {{ name = "name" }}, aggregate = {{ count = "count(*)", total = "sum(n)" }}, name = "day" }} ]
to = "sums"
"#
    );
    std::fs::write(path, text).unwrap();
}

async fn send(server: &Server, from: i64, to: i64) {
    let lines = (from..to).map(|n| {
        let payload = serde_json::json!({ "name": format!("k{}", n % 4), "n": n });
        format!("{}\n", serde_json::json!({ "type": "NUMBER", "timestamp": "2026-01-01T12:00:00Z", "payload": payload }))
    });
    let (status, answer) = server.post("/v1/events", "application/x-ndjson", lines.collect::<String>()).await;
    assert!(status < 300, "{status} {answer}");
}

/// (count, total) over all keys, of the newest row of each.
fn sums(server: &Server) -> (i64, i64) {
    let output = server.command(&["topics", "read", "sums", "--max", "100000"]);
    assert!(output.status.success(), "{}", both(&output));
    let mut newest = std::collections::BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let row = row.get("payload").cloned().unwrap_or(row);
        newest.insert(row["name"].to_string(), (row["count"].as_i64().unwrap(), row["total"].as_i64().unwrap()));
    }
    newest.values().fold((0, 0), |all, row| (all.0 + row.0, all.1 + row.1))
}

fn said(server: &Server, args: &[&str]) -> String {
    let output = server.command(args);
    assert!(output.status.success(), "{args:?}: {}", both(&output));
    both(&output)
}

#[test]
fn r12_r14_reset_and_replay_beside_a_running_process() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("topologies.toml"));
    topologies(&file, 99);
    let start = Start { topologies: Some(file.clone()), ..Start::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = start.run(&data);
    runtime.block_on(send(&server, 0, 100));
    server.settle();
    assert_eq!(sums(&server), (99, 99 * 98 / 2));

    // Reset while it runs, with more records on the way: the reader of its rows is rebuilt with it.
    for round in 0..3 {
        runtime.block_on(send(&server, 0, 10));
        let said = said(&server, &["reset", "--topology", "small"]);
        assert!(said.contains("sums"), "{said}");
        server.settle();
        assert_eq!(sums(&server), (109 + 10 * round, 99 * 98 / 2 + 45 * (round + 1)), "round {round}");
    }

    // The letter fails again as long as its cause is there; then it is applied once.
    let list: Value = serde_json::from_str(&said(&server, &["dlq", "list", "--json"])).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    let id = list["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(said(&server, &["dlq", "replay", &id]).contains("dlq show"));
    server.settle();
    assert!(said(&server, &["dlq", "show", &id]).contains("\"open\""));
    assert!(server.stop().success());
    topologies(&file, 1_000);
    let server = start.run(&data);
    said(&server, &["dlq", "replay", &id]);
    server.settle();
    assert!(said(&server, &["dlq", "show", &id]).contains("\"replayed\""));
    assert!(!server.command(&["dlq", "replay", &id]).status.success(), "it was replayed already");
    server.settle();
    let expected = (130, 99 * 98 / 2 + 45 * 3 + 99);
    assert_eq!(sums(&server), expected);

    // Rebuilt from the start with the cause gone: the letter is no letter any more.
    said(&server, &["reset", "--topology", "small"]);
    server.settle();
    assert_eq!(sums(&server), expected);
    let list: Value = serde_json::from_str(&said(&server, &["dlq", "list", "--json"])).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 0, "{list}");
    assert!(server.stop().success());
    let output = support::command(&["verify", "--data"]).arg(&data).arg("--topologies").arg(&file).output().unwrap();
    assert!(output.status.success() && both(&output).contains(" 0 findings"), "R20: {}", both(&output));
}
