//! Starts the real binary in a folder of its own, asks it over HTTP, stops or kills it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

pub mod chat;
pub mod count;
pub mod fluvio;
pub mod harness;
pub mod kafka;
pub mod kills;
pub mod phrases;
pub mod random;
pub mod services;
pub mod traffic;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// The binary under test.
pub const QUIKFLOW: &str = env!("CARGO_BIN_EXE_quikflow");

/// The topologies that ship.
pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies.toml")
}

/// A running server.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub ingest: String,
    /// `http://127.0.0.1:PORT`
    pub query: String,
    /// Its `--data`.
    pub data: PathBuf,
}

/// How to start a server.
#[derive(Default, Clone)]
pub struct Start {
    /// Environment of the process.
    pub env: Vec<(String, String)>,
    /// Further arguments.
    pub args: Vec<String>,
    /// The topologies; the shipped ones where absent.
    pub topologies: Option<PathBuf>,
    /// Ports of ingest and query; free ones where absent.
    pub ports: Option<(u16, u16)>,
    /// A program and its arguments that become the server.
    pub before: Vec<String>,
}

impl Start {
    /// Starts the server on free ports and waits for its ready line.
    pub fn run(&self, data: &Path) -> Server {
        self.try_run(data).unwrap_or_else(|status| panic!("the server ended before it was ready: {status}"))
    }

    /// The same; the exit status where it ended before it was ready.
    pub fn try_run(&self, data: &Path) -> Result<Server, ExitStatus> {
        let mut words = self.before.iter().map(String::as_str).chain([QUIKFLOW]);
        let mut command = Command::new(words.next().unwrap_or(QUIKFLOW));
        command.args(words);
        let (ingest, query) = self.ports.unwrap_or((0, 0));
        command.args(["run", "--ingest-addr", &format!("127.0.0.1:{ingest}"), "--query-addr", &format!("127.0.0.1:{query}")]);
        command.arg("--data").arg(data);
        command.arg("--topologies").arg(self.topologies.clone().unwrap_or_else(shipped)).args(&self.args);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::piped());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log")).unwrap();
        command.stderr(log);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let Some(Ok(line)) = lines.next() else { return Err(child.wait().unwrap()) };
        let address = |part: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(part));
            word.unwrap_or_default().trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned()
        };
        let (ingest, query) = (address("ingest="), address("query="));
        // Nothing else is printed, but the pipe must not fill should that change.
        std::thread::spawn(move || lines.count());
        Ok(Server { child, ingest, query, data: data.to_path_buf() })
    }
}

/// Two ports that were free a moment ago.
pub fn free_ports() -> (u16, u16) {
    let hold = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, other) = (hold(), hold());
    (one.local_addr().unwrap().port(), other.local_addr().unwrap().port())
}

impl Server {
    /// A server with the defaults.
    pub fn start(data: &Path) -> Server {
        Start::default().run(data)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.end();
    }

    /// The same, where another process takes its place.
    pub fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether the process has ended by itself, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "no signal {signal}");
    }

    /// One event that a sink follows and no count looks at, so that a process without traffic has some.
    pub async fn poke(&self, number: u64) {
        let event = format!(
            r#"{{"type":"USER_TYPING","payload":{{"userId":"poke-{number}","channelId":"c"}},"timestamp":"2026-01-01T00:00:00Z"}}"#
        );
        let request = client().post(format!("{}/v1/events", self.ingest)).header("content-type", "application/json").body(event);
        // It may be killed before it answers: that is what a failpoint is for.
        if let Ok(answer) = request.send().await {
            assert!(answer.status().is_success(), "{}", answer.status());
        }
    }

    /// SIGTERM, and the exit status.
    pub fn stop(mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }

    /// A GET of the query address, as JSON.
    pub async fn get(&self, path: &str) -> Value {
        let answer = client().get(format!("{}{path}", self.query)).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// A GET of the query address in another format.
    pub async fn get_as(&self, path: &str, accept: &str) -> String {
        let answer = client().get(format!("{}{path}", self.query)).header("accept", accept).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    /// Rows of an SQL query, each a JSON object.
    pub async fn sql(&self, sql: &str) -> Vec<Value> {
        let body = serde_json::json!({ "sql": sql });
        let answer = client().post(format!("{}/v1/sql", self.query)).json(&body).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{sql}: {status} {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["rows"].as_array().unwrap_or_else(|| panic!("{sql}: no rows: {answer}")).clone()
    }

    /// A POST of events to the ingest address: status and answer.
    pub async fn post(&self, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let answer =
            client().post(format!("{}{path}", self.ingest)).header("content-type", kind).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Waits until everything has reached its store.
    pub fn settle(&self) {
        let output = self.command(&["lag", "--wait", "--timeout", "300s"]);
        assert!(output.status.success(), "lag --wait: {}", both(&output));
    }

    /// Runs a command of the binary against this server.
    pub fn command(&self, args: &[&str]) -> Output {
        command(args).env("QUIKFLOW_URL", &self.query).output().unwrap()
    }

    /// Starts `send` of a file to this server.
    pub fn send(&self, file: &Path, args: &[&str]) -> Child {
        let mut command = command(&["send"]);
        command.arg(file).args(["--url", &self.ingest]).args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        if std::thread::panicking() {
            // The folder goes with the test: what is needed to find the cause is said here.
            let how = ended.map_or_else(|| "is running".to_owned(), |status| format!("has ended: {status}"));
            println!("the server of {} {how}; the end of its log:", self.data.display());
            let log = std::fs::read(self.data.with_extension("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| println!("    {line}"));
        }
        if ended.is_none() {
            let killed = self.child.kill().and_then(|()| self.child.wait());
            assert!(killed.is_ok() || std::thread::panicking());
        }
    }
}

/// The binary with arguments.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(QUIKFLOW);
    command.args(args).env_remove("QUIKFLOW_URL").stdin(Stdio::null());
    command
}

/// What a command said.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An HTTP client.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap()
}
