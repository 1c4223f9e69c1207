//! `quikflow test`: the `[[test]]` blocks, in virtual time.

use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::process;
use crate::settings::Settings;
use quikflow_pipelines::driver;
use quikflow_topics::diagnostics::closest;
use std::path::PathBuf;

/// Runs the [[test]] blocks of a declaration file in virtual time; a diff where one fails
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow test topologies.toml --topology channel-activity")]
pub(crate) struct Args {
    /// The file [default: topologies.toml]
    file: Option<PathBuf>,
    /// Only the tests of this topology
    #[arg(long, value_name = "NAME")]
    topology: Option<String>,
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
    let mut tests = loaded.tests;
    if let Some(name) = &args.topology {
        let names: Vec<&str> = plan.topologies.iter().map(|t| t.name.as_str()).collect();
        if !names.contains(&name.as_str()) {
            let hint =
                closest(name, names.iter().copied()).map_or_else(|| names.join(", "), |near| format!("did you mean `{near}`?"));
            return Err(Failure::usage(format!("no topology `{name}`: {hint}")));
        }
        tests.retain(|test| test.topology == *name);
    }
    let reports = driver::run_tests(&plan, &tests);
    let mut failed = 0;
    for (number, report) in reports.iter().enumerate() {
        let verdict = if report.passed { "ok" } else { "FAILED" };
        out::line(format!("{:>3} {} · {} … {verdict}", number + 1, report.topology, report.doc))?;
        if !report.passed {
            failed += 1;
            out::line(report.diff.trim_end())?;
        }
    }
    out::line(format!("{} tests, {failed} failed", reports.len()))?;
    Ok(if failed > 0 { Outcome::Failed } else { Outcome::Done })
}
