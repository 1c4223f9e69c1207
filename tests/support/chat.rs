//! The main job on the real chat messages: sends them, and compares what the views and stores
//! answer with a count made independently of the engine.

use super::{Server, both, count, harness, phrases};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

/// (channel, window start) → messages, authors, characters.
pub type Activity = BTreeMap<(String, String), (u64, u64, u64)>;

/// The independent count, by the script beside this file; skipped where there is no Python.
pub fn counted(file: &Path) -> Activity {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/count/channel_activity.py");
    let counted = Command::new("python3").arg(script).arg(file).output();
    let output = counted.unwrap_or_else(|error| harness::skip(format!("no python3: {error}")));
    assert!(output.status.success(), "{}", both(&output));
    let rows = output.stdout.lines().map(|line| row(&serde_json::from_str(&line.unwrap()).unwrap()));
    rows.collect()
}

fn row(row: &Value) -> ((String, String), (u64, u64, u64)) {
    let text = |name: &str| row[name].as_str().unwrap_or_else(|| panic!("{name} in {row}")).to_owned();
    let number = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));
    ((text("channel"), text("window_start")), (number("messages"), number("authors"), number("characters")))
}

/// All rows of the view, open ones too, by the Arrow-free path that anyone would take: JSON lines of SQL pages.
pub async fn activity(server: &Server) -> (Activity, u64) {
    let mut found = Activity::new();
    let mut last = 0;
    let csv = server.get_as("/v1/views/channel_activity?include_open=true", "text/csv").await;
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let at = |name: &str| names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("no column {name}"));
    let (start, channel, messages) = (at("window_start"), at("channel"), at("messages"));
    let (authors, characters, closed) = (at("authors"), at("characters"), at("final"));
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |at: usize| cells[at].parse::<u64>().unwrap_or_else(|e| panic!("{e}: {line}"));
        let key = (cells[channel].trim_matches('"').to_owned(), cells[start].to_owned());
        last += u64::from(cells[closed] == "true");
        let twice = found.insert(key, (number(messages), number(authors), number(characters)));
        assert!(twice.is_none(), "a row stands twice: {line}");
    }
    (found, last)
}

pub fn compare(expected: &Activity, found: &Activity) {
    let wrong: Vec<_> = expected.iter().filter(|(key, value)| found.get(*key) != Some(value)).take(5).collect();
    assert!(wrong.is_empty(), "expected {wrong:?}, found {:?}", wrong.iter().map(|(k, _)| found.get(*k)).collect::<Vec<_>>());
    let more: Vec<_> = found.iter().filter(|(key, _)| !expected.contains_key(*key)).take(5).collect();
    assert!(more.is_empty(), "not expected: {more:?}");
}

/// channelId, messageId and content of every line the product allows.
pub fn messages(file: &Path) -> Vec<(String, String, String)> {
    let unpacked = flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap());
    let mut found = Vec::new();
    for line in BufReader::new(unpacked).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let text = |name: &str| event["payload"][name].as_str().unwrap().to_owned();
        let content = text("content");
        if (1..=10_000).contains(&content.chars().count()) {
            found.push((text("channelId"), text("messageId"), content));
        }
    }
    found
}

/// The data and what has to come of it.
pub struct Chat {
    /// A copy in a folder of the test's own.
    pub file: PathBuf,
    expected: Activity,
}

impl Chat {
    /// Copies the data into `folder` and counts it; skipped where the data or Python are not there.
    pub fn take(folder: &Path) -> Chat {
        let data = harness::shared("data/chat-messages.jsonl.gz");
        let expected = counted(&data);
        let file = folder.join("chat.jsonl.gz");
        std::fs::copy(data, &file).unwrap();
        Chat { file, expected }
    }

    /// Sends all of it; what is refused is refused for its length.
    pub fn send(&self, server: &Server) {
        let output = server.send(&self.file, &[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "records were refused, so send ends with 1: {}", both(&output));
        let refused = std::fs::read_to_string(self.file.with_extension("gz.refused.jsonl")).unwrap();
        assert_eq!(refused.lines().count(), 2_964);
        assert!(refused.lines().all(|line| line.contains("max_length") || line.contains("too_long")));
    }

    /// Views and stores hold what was sent, nothing less and nothing twice.
    pub async fn is_there(&self, server: &Server) {
        let (found, closed) = activity(server).await;
        compare(&self.expected, &found);
        assert!(closed > 100_000, "only {closed} of {} windows are closed", found.len());
        let sent = messages(&self.file);
        let keys: BTreeSet<(String, String)> = sent.iter().map(|(channel, id, _)| (channel.clone(), id.clone())).collect();
        for table in ["messages", "messages_search"] {
            let stored = count::keys(server, table).await;
            assert!(keys == stored, "{table}: {} stored, {} sent", stored.len(), keys.len());
        }
        phrases::are_found(server, &sent, 20_260_101).await;
    }
}
