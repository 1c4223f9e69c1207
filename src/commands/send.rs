//! `quikflow send`: JSONL by HTTP, resumable.

use crate::client::{Client, Side, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::sender::{self, Options};
use crate::settings::Settings;
use quikflow_topics::clock::SystemClock;
use std::path::PathBuf;

/// Sends JSONL (plain, .gz, .zst, or - for standard input) by HTTP; resumable
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow send chat.jsonl.gz --connections 4\n\n\
    Refused lines go to FILE.refused.jsonl with their reason. An interrupted run goes on where it was when the same \
    command is given again: FILE.quikflow-run remembers it until the file has been sent. Sending a file again after \
    that is a new run.")]
pub(crate) struct Args {
    /// Files of one event a line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The ingest address [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// At most so many lines a second
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Requests in flight at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,
    /// Lines a request
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    if args.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err(Failure::usage("--rate must be above 0"));
    }
    let clock = SystemClock::shared();
    block_on(async {
        let client = Client::connect(settings, args.url.as_deref(), Side::Ingest).await?;
        let options = Options {
            base: client.base().to_owned(),
            token: settings.get("token").map(str::to_owned),
            rate: args.rate,
            connections: usize::try_from(args.connections).unwrap_or(1),
            batch: args.batch,
        };
        let (mut outcome, mut accepted) = (Outcome::Done, 0);
        for file in &args.files {
            let summary = sender::send(file, options.clone(), clock.clone()).await?;
            let name = if file.as_os_str() == "-" { "standard input".to_owned() } else { file.display().to_string() };
            out::line(summary.text(&name))?;
            accepted += summary.accepted;
            if summary.interrupted {
                out::note(format!("interrupted behind line {}; the same command goes on from there", summary.lines));
                return Ok(Outcome::Failed);
            }
            if !summary.refused.is_empty() {
                outcome = Outcome::Failed;
            }
        }
        if accepted > 0 {
            // Whether a record is late is known when its window has seen it, not at the door.
            out::note("records that came too late for a window show when they are through: quikflow lag --wait");
        }
        Ok(outcome)
    })
}
