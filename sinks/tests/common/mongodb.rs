//! A MongoDB server of a test's own: with users, with TLS, stepping down, or told to fail.
//!
//! The program is the one that `tests/services` installs (`QUIKFLOW_TEST_MONGODB_PROGRAM`).

use super::harness;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A running server; its data go with it.
pub(crate) struct OwnMongo {
    child: Child,
    dir: tempfile::TempDir,
    /// Where it listens.
    pub(crate) port: u16,
}

impl OwnMongo {
    /// Starts one; skips the test where the program is not named.
    pub(crate) fn start(args: &[&str]) -> OwnMongo {
        if !cfg!(feature = "mongodb") {
            harness::skip("built without the feature `mongodb`");
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let dir = tempfile::tempdir().expect("a folder");
        let child = launch(&dir, port, args);
        OwnMongo { child, dir, port }
    }

    /// On its port and data, with other arguments.
    pub(crate) fn start_again(&mut self, args: &[&str]) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
        self.child = launch(&self.dir, self.port, args);
    }

    /// Its URL, with a login such as `user:password@`, and options.
    pub(crate) fn url(&self, login: &str, options: &str) -> String {
        format!("mongodb://{login}127.0.0.1:{}/quikflow?directConnection=true{options}", self.port)
    }

    /// Gives it a command; it has to take it.
    #[cfg(feature = "mongodb")]
    pub(crate) async fn tell(&self, database: &str, command: mongodb::bson::Document) {
        let client = mongodb::Client::with_uri_str(self.url("", "")).await.expect("a client");
        client.database(database).run_command(command).await.expect("taken");
    }
}

fn launch(dir: &tempfile::TempDir, port: u16, args: &[&str]) -> Child {
    let mut command = Command::new(harness::server("QUIKFLOW_TEST_MONGODB_PROGRAM"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--cache-size", "64M", "--sync-on-commit"]);
    command.arg("--storage-path").arg(dir.path().join("data")).args(args).current_dir(dir.path());
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("the program of QUIKFLOW_TEST_MONGODB_PROGRAM");
    let mut said = BufReader::new(child.stderr.take().expect("its output"));
    let (mut line, mut all) = (String::new(), String::new());
    while !line.contains("listening on") {
        line.clear();
        assert!(said.read_line(&mut line).expect("its output") > 0, "it ended: {args:?}: {all}");
        all.push_str(&line);
    }
    // It must not stop for want of a reader.
    std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    child
}

impl Drop for OwnMongo {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}
