//! The registry of steps: its examples run, and every step's file is in it.

use super::plan;
use quikflow_pipelines::driver::run_tests;
use quikflow_pipelines::plan::load;
use quikflow_pipelines::steps::KINDS;
use quikflow_topics::diagnostics::SourceFile;
use std::collections::BTreeSet;
use std::path::Path;

/// The topics and events of the shipped declaration, which the examples speak of.
fn events() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies.toml");
    let text = std::fs::read_to_string(path).unwrap();
    text.split("[[topology]]").next().unwrap().to_owned()
}

#[test]
fn every_example_of_the_registry_parses_plans_and_passes() {
    let events = events();
    for kind in KINDS {
        let text = format!("{events}\n{}", kind.example);
        let plan = plan(&text);
        let used = plan.topologies.iter().flat_map(|topology| &topology.nodes).any(|node| node.kind == kind.name);
        assert!(used, "the example of `{}` does not use it", kind.name);
        let tests = load(&SourceFile::new("example.toml", text)).tests;
        assert!(!tests.is_empty(), "the example of `{}` has no test", kind.name);
        for report in run_tests(&plan, &tests) {
            assert!(report.passed, "{}, {}:\n{}", kind.name, report.topology, report.diff);
        }
    }
}

#[test]
fn every_file_that_is_a_step_is_registered_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/steps");
    let mut declared = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let source = if path.is_dir() { path.join("mod.rs") } else { path };
        if std::fs::read_to_string(source).unwrap_or_default().contains("static KIND: StepKind") {
            declared.insert(name);
        }
    }
    let registered: BTreeSet<String> = KINDS.iter().map(|kind| kind.name.to_owned()).collect();
    assert_eq!(declared, registered, "a kind is named as its file, and stands in KINDS");
    assert_eq!(registered.len(), KINDS.len(), "each once");
}

#[test]
fn every_kind_says_what_it_is() {
    for kind in KINDS {
        assert!(!kind.summary.is_empty() && !kind.doc.is_empty(), "{}", kind.name);
        assert_eq!(kind.fields.first().map(|field| field.name), Some(kind.name), "the naming field comes first");
        let text = format!("{}\n{}", events(), kind.example);
        let stateful = plan(&text)
            .topologies
            .iter()
            .flat_map(|topology| &topology.nodes)
            .any(|node| node.kind == kind.name && node.step.fingerprint().is_some());
        assert_eq!(stateful, kind.stateful, "R12: `{}` has a fingerprint if it keeps state", kind.name);
    }
}
