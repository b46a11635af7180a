//! The two ends of a queue of records, which move granules.

use super::{At, End, NotPushed};
use crate::queue::granule::word;
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::sys::prefetch;

/// How far ahead the consumer looks: far enough for many lines to be on their way at once.
const GLIMPSE: u64 = 32;
/// Records that the consumer asks for together.
const TOGETHER: u64 = 4;

/// Slots of a line.
const LINE_SLOTS: u64 = 8;
/// How far ahead a producer asks for the line that it will write.
const FREE_AHEAD: u64 = 2 * LINE_SLOTS;

impl End {
    /// Queues the block at `granule`, which is this process's. True if there is something on the consumer's bell.
    #[inline(always)]
    pub(crate) fn push_granule(&self, granule: u32) -> Result<bool, NotPushed> {
        self.make_sure()?;
        let ring = self.ring.get();
        let position = self.position.get();
        let Some(slot) = ring.slot(position) else { return Err(NotPushed::Full) };
        if position.is_multiple_of(LINE_SLOTS)
            && self.until.get() > position.saturating_add(FREE_AHEAD)
            && let Some(ahead) = ring.slot(position.wrapping_add(FREE_AHEAD))
        {
            // The consumer has left it, but its core has the line still.
            prefetch::for_writing(ahead);
        }
        point!("send: before the slot");
        // SYNC(publish)
        slot.store(word(position, granule), Ordering::Release);
        point!("send: slot");
        Ok(self.pushed(ring.header, position.wrapping_add(1)))
    }

    /// Queues as many of `count` as there is room for, with one store that publishes all of them: how many, and whether there
    /// is something on the consumer's bell. `granule` is told which of them.
    pub(crate) fn push_granules(
        &self,
        count: usize,
        granule: impl Fn(usize) -> u32,
    ) -> Result<(usize, bool), NotPushed> {
        let count = self.room(count)?;
        let ring = self.ring.get();
        let start = self.position.get();
        self.begin_batch();
        let store = |i: usize| {
            let position = start.wrapping_add(i as u64);
            let Some(slot) = ring.slot(position) else { return };
            point!("send batch: before a slot");
            // SYNC(publish) by the first; SYNC(kill) for the others: no gap in what a kill leaves.
            slot.store(word(position, granule(i)), Ordering::Release);
            point!("send batch: slot");
        };
        (1..count).for_each(store);
        // The first is the last: nothing of the batch is seen before it.
        store(0);
        Ok((count, self.pushed(ring.header, start.wrapping_add(count as u64))))
    }

    /// Notes which granule was taken, and says which one was before.
    #[inline(always)]
    pub(crate) fn note_granule(&self, granule: u32) -> u32 {
        self.taken.replace(granule)
    }
}

impl At {
    /// The granule that is queued here, if one is.
    #[inline(always)]
    pub(crate) fn next_granule(&self) -> Option<u32> {
        self.ring.granule(self.position)
    }

    /// Granules that are queued some way ahead, [`TOGETHER`] at a time with every so many positions.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the low half
    pub(crate) fn glimpse(&self) -> impl Iterator<Item = u32> + use<> {
        let (ring, last) = (self.ring, self.position.wrapping_add(GLIMPSE + TOGETHER - 1));
        // They are queued in order. What an old slot names is somebody else's by now, who would have to fetch it back.
        let is_due = self.position.is_multiple_of(TOGETHER) && ring.granule(last).is_some();
        let ahead = if is_due { 0..TOGETHER } else { 0..0 };
        ahead.filter_map(move |i| Some(ring.slot(last.wrapping_sub(i))?.load(Ordering::Relaxed) as u32))
    }
}
