//! Reads of embedded stores reach the process that has them, whichever process is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use serde_json::Value;
use std::path::Path;
use support::{Server, Start, both, client, free_ports};

/// A token of the system's.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Every part, over made-up traffic of all event types.
async fn owner(start: &Start, data: &Path) -> Server {
    let server = start.run(data);
    let events = support::command(&["generate", "--events", "4000", "--seed", "11"]).output().unwrap();
    let (status, answer) = server.post("/v1/events", "application/x-ndjson", events.stdout).await;
    assert!(status < 300, "{status} {answer}");
    server.settle();
    server
}

/// A process that answers questions and has nothing itself.
fn reader(owner: &str) -> Start {
    let env = vec![("QUIKFLOW_EMBEDDED_STORES_URL".to_owned(), owner.to_owned())];
    Start { env, args: vec!["query".to_owned()], ..Start::default() }
}

async fn put(server: &Server, path: &str) -> (u16, Value) {
    let answer = client().put(format!("{}{path}", server.query)).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_is_answered_as_by_the_process_that_has_the_stores() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(&Start::default(), &dir.path().join("owner")).await;
    let reader = reader(&owner.query).run(&dir.path().join("reader"));
    assert!(!dir.path().join("reader/stores").exists(), "the reader made stores of its own");

    let views = owner.get("/v1/views").await;
    // What a process knows of itself is not a store's.
    let own = ["lag", "dead_letters"];
    let names = views["views"].as_array().unwrap().iter().map(|view| view["name"].as_str().unwrap());
    let mut rows = 0;
    for name in names.filter(|name| !own.contains(name)) {
        let path = format!("/v1/views/{name}?include_open=true");
        let (mine, theirs) = (owner.get_as(&path, "text/csv").await, reader.get_as(&path, "text/csv").await);
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&mine), sorted(&theirs), "{name}");
        rows += mine.lines().count() - 1;
        let page = format!("/v1/views/{name}?include_open=true&limit=7");
        let (mine, theirs) = (owner.get(&page).await, reader.get(&page).await);
        for part in ["rows", "cursor", "columns", "as_of"] {
            assert_eq!(mine[part], theirs[part], "{name}: {part}");
        }
    }
    assert!(rows > 4_000, "only {rows} rows were compared");

    let sql =
        "select n.user, count(*) as n from notifications n join badges b on b.user = n.user group by n.user order by n.user";
    let mine = owner.sql(sql).await;
    assert!(mine.len() > 10, "{mine:?}");
    assert_eq!(mine, reader.sql(sql).await);

    let one = owner.get("/v1/views/messages?limit=1").await;
    let (channel, message) = (one["rows"][0]["channelId"].as_str().unwrap(), one["rows"][0]["messageId"].as_str().unwrap());
    let word = one["rows"][0]["content"].as_str().unwrap().split_whitespace().max_by_key(|word| word.len()).unwrap();
    let entry = owner.get("/api/v1/audit/logs?limit=3").await;
    let entry_id = entry["items"][0]["_id"].as_str().unwrap().replace('/', "%2F");
    for path in [
        format!("/api/v1/channels/{channel}/messages?limit=5"),
        format!("/api/v1/messages/{message}"),
        format!("/api/v1/search?q={word}&limit=5"),
        "/api/v1/audit/logs?limit=3".to_owned(),
        format!("/api/v1/audit/logs?limit=3&cursor={}", entry["cursor"].as_str().unwrap()),
        format!("/api/v1/audit/logs/{entry_id}"),
        "/api/v1/audit/logs/search?q=login".to_owned(),
    ] {
        assert_eq!(owner.get(&path).await, reader.get(&path).await, "{path}");
    }
    let nobody = client().get(format!("{}/api/v1/messages/no-such", reader.query)).send().await.unwrap();
    assert_eq!(nobody.status().as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_marked_at_one_process_is_marked_at_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(&Start::default(), &dir.path().join("owner")).await;
    let reader = reader(&owner.query).run(&dir.path().join("reader"));
    let some = owner.get("/v1/views/notifications?limit=1").await;
    let user = some["rows"][0]["user"].as_str().unwrap();
    let path = format!("/api/v1/notifications?userId={user}");
    let before = reader.get(&path).await;
    assert_eq!(before, owner.get(&path).await);
    let unread = before["unread"].as_u64().unwrap();
    let id = before["items"][0]["_id"].as_str().unwrap().replace('/', "%2F");
    let mark = format!("/api/v1/notifications/{id}/read?userId={user}");
    for _ in 0..2 {
        let (status, answer) = put(&reader, &mark).await;
        assert_eq!((status, answer["unread"].as_u64()), (200, Some(unread - 1)), "{answer}");
    }
    for server in [&owner, &reader] {
        let after = server.get(&path).await;
        assert_eq!((after["unread"].as_u64(), &after["items"][0]["read"]), (Some(unread - 1), &Value::Bool(true)));
    }
    let (status, _) = put(&reader, &format!("/api/v1/notifications/no-such/read?userId={user}")).await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_stores_that_is_away_is_said_and_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let start = Start { ports: Some(free_ports()), ..Start::default() };
    let first = owner(&start, &at("owner")).await;
    let reader = reader(&first.query).run(&at("reader"));
    let path = "/v1/views/audit_log?limit=1";
    let before = reader.get(path).await;
    first.kill();
    let answer = client().get(format!("{}{path}", reader.query)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
    let said = answer.text().await.unwrap();
    assert!(said.contains("store_unavailable"), "{said}");
    let again = start.run(&at("owner"));
    assert_eq!(reader.get(path).await["rows"], before["rows"]);

    // A reader whose owner is away at its start waits for nobody.
    again.kill();
    let patient = self::reader(&format!("http://127.0.0.1:{}", start.ports.unwrap().1)).run(&at("patient"));
    let again = start.run(&at("owner"));
    assert_eq!(patient.get(path).await["rows"], before["rows"]);
    assert!(again.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_owner_is_refused_at_the_start_with_the_setting_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let with_token = Start { env: vec![("QUIKFLOW_TOKEN".to_owned(), TOKEN.to_owned())], ..Start::default() };
    let owner = with_token.run(&dir.path().join("owner"));
    let run = |url: &str, token: Option<&str>, parts: &[&str]| {
        let mut command = support::command(&["run"]);
        command.args(parts).arg("--data").arg(dir.path().join("other")).arg("--topologies").arg(support::shipped());
        command.args(["--ingest-addr", "127.0.0.1:0", "--query-addr", "127.0.0.1:0"]);
        command.env("QUIKFLOW_EMBEDDED_STORES_URL", url).env_remove("QUIKFLOW_TOKEN");
        if let Some(token) = token {
            command.env("QUIKFLOW_TOKEN", token);
        }
        let output = command.output().unwrap();
        (output.status.code(), both(&output))
    };
    let refused = |url: &str, token: Option<&str>, parts: &[&str], words: &str| {
        let (code, said) = run(url, token, parts);
        assert!(code == Some(2) && said.contains(words) && !said.contains(TOKEN), "{words}: {code:?}\n{said}");
    };
    refused(&owner.query, None, &["query"], "QUIKFLOW_TOKEN");
    refused(&owner.query, Some("a-token-of-somebody-else"), &["query"], "QUIKFLOW_TOKEN");
    refused(&owner.ingest, Some(TOKEN), &["query"], "QUIKFLOW_EMBEDDED_STORES_URL");
    refused("localhost:port", Some(TOKEN), &["query"], "QUIKFLOW_EMBEDDED_STORES_URL");
    refused(&owner.query, Some(TOKEN), &["query", "sinks"], "QUIKFLOW_LOCAL_SINKS=off");

    // A reader is no owner: two that name each other would ask for ever.
    let mut start = reader(&owner.query);
    start.env.extend(with_token.env.clone());
    let reader = start.run(&dir.path().join("reader"));
    refused(&reader.query, Some(TOKEN), &["query"], "no embedded stores of its own");
}
