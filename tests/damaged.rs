//! One line in a hundred is damaged, in ten ways: each is refused with its reason, told alike by
//! `send`, the command and the API, and the rest is counted exactly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use support::count::Expected;
use support::harness::shared_file;
use support::random::Random;
use support::{Server, both};

/// So many lines are sent.
const LINES: usize = 40_000;

/// Line number → code.
type Refused = BTreeMap<u64, String>;

/// The ways, each with the code it has to be refused with.
const WAYS: [(&str, &str); 10] = [
    ("broken UTF-8", "invalid_utf8"),
    ("truncated", "invalid_json"),
    ("wrong type", "wrong_type"),
    ("missing field", "missing_field"),
    ("unknown type", "unknown_type"),
    ("too long", "too_long"),
    ("bad timestamp", "bad_timestamp"),
    ("nested 10,000 deep", "too_deep"),
    ("duplicate key", "duplicate_key"),
    ("far future", "far_future"),
];

/// The line after it was damaged in the way with this number.
fn damage(line: &str, way: usize, random: &mut Random) -> Vec<u8> {
    let mut event: Value = serde_json::from_str(line).unwrap();
    let payload = event["payload"].as_object_mut().unwrap();
    match way {
        0 => {
            // Inside of the content, so that it would be JSON but for this byte.
            let mut bytes = line.as_bytes().to_vec();
            let at = line.find("\"content\":\"").unwrap() + "\"content\":\"".len();
            bytes.insert(at, 0xff);
            return bytes;
        }
        1 => {
            let most = line.find("\"content\":\"").unwrap() as u64;
            return line.as_bytes()[..1 + random.below(most) as usize].to_vec();
        }
        2 => payload["content"] = json!(random.below(1_000)),
        3 => drop(payload.remove(["messageId", "channelId", "userId", "content"][random.below(4) as usize]).unwrap()),
        4 => event["type"] = json!("MESSAGE_SEEN"),
        5 => payload["content"] = json!("é".repeat(10_001)),
        6 => {
            event["timestamp"] =
                json!(["yesterday", "2026-02-30T00:00:00Z", "2026-01-01", "1767225600"][random.below(4) as usize])
        }
        7 => {
            let nested = format!("{{\"attachments\":{}{},", "[".repeat(10_000), "]".repeat(10_000));
            return line.replacen("\"payload\":{", &format!("\"payload\":{nested}"), 1).into_bytes();
        }
        8 => return line.replacen("\"payload\":{", "\"payload\":{\"userId\":\"usr_other\",", 1).into_bytes(),
        _ => event["timestamp"] = json!("2999-12-31T23:59:59Z"),
    }
    event.to_string().into_bytes()
}

/// Whole lines of real chat where it is, else made-up ones of the same form.
fn lines(random: &mut Random) -> Vec<String> {
    let Some(file) = shared_file("data/chat-messages.jsonl.gz") else {
        let start = chrono::DateTime::parse_from_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let one = |number: usize| {
            let at = start + chrono::TimeDelta::milliseconds(number as i64 * 700);
            let payload = json!({
                "messageId": format!("m{number}"), "channelId": format!("c{}", random.below(40)),
                "userId": format!("u{}", random.below(300)), "content": "wörd ".repeat(1 + random.below(40) as usize),
            });
            json!({ "type": "MESSAGE_SENT", "payload": payload, "timestamp": at.to_rfc3339() }).to_string()
        };
        return (0..LINES).map(one).collect();
    };
    let unpacked = flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap());
    BufReader::new(unpacked).lines().take(LINES).map(Result::unwrap).collect()
}

/// Whether the line is good as it stands: the real data hold contents that are too long.
fn good(line: &str) -> bool {
    let event: Value = serde_json::from_str(line).unwrap();
    (1..=10_000).contains(&event["payload"]["content"].as_str().unwrap().chars().count())
}

/// What the API lists, page by page.
async fn listed(server: &Server) -> Refused {
    let mut found = Refused::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/v1/dlq?cause=door&limit=300{cursor}")).await;
        let twice = letters(&page).filter(|(line, code)| found.insert(*line, code.clone()).is_some()).count();
        assert_eq!(twice, 0, "a dead letter is listed twice");
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

/// Line and code of each item; the line ends the id of what was refused at the door.
fn letters(answer: &Value) -> impl Iterator<Item = (u64, String)> {
    let items = answer["items"].as_array().unwrap_or_else(|| panic!("{answer}"));
    items.iter().map(|item| {
        let id = item["id"].as_str().unwrap();
        let line = id.rsplit(':').next().unwrap().parse().unwrap_or_else(|e| panic!("{id}: {e}"));
        (line, item["code"].as_str().unwrap().to_owned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_damaged_lines_are_refused_with_their_reason_and_the_rest_is_exact() {
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut random = Random(seed);
    let lines = lines(&mut random);
    let mut expected = Refused::new();
    let mut kept = Vec::new();
    let mut body = Vec::new();
    let mut ways = [0_u32; WAYS.len()];
    for (number, line) in (1_u64..).zip(&lines) {
        if !good(line) {
            expected.insert(number, "too_long".to_owned());
            body.extend_from_slice(line.as_bytes());
        } else if random.below(100) == 0 {
            let way = random.below(WAYS.len() as u64) as usize;
            ways[way] += 1;
            expected.insert(number, WAYS[way].1.to_owned());
            body.extend(damage(line, way, &mut random));
        } else {
            kept.push(line.as_str());
            body.extend_from_slice(line.as_bytes());
        }
        body.push(b'\n');
    }
    println!("damaged: {ways:?}, refused in all: {}", expected.len());
    assert!(ways.iter().all(|n| *n > 10), "{ways:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines.jsonl");
    std::fs::write(&file, &body).unwrap();
    let server = Server::start(&folder.path().join("data"));

    let output = server.send(&file, &["--batch", "700", "--connections", "3"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    server.settle();

    let text = std::fs::read_to_string(folder.path().join("lines.jsonl.refused.jsonl")).unwrap();
    let mut refused = Refused::new();
    for entry in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(!entry["message"].as_str().unwrap().is_empty(), "{entry}");
        let twice = refused.insert(entry["line"].as_u64().unwrap(), entry["code"].as_str().unwrap().to_owned());
        assert_eq!(twice, None, "a line is refused twice");
    }
    same(&expected, &refused, "the refused file");
    same(&expected, &listed(&server).await, "GET /v1/dlq");
    let output = server.command(&["dlq", "list", "--cause", "door", "--limit", "1000", "--json"]);
    assert!(output.status.success() && expected.len() <= 1_000, "{}", both(&output));
    same(&expected, &letters(&serde_json::from_slice(&output.stdout).unwrap()).collect(), "dlq list");

    Expected::of(kept.iter().copied()).check(&server).await;
    assert_eq!(server.stop().code(), Some(0));
}

fn same(expected: &Refused, found: &Refused, place: &str) {
    let wrong: Vec<_> = expected.iter().filter(|(line, code)| found.get(*line) != Some(*code)).take(5).collect();
    let theirs: Vec<_> = wrong.iter().map(|(line, _)| found.get(*line)).collect();
    assert!(wrong.is_empty(), "{place}: expected {wrong:?}, found {theirs:?}");
    let more: Vec<_> = found.iter().filter(|(line, _)| !expected.contains_key(*line)).take(5).collect();
    assert!(more.is_empty(), "{place}: not damaged but refused: {more:?}");
}
