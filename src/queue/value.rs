//! Rings of values: rows of cache lines, each with a few values and one stamp.
//!
//! Promises: one line per hand-over for values of up to 56 bytes; no reference to a value is ever formed in shared memory.
//!
//! # Layout
//! A row is a line, or for values of more than 56 bytes as many lines as one takes with its stamp. The words of each value follow
//! one another:
//! ```text
//!            word 0   1     2     3     4     5     6     7
//! to  8 bytes: [stamp][v0  ][v1  ][v2  ][v3  ][v4  ][v5  ][v6  ]      7 a row
//! to 16 bytes: [stamp][v0         ][v1         ][v2         ][ -- ]   3
//! to 24 bytes: [stamp][v0               ][v1               ][ -- ]    2
//! to 56 bytes: [stamp][v0 ..                                     ]    1
//! ```
//! Position `p` is value `p mod k` of row `p / k mod rows`, with `k` values a row. There are as many rows as hold `capacity + k - 1`
//! values, so that no `capacity` positions one after another, wherever they begin, share a row between two laps. So the ring is
//! up to two rows larger than its values; how many may be queued is what was asked for, all the same.
//!
//! The stamp is a position: the one behind the last value that was filled in this row, in whatever lap. 0: none was. It only
//! grows (but for [`clear_beyond`]), so `p` was filled if and only if its row's stamp is beyond `p`. Nobody is fooled who was
//! stopped for many laps, be it an observer that walks from an old head: positions never come again.
//!
//! # Ownership
//! See [`spsc`](super::spsc). A consumer remembers the stamp of the row it is in, and looks again when it has taken what that one
//! said.
//!
//! # Batches
//! Row by row: values first, then the row's stamp; the first row's stamp is stored last, and publishes all. Until then the stamps of
//! the other rows speak of values that are not published, but who looks in order is stopped at the first row; and none of those rows
//! has anything that is queued.
//!
//! # Orderings
//! The values' words are Relaxed: `SYNC(publish)` and `SYNC(take)` of the ring order them. Stores to a stamp are one producer's, each
//! Release, so that who sees a later one sees all that the earlier ones published. A new producer has read the stamps of the one
//! before it (Acquire) on its way to the window's end, so its own stamps speak for those values too.
//!
//! # If a process dies
//! See [`spsc`](super::spsc). What a batch leaves that was cut short is stamps beyond the window, of whole rows behind the one that the
//! window ends in. A row that is cleared gets the position where its lap begins: none of that lap is filled.

use super::spsc::{At, End, NotPushed};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::prefetch;
use std::cell::Cell;

/// The largest value: a row of sixteen lines. What is larger is cheaper to hand over as a record.
pub(crate) const MAX_BYTES: usize = 1016;

const LINE_WORDS: usize = 8;

/// How many rows ahead a producer that enters a row asks for one to write, if there is room. Measured: `docs::design`.
const FREE_AHEAD: usize = 8;

/// How many rows ahead a consumer that enters a full row asks for one to read. Measured, too.
const FULL_AHEAD: usize = 4;

/// How values lie in rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Words of a value, at least 1.
    words: usize,
}

impl Shape {
    /// For values of so many bytes.
    pub(crate) const fn of(bytes: usize) -> Self {
        let words = bytes.div_ceil(8);
        Self { words: if words == 0 { 1 } else { words } }
    }

    const fn values_per_row(self) -> usize {
        let fit = (LINE_WORDS - 1) / self.words;
        if fit == 0 { 1 } else { fit }
    }

    const fn row_words(self) -> usize {
        (1 + self.words).next_multiple_of(LINE_WORDS)
    }

    /// Words of a ring that so many values may be in at once.
    pub(crate) const fn ring_words(self, capacity: u64) -> u64 {
        let per_row = self.values_per_row() as u64;
        (capacity + per_row - 1).div_ceil(per_row) * self.row_words() as u64
    }

    const fn row_start(self, position: u64) -> u64 {
        position - position % self.values_per_row() as u64
    }

    /// Where the row of `position` begins in a ring of so many words, which is at least a row.
    #[allow(clippy::cast_possible_truncation)] // less than the words
    const fn offset(self, words: usize, position: u64) -> usize {
        let row = (position / self.values_per_row() as u64) % (words / self.row_words()) as u64;
        row as usize * self.row_words()
    }
}

/// The stamp of the row of `position`.
pub(super) fn stamp(words: &[AtomicU64], shape: Shape, position: u64) -> Option<&AtomicU64> {
    (words.len() >= shape.row_words()).then(|| words.get(shape.offset(words.len(), position)))?
}

/// How many are stamped from `position` to the end of its row.
pub(super) fn stamped(words: &[AtomicU64], shape: Shape, position: u64) -> u64 {
    // SYNC(publish)
    let stamp = stamp(words, shape, position).map_or(0, |stamp| stamp.load(Ordering::Acquire));
    let end = shape.row_start(position).saturating_add(shape.values_per_row() as u64);
    stamp.min(end).saturating_sub(position)
}

/// Clears the rows beyond the one that the window ends in.
pub(super) fn clear_beyond(words: &[AtomicU64], shape: Shape, end: u64) {
    let rows = words.len() / shape.row_words();
    let start = |i: usize| shape.row_start(end).saturating_add((i * shape.values_per_row()) as u64);
    let left = (1..rows).take_while(|i| stamped(words, shape, start(*i)) > 0).count();
    for start in (1..=left).rev().map(start) {
        if let Some(stamp) = stamp(words, shape, start) {
            // SYNC(kill): the last is cleared before the last but one.
            stamp.store(start, Ordering::Release);
            point!("attach: cleared");
        }
    }
}

static NO_STAMP: AtomicU64 = AtomicU64::new(0);

/// Where an end stands in the rows.
#[derive(Debug)]
pub(super) struct Rows {
    /// What it has not come past of the values of the row at hand.
    rest: Cell<&'static [AtomicU64]>,
    /// That row's.
    stamp: Cell<&'static AtomicU64>,
    /// The rows behind it, to the ring's end.
    ahead: Cell<&'static [AtomicU64]>,
}

impl Rows {
    pub(super) fn none() -> Self {
        Self { rest: Cell::new(&[]), stamp: Cell::new(&NO_STAMP), ahead: Cell::new(&[]) }
    }

    #[allow(clippy::cast_possible_truncation)] // less than a row
    pub(super) fn at(words: &'static [AtomicU64], shape: Shape, position: u64) -> Self {
        let rows = Self::none();
        if words.len() >= shape.row_words() {
            rows.ahead.set(words.get(shape.offset(words.len(), position)..).unwrap_or_default());
            rows.turn(words, shape);
            let past = (position - shape.row_start(position)) as usize * shape.words;
            rows.rest.set(rows.rest.get().get(past..).unwrap_or_default());
        }
        rows
    }

    pub(super) fn forget(&self) {
        self.rest.set(&[]);
        self.stamp.set(&NO_STAMP);
        self.ahead.set(&[]);
    }

    /// Goes on to the next row, which may be the first.
    #[inline(always)]
    fn turn(&self, words: &'static [AtomicU64], shape: Shape) {
        let split = |words: &'static [AtomicU64]| words.split_at_checked(shape.row_words());
        if let Some((row, ahead)) = split(self.ahead.get()).or_else(|| split(words))
            && let Some((stamp, values)) = row.split_first()
            && let Some(values) = values.get(..shape.values_per_row() * shape.words)
        {
            self.ahead.set(ahead);
            self.stamp.set(stamp);
            self.rest.set(values);
        }
    }

    /// The row so many behind the one at hand, to be asked for early.
    #[inline(always)]
    fn beyond(&self, words: &'static [AtomicU64], shape: Shape, rows: usize) -> Option<&'static AtomicU64> {
        let ahead = self.ahead.get();
        let offset = (rows - 1) * shape.row_words();
        ahead.get(offset).or_else(|| words.get(offset.wrapping_sub(ahead.len())))
    }

    /// Whether `position`, where this end stands, is stamped; by the stamp it saw last, or by the row's.
    pub(super) fn is_stamped(&self, words: &[AtomicU64], position: u64, seen: u64) -> bool {
        if self.rest.get().is_empty() {
            let next = self.ahead.get().first().or_else(|| words.first());
            // SYNC(publish)
            next.is_some_and(|stamp| stamp.load(Ordering::Acquire) > position)
        } else {
            seen > position || self.stamp.get().load(Ordering::Acquire) > position
        }
    }
}

impl End {
    /// Queues the value that `put` writes. True if there is something on the consumer's bell.
    #[inline(always)]
    pub(crate) fn push_value(&self, shape: Shape, put: impl FnOnce(&[AtomicU64])) -> Result<bool, NotPushed> {
        self.make_sure()?;
        let ring = self.ring.get();
        if self.rows.rest.get().len() < shape.words {
            self.rows.turn(ring.words, shape);
            if self.until.get() > self.position.get().saturating_add((FREE_AHEAD * shape.values_per_row()) as u64) {
                // The consumer has left it, but its core has the line still.
                if let Some(stamp) = self.rows.beyond(ring.words, shape, FREE_AHEAD) {
                    prefetch::for_writing(stamp);
                }
            }
        }
        let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words) else {
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
                && let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words)
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
        if self.rows.rest.get().len() < shape.words {
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
            if self.rows.rest.get().len() < shape.words {
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
        let Some((value, rest)) = self.rows.rest.get().split_at_checked(shape.words) else {
            // The stamp said more than its row has: no producer's. The next row is asked itself.
            self.until.set(0);
            return None;
        };
        self.rows.rest.set(rest);
        at.step();
        Some(value)
    }
}

/// Copies a value's bytes into its words.
#[inline(always)]
pub(crate) fn store(bytes: &[u8], words: &[AtomicU64]) {
    let (eights, rest) = bytes.as_chunks();
    let Some((whole, last)) = words.split_at_checked(eights.len()) else { return };
    for (eight, word) in eights.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*eight), Ordering::Relaxed);
    }
    if let ([_, ..], [last, ..]) = (rest, last) {
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        last.store(u64::from_ne_bytes(eight), Ordering::Relaxed);
    }
}

/// Copies a value's bytes out of its words.
#[inline(always)]
pub(crate) fn load(bytes: &mut [u8], words: &[AtomicU64]) {
    let (eights, rest) = bytes.as_chunks_mut();
    let Some((whole, last)) = words.split_at_checked(eights.len()) else { return };
    for (eight, word) in eights.iter_mut().zip(whole) {
        *eight = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if let ([_, ..], [last, ..]) = (&mut *rest, last) {
        let eight = last.load(Ordering::Relaxed).to_ne_bytes();
        rest.copy_from_slice(&eight[..rest.len()]);
    }
}
