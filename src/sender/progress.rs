//! How far sending has come: a bar on a terminal, else a line now and then.

use crate::out::{self, thousands};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quikflow_topics::clock::SharedClock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two lines where no terminal looks on.
const EVERY: Duration = Duration::from_secs(5);

/// Progress over one file.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    /// Bytes taken from the file so far.
    taken: Arc<AtomicU64>,
    size: Option<u64>,
    clock: SharedClock,
    started: Duration,
    said: Duration,
}

impl Progress {
    /// Over a file of `size` bytes, if that is known; `taken` moves as it is read.
    pub(crate) fn new(name: &str, size: Option<u64>, taken: Arc<AtomicU64>, clock: SharedClock) -> Progress {
        let bar = out::stderr_is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr_with_hz(8));
            let form = if size.is_some() {
                "{prefix} {wide_bar} {percent:>3} %  {msg}  {eta} left"
            } else {
                "{prefix} {spinner}  {msg}  {elapsed}"
            };
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar
        });
        let now = clock.elapsed();
        Progress { bar, name: name.to_owned(), taken, size, started: now, said: now, clock }
    }

    /// So many lines were answered by now, of them so many refused.
    pub(crate) fn show(&mut self, lines: u64, refused: u64) {
        let now = self.clock.elapsed();
        let seconds = (now - self.started).as_secs_f64().max(0.001);
        let rate = lines as f64 / seconds;
        let taken = self.taken.load(Ordering::Relaxed);
        let refused = if refused > 0 { format!(", {} refused", thousands(refused)) } else { String::new() };
        let message = format!("{} lines, {}/s{refused}", thousands(lines), thousands(rate as u64));
        if let Some(bar) = &self.bar {
            bar.set_position(taken);
            bar.set_message(message);
        } else if now - self.said >= EVERY {
            self.said = now;
            let left = match self.size {
                Some(size) if taken > 0 && size > 0 => {
                    let part = taken as f64 / size as f64;
                    let left = Duration::from_secs((seconds / part - seconds).max(0.0) as u64);
                    format!(" ({:.0} %, {} left)", part * 100.0, quikflow_topics::units::show_duration(left))
                }
                _ => String::new(),
            };
            out::note(format!("{}: {message}{left}", self.name));
        }
    }

    /// Ends the bar; returns the seconds it took.
    pub(crate) fn finish(&self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        (self.clock.elapsed() - self.started).as_secs_f64()
    }
}
