//! A process at rest and at its end: no work while nothing comes, one owner of the data, an open
//! door only for this machine, and a good end on SIGTERM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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

/// How often each of a process's threads went to sleep, and its CPU time in nanoseconds; none beyond Linux.
fn threads(pid: u32) -> Option<BTreeMap<PathBuf, [u64; 2]>> {
    let mut seen = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let folder = thread.ok()?.path();
        let read = |file| std::fs::read_to_string(folder.join(file));
        // A thread may have ended meanwhile.
        let (Ok(status), Ok(counts)) = (read("status"), read("schedstat")) else { continue };
        let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let used = counts.split_whitespace().next()?;
        seen.insert(folder, [slept.trim().parse().ok()?, used.parse().ok()?]);
    }
    (!seen.is_empty()).then_some(seen)
}

/// What all threads of a process did since they were looked at: how often they woke, and their CPU time.
fn since(before: &BTreeMap<PathBuf, [u64; 2]>, pid: u32) -> (u64, Duration) {
    let now = threads(pid).unwrap();
    let of = |what: usize| {
        let more = |(thread, seen): (&PathBuf, &[u64; 2])| seen[what] - before.get(thread).map_or(0, |seen| seen[what]);
        now.iter().map(more).sum()
    };
    (of(0), Duration::from_nanos(of(1)))
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
        None => println!("skipped: no /proc to read from how often a process wakes"),
        Some(_) => {
            // Wakes are counted, not CPU time: what one costs is the machine's affair (between 0.04 and 0.5 ms for
            // any program). What follows a load, such as merging chunks, may take a moment: the best of some counts.
            let most = 75;
            let mut best = u64::MAX;
            for _ in 0..4 {
                let before = threads(server.pid()).unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
                let (wakes, used) = since(&before, server.pid());
                println!("{wakes} wakes and {used:?} of CPU in five seconds");
                best = best.min(wakes);
                if best < most {
                    break;
                }
            }
            assert!(best < most, "{best} wakes in five idle seconds, at most {most}");
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
