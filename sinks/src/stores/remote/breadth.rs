//! How many calls a batch is divided into that are under way at once, found by trying.
//!
//! Pure: told how long batches took, it answers with how many calls to make. It stays where most rows a
//! second go through, tries what lies beside that now and then, and begins again after a failure: a store
//! that is in trouble gets little at once.

use std::time::Duration;

/// Fewer rows say nothing about how many calls are best.
const WORTH: usize = 512;
/// Twice as many calls with each step: 1, 2, 4, 8.
const STEPS: usize = 4;
/// Where it begins: two calls, so that one is made ready while the store is busy with the other.
const FIRST: usize = 1;
/// Batches by which a step is judged.
const TRIAL: u32 = 3;
/// After so many judgements what lies beside is tried anew.
const FRESH: u32 = 32;
/// More calls have to be worth it by so much.
const BETTER: f64 = 1.05;

/// One sink's breadth.
#[derive(Clone, Debug)]
pub(crate) struct Breadth {
    step: usize,
    /// Rows a second at each step, where it was tried.
    rates: [Option<f64>; STEPS],
    batches: u32,
    judged: u32,
}

impl Default for Breadth {
    fn default() -> Breadth {
        Breadth { step: FIRST, rates: [None; STEPS], batches: 0, judged: 0 }
    }
}

impl Breadth {
    /// How many calls of the next batch are under way at once.
    pub(crate) fn calls(&self) -> usize {
        1 << self.step
    }

    /// A batch of so many rows was written.
    pub(crate) fn worked(&mut self, rows: usize, took: Duration) {
        if rows < WORTH {
            return;
        }
        let rate = rows as f64 / took.as_secs_f64().max(1e-6);
        let known = &mut self.rates[self.step];
        *known = Some(known.map_or(rate, |old| 0.5 * old + 0.5 * rate));
        self.batches += 1;
        if self.batches >= TRIAL {
            self.batches = 0;
            self.judge();
        }
    }

    /// A batch was not written.
    pub(crate) fn failed(&mut self) {
        *self = Breadth { step: 0, ..Breadth::default() };
    }

    fn judge(&mut self) {
        let here = self.rates[self.step].unwrap_or(0.0);
        let (fewer, more) = (self.step.checked_sub(1), Some(self.step + 1).filter(|step| *step < STEPS));
        let untried = |step: &usize| self.rates[*step].is_none();
        self.judged += 1;
        self.step = match (fewer.map(|step| (step, self.rates[step])), more.map(|step| (step, self.rates[step]))) {
            // More are tried only where they were worth it so far.
            (Some((step, Some(rate))), _) if rate * BETTER >= here => step,
            (_, Some((step, Some(rate)))) if rate >= here * BETTER => step,
            _ => more.filter(untried).or(fewer.filter(untried)).unwrap_or(self.step),
        };
        if self.judged.is_multiple_of(FRESH) {
            let kept = self.rates[self.step];
            self.rates = [None; STEPS];
            self.rates[self.step] = kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most used number of calls over the later half of 200 batches, where a batch takes so long by calls.
    fn settles(seconds: impl Fn(usize) -> f64) -> usize {
        let mut breadth = Breadth::default();
        let mut used = [0; 9];
        for batch in 0..200 {
            let calls = breadth.calls();
            used[calls] += usize::from(batch >= 100);
            breadth.worked(4_096, Duration::from_secs_f64(seconds(calls)));
        }
        (0..used.len()).max_by_key(|calls| used[*calls]).unwrap_or(0)
    }

    #[test]
    fn it_stays_where_most_rows_go_through() {
        assert_eq!(settles(|_| 1.0), 1, "more calls are no better");
        assert_eq!(settles(|calls| 1.0 / calls as f64), 8);
        assert_eq!(settles(|calls| if calls < 4 { 1.0 / calls as f64 } else { 0.2 + 0.05 * calls as f64 }), 4);
        assert_eq!(settles(|calls| calls as f64), 1, "calls are in each other's way");
    }

    #[test]
    fn a_failure_begins_with_one_call_and_small_batches_say_nothing() {
        let mut breadth = Breadth::default();
        assert_eq!(breadth.calls(), 2);
        breadth.failed();
        assert_eq!(breadth.calls(), 1);
        (0..100).for_each(|_| breadth.worked(10, Duration::from_millis(1)));
        assert_eq!(breadth.calls(), 1);
        (0..TRIAL).for_each(|_| breadth.worked(4_096, Duration::from_secs(1)));
        assert_eq!(breadth.calls(), 2, "more are tried again");
    }
}
