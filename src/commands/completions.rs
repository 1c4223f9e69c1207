//! `quikflow completions`: a shell's completion script.

use super::Cli;
use crate::exit::{Ended, Outcome};
use crate::out;
use clap::CommandFactory;
use clap_complete::Shell;

/// Prints a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow completions bash > ~/.local/share/bash-completion/completions/quikflow")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Does it.
pub(crate) fn run(args: &Args) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quikflow", &mut script);
    out::bytes(&script)?;
    Ok(Outcome::Done)
}
