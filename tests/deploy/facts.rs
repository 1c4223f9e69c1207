//! What the project itself says: its settings by the binary, its version, features and crates by
//! Cargo.toml, its secrets by the script that makes them.

use crate::support::{both, command};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files that are checked, by their path from the root.
pub(crate) type Files = BTreeMap<String, String>;

/// What they are held against.
pub(crate) struct Facts {
    /// Variables of the environment, and whether their value is a secret that must not stand there.
    pub(crate) variables: BTreeMap<String, bool>,
    /// The package's version.
    pub(crate) version: String,
    /// The oldest compiler.
    pub(crate) rust: String,
    /// Cargo features of the package.
    pub(crate) features: BTreeSet<String>,
    /// What a build needs beside Cargo.toml and Cargo.lock.
    pub(crate) sources: Vec<String>,
    /// The secrets that deploy/secrets.sh has made, with their text.
    pub(crate) secrets: BTreeMap<String, String>,
    /// Where it has made them.
    pub(crate) secrets_dir: tempfile::TempDir,
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Everything that is shipped for containers.
pub(crate) fn shipped_files() -> Files {
    let mut names: Vec<String> =
        ["compose.yaml", "Dockerfile", ".dockerignore", "docs/deployment.md"].map(str::to_owned).to_vec();
    for entry in fs::read_dir(root().join("deploy/kubernetes")).unwrap() {
        names.push(format!("deploy/kubernetes/{}", entry.unwrap().file_name().to_string_lossy()));
    }
    names.into_iter().map(|name| (name.clone(), fs::read_to_string(root().join(&name)).unwrap())).collect()
}

impl Facts {
    pub(crate) fn gather() -> Facts {
        let listed = command(&["settings", "--json"]).output().unwrap();
        assert!(listed.status.success(), "{}", both(&listed));
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let mut variables = BTreeMap::new();
        for setting in listed.as_array().unwrap() {
            let secret = setting["secret"].as_bool().unwrap();
            variables.insert(setting["variable"].as_str().unwrap().to_owned(), secret);
            if let Some(file) = setting["file_variable"].as_str() {
                variables.insert(file.to_owned(), false);
            }
        }
        assert!(variables.len() > 20, "{variables:?}");
        let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
        let workspace = &manifest["workspace"];
        let mut sources: Vec<String> =
            workspace["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap().to_owned()).collect();
        // What cargo is told beside the manifest changes what is built.
        sources.extend(["src", ".cargo"].map(str::to_owned));
        // Cargo reads no manifest whose named targets are missing.
        for bench in manifest.get("bench").and_then(|b| b.as_array()).into_iter().flatten() {
            sources.push(bench["path"].as_str().unwrap().to_owned());
        }
        let secrets_dir = tempfile::tempdir().unwrap();
        let made =
            std::process::Command::new("sh").arg(root().join("deploy/secrets.sh")).arg(secrets_dir.path()).output().unwrap();
        assert!(made.status.success(), "{}", both(&made));
        Facts {
            variables,
            version: workspace["package"]["version"].as_str().unwrap().to_owned(),
            rust: workspace["package"]["rust-version"].as_str().unwrap().to_owned(),
            features: manifest["features"].as_table().unwrap().keys().cloned().collect(),
            sources,
            secrets: read_all(secrets_dir.path()),
            secrets_dir,
        }
    }

    /// What is wrong with a process's environment. `mounted` are the files it finds its secrets in.
    pub(crate) fn environment(
        &self,
        place: &str,
        environment: &BTreeMap<String, String>,
        mounted: &BTreeSet<String>,
    ) -> Vec<String> {
        let mut findings = Vec::new();
        for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("QUIKFLOW_")) {
            match self.variables.get(name) {
                None => findings.push(format!("{place}: nothing reads {name}")),
                Some(true) => findings.push(format!("{place}: {name} is a secret, name a file by {name}_FILE")),
                Some(false) if name.ends_with("_FILE") && !mounted.contains(value) => {
                    findings.push(format!("{place}: {name}: there is no file {value}"));
                }
                Some(false) => {}
            }
        }
        findings
    }

    /// What is wrong with an image's name.
    pub(crate) fn image(&self, place: &str, image: &str) -> Option<String> {
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, ""));
        let version = tag.split('-').next().unwrap_or_default();
        let numbers: Vec<&str> = version.split('.').collect();
        if numbers.len() < 2 || !numbers.iter().all(|number| number.parse::<u32>().is_ok()) {
            return Some(format!("{place}: the image {image} is not pinned to a version"));
        }
        (name == "quikflow" && tag != self.version)
            .then(|| format!("{place}: {image} is not version {} of Cargo.toml", self.version))
    }
}

fn read_all(folder: &Path) -> BTreeMap<String, String> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

/// A process of ours that a file starts: arguments and environment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Start {
    pub(crate) place: String,
    pub(crate) args: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
}

/// A path that is asked to see how a process is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    pub(crate) place: String,
    pub(crate) path: String,
    /// The port in the container.
    pub(crate) port: u64,
}

/// What reading the files has given.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) findings: Vec<String>,
    pub(crate) starts: Vec<Start>,
    pub(crate) probes: Vec<Probe>,
}

impl Read {
    pub(crate) fn wrong(&mut self, finding: impl Into<String>) {
        self.findings.push(finding.into());
    }

    /// A finding unless it holds.
    pub(crate) fn must(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(finding());
        }
    }
}
