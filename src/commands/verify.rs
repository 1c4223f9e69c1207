//! `quikflow verify`: the accounts, chunk checksums and the audit log's hash chain, offline.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::path::PathBuf;

/// Checks a data directory offline: chunk checksums, the accounts, the audit log's hash chain
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow verify --data quikflow-data --anchor audit-anchor.jsonl")]
pub(crate) struct Args {
    /// The data directory [default: quikflow-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Chain heads exported earlier: without them a rewritten file would verify
    #[arg(long, value_name = "FILE")]
    anchor: Option<PathBuf>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
}

/// Does it.
pub(crate) fn run(args: Args, _settings: &Settings) -> Ended {
    Err(Failure::failed(format!("verify is not in this build: {args:?}")))
}
