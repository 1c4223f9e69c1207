//! `quikflow check`: parse, type-check, plan.

use crate::exit::{Ended, Outcome};
use crate::out;
use crate::process;
use crate::settings::Settings;
use std::path::PathBuf;

/// Parses, type-checks and plans a declaration file; shows every mistake with line, caret and remedy
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow check topologies.toml")]
pub(crate) struct Args {
    /// The file [default: topologies.toml]
    file: Option<PathBuf>,
}

/// Does it.
pub(crate) fn run(args: &Args, settings: &Settings) -> Ended {
    let path = super::topologies(args.file.as_deref(), settings);
    let (_, loaded) = process::load(&path)?;
    let tally = process::tally(&loaded);
    let Some(plan) = loaded.plan else {
        out::note(format!("{}: {tally}", path.display()));
        return Ok(Outcome::Failed);
    };
    out::line(format!(
        "{}: {} topics, {} event types, {} topologies, {} sinks, {} tests: {tally}",
        path.display(),
        plan.catalogue.topics.len(),
        plan.catalogue.events.len(),
        plan.topologies.len(),
        plan.catalogue.sinks.len(),
        loaded.tests.len()
    ))?;
    Ok(Outcome::Done)
}
