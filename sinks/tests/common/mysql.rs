//! A MariaDB server of a test's own, whose tables share one file of a given size.

use super::harness;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A running server that lets everybody in; its data go with it.
pub(crate) struct OwnMysql {
    child: Child,
    dir: tempfile::TempDir,
    /// Where it listens.
    pub(crate) port: u16,
}

impl OwnMysql {
    /// Starts one with a file such as `ibdata1:14M`; skips the test where there is no `mariadbd`.
    pub(crate) fn start(file: &str) -> OwnMysql {
        if !cfg!(feature = "mysql") {
            harness::skip("built without the feature `mysql`");
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let dir = tempfile::tempdir().expect("a folder");
        let child = launch(&dir, port, file);
        OwnMysql { child, dir, port }
    }

    /// On its port and data, with another size of the file.
    pub(crate) fn start_again(&mut self, file: &str) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
        self.child = launch(&self.dir, self.port, file);
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("mysql://me:s3cret@127.0.0.1:{}/quikflow", self.port)
    }
}

fn launch(dir: &tempfile::TempDir, port: u16, file: &str) -> Child {
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).expect("a folder");
    let paths = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("mariadbd");
    // Debian puts it where only root looks. Without grant tables there are no users, and nothing to be set up.
    command.env("PATH", format!("{paths}:/usr/sbin")).args(["--no-defaults", "--user=root", "--skip-grant-tables"]);
    command.args(["--bind-address=127.0.0.1", "--innodb-file-per-table=0", "--innodb-log-file-size=8M"]);
    command.args(["--innodb-buffer-pool-size=8M", "--performance-schema=OFF", "--character-set-server=utf8mb4"]);
    command.arg(format!("--port={port}")).arg(format!("--innodb-data-file-path={file}"));
    command.arg(format!("--datadir={}", data.display())).arg(format!("--socket={}", dir.path().join("s").display()));
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else { harness::skip("there is no mariadbd here") };
    let mut said = BufReader::new(child.stderr.take().expect("its output"));
    let (mut line, mut all) = (String::new(), String::new());
    while !line.contains("ready for connections") {
        line.clear();
        assert!(said.read_line(&mut line).expect("its output") > 0, "mariadbd ended: {all}");
        all.push_str(&line);
    }
    // It must not stop for want of a reader.
    std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    child
}

impl Drop for OwnMysql {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}
