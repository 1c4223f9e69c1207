//! Asking a running process over HTTP.
//!
//! `--url` / `QUIKFLOW_URL` may name its ingest or its query address: the process says where the
//! other one is (`/v1/addresses`), so either does.

use crate::exit::Failure;
use crate::settings::Settings;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// Where the query API listens unless told otherwise.
pub(crate) const DEFAULT_QUERY: &str = "http://127.0.0.1:8090";
/// Where ingest listens unless told otherwise.
pub(crate) const DEFAULT_INGEST: &str = "http://127.0.0.1:8080";

/// Which of a process's addresses is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Takes events.
    Ingest,
    /// Answers questions.
    Query,
}

/// A running process, asked over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Addresses {
    ingest: Option<String>,
    query: Option<String>,
}

/// Runs one command's asking on a runtime of its own.
///
/// # Errors
/// When no runtime can be made, else what the future answers.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// An HTTP client that never takes a proxy to a loopback address.
///
/// # Errors
/// Exit 2 where the machine's TLS set-up is unusable.
pub(crate) fn http_client(base: &str) -> Result<reqwest::Client, Failure> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .user_agent(concat!("quikflow/", env!("CARGO_PKG_VERSION")));
    if is_loopback(base) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| Failure::usage(format!("no HTTP client: {error}")))
}

fn is_loopback(base: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(base) else { return false };
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// A base address without its last slash, checked.
///
/// # Errors
/// Exit 2 when it is not an http address.
pub(crate) fn checked_base(url: &str) -> Result<String, Failure> {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    match reqwest::Url::parse(&url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.host_str().is_some() => {
            Ok(url.trim_end_matches('/').to_owned())
        }
        _ => Err(Failure::usage(format!("`{url}` is not an address: write http://host:port"))),
    }
}

impl Client {
    /// A client of the process that `url`, the settings or the default name.
    ///
    /// # Errors
    /// Exit 2 for a malformed address; exit 1 when nobody answers.
    pub(crate) async fn connect(settings: &Settings, url: Option<&str>, side: Side) -> Result<Client, Failure> {
        let (named, default) = match side {
            Side::Ingest => (settings.get("ingest_url").or_else(|| settings.get("url")), DEFAULT_INGEST),
            Side::Query => (settings.get("url"), DEFAULT_QUERY),
        };
        let base = checked_base(url.or(named).unwrap_or(default))?;
        let mut client = Client { http: http_client(&base)?, base, token: settings.get("token").map(str::to_owned) };
        if let Ok(response) = client.request(reqwest::Method::GET, "/v1/addresses").timeout(Duration::from_secs(5)).send().await
            && response.status().is_success()
            && let Ok(addresses) = response.json::<Addresses>().await
        {
            let wanted = match side {
                Side::Ingest => addresses.ingest,
                Side::Query => addresses.query,
            };
            if let Some(wanted) = wanted {
                client.base = with_port_of(&client.base, &wanted);
            }
        }
        Ok(client)
    }

    /// A client of exactly this base address.
    ///
    /// # Errors
    /// Exit 2 for a malformed address.
    pub(crate) fn exactly(base: &str, token: Option<&str>) -> Result<Client, Failure> {
        let base = checked_base(base)?;
        Ok(Client { http: http_client(&base)?, base, token: token.map(str::to_owned) })
    }

    /// The base address in use.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// A request with the bearer token, where one is set.
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request; an answer of 4xx or 5xx is an error that carries the problem's detail.
    ///
    /// # Errors
    /// Exit 1 when nobody answers or the answer is an error; exit 2 for 400, 401, 403, 404 and 422.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.nobody(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(problem(response).await)
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.json(self.request(reqwest::Method::GET, path).query(query)).await
    }

    /// POST of a JSON body, answered in JSON.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(self.request(reqwest::Method::POST, path).json(body)).await
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        response.json().await.map_err(|error| Failure::failed(format!("{}: not a JSON answer: {error}", self.base)))
    }

    fn nobody(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            return Failure::failed(format!("{} did not answer in time", self.base));
        }
        Failure::failed(format!(
            "nobody answers at {}: {}; start a process with `quikflow run`, or name its address with --url or QUIKFLOW_URL",
            self.base,
            root_cause(error)
        ))
    }
}

/// The innermost reason of an error: `connection refused` rather than `error sending request`.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What an error answer says: the problem's detail, with the fields at fault.
pub(crate) async fn problem(response: Response) -> Failure {
    let status = response.status();
    let path = response.url().path().to_owned();
    let body: Value = response.json().await.unwrap_or(Value::Null);
    let detail = body.get("detail").or_else(|| body.get("title")).and_then(Value::as_str).unwrap_or("");
    let mut message = if detail.is_empty() { format!("{path} answers {status}") } else { detail.to_owned() };
    for error in body.get("errors").and_then(Value::as_array).into_iter().flatten().take(5) {
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        message.push_str(&format!("\n  {} {}", text("path"), text("message")));
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Failure::usage(format!("{message}; set QUIKFLOW_TOKEN or QUIKFLOW_TOKEN_FILE to the process's token"))
        }
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => Failure::usage(message),
        _ => Failure::failed(message),
    }
}

/// `base` with the port of `other`: the host is the one that has answered.
fn with_port_of(base: &str, other: &str) -> String {
    let (Ok(mut url), Ok(other)) = (reqwest::Url::parse(base), reqwest::Url::parse(other)) else { return base.to_owned() };
    if url.set_port(other.port_or_known_default()).is_err() {
        return base.to_owned();
    }
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_completed() {
        assert_eq!(checked_base("127.0.0.1:8090").unwrap(), "http://127.0.0.1:8090");
        assert_eq!(checked_base("http://h:1/").unwrap(), "http://h:1");
        assert_eq!(checked_base("ftp://h").unwrap_err().outcome, crate::exit::Outcome::Usage);
        assert_eq!(with_port_of("http://h:8080", "http://0.0.0.0:8090"), "http://h:8090");
    }

    #[test]
    fn loopback_is_known_by_name_and_number() {
        assert!(is_loopback("http://127.0.0.1:8080") && is_loopback("http://localhost:1") && is_loopback("http://[::1]:2"));
        assert!(!is_loopback("http://10.0.0.1:8080"));
    }

    #[test]
    fn nobody_answering_says_what_was_tried_and_what_to_do() {
        // Port 9 on loopback: the discard service, which nothing serves here.
        let client = Client::exactly("http://127.0.0.1:9", None).unwrap();
        let failure = block_on(client.get("/v1/lag", &[])).unwrap_err();
        assert!(
            failure.message.contains("http://127.0.0.1:9") && failure.message.contains("quikflow run"),
            "{}",
            failure.message
        );
    }
}
