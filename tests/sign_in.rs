//! Signing in to a running process: accounts by the command line, sessions over its kill, what a user may
//! on both addresses, the audit log, a ban; and several processes over one MySQL and one Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use support::{Server, Start, both, client, harness};

crate::tests! {
    async a_user_signs_in_and_may_what_is_its_own,
    async a_session_outlives_the_process_and_a_ban_ends_it,
    async processes_share_accounts_and_sessions,
}

/// A token of the operator's.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const PASSWORD: &str = "correct horse battery";

fn guarded() -> Start {
    Start { env: vec![("QUIKFLOW_TOKEN".to_owned(), TOKEN.to_owned())], ..Start::default() }
}

/// `quikflow account …`, with a password on its standard input.
fn account(server: &Server, args: &[&str]) -> String {
    let mut command = support::command(&["account"]);
    command.args(args).args(["--url", &server.ingest]).env("QUIKFLOW_TOKEN", TOKEN);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that asks for no password may be gone already.
    drop(child.stdin.take().unwrap().write_all(format!("{PASSWORD}\n").as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", both(&output));
    assert!(!both(&output).contains(PASSWORD));
    both(&output)
}

async fn ask(method: &str, url: &str, bearer: &str, body: Value) -> (u16, Value) {
    let mut request = client().request(method.parse().unwrap(), url).bearer_auth(bearer);
    if !body.is_null() {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn login(server: &Server, user: &str) -> (u16, Value) {
    let body = json!({ "email": format!("{user}@example.org"), "password": PASSWORD });
    ask("POST", &format!("{}/api/auth/login", server.ingest), "", body).await
}

async fn signed_in(server: &Server, user: &str) -> (String, Value) {
    let (status, tokens) = login(server, user).await;
    assert_eq!(status, 200, "{tokens}");
    (tokens["accessToken"].as_str().unwrap().to_owned(), tokens)
}

async fn refresh(server: &Server, tokens: &Value) -> (u16, Value) {
    let body = json!({ "refreshToken": tokens["refreshToken"] });
    ask("POST", &format!("{}/api/auth/refresh", server.ingest), "", body).await
}

async fn post(server: &Server, event: Value) {
    let (status, answer) = ask("POST", &format!("{}/v1/events", server.ingest), TOKEN, event).await;
    assert_eq!(status, 202, "{answer}");
}

async fn read(server: &Server, path: &str, bearer: &str) -> (u16, Value) {
    ask("GET", &format!("{}{path}", server.query), bearer, Value::Null).await
}

fn settle(server: &Server) {
    let output =
        support::command(&["lag", "--wait", "--timeout", "120s", "--url", &server.query]).env("QUIKFLOW_TOKEN", TOKEN).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", both(&output));
}

fn created(user: &str) -> Value {
    let payload = json!({ "userId": user, "email": format!("{user}@example.org"), "displayName": user });
    json!({ "type": "USER_CREATED", "timestamp": "2026-01-01T12:00:00Z", "payload": payload })
}

async fn a_user_signs_in_and_may_what_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let server = guarded().run(&dir.path().join("data"));
    assert!(!dir.path().join("data/stores/accounts.sqlite").exists() && !dir.path().join("data/jwt-key.pem").exists());
    for user in ["ann", "bob"] {
        post(&server, created(user)).await;
        account(&server, &["set", user, "--email", &format!("{user}@example.org")]);
    }
    account(&server, &["set", "cid", "--email", "cid@example.org", "--role", "admin"]);
    settle(&server);
    let (ann, tokens) = signed_in(&server, "ann").await;
    assert_eq!((&tokens["expiresIn"], &tokens["user"]["email"]), (&json!(900), &json!("ann@example.org")));
    let (status, me) = read(&server, "/api/v1/users/me", &ann).await;
    assert_eq!((status, &me["displayName"]), (200, &json!("ann")));
    assert_eq!(read(&server, "/api/v1/users/me/badge", &ann).await, (200, json!({ "userId": "ann", "unread": 0 })));
    let (status, notifications) = read(&server, "/api/v1/notifications", &ann).await;
    assert_eq!((status, &notifications["unread"]), (200, &json!(0)));
    for path in ["/api/v1/users/bob", "/api/v1/notifications?userId=bob", "/v1/views/channel_activity", "/v1/topics", "/metrics"]
    {
        assert_eq!(read(&server, path, &ann).await.0, 403, "{path}");
    }
    let forged = ask("POST", &format!("{}/v1/events", server.ingest), &ann, created("eve")).await;
    assert_eq!(forged.0, 403, "{}", forged.1);
    assert_eq!(read(&server, "/api/v1/users/me", "").await.0, 401);
    assert_eq!(read(&server, "/api/v1/users/me", "a.b.c").await.0, 401);
    let (cid, _) = signed_in(&server, "cid").await;
    assert_eq!(read(&server, "/v1/views/channel_activity", &cid).await.0, 200);
    // Every attempt is in the audit log.
    let wrong = json!({ "email": "ann@example.org", "password": "wrong" });
    assert_eq!(ask("POST", &format!("{}/api/auth/login", server.ingest), "", wrong).await.0, 401);
    settle(&server);
    let (status, log) = read(&server, "/api/v1/audit/logs?limit=50", &cid).await;
    assert_eq!(status, 200, "{log}");
    let mut found: Vec<(String, String)> = Vec::new();
    for item in log["items"].as_array().unwrap() {
        found.push((item["event"].as_str().unwrap().to_owned(), item["user"].as_str().unwrap().to_owned()));
    }
    found.sort();
    let expected = [("LOGIN_FAILED", "ann"), ("LOGIN_SUCCESS", "ann"), ("LOGIN_SUCCESS", "cid")];
    assert_eq!(found, expected.map(|(event, user)| (event.to_owned(), user.to_owned())));
    assert!(!log.to_string().contains("horse"), "a password is in the audit log");
    // Its sessions, and the end of them.
    let listed = account(&server, &["sessions", "ann"]);
    assert!(listed.contains("127.0.0.1"), "{listed}");
    assert_eq!(account(&server, &["sign-out", "ann"]).trim(), "1 sessions of ann have ended");
    assert_eq!(read(&server, "/api/v1/users/me", &ann).await.0, 401);
    account(&server, &["remove", "ann"]);
    assert_eq!(login(&server, "ann").await.0, 401);
    let log = std::fs::read_to_string(server.data.with_extension("log")).unwrap();
    assert!(!log.contains(PASSWORD) && !log.contains(&ann), "a secret is in the log");
}

async fn a_session_outlives_the_process_and_a_ban_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = guarded().run(&data);
    post(&server, created("ann")).await;
    account(&server, &["set", "ann", "--email", "ann@example.org"]);
    let (access, tokens) = signed_in(&server, "ann").await;
    server.kill();
    let server = guarded().run(&data);
    settle(&server);
    assert_eq!(read(&server, "/api/v1/users/me", &access).await.0, 200);
    let (status, tokens) = refresh(&server, &tokens).await;
    assert_eq!(status, 200);
    let banned = json!({ "userId": "ann", "bannedBy": "root", "reason": "spam" });
    post(&server, json!({ "type": "USER_BANNED", "timestamp": "2026-01-01T12:00:01Z", "payload": banned })).await;
    settle(&server);
    // What was just seen is taken for granted for some seconds.
    let access = tokens["accessToken"].as_str().unwrap();
    assert!(until(|| async { read(&server, "/api/v1/users/me", access).await.0 == 401 }).await, "a banned user goes on");
    assert_eq!((refresh(&server, &tokens).await.0, login(&server, "ann").await.0), (401, 401));
}

/// Whether it is so within some seconds.
async fn until<F: Future<Output = bool>>(mut it: impl FnMut() -> F) -> bool {
    for _ in 0..60 {
        if it().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

/// A process of the door over real stores, with a log of its own.
fn door(data: &Path, env: &[(String, String)]) -> Server {
    Start { env: env.to_vec(), args: vec!["ingest".to_owned()], ..Start::default() }.run(data)
}

async fn processes_share_accounts_and_sessions() {
    if !cfg!(all(feature = "mysql", feature = "redis")) {
        harness::skip("built without the features mysql and redis");
    }
    let (mysql, redis) = (harness::server("QUIKFLOW_TEST_MYSQL"), harness::server("QUIKFLOW_TEST_REDIS"));
    let dir = tempfile::tempdir().unwrap();
    let space: String = dir.path().file_name().unwrap().to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
    let space = format!("quikflow_test_{}", space.to_lowercase());
    let host = |url: &str| url.split_once("://").unwrap().1.split('/').next().unwrap().to_owned();
    // One that made a key gives it to the others.
    let maker = guarded().run(&dir.path().join("maker"));
    account(&maker, &["set", "ann", "--email", "ann@example.org"]);
    signed_in(&maker, "ann").await;
    maker.kill();
    let env = [
        ("QUIKFLOW_TOKEN", TOKEN.to_owned()),
        ("QUIKFLOW_MYSQL_URL", format!("mysql://{}/{space}", host(&mysql))),
        ("QUIKFLOW_REDIS_URL", format!("redis://{}/0?prefix={space}", host(&redis))),
        ("QUIKFLOW_JWT_KEY_FILE", dir.path().join("maker/jwt-key.pem").display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let (one, other) = (door(&dir.path().join("one"), &env), door(&dir.path().join("other"), &env));
    account(&one, &["set", "ann", "--email", "ann@example.org"]);
    let (access, tokens) = signed_in(&one, "ann").await;
    let sessions = |server: &Server| format!("{}/api/v1/users/me/sessions", server.ingest);
    assert_eq!(ask("GET", &sessions(&other), &access, Value::Null).await.0, 200);
    // The answer of one refresh was lost; the retry goes to the other process.
    let (status, _lost) = refresh(&one, &tokens).await;
    assert_eq!(status, 200);
    let (status, tokens) = refresh(&other, &tokens).await;
    assert_eq!(status, 200, "{tokens}");
    let access = tokens["accessToken"].as_str().unwrap();
    assert_eq!(ask("GET", &sessions(&one), access, Value::Null).await.0, 200);
    one.kill();
    let one = door(&dir.path().join("one"), &env);
    assert_eq!(ask("GET", &sessions(&one), access, Value::Null).await.0, 200);
    let logout = ask("POST", &format!("{}/api/auth/logout", other.ingest), access, json!({})).await;
    assert_eq!(logout.0, 204);
    let out = until(|| async { ask("GET", &sessions(&one), access, Value::Null).await.0 == 401 }).await;
    assert!(out, "signed out at the other process, and let in here");
    assert_eq!(refresh(&one, &tokens).await.0, 401);
    // A process with a key of its own does not know the system's tokens.
    let (access, _) = signed_in(&one, "ann").await;
    let stranger = door(&dir.path().join("stranger"), env.split_last().unwrap().1);
    assert_eq!(ask("GET", &sessions(&stranger), &access, Value::Null).await.0, 401);
    assert_eq!(ask("GET", &sessions(&other), &access, Value::Null).await.0, 200);
}
