//! (a), (b), (d), (e): the real binary over HTTP; its CPU time and memory, not the client's.

use crate::data::{HISTORY, Shape, events, json_line};
use crate::measure::{Run, peak_mib};
use crate::{bare, floor};
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

const QUIKFLOW: &str = env!("CARGO_BIN_EXE_quikflow");

pub(crate) struct Server {
    child: std::process::Child,
    addresses: Vec<String>,
}

impl Server {
    pub(crate) fn start(data: &Path, parts: &[&str]) -> Outcome<Server> {
        Server::start_with(&shipped(), data, parts)
    }

    fn start_with(topologies: &Path, data: &Path, parts: &[&str]) -> Outcome<Server> {
        Server::start_on("embedded", topologies, data, parts)
    }

    fn start_on(broker: &str, topologies: &Path, data: &Path, parts: &[&str]) -> Outcome<Server> {
        let mut command = std::process::Command::new(QUIKFLOW);
        command.env("QUIKFLOW_BROKER", broker);
        command.arg("run").args(parts).args(["--ingest-addr", "127.0.0.1:0", "--query-addr", "127.0.0.1:0"]);
        command.arg("--topologies").arg(topologies).arg("--data").arg(data);
        let mut child = command.env("RUST_LOG", "error").stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().ok_or("no output")?);
        std::io::BufRead::read_line(&mut output, &mut line)?;
        let addresses = line.split("http://").skip(1);
        let addresses =
            addresses.map(|a| a.split(|c: char| c.is_whitespace() || c == ',' || c == '/').next().unwrap_or("").to_owned());
        let addresses: Vec<String> = addresses.collect();
        if addresses.is_empty() {
            return Err(format!("the server says {line:?}").into());
        }
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(Server { child, addresses })
    }

    pub(crate) fn ingest(&self) -> &str {
        &self.addresses[0]
    }

    pub(crate) fn query(&self) -> &str {
        self.addresses.last().map_or("", String::as_str)
    }

    pub(crate) fn settle(&self) -> Outcome<()> {
        let mut command = std::process::Command::new(QUIKFLOW);
        command.args(["lag", "--wait", "--timeout", "900s", "--url", &format!("http://{}", self.query())]);
        let output = command.output()?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned().into()) }
    }

    pub(crate) fn stop(mut self) -> Outcome<()> {
        std::process::Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        self.child.wait()?;
        Ok(())
    }
}

/// The project's own declaration.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies.toml")
}

/// The same events and topics, and of all that follows the sinks of documents and search alone.
fn messages_only(folder: &Path) -> Outcome<PathBuf> {
    let mut declared: toml::Table = std::fs::read_to_string(shipped())?.parse()?;
    declared.remove("topology");
    declared.remove("test");
    if let Some(toml::Value::Array(sinks)) = declared.get_mut("sink") {
        let kept = |sink: &toml::Value| ["messages", "search"].map(|n| Some(n.into())).contains(&sink.get("name").cloned());
        sinks.retain(kept);
        assert_eq!(sinks.len(), 2, "the sinks of messages have other names now");
    }
    let file = folder.join("messages.toml");
    std::fs::write(&file, toml::to_string(&declared)?)?;
    Ok(file)
}

/// Events as the chat archive has them.
pub(crate) fn shape(records: u64) -> Shape {
    Shape { events: records, channels: 200, users: 5_000, start: HISTORY, step_seconds: 16.0, content: 600 }
}

pub(crate) fn write_file(file: &Path, shape: Shape) -> Outcome<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    let mut line = String::new();
    for event in events(shape, 2) {
        line.clear();
        json_line(&event, &mut line);
        out.write_all(line.as_bytes())?;
    }
    Ok(out.flush()?)
}

pub(crate) fn send(server: &Server, file: &Path, more: &[&str]) -> Outcome<()> {
    let mut command = std::process::Command::new(QUIKFLOW);
    command.arg("send").arg(file).args(["--url", &format!("http://{}", server.ingest())]).args(more);
    let output = command.output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned().into()) }
}

/// (a) on Kafka: `send` through the door, each batch of a lane a transaction.
#[cfg(feature = "kafka")]
pub(crate) fn batched_on_kafka(broker: &str, folder: &Path, records: u64) -> Outcome<()> {
    let file = folder.join("events.jsonl");
    write_file(&file, shape(records))?;
    let server = Server::start_on(broker, &shipped(), &folder.join("door"), &["ingest"])?;
    let run = Run::of(server.child.id());
    send(&server, &file, &["--batch", "1000"])?;
    run.end("Kafka, send by HTTP, durable, 1,000 events a request", records);
    server.stop()
}

/// (a), (d), (e): send batched, then the sinks from the filled log, then a restart.
pub(crate) fn batched_then_stores_then_restart(records: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let (file, data) = (folder.path().join("events.jsonl"), folder.path().join("data"));
    write_file(&file, shape(records))?;
    let server = Server::start(&data, &["ingest"])?;
    let run = Run::of(server.child.id());
    send(&server, &file, &["--batch", "1000"])?;
    run.end("(a) send by HTTP, durable, 1,000 events a request", records);
    server.stop()?;

    // a copy, since sinks that have come far are not run again
    let stores = folder.path().join("stores-only");
    std::fs::create_dir(&stores)?;
    for file in std::fs::read_dir(&data)? {
        let file = file?;
        if file.file_type()?.is_file() {
            std::fs::copy(file.path(), stores.join(file.file_name()))?;
        }
    }
    floor::full_text(&file, records)?;
    let server = Server::start_with(&messages_only(folder.path())?, &stores, &[])?;
    let run = Run::of(server.child.id());
    server.settle()?;
    run.end("(d) messages into documents and search", records);
    server.stop()?;
    std::fs::remove_dir_all(&stores)?;

    #[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    let started = Instant::now();
    let server = Server::start(&data, &[])?;
    println!("{:<58} {:>7.2} s", format!("(e) restart to ready, {records} records in the log"), started.elapsed().as_secs_f64());
    let run = Run::of(server.child.id());
    server.settle()?;
    run.end("    all shipped topologies and sinks from the filled log", records);
    server.stop()
}

/// (a): one event a request over `connections` connections.
pub(crate) fn single(records: u64, connections: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let requests: Arc<Vec<Vec<u8>>> = Arc::new(requests(records));
    let (mut bare, address) = bare::start()?;
    let run = Run::of(bare.id());
    exchange_all(&requests, &address, connections)?;
    run.end("    floor: the same requests, answered 202 and not looked at", records);
    bare.kill()?;
    bare.wait()?;
    let server = Server::start(&folder.path().join("data"), &["ingest"])?;
    let run = Run::of(server.child.id());
    exchange_all(&requests, server.ingest(), connections)?;
    run.end(&format!("(a) one event a request, {connections} connections"), records);
    server.stop()
}

/// Sends all requests over `connections` connections, each with one request under way.
fn exchange_all(requests: &Arc<Vec<Vec<u8>>>, address: &str, connections: u64) -> Outcome<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let next = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let (requests, next, address) = (requests.clone(), next.clone(), address.to_owned());
                tokio::task::spawn(async move {
                    let mut socket = TcpStream::connect(address).await?;
                    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        exchange(&mut socket, request).await?;
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Outcome::Ok(())
    })
}

pub(crate) fn requests(records: u64) -> Vec<Vec<u8>> {
    let made = events(shape(records), 3).map(|event| {
        let mut body = String::new();
        json_line(&event, &mut body);
        request("/v1/events?records=false", "application/json", body.trim_end())
    });
    made.collect()
}

fn request(path: &str, kind: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Sends one request and reads one answer, which must be a 202.
pub(crate) async fn exchange(socket: &mut TcpStream, request: &[u8]) -> std::io::Result<()> {
    socket.write_all(request).await?;
    let mut answer = vec![0; 4096];
    let mut have = 0;
    loop {
        let read = socket.read(&mut answer[have..]).await?;
        have += read;
        let text = String::from_utf8_lossy(&answer[..have]);
        if read == 0 || (have > 12 && !text.starts_with("HTTP/1.1 202")) {
            return Err(std::io::Error::other(format!("not accepted: {text}")));
        }
        let Some(end) = text.find("\r\n\r\n") else { continue };
        let length = text
            .to_lowercase()
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ").and_then(|n| n.trim().parse::<usize>().ok()));
        if have >= end + 4 + length.unwrap_or(0) {
            return Ok(());
        }
    }
}

/// (b): from the answer at the door to the row in the view, at `rate` events a second.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub(crate) fn visible(rate: u64, seconds: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let (file, data) = (folder.path().join("events.jsonl"), folder.path().join("data"));
    // Events of now, as clients send them: the file is written before the time of its first one.
    let lead = Duration::from_secs(10);
    let start = chrono::Utc::now() + lead;
    let live = Shape { start: start.timestamp_micros(), step_seconds: 1.0 / rate as f64, ..shape(rate * seconds) };
    write_file(&file, live)?;
    let server = Server::start(&data, &[])?;
    std::thread::sleep(
        (start - chrono::Utc::now()).to_std().map_err(|_| format!("writing the events took longer than {lead:?}"))?,
    );
    let run = Run::of(server.child.id());
    let mut waits = Vec::new();
    std::thread::scope(|scope| -> Outcome<()> {
        let load =
            scope.spawn(|| send(&server, &file, &["--batch", "1000", "--rate", &rate.to_string()]).map_err(|e| e.to_string()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().build()?;
            let mut probe = 0;
            while !load.is_finished() {
                probe += 1;
                waits.push(probe_once(&client, &server, probe).await?);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Outcome::Ok(())
        })?;
        load.join().map_err(|_| "the load failed")??;
        Ok(())
    })?;
    run.end(&format!("(b) HTTP to visible in channel_activity at {rate}/s"), rate * seconds);
    waits.sort_unstable();
    let at = |share: f64| {
        waits.get(((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    println!(
        "{:<58} p50 {:?}, p99 {:?}, {} probes, peak {:.0} MiB",
        "",
        at(0.5),
        at(0.99),
        waits.len(),
        peak_mib(server.child.id())
    );
    server.stop()
}

/// Sends one event of a channel of its own; the time from its answer until the view shows it.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn probe_once(client: &reqwest::Client, server: &Server, probe: u64) -> Outcome<Duration> {
    let now = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.6fZ");
    let event = format!(
        r#"{{"type":"MESSAGE_SENT","payload":{{"messageId":"p{probe}","channelId":"probe-{probe}","userId":"u","content":"x"}},"timestamp":"{now}"}}"#
    );
    let answer =
        client.post(format!("http://{}/v1/events", server.ingest())).header("content-type", "application/json").body(event);
    let answer = answer.send().await?;
    if answer.status() != 202 {
        return Err(answer.text().await?.into());
    }
    let accepted = Instant::now();
    let url = format!("http://{}/v1/views/channel_activity", server.query());
    let condition = format!("channel = 'probe-{probe}'");
    loop {
        let answer = client.get(&url).query(&[("include_open", "true"), ("where", &condition), ("limit", "1")]).send().await?;
        if answer.text().await?.contains(&format!("probe-{probe}")) {
            return Ok(accepted.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
