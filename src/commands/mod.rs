//! The command line: one file a command.

mod account;
mod check;
mod completions;
mod demo;
mod dlq;
mod explain;
mod generate;
mod health;
mod lag;
mod query;
mod reset;
mod run;
mod schema;
mod send;
mod settings;
mod test;
mod top;
mod topics;
mod verify;

pub(crate) use run::Part;

use crate::exit::{Ended, Outcome};
use crate::out;
use crate::settings::Settings;
use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Stream processing in one binary: ingest, topics, topologies, sinks, stores and a query API.
#[derive(Debug, Parser)]
#[command(
    name = "quikflow",
    version,
    propagate_version = true,
    after_help = "Example: quikflow demo\n\nExit codes: 0 done, 1 the check failed or records were refused, 2 usage or configuration."
)]
pub(crate) struct Cli {
    /// Settings outside topologies.toml; the environment (QUIKFLOW_…) wins [default: quikflow.toml, where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Demo(demo::Args),
    Check(check::Args),
    Explain(explain::Args),
    Test(test::Args),
    Send(send::Args),
    Generate(generate::Args),
    Topics(topics::Args),
    Lag(lag::Args),
    Health(health::Args),
    Top(top::Args),
    Query(query::Args),
    Dlq(dlq::Args),
    Reset(reset::Args),
    Schema(schema::Args),
    Settings(settings::Args),
    Account(account::Args),
    Verify(verify::Args),
    Completions(completions::Args),
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let command = Cli::command().color(if no_colour { ColorChoice::Never } else { ColorChoice::Auto });
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with 0, mistakes to standard error with 2.
            let outcome = if error.use_stderr() { Outcome::Usage } else { Outcome::Done };
            if let Err(failed) = error.print()
                && failed.kind() != std::io::ErrorKind::BrokenPipe
            {
                return Outcome::Failed.into();
            }
            return outcome.into();
        }
    };
    match dispatch(cli) {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            out::error(&failure.message);
            failure.outcome.into()
        }
    }
}

fn dispatch(cli: Cli) -> Ended {
    let settings = Settings::load(cli.config.as_deref())?;
    match cli.command {
        Command::Run(args) => run::run(args, &settings),
        Command::Demo(args) => demo::run(args, &settings),
        Command::Check(args) => check::run(&args, &settings),
        Command::Explain(args) => explain::run(&args, &settings),
        Command::Test(args) => test::run(&args, &settings),
        Command::Send(args) => send::run(args, &settings),
        Command::Generate(args) => generate::run(&args),
        Command::Topics(args) => topics::run(args, &settings),
        Command::Lag(args) => lag::run(args, &settings),
        Command::Health(args) => health::run(&args, &settings),
        Command::Top(args) => top::run(args, &settings),
        Command::Query(args) => query::run(args, &settings),
        Command::Dlq(args) => dlq::run(args, &settings),
        Command::Reset(args) => reset::run(args, &settings),
        Command::Schema(args) => schema::run(&args),
        Command::Settings(args) => settings::run(&args),
        Command::Account(args) => account::run(args, &settings),
        Command::Verify(args) => verify::run(args, &settings),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Microseconds since 1970 as RFC 3339 with milliseconds.
pub(crate) fn rfc3339(micros: i64) -> String {
    chrono::DateTime::from_timestamp_micros(micros)
        .map_or_else(|| micros.to_string(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

/// RFC 3339 as microseconds since 1970.
fn micros(text: &str) -> Result<i64, crate::exit::Failure> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|time| time.timestamp_micros())
        .map_err(|_| crate::exit::Failure::usage(format!("`{text}` is not a time: write it as 2026-01-31T12:00:00Z")))
}

/// The declaration file: the argument's, the settings', or `topologies.toml`.
fn topologies(file: Option<&std::path::Path>, settings: &Settings) -> PathBuf {
    file.map(PathBuf::from).or_else(|| settings.get("topologies").map(PathBuf::from)).unwrap_or_else(|| "topologies.toml".into())
}

/// Text as one segment of a path.
fn path_segment(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A duration argument such as `60s`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    quikflow_topics::units::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let shown = command.clone().render_long_help().to_string();
            assert!(shown.contains("Example"), "`quikflow {} --help` has no example:\n{shown}", command.get_name());
        }
    }

    #[test]
    fn the_flags_and_defaults_of_the_outside_contract_are_there() {
        for line in [
            "quikflow run ingest pipelines sinks query --topologies t.toml --data d --ingest-addr 127.0.0.1:0 --query-addr 127.0.0.1:0 --workers 2",
            "quikflow demo --exit --input f.jsonl",
            "quikflow check",
            "quikflow check t.toml",
            "quikflow explain t.toml --topology x --format svg",
            "quikflow test t.toml",
            "quikflow send a.jsonl b.jsonl.gz - --url http://h:1 --rate 10 --connections 3 --batch 7",
            "quikflow generate --events 5 --seed 7 --users 3",
            "quikflow topics list",
            "quikflow topics describe t",
            "quikflow topics read t --from 3 --max 5 --follow",
            "quikflow lag --wait --timeout 60s",
            "quikflow top",
            "quikflow health --live --url http://h:1",
            "quikflow settings --json",
            "quikflow run sinks --health-addr 127.0.0.1:0",
            "quikflow query SELECT --format parquet",
            "quikflow dlq list",
            "quikflow dlq show id",
            "quikflow dlq replay id",
            "quikflow dlq resolve id",
            "quikflow reset --topology x --from latest",
            "quikflow schema",
            "quikflow account set ann --email a@b --role admin --password-file -",
            "quikflow account remove ann",
            "quikflow account sessions ann",
            "quikflow account sign-out ann",
            "quikflow verify --data d --anchor f",
            "quikflow completions bash",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("`{line}`: {error}");
            }
        }
        assert!(Cli::try_parse_from(["quikflow", "run", "kitchen"]).is_err());
    }
}
