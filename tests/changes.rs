//! What changes in views, told as server-sent events to whoever follows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{Server, client};

/// An answer that goes on, read event by event.
struct Events {
    answer: reqwest::Response,
    text: String,
}

impl Events {
    async fn of(server: &Server, path: &str) -> Events {
        let answer = client().get(format!("{}{path}", server.query)).send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{path}: {status}");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Events { answer, text: String::new() }
    }

    /// The next event: name and data; none at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let found = field("event").map(|name| (name.to_owned(), field("data").unwrap().parse().unwrap()));
                self.text = rest.to_owned();
                match found {
                    Some(found) => return Some(found),
                    None => continue,
                }
            }
            let piece = tokio::time::timeout(Duration::from_secs(30), self.answer.chunk()).await.expect("nothing was told");
            self.text.push_str(std::str::from_utf8(&piece.unwrap()?).unwrap());
        }
    }

    async fn starts(&mut self) {
        assert_eq!(self.next().await, Some(("reset".to_owned(), json!({}))));
    }

    /// Waits for a change of a key; others may come before.
    async fn until(&mut self, key: &str) {
        loop {
            let (name, data) = self.next().await.expect("the end came first");
            let keys = data["keys"].as_array().unwrap_or_else(|| panic!("{name}: {data}"));
            if keys.iter().any(|told| told == key) {
                return;
            }
        }
    }
}

async fn post(server: &Server, events: &[Value]) {
    let (status, answer) = server.post("/v1/events", "application/json", json!(events).to_string()).await;
    assert_eq!(status, 202, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn badges_and_presence_are_told_to_who_follows_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let mut presence = Events::of(&server, "/v1/views/presence/changes").await;
    let mut badge = Events::of(&server, "/v1/views/badges/changes?key=u2").await;
    presence.starts().await;
    badge.starts().await;
    let at = |second: u32| format!("2026-01-01T12:00:{second:02}Z");
    let online = |user: &str| json!({ "type": "USER_ONLINE", "timestamp": at(0), "payload": { "userId": user } });
    post(&server, &[online("u1")]).await;
    presence.until("u1").await;

    // Who is offline and mentioned is notified: the badge changes, and again when the notification is read.
    let message = |number: u32, whom: &str| {
        json!({ "type": "MESSAGE_SENT", "timestamp": at(number), "payload": { "messageId": format!("m{number}"),
            "channelId": "c", "userId": "u1", "content": "hello", "mentions": [whom] } })
    };
    post(&server, &[message(1, "u3"), message(2, "u2")]).await;
    badge.until("u2").await;
    server.settle();
    let inbox = server.get("/api/v1/notifications?userId=u2").await;
    assert_eq!(inbox["unread"], 1, "{inbox}");
    let id = inbox["items"][0]["_id"].as_str().unwrap().replace('/', "%2F");
    let read = client().put(format!("{}/api/v1/notifications/{id}/read?userId=u2", server.query)).send().await.unwrap();
    assert!(read.status().is_success(), "{}", read.status());
    badge.until("u2").await;

    for (path, status) in
        [("/v1/views/messages/changes", 422), ("/v1/views/no_such/changes", 404), ("/v1/views/badges/changes?user=u2", 422)]
    {
        let answer = client().get(format!("{}{path}", server.query)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }

    // Who follows does not hold the process up.
    let stopping = std::thread::spawn(move || server.stop());
    assert_eq!((badge.next().await, presence.next().await), (None, None));
    assert_eq!(stopping.join().unwrap().code(), Some(0));
}
