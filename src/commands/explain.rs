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
    let shown = show(&plan, args.topology.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    let (broker, promise) = process::promise(settings);
    out::line(match args.format {
        Format::Text => format!("{}\n\nbroker {broker}: {promise}", shown.trim_end()),
        Format::Json => with_broker(&shown, broker, promise)?,
        // Pictures are of the plan alone.
        Format::Mermaid | Format::Svg => shown,
    })?;
    Ok(Outcome::Done)
}

/// The plan's JSON with what the configured broker promises.
fn with_broker(plan: &str, broker: &str, promise: &str) -> Result<String, Failure> {
    let failed = |error: serde_json::Error| Failure::failed(error.to_string());
    let mut plan: serde_json::Value = serde_json::from_str(plan).map_err(failed)?;
    if let Some(object) = plan.as_object_mut() {
        object.insert("broker".to_owned(), serde_json::json!({ "name": broker, "guarantee": promise }));
    }
    serde_json::to_string_pretty(&plan).map_err(failed)
}
