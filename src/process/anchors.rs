//! Exports the heads of hash chains (R15): a line of `DATA/anchors.jsonl` and of the process's log each.
//!
//! Copy the file to where nobody who can write the data directory can write: `quikflow verify
//! --anchor` compares the chains with it.

use crate::commands::rfc3339;
use crate::exit::{Context, Failure};
use parking_lot::Mutex;
use quikflow_pipelines::plan::Plan;
use quikflow_pipelines::steps::chain::{Anchor, ChainedLog, chained_logs, committed_heads};
use quikflow_topics::broker::Broker;
use quikflow_topics::clock::SharedClock;
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often heads that changed are exported; those of the end are exported when the process stops.
const EVERY: Duration = Duration::from_secs(60);

/// A chain: log, source topic, partition.
type Chain = (String, String, u32);

/// Writes the heads of all chains that changed.
pub(crate) struct Anchors {
    logs: Vec<ChainedLog>,
    broker: Arc<dyn Broker>,
    clock: SharedClock,
    file: PathBuf,
    /// What was written last. Held while writing, so that lines do not mix.
    written: Mutex<BTreeMap<Chain, (u64, String)>>,
}

impl Anchors {
    /// For the chains of `plan`, into the data directory.
    pub(crate) fn new(plan: &Plan, broker: Arc<dyn Broker>, clock: SharedClock, data: &Path) -> Anchors {
        Anchors { logs: chained_logs(plan), broker, clock, file: data.join("anchors.jsonl"), written: Mutex::default() }
    }

    /// Writes now and then until the process closes.
    pub(crate) async fn run(self: Arc<Anchors>, mut closed: watch::Receiver<bool>) {
        let mut every = tokio::time::interval(EVERY);
        every.tick().await;
        loop {
            tokio::select! {
                _ = every.tick() => {
                    let anchors = self.clone();
                    if tokio::task::spawn_blocking(move || anchors.write()).await.is_err() {
                        return;
                    }
                }
                _ = closed.changed() => return,
            }
        }
    }

    /// Writes what changed since it was written last. A failure is logged and tried again next time.
    pub(crate) fn write(&self) {
        if let Err(error) = self.try_write() {
            tracing::warn!(%error, "the heads of the audit chains were not exported");
        }
    }

    fn try_write(&self) -> Result<(), String> {
        let mut written = self.written.lock();
        let at = rfc3339(self.clock.now().0);
        let (mut lines, mut new) = (Vec::new(), Vec::new());
        for ChainedLog { topology, step, log } in &self.logs {
            let heads = committed_heads(self.broker.as_ref(), topology, step).map_err(|error| error.to_string())?;
            for anchor in heads.iter().filter_map(|(chain, head)| Anchor::of(log, chain, head, at.clone())) {
                let chain = (log.clone(), anchor.topic.clone(), anchor.partition);
                let place = (anchor.index, anchor.hash.clone());
                if written.get(&chain) != Some(&place) {
                    serde_json::to_writer(&mut lines, &anchor).map_err(|error| error.to_string())?;
                    lines.push(b'\n');
                    new.push((chain, place));
                }
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        append(&self.file, &lines).map_err(|error| format!("{}: {error}", self.file.display()))?;
        for (chain, place) in new {
            tracing::info!(
                log = chain.0,
                topic = chain.1,
                partition = chain.2,
                index = place.0,
                hash = place.1,
                "audit chain head"
            );
            written.insert(chain, place);
        }
        Ok(())
    }
}

/// Appends whole lines, durably; a line that a crash cut off is ended first.
fn append(file: &Path, lines: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().read(true).append(true).create(true).open(file)?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    file.write_all(lines)?;
    file.sync_data()
}

/// The anchors in a file, and how many lines are none: a crash cuts a line off.
///
/// # Errors
/// Exit 2 when the file cannot be read or holds no anchor at all.
pub(crate) fn read(file: &Path) -> Result<(Vec<Anchor>, usize), Failure> {
    let text = std::fs::read_to_string(file).usage(format!("{}", file.display()))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let anchors: Vec<Anchor> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if anchors.is_empty() {
        return Err(Failure::usage(format!("{} holds no anchor: name a copy of DATA/anchors.jsonl", file.display())));
    }
    let cut = lines - anchors.len();
    Ok((anchors, cut))
}
