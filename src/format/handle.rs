//! The word that names a block.

// Fields of a word: masked, or the low half.
#![allow(clippy::cast_possible_truncation)]

use super::class;
use super::units::GRANULE;

/// A block's class and place in one word, which is not 0: no block starts at the very first granule of a segment. It is the place in
/// bytes, with the class in the bits that are 0 there.
///
/// ```text
/// 37         6 5      0
/// [ granule  ][ class  ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle(u64);

impl Handle {
    const CLASS: u64 = GRANULE - 1;
    /// In place of a class.
    const RUN: u64 = Self::CLASS;

    #[inline(always)]
    pub(crate) const fn new(class: u8, granule: u32) -> Self {
        const { assert!(class::COUNT as u64 <= Self::RUN) };
        let class = if class == class::RUN { Self::RUN } else { class as u64 };
        Self((granule as u64 * GRANULE) | class)
    }

    /// As [`new`](Self::new), for a size class and `offset` bytes, a multiple of a granule.
    #[inline(always)]
    pub(crate) const fn at(class: u8, offset: u64) -> Self {
        Self(offset + class as u64)
    }

    #[inline(always)]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) const fn is_run(self) -> bool {
        self.0 & Self::CLASS == Self::RUN
    }

    #[inline(always)]
    pub(crate) const fn is_of(self, class: usize) -> bool {
        self.0 & Self::CLASS == class as u64
    }

    #[inline(always)]
    pub(crate) const fn class(self) -> u8 {
        if self.is_run() { class::RUN } else { (self.0 & Self::CLASS) as u8 }
    }

    /// The class, or another number below 64, if it is a run, or the word broken.
    #[inline(always)]
    pub(crate) const fn class_below_64(self) -> usize {
        (self.0 & Self::CLASS) as usize
    }

    #[inline(always)]
    pub(crate) const fn granule(self) -> u32 {
        (self.0 / GRANULE) as u32
    }

    /// Bytes from the start of the segment.
    #[inline(always)]
    pub(crate) const fn offset(self) -> u64 {
        self.0 & !Self::CLASS
    }
}
