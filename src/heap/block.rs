//! A block's two header words: who owns it, and what its payload is.
//!
//! # Ownership
//! `state` is the word that decides; [`state`] lists what it may hold. `meta` belongs to the owner.
//!
//! ```text
//! meta: 59    52 51       40 39                       0
//!       [ class ][ payload  ][ elements in the payload ]
//!                  offset / 16
//! ```

use crate::arena::Arena;
use crate::heap::{class, reclaim, unit};
use crate::layout::{BLOCK_HEADER, BlockHeader, GRANULE, Owner, UNIT, Word};
use crate::sync::Ordering;

/// Kinds of a block's state word.
pub(crate) mod state {
    /// In a magazine.
    pub(crate) const FREE: u64 = 0;
    /// A process holds it (names the process), or has queued it and nobody has received it yet.
    pub(crate) const OWNED: u64 = 1;
    /// Queued in a channel (names the entry) whose sender has left.
    pub(crate) const QUEUED: u64 = 2;
    /// Holds the queue of a channel (names the entry).
    pub(crate) const STORAGE: u64 = 3;
    /// Free, but in no magazine: the last resort of a free that found none. A scan collects it.
    pub(crate) const LOOSE: u64 = 4;
}

/// The largest number of elements a record may have.
pub(crate) const MAX_COUNT: u64 = (1 << 40) - 1;

/// What the header says of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// A size class, or [`class::RUN`].
    pub(crate) class: u8,
    /// Bytes from the start of the block to the payload: a multiple of 16, at most 4096.
    pub(crate) offset: u32,
    /// Elements; 1 for a sized record.
    pub(crate) count: u64,
}

impl Meta {
    #[inline(always)]
    pub(crate) const fn pack(self) -> u64 {
        (self.class as u64) << 52 | ((self.offset / 16) as u64) << 40 | self.count
    }

    #[inline(always)]
    pub(crate) const fn unpack(word: u64) -> Self {
        #[allow(clippy::cast_possible_truncation)] // masked
        Self { class: (word >> 52 & 0xff) as u8, offset: (word >> 40 & 0xfff) as u32 * 16, count: word & MAX_COUNT }
    }
}

/// Bytes to ask the heap for, so that `bytes` at `align` fit behind the header: `None` on overflow.
#[inline(always)]
pub(crate) const fn need(bytes: u64, align: u64) -> Option<u64> {
    // Up to 16 the payload follows the header; above, it moves up to the next aligned address, at most `align` on.
    if align <= BLOCK_HEADER { Some(bytes) } else { bytes.checked_add(align - BLOCK_HEADER) }
}

/// Where the payload of the block at `granule` starts for this alignment, in bytes from the block's start.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // at most 4096
pub(crate) const fn payload_offset(granule: u32, align: u64) -> u32 {
    if align <= BLOCK_HEADER {
        return BLOCK_HEADER as u32;
    }
    let start = granule as u64 * GRANULE;
    ((start + BLOCK_HEADER).next_multiple_of(align) - start) as u32
}

/// Whether a block of `class` starts at `granule`, by what its unit says (which its header may contradict, if a foreign hand
/// wrote there).
#[inline(always)]
pub(crate) fn is_at(arena: &Arena, granule: u32, class: u8) -> bool {
    // Nearly always: a slab of one unit.
    if usize::from(class) < class::COUNT && unit::is_slab(arena, arena.unit_of(granule), class.into()) {
        return class::starts_at(class.into(), arena.granules_into_unit(granule));
    }
    is_at_slow(arena, granule, class)
}

#[cold]
#[inline(never)]
fn is_at_slow(arena: &Arena, granule: u32, class: u8) -> bool {
    if class == class::RUN {
        return run_bytes(arena, granule).is_some();
    }
    usize::from(class) < class::COUNT && reclaim::slab_of(arena, granule, class.into()).is_some()
}

/// Bytes of the large block at `granule`, if one starts there.
pub(crate) fn run_bytes(arena: &Arena, granule: u32) -> Option<u64> {
    arena.block(granule)?;
    let head = arena.unit_of(granule);
    let (first, what) = unit::head_of(arena, head)?;
    let is_run = what.kind() == unit::RUN && first == head && granule == arena.granule_of(head);
    is_run.then(|| unit::span_of(what) * UNIT)
}

/// Bytes of a block of `class` at `granule`, header included.
#[inline]
pub(crate) fn bytes(arena: &Arena, granule: u32, class: u8) -> Option<u64> {
    if usize::from(class) < class::COUNT {
        Some(u64::from(class::granules(class.into())) * GRANULE)
    } else {
        run_bytes(arena, granule)
    }
}

/// Moves `block` from one state to another if it still is in it.
pub(crate) fn change(block: &BlockHeader, from: Word, to: Word) -> bool {
    block.state.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Whether a block in a channel's window says what such a block may say.
#[inline(always)]
pub(crate) fn is_sendable(block: &BlockHeader) -> bool {
    matches!(Word(block.state.load(Ordering::Relaxed)).kind(), state::OWNED | state::QUEUED)
}

/// The state that says "held by this process".
#[inline(always)]
pub(crate) const fn owned(by: Owner) -> Word {
    Word::of(state::OWNED, by)
}
