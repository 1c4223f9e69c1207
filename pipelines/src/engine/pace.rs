//! How many records an epoch takes: fewer where steps make many rows of each (`explode`), so that what
//! an epoch holds in memory is bounded by the rows made, not by the records read.
//!
//! Pure: told what epochs made, it answers what the next one may take. It begins small and doubles, so
//! that the first epochs do not find out by what they cost.

/// Rows on their way to keyed steps and topics that an epoch should make at most.
const MADE: usize = 1 << 20;
/// Records of the first epoch.
const FIRST: usize = 8_192;
/// Records that an epoch may always take.
const LEAST: usize = 256;
/// Fewer records say little of the others.
const TELLING: usize = 64;
/// Slices of a full epoch.
const SLICES: usize = 4;

/// The pace of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rows: usize,
    most: usize,
}

impl Pace {
    /// At most so many records an epoch.
    pub fn new(most: usize) -> Pace {
        Pace { rows: FIRST.min(most), most }
    }

    /// Records that the next epoch may take.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Records of one slice, which is decoded and run through the steps without state at once.
    pub fn slice_rows(&self, most: usize) -> usize {
        (self.rows / SLICES).max(1).min(most)
    }

    /// An epoch made so many rows of so many records.
    pub fn made(&mut self, records: usize, made: usize) {
        if records < TELLING {
            return;
        }
        let allowed = (MADE as u128 * records as u128 / made.max(1) as u128).min(self.most as u128) as usize;
        self.rows = allowed.min(self.rows * 2).max(LEAST.min(self.most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_grows_to_the_most_where_each_record_makes_a_few_rows() {
        let mut pace = Pace::new(65_536);
        assert_eq!((pace.rows(), pace.slice_rows(16_384)), (8_192, 2_048));
        for _ in 0..3 {
            pace.made(pace.rows(), 5 * pace.rows());
        }
        assert_eq!((pace.rows(), pace.slice_rows(16_384)), (65_536, 16_384));
        pace.made(3, 3_000_000);
        assert_eq!(pace.rows(), 65_536, "three records say nothing of others");
    }

    #[test]
    fn records_that_make_many_rows_are_taken_few_at_a_time() {
        let mut pace = Pace::new(65_536);
        pace.made(8_192, 8_192 * 1_000);
        assert_eq!(pace.rows(), 1_048);
        pace.made(1_048, 1_048 * 1_000_000);
        assert_eq!(pace.rows(), LEAST);
        assert_eq!(pace.slice_rows(16_384), 64);
        pace.made(LEAST, 0);
        assert_eq!(pace.rows(), 512, "it comes back by doubling");
        assert_eq!(Pace::new(10).rows(), 10);
    }
}
