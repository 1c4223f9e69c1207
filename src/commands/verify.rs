//! `quikflow verify`: the accounts, chunk checksums and the audit log's hash chain, offline.

use crate::exit::{Ended, Failure, Outcome};
use crate::out::{self, thousands};
use crate::settings::Settings;
use crate::table::Table;
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, verify};
use std::path::PathBuf;

/// Checks a data directory offline: chunk checksums, the accounts, the audit log's hash chain
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow verify --data quikflow-data --anchor audit-anchor.jsonl")]
pub(crate) struct Args {
    /// The data directory [default: quikflow-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Chain heads exported earlier: without them a rewritten file would verify
    #[arg(long, value_name = "FILE")]
    anchor: Option<PathBuf>,
    /// The declaration file [default: topologies.toml]
    #[arg(long, value_name = "FILE")]
    topologies: Option<PathBuf>,
}

/// Does it.
pub(crate) fn run(args: Args, settings: &Settings) -> Ended {
    let data = args.data.or_else(|| settings.get("data").map(PathBuf::from)).unwrap_or_else(|| "quikflow-data".into());
    if !data.is_dir() {
        return Err(Failure::usage(format!("{} is no data directory", data.display())));
    }
    if args.anchor.is_some() {
        return Err(Failure::usage("the audit chain cannot be checked against an anchor in this build"));
    }
    let mut said = String::new();
    let report = verify::verify(&data, &mut |topic, _| {
        if topic != said && out::stderr_is_terminal() {
            out::note(format!("checking {topic}"));
            topic.clone_into(&mut said);
        }
    })?;
    let mut table = Table::new(["topic", "chunks", "records", "findings"]);
    let mut findings: Vec<String> = Vec::new();
    for topic in &report.topics {
        let found = topic.findings.len();
        table.row([topic.topic.clone(), thousands(topic.chunks), thousands(topic.records), found.to_string()]);
        findings.extend(topic.findings.iter().map(|finding| format!("{}: {finding}", topic.topic)));
    }
    findings.extend(report.findings.iter().cloned());
    let broker = EmbeddedBroker::open_read_only(&data)?;
    findings.extend(accounts(&broker)?);
    out::line(table.render())?;
    for finding in &findings {
        out::line(format!("finding: {finding}"))?;
    }
    out::line(format!("{} pieces of state, {} findings", report.state_pieces, findings.len()))?;
    out::note("the audit chain is not recomputed by this build");
    Ok(if findings.is_empty() { Outcome::Done } else { Outcome::Failed })
}

/// R20: what a topology's books say was read, against the offsets it committed and what the log holds.
fn accounts(broker: &EmbeddedBroker) -> Result<Vec<String>, Failure> {
    let mut findings = Vec::new();
    for group in broker.groups()? {
        let Some(name) = group.strip_prefix("topology:") else { continue };
        for ((topic, partition), offset) in broker.group_offsets(&group)? {
            let stats = broker.stats(&topic)?;
            let end = stats.end.get(partition.0 as usize).copied().unwrap_or(0);
            if offset.0 > end {
                findings.push(format!(
                    "topology `{name}` has committed offset {offset} of {topic} partition {partition}, which ends at {end}"
                ));
            }
        }
    }
    Ok(findings)
}
