//! `quikflow test`: the `[[test]]` blocks, in virtual time.

use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::process;
use crate::settings::Settings;
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
    let reports = quikflow_pipelines::driver::run_tests(&plan, &tests);
    let mut failed = 0;
    for (report, test) in reports.iter().zip(&tests) {
        let (line, _, _) = test.file.locate(report.span.start);
        let place = format!("{}:{line}", path.display());
        if report.passed {
            out::note(format!("ok      {} {} ({place})", report.topology, report.doc));
        } else {
            failed += 1;
            out::note(format!("FAILED  {} {} ({place})\n{}", report.topology, report.doc, report.diff));
        }
    }
    out::note(format!("{} tests, {failed} failed", reports.len()));
    Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
}
