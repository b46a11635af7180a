//! Rings of granules: a word a slot, which names a record's block.
//!
//! # Layout
//! Position `p` uses slot `p mod capacity`:
//! ```text
//! 63                  32 31                        0
//! [ p + 1, low 32 bits  ][ granule                  ]     0: never used (no block starts at granule 0)
//! ```
//! A slot is stamped with `p` if its upper half says so: what it held before is a whole lap older, and a lap is far less than 2^32.
//!
//! Ownership, orderings and kills: [`spsc`](super::spsc); here one store is the slot and its stamp.

use super::ring::Ring;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;

/// The word of a slot.
#[inline(always)]
pub(super) const fn word(position: u64, granule: u32) -> u64 {
    position.wrapping_add(1) << 32 | granule as u64
}

impl Ring {
    /// The slot at `position`.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the crate is for 64-bit targets
    pub(super) fn slot(&self, position: u64) -> Option<&'static AtomicU64> {
        // A power of two; with no slots the mask is all ones, and nothing is in range.
        self.words.get(position as usize & self.words.len().wrapping_sub(1))
    }

    /// What is queued at `position`, if something is.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the two halves of a word
    pub(super) fn granule(&self, position: u64) -> Option<u32> {
        // SYNC(publish)
        let word = self.slot(position)?.load(Ordering::Acquire);
        let is_new = (word >> 32) as u32 == (position as u32).wrapping_add(1) && word as u32 != 0;
        is_new.then_some(word as u32)
    }
}

/// Clears the slots beyond the window's end.
pub(super) fn clear_beyond(ring: Ring, end: u64) {
    let left = (1..ring.capacity).take_while(|i| ring.granule(end.wrapping_add(*i)).is_some());
    for position in (1..=left.count() as u64).rev().map(|i| end.wrapping_add(i)) {
        if let Some(slot) = ring.slot(position) {
            // SYNC(kill): the last is cleared before the last but one.
            slot.store(0, Ordering::Release);
            point!("attach: cleared");
        }
    }
}
