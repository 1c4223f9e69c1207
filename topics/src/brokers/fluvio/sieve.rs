//! Which records of a partition are repeats: what makes "at least once" once.
//!
//! A writer numbers what it writes to a partition, upwards, and writes a batch again, under the same
//! numbers, until it is answered; only then the next. So a record whose number is not above its
//! writer's highest so far is a repeat, however late it comes.

use super::record::{Id, Number};
use std::collections::HashMap;

/// Writers remembered of a partition; the one heard of longest ago is forgotten first.
const WRITERS: usize = 4096;

/// The highest number of each writer to a partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Sieve {
    /// writer → (highest number, offset at which it was last heard of)
    marks: HashMap<String, (Number, u64)>,
}

impl Sieve {
    /// Whether it comes for the first time. Records that others wrote have no number and pass.
    pub(super) fn passes(&mut self, offset: u64, id: &Id) -> bool {
        let Some((by, no)) = id else { return true };
        match self.marks.get_mut(by) {
            Some((mark, heard)) => {
                *heard = offset;
                let new = *no > *mark;
                *mark = (*mark).max(*no);
                new
            }
            None => {
                if self.marks.len() >= WRITERS {
                    let oldest = self.marks.iter().min_by_key(|(_, (_, heard))| *heard).map(|(by, _)| by.clone());
                    oldest.map(|by| self.marks.remove(&by));
                }
                self.marks.insert(by.clone(), (*no, offset));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(id: Option<(&str, Number)>) -> Id {
        id.map(|(by, no)| (by.to_owned(), no))
    }

    #[test]
    fn repeats_are_known_by_their_numbers_and_others_pass() {
        let mut sieve = Sieve::default();
        let of_a = |no| Some(("a", no));
        for (offset, id, passes) in [
            (0, of_a((1, 0)), true),
            (1, of_a((1, 1)), true),
            (2, of_a((1, 0)), false),
            (3, of_a((1, 1)), false),
            (4, of_a((1, 2)), true),
            (5, Some(("b", (1, 0))), true),
            (6, of_a((2, 0)), true),
            (7, of_a((1, 2)), false),
            (8, None, true),
            (9, None, true),
        ] {
            assert_eq!(sieve.passes(offset, &owned(id)), passes, "{offset}");
        }
    }

    #[test]
    fn the_writer_heard_of_longest_ago_is_forgotten_first() {
        let mut sieve = Sieve::default();
        for n in 0..=WRITERS as u64 {
            assert!(sieve.passes(n, &owned(Some((&format!("w{n}"), (1, 0))))));
        }
        assert_eq!(sieve.marks.len(), WRITERS);
        assert!(!sieve.passes(9_999, &owned(Some(("w1", (1, 0))))));
        assert!(sieve.passes(10_000, &owned(Some(("w0", (1, 0))))));
    }
}
