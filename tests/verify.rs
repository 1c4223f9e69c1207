//! `quikflow verify`: an honest directory passes; books, chains and anchors that do not fit are found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use quikflow_topics::broker::{Broker, EpochCommit, Positions, Projection, ResetFrom, TopicRows};
use quikflow_topics::brokers::embedded::{EmbeddedBroker, EmbeddedOptions};
use quikflow_topics::clock::SystemClock;
use quikflow_topics::ids::Epoch;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use support::{Server, both};

const LOGINS: usize = 40;

/// A directory in which the shipped topologies ran; one event of each ten is too long, so it dies at a step.
async fn ran(data: &Path) {
    let server = Server::start(data);
    let mut body = String::new();
    for i in 0..LOGINS {
        let at = format!("2026-01-01T12:{:02}:{:02}Z", i / 60, i % 60);
        let user = format!("u{}", i % 5);
        let login =
            serde_json::json!({ "type": "LOGIN_FAILED", "timestamp": at, "payload": { "userId": user, "ip": "10.0.0.1" } });
        let content = "x".repeat(if i % 10 == 0 { 10_001 } else { 5 });
        let message = serde_json::json!({ "type": "MESSAGE_SENT", "timestamp": at, "payload":
            { "userId": user, "channelId": "c1", "messageId": format!("m{i}"), "content": content } });
        body.push_str(&format!("{login}\n{message}\n"));
    }
    let (status, answer) = server.post("/v1/events", "application/x-ndjson", body).await;
    assert!(status < 300, "{status} {answer}");
    server.settle();
    assert!(server.stop().success());
}

fn verify(data: &Path, anchor: Option<&Path>) -> (Option<i32>, String) {
    let mut command = support::command(&["verify", "--data"]);
    command.arg(data).arg("--topologies").arg(support::shipped());
    if let Some(anchor) = anchor {
        command.arg("--anchor").arg(anchor);
    }
    let output = command.output().unwrap();
    (output.status.code(), both(&output))
}

fn open(data: &Path) -> Arc<EmbeddedBroker> {
    EmbeddedBroker::open(EmbeddedOptions::new(data, SystemClock::shared())).unwrap()
}

fn commit(broker: &EmbeddedBroker, commit: EpochCommit) {
    let epoch = Epoch(broker.last_epoch().unwrap().0 + 1);
    broker.commit_epoch(EpochCommit { epoch, ..commit }).unwrap().wait().unwrap();
}

#[test]
fn r15_r20_an_honest_directory_verifies_and_a_forged_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    tokio::runtime::Runtime::new().unwrap().block_on(ran(&data));
    let anchors = data.join("anchors.jsonl");
    let (code, said) = verify(&data, Some(&anchors));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(" 0 findings") && said.contains("of 40 rows"), "{said}");

    r15_another_hash_in_an_anchor_is_found(&data, &anchors, dir.path());
    r20_books_that_say_more_than_the_log_are_found(&data);
    r15_a_rewritten_row_of_the_log_is_found(&data, &anchors);
}

fn r15_another_hash_in_an_anchor_is_found(data: &Path, anchors: &Path, dir: &Path) {
    let text = std::fs::read_to_string(anchors).unwrap();
    let mut first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    first["hash"] = "00".repeat(32).into();
    let (other, later) = (dir.join("other.jsonl"), dir.join("later.jsonl"));
    // What follows the line is cut off, as by a crash.
    std::fs::write(&other, format!("{first}\n{{\"log\":")).unwrap();
    let (code, said) = verify(data, Some(&other));
    assert!(code == Some(1) && said.contains("it was rewritten"), "{said}");
    first["index"] = 1_000.into();
    std::fs::write(&later, first.to_string()).unwrap();
    let (code, said) = verify(data, Some(&later));
    assert!(code == Some(1) && said.contains("rows were taken out"), "{said}");
}

fn r20_books_that_say_more_than_the_log_are_found(data: &Path) {
    let broker = open(data);
    let honest = broker.topology_state("audit-log").unwrap().meta["books"].clone();
    let mut books: Value = serde_json::from_slice(&honest).unwrap();
    books["sources"][0] = 41.into();
    let put = |bytes: Vec<u8>| {
        let meta = vec![("audit-log".to_owned(), "books".to_owned(), bytes)];
        commit(&broker, EpochCommit { meta, ..EpochCommit::default() });
    };
    put(serde_json::to_vec(&books).unwrap());
    let (code, said) = verify(data, None);
    assert!(code == Some(1) && said.contains("40 records of QuikApp.audit lie before its offsets"), "{said}");
    assert!(said.contains("was fed 41 rows"), "{said}");
    put(honest);
    assert_eq!(verify(data, None).0, Some(0));
}

fn r15_a_rewritten_row_of_the_log_is_found(data: &Path, anchors: &Path) {
    let broker = open(data);
    let topic = broker.topic("audit.log").unwrap();
    let names: Vec<String> = topic.append_schema().fields().iter().map(|field| field.name().clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut reader = broker.reader("audit.log", &Positions::new()).unwrap();
    let mut outputs = Vec::new();
    while let Some(slice) = reader.poll(1_000).unwrap() {
        let rows = slice.decode(&Projection::of(&topic, &names)).unwrap();
        outputs.push(TopicRows {
            topic: topic.clone(),
            rows: RecordBatch::try_new(topic.append_schema(), rows.columns().to_vec()).unwrap(),
        });
    }
    drop(reader);
    let rows = outputs[0].rows.clone();
    let at = rows.schema().index_of("user").unwrap();
    let users = rows.column(at).as_string::<i32>();
    let changed: ArrayRef = Arc::new(
        (0..users.len()).map(|row| Some(if row == 0 { "someone else" } else { users.value(row) })).collect::<StringArray>(),
    );
    let mut columns = rows.columns().to_vec();
    columns[at] = changed;
    outputs[0].rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
    broker.reset_topology("nobody", &["audit.log".to_owned()], ResetFrom::Earliest).unwrap();
    commit(&broker, EpochCommit { outputs, ..EpochCommit::default() });
    broker.close();
    let (code, said) = verify(data, Some(anchors));
    assert!(code == Some(1) && said.contains("the value of `user` was changed") && said.contains(" 1 findings"), "{said}");
}
