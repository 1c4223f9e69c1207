//! What is sent while processes are killed.

use super::count::Expected;
use super::harness::shared_file;
use super::random::Random;
use super::{QUIKFLOW, both};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// Made-up events of all types but members: fan-out to each member writes a file a push, which is
/// not what is looked at here.
pub fn generated(folder: &Path, events: u64) -> (PathBuf, Expected) {
    let output = super::command(&["generate", "--events", &events.to_string(), "--seed", "7"]).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    let file = folder.join("events.jsonl");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("MEMBER_ADDED")).collect();
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    (file, Expected::of(lines.into_iter()))
}

/// The real chat data where it is, else made-up events.
pub fn input(folder: &Path) -> (PathBuf, Expected) {
    let Some(packed) = shared_file("data/chat-messages.jsonl.gz") else { return generated(folder, 60_000) };
    let mut text = String::new();
    let file = std::fs::File::open(packed).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
    let file = folder.join("chat.jsonl");
    std::fs::write(&file, &text).unwrap();
    (file, Expected::of(text.lines()))
}

pub fn spawn_send(file: &Path, port: u16, rate: Option<usize>) -> Child {
    let mut command = std::process::Command::new(QUIKFLOW);
    command.arg("send").arg(file).args(["--url", &format!("http://127.0.0.1:{port}"), "--batch", "500"]);
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let quiet = std::process::Stdio::null;
    command.stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().unwrap()
}

pub fn pause(random: &mut Random, upto: u64) {
    std::thread::sleep(Duration::from_millis(20 + random.below(upto)));
}
