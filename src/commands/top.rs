//! `quikflow top`: a terminal page of rates, lag, watermarks and epoch times.

mod page;
mod snapshot;

use crate::client::{Client, Side};
use crate::exit::{Context, Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use quikflow_topics::clock::{SharedClock, SystemClock};
use snapshot::Snapshot;
use std::io::IsTerminal;
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
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clock = SystemClock::shared();
    let client = runtime.block_on(Client::connect(settings, args.url.as_deref(), Side::Query))?;
    let look = || runtime.block_on(take(&client, &clock));
    let first = look()?;
    if args.once || !std::io::stdout().is_terminal() {
        out::line(first.text(None))?;
        return Ok(Outcome::Done);
    }
    page::show(first, args.every.max(Duration::from_millis(100)), client.base(), &clock, &look).context("the terminal")?;
    Ok(Outcome::Done)
}

async fn take(client: &Client, clock: &SharedClock) -> Result<Snapshot, Failure> {
    let status = client.get("/v1/status", &[]).await?;
    let lag = client.get("/v1/lag", &[]).await?;
    Ok(Snapshot::of(&status, &lag, clock.elapsed()))
}
