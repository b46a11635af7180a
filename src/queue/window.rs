//! The window of a ring, which is what is queued, as it is seen by others than the consumer: walks, counts, and the end of it.

use super::ring::Ring;
use super::{granule, value};
use crate::sync::Ordering;

impl Ring {
    /// How many are stamped from `position` on, as far as one stamp tells.
    pub(super) fn stamped(&self, position: u64) -> u64 {
        match self.shape {
            Some(shape) => value::stamped(self.words, shape, position),
            None => self.granule(position).map_or(0, |_| 1),
        }
    }

    /// How many are queued: exact for the consumer, an estimate for observers.
    pub(crate) fn len(&self) -> usize {
        self.len_from(self.head())
    }

    /// As [`len`](Self::len), from where the head was.
    pub(crate) fn len_from(&self, head: u64) -> usize {
        self.count_between(head, self.find_end(head))
    }

    /// How many lie between two positions, as far as a ring can say.
    pub(super) fn count_between(&self, head: u64, end: u64) -> usize {
        usize::try_from(end.saturating_sub(head).min(self.capacity)).unwrap_or(0)
    }

    /// Where the window ended at some moment of this call, if it begins at `head` all the while. Few looks, however many are queued:
    /// all positions of the window are stamped, and none behind it but those of a batch that is not published. So without such
    /// a batch the end is found by halving; with one, it is where the batch begins.
    fn find_end(&self, head: u64) -> u64 {
        self.find_end_from(head, self.batch_begun())
    }

    /// Where the last batch begins that a producer has begun.
    pub(super) fn batch_begun(&self) -> u64 {
        // SYNC(batch)
        self.header.batch.load(Ordering::Acquire)
    }

    /// As [`find_end`](Self::find_end), for one who has read before where the last batch begins.
    pub(super) fn find_end_from(&self, head: u64, begun: u64) -> u64 {
        if begun.checked_sub(head).is_some_and(|count| count < self.capacity) && self.stamped(begun) == 0 {
            return begun;
        }
        let (mut low, mut high) = (head, head.saturating_add(self.capacity));
        while low < high {
            let middle = low.midpoint(high);
            if self.stamped(middle) > 0 {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        // If the stamps were those of a batch that began meanwhile, all before it was queued when it began.
        let begun_now = self.batch_begun();
        if begun_now == begun { low } else { begun_now }
    }

    /// Behind the last that is queued, believing nothing but the stamps; exact if no producer goes on meanwhile.
    pub(super) fn end_of_window(&self) -> u64 {
        let last = window_from(*self, 0, |position| Some((self.stamped(position), ()))).last();
        last.map_or_else(|| self.head(), |(position, count, ())| position + count)
    }
}

/// What is queued now, from the head on, or from `position` on if the head is not there yet: positions, for how many one look is
/// enough, and what it gave. For those who are not the consumer: it may take from the front meanwhile, and a producer may go on
/// behind. Nothing that is queued from the start to the end of the walk is missed.
fn window_from<T>(
    ring: Ring,
    position: u64,
    look: impl Fn(u64) -> Option<(u64, T)>,
) -> impl Iterator<Item = (u64, u64, T)> {
    let head = ring.head();
    let mut next = head.max(position);
    let end = head.saturating_add(ring.capacity);
    std::iter::from_fn(move || {
        while next < end {
            if let Some((count @ 1.., what)) = look(next) {
                let count = count.min(end - next);
                next += count;
                return Some((next - count, count, what));
            }
            // The end, unless the slot went round: taken, and used for the next lap.
            let head = ring.head();
            if head <= next {
                break;
            }
            next = head;
        }
        None
    })
}

/// The records queued now, from the head on: positions and granules; none in a ring of values. As with all walks, nothing that is
/// queued from its start to its end is missed, whatever the two ends do.
pub(crate) fn records(ring: Ring) -> impl Iterator<Item = (u64, u32)> {
    records_from(ring, 0)
}

/// As [`records`], from `position` on if the head is not there yet.
pub(crate) fn records_from(ring: Ring, position: u64) -> impl Iterator<Item = (u64, u32)> {
    let ring = if ring.shape.is_none() { ring } else { Ring::NONE };
    let look = move |position| Some((1, ring.granule(position)?));
    window_from(ring, position, look).map(|(position, _, granule)| (position, granule))
}

/// Clears what a producer that was killed inside a batch left beyond the window. There is no other producer than the caller, which has not
/// sent yet.
pub(crate) fn clear_beyond(ring: Ring) {
    let end = ring.end_of_window();
    match ring.shape {
        Some(shape) => value::clear_beyond(ring.words, shape, end),
        None => granule::clear_beyond(ring, end),
    }
}
