//! Size classes: how many granules a block of each class has, and which class serves a size.
//!
//! Four classes a doubling, each one granule above a round number, so that a power-of-two payload and its header fit
//! (and blocks of one class don't all start at the same offset of a page, which would make them fight for the same cache sets).
//! A block is at most `1.25 * payload + 64` bytes above its header. Above [`MAX_GRANULES`] a record is a run of units.

// Class numbers and granules in const tables: all far below 2^32.
#![allow(clippy::cast_possible_truncation)]

use super::units::{BLOCK_HEADER, GRANULE, UNIT_GRANULES};

/// Number of size classes.
pub(crate) const COUNT: usize = 45;
/// The class of blocks that are a run of whole units.
pub(crate) const RUN: u8 = u8::MAX;
/// Hint lists: one a size class, and the pool of empty magazines.
pub(crate) const LISTS: usize = COUNT + 1;
/// The list of empty magazines.
pub(crate) const POOL: usize = COUNT;
/// Granules of the largest class: a payload of 256 KiB fits.
pub(crate) const MAX_GRANULES: u32 = GRANULES[COUNT - 1];

const GRANULES: [u32; COUNT] = {
    let mut table = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        // 1 2 3 4, then 5 6 7 8, 9 11 13 15, 17 21 25 29, ...
        table[i] = if i < 4 {
            i as u32 + 1
        } else {
            let base = 1 << (i / 4 + 1);
            base + (base / 4) * (i as u32 % 4) + 1
        };
        i += 1;
    }
    table
};

/// Units in a slab of each class: the fewest that waste at most an eighth at the end.
const SPANS: [u32; COUNT] = {
    let mut table = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        let mut span = 1;
        loop {
            let all = span * UNIT_GRANULES;
            if all >= GRANULES[i] && (all % GRANULES[i]) * 8 <= all {
                break;
            }
            span += 1;
        }
        table[i] = span;
        i += 1;
    }
    table
};

/// 2^32 / granules, rounded up: exact for every distance inside a slab.
const RECIPROCALS: [u64; COUNT] = {
    let mut table = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        table[i] = (1_u64 << 32).div_ceil(GRANULES[i] as u64);
        i += 1;
    }
    table
};

const _: () = {
    assert!(GRANULES[4] == 5 && GRANULES[7] == 8 && GRANULES[8] == 9 && GRANULES[12] == 17 && GRANULES[13] == 21);
    assert!(MAX_GRANULES as u64 * GRANULE == (256 << 10) + 64);
};

/// The class as headers and handles have it.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // fewer than 256 classes
pub(crate) const fn index(class: usize) -> u8 {
    const { assert!(COUNT < 256) };
    class as u8
}

/// Granules of a block of `class`.
pub(crate) const fn granules(class: usize) -> u32 {
    GRANULES[class]
}

/// Units of a slab of `class`.
pub(crate) const fn span(class: usize) -> u32 {
    SPANS[class]
}

/// Blocks in a slab of `class`.
pub(crate) const fn blocks(class: usize) -> u32 {
    SPANS[class] * UNIT_GRANULES / GRANULES[class]
}

/// Whether a block of `class` starts so many granules behind the start of its slab.
#[inline]
pub(crate) const fn starts_at(class: usize, granules_in: u32) -> bool {
    let number = (granules_in as u64 * RECIPROCALS[class]) >> 32;
    number * GRANULES[class] as u64 == granules_in as u64 && number < blocks(class) as u64
}

/// The class whose blocks hold `bytes` behind their header, or `None` if that takes a run of units.
#[inline(always)]
pub(crate) const fn for_bytes(bytes: u64) -> Option<usize> {
    let granules = (bytes + BLOCK_HEADER).div_ceil(GRANULE);
    if granules <= 8 {
        return Some(if granules == 0 { 0 } else { granules as usize - 1 });
    }
    if granules > MAX_GRANULES as u64 {
        return None;
    }
    // With g = base + k + 1, base a power of two: the class is where k falls among quarters of the base, rounded up.
    let below = granules - 2;
    let log = below.ilog2();
    Some(4 * (log as usize - 1) + (below >> (log - 2)) as usize - 4 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_class_that_fits_serves() {
        for bytes in 0..=(u64::from(MAX_GRANULES) * GRANULE - BLOCK_HEADER) {
            let class = for_bytes(bytes).expect("within the classes");
            let need = (bytes + BLOCK_HEADER).div_ceil(GRANULE);
            assert!(u64::from(granules(class)) >= need, "{bytes} bytes in class {class}");
            assert!(class == 0 || u64::from(granules(class - 1)) < need, "{bytes} bytes fit below class {class}");
            let block = u64::from(granules(class)) * GRANULE - BLOCK_HEADER;
            assert!(4 * block <= 5 * bytes + 4 * 64 + 64, "{bytes} bytes waste too much in {block}");
        }
        assert_eq!(for_bytes(u64::from(MAX_GRANULES) * GRANULE - BLOCK_HEADER + 1), None);
    }

    #[test]
    fn blocks_start_where_multiples_lie() {
        for class in 0..COUNT {
            for granules_in in 0..span(class) * UNIT_GRANULES {
                let is = granules_in % granules(class) == 0 && granules_in / granules(class) < blocks(class);
                assert_eq!(starts_at(class, granules_in), is, "class {class}, {granules_in} granules in");
            }
        }
    }

    #[test]
    fn slabs_are_short_and_well_used() {
        for class in 0..COUNT {
            assert!(span(class) <= 16, "class {class} needs {} units", span(class));
            assert!(blocks(class) >= 1);
        }
    }
}
