//! Which window a time belongs to, and when a window closes. Pure.
//!
//! Windows are half-open, [start, end). A window closes when the watermark reaches end + grace.
//! Tumbling windows give each time one window; hopping ones would give it several, and sessions
//! would merge groups: both fit behind [`Windows`].

/// Windows of one size that do not overlap, counted from 1970-01-01T00:00:00Z plus an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Microseconds, above 0.
    pub(crate) size: i64,
    /// Microseconds, may be negative.
    pub(crate) offset: i64,
    /// How long after its end a window still takes records, in microseconds.
    pub(crate) grace: i64,
}

impl Windows {
    /// The start of the window that holds `time`.
    pub(crate) fn start(&self, time: i64) -> i64 {
        let into = (i128::from(time) - i128::from(self.offset)).rem_euclid(i128::from(self.size));
        time.saturating_sub(into as i64)
    }

    /// The end of the window that starts at `start`.
    pub(crate) fn end(&self, start: i64) -> i64 {
        start.saturating_add(self.size)
    }

    /// The watermark at which the window that starts at `start` closes.
    pub(crate) fn closes_at(&self, start: i64) -> i64 {
        self.end(start).saturating_add(self.grace)
    }

    /// Whether the window that starts at `start` is closed at this watermark.
    pub(crate) fn closed(&self, start: i64, watermark: i64) -> bool {
        self.closes_at(start) <= watermark
    }

    /// The last end of which the window is closed at this watermark; `i64::MIN` where none is,
    /// `i64::MAX` at the end of time.
    pub(crate) fn closed_until(&self, watermark: i64) -> i64 {
        match watermark {
            i64::MIN | i64::MAX => watermark,
            watermark => self.start(watermark.saturating_sub(self.grace)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_time_is_in_its_window_and_closing_agrees_with_the_horizon(
            time in -4_000_000_000_000_000i64..4_000_000_000_000_000,
            watermark in -4_000_000_000_000_000i64..4_000_000_000_000_000,
            size in 1i64..100_000_000_000,
            offset in -100_000_000_000i64..100_000_000_000,
            grace in 0i64..100_000_000_000,
        ) {
            let windows = Windows { size, offset, grace };
            let start = windows.start(time);
            prop_assert!(start <= time && time < windows.end(start));
            prop_assert_eq!(windows.start(windows.end(start)), windows.end(start));
            prop_assert_eq!(windows.closed(start, watermark), windows.end(start) <= windows.closed_until(watermark));
        }
    }

    #[test]
    fn the_ends_of_time_close_nothing_and_everything() {
        let windows = Windows { size: 60_000_000, offset: 0, grace: 0 };
        assert_eq!(windows.closed_until(i64::MIN), i64::MIN);
        assert_eq!(windows.closed_until(i64::MAX), i64::MAX);
    }
}
