//! A process at rest and at its end: no work while nothing comes, one owner of the data, an open
//! door only for this machine, and a good end on SIGTERM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use support::{Server, Start, both, shipped};

const TOKEN: &str = "a-token-that-is-long-enough";

/// A run that is meant to end by itself.
fn run(data: &Path, address: &str) -> Output {
    let mut command = support::command(&["run", "--ingest-addr", address, "--query-addr", "127.0.0.1:0"]);
    command.arg("--data").arg(data).arg("--topologies").arg(shipped()).env_remove("QUIKFLOW_TOKEN");
    command.output().unwrap()
}

/// CPU time of each of a process's threads, by the scheduler's own count, in nanoseconds; none beyond Linux. The
/// ticks of `/proc/PID/stat` are samples: threads that wake with the clock are charged a whole one each time.
fn threads(pid: u32) -> Option<BTreeMap<String, u64>> {
    let mut used = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let folder = thread.ok()?.path();
        // A thread may have ended meanwhile.
        let Ok(counts) = std::fs::read_to_string(folder.join("schedstat")) else { continue };
        used.insert(folder.display().to_string(), counts.split_whitespace().next()?.parse().ok()?);
    }
    (!used.is_empty()).then_some(used)
}

/// CPU time that a process has used since its threads were looked at.
fn used_since(before: &BTreeMap<String, u64>, pid: u32) -> Duration {
    let now = threads(pid).unwrap();
    let of = |(thread, used): (&String, &u64)| used - before.get(thread).copied().unwrap_or(0);
    Duration::from_nanos(now.iter().map(of).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_process_rests_and_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"));
    let events = support::command(&["generate", "--events", "300", "--seed", "3"]).output().unwrap();
    let file = folder.path().join("events.jsonl");
    std::fs::write(&file, events.stdout).unwrap();
    let sent = server.send(&file, &[]).wait_with_output().unwrap();
    assert!(sent.status.success(), "{}", both(&sent));
    server.settle();
    // What a join holds back for its `max_wait` is not settled: nothing is written after.
    let topics = server.get("/v1/status").await["topics"].clone();
    assert!(topics["notify.recipients"].as_u64() > Some(0), "{topics}");
    match threads(server.pid()) {
        None => println!("skipped: no /proc to read a process's CPU time from"),
        Some(_) => {
            // What follows a load, such as merging chunks, may take a moment: the best of some counts.
            let most = Duration::from_millis(50);
            let mut best = Duration::MAX;
            for _ in 0..4 {
                let before = threads(server.pid()).unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
                let used = used_since(&before, server.pid());
                println!("{used:?} of CPU in five seconds");
                best = best.min(used);
                if best < most {
                    break;
                }
            }
            assert!(best < most, "{best:?} of CPU in five idle seconds, 1 % is {most:?}");
        }
    }
    assert_eq!(topics, server.get("/v1/status").await["topics"], "something was written after all was settled");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn r9_a_second_run_on_the_same_data_ends_with_2_and_names_the_owner() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&data);
    let second = run(&data, "127.0.0.1:0");
    assert_eq!(second.status.code(), Some(2), "{}", both(&second));
    let said = both(&second);
    assert!(said.contains(&format!("process {}", server.pid())) && said.contains("owned by"), "{said}");
    // The first one is none the worse, and its end frees the data.
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(Server::start(&data).stop().code(), Some(0));
}

#[test]
fn without_a_token_only_this_machine_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let refused = run(&folder.path().join("data"), "0.0.0.0:0");
    assert_eq!(refused.status.code(), Some(2), "{}", both(&refused));
    assert!(both(&refused).contains("QUIKFLOW_TOKEN"), "{}", both(&refused));
    assert!(!folder.path().join("data").exists(), "a start that is refused makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_requests_without_it_get_401() {
    let folder = tempfile::tempdir().unwrap();
    let env = vec![("QUIKFLOW_TOKEN".to_owned(), TOKEN.to_owned())];
    let server = Start { env, ..Start::default() }.run(&folder.path().join("data"));
    let client = support::client();
    let event = r#"{"type":"PAGE_VIEW","payload":{"userId":"u","page":"/"},"timestamp":"2026-01-01T00:00:00Z"}"#;
    let post = || client.post(format!("{}/v1/events", server.ingest)).header("content-type", "application/json").body(event);
    let read = ["/v1/views", "/v1/lag", "/v1/dlq", "/v1/topologies", "/metrics", "/api/v1/users"];
    for path in read {
        let get = || client.get(format!("{}{path}", server.query));
        assert_eq!(get().send().await.unwrap().status(), 401, "{path}");
        assert_eq!(get().bearer_auth("another-token-long-enough").send().await.unwrap().status(), 401, "{path}");
        assert_ne!(get().bearer_auth(TOKEN).send().await.unwrap().status(), 401, "{path}");
    }
    assert_eq!(post().send().await.unwrap().status(), 401);
    assert_eq!(post().bearer_auth(TOKEN).send().await.unwrap().status(), 202);
    let socket = server.ingest.replacen("http", "ws", 1) + "/v1/ws";
    let refused = tokio_tungstenite::connect_async(&socket).await.unwrap_err();
    assert!(refused.to_string().contains("401"), "{refused}");
    for address in [&server.ingest, &server.query] {
        let health = client.get(format!("{address}/health/live")).send().await.unwrap();
        assert_eq!(health.status(), 200, "health needs no token");
    }
    let asked = |token: &str| {
        let mut command = support::command(&["lag"]);
        command.env("QUIKFLOW_URL", &server.query).env("QUIKFLOW_TOKEN", token).output().unwrap()
    };
    assert!(asked(TOKEN).status.success(), "{}", both(&asked(TOKEN)));
    let refused = asked("another-token-long-enough");
    assert_eq!(refused.status.code(), Some(2), "{}", both(&refused));
    let log = std::fs::read_to_string(server.data.with_extension("log")).unwrap();
    assert!(!log.contains(TOKEN), "a token is in the log");
    assert_eq!(server.stop().code(), Some(0));
}
