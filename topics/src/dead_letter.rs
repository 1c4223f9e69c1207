//! A record that could not go on: with its bytes, the cause and where it came from (R11, R14).

use crate::ids::{EventTime, Offset, PartitionId};
use serde::{Deserialize, Serialize};

/// Where a dead letter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterStatus {
    /// Nobody has dealt with it.
    Open,
    /// An operator asked for another try; the step or sink takes it at its next epoch or batch.
    Replaying,
    /// Applied by a replay, once.
    Replayed,
    /// An operator put it aside for good.
    Resolved,
}

/// A dead letter. Its `id` is its origin, so that the same failure is stored once:
/// `door:<principal or producer>:<id or line>` · `step:<topology>:<step>:<topic>:<partition>:<offset>` ·
/// `sink:<sink>:<topic>:<partition>:<offset>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Unique: the origin.
    pub id: String,
    /// When it died, by this process's clock.
    pub at: EventTime,
    /// `decode`, `validation`, `expression`, `sink`, …: one word.
    pub cause: String,
    /// Machine-readable: `max_length`, `bad_timestamp`, `duplicate_key`, …
    pub code: String,
    /// The field's path where one is at fault (`payload.content`).
    pub path: Option<String>,
    /// For people: what and where and what to do.
    pub message: String,
    /// The topology, where one had it.
    pub topology: Option<String>,
    /// The step or the sink that failed.
    pub step: Option<String>,
    /// Where it was read from; none for rejects at the door.
    pub origin: Option<Origin>,
    /// Original bytes for rejects at the door (at most 64 KiB of them), else canonical JSON.
    pub bytes: Vec<u8>,
    /// How many bytes there were before the bound.
    pub full_size: u64,
    /// Where it stands.
    pub status: DeadLetterStatus,
}

/// A place in a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// The offset.
    pub offset: Offset,
}

/// Which dead letters to list; all given conditions hold. Newest first.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// One id.
    pub id: Option<String>,
    /// By cause.
    pub cause: Option<String>,
    /// By code.
    pub code: Option<String>,
    /// By topology.
    pub topology: Option<String>,
    /// By step or sink.
    pub step: Option<String>,
    /// By status.
    pub status: Option<DeadLetterStatus>,
    /// Not before.
    pub from: Option<EventTime>,
    /// Before.
    pub to: Option<EventTime>,
    /// After this row of the listing, for paging: the `seq` of the last one seen.
    pub before_seq: Option<u64>,
    /// At most so many; 0 means 100.
    pub limit: usize,
}

impl DeadLetterFilter {
    /// Whether `letter` is asked for; its place in the listing (`before_seq`) is the broker's to tell.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let same = |wanted: &Option<String>, is: Option<&String>| wanted.is_none() || wanted.as_ref() == is;
        same(&self.id, Some(&letter.id))
            && same(&self.cause, Some(&letter.cause))
            && same(&self.code, Some(&letter.code))
            && same(&self.topology, letter.topology.as_ref())
            && same(&self.step, letter.step.as_ref())
            && self.status.is_none_or(|status| status == letter.status)
            && self.from.is_none_or(|from| letter.at >= from)
            && self.to.is_none_or(|to| letter.at < to)
    }

    /// How many letters are listed at most.
    pub fn at_most(&self) -> usize {
        if self.limit == 0 { 100 } else { self.limit }
    }
}
