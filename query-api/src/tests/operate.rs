//! Dead letters, topics, lag, health, and the document that describes all paths.

use super::house::House;
use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use axum::body::Body;
use axum::http::Request;
use quikflow_topics::catalogue::{FieldSpec, FieldType, TopicKind, TopicSpec};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterStatus, Origin};
use quikflow_topics::ids::{EventTime, Offset, PartitionId};
use serde_json::{Value, json};
use std::sync::Arc;

fn letter(id: &str, cause: &str) -> DeadLetter {
    DeadLetter {
        id: id.into(),
        at: EventTime(super::house::NOON),
        cause: cause.into(),
        code: "too_old".into(),
        path: None,
        message: "older than a day".into(),
        topology: Some("messages".into()),
        step: Some("validate".into()),
        origin: Some(Origin { topic: "QuikApp.messages".into(), partition: PartitionId(1), offset: Offset(7) }),
        bytes: b"{\"a\":1}".to_vec(),
        full_size: 7,
        status: DeadLetterStatus::Open,
    }
}

fn with_letters() -> House {
    let house = House::usual();
    let mut letters = house.log.letters.lock();
    letters.extend((0..5).map(|i| letter(&format!("step:messages:validate:QuikApp.messages:1:{i}"), "validation")));
    letters.push(letter("door:loop/back:9", "decode"));
    drop(letters);
    house
}

/// Twelve records over three partitions of `QuikApp.messages`.
fn with_topic() -> House {
    let house = House::usual();
    let mut spec = TopicSpec::new("QuikApp.messages", TopicKind::Events);
    spec.partitions = 3;
    spec.fields = vec![FieldSpec::new("channelId", FieldType::String)];
    let n = 12u32;
    let time: ArrayRef = Arc::new(
        TimestampMicrosecondArray::from((0..n).map(|i| super::house::NOON + i64::from(i)).collect::<Vec<_>>())
            .with_timezone("UTC"),
    );
    let text = |of: &dyn Fn(u32) -> Option<String>| -> ArrayRef { Arc::new((0..n).map(of).collect::<StringArray>()) };
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..n).map(|i| Some(i / 4)).collect::<UInt32Array>()),
        Arc::new((0..n).map(|i| Some(u64::from(i % 4))).collect::<UInt64Array>()),
        text(&|i| Some(format!("c{i}"))),
        time.clone(),
        time,
        text(&|_| Some("MESSAGE_SENT".into())),
        text(&|_| None),
        text(&|_| None),
        text(&|_| None),
        text(&|i| Some(format!("c{i}"))),
    ];
    let rows = RecordBatch::try_new(spec.schema(), columns).unwrap();
    house.log.topics.lock().push((Arc::new(spec), rows));
    house
}

#[tokio::test]
async fn dead_letters_are_listed_in_pages_and_shown_whole() {
    let house = with_letters();
    let (_, first) = house.get("/v1/dlq?cause=validation&limit=3").await;
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    let (_, second) = house.get(&format!("/v1/dlq?cause=validation&limit=3&cursor={}", first["cursor"].as_str().unwrap())).await;
    assert_eq!((second["items"].as_array().unwrap().len(), &second["cursor"]), (2, &Value::Null));
    let (status, one) = house.get("/v1/dlq/door:loop%2Fback:9").await;
    assert_eq!(status, 200, "{one}");
    assert_eq!((&one["bytes"], &one["record"], &one["replayable"]), (&json!("eyJhIjoxfQ=="), &json!("{\"a\":1}"), &json!(false)));
    assert_eq!(house.get("/v1/dlq/nothing").await.0, 404);
    assert_eq!(house.get("/v1/dlq?status=opened").await.0, 422);
}

#[tokio::test]
async fn r14_replay_is_asked_for_once() {
    let house = with_letters();
    let (_, answer) = house.post("/v1/dlq/replay", json!({"filter": {"topology": "messages"}})).await;
    assert_eq!((&answer["marked"], answer["skipped"].as_array().unwrap().len()), (&json!(5), 1));
    assert!(answer["skipped"][0]["reason"].as_str().unwrap().contains("refused at the door"));
    let (_, again) = house.post("/v1/dlq/replay", json!({"ids": ["step:messages:validate:QuikApp.messages:1:0", "x"]})).await;
    assert_eq!((&again["marked"], again["skipped"].as_array().unwrap().len()), (&json!(0), 2));
    let (_, resolved) = house.post("/v1/dlq/resolve", json!({"ids": ["door:loop/back:9"]})).await;
    assert_eq!(resolved["marked"], 1);
    for body in [json!({}), json!({"ids": [], "filter": {}}), json!({"filter": {"caus": "x"}}), json!([])] {
        assert_eq!(house.post("/v1/dlq/replay", body).await.0, 422);
    }
}

#[tokio::test]
async fn dead_letters_are_a_view_and_a_table() {
    let house = with_letters();
    let (_, answer) = house.get("/v1/views/dead_letters?where=cause%3D'decode'").await;
    assert_eq!(answer["rows"][0]["id"], "door:loop/back:9");
    let (_, answer) = house.sql("SELECT cause, count(*) AS n FROM dead_letters GROUP BY cause ORDER BY cause").await;
    assert_eq!(answer["rows"], json!([{"cause": "decode", "n": 1}, {"cause": "validation", "n": 5}]));
}

#[tokio::test]
async fn topics_are_described_and_read() {
    let house = with_topic();
    let (_, list) = house.get("/v1/topics").await;
    assert_eq!((&list["topics"][0]["records"], &list["topics"][0]["end"]), (&json!(12), &json!([4, 4, 4])));
    let (_, one) = house.get("/v1/topics/QuikApp.messages").await;
    assert_eq!((&one["generation"], &one["columns"][9]["name"]), (&json!(3), &json!("channelId")));
    let (status, unknown) = house.get("/v1/topics/QuikApp.mesages").await;
    assert_eq!(status, 404);
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `QuikApp.messages`?"));

    let (mut next, mut keys) = ("0".to_owned(), Vec::new());
    for _ in 0..4 {
        let (_, answer) = house.get(&format!("/v1/topics/QuikApp.messages/records?max=5&from={next}")).await;
        keys.extend(answer["records"].as_array().unwrap().iter().map(|r| r["_key"].as_str().unwrap().to_owned()));
        next = answer["next"].as_str().unwrap().to_owned();
    }
    assert_eq!(keys, (0..12).map(|i| format!("c{i}")).collect::<Vec<_>>());
    let (_, part) = house.get("/v1/topics/QuikApp.messages/records?partition=1&from=2").await;
    let offsets: Vec<&Value> = part["records"].as_array().unwrap().iter().map(|r| &r["_offset"]).collect();
    assert_eq!((offsets, &part["next"]), (vec![&json!(2), &json!(3)], &json!("4")));
    assert_eq!(house.get("/v1/topics/QuikApp.messages/records?partition=3").await.0, 422);
    assert_eq!(house.get("/v1/topics/QuikApp.messages/records?from=x").await.0, 422);
}

#[tokio::test]
async fn topics_are_tables_under_their_own_name() {
    let house = with_topic();
    let sql = "SELECT _partition, count(*) AS n, max(channelId) AS c FROM topic.\"QuikApp.messages\" \
               WHERE _type = 'MESSAGE_SENT' AND _event_time >= '2026-01-01T12:00:00.000002Z' GROUP BY 1 ORDER BY 1 LIMIT 1";
    let (status, answer) = house.sql(sql).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rows"], json!([{"_partition": 0, "n": 2, "c": "c3"}]));
    let (_, answer) = house.sql("SELECT count(*) AS n FROM topic.\"QuikApp.messages\"").await;
    assert_eq!(answer["rows"], json!([{"n": 12}]));
}

#[tokio::test]
async fn lag_and_topologies_and_health() {
    let house = with_topic();
    let (_, lag) = house.get("/v1/lag").await;
    assert_eq!((&lag["lag"], &lag["settled"], &lag["groups"][0]["group"]), (&json!(11), &json!(false), &json!("sink:messages")));
    let (_, view) = house.get("/v1/views/lag").await;
    assert_eq!(view["rows"].as_array().unwrap().len(), 3);
    assert_eq!(house.get("/v1/topologies").await.1["topologies"][0]["name"], "channel-activity");
    assert_eq!(house.get("/health/ready").await.1["status"], "ready");
    let (_, reset) = house.post("/v1/topologies/channel-activity/reset", json!({"from": "latest"})).await;
    assert_eq!(reset, json!({"topology": "channel-activity", "from": "latest"}));
    assert_eq!(house.post("/v1/topologies/channel-activty/reset", json!({})).await.0, 404);
    assert_eq!(house.post("/v1/topologies/channel-activity/reset", json!({"from": "noon"})).await.0, 422);
}

#[tokio::test]
async fn every_path_is_described_with_an_example_and_answers() {
    let house = with_topic();
    let (_, document) = house.get("/openapi.json").await;
    for endpoint in crate::openapi::PATHS {
        let operation = &document["paths"][endpoint.path][endpoint.method];
        let content = &operation["responses"]["200"]["content"][endpoint.media[0]];
        assert!(content["example"] != Value::Null && content["example"] != json!({}), "{}", endpoint.path);
        if endpoint.media[0] == "application/json" {
            assert!(serde_json::from_str::<Value>(endpoint.answer).is_ok(), "{}", endpoint.path);
        }
        let path = endpoint.path.replace("{view}", "lag").replace("{topic}", "QuikApp.messages").replace("{id}", "x");
        let path = path.replace("{name}", "channel-activity");
        let body = Body::from(endpoint.body.unwrap_or_default());
        let request = Request::builder().method(endpoint.method.to_uppercase().as_str()).uri(&path).body(body).unwrap();
        let (status, headers, bytes) = house.send(request).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(status != 405 && status.as_u16() < 500, "{path}: {status} {text}");
        assert!(!text.contains("nothing at this path"), "{path} is not routed");
        assert!(status.is_success() || headers["content-type"] == "application/problem+json", "{path}: {text}");
    }
    let (status, problem) = house.get("/nowhere").await;
    assert_eq!((status.as_u16(), &problem["status"]), (404, &json!(404)));
    assert_eq!(house.post("/v1/views", json!({})).await.0, 405);
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let house = House::usual();
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let (status, _, page) = house.send(get("/docs/")).await;
    assert_eq!(status, 200);
    let page = String::from_utf8(page).unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    let (status, _, script) = house.send(get("/docs/swagger-ui-bundle.js")).await;
    assert!(status == 200 && script.len() > 100_000);
    let (_, _, config) = house.send(get("/docs/swagger-initializer.js")).await;
    assert!(String::from_utf8(config).unwrap().contains("/openapi.json"));
}
