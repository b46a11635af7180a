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
//! 1. Everything in this folder that lives in the segment is made of atomics only; a shared reference to it is sound while
//!    other processes write.
//! 2. Each type is valid when zeroed.
//! 3. Nothing here has a destructor or padding that is read.

pub(crate) mod class;
mod geometry;
mod handle;
mod rows;
mod tables;
mod units;
mod words;

pub(crate) use class::{LISTS, POOL};
pub(crate) use geometry::{Geometry, HINT_BLOCK_BYTES};
pub(crate) use handle::Handle;
pub(crate) use rows::{MAX_VALUE_BYTES, Shape};
pub(crate) use tables::{
    BlockHeader, ContextSlot, DirectoryEntry, HELD_BY, Header, LEFT, Magazine, ProcessSlot, Shared, SpscHeader, entry,
    flag, process, revoked,
};
pub(crate) use units::{
    BLOCK_HEADER, CHANNELS, CONTEXTS, FORMAT_VERSION, GRANULE, HINT_BLOCK, INDEX_CELLS, MAGAZINE_ENTRIES,
    MAGAZINES_PER_PAGE, MAGIC, MAX_CAPACITY, MIN_CAPACITY, PAGE, PROCESSES, UNIT, UNIT_GRANULES,
};
pub(crate) use words::{Owner, Word};
