//! `quikflow explain`: the plan, for people, machines and pictures.

use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::process;
use crate::settings::Settings;
use quikflow_pipelines::explain;
use std::path::PathBuf;

/// How the plan is shown.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    Mermaid,
    Svg,
}

/// Shows the plan: nodes, keys, state, repartitions, emission, what each column costs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow explain --topology channel-activity --format svg > plan.svg")]
pub(crate) struct Args {
    /// The file [default: topologies.toml]
    file: Option<PathBuf>,
    /// Only this topology
    #[arg(long, value_name = "NAME")]
    topology: Option<String>,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
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
    let show = match args.format {
        Format::Text => explain::text,
        Format::Json => explain::json,
        Format::Mermaid => explain::mermaid,
        Format::Svg => explain::svg,
    };
    out::line(show(&plan, args.topology.as_deref()).map_err(|error| Failure::usage(error.to_string()))?)?;
    Ok(Outcome::Done)
}
