//! A Redis server of a test's own, which may be emptied, killed and told to refuse.

use super::harness;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A running server that writes nothing to disk: killed, it has forgotten all.
pub(crate) struct OwnRedis {
    child: Child,
    dir: tempfile::TempDir,
    args: Vec<String>,
    /// Where it listens.
    pub(crate) port: u16,
}

impl OwnRedis {
    /// Starts one; skips the test where there is no `redis-server`.
    pub(crate) fn start(args: &[&str]) -> OwnRedis {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let dir = tempfile::tempdir().expect("a folder");
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = launch(&dir, port, &args);
        OwnRedis { child, dir, args, port }
    }

    /// Its URL, with a login such as `user:password@`.
    pub(crate) fn url(&self, login: &str) -> String {
        format!("redis://{login}127.0.0.1:{}/0?prefix=quikflow_test", self.port)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// On its port, without data.
    pub(crate) fn start_again(&mut self) {
        self.child = launch(&self.dir, self.port, &self.args);
    }

    /// Tells it something; the first line of its answer.
    pub(crate) fn tell(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let mut text = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(text.as_bytes()).expect("sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        line
    }
}

fn launch(dir: &tempfile::TempDir, port: u16, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]).args(args);
    let spawned = command.arg("--dir").arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else { harness::skip("there is no redis-server here") };
    let mut said = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    while !line.to_lowercase().contains("ready to accept connections") {
        line.clear();
        assert!(said.read_line(&mut line).expect("its output") > 0, "redis-server ended: {args:?}");
    }
    // It must not stop for want of a reader.
    std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    child
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}
