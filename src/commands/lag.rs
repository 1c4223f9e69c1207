//! `quikflow lag`: how far topologies and sinks are behind.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::time::Duration;

/// Shows the lag of every topology and sink; with --wait returns when all is zero and settled
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow lag --wait --timeout 60s\n\nWith --wait: exit 0 when every lag is zero and every closed window has reached its store, 1 when the time is over."
)]
pub(crate) struct Args {
    /// Wait until all is zero and every closed window has reached its store
    #[arg(long)]
    wait: bool,
    /// With --wait: for at most so long
    #[arg(long, default_value = "60s", value_parser = super::duration, value_name = "DURATION")]
    timeout: Duration,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Does it.
pub(crate) fn run(args: Args, _settings: &Settings) -> Ended {
    Err(Failure::failed(format!("lag is not in this build: {args:?}")))
}
