//! Messages, search, users, notifications, audit, analytics.

use super::house::{House, MemoryStores, channel_activity};
use crate::state::{Freshness, QueryLimits};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

fn house() -> House {
    let message = |channel: &str, n: usize| {
        let sent_at = format!("2026-01-01T12:00:{n:02}Z");
        let (id, content) = (format!("{channel}/m{n}"), format!("hello number {n}"));
        let message =
            json!({"_id": id, "channelId": channel, "messageId": format!("m{n}"), "content": content, "sent_at": sent_at});
        ("messages".to_owned(), message)
    };
    let mut documents: Vec<(String, Value)> = (0..5).map(|n| message("c1", n)).collect();
    documents.push(message("c2", 4));
    documents.push(("users".into(), json!({"_id": "u1", "userId": "u1", "displayName": "Ann"})));
    documents.push(("notifications".into(), json!({"_id": "u1/n1", "user": "u1", "kind": "mention"})));
    documents.push(("audit_log".into(), json!({"_id": "0/1", "userId": "u1"})));
    let mut compliance = channel_activity(3, 2);
    compliance.0.name = "compliance".into();
    let mut audit = channel_activity(3, 2);
    audit.0.name = "audit_log".into();
    let stores = MemoryStores { tables: vec![channel_activity(3, 2), compliance, audit], documents };
    House::new(stores, Freshness::default(), QueryLimits::default())
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["items"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().filter_map(|m| m["messageId"].as_str()).collect()
}

#[tokio::test]
async fn a_channels_messages_come_newest_first_in_pages() {
    let house = house();
    let (_, first) = house.get("/api/v1/channels/c1/messages?limit=2").await;
    assert_eq!(ids(&first), ["m4", "m3"]);
    let (_, second) =
        house.get(&format!("/api/v1/channels/c1/messages?limit=2&before={}", first["cursor"].as_str().unwrap())).await;
    assert_eq!(ids(&second), ["m2", "m1"]);
    let (_, by_id) = house.get("/api/v1/channels/c1/messages?before=m2").await;
    assert_eq!(ids(&by_id), ["m1", "m0"]);
    let (_, by_time) = house.get("/api/v1/channels/c1/messages?before=2026-01-01T12:00:01Z").await;
    assert_eq!(ids(&by_time), ["m0"]);
    assert_eq!(house.get("/api/v1/channels/c1/messages?before=nothing").await.0, 422);
    assert_eq!(house.get("/api/v1/channels/c1/messages?limit=201").await.0, 422);
}

#[tokio::test]
async fn one_message_is_found_and_two_of_an_id_are_told_apart() {
    let house = house();
    assert_eq!(house.get("/api/v1/messages/m1").await.1["channelId"], "c1");
    assert_eq!(house.get("/api/v1/messages/m4").await.0, 409);
    assert_eq!(house.get("/api/v1/messages/m4?channelId=c2").await.1["channelId"], "c2");
    assert_eq!(house.get("/api/v1/messages/none").await.0, 404);
}

#[tokio::test]
async fn search_filters_and_is_bounded() {
    let house = house();
    let (_, found) = house.get("/api/v1/search?q=number+4&channelId=c2").await;
    assert_eq!(ids(&found), ["m4"]);
    for bad in ["q=", "", "q=x&type=users", "q=x&limit=1000", "q=x&chanelId=c1"] {
        assert_eq!(house.get(&format!("/api/v1/search?{bad}")).await.0, 422, "{bad}");
    }
    let long = "x".repeat(501);
    assert_eq!(house.get(&format!("/api/v1/search?q={long}")).await.0, 422);
}

#[tokio::test]
async fn users_notifications_and_badges() {
    let house = house();
    assert_eq!(house.get("/api/v1/users/u1").await.1["displayName"], "Ann");
    assert_eq!(house.get("/api/v1/users/u2").await.0, 404);
    assert_eq!(house.get("/api/v1/users/u1/badge").await.1, json!({"userId": "u1", "unread": 1}));
    let (_, list) = house.get("/api/v1/notifications?userId=u1").await;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["unread"]), (1, &json!(1)));
    assert_eq!(house.get("/api/v1/notifications").await.0, 422);
    let read =
        |user: &str| Request::put(format!("/api/v1/notifications/u1%2Fn1/read?userId={user}")).body(Body::empty()).unwrap();
    assert_eq!(house.send(read("u1")).await.0, 200);
    assert_eq!(house.send(read("u2")).await.0, 404);
}

#[tokio::test]
async fn audit_is_listed_looked_up_and_searched() {
    let house = house();
    assert_eq!(house.get("/api/v1/audit/logs").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(house.get("/api/v1/audit/logs/0%2F1").await.1["userId"], "u1");
    assert_eq!(house.get("/api/v1/audit/logs/9%2F9").await.0, 404);
    let (status, found) = house.get("/api/v1/audit/logs/search?q=C1&limit=2").await;
    assert_eq!(status, 200, "{found}");
    assert_eq!(found["items"].as_array().unwrap().len(), 2);
    assert_eq!(found["items"][0]["window_start"], "2026-01-01T12:02:00Z");
    assert_eq!(house.get("/api/v1/audit/logs/search").await.0, 422);
}

#[tokio::test]
async fn the_dashboard_shows_what_there_is_and_names_what_there_is_not() {
    let house = house();
    let (status, answer) = house.get("/api/v1/analytics/dashboard?limit=1&include_open=true").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["views"]["channel_activity"]["rows"][0]["messages"], 21);
    assert!(answer["unavailable"].as_array().unwrap().contains(&json!("calls")));
    assert_eq!(house.get("/api/v1/analytics/metrics").await.0, 404);
}
