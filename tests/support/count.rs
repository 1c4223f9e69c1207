//! What must stand at the end, counted from the lines themselves, and what the server answers.

use super::Server;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Messages, authors, characters.
type Counts = (u64, u64, u64);

/// (channel, minute) → what was counted.
type Activity = BTreeMap<(String, String), Counts>;

/// (view, name, minute) → how often, by how many users.
type Uses = BTreeMap<(String, String, String), (u64, u64)>;

/// Views by another key than that of their records: the event counted, where its name stands, view and column.
const USES: [[&str; 4]; 3] = [
    ["FEATURE_USED", "feature", "features", "feature"],
    ["PAGE_VIEW", "page", "page_views", "page"],
    ["ERROR_OCCURRED", "error", "errors", "error"],
];

/// What must stand at the end, counted from the lines themselves.
#[derive(Debug, Default, PartialEq)]
pub struct Expected {
    pub activity: Activity,
    /// (channelId, messageId)
    pub messages: BTreeSet<(String, String)>,
    /// Audit events.
    pub audit: u64,
    pub uses: Uses,
}

impl Expected {
    /// Counts lines, each of them a good event or one that only breaks the length of `content`.
    pub fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Expected {
        let mut expected = Expected::default();
        let mut authors: BTreeSet<(String, String, String)> = BTreeSet::new();
        let mut users: BTreeSet<(String, String, String, String)> = BTreeSet::new();
        for line in lines {
            let event: Value = serde_json::from_str(line).unwrap();
            let kind = event["type"].as_str().unwrap();
            expected.audit += u64::from(["LOGIN_SUCCESS", "LOGIN_FAILED", "PERMISSION_DENIED", "DATA_EXPORTED"].contains(&kind));
            let text = |name: &str| event["payload"][name].as_str().unwrap_or_default().to_owned();
            let length = text("content").chars().count() as u64;
            let at = chrono::DateTime::parse_from_rfc3339(event["timestamp"].as_str().unwrap()).unwrap();
            let minute = chrono::DateTime::from_timestamp(at.timestamp().div_euclid(60) * 60, 0).unwrap();
            let minute = minute.format("%Y-%m-%dT%H:%M:%SZ").to_string();
            for [_, field, view, _] in USES.iter().filter(|[of, ..]| *of == kind) {
                let uses = expected.uses.entry(((*view).to_owned(), text(field), minute.clone())).or_default();
                uses.0 += 1;
                uses.1 += u64::from(users.insert(((*view).to_owned(), text(field), minute.clone(), text("userId"))));
            }
            if kind != "MESSAGE_SENT" || !(1..=10_000).contains(&length) {
                continue;
            }
            let group = expected.activity.entry((text("channelId"), minute.clone())).or_default();
            group.0 += 1;
            group.1 += u64::from(authors.insert((text("channelId"), minute, text("userId"))));
            group.2 += length;
            expected.messages.insert((text("channelId"), text("messageId")));
        }
        expected
    }

    /// Rows of activity that are not as expected: what is expected, what is found.
    fn wrong<'a>(&'a self, found: &Activity) -> BTreeMap<&'a (String, String), (Counts, Option<Counts>)> {
        let pairs = self.activity.iter().map(|(key, counts)| (key, (*counts, found.get(key).copied())));
        pairs.filter(|(_, (expected, found))| Some(*expected) != *found).collect()
    }

    /// Compares with what the server answers now.
    pub async fn check(&self, server: &Server) {
        let found = Expected {
            activity: activity(server).await,
            messages: keys(server, "messages").await,
            audit: csv(server, "audit_log").await.1.len() as u64,
            uses: uses(server).await,
        };
        assert_eq!(found.messages.len(), self.messages.len(), "messages");
        assert!(found.messages == self.messages, "other messages are stored than were sent");
        assert!(keys(server, "messages_search").await == self.messages, "other messages are indexed than were sent");
        let wrong = self.wrong(&found.activity);
        if !wrong.is_empty() {
            // A row that is right later was read too early; one that stays wrong is.
            tokio::time::sleep(Duration::from_secs(10)).await;
            let later = self.wrong(&activity(server).await);
            let first = |wrong: &BTreeMap<_, _>| {
                format!("{} of them, first {:#?}", wrong.len(), wrong.iter().take(20).collect::<Vec<_>>())
            };
            panic!("rows that are wrong, (expected, found): {}\nten seconds later: {}", first(&wrong), first(&later));
        }
        assert_eq!(found.activity.len(), self.activity.len(), "rows that nobody sent");
        assert_eq!(found.audit, self.audit, "audit rows");
        let wrong: Vec<_> = self.uses.iter().filter(|(key, counts)| found.uses.get(*key) != Some(counts)).collect();
        let first: Vec<_> = wrong.iter().take(10).map(|(key, counts)| (key, counts, found.uses.get(*key))).collect();
        assert!(wrong.is_empty(), "{} uses are wrong, (key, expected, found): {first:#?}", wrong.len());
        assert_eq!(found.uses.len(), self.uses.len(), "uses that nobody sent");
    }
}

/// A view as CSV, open rows too: where each column stands, and the rows' cells.
pub async fn csv(server: &Server, view: &str) -> (BTreeMap<String, usize>, Vec<Vec<String>>) {
    let text = server.get_as(&format!("/v1/views/{view}?include_open=true"), "text/csv").await;
    let mut records = cells(&text).into_iter();
    let names = records.next().unwrap_or_default().into_iter().enumerate().map(|(at, name)| (name, at)).collect();
    (names, records.collect())
}

/// RFC 4180.
pub fn cells(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            '\r' if !quoted => {}
            _ => cell.push(c),
        }
    }
    rows
}

/// What the view of activity holds, open windows too.
pub async fn activity(server: &Server) -> Activity {
    let (names, rows) = csv(server, "channel_activity").await;
    let number = |row: &[String], name: &str| row[names[name]].parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}: {row:?}"));
    let total = rows.len();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| {
            let key = (row[names["channel"]].clone(), row[names["window_start"]].clone());
            (key, (number(row, "messages"), number(row, "authors"), number(row, "characters")))
        })
        .collect();
    assert_eq!(found.len(), total, "a row of channel_activity stands twice");
    found
}

/// What the views by another key hold, open windows too.
async fn uses(server: &Server) -> Uses {
    let mut found = Uses::new();
    for [_, _, view, column] in USES {
        let (names, rows) = csv(server, view).await;
        for row in &rows {
            let number = |name: &str| row[names[name]].parse::<u64>().unwrap_or_else(|e| panic!("{view} {name}: {e}: {row:?}"));
            let key = (view.to_owned(), row[names[column]].clone(), row[names["window_start"]].clone());
            let before = found.insert(key, (number("count"), number("users")));
            assert!(before.is_none(), "a row of {view} stands twice: {row:?}");
        }
    }
    found
}

/// All (channelId, messageId) of a view; none may stand twice.
pub async fn keys(server: &Server, view: &str) -> BTreeSet<(String, String)> {
    let (names, rows) = csv(server, view).await;
    let total = rows.len();
    let found: BTreeSet<_> = rows.iter().map(|row| (row[names["channelId"]].clone(), row[names["messageId"]].clone())).collect();
    assert_eq!(found.len(), total, "a row of {view} stands twice");
    found
}
