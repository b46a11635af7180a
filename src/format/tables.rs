//! The tables of a segment, entry by entry.

use super::class::LISTS;
use super::units::{CHANNELS, CONTEXTS, LINE_PAIR, MAGAZINE_ENTRIES, MAGAZINES_PER_PAGE, PAGE, PROCESSES};
use super::words::Word;
use crate::sync::{AtomicU32, AtomicU64};

/// The first page. Words that different parties write often lie on lines of their own.
#[repr(C)]
pub(crate) struct Header {
    /// `MAGIC` when the segment is complete; stored last, with Release (`SYNC(ready)`).
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU64,
    pub(crate) layout_hash: AtomicU64,
    /// Bytes of data units, fixed at creation.
    pub(crate) capacity: AtomicU64,
    /// Told apart from every other segment that ever had this name.
    pub(crate) nonce: AtomicU64,
    /// [`flag`] bits, written under the control lock.
    pub(crate) flags: AtomicU64,
    /// The ready latch (two bytes of a `raw_sync` busy event).
    pub(crate) latch: AtomicU32,
    _pad0: AtomicU32,
    /// Who holds the control lock, 0 when nobody; not 0 on entry means that its last holder died inside.
    pub(crate) control_owner: AtomicU64,
    /// Process id of the holder of the control lock, for messages.
    pub(crate) control_pid: AtomicU64,
    /// Process id of whoever reaps, or did last, for messages.
    pub(crate) reaper_pid: AtomicU64,
    _pad1: [AtomicU64; 6],

    /// Units with a backed table entry: `[0, unit_top)`. Only grows.
    pub(crate) unit_top: AtomicU32,
    /// Magazines that may be used: `[0, magazine_top)`. Only grows.
    pub(crate) magazine_top: AtomicU32,
    /// Directory entries that may be used: `[0, directory_top)`. Only grows.
    pub(crate) directory_top: AtomicU32,
    /// Where to look for free units first; a hint.
    pub(crate) unit_cursor: AtomicU32,
    /// No directory entry below this one is free; a hint, written under the control lock.
    pub(crate) directory_cursor: AtomicU32,
    /// The most units that were ever in use at once; for statistics.
    pub(crate) units_high_water: AtomicU32,
    /// Units in use; for statistics, and counted anew by whoever reaps.
    pub(crate) units_in_use: AtomicU32,
    /// Magazines that the blocks of all slabs fill, and that contexts need; how many are made follows it. Advisory, counted anew by whoever reaps.
    pub(crate) magazines_due: AtomicU32,
    /// Raised whenever units become free, after they did; see `heap::unit`.
    pub(crate) units_freed: AtomicU64,
    /// At which number of `units_freed` no run of how many units was free: a hint, as the next two.
    pub(crate) no_run: AtomicU64,
    /// The same, of runs that are backed.
    pub(crate) no_backed_run: AtomicU64,
    /// At which number of `units_freed` no free unit was backed.
    pub(crate) trimmed: AtomicU64,
    /// Raised whenever a block becomes `LOOSE`, after it did; see `heap::reclaim`, as for the next three.
    pub(crate) loosened: AtomicU64,
    /// The number of `loosened` when such blocks were last collected.
    pub(crate) collected: AtomicU64,
    /// Odd while somebody searches for memory to reclaim, or was killed at it.
    pub(crate) searches: AtomicU64,
    /// Process id of whoever searches, or did last, for messages.
    pub(crate) searcher_pid: AtomicU64,
    /// Context slots that were ever in use: `[0, context_top)`. Only grows.
    pub(crate) context_top: AtomicU32,
    /// As far as `unit_top` may be raised while what lies beyond is trimmed; 0 when it is not. Written under the control lock; see
    /// `Arena::trim_beyond`.
    pub(crate) unit_limit: AtomicU32,
    /// The same for `magazine_top`.
    pub(crate) magazine_limit: AtomicU32,
    _pad2: [AtomicU32; 5],

    /// Raised at every change of a channel's endpoints; waiters for channels and peers sleep on it.
    pub(crate) directory_version: AtomicU32,
    _pad3: [AtomicU32; 31],

    /// Not 0: somebody waits for memory; see `heap::want`.
    pub(crate) memory_wanted: AtomicU32,
    _pad4: [AtomicU32; 15],
    /// Raised when memory that somebody waits for may have come free; those who wait sleep on it.
    pub(crate) memory_version: AtomicU32,
    _pad5: [AtomicU32; 15],

    /// Per hint list, up to two magazines that came last; see `heap::depot`.
    pub(crate) recent: [Recent; LISTS],
    _rest: [AtomicU64; 448 - 8 * LISTS],
}

/// A line of its own for the hottest hint of a list.
#[repr(C)]
pub(crate) struct Recent {
    /// Two halves of index + 1.
    pub(crate) word: AtomicU64,
    /// Magazines taken from the list, ever; for statistics.
    pub(crate) taken: AtomicU64,
    /// Magazines with blocks put there, ever, each counted when it is there.
    pub(crate) put: AtomicU64,
    /// What `put` was when the class was last searched for empty slabs and had none left; a hint.
    pub(crate) searched: AtomicU64,
    _pad: [AtomicU64; 4],
}

/// Bits of [`Header::flags`].
pub(crate) mod flag {
    /// The last process out leaves the segment in place.
    pub(crate) const PERSIST: u64 = 1;
    /// Some process can't be reached by membarrier: nobody's cache may be revoked.
    pub(crate) const FENCED: u64 = 2;
}

/// A process slot. `word`: 0 free, else [`process::ALIVE`] with its own index and epoch.
#[repr(C)]
pub(crate) struct ProcessSlot {
    pub(crate) word: AtomicU64,
    /// Epoch of the last use; the next use takes one more.
    pub(crate) epoch: AtomicU64,
    /// Process id in its own pid namespace, for people.
    pub(crate) pid: AtomicU32,
    /// The process's reactor sleeps on this, for all futures; see `wait` and `process::reactor`. Counts the wake-ups of every user of the slot.
    pub(crate) bed: AtomicU32,
    /// How far reaping this process has come: [`Word::number`] of the pass, and where in it to go on. Written by a reaper that
    /// stops; 0 while it lives.
    pub(crate) reaped_to: AtomicU64,
    /// Who rang this bed, left by those who ring; see `wait`.
    pub(crate) hints: [AtomicU64; 4],
}

/// Kinds of [`ProcessSlot::word`].
pub(crate) mod process {
    pub(crate) const ALIVE: u64 = 1;
}

/// A context slot. `owner`: 0 free, else the process whose thread caches blocks under this slot.
#[repr(C)]
pub(crate) struct ContextSlot {
    pub(crate) owner: AtomicU64,
    /// Epoch of the current or last use.
    pub(crate) epoch: AtomicU64,
    /// 0, or that somebody takes this context's magazines, or has; see `heap::cache`.
    pub(crate) revoked: AtomicU64,
    /// Whether the owner is inside its cache, and the block it freed last; see `heap::cache`.
    pub(crate) gate: AtomicU64,
    /// Kernel id of the thread, for people.
    pub(crate) thread: AtomicU32,
    /// The context's thread sleeps on this; see `wait`. Counts the wake-ups of every user of the slot. On the line of the gate:
    /// who is woken has both to fetch, either way.
    pub(crate) bed: AtomicU32,
    /// Who rang this bed, left by those who ring; see `wait`. They have the line by then.
    pub(crate) hints: [AtomicU64; 3],
    /// The handle of the spare that a revoker is about to take, 0 before it knows; it says which header to mend if it is killed there.
    /// Written by the revoker only. Here a line of its own begins: these are seldom used.
    pub(crate) stolen: AtomicU64,
    /// Thefts that were decided against this slot, ever; written by the revoker, under the control lock.
    pub(crate) thefts: AtomicU64,
    _pad: [AtomicU64; 6],
}

impl ContextSlot {
    /// For a cache that has none: never to be entered.
    pub(crate) const fn revoked_for_good(word: Word) -> Self {
        Self {
            owner: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            revoked: AtomicU64::new(word.0),
            gate: AtomicU64::new(0),
            thread: AtomicU32::new(0),
            bed: AtomicU32::new(0),
            hints: [const { AtomicU64::new(0) }; 3],
            stolen: AtomicU64::new(0),
            thefts: AtomicU64::new(0),
            _pad: [const { AtomicU64::new(0) }; 6],
        }
    }
}

/// Kinds of [`ContextSlot::revoked`]; see `heap::cache`.
pub(crate) mod revoked {
    pub(crate) const TAKING: u64 = 1;
    pub(crate) const TAKEN: u64 = 2;
    pub(crate) const EMPTIED: u64 = 3;
    pub(crate) const VERIFY: u64 = 4;
    pub(crate) const FORGET: u64 = 5;
    pub(crate) const ASKED: u64 = 6;

    /// In the number of a theft that left something where it was; for [`VERIFY`] and [`FORGET`].
    pub(crate) const PARTLY: u64 = 1 << 55;
}

/// Kinds of [`ContextSlot::owner`] and of role cells.
pub(crate) const HELD_BY: u64 = 1;
/// Of role cells alone: given up by the process that still rings the channel's bells; see `directory`.
pub(crate) const LEFT: u64 = 2;

/// A channel's directory entry. Written under the control lock, except the role cells, which their holder clears, and `state` and
/// `storage` by the process that `state` names as `BUSY`.
#[repr(C)]
pub(crate) struct DirectoryEntry {
    /// [`entry`] kind with the generation of the entry, or with the process at work on it.
    pub(crate) state: AtomicU64,
    /// Uses of this entry.
    pub(crate) generation: AtomicU64,
    /// The channel id, two's complement.
    pub(crate) id: AtomicU64,
    /// Granule of the block that holds the queue.
    pub(crate) storage: AtomicU32,
    /// log2 of the number of slots.
    pub(crate) capacity_log2: AtomicU32,
    /// [`entry`] option bits.
    pub(crate) options: AtomicU32,
    /// Bit 0: had a producer; bit 1: had a consumer.
    pub(crate) seen: AtomicU32,
    pub(crate) element_size: AtomicU64,
    pub(crate) element_align: AtomicU32,
    /// Bytes of `tag` in use.
    pub(crate) tag_len: AtomicU32,
    /// Role cells: 0, or [`HELD_BY`] with the process that holds the role, or [`LEFT`] with the one on its way out.
    pub(crate) producer: AtomicU64,
    pub(crate) consumer: AtomicU64,
    /// Kernel ids of the threads that attached, for messages.
    pub(crate) producer_thread: AtomicU32,
    pub(crate) consumer_thread: AtomicU32,
    /// The type's tag, UTF-8, eight bytes a word.
    pub(crate) tag: [AtomicU64; 16],
    /// Of a removed channel that nobody is in: what is queued before this position bears nobody's name; see `directory::freeze`.
    pub(crate) frozen: AtomicU64,
    _pad: [AtomicU64; 5],
}

/// Kinds of [`DirectoryEntry::state`], and its option bits.
pub(crate) mod entry {
    /// Being made or taken apart by the process it names.
    pub(crate) const BUSY: u64 = 1;
    /// In use and found by its id.
    pub(crate) const LIVE: u64 = 2;
    /// In use by those attached; the id no longer leads here.
    pub(crate) const REMOVED: u64 = 3;

    /// Elements are slices of the element type.
    pub(crate) const SLICE: u32 = 1;
    /// Stays, with what is queued, when the last endpoint leaves.
    pub(crate) const PERSISTENT: u32 = 2;
    /// Elements travel in the slots.
    pub(crate) const VALUES: u32 = 4;
}

/// An array of free blocks of one size class; see `heap::depot`.
#[repr(C)]
pub(crate) struct Magazine {
    /// `heap::depot` kind: in the pool (0), in a depot, or held by a context.
    pub(crate) holder: AtomicU64,
    _pad: AtomicU64,
    /// Granules of free blocks, up to the first 0; written by the holder only.
    pub(crate) entries: [AtomicU32; MAGAZINE_ENTRIES as usize],
}

/// What lies at the start of every block; see `heap::block`.
#[repr(C)]
pub(crate) struct BlockHeader {
    pub(crate) state: AtomicU64,
    pub(crate) meta: AtomicU64,
}

/// The fixed part of an SPSC queue; the slots, or rows, follow at once. See `queue::spsc`.
#[repr(C)]
pub(crate) struct SpscHeader {
    /// Position of the next message to receive; written by the consumer only.
    pub(crate) head: AtomicU64,
    _pad0: [AtomicU64; 15],
    /// The bell (see `wait`) that the producer looks at on every send, 0 in steady state: the consumer's.
    pub(crate) to_producer: AtomicU32,
    /// The bell that the consumer looks at on every receive, 0 in steady state: the producer's.
    pub(crate) to_consumer: AtomicU32,
    _pad1: [AtomicU64; 7],
    /// Where the last batch begins that a producer has begun. Written by the producer only, on a line that nobody else needs.
    pub(crate) batch: AtomicU64,
    _pad2: [AtomicU64; 7],
}

/// Marks the types above.
///
/// # Safety
/// The implementor keeps invariants 1 to 3 of this module.
#[allow(unsafe_code)]
pub(crate) unsafe trait Shared {}

macro_rules! shared {
    ($($t:ty: $size:expr),* $(,)?) => { $(
        // SAFETY: made of atomics only (invariants 1 to 3), as the definitions above show.
        #[allow(unsafe_code)]
        unsafe impl Shared for $t {}
        const _: () = assert!(size_of::<$t>() == $size);
    )* };
}
shared! {
    Header: 4096, ProcessSlot: 64, ContextSlot: 128, DirectoryEntry: 256, Magazine: 1024, BlockHeader: 16,
    SpscHeader: 256, AtomicU32: 4, AtomicU64: 8,
}
const _: () = {
    assert!(MAGAZINES_PER_PAGE as u64 * size_of::<Magazine>() as u64 == PAGE);
    assert!(std::mem::offset_of!(Header, unit_top) == 128);
    assert!(std::mem::offset_of!(Header, directory_version) == 256);
    assert!(std::mem::offset_of!(Header, recent) == 512);
    assert!(std::mem::offset_of!(DirectoryEntry, tag) == 80);
    assert!(std::mem::offset_of!(SpscHeader, to_producer) as u64 == LINE_PAIR);
    assert!(std::mem::offset_of!(SpscHeader, batch) == 192);
    assert!(PROCESSES <= 1 << 16 && CONTEXTS <= 1 << 16 && CHANNELS <= 1 << 16);
};
