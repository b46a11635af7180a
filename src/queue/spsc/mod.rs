//! One producer, one consumer, a ring that says by itself what is new.
//!
//! Promises: no read-modify-write, fence or system call in a push or pop that finds room or something queued; what moves between
//! the two cores is the ring's lines, and the head's once per ring. A side whose channel is gone has no slots, which looks
//! full, or empty.
//!
//! # Layout
//! Positions are counted from 0 and never wrap; `head` counts what was received. There is no shared tail: where the window of
//! what is queued ends is seen from what the producer writes into the ring anyway. A ring of granules has a word a slot
//! ([`granule`](super::granule)), one of values has rows of a few slots with one stamp ([`value`](super::value)). In both a position
//! is *stamped* if the ring says that it, or what comes behind it, was filled, and queued if it is not received, and it and
//! all between the head and it are stamped. A new producer finds its position by walking from the head.
//!
//! # Ownership
//! Slots and stamps: written by the producer only, when `position - head < capacity`. `head`: by the consumer only. A queued block is
//! the sender's by its header, and the channel's by its place in the window; the consumer takes it by writing its name into the
//! header and then moving the head.
//!
//! # Batches
//! One store publishes, or receives, any number. A producer notes in the header where the batch begins, fills and stamps what lies
//! behind its position, and stamps its position last: the consumer looks in order, so until then it sees nothing. A consumer
//! takes what it wants of the window and then moves the head once.
//!
//! The note is for those who count: the stamps of a batch that is not published, behind a gap of one, would mislead a search.
//! It is believed in a count only.
//!
//! # Orderings
//! - `SYNC(publish)`: stamp store Release, stamp load Acquire: the payload and the header's meta word, or the values; and all
//!   of a batch by its first.
//! - `SYNC(take)`: state store, or value loads, then head store Release; the producer's head load Acquire: it may reuse the slot,
//!   and whoever sees the head beyond a record sees the record's new owner.
//! - `SYNC(batch)`: a batch's beginning store, then its stamps Release; whoever sees one of these (Acquire) and then loads the
//!   beginning knows that a batch began, and where.
//! - `SYNC(wake)`: publish (or take), then load the bell; the other side writes its name there, then looks at the stamp (or
//!   head). The only store-load pair: only a compiler fence here, on the fast path; see `wait`.
//!
//! # If a process dies
//! | after | what is left | repaired by |
//! |---|---|---|
//! | push: before the stamp | the sender's, not in the window | the header scan: it was never sent |
//! | push: the stamp | in the window | nothing: it is delivered; the wake is made up for by the bounded sleep |
//! | batch: some stamps behind the first | slots that look queued, beyond the window's end; records as before the stamp | the next producer clears them, having the role, before it sends ([`clear_beyond`](super::window::clear_beyond)); the header scan |
//! | pop: the state store, or the value's loads | the receiver's, in the window | the window pass: queued again, the next consumer gets it |
//! | pop: the head store | the receiver's, outside | the header scan: it counts as received |
//!
//! A batch's stamps are stored in order, each Release, so that the compiler keeps the order too: what a kill leaves beyond the
//! window is one run that begins behind the position. Clearing goes from its end, so that a kill leaves a shorter run.

mod records;
mod values;

use crate::format::SpscHeader;
use crate::queue::pace::Pace;
use crate::queue::ring::Ring;
use crate::queue::value::Rows;
use crate::sync::{Ordering, compiler_fence};
use crate::sys::crash::point;
use crate::wait::flags;
use std::cell::Cell;

/// In a ring with fewer slots a producer gains nothing by waiting for more of them.
const FEW: u64 = 64;

/// One end of the queue. How it gets at the slots is the part of `records` and `values`.
#[derive(Debug)]
pub(crate) struct End {
    ring: Cell<Ring>,
    /// Where it stands: messages pushed or taken, counted from the channel's first.
    position: Cell<u64>,
    /// The producer's: where the room that it knows of ends. A consumer's of values: the stamp it saw last.
    until: Cell<u64>,
    rows: Rows,
    /// The granule that a consumer took last.
    taken: Cell<u32>,
    pace: Pace,
}

/// Where a consumer is that takes one or more, before it moves the head.
#[derive(Debug)]
pub(crate) struct At {
    ring: Ring,
    position: u64,
}

impl At {
    /// Leaves one behind.
    #[inline(always)]
    pub(crate) fn step(&mut self) {
        self.position = self.position.wrapping_add(1);
    }
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
        Self::standing(ring, ring.end_of_window())
    }

    /// The end that takes: at the head.
    pub(crate) fn consumer(ring: Ring) -> Self {
        Self::standing(ring, ring.head())
    }

    fn standing(ring: Ring, position: u64) -> Self {
        let rows = ring.shape.map_or_else(Rows::none, |shape| Rows::at(ring.words, shape, position));
        // The producer has to look at the head first; of a consumer's rows nothing is known.
        Self {
            ring: Cell::new(ring),
            position: Cell::new(position),
            until: Cell::new(0),
            rows,
            taken: Cell::new(0),
            pace: Pace::new(position),
        }
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring.get()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.ring.get().capacity()
    }

    /// Forgets the ring: nothing can be pushed or taken any more.
    pub(crate) fn abandon(&self) {
        self.ring.set(Ring::NONE);
        self.until.set(0);
        self.rows.forget();
    }

    /// Makes sure that there is room for one.
    #[inline(always)]
    fn make_sure(&self) -> Result<(), NotPushed> {
        if self.position.get() >= self.until.get() {
            self.look()?;
        }
        if self.is_gone() { Err(NotPushed::Gone) } else { Ok(()) }
    }

    /// How many of `count` there is room for.
    fn room(&self, count: usize) -> Result<usize, NotPushed> {
        let room = || usize::try_from(self.until.get().saturating_sub(self.position.get())).unwrap_or(usize::MAX);
        if room() < count {
            // Room for some will do.
            let _ = self.look();
        }
        match room().min(count) {
            _ if self.is_gone() => Err(NotPushed::Gone),
            0 => Err(NotPushed::Full),
            room => Ok(room),
        }
    }

    /// Looks how far the consumer is.
    #[cold]
    #[inline(never)]
    fn look(&self) -> Result<(), NotPushed> {
        let capacity = self.ring.get().capacity;
        if self.has_room() || capacity >= FEW && self.hesitate_to_push() && self.has_room() {
            Ok(())
        } else if self.is_gone() {
            Err(NotPushed::Gone)
        } else {
            Err(NotPushed::Full)
        }
    }

    /// For a consumer that found nothing: lets the producer get ahead for a moment, if that is likely to pay; true if it has.
    pub(crate) fn hesitate(&self) -> bool {
        let (ring, position) = (self.ring.get(), self.position.get());
        // They are queued in order.
        let have_come =
            |count| (1..=ring.capacity).contains(&count) && ring.stamped(position.wrapping_add(count - 1)) > 0;
        self.pace.hesitate(position, ring.capacity, have_come)
    }

    /// As [`hesitate`](Self::hesitate), for a producer that found no room.
    fn hesitate_to_push(&self) -> bool {
        let (ring, position) = (self.ring.get(), self.position.get());
        let has_room = |count| position.wrapping_sub(ring.head()).wrapping_add(count) <= ring.capacity;
        self.pace.hesitate(position, ring.capacity, has_room)
    }

    /// For an end that is to leave the core to others.
    pub(crate) fn never_hesitate(&self) {
        self.pace.never();
    }

    /// After the stamps, up to `position`: whether there is something on the consumer's bell. The caller answers it
    /// ([`wait::answer`](crate::wait::answer)).
    #[inline(always)]
    fn pushed(&self, header: &SpscHeader, position: u64) -> bool {
        self.position.set(position);
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        header.to_producer.load(Ordering::Relaxed) != 0
    }

    /// Whether the consumer of this producer has left.
    #[inline(always)]
    pub(crate) fn is_gone(&self) -> bool {
        self.ring.get().header.to_producer.load(Ordering::Relaxed) & flags::GONE != 0
    }

    /// Looks whether a slot is free for this producer, and notes how many are.
    #[inline(always)]
    pub(crate) fn has_room(&self) -> bool {
        let ring = self.ring.get();
        // SYNC(take)
        let head = ring.head();
        let has_room = self.position.get().wrapping_sub(head) < ring.capacity;
        if has_room {
            self.until.set(head.wrapping_add(ring.capacity));
        }
        has_room
    }

    /// Messages pushed or taken, counted from the channel's first.
    pub(crate) fn position(&self) -> u64 {
        self.position.get()
    }

    /// For a producer: how many it has pushed that are not taken.
    pub(crate) fn not_taken(&self) -> usize {
        let ring = self.ring.get();
        ring.count_between(ring.head(), self.position.get())
    }

    /// Before the first slot of a batch is filled: says where it begins.
    fn begin_batch(&self) {
        // SYNC(batch)
        self.ring.get().header.batch.store(self.position.get(), Ordering::Relaxed);
        point!("send batch: begun");
    }

    /// Whether anything is queued for this consumer.
    pub(crate) fn has_queued(&self) -> bool {
        let ring = self.ring.get();
        let position = self.position.get();
        if ring.shape.is_some() {
            self.rows.is_stamped(ring.words, position, self.until.get())
        } else {
            ring.granule(position).is_some()
        }
    }

    /// Where this consumer stands.
    #[inline(always)]
    pub(crate) fn at(&self) -> At {
        At { ring: self.ring.get(), position: self.position.get() }
    }

    /// Moves the head, and this end, up to `at`: what lies before is received. The blocks bear this process's name by now, the values were
    /// copied. True if there is something on the producer's bell: the caller answers it.
    #[inline(always)]
    pub(crate) fn receive(&self, at: At) -> bool {
        let header = at.ring.header;
        // SYNC(take)
        header.head.store(at.position, Ordering::Release);
        point!("recv: head");
        self.position.set(at.position);
        // SYNC(wake)
        compiler_fence(Ordering::SeqCst);
        header.to_consumer.load(Ordering::Relaxed) != 0
    }

    /// Whether the last `count` that were received make room enough to wake a producer that sleeps because the ring was full: a
    /// quarter is free, or nothing is left. One that is woken for a single slot falls asleep at once again.
    pub(crate) fn has_freed_much(&self, count: usize) -> bool {
        let quarter = (self.ring.get().capacity / 4).max(1);
        // The head has come to the end of a quarter of the ring, or past it.
        self.position.get() % quarter < count as u64 || !self.has_queued()
    }
}
