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

/// The stores.
const STORES: [&str; 5] = ["mongodb", "elasticsearch", "clickhouse", "redis", "mysql"];

/// Those whose test server asks for a password, or refuses one that it did not ask for.
const GUARDED: [&str; 4] = ["real:mysql", "real:redis", "real:clickhouse", "real:mongodb"];

/// HTTP answers of servers that refuse: store, status, header, body, what is said.
const ANSWERS: [(&str, u16, &str, &str, &str); 7] = [
    ("elasticsearch", 401, "content-type: application/json", r#"{"error":{"reason":"x"}}"#, "wrong user or password"),
    (
        "elasticsearch",
        403,
        "content-type: application/json",
        r#"{"error":{"reason":"action [x] is unauthorized"}}"#,
        "the user may not do this",
    ),
    ("clickhouse", 403, "x-clickhouse-exception-code: 516", "Code: 516. DB::Exception: me: x", "wrong user or password"),
    ("clickhouse", 403, "x-clickhouse-exception-code: 497", "Code: 497. DB::Exception: Not enough", "the user may not do this"),
    ("clickhouse", 500, "x-clickhouse-exception-code: 164", "Code: 164. DB::Exception: readonly", "read-only"),
    ("clickhouse", 404, "x-clickhouse-exception-code: 81", "Code: 81. DB::Exception: no such", "there is no database"),
    ("clickhouse", 500, "x-clickhouse-exception-code: 243", "Code: 243. DB::Exception: no space", "disk is full"),
];

crate::tests! {
    async a_store_that_is_away_is_waited_for,
    async a_url_that_cannot_be_read_names_the_setting,
    each GUARDED: async a_wrong_password_is_refused,
    each STORES: async a_server_too_old_is_refused,
    async refusals_over_http_are_told_apart,
    async mysql_says_what_a_user_may_not_and_a_replica_cannot,
    async redis_says_what_it_refuses,
    async r12_redis_rows_of_another_form_are_refused,
    async redis_is_waited_for_while_it_is_full_or_alone,
    async elasticsearch_says_what_a_block_means,
    async mongodb_says_what_a_user_may_not_and_a_secondary_cannot,
    async mongodb_is_waited_for_while_its_disk_is_full_or_it_is_no_primary,
    async mysql_is_waited_for_while_its_disk_is_full,
}

fn urls(store: &str, url: String) -> StoreUrls {
    let mut urls = StoreUrls::default();
    *common::url_of(&mut urls, store) = Some(url);
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
        names_the_setting(store, &error);
    }
}

/// A URL that cannot be read is refused at the start, with the setting and without the password.
async fn a_url_that_cannot_be_read_names_the_setting() {
    for (store, _, _) in REAL.into_iter().filter(|(_, _, compiled)| *compiled) {
        let plan = Plan::new(store, 1);
        let error = open(&plan, &urls(store, "nonsense:s3cret".into())).err().expect("a refusal");
        assert!(matches!(&error, StoreError::Refused { .. }), "{store}: {error}");
        names_the_setting(store, &error);
    }
}

/// The message names the setting to look at, and shows no password.
fn names_the_setting(store: &str, error: &StoreError) {
    let text = error.to_string();
    let setting = format!("QUIKFLOW_{}_URL", store.trim_start_matches("real:").to_uppercase());
    assert!(text.contains(&setting) && !text.contains("s3cret"), "{text}");
}

/// It was refused, in these words.
fn refused(store: &str, error: &StoreError, words: &str) {
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains(words), "{store}: {error}");
    names_the_setting(store, error);
}

/// It is tried again, and the message has these words.
fn waited_for(error: &StoreError, words: &str) {
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.to_string().contains(words), "{error}");
}

/// A wrong password is refused at the start.
async fn a_wrong_password_is_refused(store: &'static str) {
    common::need(store);
    let mut plan = Plan::new(store, 1);
    let url = common::url_of(&mut plan.urls, store).as_mut().expect("a URL");
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    *url = format!("{scheme}://quikflow:s3cret@{host}");
    refused(store, &open(&plan, &plan.urls).err().expect("a refusal"), "wrong user or password");
}

/// A server whose version is not spoken is refused at the start.
async fn a_server_too_old_is_refused(store: &'static str) {
    let (_, scheme, compiled) = REAL.into_iter().find(|(name, ..)| *name == store).expect("a known store");
    if !compiled {
        harness::skip(format!("built without the feature `{store}`"));
    }
    let port = common::old::server(store).await;
    let place = if store == "redis" { "0" } else { "quikflow" };
    let plan = Plan::new(store, 1);
    let error = open(&plan, &urls(store, format!("{scheme}://127.0.0.1:{port}/{place}"))).err().expect("a refusal");
    refused(store, &error, "version");
}

/// Servers that speak HTTP say by codes what they refuse: password, rights, read-only, full disk.
async fn refusals_over_http_are_told_apart() {
    for (store, status, header, body, words) in ANSWERS {
        if !REAL.iter().any(|(name, _, compiled)| *name == store && *compiled) {
            harness::skip(format!("built without the feature `{store}`"));
        }
        let port = common::old::http_server(status, header, body.into()).await;
        let plan = Plan::new(store, 1);
        let opened = open(&plan, &urls(store, format!("http://me:s3cret@127.0.0.1:{port}/quikflow")));
        if words == "disk is full" {
            // It is waited for: the start goes on.
            let store = opened.expect("it starts").store_of(&plan.sink).expect("a store");
            waited_for(&store.progress("s").await.expect_err("an error"), words);
        } else {
            refused(store, &opened.err().expect("a refusal"), words);
        }
    }
}

/// A user who may only read, and a replica, which is read-only.
async fn mysql_says_what_a_user_may_not_and_a_replica_cannot() {
    common::need("real:mysql");
    let plan = Plan::new("real:mysql", 1);
    // The database is there; the user may not make tables in it.
    drop(open(&plan, &plan.urls).expect("the stores"));
    let space = plan.urls.mysql.as_ref().and_then(|url| url.rsplit_once('/')).map(|(_, space)| space.to_owned());
    let space = space.expect("a database");
    for (variable, words) in [("READER", "the user may not do this"), ("REPLICA", "the server is read-only")] {
        let server = harness::server(&format!("QUIKFLOW_TEST_MYSQL_{variable}"));
        let mut error = None;
        // A replica may not have the database yet.
        for _ in 0..100 {
            error = open(&plan, &urls("mysql", format!("{server}/{space}"))).err();
            if error.as_ref().is_some_and(|error| error.to_string().contains(words)) {
                break;
            }
            tokio::task::yield_now().await;
        }
        refused("mysql", &error.expect("a refusal"), words);
    }
    // A replica with a wrong password names its own setting.
    let mut wrong = plan.urls.clone();
    wrong.mysql_replica = wrong.mysql.as_ref().map(|url| url.replace("quikflow:quikflow@", "quikflow:s3cret@"));
    let error = open(&plan, &wrong).err().expect("a refusal").to_string();
    assert!(error.contains("wrong user or password") && error.contains("QUIKFLOW_MYSQL_REPLICA_URL"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

fn own_redis(args: &[&str]) -> common::redis::OwnRedis {
    if !cfg!(feature = "redis") {
        harness::skip("built without the feature `redis`");
    }
    common::redis::OwnRedis::start(args)
}

/// Rights, replicas, and a server that throws rows away: at the start, or when it begins.
async fn redis_says_what_it_refuses() {
    let server = own_redis(&[]);
    assert_eq!(server.tell(&["ACL", "SETUSER", "weak", "on", ">s3cret", "~*", "+info", "+client", "+ping"]), "+OK\r\n");
    let plan = Plan::new("redis", 1);
    let error = open(&plan, &urls("redis", server.url("weak:s3cret@"))).err().expect("a refusal");
    refused("redis", &error, "the user may not do this");
    let stores = open(&plan, &urls("redis", server.url(""))).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let batch = plan.batch(&[common::row(0, 1, "k", 60, 1, true)]);
    target.write(batch.clone()).await.expect("written");
    assert_eq!(server.tell(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    refused("redis", &target.write(batch).await.expect_err("a refusal"), "read-only replica");
    let error = open(&plan, &urls("redis", server.url(""))).err().expect("a refusal");
    refused("redis", &error, "read-only replica");
    assert_eq!(server.tell(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    assert_eq!(server.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]), "+OK\r\n");
    let error = open(&plan, &urls("redis", server.url(""))).err().expect("a refusal");
    refused("redis", &error, "throws rows away");
}

/// R12: rows as an earlier version wrote them (a hash each) are neither read nor written over; a new prefix has none.
async fn r12_redis_rows_of_another_form_are_refused() {
    let server = own_redis(&[]);
    let plan = Plan::new("redis", 1);
    let stores = open(&plan, &urls("redis", server.url(""))).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let rows = [common::row(0, 1, "k", 60, 1, true)];
    target.write(plan.batch(&rows)).await.expect("written");
    assert!(open(&plan, &urls("redis", server.url(""))).is_ok(), "its own form");
    let place = "{quikflow_test}:row:s:k\u{1f}1970-01-01T00:01:00Z";
    assert_eq!(server.tell(&["DEL", place]), ":1\r\n", "where the row lies");
    assert_eq!(server.tell(&["HSET", place, "base", "1", "gone", "0", "rev", "1", "doc", "{}"]), ":4\r\n");
    refused("redis", &target.write(plan.batch(&rows)).await.expect_err("a refusal"), "of another form");
    refused("redis", &open(&plan, &urls("redis", server.url(""))).err().expect("a refusal"), "of another form");
    let other = server.url("").replace("quikflow_test", "quikflow_new");
    assert!(open(&plan, &urls("redis", other)).is_ok(), "nothing is there");
}

/// What passes is waited for: memory that is full, replicas that are away.
async fn redis_is_waited_for_while_it_is_full_or_alone() {
    let server = own_redis(&[]);
    let plan = Plan::new("redis", 1);
    let stores = open(&plan, &urls("redis", server.url(""))).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let batch = |offset| plan.batch(&[common::row(0, offset, "k", 60, offset as i64, true)]);
    for (offset, setting, on, off, words) in
        [(1, "maxmemory", "1", "0", "maxmemory"), (2, "min-replicas-to-write", "1", "0", "min-replicas-to-write")]
    {
        assert_eq!(server.tell(&["CONFIG", "SET", setting, on]), "+OK\r\n");
        waited_for(&target.write(batch(offset)).await.expect_err("an error"), words);
        assert_eq!(server.tell(&["CONFIG", "SET", setting, off]), "+OK\r\n");
        target.write(batch(offset)).await.expect("written");
        assert_eq!(common::rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, offset as i64)]);
    }
}

/// A block against writing stops the sink; the one that a full disk brings is waited for.
async fn elasticsearch_says_what_a_block_means() {
    common::need("real:elasticsearch");
    let plan = Plan::new("real:elasticsearch", 1);
    let stores = open(&plan, &plan.urls).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let url = plan.urls.elasticsearch.clone().expect("a URL");
    let (host, space) = url.trim_start_matches("http://").split_once('/').expect("a host");
    let batch = |offset| plan.batch(&[common::row(0, offset, "k", 60, offset as i64, true)]);
    for (offset, block) in [(1, "write"), (2, "read_only_allow_delete")] {
        let path = format!("/{space}-s/_settings");
        let set = async |value: &str| {
            let body = format!(r#"{{"index.blocks.{block}":{value}}}"#);
            assert_eq!(common::old::ask("PUT", host, &path, &body).await.0, 200, "{block}");
        };
        set("true").await;
        let error = target.write(batch(offset)).await.expect_err("an error");
        match block {
            "write" => refused("elasticsearch", &error, "read-only"),
            _ => waited_for(&error, "disk is full"),
        }
        set("null").await;
        target.write(batch(offset)).await.expect("written");
        assert_eq!(common::rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, offset as i64)]);
    }
}

/// A user who may only read, one of another database, and a server that is a secondary of a set.
#[cfg(feature = "mongodb")]
async fn mongodb_says_what_a_user_may_not_and_a_secondary_cannot() {
    use ::mongodb::bson::doc;
    let mut server = common::mongodb::OwnMongo::start(&[]);
    for (user, role, database) in
        [("reader", "read", "quikflow"), ("stranger", "readWrite", "elsewhere"), ("writer", "readWrite", "quikflow")]
    {
        let roles = vec![doc! { "role": role, "db": database }];
        server.tell("quikflow", doc! { "createUser": user, "pwd": "s3cret", "roles": roles }).await;
    }
    server.start_again(&["--auth"]);
    let plan = Plan::new("mongodb", 1);
    for (login, words) in [
        ("", "the user may not do this"),
        ("reader:s3cret@", "the user may not do this"),
        ("stranger:s3cret@", "the user may not do this"),
        ("writer:nonsense@", "wrong user or password"),
    ] {
        refused("mongodb", &open(&plan, &urls("mongodb", server.url(login, ""))).err().expect("a refusal"), words);
    }
    let stores = open(&plan, &urls("mongodb", server.url("writer:s3cret@", ""))).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    target.write(plan.batch(&[common::row(0, 1, "k", 60, 1, true)])).await.expect("written");
    assert_eq!(common::rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 1)]);
    // Of a secondary, which is read-only, the primary is named.
    let port = common::old::secondary().await;
    let error = open(&plan, &urls("mongodb", format!("mongodb://127.0.0.1:{port}/?directConnection=true"))).err();
    let error = error.expect("a refusal");
    refused("mongodb", &error, "a secondary, which is read-only; the primary is elsewhere:27017");
}

#[cfg(not(feature = "mongodb"))]
async fn mongodb_says_what_a_user_may_not_and_a_secondary_cannot() {
    harness::skip("built without the feature `mongodb`");
}

/// What passes is waited for: a full disk, and a set without a primary; at the start too.
#[cfg(feature = "mongodb")]
async fn mongodb_is_waited_for_while_its_disk_is_full_or_it_is_no_primary() {
    use ::mongodb::bson::doc;
    let mut server = common::mongodb::OwnMongo::start(&["--enable-test-commands"]);
    let plan = Plan::new("mongodb", 1);
    let here = urls("mongodb", server.url("", ""));
    let stores = open(&plan, &here).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let batch = |offset| plan.batch(&[common::row(0, offset, "k", 60, offset as i64, true)]);
    target.write(batch(1)).await.expect("written");
    let fail = |mode: &str| {
        let of = vec!["insert", "update", "createIndexes"];
        doc! { "configureFailPoint": "failCommand", "mode": mode, "data": { "failCommands": of, "errorCode": 14_031 } }
    };
    server.tell("admin", fail("alwaysOn")).await;
    waited_for(&target.write(batch(2)).await.expect_err("an error"), "disk is full");
    let second = open(&plan, &here).expect("it starts").store_of(&plan.sink).expect("a store");
    waited_for(&second.progress("s").await.expect_err("an error"), "disk is full");
    server.tell("admin", fail("off")).await;
    target.write(batch(2)).await.expect("written");
    assert_eq!(common::rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 2)]);
    second.progress("s").await.expect("its progress");
    // It steps down, and no other is there: no write is taken, and the start waits.
    server.tell("admin", doc! { "replSetStepDown": 600, "force": true }).await;
    let error = target.write(batch(3)).await.expect_err("an error");
    waited_for(&error, "no primary of the replica set takes writes now");
    names_the_setting("mongodb", &error);
    let third = open(&plan, &here).expect("it starts").store_of(&plan.sink).expect("a store");
    waited_for(&third.progress("s").await.expect_err("an error"), "no primary of the replica set takes writes now");
    server.start_again(&[]);
    again(async || target.write(batch(3)).await.map(|_| ())).await;
    assert_eq!(common::rows_of(&stores.read_side(), "t"), vec![("k".to_owned(), 60_000_000, 3)]);
}

#[cfg(not(feature = "mongodb"))]
async fn mongodb_is_waited_for_while_its_disk_is_full_or_it_is_no_primary() {
    harness::skip("built without the feature `mongodb`");
}

/// Tries as the runner does, until it succeeds; only what passes may come in between.
async fn again(call: impl AsyncFn() -> Result<(), StoreError>) {
    for _ in 0..100 {
        match call().await {
            Ok(()) => return,
            Err(error) => waited_for(&error, ""),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("it does not come back");
}

/// Rows until the file of all tables is full, then more room: nothing is lost, and none was refused.
async fn mysql_is_waited_for_while_its_disk_is_full() {
    let mut server = common::mysql::OwnMysql::start("ibdata1:13M");
    let plan = Plan::new("mysql", 1);
    let here = urls("mysql", server.url());
    let stores = open(&plan, &here).expect("the stores");
    let target = stores.store_of(&plan.sink).expect("a store");
    let batch = |number: u64| {
        let rows: Vec<common::Row> = (0..2_000)
            .map(|at| common::row(0, number * 2_000 + at, &format!("key{}", number * 2_000 + at), 60, at as i64, true))
            .collect();
        plan.batch(&rows)
    };
    let mut number = 0;
    let error = loop {
        match target.write(batch(number)).await {
            Ok(_) if number < 200 => number += 1,
            Ok(_) => panic!("the file takes everything"),
            Err(error) => break error,
        }
    };
    waited_for(&error, "disk is full");
    // A process that starts now and makes tables finds no room for one.
    let other = |at: usize| {
        let mut sink = (*plan.sink).clone();
        sink.name = format!("other{at}");
        let sinks = [(std::sync::Arc::new(sink), plan.topic.clone())];
        let opened = Stores::open_with(plan.dir(), ManualClock::at(EventTime(0)), &sinks, &here).expect("it starts");
        (sinks[0].0.name.clone(), opened.store_of(&sinks[0].0).expect("a store"))
    };
    let mut found = None;
    for at in 0..50 {
        let (name, second) = other(at);
        if let Err(error) = second.progress(&name).await {
            waited_for(&error, "disk is full");
            found = Some((name, second));
            break;
        }
    }
    let (name, second) = found.expect("one that finds no room");
    server.start_again("ibdata1:13M:autoextend");
    again(async || target.write(batch(number)).await.map(|_| ())).await;
    again(async || second.progress(&name).await.map(|_| ())).await;
    assert_eq!(common::rows_of(&stores.read_side(), "t").len() as u64, (number + 1) * 2_000);
}
