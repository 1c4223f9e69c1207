//! Golden tests of mistakes: each `errors/*.toml` with what is said of it in the `.txt` beside it.
//! A `.stored` file is the plan whose state is there. `UPDATE_GOLDEN=1` rewrites the texts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

use quikflow_pipelines::plan::{compatible, fingerprint, load};
use quikflow_topics::diagnostics::SourceFile;
use std::path::Path;

/// Everything that is said of a file.
fn said(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let loaded = load(&SourceFile::new(name, std::fs::read_to_string(path).unwrap()));
    let mut said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    let stored = path.with_extension("stored");
    if let (Some(plan), Ok(text)) = (&loaded.plan, std::fs::read_to_string(stored)) {
        let before = load(&SourceFile::new("stored", text)).plan.expect("a stored plan has no mistakes");
        for (now, before) in plan.topologies.iter().zip(&before.topologies) {
            if let Err(mistakes) = compatible(now, false, &fingerprint(before, false)) {
                said.extend(mistakes.iter().map(|mistake| format!("error: {mistake}")));
            }
        }
    }
    let verdict = if loaded.plan.is_some() { "can run" } else { "cannot run" };
    format!("{}\n\n{verdict}\n", said.join("\n\n"))
}

#[test]
fn mistakes_are_shown_with_line_caret_and_remedy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 15, "the cases are there");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differ = Vec::new();
    for path in files {
        let said = said(&path);
        let golden = path.with_extension("txt");
        if update {
            std::fs::write(&golden, &said).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            differ.push(format!("{}\n── expected\n{expected}\n── said\n{said}", golden.display()));
        }
    }
    assert!(differ.is_empty(), "{}\nUPDATE_GOLDEN=1 rewrites them", differ.join("\n"));
}
