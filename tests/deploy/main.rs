//! What is shipped for containers, held against the project: compose.yaml, Dockerfile, deploy/kubernetes.
//!
//! No container engine is needed: commands and environments are tried on the binary itself, probes
//! on a running process. That the checks can fail is shown by spoiling the files in one place each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod compose;
mod facts;
mod image;
mod kubernetes;
#[path = "../support/mod.rs"]
mod support;
mod yaml;

use facts::{Facts, Files, Probe, Read, Start, root, shipped_files};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::Stdio;
use support::{both, command, shipped};

/// Reads all files.
fn read(files: &Files, facts: &Facts) -> Read {
    let mut read = Read::default();
    image::check(files, facts, &mut read);
    compose::check(files, facts, &mut read);
    kubernetes::check(files, facts, &mut read);
    guide(&files["docs/deployment.md"], &mut read);
    read
}

/// Paths and commands that the guide names.
fn guide(text: &str, read: &mut Read) {
    for word in text.split(|c: char| c.is_whitespace() || "`()#".contains(c)).filter(|word| word.starts_with("deploy/")) {
        let made = word.starts_with("deploy/secrets/");
        read.must(made || root().join(word).exists(), || format!("docs/deployment.md: there is no {word}"));
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("quikflow ")) {
        let line = line.split(" > ").next().unwrap_or_default();
        // The last argument may be a quoted one.
        let (bare, quoted) = line.split_once('\'').unwrap_or((line, ""));
        let mut args: Vec<String> = bare.split_whitespace().map(str::to_owned).collect();
        args.extend((!quoted.is_empty()).then(|| quoted.trim_end_matches('\'').to_owned()));
        read.starts.push(Start { place: format!("docs/deployment.md: {line}"), args, environment: BTreeMap::new() });
    }
}

/// The environment with the secrets where they are here, without what this build has not compiled in.
fn here(start: &Start, facts: &Facts) -> BTreeMap<String, String> {
    #[allow(clippy::match_like_matches_macro, reason = "it looks like one only in a build without clients")]
    let compiled = |name: &str| match name.trim_end_matches("_FILE") {
        "QUIKFLOW_BROKER" => cfg!(feature = "kafka"),
        "QUIKFLOW_MONGODB_URL" => cfg!(feature = "mongodb"),
        "QUIKFLOW_ELASTICSEARCH_URL" => cfg!(feature = "elasticsearch"),
        "QUIKFLOW_CLICKHOUSE_URL" => cfg!(feature = "clickhouse"),
        "QUIKFLOW_REDIS_URL" => cfg!(feature = "redis"),
        "QUIKFLOW_MYSQL_URL" => cfg!(feature = "mysql"),
        _ => true,
    };
    let local = |value: &str| match value.strip_prefix("/run/secrets/") {
        Some(name) => facts.secrets_dir.path().join(name).display().to_string(),
        None => value.to_owned(),
    };
    let pairs = start.environment.iter().filter(|(name, _)| compiled(name));
    pairs.map(|(name, value)| (name.clone(), local(value))).collect()
}

/// Runs what a file starts, so far that the command line and all settings are taken: the
/// declarations are the first thing that is missing, a process to ask is the first that is away.
fn try_start(start: &Start, facts: &Facts) -> Option<String> {
    let folder = facts.secrets_dir.path();
    let mut command = command(&[]);
    command.args(&start.args).env_clear().envs(here(start, facts)).current_dir(folder);
    let expected = match start.args.first().map_or("", String::as_str) {
        "run" => {
            command.env("QUIKFLOW_TOPOLOGIES", "nowhere.toml");
            // The image's own environment opens its doors, so it asks for a token.
            if !start.environment.contains_key("QUIKFLOW_TOKEN_FILE") {
                command.env("QUIKFLOW_TOKEN", "0123456789abcdef");
            }
            "nowhere.toml: name the declaration file"
        }
        "health" => {
            // A port that nobody has: the one of the file may be taken on this machine.
            command.env("QUIKFLOW_HEALTH_ADDR", "127.0.0.1:9");
            "nobody answers at http://127.0.0.1:9"
        }
        "generate" => "",
        "send" => "events.jsonl",
        "query" | "account" => "nobody answers",
        _ => return Some(format!("{}: `{}` is not known to the test", start.place, start.args.join(" "))),
    };
    if matches!(start.args[0].as_str(), "query" | "send") {
        command.env("QUIKFLOW_URL", "http://127.0.0.1:9");
    }
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = both(&output);
    let fine = if expected.is_empty() { output.status.success() } else { said.contains(expected) && !output.status.success() };
    (!fine).then(|| {
        format!("{}: `quikflow {}` says {}", start.place, start.args.join(" "), said.lines().next().unwrap_or("nothing"))
    })
}

/// A process that answers on all three ports.
struct Answering {
    child: std::process::Child,
    /// Port in the container → address here.
    addresses: BTreeMap<u64, String>,
    _data: tempfile::TempDir,
}

impl Answering {
    fn start() -> Answering {
        let data = tempfile::tempdir().unwrap();
        let mut run =
            command(&["run", "--ingest-addr", "127.0.0.1:0", "--query-addr", "127.0.0.1:0", "--health-addr", "127.0.0.1:0"]);
        run.arg("--data").arg(data.path()).arg("--topologies").arg(shipped());
        let mut child = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let of = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}="))).map(str::to_owned);
            word.unwrap_or_else(|| panic!("no {name} in the ready line: {line}"))
        };
        let addresses = BTreeMap::from([(8080, of("ingest")), (8090, of("query")), (8070, of("health"))]);
        Answering { child, addresses, _data: data }
    }

    async fn finding(&self, probe: &Probe) -> Option<String> {
        let Some(address) = self.addresses.get(&probe.port) else {
            return Some(format!("{}: nothing listens on {}", probe.place, probe.port));
        };
        let answer = support::client().get(format!("{address}{}", probe.path)).send().await.unwrap();
        (!answer.status().is_success()).then(|| format!("{}: {} answers {}", probe.place, probe.path, answer.status()))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn what_is_shipped_agrees_with_the_project() {
    let facts = Facts::gather();
    let read = read(&shipped_files(), &facts);
    assert!(read.findings.is_empty(), "{}", read.findings.join("\n"));
    // Dockerfile 2, compose 4 × 2, Kubernetes 4, the guide 4.
    assert_eq!(read.starts.len(), 18, "{:?}", read.starts);
    let findings: Vec<String> = read.starts.iter().filter_map(|start| try_start(start, &facts)).collect();
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_probe_is_answered_and_the_binary_asks_by_itself() {
    let facts = Facts::gather();
    let probes = read(&shipped_files(), &facts).probes;
    assert_eq!(probes.len(), 12, "{probes:?}");
    let server = Answering::start();
    for probe in &probes {
        assert_eq!(server.finding(probe).await, None);
    }
    for (path, port, part) in [("/health/alive", 8070, "answers 404"), ("/health/live", 9999, "nothing listens")] {
        let probe = Probe { place: "spoilt".to_owned(), path: path.to_owned(), port };
        let finding = server.finding(&probe).await;
        assert!(finding.as_ref().is_some_and(|text| text.contains(part)), "{finding:?}");
    }
    // The image has no other client than the binary.
    for (port, address) in &server.addresses {
        for args in [&["health", "--url", address][..], &["health", "--live", "--url", address]] {
            let output = command(args).output().unwrap();
            assert!(output.status.success(), "{port}: {}", both(&output));
        }
    }
    let away = command(&["health", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(away.status.code(), Some(1), "{}", both(&away));
}

/// (file, what stands there, what is put in its place, what the check has to say)
const SPOILT: &[(&str, &str, &str, &str)] = &[
    ("compose.yaml", "services:\n", "services: [\n", "not YAML"),
    ("compose.yaml", "  kafka: {}\n", "  kafka: {}\n  kafka: {}\n", "not YAML"),
    ("compose.yaml", "QUIKFLOW_MONGODB_URL_FILE", "QUIKFLOW_MONGO_URL_FILE", "nothing reads QUIKFLOW_MONGO_URL_FILE"),
    ("compose.yaml", "QUIKFLOW_TOKEN_FILE: /run/secrets/token", "QUIKFLOW_TOKEN: 0123456789abcdef", "QUIKFLOW_TOKEN is a secret"),
    ("compose.yaml", "_FILE: /run/secrets/redis_url", "_FILE: /run/secrets/redis", "there is no file /run/secrets/redis"),
    ("compose.yaml", "secrets: [mysql_password]", "secrets: []", "there is no file /run/secrets/mysql_password"),
    ("compose.yaml", "deploy/secrets/token", "deploy/secrets/tokens", "deploy/secrets.sh does not make deploy/secrets/tokens"),
    ("compose.yaml", "\"127.0.0.1:8080:8080\"", "\"8080:8080\"", "open beyond loopback"),
    ("compose.yaml", "127.0.0.1:8090:8090", "127.0.0.1:8090:8091", "nothing listens on port"),
    ("compose.yaml", "image: mongo:8.0.13", "image: mongo:latest", "mongo:latest is not pinned"),
    ("compose.yaml", "image: redis:7.2.5", "image: redis", "redis is not pinned"),
    ("compose.yaml", "image: quikflow:0.1.0", "image: quikflow:0.0.9", "is not version"),
    ("compose.yaml", "user: \"101:101\"", "user: \"0:101\"", "clickhouse: runs as root"),
    (
        "compose.yaml",
        "    user: \"999:999\"\n    restart: unless-stopped\n    networks: [back]\n    secrets: [redis",
        "    secrets: [redis",
        "redis: runs as root",
    ),
    ("compose.yaml", "    mysql: { condition", "    mariadb: { condition", "depends on mariadb"),
    (
        "compose.yaml",
        "kafka: { condition: service_healthy }",
        "kafka: { condition: service_started }",
        "does not wait until kafka",
    ),
    ("compose.yaml", "kafka://kafka:9092", "kafka://broker:9092", "the broker kafka://broker:9092 is no service"),
    ("compose.yaml", "  pipelines: {}\n", "", "volumes declared and used differ"),
    (
        "compose.yaml",
        "volumes: [\"pipelines:/var/lib/quikflow\"]",
        "volumes: [\"pipelines:/data\"]",
        "cannot write to its data directory",
    ),
    ("compose.yaml", "\"quikflow\", \"health\"", "\"curl\", \"-f\"", "can ask only by its own binary"),
    ("compose.yaml", "stop_grace_period: 60s", "stop_grace_period: 5s", "too little time to drain"),
    ("compose.yaml", "read_only: true", "read_only: false", "can write to its image"),
    ("Dockerfile", "FROM debian:12.11-slim", "FROM debian:stable-slim", "debian:stable-slim is not pinned"),
    ("Dockerfile", "FROM rust:1.95.0", "FROM rust:1.94.0", "is not Rust 1.95"),
    ("Dockerfile", "USER 10001:10001\n", "", "the image runs as root"),
    ("Dockerfile", "USER 10001:10001\n", "USER 10001:10001\nUSER root\n", "the image runs as root"),
    ("Dockerfile", "--features full", "--features fuller", "no feature fuller"),
    ("Dockerfile", "COPY sinks sinks\n", "", "does not copy sinks"),
    ("Dockerfile", "COPY src src", "COPY source src", "copies source, which is not there"),
    ("Dockerfile", "QUIKFLOW_QUERY_ADDR", "QUIKFLOW_QUERY_ADDRESS", "nothing reads QUIKFLOW_QUERY_ADDRESS"),
    ("Dockerfile", "EXPOSE 8080 8090", "EXPOSE 8080 8091", "and exposes"),
    ("Dockerfile", "ENTRYPOINT [\"quikflow\"]", "ENTRYPOINT quikflow", "entry point"),
    (".dockerignore", "!query-api\n", "", "leaves out query-api"),
    ("deploy/kubernetes/config.yaml", "  QUIKFLOW_HEALTH_ADDR", "  QUIKFLOW_PROBE_ADDR", "nothing reads QUIKFLOW_PROBE_ADDR"),
    ("deploy/kubernetes/config.yaml", "/run/secrets/mysql_url", "/run/secrets/mysql", "there is no file /run/secrets/mysql"),
    (
        "deploy/kubernetes/config.yaml",
        "/etc/quikflow/topologies.toml",
        "/config/topologies.toml",
        "nothing is mounted at QUIKFLOW_TOPOLOGIES",
    ),
    ("deploy/kubernetes/ingest.yaml", "kind: Deployment", "kind: Deployment\nkind: Deployment", "not YAML"),
    ("deploy/kubernetes/ingest.yaml", "path: /health/ready", "path: /ready", "readinessProbe does not ask /health/ready"),
    ("deploy/kubernetes/ingest.yaml", "targetPort: http", "targetPort: web", "no port web"),
    ("deploy/kubernetes/ingest.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot is false"),
    ("deploy/kubernetes/ingest.yaml", "runAsUser: 10001", "runAsUser: 0", "is root"),
    ("deploy/kubernetes/ingest.yaml", "minAvailable: 1", "minAvailable: 2", "allows no disruption"),
    (
        "deploy/kubernetes/pipelines.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "readOnlyRootFilesystem is false",
    ),
    (
        "deploy/kubernetes/pipelines.yaml",
        "terminationGracePeriodSeconds: 60",
        "terminationGracePeriodSeconds: 10",
        "too little to drain",
    ),
    (
        "deploy/kubernetes/sinks.yaml",
        "claimName: quikflow-stores",
        "claimName: stores",
        "nothing makes the PersistentVolumeClaim stores",
    ),
    (
        "deploy/kubernetes/pipelines.yaml",
        "        name: data\n      spec:",
        "        name: date\n      spec:",
        "there is no volume data",
    ),
    (
        "deploy/kubernetes/pipelines.yaml",
        "serviceName: quikflow-pipelines",
        "serviceName: pipelines",
        "names the Service pipelines, which is not there",
    ),
    ("deploy/kubernetes/pipelines.yaml", "name: QUIKFLOW_STANDBY", "name: QUIKFLOW_STANDBYS", "QUIKFLOW_STANDBYS"),
    ("deploy/kubernetes/pipelines.yaml", "kind: PodDisruptionBudget", "kind: PodDisruptionBudgets", "deployments, 3 budgets"),
    (
        "deploy/kubernetes/sinks.yaml",
        "configMapRef: { name: quikflow }",
        "configMapRef: { name: quik }",
        "there is no config map quik",
    ),
    ("deploy/kubernetes/sinks.yaml", "secretName: quikflow", "secretName: secrets", "nothing makes the Secret secrets"),
    ("deploy/kubernetes/sinks.yaml", "memory: 1Gi }", "storage: 1Gi }", "resources have no limits/memory"),
    ("deploy/kubernetes/sinks.yaml", "\"sinks\", \"query\"]", "\"sinks\"]", "quikflow-query: no process has embedded stores"),
    (
        "deploy/kubernetes/query.yaml",
        "http://quikflow-sinks:8090",
        "http://quikflow-sinks:8080",
        "no process has embedded stores",
    ),
    ("deploy/kubernetes/query.yaml", "http://quikflow-sinks:8090", "http://sinks:8090", "no process has embedded stores"),
    ("compose.yaml", "http://sinks:8090", "http://ingest:8090", "no process has embedded stores at http://ingest:8090"),
    (
        "deploy/kubernetes/query.yaml",
        "port: health }\n            periodSeconds: 5",
        "port: probe }\n            periodSeconds: 5",
        "readinessProbe: no port",
    ),
    ("deploy/kubernetes/kustomization.yaml", "sinks.yaml, ", "", "kustomization.yaml lists"),
    (
        "docs/deployment.md",
        "deploy/kubernetes/config.yaml",
        "deploy/kubernetes/configuration.yaml",
        "there is no deploy/kubernetes/configuration.yaml",
    ),
];

#[test]
fn every_fault_is_found() {
    let facts = Facts::gather();
    for (file, from, to, expected) in SPOILT {
        let mut files = shipped_files();
        let text = files.get_mut(*file).unwrap();
        let spoilt = text.replace(from, to);
        assert_ne!(*text, spoilt, "{file} does not hold {from:?}");
        *text = spoilt;
        let findings = read(&files, &facts).findings;
        assert!(findings.iter().any(|finding| finding.contains(expected)), "{file}: {from:?} → {to:?}: {findings:?}");
    }
}

/// Commands and environments that only the binary itself can judge.
#[test]
fn every_command_that_the_binary_refuses_is_found() {
    let facts = Facts::gather();
    for (file, from, to, expected) in [
        ("compose.yaml", "[\"run\", \"pipelines\"]", "[\"run\", \"pipeline\"]", "invalid value 'pipeline'"),
        ("compose.yaml", "\"quikflow\", \"health\"", "\"quikflow\", \"health\", \"--ready\"", "unexpected argument '--ready'"),
        ("Dockerfile", "CMD [\"run\"]", "CMD [\"start\"]", "not known"),
        ("Dockerfile", "INGEST_ADDR=0.0.0.0:8080", "INGEST_ADDR=everywhere:8080", "is not an address to listen on"),
        ("deploy/kubernetes/query.yaml", "\"query\"]", "\"query\", \"--worker\", \"2\"]", "unexpected argument '--worker'"),
        ("docs/deployment.md", "generate --events", "generate --number", "unexpected argument '--number'"),
    ] {
        let mut files = shipped_files();
        let spoilt = files[file].replace(from, to);
        assert_ne!(files[file], spoilt, "{file} does not hold {from:?}");
        files.insert(file.to_owned(), spoilt);
        let findings: Vec<String> = read(&files, &facts).starts.iter().filter_map(|start| try_start(start, &facts)).collect();
        assert!(findings.iter().any(|finding| finding.contains(expected)), "{file}: {from:?} → {to:?}: {findings:?}");
    }
}
