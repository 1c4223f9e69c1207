//! The Dockerfile and what goes into it.

use crate::facts::{Facts, Files, Read, Start, root};
use std::collections::{BTreeMap, BTreeSet};

/// Instructions with their arguments, lines joined, comments gone.
fn instructions(text: &str) -> Vec<(String, String)> {
    let mut joined = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_suffix('\\') {
            Some(line) => joined.push_str(line),
            None => joined.push_str(&format!("{line}\n")),
        }
    }
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_uppercase(), rest.trim().to_owned()));
    joined.lines().filter_map(|line| split(line.trim())).collect()
}

/// The environment of the image.
pub(crate) fn environment(text: &str) -> BTreeMap<String, String> {
    let set = |rest: String| {
        let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        words
            .into_iter()
            .filter_map(|word| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect::<Vec<_>>()
    };
    instructions(text).into_iter().filter(|(word, _)| word == "ENV").flat_map(|(_, rest)| set(rest)).collect()
}

/// The words of an instruction's JSON form.
fn exec(rest: &str) -> Option<Vec<String>> {
    serde_json::from_str(rest.get(rest.find('[')?..)?).ok()
}

/// The ports on which the image's processes listen.
pub(crate) fn ports(environment: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let port = |(name, value): (&String, &String)| Some((name.clone(), value.rsplit_once(':')?.1.parse().ok()?));
    environment.iter().filter(|(name, _)| name.ends_with("_ADDR")).filter_map(port).collect()
}

pub(crate) fn check(files: &Files, facts: &Facts, read: &mut Read) {
    let place = "Dockerfile";
    let all = instructions(&files["Dockerfile"]);
    let of = |word: &str| all.iter().filter(|(w, _)| w == word).map(|(_, rest)| rest.as_str()).collect::<Vec<_>>();
    let mut stages = BTreeSet::new();
    for from in of("FROM") {
        let words: Vec<&str> = from.split_whitespace().collect();
        if !stages.contains(words[0]) {
            read.findings.extend(facts.image(place, words[0]));
        }
        if words[0].starts_with("rust:") {
            read.must(words[0].starts_with(&format!("rust:{}.", facts.rust)), || {
                format!("{place}: {} is not Rust {} of Cargo.toml", words[0], facts.rust)
            });
        }
        stages.extend(words.get(2).map(|name| (*name).to_owned()));
    }
    read.must(of("FROM").len() >= 2, || format!("{place}: one stage only, the image would hold the compilers"));
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap_or(0);
    let user = all[last..].iter().rev().find(|(word, _)| word == "USER").map(|(_, rest)| rest.as_str());
    read.must(user.is_some_and(not_root), || format!("{place}: the image runs as root"));
    copies(&all, &files[".dockerignore"], facts, read);
    for run in of("RUN") {
        let words: Vec<&str> = run.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "--features") {
            for feature in pair[1].split(',') {
                read.must(facts.features.contains(feature), || format!("{place}: Cargo.toml has no feature {feature}"));
            }
        }
    }
    let environment = environment(&files["Dockerfile"]);
    read.findings.extend(facts.environment(place, &environment, &BTreeSet::new()));
    let listens: BTreeSet<u64> = ports(&environment).into_values().collect();
    let exposed: BTreeSet<u64> =
        of("EXPOSE").iter().flat_map(|rest| rest.split_whitespace()).filter_map(|p| p.parse().ok()).collect();
    read.must(listens == exposed && listens.len() == 3, || format!("{place}: listens on {listens:?} and exposes {exposed:?}"));
    read.must(of("STOPSIGNAL") == ["SIGTERM"], || format!("{place}: SIGTERM is what drains a process"));
    let entry = of("ENTRYPOINT").first().and_then(|rest| exec(rest));
    read.must(entry == Some(vec!["quikflow".to_owned()]), || {
        format!("{place}: the entry point is not the binary, in its exec form")
    });
    for word in ["CMD", "HEALTHCHECK"] {
        match of(word).first().and_then(|rest| exec(rest)) {
            None => read.wrong(format!("{place}: no {word} in its exec form")),
            Some(mut args) => {
                if word == "HEALTHCHECK" && args.first().is_some_and(|first| first == "quikflow") {
                    args.remove(0);
                }
                read.starts.push(Start { place: format!("{place} {word}"), args, environment: environment.clone() });
            }
        }
    }
}

/// What is copied is there, is not left out of the context, and is all that a build needs.
fn copies(all: &[(String, String)], ignore: &str, facts: &Facts, read: &mut Read) {
    let allowed: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    read.must(ignore.lines().any(|line| line == "*"), || ".dockerignore: leaves nothing out".to_owned());
    let mut copied = BTreeSet::new();
    for (_, rest) in all.iter().filter(|(word, rest)| word == "COPY" && !rest.starts_with("--from=")) {
        let words: Vec<&str> = rest.split_whitespace().collect();
        for source in words.iter().take(words.len().saturating_sub(1)) {
            read.must(root().join(source).exists(), || format!("Dockerfile: copies {source}, which is not there"));
            read.must(allowed.contains(source), || format!(".dockerignore: leaves out {source}, which the Dockerfile copies"));
            copied.insert((*source).to_owned());
        }
    }
    for needed in facts.sources.iter().map(String::as_str).chain(["Cargo.toml", "Cargo.lock", "topologies.toml"]) {
        let there = copied.iter().any(|source| needed == source || needed.starts_with(&format!("{source}/")));
        read.must(there, || format!("Dockerfile: does not copy {needed}"));
    }
}

/// `uid` or `uid:gid`, as a number that is not 0.
pub(crate) fn not_root(user: &str) -> bool {
    user.split(':').next().and_then(|uid| uid.parse::<u32>().ok()).is_some_and(|uid| uid > 0)
}
