//! `quikflow settings`: everything that can be set outside `topologies.toml`.

use crate::exit::{Ended, Outcome};
use crate::out;
use crate::settings::{KNOWN, variable};
use crate::table::Table;
use serde_json::json;

/// Lists what quikflow.toml and the environment can set
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow settings\n\nA setting is `name = \"…\"` in quikflow.toml and QUIKFLOW_NAME in the environment, which wins. A secret may also be a file: QUIKFLOW_NAME_FILE."
)]
pub(crate) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) fn run(args: &Args) -> Ended {
    let file = |name: &str, secret: bool| secret.then(|| format!("{}_FILE", variable(name)));
    if args.json {
        let all: Vec<serde_json::Value> = KNOWN
            .iter()
            .map(|(name, secret, what)| {
                json!({ "name": name, "variable": variable(name), "file_variable": file(name, *secret), "secret": secret, "what": what })
            })
            .collect();
        out::line(json!(all).to_string())?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["variable", "or a file", "what"]);
    for (name, secret, what) in KNOWN {
        table.row([variable(name), file(name, secret).unwrap_or_default(), what.to_owned()]);
    }
    out::line(table.render())?;
    Ok(Outcome::Done)
}
