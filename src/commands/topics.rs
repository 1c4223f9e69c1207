//! `quikflow topics`: look at topics.

use crate::exit::{Ended, Failure};
use crate::settings::Settings;
use std::path::PathBuf;

/// Lists, describes and reads topics, of a running process or (with --data) offline
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow topics read QuikApp.messages --max 5")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The running process's address [default: http://127.0.0.1:8090]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Reads this data directory offline instead
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All topics with their figures
    List,
    /// One topic: settings, columns, partitions
    Describe {
        /// The topic
        topic: String,
    },
    /// Records of a topic, one JSON object a line
    Read {
        /// The topic
        topic: String,
        /// The first offset, in every partition
        #[arg(long, value_name = "OFFSET", default_value_t = 0)]
        from: u64,
        /// Only this partition
        #[arg(long)]
        partition: Option<u32>,
        /// Stop after so many records
        #[arg(long, value_name = "N")]
        max: Option<u64>,
        /// Go on with what comes
        #[arg(long)]
        follow: bool,
    },
}

/// Does it.
pub(crate) fn run(args: Args, _settings: &Settings) -> Ended {
    Err(Failure::failed(format!("topics cannot be read in this build: {args:?}")))
}
