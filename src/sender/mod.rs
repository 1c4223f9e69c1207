//! Sends files of lines to the door as a bulk producer (R17).
//!
//! * [`lines`]: cuts a file into lots without looking into the lines
//! * [`deliver`]: one lot until it is answered for good
//! * [`run_file`]: what is kept beside the file, so that a killed run goes on
//! * [`refused`]: what was refused, each line once
//!
//! Lots are in flight over several connections, but none more than one lot further ahead of an
//! unanswered earlier one than there are connections; the door puts them in order.

mod deliver;
mod lines;
mod progress;
mod refused;
mod run_file;
#[cfg(test)]
mod tests;

use crate::exit::{Context, Failure};
use crate::out::{self, thousands};
use deliver::{Answer, Door};
use futures::stream::{FuturesUnordered, StreamExt};
use lines::{Lot, Lots, Piece};
use progress::Progress;
use quikflow_topics::clock::SharedClock;
use refused::{Refusal, RefusedFile};
use run_file::Run;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How to send.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The ingest address.
    pub(crate) base: String,
    /// Bearer token.
    pub(crate) token: Option<String>,
    /// Lines a second, at most.
    pub(crate) rate: Option<f64>,
    /// Connections.
    pub(crate) connections: usize,
    /// Lines a request.
    pub(crate) batch: u64,
}

/// What became of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Lines in the file.
    pub(crate) lines: u64,
    /// Written by this run.
    pub(crate) accepted: u64,
    /// There already when they came: sent twice, or by an earlier part of this run.
    pub(crate) duplicates: u64,
    /// Refused for good, by code.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Where the refused lines are.
    pub(crate) refused_path: PathBuf,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Interrupted: the lines after `lines` were not sent.
    pub(crate) interrupted: bool,
}

impl Summary {
    /// One line for people.
    pub(crate) fn text(&self, name: &str) -> String {
        let refused: u64 = self.refused.values().sum();
        let mut text = format!(
            "{name}: {} lines in {:.1} s ({}/s): {} accepted, {} duplicates, {} refused",
            thousands(self.lines),
            self.seconds,
            thousands((self.lines as f64 / self.seconds.max(0.001)) as u64),
            thousands(self.accepted),
            thousands(self.duplicates),
            thousands(refused),
        );
        if refused > 0 {
            let by_code: Vec<String> = self.refused.iter().map(|(code, n)| format!("{code} {}", thousands(*n))).collect();
            text.push_str(&format!(" ({}) → {}", by_code.join(", "), self.refused_path.display()));
        }
        text
    }
}

/// What belongs to one file while it is sent.
struct Sending {
    options: Options,
    clock: SharedClock,
    run: Run,
    /// `None` for standard input: nothing to come back to.
    run_path: Option<PathBuf>,
    refused: RefusedFile,
    saved: Duration,
}

/// How one pass over the file ended.
enum Pass {
    Done(u64),
    Interrupted,
    Rewind(u64),
}

/// Sends one file, or standard input for `-`.
///
/// # Errors
/// A file that cannot be read, a door that does not speak this protocol. What has been answered is
/// remembered: the same command goes on.
pub(crate) async fn send(path: &Path, options: Options, clock: SharedClock) -> Result<Summary, Failure> {
    let stdin = path.as_os_str() == "-";
    let named = if stdin { PathBuf::from("stdin") } else { path.to_owned() };
    let refused_path = run_file::beside(&named, ".refused.jsonl");
    let (run, run_path, goes_on) = if stdin {
        (Run::new("stdin".into())?, None, false)
    } else {
        let fingerprint = run_file::fingerprint(path).usage(path.display())?;
        let run_path = run_file::beside(path, ".quikflow-run");
        match run_file::load(&run_path).usage(run_path.display())? {
            Some(run) if run.fingerprint == fingerprint => (run, Some(run_path), true),
            Some(_) => {
                return Err(Failure::usage(format!(
                    "{} has changed since the run that {} remembers was interrupted; remove that file to send it as a new one",
                    path.display(),
                    run_path.display()
                )));
            }
            None => {
                let run = Run::new(fingerprint)?;
                run_file::save(&run_path, &run).context(run_path.display())?;
                (run, Some(run_path), false)
            }
        }
    };
    if goes_on {
        out::note(format!("{}: goes on behind line {}", path.display(), thousands(run.done)));
    }
    let refused = RefusedFile::open(refused_path.clone(), goes_on).context(refused_path.display())?;
    let saved = clock.elapsed();
    let mut sending = Sending { options, clock: clock.clone(), run, run_path, refused, saved };
    let taken = Arc::new(AtomicU64::new(0));
    let size = if stdin { None } else { std::fs::metadata(path).ok().map(|m| m.len()) };
    let mut progress = Progress::new(&named.display().to_string(), size, taken.clone(), clock);
    let ended = loop {
        taken.store(0, Ordering::Relaxed);
        match sending.pass(path, stdin, taken.clone(), &mut progress).await {
            Ok(Pass::Rewind(to)) if stdin => {
                break Err(Failure::failed(format!(
                    "the door has forgotten what came after line {to}, and standard input cannot be read again"
                )));
            }
            Ok(Pass::Rewind(to)) => {
                out::note(format!(
                    "{}: the door knows lines up to {to} only (another data directory?); going back",
                    path.display()
                ));
                sending.run = Run { done: to, accepted: 0, duplicates: 0, ..sending.run.clone() };
            }
            other => break other,
        }
    };
    let seconds = progress.finish();
    sending.refused.sync()?;
    let (lines, interrupted) = match ended {
        Ok(Pass::Done(lines)) => (lines, false),
        Ok(_) => (sending.run.done, true),
        Err(failure) => {
            sending.save()?;
            return Err(failure);
        }
    };
    if interrupted {
        sending.save()?;
    } else if let Some(path) = &sending.run_path {
        std::fs::remove_file(path).context(path.display())?;
    }
    Ok(Summary {
        lines,
        accepted: sending.run.accepted,
        duplicates: sending.run.duplicates,
        refused: sending.refused.codes().clone(),
        refused_path: sending.refused.path().to_owned(),
        seconds,
        interrupted,
    })
}

impl Sending {
    fn save(&mut self) -> Result<(), Failure> {
        self.saved = self.clock.elapsed();
        let Some(path) = &self.run_path else { return Ok(()) };
        run_file::save(path, &self.run).context(path.display())
    }

    /// From behind line `run.done` to the file's end.
    async fn pass(&mut self, path: &Path, stdin: bool, taken: Arc<AtomicU64>, progress: &mut Progress) -> Result<Pass, Failure> {
        let input: Box<dyn Read + Send> =
            if stdin { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path).usage(path.display())?) };
        let batch = match self.options.rate {
            // So that a slow rate is a steady one.
            Some(rate) => self.options.batch.min(((rate / 10.0) as u64).max(1)),
            None => self.options.batch,
        };
        let mut pieces = read_ahead(input, batch, self.run.done, taken);
        let door = Door {
            http: crate::client::http_client(&self.options.base)?,
            url: format!("{}/v1/events", self.options.base),
            token: self.options.token.clone(),
            producer: self.run.producer(),
            acknowledged: AtomicU64::new(self.run.done),
            away: AtomicBool::new(false),
            clock: self.clock.clone(),
        };
        let window = self.options.connections as u64;
        let mut in_flight = FuturesUnordered::new();
        let mut answered: BTreeMap<u64, (Lot, Answer)> = BTreeMap::new();
        let (mut next, mut oldest, mut ended, mut lines) = (0_u64, 0_u64, false, self.run.done);
        let started = self.clock.elapsed();
        let mut sent = 0_u64;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            if ended && in_flight.is_empty() {
                return Ok(Pass::Done(lines));
            }
            let room = !ended && (in_flight.len() as u64) < window && next - oldest <= window;
            tokio::select! {
                biased;
                _ = &mut interrupt => return Ok(Pass::Interrupted),
                Some((index, lot, answer)) = in_flight.next(), if !in_flight.is_empty() => {
                    let answer: Answer = answer?;
                    if let Some(to) = answer.rewind {
                        return Ok(Pass::Rewind(to));
                    }
                    answered.insert(index, (lot, answer));
                    while let Some((lot, answer)) = answered.remove(&oldest) {
                        oldest += 1;
                        self.take(&lot, answer)?;
                        door.acknowledged.store(self.run.done, Ordering::SeqCst);
                    }
                    if self.clock.elapsed() - self.saved >= Duration::from_millis(500) {
                        self.save()?;
                    }
                    progress.show(self.run.done, self.refused.len());
                }
                piece = pieces.recv(), if room => match piece {
                    None => ended = true,
                    Some(Err(error)) => return Err(Failure::failed(format!("{}: after line {lines}: {error}", path.display()))),
                    Some(Ok(Piece::TooLong(line, length, begins))) => {
                        lines = line;
                        let message = format!("the line has {length} bytes, more than {} are not sent; here is how it begins", lines::MAX_LINE);
                        self.refused.add([(Refusal { line, code: "too_large".into(), path: None, message }, &begins[..])])?;
                    }
                    Some(Ok(Piece::Lot(lot))) => {
                        lines = lot.last;
                        let due = self.options.rate.map(|rate| Duration::from_secs_f64(sent as f64 / rate));
                        let wait = due.map(|due| due.saturating_sub(self.clock.elapsed() - started));
                        sent += lot.lines();
                        let (index, door) = (next, &door);
                        next += 1;
                        in_flight.push(async move {
                            if let Some(wait) = wait.filter(|w| !w.is_zero()) {
                                tokio::time::sleep(wait).await;
                            }
                            let answer = door.deliver(lot.clone()).await;
                            (index, lot, answer)
                        });
                    }
                },
            }
        }
    }

    /// Books an answered lot: first what was refused, then how far the run has come.
    fn take(&mut self, lot: &Lot, answer: Answer) -> Result<(), Failure> {
        let refused = answer.refused.into_iter().map(|refusal| {
            let bytes = lot.line(refusal.line);
            (refusal, bytes)
        });
        self.refused.add(refused).context(self.refused.path().display().to_string())?;
        self.run.accepted += answer.accepted;
        self.run.duplicates += answer.duplicates;
        self.run.done = lot.last;
        Ok(())
    }
}

/// Reads on a thread of its own, at most two lots ahead.
fn read_ahead(
    input: Box<dyn Read + Send>,
    batch: u64,
    after: u64,
    taken: Arc<AtomicU64>,
) -> mpsc::Receiver<std::io::Result<Piece>> {
    let (to, from) = mpsc::channel(2);
    let read = move || {
        let mut lots = match lines::open(input, taken).and_then(|input| Lots::new(input, batch, after)) {
            Ok(lots) => lots,
            Err(error) => return to.blocking_send(Err(error)).is_ok(),
        };
        loop {
            let piece = match lots.next() {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => return true,
                Err(error) => Err(error),
            };
            // Nobody takes it: sending has ended.
            if to.blocking_send(piece).is_err() {
                return false;
            }
        }
    };
    std::thread::spawn(read);
    from
}
