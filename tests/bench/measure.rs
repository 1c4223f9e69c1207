//! What a process has used: CPU time and memory, as the kernel counts them.

use std::fs;
use std::time::{Duration, Instant};

/// CPU seconds (user and system) that process `pid` has used so far.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, after)) = stat.rsplit_once(')') else { return 0.0 };
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime are fields 14 and 15 of stat(5); ticks are 1/100 s on Linux.
    (ticks(11) + ticks(12)) / 100.0
}

/// Peak resident memory of process `pid` in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Starts counting the peak anew, where the kernel lets us.
pub(crate) fn forget_peak() {
    if let Err(error) = fs::write("/proc/self/clear_refs", "5") {
        eprintln!("the peak of memory counts from the start of the process: {error}");
    }
}

/// A run being measured.
pub(crate) struct Run {
    pid: u32,
    cpu: f64,
    started: Instant,
}

impl Run {
    /// Starts measuring process `pid`.
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    pub(crate) fn of(pid: u32) -> Run {
        Run { pid, cpu: cpu_seconds(pid), started: Instant::now() }
    }

    /// Starts measuring this process.
    pub(crate) fn own() -> Run {
        Run::of(std::process::id())
    }

    /// Ends the run: prints a row and returns the wall time.
    pub(crate) fn end(self, name: &str, events: u64) -> Duration {
        let wall = self.started.elapsed();
        let cpu = cpu_seconds(self.pid) - self.cpu;
        let million = events as f64 / 1e6;
        println!(
            "{name:<58} {:>11.0} events/s {:>7.2} CPU s/M {:>7.2} s {:>6.0} MiB",
            events as f64 / wall.as_secs_f64(),
            cpu / million,
            wall.as_secs_f64(),
            peak_mib(self.pid)
        );
        wall
    }
}
