//! The bytes of a segment: what lies where, and what every shared word may hold.
//!
//! All zeroes is a valid, empty segment for every table, so creating one costs the same for 1 MiB and for 64 GiB. Offsets
//! follow from the number of data units alone ([`Geometry`]), so a file's size and its header must agree.
//!
//! # Layout
//! ```text
//! 0        Header            one page; the magic is stored last
//! 4096     processes         512 x 64 B     who holds a lease
//! 36 KiB   contexts          2048 x 128 B   whose caches are whose
//! 292 KiB  directory index   32768 x 4 B    hash of a channel id -> entry, a hint
//! 420 KiB  hint roots        46 lists       which blocks of 4096 magazines to look into
//! ......   directory         16384 x 256 B  channels             } backed page by page,
//! ......   unit table        units x 8 B    what each unit is    } as their frontier
//! ......   magazine hints    24 KiB per 4096 magazines           } in the header moves
//! ......   magazines         5 per unit and 4096 more, 1 KiB     }
//! 64 KiB-  data              units x 64 KiB                      } backed when claimed
//! aligned
//! ```
//!
//! # Ownership
//! Every word that says "taken" also says by whom: see [`Owner`] and [`Word`].
//!
//! # Invariants
//! 1. Everything in this file that lives in the segment is made of atomics only; a shared reference to it is sound while
//!    other processes write.
//! 2. Each type is valid when zeroed.
//! 3. Nothing here has a destructor or padding that is read.

use crate::heap::class;
use crate::queue::value::Shape;
use crate::sync::{AtomicU32, AtomicU64};

/// The unit of addressing: every block starts on a granule and is a whole number of them.
pub(crate) const GRANULE: u64 = 64;
/// The unit in which the heap hands memory to size classes and large records.
pub(crate) const UNIT: u64 = 64 << 10;
/// Granules in a unit.
pub(crate) const UNIT_GRANULES: u32 = 1024;
/// Memory is backed in steps of a page.
pub(crate) const PAGE: u64 = 4096;

/// "ipcbuf" and the byte order.
pub(crate) const MAGIC: u64 = 0x0001_6675_6263_7069;
/// Raised with every change of meaning of any shared byte.
pub(crate) const FORMAT_VERSION: u64 = 2;

pub(crate) const PROCESSES: u32 = 512;
pub(crate) const CONTEXTS: u32 = 2048;
pub(crate) const CHANNELS: u32 = 16384;
pub(crate) const INDEX_CELLS: u32 = 2 * CHANNELS;

/// Entries in a magazine.
pub(crate) const MAGAZINE_ENTRIES: u32 = 252;
/// Magazines that are backed together.
pub(crate) const MAGAZINES_PER_PAGE: u32 = 4;
/// Magazines under one root of the hint tree: 64 words of 64 bits.
pub(crate) const HINT_BLOCK: u32 = 4096;
/// Hint lists: one a size class, and the pool of empty magazines.
pub(crate) const LISTS: usize = class::COUNT + 1;
/// The list of empty magazines.
pub(crate) const POOL: usize = class::COUNT;
const MAGAZINES_PER_UNIT: u64 = 5;
const MAGAZINES_SPARE: u64 = 4096;

/// Smallest capacity: four units.
pub(crate) const MIN_CAPACITY: u64 = 4 * UNIT;
/// Largest capacity: granule indices are 32 bits wide and the tables need their share.
pub(crate) const MAX_CAPACITY: u64 = 224 << 30;

const MAX_UNITS: u32 = 224 << 14;

/// Who: a slot of a table and the generation of its use. 16 + 40 bits, so that 8 remain to say what it owns.
///
/// ```text
/// 55      40 39                                0
/// [ index  ][ epoch, counts the uses of the slot ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner(u64);

impl Owner {
    const BITS: u32 = 56;
    const EPOCH: u64 = (1 << 40) - 1;

    pub(crate) const fn new(index: u32, epoch: u64) -> Self {
        Self(((index as u64) & 0xffff) << 40 | (epoch & Self::EPOCH))
    }

    pub(crate) const fn index(self) -> u32 {
        ((self.0 >> 40) & 0xffff) as u32
    }

    pub(crate) const fn epoch(self) -> u64 {
        self.0 & Self::EPOCH
    }
}

/// A tagged word: 8 bits say what, 56 bits say whose, or how much.
///
/// ```text
/// 63   60 59    56 55                            0
/// [ kind ][ flags ][ Owner, or a number            ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn of(kind: u64, owner: Owner) -> Self {
        Self(kind << 60 | owner.0)
    }

    pub(crate) const fn number(kind: u64, number: u64) -> Self {
        Self(kind << 60 | (number & ((1 << Owner::BITS) - 1)))
    }

    pub(crate) const fn kind(self) -> u64 {
        self.0 >> 60
    }

    pub(crate) const fn owner(self) -> Owner {
        Owner(self.0 & ((1 << Owner::BITS) - 1))
    }

    pub(crate) const fn value(self) -> u64 {
        self.0 & ((1 << Owner::BITS) - 1)
    }
}

/// The first page. Words that different parties write often lie on lines of their own.
#[repr(C)]
pub(crate) struct Header {
    /// [`MAGIC`] when the segment is complete; stored last, with Release (`SYNC(ready)`).
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
    /// The process's waiter sleeps on this, for all futures; see `wait` and `waiter`. Counts the wake-ups of every user of the slot.
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

/// Bytes between the start of a block and a payload of alignment up to 16.
pub(crate) const BLOCK_HEADER: u64 = 16;

/// One cache line pair, so that adjacent-line prefetchers don't couple what we keep apart.
pub(crate) const LINE_PAIR: u64 = 128;

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
    assert!(Geometry::for_units(MAX_UNITS).total <= GRANULE << 32 && MAX_UNITS as u64 * UNIT == MAX_CAPACITY);
    assert!(PROCESSES <= 1 << 16 && CONTEXTS <= 1 << 16 && CHANNELS <= 1 << 16);
};

/// Where the tables of a segment with so many data units lie. All offsets in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) units: u32,
    pub(crate) magazines: u32,
    pub(crate) hint_roots: u64,
    /// Words in one list's root.
    pub(crate) root_words: u32,
    pub(crate) directory: u64,
    pub(crate) unit_table: u64,
    pub(crate) hints: u64,
    pub(crate) magazine_table: u64,
    pub(crate) data: u64,
    pub(crate) total: u64,
}

const PROCESS_TABLE: u64 = 4096;
const CONTEXT_TABLE: u64 = PROCESS_TABLE + PROCESSES as u64 * 64;
const INDEX: u64 = CONTEXT_TABLE + CONTEXTS as u64 * 128;
const HINT_ROOTS: u64 = INDEX + INDEX_CELLS as u64 * 4;

/// Bytes of one block of the hint tree: per list 64 leaf words, then one summary word per list.
pub(crate) const HINT_BLOCK_BYTES: u64 = (LISTS as u64 * 65 * 8).next_multiple_of(PAGE);

impl Geometry {
    pub(crate) const PROCESS_TABLE: u64 = PROCESS_TABLE;
    pub(crate) const CONTEXT_TABLE: u64 = CONTEXT_TABLE;
    pub(crate) const INDEX: u64 = INDEX;

    #[allow(clippy::cast_possible_truncation)] // 224 GiB of units keep every product below 2^32
    pub(crate) const fn for_units(units: u32) -> Self {
        let magazines = (units as u64 * MAGAZINES_PER_UNIT + MAGAZINES_SPARE).next_multiple_of(HINT_BLOCK as u64);
        let hint_blocks = magazines / HINT_BLOCK as u64;
        let root_words = hint_blocks.div_ceil(64);
        let directory = (HINT_ROOTS + LISTS as u64 * root_words * 8).next_multiple_of(PAGE);
        let unit_table = directory + CHANNELS as u64 * 256;
        let hints = (unit_table + units as u64 * 8).next_multiple_of(PAGE);
        let magazine_table = hints + hint_blocks * HINT_BLOCK_BYTES;
        let data = (magazine_table + magazines * size_of::<Magazine>() as u64).next_multiple_of(UNIT);
        Self {
            units,
            magazines: magazines as u32,
            hint_roots: HINT_ROOTS,
            root_words: root_words as u32,
            directory,
            unit_table,
            hints,
            magazine_table,
            data,
            total: data + units as u64 * UNIT,
        }
    }

    /// The one geometry whose segment has this size, if there is one: the inverse of `for_units(..).total`, which grows
    /// strictly with the number of units.
    pub(crate) fn for_total(total: u64) -> Option<Self> {
        let mut low = u32::try_from(MIN_CAPACITY / UNIT).ok()?;
        let mut high = MAX_UNITS;
        while low < high {
            let middle = low.midpoint(high);
            if Self::for_units(middle).total < total {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(Self::for_units(low)).filter(|g| g.total == total)
    }

    /// What is backed at creation: the header and the fixed tables, whatever the capacity.
    pub(crate) const fn fixed(&self) -> u64 {
        self.directory
    }

    /// Stands for every size and offset that the code relies on, so that two builds that disagree never share a segment.
    pub(crate) fn layout_hash() -> u64 {
        let sample = Self::for_units(1 << 14);
        let facts = [
            GRANULE,
            UNIT,
            PROCESSES.into(),
            CONTEXTS.into(),
            CHANNELS.into(),
            MAGAZINE_ENTRIES.into(),
            LISTS as u64,
            HINT_BLOCK_BYTES,
            sample.directory,
            sample.unit_table,
            sample.hints,
            sample.magazine_table,
            sample.data,
            size_of::<SpscHeader>() as u64,
            std::mem::offset_of!(ContextSlot, stolen) as u64,
            std::mem::offset_of!(Header, units_freed) as u64,
            std::mem::offset_of!(Header, magazine_limit) as u64,
            std::mem::offset_of!(Recent, searched) as u64,
            Shape::of(8).ring_words(1024),
            u64::from(class::granules(class::COUNT - 1)),
        ];
        facts
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, fact| (hash ^ fact).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_names_one_geometry_or_none() {
        for units in [4, 5, 16, 1000, 16384, 1 << 20] {
            let geometry = Geometry::for_units(units);
            assert_eq!(Geometry::for_total(geometry.total), Some(geometry));
            assert_eq!(Geometry::for_total(geometry.total + 1), None);
            assert_eq!(Geometry::for_total(geometry.total - 4096), None);
        }
        assert_eq!(Geometry::for_total(0), None);
        assert_eq!(Geometry::for_total(u64::MAX), None);
        assert!(Geometry::for_units(16384).fixed() < 512 << 10);
    }

    #[test]
    fn words_keep_kind_and_owner_apart() {
        let owner = Owner::new(511, (1 << 40) - 1);
        let word = Word::of(15, owner);
        assert_eq!((word.kind(), word.owner().index(), word.owner().epoch()), (15, 511, (1 << 40) - 1));
        assert_eq!(Owner::new(1, 1 << 40).epoch(), 0, "an epoch wraps inside its own bits");
    }
}
