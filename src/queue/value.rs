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

use crate::format::Shape;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use std::cell::Cell;

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

/// The words of the value at `position`, if it is stamped.
#[allow(clippy::cast_possible_truncation)] // less than a row
pub(super) fn at(words: &'static [AtomicU64], shape: Shape, position: u64) -> Option<&'static [AtomicU64]> {
    (stamped(words, shape, position) > 0).then_some(())?;
    let past = (position - shape.row_start(position)) as usize;
    let start = shape.offset(words.len(), position) + 1 + past * shape.words();
    words.get(start..start + shape.words())
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
    pub(super) rest: Cell<&'static [AtomicU64]>,
    /// That row's.
    pub(super) stamp: Cell<&'static AtomicU64>,
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
            let past = (position - shape.row_start(position)) as usize * shape.words();
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
    pub(super) fn turn(&self, words: &'static [AtomicU64], shape: Shape) {
        let split = |words: &'static [AtomicU64]| words.split_at_checked(shape.row_words());
        if let Some((row, ahead)) = split(self.ahead.get()).or_else(|| split(words))
            && let Some((stamp, values)) = row.split_first()
            && let Some(values) = values.get(..shape.values_per_row() * shape.words())
        {
            self.ahead.set(ahead);
            self.stamp.set(stamp);
            self.rest.set(values);
        }
    }

    /// The row so many behind the one at hand, to be asked for early.
    #[inline(always)]
    pub(super) fn beyond(&self, words: &'static [AtomicU64], shape: Shape, rows: usize) -> Option<&'static AtomicU64> {
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
