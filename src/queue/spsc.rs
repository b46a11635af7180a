//! One producer, one consumer, a ring of slots that say by themselves whether they are new.
//!
//! Promises: no read-modify-write, fence or system call in a push or pop that finds room or something queued; what moves between
//! the two cores is the slots' lines, and the head's once per ring. A side whose channel is gone has no slots, which looks
//! full, or empty.
//!
//! # Layout
//! Position `p`, counted from 0, uses slot `p mod capacity`. A slot begins with a word:
//! ```text
//! 63                  32 31                        0
//! [ p + 1, low 32 bits  ][ granule, or value::HERE ]     0: never used (no block starts at granule 0)
//! ```
//! A slot of granules is that word; in one of values the value follows ([`value`](super::value)). `head` counts what was received.
//! There is no shared tail: a slot is queued if its word carries its position; what a slot held before is a whole lap older, and
//! a lap is far less than 2^32. A new producer finds its position by walking from the head ([`window`]).
//!
//! # Ownership
//! Slots: written by the producer only, when `position - head < capacity`. `head`: by the consumer only. A queued block is the
//! sender's by its header, and the channel's by its place in the window; the consumer takes it by writing its name into the
//! header and then moving the head.
//!
//! # Batches
//! One store publishes, or receives, any number. A producer fills the slots behind its position first and the one at its
//! position last: the consumer looks at slots in order, so until then it sees none. A consumer takes what it wants of the
//! window and then moves the head once.
//!
//! # Orderings
//! - `SYNC(publish)`: slot word store Release, slot word load Acquire: the payload and the header's meta word, or the value; and all
//!   of a batch by its first.
//! - `SYNC(take)`: state store, or value loads, then head store Release; the producer's head load Acquire: it may reuse the slot,
//!   and whoever sees the head beyond a record sees the record's new owner.
//! - `SYNC(wake)`: publish (or take), then load the bell; the other side writes its name there, then looks at the slot (or
//!   head). The only store-load pair: only a compiler fence here, on the fast path; see `wait`.
//!
//! # If a process dies
//! | after | what is left | repaired by |
//! |---|---|---|
//! | push: before the slot word | the sender's, not in the window | the header scan: it was never sent |
//! | push: the slot word | in the window | nothing: it is delivered; the wake is made up for by the bounded sleep |
//! | batch: some slots behind the first | slots that look queued, beyond the window's end; records as before the slot word | the next producer clears them when it attaches ([`clear_beyond`]); the header scan |
//! | pop: the state store, or the value's loads | the receiver's, in the window | the window pass: queued again, the next consumer gets it |
//! | pop: the head store | the receiver's, outside | the header scan: it counts as received |
//!
//! A batch's slots are stored in order, each Release, so that the compiler keeps the order too: what a kill leaves beyond the
//! window is one run that begins behind the position. Clearing goes from its end, so that a kill leaves a shorter run.

use crate::layout::SpscHeader;
use crate::sync::{AtomicU64, Ordering, compiler_fence};
use crate::sys::crash::point;
use crate::wait::flags;
use std::cell::Cell;

/// How far ahead the consumer looks: far enough for many lines to be on their way at once.
const GLIMPSE: u64 = 16;

/// What a slot holds.
#[derive(Clone, Copy)]
pub(crate) struct Queued {
    /// A granule, or [`HERE`](super::value::HERE).
    pub(crate) what: u32,
    /// The words of the value.
    pub(crate) body: &'static [AtomicU64],
}

/// The word of a slot.
#[inline(always)]
const fn word(position: u64, what: u32) -> u64 {
    position.wrapping_add(1) << 32 | what as u64
}

/// A ring in a segment.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) header: &'static SpscHeader,
    pub(crate) words: &'static [AtomicU64],
    /// Words of a slot. Where the compiler knows it, it is a parameter, which must be the same.
    pub(crate) stride: usize,
    /// Whether the slots name granules; else they hold values.
    pub(crate) names_granules: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("capacity", &self.capacity()).field("stride", &self.stride).finish_non_exhaustive()
    }
}

struct Nowhere(SpscHeader);
// SAFETY: atomics throughout.
#[allow(unsafe_code)]
unsafe impl Sync for Nowhere {}
// SAFETY: all zeroes is a valid header (`Shared`).
#[allow(unsafe_code)]
static NOWHERE: Nowhere = Nowhere(unsafe { std::mem::zeroed() });

impl Ring {
    /// No channel: full and empty at once.
    pub(crate) const NONE: Self = Self { header: &NOWHERE.0, words: &[], stride: 1, names_granules: false };

    pub(crate) fn capacity(&self) -> usize {
        self.words.len() / self.stride
    }

    #[inline(always)]
    fn slots(&self, stride: usize) -> u64 {
        (self.words.len() / stride) as u64
    }

    /// The slot at `position`: its word, and what follows.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the crate is for 64-bit targets
    fn slot(&self, position: u64, stride: usize) -> Option<(&'static AtomicU64, &'static [AtomicU64])> {
        // A power of two; with no slots the mask is all ones, and nothing is in range.
        let first = ((position & self.slots(stride).wrapping_sub(1)) as usize).wrapping_mul(stride);
        if stride == 1 {
            return Some((self.words.get(first)?, &[]));
        }
        self.words.get(first..)?.get(..stride)?.split_first()
    }

    /// What is queued at `position`, if something is.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the two halves of a word
    pub(crate) fn queued(&self, position: u64, stride: usize) -> Option<Queued> {
        let (word, body) = self.slot(position, stride)?;
        // SYNC(publish)
        let word = word.load(Ordering::Acquire);
        let is_new = (word >> 32) as u32 == (position as u32).wrapping_add(1) && word as u32 != 0;
        is_new.then_some(Queued { what: word as u32, body })
    }

    /// What a slot some way ahead names: maybe an old granule, and only good for a prefetch.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the low half
    pub(crate) fn glimpse(&self, position: u64) -> Option<u32> {
        Some(self.slot(position.wrapping_add(GLIMPSE), 1)?.0.load(Ordering::Relaxed) as u32)
    }

    pub(crate) fn head(&self) -> u64 {
        self.header.head.load(Ordering::Acquire)
    }
}

/// What is queued now, from the head on: positions, and what the slots name. For those who are not the consumer: it may take from
/// the front meanwhile, and a producer may go on behind. Nothing that is queued from the start to the end of the walk is missed.
pub(crate) fn window(ring: Ring) -> impl Iterator<Item = (u64, u32)> {
    window_from(ring, 0)
}

/// As [`window`], from `position` on if the head is not there yet.
fn window_from(ring: Ring, position: u64) -> impl Iterator<Item = (u64, u32)> {
    let head = ring.head();
    let mut next = head.max(position);
    let end = head.saturating_add(ring.capacity() as u64);
    std::iter::from_fn(move || {
        while next < end {
            if let Some(Queued { what, .. }) = ring.queued(next, ring.stride) {
                next += 1;
                return Some((next - 1, what));
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

/// The records queued now, as [`window`]; none in a ring of values.
pub(crate) fn records(ring: Ring) -> impl Iterator<Item = (u64, u32)> {
    records_from(ring, 0)
}

/// As [`records`], from `position` on if the head is not there yet.
pub(crate) fn records_from(ring: Ring, position: u64) -> impl Iterator<Item = (u64, u32)> {
    window_from(if ring.names_granules { ring } else { Ring::NONE }, position)
}

/// Behind the last that is queued.
fn end_of_window(ring: Ring) -> u64 {
    window(ring).last().map_or_else(|| ring.head(), |(p, _)| p + 1)
}

/// Clears what a producer that was killed inside a batch left beyond the window. There is no producer meanwhile.
pub(crate) fn clear_beyond(ring: Ring) {
    let end = end_of_window(ring);
    let left = (1..ring.capacity() as u64).take_while(|i| ring.queued(end.wrapping_add(*i), ring.stride).is_some());
    for position in (1..=left.count() as u64).rev().map(|i| end.wrapping_add(i)) {
        if let Some((word, _)) = ring.slot(position, ring.stride) {
            // SYNC(kill): the last is cleared before the last but one.
            word.store(0, Ordering::Release);
            point!("attach: cleared");
        }
    }
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
    /// The end that pushes: behind what is queued.
    pub(crate) fn producer(ring: Ring) -> Self {
        Self { ring: Cell::new(ring), position: Cell::new(end_of_window(ring)), head_seen: Cell::new(ring.head()) }
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

    /// Queues what `put` names, and writes behind the slot's word if it is a value. A granule's block is this process's. True if
    /// there is something on the consumer's bell: the caller answers it ([`wait::answer`](crate::wait::answer)).
    #[inline(always)]
    pub(crate) fn push(&self, stride: usize, put: impl FnOnce(&[AtomicU64]) -> u32) -> Result<bool, NotPushed> {
        let ring = self.ring.get();
        let position = self.position.get();
        if position.wrapping_sub(self.head_seen.get()) >= ring.slots(stride) {
            self.look(ring)?;
        }
        let Some((slot, body)) = ring.slot(position, stride) else { return Err(NotPushed::Full) };
        if ring.header.to_producer.load(Ordering::Relaxed) & flags::GONE != 0 {
            return Err(NotPushed::Gone);
        }
        let what = put(body);
        point!("send: before the slot");
        // SYNC(publish)
        slot.store(word(position, what), Ordering::Release);
        point!("send: slot");
        self.position.set(position.wrapping_add(1));
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        Ok(ring.header.to_producer.load(Ordering::Relaxed) != 0)
    }

    /// Queues as many of `count` as there is room for, with one store that publishes all of them: how many, and whether there
    /// is something on the consumer's bell. `put` is told which of them.
    pub(crate) fn push_batch(
        &self,
        stride: usize,
        count: usize,
        put: impl Fn(usize, &[AtomicU64]) -> u32,
    ) -> Result<(usize, bool), NotPushed> {
        let ring = self.ring.get();
        let position = self.position.get();
        let room = || ring.slots(stride).saturating_sub(position.wrapping_sub(self.head_seen.get()));
        if room() < count as u64 {
            // Room for some will do.
            let _ = self.look(ring);
        }
        let count = count.min(usize::try_from(room()).unwrap_or(usize::MAX));
        if self.is_gone() {
            return Err(NotPushed::Gone);
        } else if count == 0 {
            return Err(NotPushed::Full);
        }
        let store = |i: usize| {
            let position = position.wrapping_add(i as u64);
            let Some((slot, body)) = ring.slot(position, stride) else { return };
            let what = put(i, body);
            point!("send batch: before a slot");
            // SYNC(publish) by the first; SYNC(kill) for the others: no gap in what a kill leaves.
            slot.store(word(position, what), Ordering::Release);
            point!("send batch: slot");
        };
        (1..count).for_each(store);
        // The first is the last: nothing of the batch is seen before it.
        store(0);
        self.position.set(position.wrapping_add(count as u64));
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        Ok((count, ring.header.to_producer.load(Ordering::Relaxed) != 0))
    }

    /// Looks how far the consumer is.
    #[cold]
    #[inline(never)]
    fn look(&self, ring: Ring) -> Result<(), NotPushed> {
        // SYNC(take)
        let head = ring.head();
        self.head_seen.set(head);
        if self.position.get().wrapping_sub(head) < ring.capacity() as u64 {
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
        self.position.get().wrapping_sub(ring.head()) < ring.capacity() as u64
    }

    /// Messages pushed or taken, counted from the channel's first.
    pub(crate) fn position(&self) -> u64 {
        self.position.get()
    }

    /// What is queued at this end's position, if something is.
    #[inline(always)]
    fn peek(&self, stride: usize) -> Option<Queued> {
        self.ring.get().queued(self.position.get(), stride)
    }

    /// This end's ring and position, for [`Ring::queued`] and [`advance`](Self::advance).
    #[inline(always)]
    pub(crate) fn at(&self) -> (Ring, u64) {
        (self.ring.get(), self.position.get())
    }

    /// What is queued from this end's position on, with its positions.
    #[inline(always)]
    pub(crate) fn queued(&self, stride: usize) -> impl Iterator<Item = (u64, Queued)> + use<> {
        let (ring, position) = (self.ring.get(), self.position.get());
        let lap = position..position.saturating_add(ring.slots(stride));
        lap.map_while(move |position| Some((position, ring.queued(position, stride)?)))
    }

    /// Whether anything is queued at this end's position.
    pub(crate) fn has_queued(&self) -> bool {
        self.peek(self.ring().stride).is_some()
    }

    /// Moves the head from where this end is [`at`](Self::at): the next `count` queued are received. Their blocks bear this process's name by now, their values were
    /// copied. True if there is something on the producer's bell: the caller answers it.
    #[inline(always)]
    pub(crate) fn advance(&self, (ring, position): (Ring, u64), count: usize) -> bool {
        let position = position.wrapping_add(count as u64);
        // SYNC(take)
        ring.header.head.store(position, Ordering::Release);
        point!("recv: head");
        self.position.set(position);
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        ring.header.to_consumer.load(Ordering::Relaxed) != 0
    }

    /// Whether the last `count` that were received make room enough to wake a producer that sleeps because the ring was full: a
    /// quarter is free, or nothing is left. One that is woken for a single slot falls asleep at once again.
    pub(crate) fn has_freed_much(&self, count: usize) -> bool {
        let quarter = (self.ring.get().capacity() as u64 / 4).max(1);
        // The head has come to the end of a quarter of the ring, or past it.
        self.position.get() % quarter < count as u64 || !self.has_queued()
    }
}

#[cfg(test)]
mod tests {
    use super::super::value;
    use super::*;
    use std::collections::VecDeque;

    /// A ring over private memory, at `head` ever since.
    fn ring(capacity: usize, stride: usize, head: u64) -> Ring {
        // SAFETY: all zeroes is a valid header (`Shared`).
        #[allow(unsafe_code)]
        let header: &'static SpscHeader = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
        header.head.store(head, Ordering::Relaxed);
        let words = Vec::leak((0..capacity * stride).map(|_| AtomicU64::new(0)).collect());
        Ring { header, words, stride, names_granules: stride == 1 }
    }

    fn put(number: u64, body: &[AtomicU64]) -> u32 {
        if body.is_empty() {
            return u32::try_from(number % 1000).unwrap() + 1;
        }
        value::store(&number.to_le_bytes(), body);
        value::HERE
    }

    fn number(queued: Queued, expected: u64) -> u64 {
        if queued.body.is_empty() {
            assert_eq!(u64::from(queued.what), expected % 1000 + 1);
            return expected;
        }
        assert_eq!(queued.what, value::HERE);
        let mut bytes = [0; 8];
        value::load(&mut bytes, queued.body);
        u64::from_le_bytes(bytes)
    }

    /// Random operations, new ends among them, on the ring and on a queue that is obviously right.
    #[allow(clippy::cast_possible_truncation)] // small numbers
    fn like_a_deque(capacity: usize, stride: usize, head: u64, seed: u64) {
        let ring = ring(capacity, stride, head);
        let (mut tx, mut rx) = (End::producer(ring), End::consumer(ring));
        let mut twin = VecDeque::new();
        let mut next = 0;
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 33) % limit
        };
        for _ in 0..4000 {
            match below(6) {
                0 => match tx.push(stride, |body| put(next, body)) {
                    Ok(_) => {
                        twin.push_back(next);
                        next += 1;
                    }
                    Err(why) => assert_eq!((why, twin.len()), (NotPushed::Full, capacity)),
                },
                1 => {
                    let want = 1 + usize::try_from(below(2 * capacity as u64)).unwrap();
                    let free = capacity - twin.len();
                    match tx.push_batch(stride, want, |i, body| put(next + i as u64, body)) {
                        Ok((count, _)) => {
                            // The consumer was seen far enough for as many as were asked for, or as there is room for.
                            assert_eq!(count, want.min(free));
                            twin.extend(next..next + count as u64);
                            next += count as u64;
                        }
                        Err(why) => assert_eq!((why, free), (NotPushed::Full, 0)),
                    }
                }
                2 => match rx.peek(stride) {
                    Some(queued) => {
                        let expected = twin.pop_front().unwrap();
                        assert_eq!(number(queued, expected), expected);
                        rx.advance(rx.at(), 1);
                    }
                    None => assert!(twin.is_empty()),
                },
                3 => {
                    let all: Vec<_> = rx.queued(stride).collect();
                    assert_eq!(all.len(), twin.len());
                    let some = usize::try_from(below(all.len() as u64 + 1)).unwrap();
                    for ((_, queued), expected) in all.iter().zip(twin.drain(..some)) {
                        assert_eq!(number(*queued, expected), expected);
                    }
                    rx.advance(rx.at(), some);
                }
                4 => {
                    clear_beyond(ring);
                    tx = End::producer(ring);
                }
                _ => rx = End::consumer(ring),
            }
            assert_eq!(window(ring).count(), twin.len());
            assert_eq!(rx.has_queued(), !twin.is_empty());
        }
    }

    #[test]
    fn a_ring_is_a_queue_wherever_it_stands() {
        for (seed, capacity) in (1..).zip([2, 4, 8, 64]) {
            for stride in [1, 2, 8, 24] {
                let lap = capacity as u64;
                for head in [0, (1 << 32) - 3, (1 << 32) * lap - 3, (1 << 50) - 1] {
                    like_a_deque(capacity, stride, head, seed + head);
                }
            }
        }
    }

    /// A slot that says what it said 2^32 positions ago would look new: every slot in between was written.
    #[test]
    fn positions_are_told_apart_within_a_lap() {
        for head in [(1_u64 << 32) - 4, (1 << 33) - 1, 5] {
            let ring = ring(4, 1, head);
            let tx = End::producer(ring);
            assert!(!(head - 4..head + 8).any(|position| ring.queued(position, 1).is_some()));
            assert_eq!(tx.push(1, |_| 7), Ok(false));
            let seen: Vec<_> = (head - 4..head + 8).filter(|position| ring.queued(*position, 1).is_some()).collect();
            assert_eq!(seen, [head]);
        }
    }

    /// A producer that was killed inside a batch of six, having stored all but the first.
    #[test]
    fn what_a_torn_batch_leaves_is_cleared() {
        for stride in [1, 2] {
            for queued in 0..=2 {
                let ring = ring(8, stride, (1 << 32) - 5);
                let dead = End::producer(ring);
                (0..queued).for_each(|i| assert!(dead.push(stride, |body| put(i, body)).is_ok()));
                let end = dead.position();
                for position in end + 1..end + 6 {
                    let (slot, _) = ring.slot(position, stride).unwrap();
                    slot.store(word(position, 1), Ordering::Release);
                }
                assert_eq!(window(ring).count() as u64, queued, "nothing of it is seen");
                clear_beyond(ring);
                let tx = End::producer(ring);
                assert_eq!(tx.position(), end);
                tx.push(stride, |body| put(queued, body)).unwrap();
                let rx = End::consumer(ring);
                let all: Vec<_> = (0..).zip(rx.queued(stride)).map(|(i, (_, queued))| number(queued, i)).collect();
                assert!(all.iter().copied().eq(0..=queued), "{all:?}");
            }
        }
    }

    /// It used to end where the slot at hand had gone round, and with it the reaper's look at a dead sender's records behind it:
    /// they were freed while queued.
    #[test]
    fn a_window_that_moves_on_is_still_seen_to_its_end() {
        let ring = ring(4, 1, 0);
        let producer = End::producer(ring);
        (10..14).for_each(|granule| assert!(producer.push(1, |_| granule).is_ok()));
        let mut walk = window(ring);
        assert_eq!(walk.next(), Some((0, 10)));
        // The consumer takes two, and the producer uses their slots.
        ring.header.head.store(2, Ordering::Release);
        (14..16).for_each(|granule| assert!(producer.push(1, |_| granule).is_ok()));
        // Not those that came since, or the walk might have no end.
        assert_eq!(walk.collect::<Vec<_>>(), [(2, 12), (3, 13)]);
        assert_eq!(window(ring).collect::<Vec<_>>(), [(2, 12), (3, 13), (4, 14), (5, 15)]);
        assert_eq!(window_from(ring, 4).collect::<Vec<_>>(), [(4, 14), (5, 15)]);
        assert_eq!(window_from(ring, 6).count(), 0);
    }
}
