//! `quikflow schema`: the JSON Schema of `topologies.toml`.

use crate::exit::{Ended, Failure, Outcome};
use crate::out;

/// Prints the JSON Schema of topologies.toml, so that editors complete and check it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow schema > topologies.schema.json\n\nThen write `#:schema ./topologies.schema.json` in the first line of topologies.toml."
)]
pub(crate) struct Args {}

/// Does it.
pub(crate) fn run(_args: &Args) -> Ended {
    let schema = quikflow_pipelines::schema_json::json_schema();
    out::line(serde_json::to_string_pretty(&schema).map_err(|error| Failure::failed(error.to_string()))?)?;
    Ok(Outcome::Done)
}
