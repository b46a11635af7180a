//! Units of memory, and how large the tables are.

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
pub(super) const MAGAZINES_PER_UNIT: u64 = 5;
pub(super) const MAGAZINES_SPARE: u64 = 4096;

/// Smallest capacity: four units.
pub(crate) const MIN_CAPACITY: u64 = 4 * UNIT;
/// Largest capacity: granule indices are 32 bits wide and the tables need their share.
pub(crate) const MAX_CAPACITY: u64 = 224 << 30;

pub(super) const MAX_UNITS: u32 = 224 << 14;

/// Bytes between the start of a block and a payload of alignment up to 16.
pub(crate) const BLOCK_HEADER: u64 = 16;

/// One cache line pair, so that adjacent-line prefetchers don't couple what we keep apart.
pub(crate) const LINE_PAIR: u64 = 128;
