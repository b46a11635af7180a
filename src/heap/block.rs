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

// Fields of words: masked, or the low half.
#![allow(clippy::cast_possible_truncation)]

use crate::arena::{Arena, Start};
use crate::heap::{class, reclaim, unit};
use crate::layout::{BLOCK_HEADER, BlockHeader, GRANULE, Owner, UNIT, Word};
use crate::sync::Ordering;

/// Kinds of a block's state word.
pub(crate) mod state {
    /// In a magazine, and the name of its last owner was taken off; most free blocks still bear one.
    pub(crate) const FREE: u64 = 0;
    /// Holds the queue of a channel (names the entry).
    pub(crate) const STORAGE: u64 = 1;
    /// Free, but in no magazine: the last resort of a free that found none. A scan collects it.
    pub(crate) const LOOSE: u64 = 2;
    /// A process holds it (names the process), or has queued it and nobody has received it yet.
    pub(crate) const OWNED: u64 = 8;
    /// Queued in a channel (names the entry) whose sender has left.
    pub(crate) const QUEUED: u64 = 9;
    /// The least of those that a queued block may say.
    pub(crate) const SENDABLE: u64 = OWNED;
}

/// Which attachment of this process a handle is good with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(u64);

impl Tag {
    /// Attachments that a process can tell apart.
    pub(crate) const LIMIT: u32 = 1 << 22;

    pub(crate) const fn new(number: u32) -> Self {
        Self(Handle::MARK | (number as u64) << 40)
    }

    pub(crate) const fn number(self) -> u32 {
        ((self.0 & !Handle::MARK) >> 40) as u32
    }

    #[inline(always)]
    pub(crate) const fn word(self) -> u64 {
        self.0
    }
}

/// Whose a block is in this process, its class and its place, in one word.
///
/// ```text
/// 63    62    61      40 39     32 31       0
/// [ 1 ][ run ][ tag     ][ class  ][ granule  ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle(u64);

impl Handle {
    const MARK: u64 = 1 << 63;
    const RUN: u64 = 1 << 62;

    #[inline(always)]
    pub(crate) const fn new(tag: Tag, class: u8, granule: u32) -> Self {
        let run = if class == class::RUN { Self::RUN } else { 0 };
        Self(tag.0 | run | (class as u64) << 32 | granule as u64)
    }

    #[inline(always)]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// Not so for words that lie in shared memory for other purposes.
    pub(crate) const fn is_marked(self) -> bool {
        self.0 & Self::MARK != 0
    }

    #[inline(always)]
    pub(crate) const fn tag(self) -> Tag {
        Tag(self.0 & !Self::RUN & !0 << 40)
    }

    /// Whether it belongs to the attachment whose tag the word is, and is no run: one comparison.
    #[inline(always)]
    pub(crate) const fn is_small_of(self, tag: u64) -> bool {
        self.0 >> 40 == tag >> 40
    }

    /// Whether it belongs to the attachment and is of this class: one comparison.
    #[inline(always)]
    pub(crate) const fn is_of(self, tag: Tag, class: usize) -> bool {
        self.0 >> 32 == tag.0 >> 32 | class as u64
    }

    #[inline(always)]
    pub(crate) const fn class(self) -> u8 {
        (self.0 >> 32 & 0xff) as u8
    }

    /// The class, if it is below `END`, a power of two; something else below, if it isn't.
    #[inline(always)]
    pub(crate) const fn class_below<const END: usize>(self) -> usize {
        const { assert!(END.is_power_of_two()) };
        (self.0 >> 32) as usize & (END - 1)
    }

    #[inline(always)]
    pub(crate) const fn granule(self) -> u32 {
        self.0 as u32
    }
}

/// A block in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) handle: Handle,
    pub(crate) start: Start,
}

impl Block {
    #[inline(always)]
    pub(crate) fn header<'a>(self) -> &'a BlockHeader {
        self.start.header()
    }
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
pub(crate) const fn payload_offset(granule: u32, align: u64) -> u32 {
    if align <= BLOCK_HEADER {
        return BLOCK_HEADER as u32;
    }
    let start = granule as u64 * GRANULE;
    ((start + BLOCK_HEADER).next_multiple_of(align) - start) as u32
}

/// Whether a block of `class` starts at `granule`, by what its unit says (which its header may contradict, if a foreign hand
/// wrote there).
pub(crate) fn is_at(arena: &Arena, granule: u32, class: u8) -> bool {
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
    Word(block.state.load(Ordering::Relaxed)).kind() >= state::SENDABLE
}

/// The state that says "held by this process".
#[inline(always)]
pub(crate) const fn owned(by: Owner) -> Word {
    Word::of(state::OWNED, by)
}
