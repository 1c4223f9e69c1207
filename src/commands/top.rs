//! `quikflow top`: a terminal page of rates, lag, watermarks and epoch times.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::time::Duration;

/// Shows live rates, lag, watermarks and epoch times; q quits
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow top --every 500ms")]
pub(crate) struct Args {
    /// How often to look
    #[arg(long, default_value = "1s", value_parser = super::duration, value_name = "DURATION")]
    every: Duration,
    /// Print one plain snapshot and end
    #[arg(long)]
    once: bool,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Does it.
pub(crate) fn run(args: Args, _settings: &Settings) -> Ended {
    Err(Failure::failed(format!("top is not in this build: {args:?}")))
}
