//! A window in halves (R19). A piece is the state of a window that has seen the rows of one slice and no others.

use super::super::common::broken;
use super::super::halves::{Combine, Divisible, Fate, Made, Merge, Place};
use super::super::pieces::share_of;
use super::WindowStep;
use super::apply::Apply;
use crate::operator::{Emit, Keyed, OperatorError, Rows, Stateless};

/// A piece of several groups with more bytes is made two.
const MOST: usize = 256 << 10;

impl Divisible for WindowStep {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&self) -> Box<dyn Stateless> {
        Box::new(self.prepare())
    }

    fn combine(&self, shares: u32) -> Box<dyn Combine> {
        Box::new(Combining { window: self.clone(), shares })
    }

    fn merge(&self) -> Box<dyn Merge> {
        Box::new(self.apply())
    }

    fn combines(&self) -> &'static str {
        "combines rows by window and key"
    }
}

struct Combining {
    window: WindowStep,
    shares: u32,
}

impl Combine for Combining {
    fn combine(&mut self, rows: Rows, made: &mut Made, emit: &mut Emit) -> Result<(), OperatorError> {
        let mut window = self.window.apply();
        window.on_rows(0, rows, emit)?;
        let mut by_share: Vec<Vec<u32>> = vec![Vec::new(); self.shares as usize];
        for slot in window.groups.all() {
            by_share[share_of(window.groups.key_hash(slot), self.shares) as usize].push(slot);
        }
        for (share, slots) in by_share.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            write(&mut window, slots, &mut |bytes| made.push(share, bytes));
        }
        Ok(())
    }
}

/// Writes groups in pieces of bounded size.
fn write(window: &mut Apply, slots: &[u32], out: &mut dyn FnMut(&[u8])) {
    let bytes = window.write(slots, true);
    if bytes.len() <= MOST || slots.len() < 2 {
        return out(&bytes);
    }
    let (one, other) = slots.split_at(slots.len() / 2);
    write(window, one, out);
    write(window, other, out);
}

impl Merge for Apply {
    /// Late where a window of it had closed: another share's records of long ago, the first ever of theirs. What is
    /// open of it is merged.
    fn piece(&mut self, _: Place, bytes: &[u8]) -> Result<Fate, OperatorError> {
        let late = self.merge(bytes).map_err(|e| broken(&self.step, e))?;
        Ok(if late { Fate::Late } else { Fate::Applied })
    }

    fn state(&self) -> &dyn Keyed {
        self
    }

    fn state_mut(&mut self) -> &mut dyn Keyed {
        self
    }
}
