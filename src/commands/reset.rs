//! `quikflow reset`: throw away a topology's state and output and rebuild them.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::path::PathBuf;

/// Where the topology starts anew.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum From {
    Earliest,
    Latest,
}

/// Throws away a topology's state and output and rebuilds them; the process must be stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow reset --topology channel-activity --from earliest")]
pub(crate) struct Args {
    /// The topology
    #[arg(long, value_name = "NAME")]
    topology: String,
    /// Where it starts anew
    #[arg(long, value_enum, default_value_t = From::Earliest)]
    from: From,
    /// The data directory [default: quikflow-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
}

/// Does it.
pub(crate) fn run(args: Args, _settings: &Settings) -> Ended {
    Err(Failure::failed(format!("reset is not in this build: {args:?}")))
}
