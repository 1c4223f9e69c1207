//! How much a sink asks of its store: rows a call, and when to ask less often.
//!
//! Pure: told what happened, it answers what to do. Rows halve with each failure and grow with each
//! success that was quick, so a store that is slow or has just come back gets what it can take. The
//! circuit opens after failures in a row, or when retries have used up their budget: a store that
//! fails every second call never fails often in a row. While it is open only small batches are tried.

use super::RunnerOptions;
use std::time::Duration;

/// A call longer than this gets fewer rows the next time.
const SLOW: Duration = Duration::from_secs(2);

/// Rows that are worth waiting for.
const PLENTY: f64 = 256.0;

/// What a success gives back of a retry.
const EARNS: f64 = 0.25;

/// One sink's pace.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    rows: usize,
    most: usize,
    probe: usize,
    breaker: u32,
    failures: u32,
    budget: f64,
    full: f64,
    back_off: Duration,
    longest: Duration,
    /// Rows a second, of late.
    rate: f64,
}

impl Pace {
    pub(crate) fn new(options: &RunnerOptions) -> Pace {
        let full = f64::from(options.budget.max(1));
        Pace {
            rows: options.max_rows.max(1),
            most: options.max_rows.max(1),
            probe: options.probe_rows.clamp(1, options.max_rows.max(1)),
            breaker: options.breaker.max(1),
            failures: 0,
            budget: full,
            full,
            back_off: options.back_off,
            longest: options.max_back_off,
            rate: 0.0,
        }
    }

    /// So many rows came within `time`.
    pub(crate) fn came(&mut self, rows: usize, time: Duration) {
        self.rate = rows as f64 / time.as_secs_f64().max(1e-6);
    }

    /// Whether rows come so fast that those of `time` are worth waiting for.
    pub(crate) fn plenty(&self, time: Duration) -> bool {
        self.rate * time.as_secs_f64() >= PLENTY
    }

    /// Rows that the next call may hold.
    pub(crate) fn rows(&self) -> usize {
        if self.open() { self.probe } else { self.rows }
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether calls are only tried now and then.
    pub(crate) fn open(&self) -> bool {
        self.failures >= self.breaker || (self.failures > 0 && self.budget < 1.0)
    }

    /// A call of so many rows worked.
    pub(crate) fn worked(&mut self, rows: usize, took: Duration) {
        self.failures = 0;
        self.budget = (self.budget + EARNS).min(self.full);
        if took > SLOW {
            self.rows = (rows / 2).max(self.probe).min(self.rows);
        } else if rows * 2 >= self.rows {
            // Only a call that used its room says that more would do.
            self.rows = (self.rows + self.rows / 2 + 1).min(self.most);
        }
    }

    /// A call failed. Answers how long to wait: it doubles with each failure in a row; `jitter`
    /// (0 to 1) spreads it over its upper half. The store's own hint is the least.
    pub(crate) fn failed(&mut self, jitter: f64, hint: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.budget = (self.budget - 1.0).max(0.0);
        self.rows = (self.rows / 2).max(self.probe);
        // An open circuit is no reason to hurry.
        let doubled = if self.open() { self.failures.max(self.breaker) } else { self.failures };
        let whole = self.back_off.saturating_mul(1 << doubled.saturating_sub(1).min(20)).min(self.longest);
        hint.unwrap_or_default().min(self.longest).max(whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(10);

    fn pace() -> Pace {
        Pace::new(&RunnerOptions { max_rows: 1_000, probe_rows: 10, ..RunnerOptions::default() })
    }

    #[test]
    fn rows_shrink_with_failures_and_grow_with_successes() {
        let mut pace = pace();
        pace.failed(0.0, None);
        assert_eq!(pace.rows(), 500);
        pace.worked(500, Duration::from_secs(3));
        assert_eq!(pace.rows(), 250, "too slow");
        pace.worked(20, QUICK);
        assert_eq!(pace.rows(), 250, "a small batch says nothing about a large one");
        let calls = (0..).find(|_| {
            let rows = pace.rows();
            pace.worked(rows, QUICK);
            pace.rows() == 1_000
        });
        assert!(calls.is_some_and(|n| n < 6), "{calls:?}");
    }

    #[test]
    fn only_rows_that_are_plenty_are_waited_for() {
        let mut pace = pace();
        let wait = Duration::from_millis(500);
        assert!(!pace.plenty(wait), "nothing is known yet");
        pace.came(2_000, Duration::from_secs(1));
        assert!(pace.plenty(wait));
        assert!(!pace.plenty(QUICK));
        pace.came(1, Duration::from_secs(5));
        assert!(!pace.plenty(wait));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_the_circuit_opens() {
        let mut pace = pace();
        let pauses: Vec<u128> = (0..14).map(|_| pace.failed(1.0, None).as_millis()).collect();
        assert_eq!(pauses[..5], [50, 100, 200, 400, 800]);
        assert_eq!(pauses[13], 30_000);
        assert!(pace.open());
        assert_eq!(pace.rows(), 10, "only a small batch is tried");
        assert_eq!(pace.failed(0.0, None), Duration::from_secs(15));
        assert_eq!(pace.failed(0.0, Some(Duration::from_secs(20))), Duration::from_secs(20));
        assert_eq!(pace.failed(0.0, Some(Duration::from_secs(3_600))), Duration::from_secs(30), "a hint is no order");
        pace.worked(10, QUICK);
        assert!(!pace.open());
    }

    #[test]
    fn a_store_that_fails_every_second_call_uses_up_the_budget() {
        let mut pace = pace();
        let opened = (0..100).find(|_| {
            pace.failed(0.0, None);
            let open = pace.open();
            pace.worked(10, QUICK);
            open
        });
        assert!(opened.is_some_and(|calls| (10..50).contains(&calls)), "{opened:?}");
        (0..100).for_each(|_| pace.worked(10, QUICK));
        pace.failed(0.0, None);
        assert!(!pace.open(), "the budget has come back");
    }
}
