//! Payloads: words, all the same, every one of them written and read.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::mem::MaybeUninit;

/// Writes every word, for real, and gives back what is initialised now.
#[inline(always)]
pub fn fill(words: &mut [MaybeUninit<u64>], value: u64) -> &mut [u64] {
    for word in words.iter_mut() {
        word.write(value);
    }
    // SAFETY: each has just been written.
    unsafe { black_box(words).assume_init_mut() }
}

/// Reads every word; `value` if all of them are, else something else.
#[inline(always)]
pub fn read(words: &[u64]) -> u64 {
    let words = black_box(words);
    let first = words[0];
    first.wrapping_add(words.iter().fold(0, |odd, word| odd | (word ^ first)))
}
