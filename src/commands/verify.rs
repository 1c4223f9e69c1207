//! `quikflow verify`: the accounts, chunk checksums and the audit log's hash chain, offline.

use crate::exit::{Ended, Failure, Outcome};
use crate::out::{self, thousands};
use crate::process;
use crate::settings::Settings;
use crate::table::Table;
use quikflow_pipelines::engine::accounts;
use quikflow_pipelines::plan::Plan;
use quikflow_pipelines::steps::chain::{self, Anchor};
use quikflow_topics::broker::Broker;
use quikflow_topics::brokers::embedded::{EmbeddedBroker, verify};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Checks a data directory offline: chunk checksums, the accounts, the audit log's hash chain
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: quikflow verify --data quikflow-data --anchor copy-of-anchors.jsonl")]
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
    let topologies = super::topologies(args.topologies.as_deref(), settings);
    let (_, loaded) = process::load(&topologies)?;
    let Some(plan) = loaded.plan else {
        return Err(Failure::usage(format!("{} has mistakes: the accounts cannot be compared", topologies.display())));
    };
    let (anchors, cut) = args.anchor.as_deref().map(process::read_anchors).transpose()?.unwrap_or_default();
    if cut > 0 {
        out::note(format!("{cut} lines of the anchors are none"));
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
    out::line(table.render())?;
    findings.extend(accounts(&plan, broker.as_ref())?);
    findings.extend(chains(&plan, broker.as_ref(), &anchors)?);
    if args.anchor.is_none() {
        out::note("without --anchor a chain that was rewritten from its beginning is not found");
    }
    for finding in &findings {
        out::line(format!("finding: {finding}"))?;
    }
    out::line(format!("{} pieces of state, {} findings", report.state_pieces, findings.len()))?;
    Ok(if findings.is_empty() { Outcome::Done } else { Outcome::Failed })
}

/// R20: every topology's books against the log, a line each.
fn accounts(plan: &Plan, broker: &dyn Broker) -> Result<Vec<String>, Failure> {
    let accounts = accounts::verify(plan, broker).map_err(|error| Failure::failed(error.to_string()))?;
    let mut table = Table::new(["topology", "read", "written", "late", "dead", "in flight", "findings"]);
    let (mut findings, mut notes) = (Vec::new(), Vec::new());
    for account in accounts {
        let name = account.topology;
        let figures = [account.read, account.written, account.late, account.dead, account.in_flight].map(thousands);
        table.row([name.clone()].into_iter().chain(figures).chain([account.findings.len().to_string()]));
        findings.extend(account.findings.into_iter().map(|finding| format!("topology `{name}`: {finding}")));
        notes.extend(account.notes.into_iter().map(|note| format!("topology `{name}`: {note}")));
    }
    out::line(table.render())?;
    notes.iter().for_each(out::note);
    Ok(findings)
}

/// R15: every chain recomputed, against what its step committed and the anchors.
fn chains(plan: &Plan, broker: &dyn Broker, anchors: &[Anchor]) -> Result<Vec<String>, Failure> {
    let mut findings = Vec::new();
    let mut audited = BTreeMap::new();
    for topic in broker.topics() {
        let Some(done) = chain::audit_topic(broker, &topic.name, anchors)? else { continue };
        out::line(format!(
            "chains in {}: {} of {} rows, {} erased, {} anchors hold",
            topic.name,
            done.heads.len(),
            thousands(done.rows),
            thousands(done.erased),
            thousands(done.anchored)
        ))?;
        done.notes.iter().for_each(out::note);
        findings.extend(done.findings.iter().map(|finding| format!("{}: {finding}", topic.name)));
        audited.insert(topic.name.clone(), done.heads);
    }
    for chained in chain::chained_logs(plan) {
        let Some(found) = audited.get(&chained.log) else { continue };
        let heads = chain::committed_heads(broker, &chained.topology, &chained.step)
            .map_err(|error| Failure::failed(error.to_string()))?;
        for ((topic, partition), head) in heads.iter().filter(|(chain, head)| found.get(*chain) != Some(*head)) {
            let end = found.get(&(topic.clone(), *partition)).map_or(0, |head| head.next);
            findings.push(format!(
                "{}: the chain of {topic}/{partition} ends before index {end}, not where topology `{}` left it, before index {}",
                chained.log, chained.topology, head.next
            ));
        }
    }
    let unknown = anchors.iter().filter(|anchor| !audited.contains_key(&anchor.log)).count();
    if unknown > 0 {
        findings.push(format!("{unknown} anchors are of topics that hold no chain any more"));
    }
    Ok(findings)
}
