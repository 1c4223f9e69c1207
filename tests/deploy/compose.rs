//! compose.yaml.

use crate::facts::{Facts, Files, Read, Start};
use crate::image::{environment, not_root, ports};
use crate::yaml::{at, documents, pairs, text, texts};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "compose.yaml";

pub(crate) fn check(files: &Files, facts: &Facts, read: &mut Read) {
    let compose = match documents(&files[FILE]) {
        Ok(documents) => documents[0].clone(),
        Err(error) => return read.wrong(format!("{FILE}: {error}")),
    };
    let image = environment(&files["Dockerfile"]);
    let services = at(&compose, "services");
    read.must(pairs(services).count() > 0, || format!("{FILE}: no services"));
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, service) in pairs(services) {
        let place = format!("{FILE}: {name}");
        guard(&place, service, facts, read);
        for other in pairs(at(service, "depends_on")) {
            read.must(!at(services, other.0).is_null(), || format!("{place}: depends on {}, which is no service", other.0));
            read.must(at(other.1, "condition") == "service_healthy", || {
                format!("{place}: does not wait until {} is healthy", other.0)
            });
        }
        for volume in texts(at(service, "volumes")) {
            used.entry("volumes").or_default().insert(volume.split(':').next().unwrap_or_default().to_owned());
        }
        for kind in ["networks", "secrets"] {
            used.entry(kind).or_default().extend(texts(at(service, kind)));
        }
        let secrets: BTreeSet<String> = texts(at(service, "secrets")).iter().map(|s| format!("/run/secrets/{s}")).collect();
        for file in mentioned(&service.to_string()) {
            read.must(secrets.contains(&file), || format!("{place}: there is no file {file}"));
        }
        let own: BTreeMap<String, String> = pairs(at(service, "environment")).map(|(n, v)| (n.clone(), text(v))).collect();
        read.findings.extend(facts.environment(&place, &own, &secrets));
        if text(at(service, "image")).starts_with("quikflow:") {
            ours(&place, service, image.iter().chain(&own).map(|(n, v)| (n.clone(), v.clone())).collect(), services, read);
        }
    }
    for kind in ["volumes", "networks", "secrets"] {
        let declared: BTreeSet<String> = pairs(at(&compose, kind)).map(|(name, _)| name.clone()).collect();
        let used = used.remove(kind).unwrap_or_default();
        read.must(declared == used, || {
            let difference: Vec<&String> = declared.symmetric_difference(&used).collect();
            format!("{FILE}: {kind} declared and used differ by {difference:?}")
        });
    }
    for (name, secret) in pairs(at(&compose, "secrets")) {
        let file = text(at(secret, "file"));
        let made = file.strip_prefix("deploy/secrets/").is_some_and(|made| facts.secrets.contains_key(made));
        read.must(made, || format!("{FILE}: secret {name}: deploy/secrets.sh does not make {file}"));
        // A URL leads to one of the services.
        if let Some(url) = facts.secrets.get(name).filter(|text| text.contains("://")) {
            let host = url.trim().rsplit('@').next().unwrap_or_default();
            let host = host.split([':', '/']).next().unwrap_or_default();
            read.must(!at(services, host).is_null(), || format!("{FILE}: secret {name} leads to {host}, which is no service"));
        }
    }
}

/// What holds of every service.
fn guard(place: &str, service: &Value, facts: &Facts, read: &mut Read) {
    read.findings.extend(facts.image(place, &text(at(service, "image"))));
    read.must(at(service, "user").as_str().is_some_and(not_root), || format!("{place}: runs as root"));
    read.must(at(service, "privileged").is_null(), || format!("{place}: privileged"));
    read.must(texts(at(service, "healthcheck/test")).len() >= 2, || format!("{place}: has no health check"));
    for port in texts(at(service, "ports")) {
        read.must(port.starts_with("127.0.0.1:"), || format!("{place}: port {port} is open beyond loopback"));
    }
}

/// What holds of our own processes.
fn ours(place: &str, service: &Value, environment: BTreeMap<String, String>, services: &Value, read: &mut Read) {
    let listens: Vec<u64> = ports(&environment).into_values().collect();
    for port in texts(at(service, "ports")) {
        let inside = port.rsplit(':').next().and_then(|port| port.parse().ok());
        read.must(inside.is_some_and(|port| listens.contains(&port)), || format!("{place}: nothing listens on port {port}"));
    }
    read.must(at(service, "read_only") == true, || format!("{place}: can write to its image"));
    read.must(texts(at(service, "cap_drop")) == ["ALL"], || format!("{place}: keeps capabilities"));
    let grace = text(at(service, "stop_grace_period"));
    read.must(grace.trim_end_matches('s').parse::<u32>().is_ok_and(|s| s >= 45), || {
        format!("{place}: too little time to drain: {grace}")
    });
    let data = environment.get("QUIKFLOW_DATA").cloned().unwrap_or_default();
    let mut writable = texts(at(service, "volumes")).into_iter().filter_map(|v| Some(v.split_once(':')?.1.to_owned()));
    let in_memory = texts(at(service, "tmpfs")).iter().any(|t| t.split(':').next() == Some(data.as_str()));
    read.must(in_memory || writable.any(|v| v == data), || format!("{place}: cannot write to its data directory {data}"));
    let broker = environment.get("QUIKFLOW_BROKER").cloned().unwrap_or_default();
    let host = broker.split("://").nth(1).and_then(|rest| rest.split([':', '/']).next()).unwrap_or_default();
    read.must(!at(services, host).is_null(), || format!("{place}: the broker {broker} is no service"));
    let args = texts(at(service, "command"));
    if let Some(owner) = environment.get("QUIKFLOW_EMBEDDED_STORES_URL") {
        let owner_args = host_and_port(owner).map_or_else(Vec::new, |(host, _)| texts(at(services, &format!("{host}/command"))));
        read.must(has_stores(&owner_args) && host_and_port(owner).is_some_and(|(_, port)| listens.contains(&port)), || {
            format!("{place}: no process has embedded stores at {owner}")
        });
    }
    let mut asks = texts(at(service, "healthcheck/test"));
    read.must(asks.len() >= 2 && asks[0] == "CMD" && asks[1] == "quikflow", || {
        format!("{place}: the image can ask only by its own binary")
    });
    asks.drain(..asks.len().min(2));
    for (what, args) in [("command", args), ("healthcheck", asks)] {
        read.starts.push(Start { place: format!("{place} {what}"), args, environment: environment.clone() });
    }
}

/// Host and port of a URL.
pub(crate) fn host_and_port(url: &str) -> Option<(String, u64)> {
    let (host, port) = url.split_once("://")?.1.split_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// Whether a process with these arguments has embedded stores and answers for them.
pub(crate) fn has_stores(args: &[String]) -> bool {
    ["sinks", "query"].iter().all(|part| args.iter().any(|arg| arg == part))
}

/// Every `/run/secrets/…` in a text.
fn mentioned(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c)).collect::<String>();
    text.split("/run/secrets/").skip(1).map(|rest| format!("/run/secrets/{}", name(rest))).collect()
}
