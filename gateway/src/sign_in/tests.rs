//! Sign-in over stores in memory: the flow of tokens, and what the routes answer.

use super::accounts::{Granted, Workspace};
use super::*;
use crate::guard::guard;
use crate::{Auth, Problem};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use parking_lot::Mutex;
use quikflow_topics::clock::ManualClock;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tower::ServiceExt;

const TOKEN: &str = "0123456789abcdef";

#[derive(Default)]
struct Memory {
    accounts: Mutex<BTreeMap<String, Account>>,
    sessions: Mutex<BTreeMap<String, (Session, String, EventTime)>>,
    workspaces: Mutex<BTreeMap<String, (Workspace, BTreeMap<String, Role>)>>,
    barred: Mutex<BTreeSet<String>>,
    away: Mutex<bool>,
    /// The account is another one as soon as a session begins.
    changes: Mutex<bool>,
}

#[async_trait::async_trait]
impl Standing for Memory {
    async fn barred(&self, user: &str) -> Result<Option<&'static str>, Away> {
        Ok(self.barred.lock().contains(user).then_some("banned"))
    }
}

#[async_trait::async_trait]
impl Accounts for Memory {
    async fn account(&self, user: &str) -> Result<Option<Account>, Away> {
        Ok(self.accounts.lock().get(user).cloned())
    }
    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Away> {
        Ok(self.accounts.lock().values().find(|account| account.email == email).cloned())
    }
    async fn put_account(&self, account: &Account) -> Result<bool, Away> {
        let mut accounts = self.accounts.lock();
        let taken = accounts.values().any(|other| other.email == account.email && other.user != account.user);
        if !taken {
            accounts.insert(account.user.clone(), account.clone());
        }
        Ok(!taken)
    }
    async fn remove_account(&self, user: &str) -> Result<bool, Away> {
        Ok(self.accounts.lock().remove(user).is_some())
    }
    async fn create_workspace(&self, workspace: &Workspace) -> Result<bool, Away> {
        let members = BTreeMap::from([(workspace.created_by.clone(), Role::Admin)]);
        Ok(self.workspaces.lock().insert(workspace.id.clone(), (workspace.clone(), members)).is_none())
    }
    async fn workspaces(&self, user: &str) -> Result<Vec<(Workspace, Role)>, Away> {
        let all = self.workspaces.lock();
        Ok(all.values().filter_map(|(workspace, members)| Some((workspace.clone(), *members.get(user)?))).collect())
    }
    async fn members(&self, workspace: &str) -> Result<Vec<(String, Role)>, Away> {
        Ok(self.workspaces.lock().get(workspace).map_or_else(Vec::new, |(_, members)| members.clone().into_iter().collect()))
    }
    async fn role(&self, workspace: &str, user: &str) -> Result<Option<Role>, Away> {
        Ok(self.workspaces.lock().get(workspace).and_then(|(_, members)| members.get(user).copied()))
    }
    async fn grant(&self, workspace: &str, user: &str, role: Option<Role>) -> Result<Granted, Away> {
        let mut all = self.workspaces.lock();
        let Some((_, members)) = all.get_mut(workspace) else { return Ok(Granted::Missing) };
        let done = match role {
            Some(role) => {
                members.insert(user.to_owned(), role);
                true
            }
            None => members.remove(user).is_some(),
        };
        Ok(if done { Granted::Done } else { Granted::Missing })
    }
}

#[async_trait::async_trait]
impl Sessions for Memory {
    async fn open(&self, session: &Session) -> Result<(), Away> {
        if *self.changes.lock() {
            self.accounts.lock().get_mut(&session.user).unwrap().role = Role::Guest;
        }
        self.sessions.lock().insert(session.id.clone(), (session.clone(), String::new(), EventTime::MIN));
        Ok(())
    }
    async fn session(&self, id: &str, now: EventTime) -> Result<Option<Session>, Away> {
        if *self.away.lock() {
            return Err(Away::Unavailable("sessions are away".into()));
        }
        Ok(self.sessions.lock().get(id).map(|(session, ..)| session.clone()).filter(|session| session.expires > now))
    }
    async fn sessions(&self, user: &str, now: EventTime) -> Result<Vec<Session>, Away> {
        let all = self.sessions.lock();
        Ok(all.values().map(|(session, ..)| session.clone()).filter(|s| s.user == user && s.expires > now).collect())
    }
    async fn turn(&self, turn: &Turn) -> Result<Turned, Away> {
        let mut all = self.sessions.lock();
        let Some((session, before, at)) = all.get_mut(&turn.session) else { return Ok(Turned::Gone) };
        let just_now = *before == turn.from && turn.now.0 - at.0 < turn.grace.as_micros() as i64;
        if session.token != turn.from && !just_now {
            all.remove(&turn.session);
            return Ok(Turned::Stolen);
        }
        *before = std::mem::replace(&mut session.token, turn.to.clone());
        (*at, session.expires) = (turn.now, turn.expires);
        Ok(Turned::Done)
    }
    async fn end(&self, id: &str) -> Result<bool, Away> {
        Ok(self.sessions.lock().remove(id).is_some())
    }
    async fn end_all(&self, user: &str) -> Result<u64, Away> {
        let mut all = self.sessions.lock();
        let before = all.len();
        all.retain(|_, (session, ..)| session.user != user);
        Ok((before - all.len()) as u64)
    }
}

struct House {
    memory: Arc<Memory>,
    clock: Arc<ManualClock>,
    published: Arc<Mutex<Vec<Value>>>,
    /// The audit log takes nothing.
    deaf: Arc<Mutex<bool>>,
    router: Router,
    _dir: tempfile::TempDir,
}

fn house() -> House {
    let dir = tempfile::tempdir().unwrap();
    let (memory, clock) = (Arc::new(Memory::default()), ManualClock::at(EventTime(1_800_000_000_000_000)));
    let keys = Arc::new(Keys::own(dir.path().join("key.pem")));
    let sign_in = Arc::new(SignIn::new(memory.clone(), memory.clone(), memory.clone(), keys, clock.clone()));
    let published: Arc<Mutex<Vec<Value>>> = Arc::default();
    let deaf: Arc<Mutex<bool>> = Arc::default();
    let (log, shut) = (published.clone(), deaf.clone());
    let publish: routes::Publish = Arc::new(move |event| {
        let answer = if *shut.lock() {
            Err(Problem::new(503, "not_now", "not now"))
        } else {
            log.lock().push(serde_json::from_str(&event).unwrap());
            Ok(())
        };
        Box::pin(async move { answer })
    });
    let auth = Auth::with_token(TOKEN, "QUIKFLOW_TOKEN").unwrap().with_sign_in(sign_in.clone());
    let own = Router::new().route("/api/v1/users/{id}", axum::routing::get(|| async { "own" }));
    let router = guard(routes::routes(sign_in, publish).merge(own), Arc::new(auth));
    House { memory, clock, published, deaf, router, _dir: dir }
}

impl House {
    async fn ask(&self, method: &str, path: &str, bearer: &str, body: Value) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path).header("user-agent", "test");
        if !bearer.is_empty() {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn account(&self, user: &str, role: &str) {
        let body = json!({ "email": format!("{user}@x.org"), "password": "correct horse", "role": role });
        assert_eq!(self.ask("PUT", &format!("/api/v1/users/{user}/account"), TOKEN, body).await.0, 200);
    }

    async fn login(&self, email: &str, password: &str) -> (u16, Value) {
        self.ask("POST", "/api/auth/login", "", json!({ "email": email, "password": password })).await
    }

    async fn refresh(&self, token: &Value) -> (u16, Value) {
        self.ask("POST", "/api/auth/refresh", "", json!({ "refreshToken": token })).await
    }

    async fn signed_in(&self, user: &str) -> Value {
        let (status, tokens) = self.login(&format!("{user}@x.org"), "correct horse").await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }

    async fn me(&self, tokens: &Value) -> u16 {
        self.ask("GET", "/api/v1/users/me", tokens["accessToken"].as_str().unwrap(), Value::Null).await.0
    }
}

#[tokio::test]
async fn a_password_opens_a_session_and_each_attempt_is_in_the_audit_log() {
    let house = house();
    house.account("ann", "user").await;
    let tokens = house.signed_in("ann").await;
    assert_eq!(
        (&tokens["expiresIn"], &tokens["user"]["id"], &tokens["user"]["role"]),
        (&json!(900), &json!("ann"), &json!("user"))
    );
    assert_eq!(house.login(" ANN@x.org", "correct horse").await.0, 200);
    let (wrong, nobody) = (house.login("ann@x.org", "wrong horse").await, house.login("eve@x.org", "correct horse").await);
    assert_eq!((wrong.0, &wrong.1), (401, &nobody.1), "who has an account can be told");
    assert_eq!(house.me(&tokens).await, 200);
    house.memory.barred.lock().insert("ann".into());
    assert_eq!(house.login("ann@x.org", "correct horse").await.0, 401);
    let said = |event: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["payload"]["userId"]), text(&event["payload"]["reason"]))
    };
    let log: Vec<_> = house.published.lock().iter().map(said).collect();
    let own = |kind: &str, user: &str, why: &str| (kind.to_owned(), user.to_owned(), why.to_owned());
    let (good, bad) = (own("LOGIN_SUCCESS", "ann", ""), |user, why| own("LOGIN_FAILED", user, why));
    let expected = [good.clone(), good, bad("ann", "wrong password"), bad("unknown", "no such account"), bad("ann", "banned")];
    assert_eq!(log, expected);
    let everything = format!("{:?}", house.published.lock());
    assert!(!everything.contains("horse"), "a password is in the audit log");
    // What cannot be audited does not succeed, and leaves no session.
    house.memory.barred.lock().clear();
    *house.deaf.lock() = true;
    let before = house.memory.sessions.lock().len();
    assert_eq!(house.login("ann@x.org", "correct horse").await.0, 503);
    assert_eq!(house.memory.sessions.lock().len(), before);
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_a_copy_of_it_ends_the_session() {
    let house = house();
    house.account("ann", "user").await;
    let first = house.signed_in("ann").await;
    let (status, second) = house.refresh(&first["refreshToken"]).await;
    assert_eq!(status, 200);
    // An answer that was lost: the token before is good for a little while.
    house.clock.advance(GRACE - Duration::from_millis(1));
    let (status, third) = house.refresh(&first["refreshToken"]).await;
    assert_eq!(status, 200);
    house.clock.advance(GRACE + Duration::from_secs(1));
    assert_eq!(house.me(&third).await, 200);
    assert_eq!(house.refresh(&second["refreshToken"]).await.0, 401);
    assert_eq!(house.refresh(&third["refreshToken"]).await.0, 401, "the copy's owner goes on");
    assert_eq!(house.me(&third).await, 401, "the access token goes on");
    let last = house.published.lock().last().cloned().unwrap();
    assert_eq!((&last["type"], &last["payload"]["severity"]), (&json!("LOGIN_FAILED"), &json!("HIGH")));
    for junk in ["", ".", "x.y", "no dot"] {
        assert_eq!(house.refresh(&json!(junk)).await.0, 401, "{junk}");
    }
    // A session's id is no secret: it stands in access tokens, and ends nothing.
    let tokens = house.signed_in("ann").await;
    let id = house.memory.sessions.lock().keys().next().cloned().unwrap();
    for guess in [format!("{id}.x"), format!("{id}.{}", tokens["refreshToken"].as_str().unwrap().split('.').nth(1).unwrap())] {
        assert_eq!(house.refresh(&json!(guess)).await.0, 401);
    }
    assert_eq!(house.me(&tokens).await, 200);
    // Who signs out by a token that was exchanged before ends its session all the same, and it is told.
    assert_eq!(house.refresh(&tokens["refreshToken"]).await.0, 200);
    let out = house.ask("POST", "/api/auth/logout", "", json!({ "refreshToken": tokens["refreshToken"], "all": true })).await;
    let left = house.memory.sessions.lock().len();
    assert_eq!((out.0, left, house.me(&tokens).await), (204, 0, 401));
    assert_eq!(house.published.lock().last().unwrap()["payload"]["severity"], "HIGH");
    // A session that nobody refreshes is over after a week.
    let tokens = house.signed_in("ann").await;
    house.clock.advance(REFRESH);
    assert_eq!((house.me(&tokens).await, house.refresh(&tokens["refreshToken"]).await.0), (401, 401));
}

#[tokio::test]
async fn access_ends_with_time_sign_out_a_new_password_and_the_account() {
    let house = house();
    house.account("ann", "user").await;
    let tokens = house.signed_in("ann").await;
    house.clock.advance(ACCESS);
    assert_eq!(house.me(&tokens).await, 401);
    let (_, tokens) = house.refresh(&tokens["refreshToken"]).await;
    let logout = |tokens: &Value, body| {
        let (bearer, house) = (tokens["accessToken"].as_str().unwrap().to_owned(), &house);
        async move { house.ask("POST", "/api/auth/logout", &bearer, body).await.0 }
    };
    assert_eq!((house.me(&tokens).await, logout(&tokens, json!({})).await, house.me(&tokens).await), (200, 204, 401));
    assert_eq!(logout(&tokens, json!({ "refreshToken": tokens["refreshToken"] })).await, 204, "again is harmless");
    let (one, other) = (house.signed_in("ann").await, house.signed_in("ann").await);
    assert_eq!((house.me(&one).await, house.me(&other).await), (200, 200));
    assert_eq!(logout(&one, json!({ "all": true })).await, 204);
    assert_eq!((house.me(&one).await, house.me(&other).await), (401, 401));
    let tokens = house.signed_in("ann").await;
    assert_eq!(house.me(&tokens).await, 200);
    house.account("ann", "admin").await;
    assert_eq!(house.me(&tokens).await, 401, "signed in by a password of before");
    let tokens = house.signed_in("ann").await;
    assert_eq!(house.ask("DELETE", "/api/v1/users/ann/account", TOKEN, Value::Null).await.0, 204);
    assert_eq!((house.me(&tokens).await, house.refresh(&tokens["refreshToken"]).await.0), (401, 401));
    assert_eq!(house.ask("DELETE", "/api/v1/users/ann/account", TOKEN, Value::Null).await.0, 404);
}

#[tokio::test]
async fn nobody_is_let_in_while_sessions_are_away_but_who_was_just_seen() {
    let house = house();
    house.account("ann", "user").await;
    let (seen, unseen) = (house.signed_in("ann").await, house.signed_in("ann").await);
    assert_eq!(house.me(&seen).await, 200);
    *house.memory.away.lock() = true;
    assert_eq!((house.me(&seen).await, house.me(&unseen).await), (200, 503));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let house = house();
    let never = Body::from_stream(futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
    let request = Request::builder().method("POST").uri("/api/auth/login").body(never).unwrap();
    assert_eq!(house.router.oneshot(request).await.unwrap().status(), 408);
}

#[tokio::test]
async fn an_account_that_changes_during_a_sign_in_does_not_let_it_in() {
    let house = house();
    house.account("ann", "user").await;
    *house.memory.changes.lock() = true;
    assert_eq!(house.login("ann@x.org", "correct horse").await.0, 401);
    assert!(house.memory.sessions.lock().is_empty());
}

#[tokio::test]
async fn what_is_not_taken_says_why_and_holds_no_secret() {
    let house = house();
    let put = |body: Value| house.ask("PUT", "/api/v1/users/ann/account", TOKEN, body);
    for (body, path) in [
        (json!({ "email": "ann", "password": "correct horse" }), "email"),
        (json!({ "email": "a@b", "password": "short" }), "password"),
        (json!({ "email": "a@b", "password": "x".repeat(300) }), "password"),
        (json!({ "email": "a@b", "password": "correct horse", "role": "king" }), "role"),
        (json!({ "email": "a@b", "pasword": "correct horse" }), "body"),
        (json!({ "email": "a@b", "password": 123_456_789 }), "body"),
    ] {
        let (status, problem) = put(body).await;
        assert_eq!((status, problem["errors"][0]["path"].as_str()), (422, Some(path)), "{problem}");
        assert!(!problem.to_string().contains("horse") && !problem.to_string().contains("123456789"), "{problem}");
    }
    house.account("ann", "user").await;
    let taken =
        house.ask("PUT", "/api/v1/users/bob/account", TOKEN, json!({ "email": "ANN@x.org", "password": "correct horse" })).await;
    assert_eq!(taken.0, 409);
    assert_eq!(
        house.ask("PUT", "/api/v1/users/me/account", TOKEN, json!({ "email": "a@b", "password": "correct horse" })).await.0,
        422
    );
    assert_eq!(house.login("ann", "correct horse").await.0, 422, "no address");
    // Only the operator makes accounts; nobody guesses for long.
    let tokens = house.signed_in("ann").await;
    let own = house.ask("PUT", "/api/v1/users/ann/account", tokens["accessToken"].as_str().unwrap(), json!({})).await;
    assert_eq!(own.0, 403);
    assert_eq!(house.ask("PUT", "/api/v1/users/ann/account", "", json!({})).await.0, 401);
    let mut last = 0;
    for _ in 0..12 {
        last = house.login("ann@x.org", "wrong horse").await.0;
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn roles_in_a_workspace_say_who_may_change_it() {
    let house = house();
    for user in ["ann", "bob", "eve"] {
        house.account(user, "user").await;
    }
    let bearer = |tokens: Value| tokens["accessToken"].as_str().unwrap().to_owned();
    let (ann, bob) = (bearer(house.signed_in("ann").await), bearer(house.signed_in("bob").await));
    let made = house.ask("POST", "/api/v1/workspaces", &ann, json!({ "id": "w1", "name": "One" })).await;
    assert_eq!((made.0, &made.1["role"]), (201, &json!("admin")));
    let eve = "/api/v1/workspaces/w1/members/eve";
    assert_eq!(house.ask("PUT", eve, &bob, json!({ "role": "user" })).await.0, 403);
    assert_eq!(house.ask("GET", "/api/v1/workspaces/w1/members", &bob, Value::Null).await.0, 403);
    assert_eq!(house.ask("PUT", "/api/v1/workspaces/w1/members/bob", &ann, json!({ "role": "moderator" })).await.0, 200);
    assert_eq!(house.ask("PUT", eve, &bob, json!({ "role": "user" })).await.0, 403);
    assert_eq!(house.ask("PUT", eve, &ann, json!({ "role": "super_admin" })).await.0, 422);
    let members = house.ask("GET", "/api/v1/workspaces/w1/members", &bob, Value::Null).await;
    assert_eq!(members.1["items"], json!([{ "userId": "ann", "role": "admin" }, { "userId": "bob", "role": "moderator" }]));
    let mine = house.ask("GET", "/api/v1/workspaces", &bob, Value::Null).await;
    assert_eq!(mine.1["items"], json!([{ "id": "w1", "name": "One", "role": "moderator" }]));
    assert_eq!(house.ask("GET", "/api/v1/workspaces?userId=ann", &bob, Value::Null).await.0, 403);
    assert_eq!(house.ask("DELETE", "/api/v1/workspaces/w1/members/bob", &bob, Value::Null).await.0, 204);
    assert_eq!(house.ask("GET", "/api/v1/workspaces/w1/members", &bob, Value::Null).await.0, 403);
}
