//! Values that travel in the slots themselves: how large a slot is, and how bytes get in and out of it.
//!
//! Promises: one line per hand-over for values of up to 56 bytes; no reference to a value is ever formed in shared memory.
//! What a slot's word says, and who may write when, is the ring's ([`spsc`](super::spsc)).
//!
//! # Layout
//! ```text
//! word 0             1 ..                          up to
//! [ p + 1 | HERE    ][ the value, 8 bytes a word   ][ not used ]
//! ```
//! A slot of up to 64 bytes is a power of two, so that none lies across a line; a larger one is whole lines.
//!
//! # Orderings
//! The value's words are Relaxed: `SYNC(publish)` and `SYNC(take)` of the ring order them.

use crate::sync::{AtomicU64, Ordering};

/// The largest value: a slot of sixteen lines. What is larger is cheaper to hand over as a record.
pub(crate) const MAX_BYTES: usize = 1016;

/// What the word of a slot names when a value follows it.
pub(crate) const HERE: u32 = 1;

/// Words of a slot for values of so many bytes.
pub(crate) const fn slot_words(bytes: usize) -> usize {
    let words = 1 + bytes.div_ceil(8);
    if words <= 8 { words.next_power_of_two() } else { words.next_multiple_of(8) }
}

/// Copies a value's bytes into the words of its slot.
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

/// Copies a value's bytes out of the words of its slot.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_as_small_as_lines_allow() {
        let sizes = [(0, 1), (1, 2), (8, 2), (9, 4), (24, 4), (25, 8), (56, 8), (57, 16), (120, 16), (121, 24)];
        assert!(sizes.iter().all(|(bytes, words)| slot_words(*bytes) == *words));
        assert_eq!(slot_words(MAX_BYTES) * 8, 1024);
    }

    #[test]
    fn every_length_comes_out_as_it_went_in() {
        for len in 0..=40_usize {
            let value: Vec<u8> = (1..).take(len).collect();
            let words: Vec<AtomicU64> = (1..slot_words(len)).map(|_| AtomicU64::new(u64::MAX)).collect();
            store(&value, &words);
            let mut back = vec![0; len];
            load(&mut back, &words);
            assert_eq!(back, value);
        }
    }
}
