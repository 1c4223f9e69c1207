//! The layer in front of every route.
//!
//! With a token set, each request has to carry it, or the access token of somebody who is signed in, from
//! loopback too, except `/health/*` and `/api/auth/*`.
//!
//! Without one only loopback is served, and anyone at this machine may pass; but a browser at this
//! machine also runs pages of strangers. So a request is refused that a page of another origin sent
//! (`Origin`, `Sec-Fetch-Site`), and one whose `Host` is not a local name: a stranger's name that
//! was made to point to 127.0.0.1 (DNS rebinding) still stands in `Host`.

pub(crate) use crate::auth::bearer;
use crate::auth::{Auth, Principal};
use crate::permission;
use crate::problem::Problem;
use crate::sign_in::SignedIn;
use crate::sign_in::accounts::Role;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use std::borrow::Cow;
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Whoever runs the system: by its token, or from this machine where there is none.
    Operator,
    /// A user who is signed in, held to [`crate::permission`].
    User(SignedIn),
}

impl Caller {
    /// The user whom a path means: `me` is who is signed in.
    pub fn meant<'a>(&'a self, user: &'a str) -> &'a str {
        match self {
            Caller::User(who) if user == "me" => &who.user,
            _ => user,
        }
    }

    /// The user whom a request is about: who is signed in, unless it names one. None: the operator named nobody.
    ///
    /// # Errors
    /// 403 where it names another user than may be asked about.
    pub fn about<'a>(&'a self, named: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
        match (self, named) {
            (Caller::User(who), None) => Ok(Some(&who.user)),
            (Caller::User(who), Some(user)) if who.role < Role::SuperAdmin && who.user != user => {
                Err(Problem::new(403, "forbidden", "not allowed").detail("this is another user's"))
            }
            (_, named) => Ok(named),
        }
    }

    /// The scope of its event ids.
    fn principal(&self, auth: &Auth) -> Principal {
        match self {
            Caller::Operator if auth.required() => Principal("token".to_owned()),
            Caller::Operator => Principal::default(),
            Caller::User(who) => Principal(format!("user:{}", who.user)),
        }
    }
}

/// Puts the guard in front of all routes of `router`. Handlers find a [`Principal`] and a [`Caller`] among
/// the request's extensions.
pub fn guard(router: Router, auth: Arc<Auth>) -> Router {
    router.layer(from_fn_with_state(auth, check))
}

async fn check(State(auth): State<Arc<Auth>>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/health/") {
        return next.run(request).await;
    }
    let (mut head, body) = request.into_parts();
    match admit(&auth, &head).await {
        Ok((principal, caller)) => {
            head.extensions.insert(principal);
            head.extensions.insert(caller);
            next.run(Request::from_parts(head, body)).await
        }
        Err(refused) => *refused,
    }
}

/// Who asks, by the head of a request, where it may.
///
/// # Errors
/// The refusal: 401, 403; 503 where it cannot be found out.
pub async fn admit(auth: &Auth, head: &Parts) -> Result<(Principal, Caller), Box<Response>> {
    let caller = caller(auth, head).await.map_err(Box::new)?;
    Ok((caller.principal(auth), caller))
}

async fn caller(auth: &Auth, head: &Parts) -> Result<Caller, Response> {
    let given = head.headers.get(AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
    if auth.admits(given) {
        return Ok(Caller::Operator);
    }
    // Whoever signs in has nothing to show yet, or what is over.
    let open = permission::is_open(&head.method, head.uri.path());
    if !open && let Some(who) = signed_in(auth, given).await? {
        permission::check(&who, &head.method, &head.uri).map_err(IntoResponse::into_response)?;
        return Ok(Caller::User(who));
    }
    if auth.required() {
        return if open { Ok(Caller::Operator) } else { Err(unknown()) };
    }
    match foreign(&head.headers) {
        Some(why) => Err(Problem::new(403, "foreign_origin", "not from another site").detail(why).into_response()),
        None => Ok(Caller::Operator),
    }
}

/// The user of an access token; none where nothing like one was given.
async fn signed_in(auth: &Auth, given: &[u8]) -> Result<Option<SignedIn>, Response> {
    let Some(sign_in) = &auth.sign_in else { return Ok(None) };
    let token = bearer(given).and_then(|token| std::str::from_utf8(token).ok());
    let Some(token) = token.filter(|token| token.matches('.').count() == 2) else { return Ok(None) };
    match sign_in.who(token).await {
        Ok(Some(who)) => Ok(Some(who)),
        Ok(None) => Err(unknown()),
        Err(away) => Err(Problem::from(away).into_response()),
    }
}

fn unknown() -> Response {
    let detail = "send an access token, or the server's token: `Authorization: Bearer …` (QUIKFLOW_TOKEN)";
    let mut refused = Problem::new(401, "unauthorized", "a token is needed").detail(detail).into_response();
    refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refused
}

/// Why a request to an open loopback door is not this machine's own.
fn foreign(headers: &HeaderMap) -> Option<&'static str> {
    fn text(value: &HeaderValue) -> Cow<'_, str> {
        let text = value.to_str().unwrap_or_default();
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
    }
    let host = headers.get(HOST).map(text);
    if host.as_deref().is_some_and(|host| !local_name(host)) {
        return Some("the host is not localhost, 127.0.0.1 or [::1]; set a token to serve other names");
    }
    if let Some(origin) = headers.get(ORIGIN).map(text) {
        let own = host.as_deref().is_some_and(|host| origin.strip_prefix("http://") == Some(host));
        return (!own).then_some("the page that sent it belongs to another origin");
    }
    let site = headers.get("sec-fetch-site").map(text);
    let mode = headers.get("sec-fetch-mode").map(text);
    let foreign_site = matches!(site.as_deref(), Some("cross-site" | "same-site"));
    // Following a link to a page of ours is no harm: it answers to the reader alone.
    (foreign_site && mode.as_deref() != Some("navigate")).then_some("the page that sent it belongs to another site")
}

/// `localhost`, `*.localhost` and loopback addresses, with or without a port.
fn local_name(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split(']').next().unwrap_or_default();
        return address.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    async fn status(auth: Auth, path: &str, headers: &[(&str, &str)]) -> u16 {
        let routes = Router::new().route("/x", get(|| async { "ok" })).route("/health/live", get(|| async { "ok" }));
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        guard(routes, Arc::new(auth)).oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn with_a_token_every_route_but_health_asks_for_it() {
        let auth = || Auth::with_token("0123456789abcdef", "QUIKFLOW_TOKEN").unwrap();
        assert_eq!(status(auth(), "/x", &[]).await, 401);
        assert_eq!(status(auth(), "/x", &[("authorization", "Bearer 0123456789abcdeF")]).await, 401);
        assert_eq!(status(auth(), "/x", &[("authorization", "Bearer 0123456789abcdef")]).await, 200);
        assert_eq!(status(auth(), "/health/live", &[]).await, 200);
        assert_eq!(status(auth(), "/healthy", &[]).await, 401);
    }

    #[tokio::test]
    async fn an_open_door_refuses_pages_of_strangers_and_rebound_names() {
        let of = |headers: &'static [(&str, &str)]| status(Auth::open(), "/x", headers);
        assert_eq!(of(&[("host", "127.0.0.1:8080")]).await, 200);
        assert_eq!(of(&[("host", "[::1]:8080")]).await, 200);
        assert_eq!(of(&[("host", "LOCALHOST")]).await, 200);
        assert_eq!(of(&[("host", "evil.example:8080")]).await, 403);
        assert_eq!(of(&[("host", "127.0.0.1.evil.example")]).await, 403);
        assert_eq!(of(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]).await, 200);
        assert_eq!(of(&[("host", "localhost:8080"), ("origin", "http://localhost:3000")]).await, 403);
        assert_eq!(of(&[("host", "localhost:8080"), ("origin", "null")]).await, 403);
        assert_eq!(of(&[("host", "localhost:8080"), ("sec-fetch-site", "cross-site")]).await, 403);
        assert_eq!(of(&[("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]).await, 200);
        assert_eq!(of(&[("host", "localhost"), ("sec-fetch-site", "none")]).await, 200);
    }
}
