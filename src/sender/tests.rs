//! Sending against a small door that keeps lanes as the real one does, and fails by seed.

use super::*;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use quikflow_topics::clock::SystemClock;
use std::sync::Mutex;

/// Lanes, and what they brought: (line, text).
#[derive(Default)]
struct DoorState {
    lanes: BTreeMap<String, u64>,
    records: Vec<(u64, String)>,
    random: u64,
    /// Of 100 requests so many are answered 503, half of them after they were applied.
    trouble: u64,
    requests: u64,
}

type Shared = Arc<Mutex<DoorState>>;

async fn take(State(state): State<Shared>, headers: HeaderMap, body: String) -> Response {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let number = |name: &str| header(name).parse::<u64>().unwrap();
    let (producer, first, previous) =
        (header("quikflow-producer"), number("quikflow-first-line"), number("quikflow-previous-line"));
    let mut state = state.lock().unwrap();
    state.requests += 1;
    state.random = state.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let dice = (state.random >> 33) % 100;
    if dice < state.trouble / 2 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let at = state.lanes.get(&producer).copied().unwrap_or(0);
    if at < previous {
        let problem = serde_json::json!({ "type": "out_of_sequence", "expected": at });
        return (StatusCode::CONFLICT, axum::Json(problem)).into_response();
    }
    if body.len() > 2_000 {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let (mut accepted, mut duplicates, mut errors, mut last) = (0, 0, Vec::new(), first - 1);
    for line in body.lines() {
        last += 1;
        if line.contains("bad") {
            errors.push(serde_json::json!({ "line": last, "path": "payload", "rule": "bad", "message": "it is bad" }));
        } else if line.is_empty() {
        } else if last <= at {
            duplicates += 1;
        } else {
            accepted += 1;
            state.records.push((last, line.to_owned()));
        }
    }
    let reached = at.max(last);
    state.lanes.insert(producer, reached);
    if dice < state.trouble {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let answer =
        serde_json::json!({ "accepted": accepted, "duplicates": duplicates, "rejected": errors.len(), "errors": errors });
    let status = if accepted + duplicates == 0 { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::ACCEPTED };
    (status, axum::Json(answer)).into_response()
}

async fn door(trouble: u64, seed: u64) -> (Shared, String) {
    let state = Shared::new(Mutex::new(DoorState { trouble, random: seed, ..DoorState::default() }));
    let router = axum::Router::new().route("/v1/events", axum::routing::post(take)).with_state(state.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (state, base)
}

fn options(base: &str, batch: u64, connections: usize) -> Options {
    Options { base: base.to_owned(), token: None, rate: None, connections, batch }
}

/// `lines` lines; every tenth is bad, every seventh empty.
fn write(dir: &Path, lines: u64) -> (PathBuf, Vec<(u64, String)>) {
    let path = dir.join("a.jsonl");
    let text = |n: u64| match n {
        n if n.is_multiple_of(10) => format!("bad {n}"),
        n if n.is_multiple_of(7) => String::new(),
        n => format!("line {n}"),
    };
    std::fs::write(&path, (1..=lines).map(|n| text(n) + "\n").collect::<String>()).unwrap();
    (path, (1..=lines).map(|n| (n, text(n))).filter(|(_, t)| t.starts_with("line")).collect())
}

fn refused_lines(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines: Vec<u64> =
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["line"].as_u64().unwrap()).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn r17_every_line_arrives_once_and_in_order_whatever_the_door_does() {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let (path, want) = write(dir.path(), 300);
        let (state, base) = door(30, seed).await;
        let summary = send(&path, options(&base, 7, 3), SystemClock::shared()).await.unwrap();
        assert_eq!(state.lock().unwrap().records, want);
        assert_eq!((summary.lines, summary.refused["bad"], summary.interrupted), (300, 30, false));
        assert_eq!(refused_lines(&summary.refused_path), (1..=30).map(|n| n * 10).collect::<Vec<_>>());
        assert!(!path.with_file_name("a.jsonl.quikflow-run").exists());
    }
}

#[tokio::test]
async fn r17_a_killed_run_resumes_with_another_batch_and_other_connections() {
    let dir = tempfile::tempdir().unwrap();
    let (path, want) = write(dir.path(), 400);
    let (state, base) = door(20, 11).await;
    for (batch, connections, stop_at) in [(5, 2, 20), (11, 4, 40), (3, 1, 70)] {
        // Dropping the future in the midst is what kill -9 leaves: no farewell, no last save.
        let sending = send(&path, options(&base, batch, connections), SystemClock::shared());
        let watch = async {
            while state.lock().unwrap().requests < stop_at {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            summary = sending => panic!("ended too early: {summary:?}"),
            () = watch => {}
        }
    }
    let summary = send(&path, options(&base, 6, 3), SystemClock::shared()).await.unwrap();
    assert_eq!(state.lock().unwrap().records, want);
    assert_eq!(refused_lines(&summary.refused_path), (1..=40).map(|n| n * 10).collect::<Vec<_>>());
    // The same file again, on purpose: a new run.
    send(&path, options(&base, 6, 3), SystemClock::shared()).await.unwrap();
    assert_eq!(state.lock().unwrap().records.len(), 2 * want.len());
    assert_eq!(state.lock().unwrap().lanes.len(), 2);
}

#[tokio::test]
async fn a_door_that_has_forgotten_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, want) = write(dir.path(), 100);
    let (state, base) = door(0, 1).await;
    let run = Run { done: 50, ..Run::new(run_file::fingerprint(&path).unwrap()).unwrap() };
    run_file::save(&path.with_file_name("a.jsonl.quikflow-run"), &run).unwrap();
    let summary = send(&path, options(&base, 9, 3), SystemClock::shared()).await.unwrap();
    assert_eq!(state.lock().unwrap().records, want);
    assert_eq!(summary.accepted, want.len() as u64);
}

#[tokio::test]
async fn a_lot_too_large_is_halved_and_a_line_too_large_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let lines: Vec<String> = (0..8).map(|n| if n == 5 { "x".repeat(3_000) } else { format!("{n}{}", "y".repeat(600)) }).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let (state, base) = door(0, 1).await;
    let summary = send(&path, options(&base, 8, 2), SystemClock::shared()).await.unwrap();
    let got: Vec<u64> = state.lock().unwrap().records.iter().map(|(line, _)| *line).collect();
    assert_eq!(got, [1, 2, 3, 4, 5, 7, 8]);
    assert_eq!((refused_lines(&summary.refused_path), summary.refused["too_large"]), (vec![6], 1));
}

#[tokio::test]
async fn a_file_changed_since_an_interrupted_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = write(dir.path(), 10);
    run_file::save(&path.with_file_name("a.jsonl.quikflow-run"), &Run::new("other".into()).unwrap()).unwrap();
    let failure = send(&path, options("http://127.0.0.1:9", 9, 3), SystemClock::shared()).await.unwrap_err();
    assert!(failure.message.contains("has changed"), "{}", failure.message);
}
