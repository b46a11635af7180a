//! One producer, one consumer, a ring of slots that say by themselves whether they are new.
//!
//! Promises: no read-modify-write, fence or system call in a push or pop that finds room or a record; what moves between the
//! two cores is the slots' lines, and the head's once per ring. A side whose channel is gone has no slots, which looks
//! full, or empty.
//!
//! # Layout
//! Position `p` uses slot `p mod capacity`, in lap `p / capacity`.
//! ```text
//! slot: 63        32 31            0
//!       [ lap + 1   ][ granule      ]     0: never used (no block starts at granule 0)
//! ```
//! `head` counts what was received. There is no shared tail: a record is queued if its slot carries the lap of its
//! position. A new producer finds its position by walking from the head ([`window`]).
//!
//! # Ownership
//! Slots: written by the producer only, one per record, when `position - head < capacity`. `head`: by the consumer only.
//! A queued block is the sender's by its header, and the channel's by its place in the window; the consumer takes it by
//! writing its name into the header and then moving the head.
//!
//! # Orderings
//! - `SYNC(publish)`: slot store Release, slot load Acquire: the payload, and the header's meta word.
//! - `SYNC(take)`: state store, then head store Release; the producer's head load Acquire: it may reuse the slot, and whoever
//!   sees the head beyond a record sees the record's new owner.
//! - `SYNC(wake)`: publish (or take), then load the bell; the other side writes its name there, then looks at the slot (or
//!   head). The only store-load pair: only a compiler fence here, on the fast path; see `wait`.
//!
//! # If a process dies
//! | after | what is left | repaired by |
//! |---|---|---|
//! | push: before the slot store | the sender's, not in the window | the header scan: it was never sent |
//! | push: the slot store | in the window | nothing: it is delivered; the wake is made up for by the bounded sleep |
//! | pop: the state store | the receiver's, in the window | the window pass: queued again, the next consumer gets it |
//! | pop: the head store | the receiver's, outside | the header scan: it counts as received |

use crate::arena::Arena;
use crate::heap::block;
use crate::layout::{BlockHeader, Owner, SpscHeader};
use crate::sync::{AtomicU64, Ordering, compiler_fence};
use crate::sys::crash::point;
use crate::wait::flags;
use std::cell::Cell;

/// A ring in a segment.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) header: &'static SpscHeader,
    pub(crate) slots: &'static [AtomicU64],
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

/// While a record is taken, the one this many later is asked for.
const AHEAD: u64 = 4;

struct Nowhere(SpscHeader);
// SAFETY: atomics throughout.
#[allow(unsafe_code)]
unsafe impl Sync for Nowhere {}
// SAFETY: all zeroes is a valid header (`Shared`).
#[allow(unsafe_code)]
static NOWHERE: Nowhere = Nowhere(unsafe { std::mem::zeroed() });

impl Ring {
    /// No channel: full and empty at once.
    pub(crate) const NONE: Self = Self { header: &NOWHERE.0, slots: &[] };

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the crate is for 64-bit targets
    fn slot(&self, position: u64) -> Option<&'static AtomicU64> {
        let len = self.slots.len() as u64;
        // A power of two; with no slots the mask is all ones and the index is out of range.
        self.slots.get((position & len.wrapping_sub(1)) as usize)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // laps are compared modulo 2^32
    fn lap(&self, position: u64) -> u32 {
        (position >> self.slots.len().trailing_zeros().min(63)) as u32
    }

    #[inline(always)]
    fn word(&self, position: u64, granule: u32) -> u64 {
        u64::from(self.lap(position).wrapping_add(1)) << 32 | u64::from(granule)
    }

    /// The granule queued at `position`, if one is.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the two halves of a word
    fn queued(&self, position: u64) -> Option<u32> {
        // SYNC(publish)
        let word = self.slot(position)?.load(Ordering::Acquire);
        ((word >> 32) as u32 == self.lap(position).wrapping_add(1) && word as u32 != 0).then_some(word as u32)
    }

    pub(crate) fn head(&self) -> u64 {
        self.header.head.load(Ordering::Acquire)
    }
}

/// The records queued now: position and granule, from the head on. For those who are not the consumer: it may take from the
/// front meanwhile, and a producer may go on behind. Nothing that is queued from the start to the end of the walk is missed.
pub(crate) fn window(ring: Ring) -> impl Iterator<Item = (u64, u32)> {
    window_from(ring, 0)
}

/// As [`window`], from `position` on if the head is not there yet.
pub(crate) fn window_from(ring: Ring, position: u64) -> impl Iterator<Item = (u64, u32)> {
    let head = ring.head();
    let mut next = head.max(position);
    let end = head.saturating_add(ring.slots.len() as u64);
    std::iter::from_fn(move || {
        while next < end {
            if let Some(granule) = ring.queued(next) {
                next += 1;
                return Some((next - 1, granule));
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

/// One end of the queue: where it stands, and (the producer's) how far it knows the consumer to be.
#[derive(Debug)]
pub(crate) struct End {
    ring: Cell<Ring>,
    position: Cell<u64>,
    head_seen: Cell<u64>,
}

/// Why nothing was pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotPushed {
    Full,
    /// The consumer has left.
    Gone,
}

impl End {
    /// The end that pushes: behind the last record queued.
    pub(crate) fn producer(ring: Ring) -> Self {
        let position = window(ring).last().map_or_else(|| ring.head(), |(p, _)| p + 1);
        Self { ring: Cell::new(ring), position: Cell::new(position), head_seen: Cell::new(ring.head()) }
    }

    /// The end that takes: at the head.
    pub(crate) fn consumer(ring: Ring) -> Self {
        Self { ring: Cell::new(ring), position: Cell::new(ring.head()), head_seen: Cell::new(0) }
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring.get()
    }

    /// Forgets the ring: nothing can be pushed or taken any more.
    pub(crate) fn abandon(&self) {
        self.ring.set(Ring::NONE);
    }

    /// Queues the block at `granule`, which this process owns. True if there is something on the consumer's bell: the caller
    /// answers it ([`wait::answer`](crate::wait::answer)).
    #[inline(always)]
    pub(crate) fn push(&self, granule: u32) -> Result<bool, NotPushed> {
        let ring = self.ring.get();
        let position = self.position.get();
        if position.wrapping_sub(self.head_seen.get()) >= ring.slots.len() as u64 {
            self.look(ring)?;
        }
        let Some(slot) = ring.slot(position) else { return Err(NotPushed::Full) };
        if ring.header.to_producer.load(Ordering::Relaxed) & flags::GONE != 0 {
            return Err(NotPushed::Gone);
        }
        point!("send: before the slot");
        // SYNC(publish)
        slot.store(ring.word(position, granule), Ordering::Release);
        point!("send: slot");
        self.position.set(position.wrapping_add(1));
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        Ok(ring.header.to_producer.load(Ordering::Relaxed) != 0)
    }

    /// Looks how far the consumer is.
    #[cold]
    #[inline(never)]
    fn look(&self, ring: Ring) -> Result<(), NotPushed> {
        // SYNC(take)
        let head = ring.head();
        let ahead = self.position.get().wrapping_sub(head);
        if ahead < ring.slots.len() as u64 {
            self.head_seen.set(head);
            Ok(())
        } else if self.is_gone() {
            Err(NotPushed::Gone)
        } else {
            Err(NotPushed::Full)
        }
    }

    /// Whether the consumer of this producer has left.
    pub(crate) fn is_gone(&self) -> bool {
        self.ring.get().header.to_producer.load(Ordering::Relaxed) & flags::GONE != 0
    }

    /// Whether a slot is free for this producer.
    #[inline(always)]
    pub(crate) fn has_room(&self) -> bool {
        let ring = self.ring.get();
        self.position.get().wrapping_sub(ring.head()) < ring.slots.len() as u64
    }

    /// Whether there is room enough to wake a producer that sleeps because the ring was full: a quarter is free, or nothing is
    /// left for this consumer. One that is woken for a single slot falls asleep at once again.
    pub(crate) fn has_freed_much(&self) -> bool {
        let slots = self.ring.get().slots.len() as u64;
        self.position.get().is_multiple_of((slots / 4).max(1)) || self.peek().is_none()
    }

    /// Records pushed or taken, counted from the channel's first.
    pub(crate) fn position(&self) -> u64 {
        self.position.get()
    }

    /// The granule at the head, if a record is queued.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Option<u32> {
        self.ring.get().queued(self.position.get())
    }

    /// Takes what [`peek`](Self::peek) showed for the process `me`: its header, or `None` to skip what is no block. True if there
    /// is something on the producer's bell: the caller answers it.
    #[inline(always)]
    pub(crate) fn take(&self, arena: &Arena, me: Owner, block: Option<&BlockHeader>) -> bool {
        let ring = self.ring.get();
        let position = self.position.get().wrapping_add(1);
        if let Some(block) = block {
            // SYNC(take)
            block.state.store(block::owned(me).0, Ordering::Relaxed);
        }
        point!("recv: owned");
        ring.header.head.store(position, Ordering::Release);
        point!("recv: head");
        self.position.set(position);
        // The slots of a line arrive together; what the last of them names is far away still.
        if let Some(later) = ring.slot(position.wrapping_add(AHEAD)) {
            #[allow(clippy::cast_possible_truncation)] // the low half is the granule
            arena.prefetch(later.load(Ordering::Relaxed) as u32);
        }
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        ring.header.to_consumer.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It used to end where the slot at hand had gone round, and with it the reaper's look at a dead sender's records behind it:
    /// they were freed while queued.
    #[test]
    fn a_window_that_moves_on_is_still_seen_to_its_end() {
        // SAFETY: all zeroes is a valid header (`Shared`).
        #[allow(unsafe_code)]
        let header: &'static SpscHeader = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
        let slots: &'static [AtomicU64] = Vec::leak((0..4).map(|_| AtomicU64::new(0)).collect());
        let ring = Ring { header, slots };
        let producer = End::producer(ring);
        (10..14).for_each(|granule| assert!(producer.push(granule).is_ok()));
        let mut walk = window(ring);
        assert_eq!(walk.next(), Some((0, 10)));
        // The consumer takes two, and the producer uses their slots.
        header.head.store(2, Ordering::Release);
        (14..16).for_each(|granule| assert!(producer.push(granule).is_ok()));
        // Not those that came since, or the walk might have no end.
        assert_eq!(walk.collect::<Vec<_>>(), [(2, 12), (3, 13)]);
        assert_eq!(window(ring).collect::<Vec<_>>(), [(2, 12), (3, 13), (4, 14), (5, 15)]);
        assert_eq!(window_from(ring, 4).collect::<Vec<_>>(), [(4, 14), (5, 15)]);
        assert_eq!(window_from(ring, 6).count(), 0);
    }
}
