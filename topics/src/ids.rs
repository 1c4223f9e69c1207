//! Newtypes for integers that could be confused.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

newtype!(
    /// A partition of a topic, from 0.
    PartitionId(u32)
);
newtype!(
    /// A record's place in its partition, from 0, without gaps except in compacted topics.
    Offset(u64)
);
newtype!(
    /// The unit of commit; also timely's timestamp. Strictly increasing over the life of a data directory.
    Epoch(u64)
);
newtype!(
    /// Event time or a watermark: microseconds since 1970-01-01T00:00:00Z.
    EventTime(i64)
);

impl EventTime {
    /// Before every record: the watermark of a partition that holds none.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// After every record.
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// None before every record.
    pub fn known(self) -> Option<EventTime> {
        (self != EventTime::MIN).then_some(self)
    }

    /// This time less `micros` microseconds, never below [`EventTime::MIN`].
    pub fn minus(self, micros: i64) -> EventTime {
        EventTime(self.0.saturating_sub(micros))
    }

    /// This time plus `micros` microseconds, never above [`EventTime::MAX`].
    pub fn plus(self, micros: i64) -> EventTime {
        EventTime(self.0.saturating_add(micros))
    }
}
