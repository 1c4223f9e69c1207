//! `quikflow generate`: realistic JSONL of all 24 event types on standard output.

use crate::exit::{Ended, Failure, Outcome};
use crate::generator::{Options, Traffic};
use crate::out;

/// Where event time begins unless told otherwise: 2026-01-05T09:00:00Z, so that equal seeds yield equal files.
const BASE: i64 = 1_767_603_600_000_000;

/// Writes realistic JSONL of all 24 event types (and channel members) to standard output
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow generate --events 100000 --seed 7 | quikflow send -")]
pub(crate) struct Args {
    /// How many events
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    events: u64,
    /// The same seed writes the same events
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// How many users
    #[arg(long, value_name = "N", default_value_t = 300)]
    users: usize,
    /// Event time of the first event, RFC 3339 [default: 2026-01-05T09:00:00Z]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Event time of the last event, RFC 3339; `now` ends the story now
    #[arg(long, value_name = "TIME", conflicts_with = "rate")]
    to: Option<String>,
    /// Events a second of event time, where --from and --to do not say it
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    rate: f64,
    /// Without MEMBER_ADDED events
    #[arg(long)]
    no_members: bool,
    /// With a unique `id` in every event
    #[arg(long)]
    ids: bool,
}

/// Does it.
pub(crate) fn run(args: &Args) -> Ended {
    let (from, to) = span(args)?;
    let options =
        Options { events: args.events, seed: args.seed, users: args.users, from, to, members: !args.no_members, ids: args.ids };
    let mut buffer = Vec::with_capacity(80 << 10);
    for event in Traffic::new(options) {
        serde_json::to_writer(&mut buffer, &event.json).map_err(|e| Failure::failed(e.to_string()))?;
        buffer.push(b'\n');
        if buffer.len() > 64 << 10 {
            out::bytes(&buffer)?;
            buffer.clear();
        }
    }
    out::bytes(&buffer)?;
    Ok(Outcome::Done)
}

fn span(args: &Args) -> Result<(i64, i64), Failure> {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(Failure::usage("--rate must be above 0"));
    }
    let length = ((args.events.saturating_sub(1)) as f64 / args.rate * 1e6) as i64;
    let time = |text: &str| match text {
        "now" => Ok(quikflow_topics::clock::SystemClock::shared().now().0),
        text => super::micros(text),
    };
    let from = args.from.as_deref().map(time).transpose()?;
    let to = args.to.as_deref().map(time).transpose()?;
    let (from, to) = match (from, to) {
        (Some(from), Some(to)) => (from, to),
        (Some(from), None) => (from, from + length),
        (None, Some(to)) => (to - length, to),
        (None, None) => (BASE, BASE + length),
    };
    if to < from {
        return Err(Failure::usage("--to is before --from"));
    }
    Ok((from, to))
}
