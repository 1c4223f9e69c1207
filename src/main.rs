//! `quikflow`: the one binary. The command line and the wiring of the rooms, nothing else.

mod client;
mod commands;
mod exit;
mod generator;
mod out;
mod process;
mod sender;
mod settings;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "fluvio")]
    quikflow_topics::brokers::fluvio::choose_cryptography();
    quikflow_topics::failpoint::init();
    commands::main()
}
