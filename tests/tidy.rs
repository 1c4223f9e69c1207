//! Reads the repository and fails where it is untidy: dependency edges, imports that belong to one
//! room, files without a page header, files grown too big, words that stand for nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which workspace crates each crate may depend on; the binary sees all.
const EDGES: [(&str, &[&str]); 6] = [
    ("topics", &[]),
    ("gateway", &["topics"]),
    ("ingest", &["topics", "gateway"]),
    ("pipelines", &["topics"]),
    ("sinks", &["topics", "gateway"]),
    ("query-api", &["topics", "gateway", "sinks"]),
];

/// (imported crate, the folders that may import it).
const IMPORTS: [(&str, &[&str]); 6] = [
    ("jsonwebtoken", &["gateway/src/sign_in/"]),
    ("argon2", &["gateway/src/sign_in/"]),
    ("timely", &["pipelines/src/engine/"]),
    ("rdkafka", &["topics/src/brokers/kafka/"]),
    ("rusqlite", &["topics/src/brokers/embedded/", "topics/src/brokers/kafka/copy.rs", "sinks/src/stores/"]),
    ("lettre", &["sinks/src/stores/"]),
];

const LONGEST: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the project with its path from the root and its text.
fn rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = EDGES.iter().map(|(name, _)| root().join(name)).collect();
    folders.extend([root().join("src"), root().join("tests")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((relative(&path), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 20, "only {} Rust files found: is the test looking in the right place?", files.len());
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

fn report(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn rooms_depend_one_way() {
    let mut findings = Vec::new();
    for (room, allowed) in EDGES {
        let manifest: toml::Table = fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap().parse().unwrap();
        for section in ["dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(|t| t.as_table()) else { continue };
            for name in table.keys().filter_map(|name| name.strip_prefix("quikflow-")) {
                if !allowed.contains(&name) {
                    findings.push(format!("{room}/Cargo.toml: {room} may not depend on {name} (docs/adr/001)"));
                }
            }
        }
    }
    report(&findings);
}

#[test]
fn imports_stay_in_their_rooms() {
    let mut findings = Vec::new();
    for (file, text) in rust_files() {
        for (name, folders) in IMPORTS {
            let test_file = file.contains("/tests/") || file.starts_with("tests/");
            let used = text
                .lines()
                .map(str::trim_start)
                .filter(|l| !l.starts_with("//"))
                .any(|line| line.contains(&format!("{name}::")) || line.starts_with(&format!("use {name};")));
            if used && !test_file && !folders.iter().any(|folder| file.starts_with(folder)) {
                findings.push(format!("{file}: imports {name}, which belongs to {}", folders.join(", ")));
            }
        }
    }
    report(&findings);
}

#[test]
fn every_file_has_a_page_header_and_a_bearable_length() {
    let mut findings = Vec::new();
    for (file, text) in rust_files() {
        if !text.starts_with("//!") && !text.starts_with("#![") {
            findings.push(format!("{file}: does not begin with a `//!` page header"));
        }
        let lines = text.lines().count();
        if lines > LONGEST {
            findings.push(format!("{file}: {lines} lines, split it (at most {LONGEST})"));
        }
    }
    report(&findings);
}

#[test]
fn no_unfinished_ignored_or_idle_tests() {
    let mut findings = Vec::new();
    let words = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("#[ig", "nore"), concat!("thread::", "sleep(")];
    for (file, text) in rust_files() {
        for (number, line) in text.lines().enumerate() {
            for word in words {
                // killing a process after a random time, or freezing it for a while, is waiting for real time;
                // a benchmark measures it
                let kills = [
                    "tests/support/kills.rs",
                    "tests/support/traffic.rs",
                    "tests/job_on_kafka.rs",
                    "tests/job_on_stores.rs",
                    "tests/disk_full.rs",
                ];
                let kills = kills.contains(&file.as_str()) || file.starts_with("tests/bench/");
                let waits_outside =
                    word.contains("sleep") && (kills || !(file.contains("tests") || line.contains("#[cfg(test)]")));
                if line.contains(word) && !waits_outside && !line.trim_start().starts_with("//") {
                    findings.push(format!("{file}:{}: `{word}`", number + 1));
                }
            }
            let bare = line.trim_start();
            if bare.starts_with("matches!(") && bare.ends_with(");") {
                findings.push(format!("{file}:{}: a bare matches! checks nothing", number + 1));
            }
        }
    }
    report(&findings);
}

/// Each rule of exactness that this stage carries has a test that names it.
#[test]
fn every_rule_has_a_test_that_names_it() {
    let mut named: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (file, text) in rust_files() {
        for line in text.lines().map(str::trim_start) {
            let Some(name) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) else { continue };
            for number in 1..=21 {
                let tag = format!("r{number}_");
                if name.starts_with(&tag) || name.contains(&format!("_{tag}")) {
                    named.entry(number).or_default().push(file.clone());
                }
            }
        }
    }
    // R18 and R19 are Kafka's and come with it.
    let missing: Vec<u32> = (1..=21).filter(|n| *n != 18 && *n != 19 && !named.contains_key(n)).collect();
    assert!(missing.is_empty(), "no test is named after these rules: {missing:?} (write `fn r5_…`)");
}

/// What docs/guarantees.md quotes as tests and files, and the rows of its tables that quote none.
fn guarantees(text: &str, tests: &BTreeSet<String>, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let quoted = |line: &str| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    // Metrics and settings of servers look like tests.
    let is_test = |word: &str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.matches('_').count() >= 3
            && word.chars().all(letter)
            && !word.starts_with("quikflow_")
            && !word.starts_with("innodb_")
    };
    let is_path = |word: &str| word.contains("/tests/") || word.starts_with("tests/");
    let mut findings = Vec::new();
    let mut shown_by = false;
    for (number, line) in (1..).zip(text.lines()) {
        let mut wrong = |what: String| findings.push(format!("docs/guarantees.md:{number}: {what}"));
        for word in quoted(line) {
            if is_path(&word) && !exists(&word) {
                wrong(format!("there is no {word}"));
            } else if is_test(&word) && !tests.contains(&word) {
                wrong(format!("there is no test {word}"));
            }
        }
        let cells: Vec<&str> = line
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix(" |"))
            .map_or_else(Vec::new, |row| row.split(" | ").collect());
        let last = cells.last().copied().unwrap_or_default();
        match last {
            "" => shown_by &= line.starts_with('|'),
            "Shown by" => shown_by = true,
            _ if shown_by
                && !last.contains("not tested yet")
                && !quoted(last).iter().any(|word| is_test(word) || is_path(word)) =>
            {
                wrong(format!("the row of {} names no test", cells.first().copied().unwrap_or_default()));
            }
            _ => {}
        }
    }
    findings
}

#[test]
fn guarantees_name_tests_that_exist() {
    let mut tests = BTreeSet::new();
    for (_, text) in rust_files() {
        for line in text.lines().map(str::trim_start) {
            let name =
                line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
            tests.extend(name.map(str::to_owned));
        }
    }
    let exists = |path: &str| root().join(path).exists();
    let text = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    report(&guarantees(&text, &tests, &exists));
    // The check can fail.
    for (from, to, finding) in [
        ("`r10_rows_expire_by_arrival`", "`r10_rows_expire_by_departure`", "there is no test r10_rows_expire_by_departure"),
        ("`tests/crash.rs`", "`tests/smash.rs`", "there is no tests/smash.rs"),
        ("`a_zombies_epoch_does_not_count`", "by thinking", "names no test"),
    ] {
        let spoilt = text.replace(from, to);
        assert_ne!(text, spoilt, "docs/guarantees.md does not hold {from}");
        let found = guarantees(&spoilt, &tests, &exists);
        assert!(found.iter().any(|found| found.contains(finding)), "{from} → {to}: {found:?}");
    }
}
