//! A full disk: nothing that was answered is lost, what cannot be stored is not answered as accepted;
//! the process goes on when there is room again; one that cannot start says why, and the next one goes on.
//!
//! The disk is a small file system in memory, mounted in a name space of its own: it takes no rights
//! but those of user name spaces. Where the system gives none, the tests count as ignored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::kills::{settled, slow_send};
use support::random::Random;
use support::traffic::generated;
use support::{Server, Start, client, free_ports, harness};

crate::tests! {
    async a_full_disk_refuses_and_loses_nothing,
    async a_start_on_a_full_disk_says_so_and_the_next_one_goes_on,
}

/// A small disk, mounted as long as its holder lives.
struct Disk {
    holder: Child,
    /// Where it is mounted for those who enter.
    mounted: PathBuf,
}

impl Disk {
    /// Mounts one of so many MiB on `folder`; skips the test where the system does not let us.
    fn mount(folder: &Path, mib: u32) -> Disk {
        std::fs::create_dir_all(folder).unwrap();
        let script = format!("mount -t tmpfs -o size={mib}m none \"$0\" && echo mounted && exec sleep 3600");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(folder);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut holder) = spawned else { harness::skip("there is no `unshare` to mount a small disk with") };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "mounted" {
            holder.wait().unwrap();
            harness::skip("this system mounts no small disk in a name space of its own");
        }
        Disk { holder, mounted: folder.to_path_buf() }
    }

    /// How a process is started that sees it.
    fn start(&self) -> Start {
        let pid = self.holder.id().to_string();
        let enter = ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", &pid, "--"];
        Start { before: enter.map(str::to_owned).to_vec(), ports: Some(free_ports()), ..Start::default() }
    }

    fn ballast(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.mounted.strip_prefix("/").unwrap()).join("ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Takes away what filled it.
    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let ended = self.holder.kill().and_then(|()| self.holder.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// What a request of a hundred events of 8 KiB is answered; none: no answer. What a commit has to
/// write fits into the file that earlier ones left for a while, so it takes many to feel that the disk is full.
async fn many(server: &Server, random: &mut Random) -> Option<(u16, String)> {
    let mut body = String::new();
    for _ in 0..100 {
        let noise: String = (0..512).map(|_| format!("{:016x}", random.below(u64::MAX))).collect();
        body.push_str(&format!(
            r#"{{"type":"USER_TYPING","payload":{{"userId":"u","channelId":"c","noise":"{noise}"}},"timestamp":"2026-01-01T00:00:00Z"}}"#
        ));
        body.push('\n');
    }
    let request = client().post(format!("{}/v1/events", server.ingest)).header("content-type", "application/x-ndjson").body(body);
    let answer = request.send().await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

async fn a_full_disk_refuses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&folder.path().join("disk"), 256);
    let mut random = Random(20_261_127);
    let (file, expected) = generated(folder.path(), 20_000);
    let start = disk.start();
    let mut server = start.run(&disk.mounted.join("data"));
    let send = slow_send(&file, start.ports.unwrap().0, 12);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(2_500));
        disk.fill();
        let mut refused = false;
        for _ in 0..300 {
            match many(&server, &mut random).await {
                Some((202, _)) => {}
                Some((503, body)) => {
                    assert!(body.contains("urn:quikflow:storage"), "{body}");
                    refused = true;
                    break;
                }
                // 429 may come before the body is read, and break off its sending.
                None | Some((429, _)) => tokio::time::sleep(Duration::from_millis(50)).await,
                Some((status, body)) => panic!("{status} {body}"),
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        assert!(refused, "everything was taken while the disk was full: {}", log(&disk));
        assert!(server.ended().is_none(), "it goes on without a start: {}", log(&disk));
        disk.free();
    }
    settled(&server, send, &expected).await;
    assert!(log(&disk).contains("the engine starts again"), "no epoch met the full disk: {}", log(&disk));
    assert_eq!(server.stop().code(), Some(0), "{}", log(&disk));
}

fn log(disk: &Disk) -> String {
    std::fs::read_to_string(disk.mounted.join("data.log")).unwrap_or_default()
}

async fn a_start_on_a_full_disk_says_so_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&folder.path().join("disk"), 160);
    let (file, expected) = generated(folder.path(), 10_000);
    let start = disk.start();
    let data = disk.mounted.join("data");
    let server = start.run(&data);
    let send = slow_send(&file, start.ports.unwrap().0, 8);
    std::thread::sleep(Duration::from_secs(2));
    disk.fill();
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    match start.try_run(&data) {
        // What it had to write was there already.
        Ok(server) => server.kill(),
        Err(status) => {
            assert_eq!(status.code(), Some(1), "{}", log(&disk));
            let said = log(&disk).to_lowercase();
            assert!(said.contains("disk is full") || said.contains("no space left"), "{said}");
        }
    }
    disk.free();
    let server = start.run(&data);
    settled(&server, send, &expected).await;
    assert_eq!(server.stop().code(), Some(0), "{}", log(&disk));
}
