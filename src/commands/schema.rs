//! `quikflow schema`: the JSON Schema of `topologies.toml`.

use crate::exit::{Ended, Failure};

/// Prints the JSON Schema of topologies.toml, so that editors complete and check it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow schema > topologies.schema.json\n\nThen write `#:schema ./topologies.schema.json` in the first line of topologies.toml."
)]
pub(crate) struct Args {}

/// Does it.
pub(crate) fn run(_args: &Args) -> Ended {
    Err(Failure::failed("the JSON Schema of topologies.toml is not in this build"))
}
