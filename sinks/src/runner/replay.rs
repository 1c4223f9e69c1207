//! Dead letters of a sink on their second way: written once, then marked (R14).

use super::RunnerOptions;
use super::task::{End, Task};
use crate::store::{ItemOutcome, StoreError, WriteBatch};
use quikflow_topics::broker::{BrokerError, Positions};
use quikflow_topics::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterStatus};
use std::time::Duration;

/// Dead letters taken in one go.
const AT_ONCE: usize = 100;
/// Between two looks where nothing has changed, and every change is told.
const QUIET: Duration = Duration::from_secs(60);

/// When to look for letters, and whether the store remembers, again.
pub(crate) struct Looks {
    every: Duration,
    quiet: Duration,
    /// When it was looked, and the version of the log then, unless something was left for later.
    last: Option<(Duration, Option<u64>)>,
}

impl Looks {
    /// With `told`, a look without a change of the log finds nothing new.
    pub(crate) fn new(options: &RunnerOptions, told: bool) -> Looks {
        Looks { every: options.replays, quiet: if told { QUIET } else { options.replays }, last: None }
    }

    /// How long until the next look, while the log stays at `version`.
    pub(crate) fn due(&self, now: Duration, version: u64) -> Duration {
        let Some((at, seen)) = self.last else { return Duration::ZERO };
        let wait = if seen == Some(version) { self.quiet } else { self.every };
        at.saturating_add(wait).saturating_sub(now)
    }

    /// It was looked; `all`: nothing is left for later.
    pub(crate) fn looked(&mut self, now: Duration, version: u64, all: bool) {
        self.last = Some((now, all.then_some(version)));
    }
}

impl Task {
    /// Writes this sink's dead letters in status `Replaying`. A row written twice, after a crash
    /// before the mark, is the same row: stores keep the higher version (R13). False: some are left for later.
    pub(crate) fn replay(&self, at: &Positions, generation: u64) -> Result<bool, End> {
        let filter = DeadLetterFilter {
            step: Some(self.setup.sink.name.clone()),
            status: Some(DeadLetterStatus::Replaying),
            limit: AT_ONCE,
            ..DeadLetterFilter::default()
        };
        let prefix = format!("sink:{}:", self.setup.sink.name);
        let letters = match self.broker.dead_letters(&filter) {
            Ok(letters) => letters,
            Err(BrokerError::Closed) => return Err(End::Stop),
            Err(error) => {
                tracing::warn!(sink = self.setup.sink.name, %error, "dead letters cannot be listed, they will be looked for again");
                return Ok(false);
            }
        };
        let mut all = true;
        // Listed newest first; written in the order of their places.
        for (_, letter) in letters.into_iter().rev().filter(|(_, letter)| letter.id.starts_with(&prefix)) {
            let Some(status) = self.replay_one(&letter, at, generation)? else {
                all = false;
                continue;
            };
            self.persist_broker(|| self.broker.mark_dead_letters(std::slice::from_ref(&letter.id), status))?;
            if status == DeadLetterStatus::Replayed {
                self.status.lock().replayed += 1;
            }
        }
        Ok(all)
    }

    /// The letter's new status; none: not now.
    fn replay_one(&self, letter: &DeadLetter, at: &Positions, generation: u64) -> Result<Option<DeadLetterStatus>, End> {
        let open = |why: &str| {
            tracing::warn!(
                sink = self.setup.sink.name,
                id = letter.id,
                why,
                "a dead letter cannot be replayed, it is open again"
            );
            Ok(Some(DeadLetterStatus::Open))
        };
        let Some(origin) = &letter.origin else { return open("it has no origin") };
        let record = self.persist_broker(|| self.broker.read_record(&origin.topic, origin.partition, origin.offset))?;
        let Some(record) = record else { return open("its record is no longer in the topic") };
        let (rows, failed) = self.filter(record)?;
        if !failed.is_empty() {
            return open("the filter fails on it again");
        }
        if rows.num_rows() == 0 {
            return Ok(Some(DeadLetterStatus::Replayed));
        }
        let batch = WriteBatch { sink: self.setup.sink.clone(), rows, generation, next: at.clone() };
        match self.wait(self.store.write(batch)) {
            Ok(outcomes) => match outcomes.first() {
                Some(ItemOutcome::Written | ItemOutcome::Older) => Ok(Some(DeadLetterStatus::Replayed)),
                Some(ItemOutcome::Rejected { message, .. }) => open(message),
                Some(ItemOutcome::Busy) | None => Ok(None),
            },
            Err(StoreError::BadRequest(message)) => open(&message),
            Err(StoreError::Unavailable { .. }) => Ok(None),
            Err(refused) => Err(End::Failed(refused.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_again_after_a_change_or_after_long() {
        let options = RunnerOptions::default();
        let (second, every) = (Duration::from_secs(1), options.replays);
        for (told, still) in [(true, QUIET), (false, every)] {
            let mut looks = Looks::new(&options, told);
            assert_eq!(looks.due(Duration::ZERO, 0), Duration::ZERO, "at first");
            looks.looked(second, 7, true);
            assert_eq!(looks.due(second, 7), still, "nothing has changed");
            assert_eq!(looks.due(second, 8), every, "not for each change");
            assert_eq!(looks.due(second + every, 8), Duration::ZERO);
            assert_eq!(looks.due(second + QUIET, 7), Duration::ZERO, "after long in any case");
            looks.looked(second, 7, false);
            assert_eq!(looks.due(second, 7), every, "what was left is tried again soon");
        }
    }
}
