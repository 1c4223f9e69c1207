//! Single events of several requests at once: one append, an answer each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{embedded, event, setup};
use futures::future::join_all;
use quikflow_topics::broker::Broker;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const JSON: (&str, &str) = ("content-type", "application/json");

fn with_id(id: &str, content: &str) -> String {
    event(content).replacen('{', &format!(r#"{{"id":"{id}","#), 1)
}

#[tokio::test]
async fn requests_under_way_share_an_append() {
    let s = setup(|_| {});
    let posts = (0..200).map(|i| s.post(&[JSON], event(&format!("m{i}"))));
    let answers = join_all(posts).await;
    let offset = |(status, body): &(u16, Value)| {
        assert_eq!((*status, &body["accepted"]), (202, &json!(1)));
        body["records"][0]["offset"].as_u64().unwrap()
    };
    let offsets: BTreeSet<u64> = answers.iter().map(offset).collect();
    assert_eq!(offsets.len(), 200, "each has a place of its own");
    assert_eq!(s.broker.rows(), 200);
    let appends = s.broker.appends.lock().unwrap().len();
    assert!(appends < 20, "{appends} appends for 200 requests at once");
}

#[tokio::test]
async fn r16_each_request_is_answered_for_its_own_event() {
    let dir = tempfile::tempdir().unwrap();
    let s = embedded(dir.path());
    assert_eq!(s.post(&[JSON], with_id("used", "first")).await.0, 202);
    let posts = [
        s.send("POST", "/v1/events", &[JSON], event("plain")),
        s.send("POST", "/v1/events", &[JSON], with_id("used", "other")),
        s.send("POST", "/v1/events", &[JSON], with_id("used", "first")),
        s.send("POST", "/v1/events", &[JSON], event("far too long a text")),
        s.send("POST", "/v1/events", &[JSON], "{nope".to_owned()),
        s.send("POST", "/v1/topics/QuikApp.members/records", &[JSON], event("elsewhere")),
        s.send("POST", "/v1/events?records=false", &[JSON, ("idempotency-key", "k")], event("keyed")),
        s.send("POST", "/v1/events", &[JSON, ("idempotency-key", "k")], event("keyed")),
    ];
    let answers = join_all(posts).await;
    let statuses: Vec<u16> = answers.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [202, 409, 202, 422, 422, 422, 202, 202]);
    let body = |at: usize| &answers[at].1;
    assert_eq!((&body(1)["errors"][0]["rule"], &body(1)["errors"][0]["path"]), (&json!("id_conflict"), &json!("id")));
    assert_eq!((&body(2)["accepted"], &body(2)["duplicates"]), (&json!(0), &json!(1)));
    assert_eq!(body(2)["records"][0]["offset"], 0, "the place of the first one");
    assert_eq!(body(3)["errors"][0]["rule"], "too_long");
    assert_eq!(body(5)["errors"][0]["rule"], "wrong_topic");
    assert!(body(6).get("records").is_none());
    let repeats = [6, 7].map(|at| body(at)["duplicates"].as_u64().unwrap());
    assert_eq!(repeats.iter().sum::<u64>(), 1, "one of two at once is the repeat");
    assert_eq!(s.broker.stats("QuikApp.messages").unwrap().records, 3);
}
