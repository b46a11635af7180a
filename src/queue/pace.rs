//! When a side that has caught up with the other one looks again.
//!
//! A consumer at the producer's heels takes the line that is being written away from it for each message, and both then wait for
//! that line; so does a producer that waits for every slot the consumer frees. A side that lets the other one get ahead for a moment
//! finds many messages (or slots) at once, whose lines come together. But whoever waits for one answer must not be late for it. So
//! a side tries now and then whether waiting a little gains it something, and goes on as long as it does.
//!
//! Promises: [`Pace::hesitate`] takes less than two microseconds, and of a thousand messages that come one by one at most one finds it
//! at work. Costs nothing as long as there is something to do.

use std::cell::Cell;
use std::hint::spin_loop;

/// Breaths of the first try, and of the longest wait.
const SHORT: u32 = 8;
const LONG: u32 = 64;
/// Messages between two tries: at first, and after many that gained nothing.
const SOON: u64 = 8;
const LATE: u64 = 4096;

/// What one end remembers of its tries. Positions are those of [`End`](super::spsc::End).
#[derive(Debug)]
pub(crate) struct Pace {
    /// Where the last try was made, until it is known what came of it.
    tried: Cell<Option<u64>>,
    /// Where the next one may be made.
    due: Cell<u64>,
    /// Breaths it takes.
    breaths: Cell<u32>,
    /// Messages until the next, if that gains nothing.
    apart: Cell<u64>,
}

impl Pace {
    pub(crate) fn new(position: u64) -> Self {
        Self {
            tried: Cell::new(None),
            due: Cell::new(position.saturating_add(SOON)),
            breaths: Cell::new(SHORT),
            apart: Cell::new(SOON),
        }
    }

    /// For an end with nothing to do at `position`: waits, if that is likely to gain something; true if it has.
    pub(crate) fn hesitate(&self, position: u64) -> bool {
        if let Some(tried) = self.tried.take() {
            // In a stream, a message takes no longer than two breaths.
            if position.wrapping_sub(tried) >= u64::from(self.breaths.get() / 2) {
                self.breaths.set((2 * self.breaths.get()).min(LONG));
                if self.breaths.get() == LONG {
                    self.apart.set(SOON);
                }
            } else {
                self.breaths.set(SHORT);
                self.apart.set((2 * self.apart.get()).min(LATE));
                self.due.set(position.wrapping_add(self.apart.get()));
            }
        }
        if position < self.due.get() {
            return false;
        }
        self.tried.set(Some(position));
        (0..self.breaths.get()).for_each(|_| spin_loop());
        true
    }
}
