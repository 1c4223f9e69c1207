//! The door by HTTP: what is taken, what is refused, with which status.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{event, setup};
use quikflow_topics::BrokerError;
use serde_json::json;
use std::io::Write;
use std::time::Duration;

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");

#[tokio::test]
async fn a_single_event_is_answered_with_its_place() {
    let s = setup(|_| {});
    let (status, body) = s.post(&[JSON, ("idempotency-key", "k1")], event("hi")).await;
    assert_eq!((status, &body["accepted"], &body["duplicates"]), (202, &json!(1), &json!(0)));
    assert_eq!(body["records"][0]["topic"], "QuikApp.messages");
    assert_eq!(body["records"][0]["offset"], 0);
    let (_, body, _) = s.send("POST", "/v1/events?records=false", &[JSON], event("hi")).await;
    assert!(body.get("records").is_none());
    let appends = s.broker.appends.lock().unwrap();
    let id = appends[0].rows[0].rows.column_by_name("_id").unwrap();
    assert_eq!(arrow::array::AsArray::as_string::<i32>(id).value(0), "k1", "r16: the key is the event's id");
}

#[tokio::test]
async fn an_array_is_all_or_nothing() {
    let s = setup(|_| {});
    let (status, body) = s.post(&[JSON], format!("[{},{}]", event("ok"), event("far too long"))).await;
    assert_eq!((status, s.broker.rows()), (422, 0));
    assert_eq!(
        body["errors"],
        json!([{ "index": 1, "path": "payload.content", "rule": "too_long",
        "message": "has 12 characters, at most 10 are allowed" }])
    );
    assert!(s.broker.appends.lock().unwrap().is_empty(), "no dead letter either: the sender knows");
    let (status, body) = s.post(&[JSON], format!(" [{},{}]", event("a"), event("b"))).await;
    assert_eq!((status, body["records"].as_array().unwrap().len(), s.broker.rows()), (202, 2, 2));
}

#[tokio::test]
async fn r11_bad_lines_are_told_and_kept_as_dead_letters_with_the_good_ones() {
    let s = setup(|_| {});
    let (status, body) = s.post(&[LINES], format!("{}\nnope\n\n{}\n", event("a"), event("b"))).await;
    assert_eq!((status, &body["accepted"], &body["rejected"]), (202, &json!(2), &json!(1)));
    assert_eq!((&body["errors"][0]["line"], &body["errors"][0]["rule"]), (&json!(2), &json!("invalid_json")));
    let dead = s.broker.dead();
    assert_eq!((dead.len(), dead[0].bytes.as_slice(), dead[0].cause.as_str()), (1, b"nope".as_slice(), "door"));
    let (status, body) = s.post(&[LINES], "nope\n{}").await;
    assert_eq!((status, &body["rejected"]), (422, &json!(2)));
    let ids: std::collections::BTreeSet<_> = s.broker.dead().into_iter().map(|d| d.id).collect();
    assert_eq!(ids.len(), 3, "each has an id of its own");
}

#[tokio::test]
async fn r17_a_lane_numbers_its_lines() {
    let s = setup(|_| {});
    let lane = [LINES, ("quikflow-producer", "p"), ("quikflow-first-line", "12"), ("quikflow-previous-line", "10")];
    let (status, body) = s.post(&lane, format!("{}\nnope\n{}", event("a"), event("b"))).await;
    assert_eq!((status, &body["line"], &body["errors"][0]["line"]), (202, &json!(14), &json!(13)));
    {
        let appends = s.broker.appends.lock().unwrap();
        let lane = appends[0].lane.as_ref().unwrap();
        assert_eq!((lane.previous, lane.last, &appends[0].lines), (10, 14, &vec![vec![12, 14]]));
        assert_eq!(appends[0].dead_letters[0].id, "door:p:13");
    }
    for bad in [
        &[JSON, lane[1], lane[3]][..],
        &[LINES, lane[1]],
        &[LINES, lane[2]],
        &[LINES, lane[1], ("quikflow-first-line", "10"), lane[3]],
        &[LINES, lane[1], ("quikflow-previous-line", "-1")],
    ] {
        assert_eq!(s.post(bad, event("a")).await.0, 400, "{bad:?}");
    }
    *s.broker.refuse.lock().unwrap() = Some(BrokerError::OutOfSequence { producer: "p".into(), expected: 14, previous: 20 });
    let (status, body) = s.post(&lane, event("a")).await;
    assert_eq!((status, &body["expected"], &body["type"]), (409, &json!(14), &json!("urn:quikflow:out_of_sequence")));
}

#[tokio::test]
async fn what_the_log_refuses_has_its_status() {
    let s = setup(|_| {});
    for (error, status, retry) in [
        (BrokerError::Busy(Duration::from_millis(300)), 429, Some("1")),
        (BrokerError::Full { limit: 1 }, 429, Some("60")),
        (BrokerError::IdConflict { row: 0, id: "i".into() }, 409, None),
        (BrokerError::Storage("disk".into()), 503, Some("5")),
        (BrokerError::Closed, 503, Some("1")),
    ] {
        *s.broker.refuse.lock().unwrap() = Some(error.clone());
        let (got, body, after) = s.send("POST", "/v1/events", &[JSON], event("x")).await;
        assert_eq!((got, after.as_deref()), (status, retry), "{error}");
        assert!(!body.to_string().contains("disk"), "no inner detail leaves the house");
    }
}

#[tokio::test]
async fn bodies_are_bounded_as_sent_and_as_unpacked() {
    let s = setup(|l| {
        l.max_body_bytes = 1000;
        l.max_events = 5;
    });
    assert_eq!(s.post(&[JSON], "x".repeat(1001)).await.0, 413);
    assert_eq!(s.post(&[LINES], "\n".repeat(6)).await.0, 413);
    let gzip = |bytes: &[u8]| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let bomb = gzip(&vec![b' '; 10 << 20]);
    assert_eq!(s.post(&[JSON, ("content-encoding", "gzip")], bomb[..900.min(bomb.len())].to_vec()).await.0, 413);
    assert_eq!(
        s.post(&[JSON, ("content-encoding", "zstd")], zstd::encode_all(&vec![b' '; 10 << 20][..], 3).unwrap()).await.0,
        413
    );
    assert_eq!(s.post(&[JSON, ("content-encoding", "gzip")], gzip(event("a").as_bytes())).await.0, 202);
    assert_eq!(s.post(&[JSON, ("content-encoding", "zstd")], zstd::encode_all(event("a").as_bytes(), 3).unwrap()).await.0, 202);
    assert_eq!(s.post(&[JSON, ("content-encoding", "gzip")], "plain").await.0, 400);
    assert_eq!(s.post(&[JSON, ("content-encoding", "br")], "plain").await.0, 415);
    assert_eq!(s.post(&[("content-type", "text/plain")], event("a")).await.0, 415);
    assert_eq!(s.post(&[("content-type", "application/json; charset=latin1")], event("a")).await.0, 415);
}

#[tokio::test]
async fn past_the_budget_bodies_wait_outside() {
    let s = setup(|l| l.budget_bytes = 4096);
    *s.broker.held.lock().unwrap() = Some(Vec::new());
    let spaces = " ".repeat(3000);
    let (router, body) = (s.router.clone(), format!("{}{spaces}", event("a")));
    let request = || {
        axum::http::Request::post("/v1/events")
            .header("content-length", body.len())
            .body(axum::body::Body::from(body.clone()))
            .unwrap()
    };
    let first = tokio::spawn(tower::ServiceExt::oneshot(router, request()));
    while s.broker.rows() == 0 {
        tokio::task::yield_now().await;
    }
    let second = tower::ServiceExt::oneshot(s.router.clone(), request()).await.unwrap();
    assert_eq!(second.status(), 429);
    assert!(second.headers().contains_key("retry-after"));
    s.broker.release();
    assert_eq!(first.await.unwrap().unwrap().status(), 202);
    let third = tower::ServiceExt::oneshot(s.router.clone(), request()).await.unwrap();
    assert_eq!(third.status(), 202, "the room was given back");
}

#[tokio::test]
async fn topics_members_documents_and_health_have_their_paths() {
    let s = setup(|_| {});
    let path = "/v1/topics/QuikApp.messages/records";
    assert_eq!(s.send("POST", path, &[JSON], event("a")).await.0, 202);
    let (status, body, _) = s.send("POST", "/v1/topics/QuikApp.members/records", &[JSON], event("a")).await;
    assert_eq!((status, &body["errors"][0]["rule"]), (422, &json!("wrong_topic")));
    assert_eq!(s.send("POST", "/v1/topics/none/records", &[JSON], event("a")).await.0, 404);
    let (status, body, _) = s.send("PUT", "/api/v1/channels/c%201/members/u?workspaceId=w", &[], "").await;
    assert_eq!((status, &body["records"][0]["topic"]), (202, &json!("QuikApp.members")));
    assert_eq!(s.send("DELETE", "/api/v1/channels/c%201/members/u", &[], "").await.0, 202);
    {
        let appends = s.broker.appends.lock().unwrap();
        let text = |at: usize, name: &str| {
            let rows = &appends[appends.len() - at].rows[0].rows;
            arrow::array::AsArray::as_string::<i32>(rows.column_by_name(name).unwrap()).value(0).to_owned()
        };
        assert_eq!(
            (text(2, "_type"), text(2, "_key"), text(2, "workspaceId")),
            ("MEMBER_ADDED".into(), "c 1".into(), "w".into())
        );
        assert_eq!(text(1, "_type"), "MEMBER_REMOVED");
    }
    let (status, api, _) = s.send("GET", "/openapi.json", &[], "").await;
    assert_eq!(
        (status, &api["components"]["schemas"]["MESSAGE_SENT"]["properties"]["payload"]["properties"]["content"]["maxLength"]),
        (200, &json!(10))
    );
    let (_, api, _) = s.send("GET", "/asyncapi.json", &[], "").await;
    assert!(api["channels"]["QuikApp.members"]["messages"]["MEMBER_ADDED"].is_object());
    for path in ["/health/live", "/health/ready", "/metrics", "/docs/"] {
        assert_eq!(s.send("GET", path, &[], "").await.0, 200, "{path}");
    }
    assert_eq!(s.send("GET", "/nope", &[], "").await.0, 404);
    assert_eq!(s.send("GET", "/v1/events", &[], "").await.0, 405);
    assert_eq!(s.send("POST", "/v1/events", &[JSON, ("origin", "http://evil.example")], event("a")).await.0, 403);
}
