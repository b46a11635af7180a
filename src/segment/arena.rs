//! The bytes-to-types door: a mapped (or private) range laid out by [`Geometry`], read through checked offsets.
//!
//! Promises: nothing outside the range is ever touched, whatever an index read from shared memory says; a page is backed
//! before it is first touched. Refuses: to know what the words mean.
//!
//! # Invariants
//! 1. `base .. base + geometry.total` is mapped readable and writable, page-aligned, for as long as the arena is used;
//!    who owns the mapping keeps it so (`Attachment`, or the test that made a private one).
//! 2. References are formed only to [`Shared`] types, which are atomics throughout.

#![allow(unsafe_code)]
// The crate is for 64-bit targets (lib.rs), and every offset is below 2^38.
#![allow(clippy::cast_possible_truncation)]

use crate::format::class;
use crate::format::{
    BLOCK_HEADER, BlockHeader, CHANNELS, CONTEXTS, ContextSlot, DirectoryEntry, GRANULE, Geometry, HINT_BLOCK,
    HINT_BLOCK_BYTES, Handle, Header, INDEX_CELLS, LISTS, Magazine, PAGE, PROCESSES, ProcessSlot, Shared, SpscHeader,
    UNIT, UNIT_GRANULES,
};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::memory::{self, NotBacked};
use crate::sys::prefetch;
use crate::sys::shm::Number;
use std::ptr::NonNull;

/// How often this thread has looked into a table of a segment, or at a block: for tests that show what a walk costs. Nothing at all
/// elsewhere.
pub(crate) mod looks {
    #[cfg(test)]
    thread_local! {
        static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[inline(always)]
    pub(super) fn at_one() {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
    }

    #[cfg(test)]
    pub(crate) fn count() -> u64 {
        LOOKS.get()
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
#[repr(C)] // what the fast paths need comes first
pub(crate) struct Arena {
    base: NonNull<u8>,
    /// Where blocks start, in granules.
    first: u32,
    /// One past the last granule.
    end: u32,
    /// As far as a block of any size may start.
    whole: Reach,
    /// The segment file; none over private memory, which needs no backing.
    file: Option<Number>,
    geometry: Geometry,
}

/// Where an arena is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Where the payload of a block in the first granule would follow the header, were there a block.
    payloads: usize,
    granules: u64,
}

impl Extent {
    /// Where there is no arena.
    pub(crate) const NONE: Self = Self { payloads: 0, granules: 0 };

    pub(crate) const fn start(self) -> usize {
        self.payloads.wrapping_sub(BLOCK_HEADER as usize)
    }

    /// The granule that `address` lies in, if that is one of the arena's.
    #[inline(always)]
    pub(crate) const fn granule(self, address: usize) -> Option<u32> {
        self.number(address.wrapping_sub(self.start()) as u64 / GRANULE)
    }

    /// The block of `class` whose payload is at `address`, right behind the header at a granule's start, if that granule is one of
    /// the arena's: one comparison.
    #[inline(always)]
    pub(crate) const fn block(self, class: u8, address: usize) -> Option<Handle> {
        let offset = address.wrapping_sub(self.payloads) as u64;
        // An address elsewhere in a granule makes a number that is far too large.
        if offset.rotate_right(GRANULE.ilog2()) < self.granules { Some(Handle::at(class, offset)) } else { None }
    }

    #[inline(always)]
    const fn number(self, granule: u64) -> Option<u32> {
        if granule >= self.granules {
            return None;
        }
        // SAFETY: `granules` was a `u32`.
        unsafe { std::hint::assert_unchecked(granule < 1 << 32) };
        Some(granule as u32)
    }
}

/// At how many granules from the first of the data on a block of some class may start. Made by [`Arena::reach`] only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach(u32);

impl Reach {
    /// Where there is no arena.
    pub(crate) const NONE: Self = Self(0);
}

/// Where a block starts in this process: aligned to a granule, and at least a header inside the data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(NonNull<u8>);

impl Start {
    #[inline(always)]
    pub(crate) fn header<'a>(self) -> &'a BlockHeader {
        // SAFETY: in the data and aligned, as the type promises; atomics only and valid in every bit pattern (`Shared`).
        unsafe { self.0.cast().as_ref() }
    }

    /// Address of the byte `offset` bytes behind the start. The caller knows that the block goes that far.
    #[inline(always)]
    pub(crate) fn payload(self, offset: u64) -> NonNull<u8> {
        // SAFETY: inside the block, by the caller, which is inside the mapping.
        unsafe { self.0.add(offset as usize) }
    }
}

// SAFETY: an arena is an address and some integers; what it leads to are atomics (invariant 2).
unsafe impl Send for Arena {}
// SAFETY: as above; no method changes the arena itself.
unsafe impl Sync for Arena {}

impl Arena {
    /// # Safety
    /// `base` keeps invariant 1 for as long as this arena and its copies are used; what is mapped there is `file`, if there is one.
    pub(crate) unsafe fn new(base: NonNull<u8>, geometry: Geometry, file: Option<Number>) -> Self {
        let granule = |bytes: u64| u32::try_from(bytes / GRANULE).unwrap_or(u32::MAX);
        let (first, end) = (granule(geometry.data), granule(geometry.total));
        Self { base, first, end, whole: Reach(end - first), file, geometry }
    }

    #[inline(always)]
    pub(crate) fn extent(&self) -> Extent {
        Extent { payloads: self.base.addr().get() + BLOCK_HEADER as usize, granules: u64::from(self.end) }
    }

    pub(crate) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// # Safety
    /// `offset` is aligned for `T` and `offset + size_of::<T>()` is at most `geometry.total`.
    #[inline(always)]
    unsafe fn at<'a, T: Shared>(&self, offset: u64) -> &'a T {
        // SAFETY: in range by the caller; usize is 64 bits wide where a 224 GiB buffer can be mapped at all.
        let pointer = unsafe { self.base.add(offset as usize) };
        // SAFETY: mapped (invariant 1), aligned (caller), atomics only and valid in every bit pattern (`Shared`).
        unsafe { pointer.cast::<T>().as_ref() }
    }

    fn table<'a, T: Shared>(&self, table: u64, index: u32, len: u32) -> Option<&'a T> {
        looks::at_one();
        // SAFETY: `index < len`, and every table given here has `len` entries inside the geometry, aligned to its entries.
        (index < len).then(|| unsafe { self.at(table + u64::from(index) * size_of::<T>() as u64) })
    }

    #[inline(always)]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the header is the first page of every geometry.
        unsafe { self.at(0) }
    }

    pub(crate) fn process<'a>(&self, index: u32) -> Option<&'a ProcessSlot> {
        self.table(Geometry::PROCESS_TABLE, index, PROCESSES)
    }

    pub(crate) fn context<'a>(&self, index: u32) -> Option<&'a ContextSlot> {
        self.table(Geometry::CONTEXT_TABLE, index, CONTEXTS)
    }

    pub(crate) fn index_cell(&self, index: u32) -> Option<&AtomicU32> {
        self.table(Geometry::INDEX, index, INDEX_CELLS)
    }

    /// How many directory entries may be used. Like the other frontiers, never beyond the table, whatever the header says.
    pub(crate) fn directory_top(&self) -> u32 {
        // SYNC(frontier), as for the others.
        self.header().directory_top.load(Ordering::Acquire).min(CHANNELS)
    }

    /// How many context slots have ever been in use.
    pub(crate) fn context_top(&self) -> u32 {
        self.header().context_top.load(Ordering::Acquire).min(CONTEXTS)
    }

    /// How many units have a word in the table.
    #[inline(always)]
    pub(crate) fn unit_top(&self) -> u32 {
        self.header().unit_top.load(Ordering::Acquire).min(self.geometry.units)
    }

    /// How many magazines may be used.
    pub(crate) fn magazine_top(&self) -> u32 {
        self.header().magazine_top.load(Ordering::Acquire).min(self.geometry.magazines)
    }

    /// An entry below the directory's frontier.
    pub(crate) fn directory_entry(&self, index: u32) -> Option<&DirectoryEntry> {
        self.table(self.geometry.directory, index, self.directory_top())
    }

    /// The word of the unit that `granule` of the data lies in.
    #[inline(always)]
    pub(crate) fn unit_around(&self, granule: u32) -> Option<&AtomicU64> {
        let index = self.unit_of(granule);
        debug_assert!(index < self.geometry.units);
        let is_backed = index < self.header().unit_top.load(Ordering::Acquire);
        // SAFETY: a granule of the data lies in a unit of the geometry, whose table has a word for each.
        is_backed.then(|| unsafe { self.at(self.geometry.unit_table + u64::from(index) * 8) })
    }

    /// The word of a unit below the frontier.
    #[inline(always)]
    pub(crate) fn unit(&self, index: u32) -> Option<&AtomicU64> {
        self.table(self.geometry.unit_table, index, self.unit_top())
    }

    /// A magazine below the frontier.
    pub(crate) fn magazine(&self, index: u32) -> Option<&Magazine> {
        self.table(self.geometry.magazine_table, index, self.magazine_top())
    }

    /// Word `word` of the root of hint list `list`.
    pub(crate) fn hint_root(&self, list: usize, word: u32) -> Option<&AtomicU64> {
        let words = self.geometry.root_words;
        let index = u32::try_from(list).ok()?.checked_mul(words)?.checked_add(word)?;
        (word < words && list < LISTS).then_some(())?;
        self.table(self.geometry.hint_roots, index, words * LISTS as u32)
    }

    /// Word `word` of `list` in hint block `block`: words 0 to 63 are leaves, word 64 sums them up.
    pub(crate) fn hint(&self, list: usize, block: u32, word: u32) -> Option<&AtomicU64> {
        looks::at_one();
        let inside = block < self.magazine_top().div_ceil(HINT_BLOCK) && list < LISTS && word <= 64;
        inside.then_some(())?;
        let word = if word < 64 { list * 64 + word as usize } else { LISTS * 64 + list };
        let offset = self.geometry.hints + u64::from(block) * HINT_BLOCK_BYTES + word as u64 * 8;
        // SAFETY: `block` is a block of the geometry and `word` lies inside it: LISTS * 65 words.
        Some(unsafe { self.at(offset) })
    }

    /// The start of the block at `granule`, if that lies in the data.
    #[inline(always)]
    pub(crate) fn start(&self, granule: u32) -> Option<Start> {
        self.block_within(granule, self.whole)
    }

    /// The header of the block at `granule`, if that lies in the data. The reference is as good as the arena's mapping: whoever
    /// keeps it keeps what keeps the arena.
    #[inline(always)]
    pub(crate) fn block<'a>(&self, granule: u32) -> Option<&'a BlockHeader> {
        looks::at_one();
        self.start(granule).map(Start::header)
    }

    /// The queue header and the `words` words of all slots in the block at `granule`, if all of it lies in the data. A granule after
    /// the block's header come the queue's header and the slots.
    ///
    /// The references are as good as the arena's mapping: whoever keeps them keeps what keeps the arena.
    pub(crate) fn queue(&self, granule: u32, words: u64) -> Option<(&'static SpscHeader, &'static [AtomicU64])> {
        let offset = u64::from(granule) * GRANULE + GRANULE;
        let end = offset.checked_add(size_of::<SpscHeader>() as u64)?.checked_add(words.checked_mul(8)?)?;
        (granule >= self.first && end <= self.geometry.total).then_some(())?;
        // SAFETY: checked just above; `offset` is a multiple of 64.
        let header: &'static SpscHeader = unsafe { self.at(offset) };
        // SAFETY: the slots follow the header inside the total, and the header's size keeps them aligned.
        let first: &'static AtomicU64 = unsafe { self.at(offset + size_of::<SpscHeader>() as u64) };
        // SAFETY: `words` words from `first` are inside the total; atomics may be shared.
        let words = unsafe { std::slice::from_raw_parts(first, usize::try_from(words).ok()?) };
        Some((header, words))
    }

    /// The unit that `granule` lies in.
    #[inline(always)]
    pub(crate) const fn unit_of(&self, granule: u32) -> u32 {
        (granule - self.first) / UNIT_GRANULES
    }

    /// How far into its unit `granule` lies.
    #[inline(always)]
    pub(crate) const fn granules_into_unit(&self, granule: u32) -> u32 {
        // The data starts on a whole unit.
        granule % UNIT_GRANULES
    }

    /// The first granule of `unit`.
    pub(crate) const fn granule_of(&self, unit: u32) -> u32 {
        self.first + unit * UNIT_GRANULES
    }

    /// Where blocks of `class` may start.
    pub(crate) fn reach(&self, class: usize) -> Reach {
        Reach((self.end - self.first + 1).saturating_sub(class::granules(class)))
    }

    /// The start of the block at `granule`, if a block of the class that `reach` was made for (with this arena) may start
    /// there: one comparison for both ends.
    #[inline(always)]
    pub(crate) fn block_within(&self, granule: u32, reach: Reach) -> Option<Start> {
        let is_inside = granule.wrapping_sub(self.first) < reach.0;
        // SAFETY: within reach, the whole block lies in the data.
        is_inside.then(|| Start(unsafe { self.base.add((u64::from(granule) * GRANULE) as usize) }))
    }

    /// As [`block_within`](Self::block_within), of what a handle says, which may be broken.
    #[inline(always)]
    pub(crate) fn block_of(&self, handle: Handle, reach: Reach) -> Option<Start> {
        let offset = handle.offset();
        let is_inside = (offset / GRANULE).wrapping_sub(self.first.into()) < reach.0.into();
        // SAFETY: within reach, the whole block lies in the data.
        is_inside.then(|| Start(unsafe { self.base.add(offset as usize) }))
    }

    /// Asks the core for the first line of the block at `granule`, for writing. A hint: any number will do.
    #[inline(always)]
    pub(crate) fn prefetch(&self, granule: u32) {
        let offset = u64::from(granule) * GRANULE;
        prefetch::for_writing(self.base.as_ptr().wrapping_add(offset as usize));
    }

    /// Asks the system for the memory behind `offset .. offset + len`, so that touching it can't raise SIGBUS.
    fn back(&self, offset: u64, len: u64) -> Result<(), NotBacked> {
        let Some(file) = self.file else { return Ok(()) };
        let (start, end) = (offset / PAGE * PAGE, (offset + len).next_multiple_of(PAGE));
        debug_assert!(end <= self.geometry.total);
        // SAFETY: inside the total.
        let at = unsafe { self.base.add(start as usize) };
        // SAFETY: the file is mapped there (`new`), and who maps it owns it.
        unsafe { memory::back(at, file, start, end - start) }
    }

    /// Backs the header and the fixed tables.
    pub(crate) fn back_fixed(&self) -> Result<(), NotBacked> {
        self.back(0, self.geometry.fixed())
    }

    fn bytes_of(&self, unit: u32, count: u32) -> (u64, u64) {
        (self.geometry.data + u64::from(unit) * UNIT, u64::from(count) * UNIT)
    }

    /// Backs `count` units from `unit` on, which are the caller's and have no memory. None of it stays if it fails.
    pub(crate) fn back_units(&self, unit: u32, count: u32) -> Result<(), NotBacked> {
        let (offset, len) = self.bytes_of(unit, count);
        self.back(offset, len).inspect_err(|_| {
            self.punch_units(unit, count);
        })
    }

    /// Returns the memory of `count` units from `unit` on to the system; they read as zeroes when backed again. They are the caller's.
    pub(crate) fn punch_units(&self, unit: u32, count: u32) -> bool {
        let (offset, len) = self.bytes_of(unit, count);
        let Some(file) = self.file else { return false };
        // SAFETY: inside the total.
        let at = unsafe { self.base.add(offset as usize) };
        // SAFETY: the file is mapped there (`new`).
        unsafe { memory::punch(at, file, offset, len) }
    }

    /// The first unit from `unit` on that has memory behind it, whatever its word says, as far as that can be told.
    pub(crate) fn next_unit_in_memory(&self, unit: u32) -> Option<u32> {
        let from = self.geometry.data + u64::from(unit) * UNIT;
        let at = memory::next_backed(self.file?, from, self.geometry.total)?;
        u32::try_from((at - self.geometry.data) / UNIT).ok()
    }

    /// Moves a frontier up by one page of its table: backs the page, then raises the frontier. Returns the old frontier, or
    /// `None` if the table is used up; `old` is what the caller saw it to be (SeqCst), and another's step counts as well. Two may do it at
    /// once: both back the same page, one raises. Not beyond where another trims: what it backs there might be gone when it is touched.
    fn grow(&self, growing: Growing<'_>, old: u32, limit: u32) -> Result<Option<u32>, NotBacked> {
        let Growing { top, limit: trimmed_from, table, entry } = growing;
        if old >= limit {
            return Ok(None);
        }
        let new = (old + growing.per_page()).min(limit);
        // SYNC(limit)
        let trimmed_from = trimmed_from.map_or(0, |limit| limit.load(Ordering::SeqCst));
        if trimmed_from != 0 && new > trimmed_from {
            return Err(NotBacked);
        }
        self.back(table + u64::from(old) * entry, u64::from(new - old) * entry)?;
        point!("frontier: backed");
        // SYNC(frontier): Release after the page is backed; readers of the frontier Acquire it before they touch the page.
        let _ = top.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire);
        point!("frontier: raised");
        Ok(Some(old))
    }

    /// Makes more entries of the unit table usable.
    pub(crate) fn grow_units(&self) -> Result<Option<u32>, NotBacked> {
        let growing = self.growing(Table::Units);
        self.grow(growing, growing.top.load(Ordering::SeqCst), self.geometry.units)
    }

    /// Makes more magazines usable, with the hints for them.
    pub(crate) fn grow_magazines(&self) -> Result<Option<u32>, NotBacked> {
        let top = self.header().magazine_top.load(Ordering::SeqCst);
        if top.is_multiple_of(HINT_BLOCK) && top < self.geometry.magazines {
            let block = u64::from(top / HINT_BLOCK);
            self.back(self.geometry.hints + block * HINT_BLOCK_BYTES, HINT_BLOCK_BYTES)?;
        }
        // From the frontier just judged: another's step may have brought it to a block whose hints nobody has backed.
        self.grow(self.growing(Table::Magazines), top, self.geometry.magazines)
    }

    /// Makes more directory entries usable. The caller holds the control lock.
    pub(crate) fn grow_directory(&self) -> Result<Option<u32>, NotBacked> {
        let growing = self.growing(Table::Directory);
        self.grow(growing, growing.top.load(Ordering::Acquire), CHANNELS)
    }

    fn growing(&self, table: Table) -> Growing<'_> {
        let (header, geometry) = (self.header(), &self.geometry);
        let (top, limit, table, entry) = match table {
            Table::Directory => (&header.directory_top, None, geometry.directory, size_of::<DirectoryEntry>()),
            Table::Units => (&header.unit_top, Some(&header.unit_limit), geometry.unit_table, size_of::<AtomicU64>()),
            Table::Hints | Table::Magazines => {
                let table = geometry.magazine_table;
                (&header.magazine_top, Some(&header.magazine_limit), table, size_of::<Magazine>())
            }
        };
        Growing { top, limit, table, entry: entry as u64 }
    }

    /// The bytes that `table` does not use while its frontier is `top`, in whole pages.
    fn unused(&self, table: Table, top: u32) -> (u64, u64) {
        let geometry = &self.geometry;
        let end = match table {
            Table::Directory => geometry.unit_table,
            Table::Units => geometry.hints,
            Table::Hints => geometry.magazine_table,
            Table::Magazines => geometry.data,
        };
        let from = match table {
            Table::Hints => geometry.hints + u64::from(top.div_ceil(HINT_BLOCK)) * HINT_BLOCK_BYTES,
            _ => {
                let Growing { table, entry, .. } = self.growing(table);
                table + u64::from(top) * entry
            }
        };
        (from.next_multiple_of(PAGE).min(end), end)
    }

    /// The first byte from `from` on, beyond the frontier of `table`, that has memory behind it, as far as that can be told.
    pub(crate) fn next_beyond(&self, table: Table, from: u64) -> Option<u64> {
        let growing = self.growing(table);
        let (start, end) = self.unused(table, growing.room(growing.top.load(Ordering::Acquire)));
        memory::next_backed(self.file?, start.max(from), end)
    }

    /// Returns some of the memory behind the pages of `table` that lie beyond its frontier, from the byte `from` on, to the system: where
    /// to go on, and how many bytes. `None` if there is none left. The caller holds the control lock.
    ///
    /// Who raises a frontier takes no lock, and backs its pages first. So this one says how far a frontier may go, which leaves it some
    /// room, and trims what lies behind. Killed meanwhile, it is the next holder of the control lock who [lifts that](Self::lift_limits).
    ///
    /// `SYNC(limit)`: it writes the limit, then reads the frontier again; who raises reads the frontier, then the limit (all SeqCst). Who has
    /// not seen the limit has read a frontier that this one sees, or an earlier one, and goes one page further at most.
    pub(crate) fn trim_beyond(&self, table: Table, from: u64) -> Option<(u64, u64)> {
        let growing = self.growing(table);
        let reach = growing.room(growing.top.load(Ordering::SeqCst));
        if let Some(limit) = growing.limit {
            limit.store(reach, Ordering::SeqCst);
        }
        point!("trim: limited");
        let is_clear =
            growing.limit.is_none() || growing.top.load(Ordering::SeqCst).saturating_add(growing.per_page()) <= reach;
        let trimmed = is_clear.then(|| self.punch_beyond(table, reach, from)).flatten();
        if let Some(limit) = growing.limit {
            limit.store(0, Ordering::Release);
        }
        trimmed
    }

    fn punch_beyond(&self, table: Table, reach: u32, from: u64) -> Option<(u64, u64)> {
        let (start, end) = self.unused(table, reach);
        let file = self.file?;
        let from = memory::next_backed(file, start.max(from), end)? / PAGE * PAGE;
        let to = memory::backed_to(file, from, end);
        // SAFETY: inside the total.
        let at = unsafe { self.base.add(from as usize) };
        // SAFETY: the file is mapped there (`new`). No frontier has come there, nor comes before the caller has lifted the limit.
        let is_done = unsafe { memory::punch(at, file, from, to - from) };
        point!("trim: beyond");
        Some((to, if is_done { to - from } else { 0 }))
    }

    /// What a trimmer that was killed has left. The caller holds the control lock.
    pub(crate) fn lift_limits(&self) {
        self.header().unit_limit.store(0, Ordering::Release);
        self.header().magazine_limit.store(0, Ordering::Release);
    }
}

/// The tables that are backed as their frontiers move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Table {
    Directory,
    Units,
    /// Of the magazines, whose frontier is theirs.
    Hints,
    Magazines,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::Directory, Self::Units, Self::Hints, Self::Magazines];
}

/// How a table grows.
#[derive(Clone, Copy)]
struct Growing<'a> {
    top: &'a AtomicU32,
    /// Where it is trimmed from, if that happens; none if it grows under the control lock.
    limit: Option<&'a AtomicU32>,
    table: u64,
    entry: u64,
}

impl Growing<'_> {
    /// Pages by which a frontier may move while what lies beyond is trimmed.
    const ROOM: u32 = 64;

    fn per_page(self) -> u32 {
        u32::try_from(PAGE / self.entry).unwrap_or(1)
    }

    /// From where on it may be trimmed when the frontier is `top`.
    fn room(self, top: u32) -> u32 {
        if self.limit.is_none() { top } else { top.saturating_add(Self::ROOM * self.per_page()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    #[test]
    fn a_block_that_would_not_fit_starts_nowhere() {
        let geometry = Geometry::for_units(4);
        let layout = Layout::from_size_align(geometry.total as usize, PAGE as usize).unwrap();
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        // SAFETY: mapped as long as the arena is used; no file.
        let arena = unsafe { Arena::new(base, geometry, None) };
        for class in 0..class::COUNT {
            let (reach, granules) = (arena.reach(class), class::granules(class));
            for granule in
                [0, arena.first - 1, arena.first, arena.end - granules.min(arena.end), arena.end - 1, u32::MAX]
            {
                let fits = granule >= arena.first && u64::from(granule) + u64::from(granules) <= u64::from(arena.end);
                assert_eq!(arena.block_within(granule, reach).is_some(), fits, "class {class} at {granule}");
                let handle = Handle::new(class as u8, granule);
                assert_eq!(arena.block_of(handle, reach).is_some(), fits, "class {class} at {granule}");
            }
        }
        // The largest class has one granule more than the four units.
        assert!(arena.block_within(arena.first, arena.reach(class::COUNT - 1)).is_none());
        assert!(arena.block_of(Handle::from_word(u64::MAX), arena.whole).is_none());
        assert!(arena.block_within(arena.first, Reach::NONE).is_none());

        let inside = |granule: u32, bytes: usize| base.addr().get() + (granule as usize * GRANULE as usize) + bytes;
        let extent = arena.extent();
        assert_eq!(extent.block(7, inside(arena.first, 16)), Some(Handle::new(7, arena.first)));
        for elsewhere in
            [inside(arena.first, 0), inside(arena.first, 32), inside(arena.first, 15), inside(arena.end, 16)]
        {
            assert_eq!(extent.block(7, elsewhere), None);
        }
        assert_eq!(extent.granule(inside(arena.first, 63)), Some(arena.first));
        assert_eq!((extent.granule(inside(arena.end, 0)), extent.granule(inside(0, 0) - 1)), (None, None));
        // SAFETY: allocated above, with this layout.
        unsafe { dealloc(base.as_ptr(), layout) };
    }
}
