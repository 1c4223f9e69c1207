//! What real stores say on bad days: a store that is away is waited for, one that refuses names the
//! setting to look at; no message shows a password.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{Plan, harness};
use quikflow_sinks::store::{StoreError, StoreSet};
use quikflow_sinks::stores::{StoreUrls, Stores};
use quikflow_topics::clock::ManualClock;
use quikflow_topics::ids::EventTime;

const REAL: [(&str, &str, bool); 5] = [
    ("mongodb", "mongodb", cfg!(feature = "mongodb")),
    ("elasticsearch", "http", cfg!(feature = "elasticsearch")),
    ("clickhouse", "http", cfg!(feature = "clickhouse")),
    ("redis", "redis", cfg!(feature = "redis")),
    ("mysql", "mysql", cfg!(feature = "mysql")),
];

/// Those whose test server asks for a password, or refuses one that it did not ask for.
const GUARDED: [&str; 2] = ["real:mysql", "real:redis"];

crate::tests! {
    async a_store_that_is_away_is_waited_for,
    async a_url_that_cannot_be_read_names_the_setting,
    each GUARDED: async a_wrong_password_is_refused,
}

fn urls(store: &str, url: String) -> StoreUrls {
    let mut urls = StoreUrls::default();
    match store {
        "mongodb" => urls.mongodb = Some(url),
        "elasticsearch" => urls.elasticsearch = Some(url),
        "clickhouse" => urls.clickhouse = Some(url),
        "redis" => urls.redis = Some(url),
        _ => urls.mysql = Some(url),
    }
    urls
}

fn open(plan: &Plan, urls: &StoreUrls) -> Result<Stores, StoreError> {
    Stores::open_with(plan.dir(), ManualClock::at(EventTime(0)), &[(plan.sink.clone(), plan.topic.clone())], urls)
}

/// The process starts, and the sink tries again: nothing is lost while a store is away.
async fn a_store_that_is_away_is_waited_for() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    for (store, scheme, compiled) in REAL {
        let plan = Plan::new(store, 1);
        let opened = open(
            &plan,
            &urls(store, format!("{scheme}://me:s3cret@127.0.0.1:{port}/{}", if store == "redis" { "0" } else { "quikflow" })),
        );
        if !compiled {
            let error = opened.err().expect("a refusal");
            assert!(matches!(&error, StoreError::Refused { .. }), "{store}: {error}");
            assert!(error.to_string().contains(&format!("--features {store}")), "{error}");
            continue;
        }
        let stores = opened.expect("it starts");
        let error = stores.store_of(&plan.sink).expect("a store").progress("s").await.expect_err("an error");
        assert!(matches!(&error, StoreError::Unavailable { .. }), "{store}: {error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

/// A URL that cannot be read is refused at the start, with the setting and without the password.
async fn a_url_that_cannot_be_read_names_the_setting() {
    for (store, _, _) in REAL.into_iter().filter(|(_, _, compiled)| *compiled) {
        let plan = Plan::new(store, 1);
        let error = open(&plan, &urls(store, "nonsense:s3cret".into())).err().expect("a refusal");
        assert!(matches!(&error, StoreError::Refused { .. }), "{store}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("QUIKFLOW_{}_URL", store.to_uppercase())) && !text.contains("s3cret"), "{text}");
    }
}

/// A wrong password is refused at the start.
async fn a_wrong_password_is_refused(store: &'static str) {
    common::need(store);
    let plan = Plan::new(store, 1);
    let mut wrong = plan.urls.clone();
    for url in [&mut wrong.mysql, &mut wrong.redis].into_iter().flatten() {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        *url = format!("{scheme}://quikflow:s3cret@{host}");
    }
    let error = open(&plan, &wrong).err().expect("a refusal").to_string();
    assert!(error.contains("wrong user or password") && error.contains("QUIKFLOW_") && !error.contains("s3cret"), "{error}");
}
