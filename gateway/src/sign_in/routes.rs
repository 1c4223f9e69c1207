//! `/api/auth/…`: sign in, refresh, sign out; accounts, and the workspaces with who is in them.
//!
//! | path | for whom |
//! |---|---|
//! | `POST /api/auth/login`, `/refresh`, `/logout` | anybody; as often as [`Door`] allows |
//! | `PUT`, `DELETE /api/v1/users/{id}/account` | the operator, a super admin |
//! | `GET`, `DELETE /api/v1/users/{id}/sessions` | the same, and the user |
//! | `GET`, `POST /api/v1/workspaces` | whoever is signed in |
//! | `GET …/workspaces/{id}/members`, `PUT`, `DELETE …/members/{user}` | who is in it; its admins |

use super::accounts::Role;
use super::passwords::{LONGEST, SHORTEST};
use super::workspaces::{create_workspace, grant, members, revoke, workspaces};
use super::{ACCESS, Attempt, Away, Holder, SignIn, Tokens, email_of};
use crate::guard::Caller;
use crate::peer::{Limit, Peer, counted};
use crate::problem::{FieldError, Problem};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a body, and how long it may take to come.
const BODY: usize = 16 << 10;
const BODY_TIME: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };
/// Most characters of ids, names, and e-mail addresses as events have them.
const LONGEST_ID: usize = 200;
const LONGEST_EMAIL: usize = 320;

/// Publishes an audit event, given as the JSON that the door takes; answers when it is durable.
pub type Publish = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>> + Send + Sync>;

/// What the routes need.
pub(super) struct Door {
    pub(super) sign_in: Arc<SignIn>,
    publish: Publish,
    /// 10 requests a second and 20 at once from one address.
    by_address: Limit<IpAddr>,
    /// 10 attempts a minute for one account from one address.
    by_account: Limit<(IpAddr, String)>,
}

/// The routes, for the ingest address.
pub fn routes(sign_in: Arc<SignIn>, publish: Publish) -> Router {
    let second = Duration::from_secs(1);
    let (by_address, by_account) = (Limit::new(10, second, 20), Limit::new(10, second * 60, 10));
    let door = Arc::new(Door { sign_in: sign_in.clone(), publish, by_address, by_account });
    Router::new()
        .route("/api/auth/login", post(login))
        .route("/api/auth/refresh", post(refresh))
        .route("/api/auth/logout", post(logout))
        .route("/api/v1/users/{id}/account", put(put_account).delete(remove_account))
        .route("/api/v1/users/{id}/sessions", get(sessions).delete(end_sessions))
        .route("/api/v1/workspaces", get(workspaces).post(create_workspace))
        .route("/api/v1/workspaces/{id}/members", get(members))
        .route("/api/v1/workspaces/{id}/members/{user}", put(grant).delete(revoke))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(door)
}

impl From<Away> for Problem {
    fn from(away: Away) -> Problem {
        match away {
            Away::Busy(why) => Problem::new(429, "busy", "try again").detail(why).retry_after(Duration::from_secs(1)),
            // Where a store is and what it says is for the log.
            Away::Unavailable(why) => {
                tracing::warn!(why, "accounts or sessions are away");
                let detail = "the store of accounts or sessions does not answer";
                Problem::new(503, "store_away", "not now").detail(detail).retry_after(Duration::from_secs(1))
            }
            Away::Refused(why) => {
                tracing::error!(why, "sign-in does not work");
                Problem::new(500, "internal", "internal error").detail("see the server's log")
            }
        }
    }
}

pub(super) fn field(path: &str, rule: &str, message: impl Into<String>) -> Problem {
    let error = FieldError { path: path.to_owned(), rule: rule.to_owned(), message: message.into(), ..FieldError::default() };
    Problem::new(422, "refused", "refused").detail("see errors").errors(vec![error])
}

/// A JSON body; what is wrong with it is said without what is in it.
pub(super) struct Body<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned> axum::extract::FromRequest<Arc<Door>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: axum::extract::Request, state: &Arc<Door>) -> Result<Body<T>, Problem> {
        let read = tokio::time::timeout(BODY_TIME, axum::body::Bytes::from_request(request, state)).await;
        let read = read.map_err(|_| Problem::new(408, "slow_body", "the body did not come in time"))?;
        let bytes = read.map_err(|error| Problem::new(error.status().as_u16(), "bad_body", "the body could not be read"))?;
        // Where all may be left out, the body may.
        let bytes = if bytes.is_empty() { axum::body::Bytes::from_static(b"{}") } else { bytes };
        serde_json::from_slice(&bytes).map(Body).map_err(|error| {
            let shape = matches!(error.classify(), serde_json::error::Category::Data);
            let said = if shape {
                error.to_string().split(" at line").next().unwrap_or_default().to_owned()
            } else {
                "no JSON".to_owned()
            };
            // A message of the parser's may quote a value.
            let safe = ["missing field", "unknown field", "no JSON"].iter().any(|known| said.starts_with(known));
            field("body", "json", if safe { said } else { "the body is not what is taken here".to_owned() })
        })
    }
}

/// From where, and by which program; as often as one address may.
struct Origin {
    ip: IpAddr,
    agent: String,
}

impl FromRequestParts<Arc<Door>> for Origin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Arc<Door>) -> Result<Origin, Problem> {
        let ip = parts.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |Peer(address)| address.ip());
        door.by_address.check(&counted(ip))?;
        let agent = parts.headers.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Origin { ip: ip.to_canonical(), agent: agent.chars().take(500).collect() })
    }
}

impl Door {
    async fn audit(&self, kind: &str, user: &str, origin: &Origin, more: Value) -> Result<(), Problem> {
        let mut payload = json!({ "userId": user, "ip": origin.ip.to_string(), "userAgent": origin.agent });
        if let (Some(payload), Value::Object(more)) = (payload.as_object_mut(), more) {
            payload.extend(more);
        }
        let mut timestamp = String::new();
        quikflow_topics::json::time::write_time(self.sign_in.clock.now().0, &mut timestamp);
        let event = json!({ "type": kind, "payload": payload, "timestamp": timestamp, "metadata": { "source": "gateway" } });
        (self.publish)(event.to_string()).await
    }

    /// A refresh token was shown that had been exchanged before.
    async fn audit_theft(&self, user: &str, origin: &Origin) -> Result<(), Problem> {
        let more = json!({ "reason": "a refresh token was used twice", "severity": "HIGH" });
        self.audit("LOGIN_FAILED", user, origin, more).await
    }

    /// What a client is told of an attempt, after the audit log was.
    async fn answer(&self, attempt: Attempt, origin: &Origin, email: Option<&str>) -> Result<Response, Problem> {
        match attempt {
            Attempt::In(tokens) => {
                if let Some(email) = email
                    && let Err(problem) =
                        self.audit("LOGIN_SUCCESS", &tokens.account.user, origin, json!({ "email": email })).await
                {
                    self.sign_in.end(&tokens.session).await?;
                    return Err(problem);
                }
                Ok(answer_of(&tokens))
            }
            Attempt::Out { user, why, stolen } => {
                if stolen {
                    self.audit_theft(&user, origin).await?;
                } else if let Some(email) = email {
                    let more = json!({ "email": email, "reason": why, "severity": "LOW" });
                    self.audit("LOGIN_FAILED", &user, origin, more).await?;
                }
                let detail = if email.is_some() { "the e-mail address or the password is wrong" } else { "sign in again" };
                Err(Problem::new(401, "not_signed_in", "not signed in").detail(detail))
            }
        }
    }
}

fn answer_of(tokens: &Tokens) -> Response {
    let account = &tokens.account;
    let body = json!({
        "accessToken": tokens.access, "refreshToken": tokens.refresh, "tokenType": "Bearer", "expiresIn": ACCESS.as_secs(),
        "user": { "id": account.user, "email": account.email, "role": account.role },
    });
    // Tokens are nobody's to keep on the way (RFC 6749, 5.1).
    ([("cache-control", "no-store")], Json(body)).into_response()
}

#[derive(Deserialize)]
struct Credentials {
    email: String,
    password: String,
}

/// Does all of it, also where the client hangs up meanwhile: what was changed is audited and answered for.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T, Problem>> + Send + 'static) -> Result<T, Problem> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|_| Err(Problem::new(500, "internal", "internal error").detail("see the server's log")))
}

fn address(text: &str) -> Result<String, Problem> {
    let email = email_of(text);
    if !(3..=LONGEST_EMAIL).contains(&email.chars().count()) || !email.contains('@') {
        return Err(field("email", "email", format!("an e-mail address has an @ and 3 to {LONGEST_EMAIL} characters")));
    }
    Ok(email)
}

async fn login(State(door): State<Arc<Door>>, origin: Origin, Body(given): Body<Credentials>) -> Result<Response, Problem> {
    let email = address(&given.email)?;
    if given.password.len() > LONGEST {
        return Err(field("password", "length", format!("a password has {LONGEST} bytes at most")));
    }
    door.by_account.check(&(counted(origin.ip), email.clone()))?;
    let about = json!({ "ip": origin.ip.to_string(), "userAgent": origin.agent }).to_string();
    whole(async move {
        let attempt = door.sign_in.sign_in(&email, given.password, about).await?;
        door.answer(attempt, &origin, Some(&email)).await
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refresh {
    refresh_token: String,
}

async fn refresh(State(door): State<Arc<Door>>, origin: Origin, Body(given): Body<Refresh>) -> Result<Response, Problem> {
    whole(async move {
        let attempt = door.sign_in.refresh(&given.refresh_token).await?;
        door.answer(attempt, &origin, None).await
    })
    .await
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Logout {
    refresh_token: Option<String>,
    all: bool,
}

/// By the access token, or by the refresh token where the access token is over. Again is harmless. One that was exchanged
/// before ends its session too: whoever has the next one may be somebody else.
async fn logout(
    State(door): State<Arc<Door>>,
    origin: Origin,
    headers: HeaderMap,
    Body(given): Body<Logout>,
) -> Result<StatusCode, Problem> {
    let bearer = headers.get("authorization").and_then(|value| crate::guard::bearer(value.as_bytes()));
    let by_access = match bearer.and_then(|token| std::str::from_utf8(token).ok()) {
        Some(token) => door.sign_in.who(token).await?.map(|who| (who.user, who.session)),
        None => None,
    };
    let holder = match (by_access, given.refresh_token) {
        (Some((user, session)), _) => Some(Holder { user, session, in_force: true }),
        (None, Some(token)) => door.sign_in.holder(&token).await?,
        (None, None) if bearer.is_some() => None,
        (None, None) => return Err(field("refreshToken", "missing", "give the refresh token, or the access token as bearer")),
    };
    let Some(holder) = holder else { return Ok(StatusCode::NO_CONTENT) };
    whole(async move {
        if given.all && holder.in_force {
            door.sign_in.end_all(&holder.user).await?;
        } else {
            door.sign_in.end(&holder.session).await?;
        }
        if !holder.in_force {
            door.audit_theft(&holder.user, &origin).await?;
        }
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

pub(super) fn id(text: &str, path: &str) -> Result<(), Problem> {
    let wrong = text.is_empty() || text == "me" || text.chars().count() > LONGEST_ID || text.chars().any(char::is_control);
    if wrong {
        Err(field(path, "length", format!("an id has 1 to {LONGEST_ID} characters, no control characters, and is not `me`")))
    } else {
        Ok(())
    }
}

pub(super) fn role(text: &str) -> Result<Role, Problem> {
    Role::of(text).ok_or_else(|| field("role", "one_of", Role::ALL.map(Role::name).join(", ")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    email: String,
    password: String,
    role: Option<String>,
}

async fn put_account(
    State(door): State<Arc<Door>>,
    Path(user): Path<String>,
    Body(given): Body<NewAccount>,
) -> Result<Json<Value>, Problem> {
    id(&user, "id")?;
    let email = address(&given.email)?;
    if given.password.chars().count() < SHORTEST || given.password.len() > LONGEST {
        return Err(field(
            "password",
            "length",
            format!("a password has {SHORTEST} characters at least and {LONGEST} bytes at most"),
        ));
    }
    let role = given.role.as_deref().map_or(Ok(Role::default()), role)?;
    whole(async move {
        if !door.sign_in.put_account(&user, email.clone(), given.password, role).await? {
            return Err(Problem::new(409, "email_taken", "another account has this e-mail address"));
        }
        Ok(Json(json!({ "id": user, "email": email, "role": role })))
    })
    .await
}

async fn remove_account(State(door): State<Arc<Door>>, Path(user): Path<String>) -> Result<StatusCode, Problem> {
    whole(async move {
        let removed = door.sign_in.accounts.remove_account(&user).await?;
        door.sign_in.end_all(&user).await?;
        if removed { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::new(404, "not_found", "this user has no account")) }
    })
    .await
}

async fn sessions(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
) -> Result<Json<Value>, Problem> {
    let found = door.sign_in.sessions.sessions(caller.meant(&user), door.sign_in.clock.now()).await?;
    let time = |at: quikflow_topics::ids::EventTime| {
        let mut text = String::new();
        quikflow_topics::json::time::write_time(at.0, &mut text);
        text
    };
    let shown = |session: &super::sessions::Session| {
        let about: Value = serde_json::from_str(&session.about).unwrap_or(Value::Null);
        json!({ "id": session.id, "created": time(session.created), "expires": time(session.expires), "about": about })
    };
    Ok(Json(json!({ "items": found.iter().map(shown).collect::<Vec<_>>() })))
}

async fn end_sessions(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({ "ended": door.sign_in.end_all(caller.meant(&user)).await? })))
}

pub(super) fn denied(detail: &str) -> Problem {
    Problem::new(403, "forbidden", "not allowed").detail(detail)
}
