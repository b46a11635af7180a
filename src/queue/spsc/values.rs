//! The two ends of a queue of values, which write and read them where they lie.

use super::{At, End, NotPushed};
use crate::format::Shape;
use crate::queue::value;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::prefetch;

/// How many rows ahead a producer that enters a row asks for one to write, if there is room. Measured: `docs::design`.
const FREE_AHEAD: usize = 8;

/// How many rows ahead a consumer that enters a full row asks for one to read. Measured, too.
const FULL_AHEAD: usize = 4;

impl End {
    /// Queues the value that `put` writes. True if there is something on the consumer's bell.
    #[inline(always)]
    pub(crate) fn push_value(&self, shape: Shape, put: impl FnOnce(&[AtomicU64])) -> Result<bool, NotPushed> {
        self.make_sure()?;
        let ring = self.ring.get();
        if self.rows.rest.get().len() < shape.words() {
            self.rows.turn(ring.words, shape);
            if self.until.get() > self.position.get().saturating_add((FREE_AHEAD * shape.values_per_row()) as u64) {
                // The consumer has left it, but its core has the line still.
                if let Some(stamp) = self.rows.beyond(ring.words, shape, FREE_AHEAD) {
                    prefetch::for_writing(stamp);
                }
            }
        }
        let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words()) else {
            return Err(NotPushed::Full);
        };
        put(value);
        point!("send: before the slot");
        let position = self.position.get().wrapping_add(1);
        // SYNC(publish)
        self.rows.stamp.get().store(position, Ordering::Release);
        point!("send: slot");
        self.rows.rest.set(rest);
        Ok(self.pushed(ring.header, position))
    }

    /// Queues as many of `count` as there is room for, with one store that publishes all of them: how many, and whether there
    /// is something on the consumer's bell. `put` is told which of them.
    pub(crate) fn push_values(
        &self,
        shape: Shape,
        count: usize,
        put: impl Fn(usize, &[AtomicU64]),
    ) -> Result<(usize, bool), NotPushed> {
        let count = self.room(count)?;
        let ring = self.ring.get();
        let start = self.position.get();
        self.begin_batch();
        // Fills the row at hand with values from the `i`th on, and says up to which.
        let fill = |i: usize| {
            let mut filled = i;
            while filled < count
                && let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words())
            {
                put(filled, value);
                point!("send batch: before a slot");
                self.rows.rest.set(rest);
                filled += 1;
            }
            filled
        };
        // SYNC(publish) by the first row's; SYNC(kill) for the others: no gap in what a kill leaves.
        let publish = |stamp: &AtomicU64, filled: usize| {
            stamp.store(start.wrapping_add(filled as u64), Ordering::Release);
            point!("send batch: slot");
        };
        if self.rows.rest.get().len() < shape.words() {
            self.rows.turn(ring.words, shape);
        }
        let first = self.rows.stamp.get();
        let in_first = fill(0);
        let mut filled = in_first;
        while filled < count {
            self.rows.turn(ring.words, shape);
            let end = fill(filled);
            if end == filled {
                // No rows: the ring is not what this end takes it for.
                return Err(NotPushed::Full);
            }
            filled = end;
            publish(self.rows.stamp.get(), filled);
        }
        // The first is the last: nothing of the batch is seen before it.
        publish(first, in_first);
        Ok((count, self.pushed(ring.header, start.wrapping_add(count as u64))))
    }

    /// The words of the value that is queued for this consumer, if one is, and goes on behind it. It must be received.
    #[inline(always)]
    pub(crate) fn next_value(&self, at: &mut At, shape: Shape) -> Option<&'static [AtomicU64]> {
        if self.until.get() <= at.position {
            // SYNC(publish)
            let look = || self.until.set(self.rows.stamp.get().load(Ordering::Acquire));
            if self.rows.rest.get().len() < shape.words() {
                self.rows.turn(at.ring.words, shape);
                look();
                if self.until.get() >= at.position.saturating_add(shape.values_per_row() as u64)
                    && let Some(stamp) = self.rows.beyond(at.ring.words, shape, FULL_AHEAD)
                {
                    // The row is full, so the producer is some way ahead. At its heels, this would take away the line it writes.
                    prefetch::for_reading(stamp);
                }
            } else {
                look();
            }
            if self.until.get() <= at.position {
                return None;
            }
        }
        let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words()) else {
            // The stamp said more than its row has: no producer's. The next row is asked itself.
            self.until.set(0);
            return None;
        };
        self.rows.rest.set(rest);
        at.step();
        Some(value)
    }
}

impl At {
    /// The words of the value that is queued here, if one is.
    pub(crate) fn look_at_value(&self, shape: Shape) -> Option<&'static [AtomicU64]> {
        value::at(self.ring.words, shape, self.position)
    }
}
