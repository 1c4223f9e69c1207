//! What operators set up around real stores: logins, TLS, index templates, tables whose rows expire.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::guard::Guard;
use common::{Plan, harness, rows_of};
use quikflow_sinks::store::{StoreError, StoreSet};
use quikflow_sinks::stores::{StoreUrls, Stores};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::ids::EventTime;
use std::path::PathBuf;
use std::time::Duration;

/// Stores that take a login over HTTP: how it is sent (user `me`, password `s3cret`), and the answer to a stranger.
const LOGINS: [(&str, Guard); 2] = [
    (
        "real:elasticsearch",
        Guard {
            wanted: &["authorization: Basic bWU6czNjcmV0"],
            stranger: (401, "content-type: application/json", "{}"),
            forbidden: "_index_template/",
        },
    ),
    (
        "real:clickhouse",
        Guard {
            wanted: &["x-clickhouse-user: me", "x-clickhouse-key: s3cret"],
            stranger: (403, "x-clickhouse-exception-code: 516", "Code: 516. DB::Exception: me: Authentication failed"),
            forbidden: "nothing",
        },
    ),
];

crate::tests! {
    each HTTP: async a_login_over_http_goes_with_every_request,
    each OVER_HTTPS: async a_certificate_that_nobody_vouches_for_is_refused,
    each HTTP: async an_authority_of_the_operators_is_trusted_where_the_url_names_it,
    async mongodb_takes_a_login_over_tls,
    async mysql_takes_a_login_over_tls,
    async elasticsearch_takes_an_operators_template,
    async r10_clickhouse_drops_whole_what_arrived_long_ago,
    async r10_a_table_of_before_expires_row_by_row,
}

/// Stores over HTTPS, whether or not a server is here, and whether the client is compiled in.
const OVER_HTTPS: [&str; 2] = ["elasticsearch", "clickhouse"];
const HTTP: [&str; 2] = ["real:elasticsearch", "real:clickhouse"];

fn open(plan: &Plan, urls: &StoreUrls) -> Result<Stores, StoreError> {
    Stores::open_with(plan.dir(), ManualClock::at(EventTime(0)), &[(plan.sink.clone(), plan.topic.clone())], urls)
}

fn urls(store: &str, url: String) -> StoreUrls {
    let mut urls = StoreUrls::default();
    *common::url_of(&mut urls, store) = Some(url);
    urls
}

/// The plan's URL of a store, as host and namespace.
fn place(plan: &mut Plan, store: &str) -> (String, String) {
    let url = common::url_of(&mut plan.urls, store).clone().expect("a URL");
    let rest = url.split_once("://").expect("a URL").1;
    let (host, space) = rest.split_once('/').expect("a namespace");
    (host.rsplit('@').next().unwrap_or_default().to_owned(), space.split('?').next().unwrap_or_default().to_owned())
}

/// Writes a row, and reads it again.
async fn works(plan: &Plan, stores: &Stores) {
    let target = stores.store_of(&plan.sink).expect("a store");
    target.write(plan.batch(&[common::row(0, 1, "k", 60, 1, true)])).await.expect("written");
    target.progress("s").await.expect("its progress");
    assert_eq!(rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 1)]);
}

/// It was refused, in these words, and no password is shown.
async fn refused(plan: &Plan, urls: &StoreUrls, words: &str) {
    let error = match open(plan, urls) {
        Ok(stores) => {
            let store = stores.store_of(&plan.sink).expect("a store");
            panic!("not refused: {:?}", store.progress("s").await);
        }
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(matches!(&error, StoreError::Refused { .. }) && text.contains(words), "{text}");
    assert!(text.contains("_URL") && !text.contains("s3cret") && !text.contains("nonsense"), "{text}");
}

/// Elasticsearch with a password and ClickHouse with a user: every request brings them. A user who may
/// manage no index templates does without.
async fn a_login_over_http_goes_with_every_request(store: &'static str) {
    common::need(store);
    let guard = LOGINS.iter().find(|(name, _)| *name == store).expect("a known store").1;
    let mut plan = Plan::new(store, 1);
    let (host, space) = place(&mut plan, store);
    let port = common::guard::start(guard, host).await;
    let at = |login: &str| urls(store, format!("http://{login}127.0.0.1:{port}/{space}"));
    for login in ["", "me:nonsense@"] {
        refused(&plan, &at(login), "wrong user or password").await;
    }
    works(&plan, &open(&plan, &at("me:s3cret@")).expect("the stores")).await;
}

/// The authority of the servers here, and its certificate for them.
fn certificates() -> (String, PathBuf) {
    let authority = harness::server("QUIKFLOW_TEST_CA");
    let folder = PathBuf::from(&authority).parent().expect("a folder").to_path_buf();
    (authority, folder)
}

/// Something that speaks TLS with the certificate of the servers here; ended when it is dropped.
struct Tls(std::process::Child);

impl Tls {
    fn start(port: u16) -> Tls {
        let (_, folder) = certificates();
        let mut command = std::process::Command::new("openssl");
        command.args(["s_server", "-www", "-accept", &format!("127.0.0.1:{port}")]).current_dir(folder);
        let command = command.args(["-cert", "server.pem", "-key", "server.key"]).stdin(std::process::Stdio::null());
        let spawned = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn();
        let Ok(mut child) = spawned else { harness::skip("there is no openssl here") };
        let mut said = std::io::BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains("ACCEPT") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut said, &mut line).expect("its output") > 0, "openssl ended");
        }
        // It must not stop for want of a reader.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Tls(child)
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// It is not waited for, as a server that is away would be.
async fn a_certificate_that_nobody_vouches_for_is_refused(store: &'static str) {
    if !(cfg!(feature = "elasticsearch") && cfg!(feature = "clickhouse")) {
        harness::skip("built without the features `elasticsearch` and `clickhouse`");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let _server = Tls::start(port);
    let plan = Plan::new(store, 1);
    refused(&plan, &urls(store, format!("https://me:s3cret@127.0.0.1:{port}/quikflow")), "TLS: ").await;
}

/// `?ca=FILE`, with the certificate of the servers here and a server behind it.
async fn an_authority_of_the_operators_is_trusted_where_the_url_names_it(store: &'static str) {
    common::need(store);
    let (authority, folder) = certificates();
    let mut plan = Plan::new(store, 1);
    let (host, space) = place(&mut plan, store);
    let port = common::tls::start(&folder, host).await;
    let at = |options: &str| urls(store, format!("https://127.0.0.1:{port}/{space}{options}"));
    refused(&plan, &at(""), "TLS: ").await;
    let other = plan.dir().join("other.pem");
    std::fs::write(&other, "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n").expect("a file");
    refused(&plan, &at(&format!("?ca={}", other.display())), "holds no certificate").await;
    refused(&plan, &at("?ca=/no/such/file"), "/no/such/file").await;
    refused(&plan, &at("?verify=no"), "option `verify`").await;
    works(&plan, &open(&plan, &at(&format!("?ca={authority}"))).expect("the stores")).await;
}

#[cfg(feature = "mongodb")]
async fn mongodb_takes_a_login_over_tls() {
    use ::mongodb::bson::doc;
    let (authority, folder) = certificates();
    let mut server = common::mongodb::OwnMongo::start(&[]);
    let roles = vec![doc! { "role": "readWrite", "db": "quikflow" }];
    server.tell("quikflow", doc! { "createUser": "me", "pwd": "s3cret", "roles": roles }).await;
    let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    server.start_again(&["--auth", "--tls-cert-file", &certificate, "--tls-key-file", &key]);
    let plan = Plan::new("mongodb", 1);
    let at = |password: &str, tls: &str| urls("mongodb", server.url(&format!("me:{password}@"), tls));
    let trusted = format!("&tls=true&tlsCAFile={authority}");
    refused(&plan, &at("nonsense", &trusted), "wrong user or password").await;
    refused(&plan, &at("s3cret", "&tls=true"), "TLS").await;
    works(&plan, &open(&plan, &at("s3cret", &trusted)).expect("the stores")).await;
}

#[cfg(not(feature = "mongodb"))]
async fn mongodb_takes_a_login_over_tls() {
    harness::skip("built without the feature `mongodb`");
}

/// Only over TLS, and only to a server whose certificate an authority of the URL's vouches for.
async fn mysql_takes_a_login_over_tls() {
    common::need("real:mysql");
    let (authority, _) = certificates();
    let plan = Plan::new("real:mysql", 1);
    let at = |options: &str| urls("mysql", plan.urls.mysql.clone().expect("a URL") + options);
    refused(&plan, &at("?ssl-mode=VERIFY_IDENTITY"), "TLS").await;
    let trusted = format!("?ssl-mode=VERIFY_IDENTITY&ssl-ca={authority}");
    works(&plan, &open(&plan, &at(&trusted)).expect("the stores")).await;
}

/// Replicas and shards are the operator's: a template of a higher priority than ours, composed of our
/// component, gives them to indexes that are made here and to those that the operator makes.
async fn elasticsearch_takes_an_operators_template() {
    const STORE: &str = "real:elasticsearch";
    common::need(STORE);
    let mut plan = Plan::new(STORE, 1);
    let (host, space) = place(&mut plan, STORE);
    let good = async |method: &str, path: &str, body: &str| {
        let (status, answer) = common::old::ask(method, &host, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    };
    let theirs = format!("/_index_template/{space}-operators");
    let shaped = |priority: u32, of: &str| {
        let settings = r#"{"settings":{"number_of_replicas":0,"number_of_shards":2}}"#;
        format!(r#"{{"index_patterns":["{space}-*"],"priority":{priority},"composed_of":[{of}],"template":{settings}}}"#)
    };
    // One of the same priority for the same indexes keeps ours away, and nothing else.
    good("PUT", &theirs, &shaped(500, "")).await;
    works(&plan, &open(&plan, &plan.urls).expect("the stores")).await;
    good("DELETE", &theirs, "").await;
    drop(open(&plan, &plan.urls).expect("the stores"));
    good("PUT", &theirs, &shaped(900, &format!("\"{space}-s\""))).await;
    let stores = open(&plan, &plan.urls).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    // Made anew by us, then another one by the operator.
    target.clear("s").await.expect("cleared");
    works(&plan, &stores).await;
    good("PUT", &format!("/{space}-s-000002"), "").await;
    for index in ["000001", "000002"] {
        let found: String = good("GET", &format!("/{space}-s-{index}"), "").await.split_whitespace().collect();
        for wanted in [r#""number_of_replicas":"0""#, r#""number_of_shards":"2""#, r#""max_result_window":"20000""#] {
            assert!(found.contains(wanted), "{index} lacks {wanted}: {found}");
        }
        assert!(found.contains(r#""words":{"type":"text","analyzer":"whitespace"}"#), "{index}: {found}");
    }
}

/// Asks ClickHouse something; the first word of each line of the answer.
async fn asked(host: &str, sql: &str) -> Vec<String> {
    let (status, answer) = common::old::ask("POST", host, "/?default_format=TSV", sql).await;
    assert_eq!(status, 200, "{sql}: {answer}");
    answer.lines().map(str::to_owned).collect()
}

/// A row for each hour of arrival. (Rows of tests arrive at 1,000 s and a second more for each offset.)
fn hours(range: std::ops::Range<u64>) -> Vec<common::Row> {
    range.map(|hour| common::row(0, hour * 3_600, &format!("k{hour:03}"), 60, hour as i64, true)).collect()
}

fn hour(hour: i64, seconds: i64) -> EventTime {
    EventTime((1_000 + hour * 3_600 + seconds) * 1_000_000)
}

fn values(stores: &Stores) -> Vec<i64> {
    rows_of(&stores.read_side(), "t").into_iter().map(|row| row.2).collect()
}

/// Partitions by arrival go as a whole once all that could come into them is too old; the sinks' clock
/// says when, and rows of the partition in which the time falls go one by one.
async fn r10_clickhouse_drops_whole_what_arrived_long_ago() {
    const STORE: &str = "real:clickhouse";
    common::need(STORE);
    let mut plan = Plan::with_ttl(STORE, Duration::from_secs(8 * 3_600));
    let (host, space) = place(&mut plan, STORE);
    let stores = plan.open();
    let target = stores.store_of(&plan.sink).expect("a store");
    // A batch may span more partitions than a server takes by itself (100).
    target.write(plan.batch(&hours(0..130))).await.expect("written");
    assert_eq!(values(&stores), (0..130).collect::<Vec<_>>());
    let partitions =
        format!("SELECT count(DISTINCT partition) FROM system.parts WHERE database = '{space}' AND table = 's' AND active");
    let mutations = format!("SELECT count() FROM system.mutations WHERE database = '{space}' AND table = 's'");
    let count = async |sql: &str| asked(&host, sql).await.join("").trim().parse::<u64>().expect("a number");
    assert_eq!(count(&partitions).await, 130);
    // The row of hour 30 arrived 1,000 s after a partition's beginning: that instant is in it.
    target.maintain(hour(30 + 8, -1_000)).await.expect("tidied");
    assert_eq!(values(&stores), (30..130).collect::<Vec<_>>());
    assert_eq!((count(&partitions).await, count(&mutations).await), (100, 0), "all were dropped whole");
    target.maintain(hour(80 + 8, 1)).await.expect("tidied");
    assert_eq!(values(&stores), (81..130).collect::<Vec<_>>());
    assert_eq!(count(&mutations).await, 1, "the last one row by row");
    // The newest version of a key is the one that is seen, whichever partition it is in.
    target.write(plan.batch(&[common::row(0, 129 * 3_600, "k100", 60, 7, true)])).await.expect("written");
    assert_eq!(common::rows_where(&stores.read_side(), "t", "k100").len(), 1);
    target.clear("s").await.expect("cleared");
    assert!(values(&stores).is_empty());
}

/// A table that was made without partitions, since its sink had no time-to-live then, expires as before.
async fn r10_a_table_of_before_expires_row_by_row() {
    const STORE: &str = "real:clickhouse";
    common::need(STORE);
    let mut plan = Plan::new(STORE, 1);
    let before = plan.open();
    let rows = plan.batch(&hours(0..20));
    before.store_of(&plan.sink).expect("a store").write(rows).await.expect("written");
    let mut sink = (*plan.sink).clone();
    sink.ttl = Some(Duration::from_secs(8 * 3_600));
    plan.sink = std::sync::Arc::new(sink);
    let stores = plan.open();
    stores.store_of(&plan.sink).expect("a store").maintain(hour(10 + 8, 0)).await.expect("tidied");
    assert_eq!(values(&stores), (10..20).collect::<Vec<_>>());
}
