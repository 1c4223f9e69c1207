//! (g): what a long query costs those who send: the time to an answer at the door, alone and beside a
//! cross join that runs for as long as a query may.

use crate::door::{Outcome, Server, exchange, requests, send, shape, write_file};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Three times every message with every other: never done within the limit.
const CROSS_JOIN: &str =
    "SELECT count(*) FROM messages a CROSS JOIN messages b CROSS JOIN messages c WHERE a.content > b.content";

/// Prints p50, p99 and the longest answer of single events, for `seconds` without and with the query.
pub(crate) fn cross_join(rate: u64, seconds: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("events.jsonl");
    write_file(&file, shape(20_000))?;
    let server = Server::start(&folder.path().join("data"), &[])?;
    send(&server, &file, &[])?;
    server.settle()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let requests = requests(rate * seconds * 2);
    let (alone, beside) = requests.split_at(requests.len() / 2);
    let waits = runtime.block_on(answers(&server, alone, rate))?;
    print("alone", waits);
    let url = format!("http://{}/v1/sql", server.query());
    let query = runtime.spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build()?;
        // The next one follows when the process has ended one at its limit.
        let mut ended = Vec::new();
        loop {
            let answer = client.post(&url).json(&serde_json::json!({ "sql": CROSS_JOIN })).send().await?;
            ended.push(answer.status().as_u16());
            if answer.status() != 504 {
                return Result::<_, reqwest::Error>::Ok(ended);
            }
        }
    });
    let waits = runtime.block_on(answers(&server, beside, rate))?;
    if query.is_finished() {
        return Err(format!("the query ended: {:?}", runtime.block_on(query)??).into());
    }
    query.abort();
    print("beside a cross join", waits);
    server.stop()
}

/// One event at a time, at a steady rate: how long each answer took.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn answers(server: &Server, requests: &[Vec<u8>], rate: u64) -> Outcome<Vec<Duration>> {
    let mut socket = TcpStream::connect(server.ingest()).await?;
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    let mut waits = Vec::with_capacity(requests.len());
    for request in requests {
        tick.tick().await;
        let started = Instant::now();
        exchange(&mut socket, request).await?;
        waits.push(started.elapsed());
    }
    waits.sort_unstable();
    Ok(waits)
}

fn print(how: &str, waits: Vec<Duration>) {
    let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).or(waits.last()).copied().unwrap_or_default();
    let name = format!("(g) an answer at the door, {how}");
    println!("{name:<58} p50 {:?}, p99 {:?}, longest {:?}, {} events", at(0.5), at(0.99), at(1.0), waits.len());
}
