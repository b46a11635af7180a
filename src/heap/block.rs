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

use crate::format::{BLOCK_HEADER, BlockHeader, GRANULE, Handle, Owner, UNIT, Word, class};
use crate::heap::unit;
use crate::segment::arena::{Arena, Start};
use crate::sync::Ordering;

/// Kinds of a block's state word.
pub(crate) mod state {
    /// In a magazine, and the name of its last owner was taken off; most free blocks still bear one.
    pub(crate) const FREE: u64 = 0;
    /// Holds the queue of a channel (names the entry).
    pub(crate) const STORAGE: u64 = 1;
    /// Free, but in no magazine: the last resort of a free that found none. A scan collects it.
    pub(crate) const LOOSE: u64 = 2;
    /// A context's spare that a revoker (names its process) is taking, or has taken and not yet put its own name on.
    pub(crate) const STOLEN: u64 = 3;
    /// A process holds it (names the process), or has queued it and nobody has received it yet.
    pub(crate) const OWNED: u64 = 8;
    /// Queued in a channel (names the entry) whose sender has left.
    pub(crate) const QUEUED: u64 = 9;
    /// The least of those that a queued block may say.
    pub(crate) const SENDABLE: u64 = OWNED;
}

/// What is known of a block, beside an address in it: nothing, its class (and then the address lies in its first granule), or
/// all there is. One word, for it goes through calls.
#[derive(Clone, Copy)]
pub(crate) struct Known(u64);

impl Known {
    pub(crate) const NOTHING: Self = Self(0);
    const CLASS: u64 = 1 << 63;

    #[inline(always)]
    pub(crate) const fn class(class: u8) -> Self {
        Self(Self::CLASS | class as u64)
    }

    #[inline(always)]
    pub(crate) const fn all(handle: Handle) -> Self {
        Self(handle.word())
    }

    /// The block, if nothing need be looked up; the address lies in `granule`.
    #[inline(always)]
    pub(crate) const fn at_once(self, granule: u32) -> Option<Handle> {
        if self.0 & Self::CLASS != 0 {
            Some(Handle::new(self.0 as u8, granule))
        } else if self.0 != 0 {
            Some(Handle::from_word(self.0))
        } else {
            None
        }
    }

    /// The block; the address lies in `granule` of `arena`.
    #[inline(always)]
    pub(crate) fn find(self, arena: &Arena, granule: u32) -> Option<Handle> {
        self.at_once(granule).or_else(|| around(arena, granule))
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
    if align <= BLOCK_HEADER {
        return Some(bytes);
    }
    // The payload does not follow the header but moves up to the next aligned address, at most `align` on. One without a byte must
    // not start in the next block either: its address tells which is its own.
    let bytes = if bytes == 0 { 1 } else { bytes };
    bytes.checked_add(align - BLOCK_HEADER)
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
    usize::from(class) < class::COUNT && unit::slab_of(arena, granule, class.into()).is_some()
}

/// The block that `granule` lies in, by what its unit says; `None` if it lies in none.
#[cold]
#[inline(never)]
pub(crate) fn around(arena: &Arena, granule: u32) -> Option<Handle> {
    arena.block(granule)?;
    let (head, what) = unit::head_of(arena, arena.unit_of(granule))?;
    let first = arena.granule_of(head);
    match what.kind() {
        unit::RUN => Some(Handle::new(class::RUN, first)),
        unit::SLAB => {
            let class = unit::class_of(what);
            (class < class::COUNT).then_some(())?;
            let start = (granule - first) / class::granules(class) * class::granules(class);
            class::starts_at(class, start).then(|| Handle::new(class::index(class), first + start))
        }
        _ => None,
    }
}

/// Bytes of the large block at `granule`, if one starts there.
pub(crate) fn run_bytes(arena: &Arena, granule: u32) -> Option<u64> {
    arena.block(granule)?;
    let head = arena.unit_of(granule);
    let (first, what) = unit::head_of(arena, head)?;
    let is_run = what.kind() == unit::RUN && first == head && granule == arena.granule_of(head);
    is_run.then(|| unit::span_of(what) * UNIT)
}

/// Bytes of a block of a size class, header included.
pub(crate) const fn small_bytes(class: u8) -> u64 {
    class::granules(class as usize) as u64 * GRANULE
}

/// Bytes of a block of `class` at `granule`, header included.
#[inline]
pub(crate) fn bytes(arena: &Arena, granule: u32, class: u8) -> Option<u64> {
    if usize::from(class) < class::COUNT { Some(small_bytes(class)) } else { run_bytes(arena, granule) }
}

/// Moves `block` from one state to another if it still is in it.
pub(crate) fn change(block: &BlockHeader, from: Word, to: Word) -> bool {
    block.state.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Leaves a free block that no magazine has room for where `reclaim::collect_loose` finds it. Nothing can fail here.
pub(crate) fn loosen(arena: &Arena, block: &BlockHeader) {
    block.state.store(Word::number(state::LOOSE, 0).0, Ordering::Release);
    // SYNC(loose): Release, after the block's word; a read-modify-write, so that who reads a later number has this one's, too.
    arena.header().loosened.fetch_add(1, Ordering::Release);
}

/// Whether a block in a channel's window says what such a block may say.
#[inline(always)]
pub(crate) fn is_sendable(block: &BlockHeader) -> bool {
    Word(block.state.load(Ordering::Relaxed)).kind() >= state::SENDABLE
}

/// The state that says "being taken from an idle cache by this process".
pub(crate) const fn stolen(by: Owner) -> Word {
    Word::of(state::STOLEN, by)
}

/// The state that says "held by this process".
#[inline(always)]
pub(crate) const fn owned(by: Owner) -> Word {
    Word::of(state::OWNED, by)
}
