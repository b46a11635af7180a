//! Allocation and freeing of blocks, from the fast path down to units.

use crate::format::{BLOCK_HEADER, Handle, Owner, UNIT, Word, class};
use crate::heap::block::{self, Block, Meta};
use crate::heap::cache::Cache;
use crate::heap::depot;
use crate::heap::unit::{self, NoUnits};
use crate::segment::arena::Arena;
use crate::sync::Ordering;
use crate::sys::crash::point;

/// A block with `bytes` behind its header, if one is free in a slab, and its class (often known to the compiler).
#[inline(always)]
pub(crate) fn alloc_fast(cache: &Cache, bytes: u64) -> Option<(u8, Block)> {
    let class = class::for_bytes(bytes)?;
    Some((class::index(class), cache.pop_fast(class)?))
}

/// Allocates a block with `bytes` behind its header, from units if need be. The error says what is in the way; the caller
/// may make room and ask again.
pub(crate) fn alloc(cache: &Cache, bytes: u64) -> Result<Block, NoUnits> {
    match class::for_bytes(bytes) {
        Some(class) => match cache.pop(class) {
            Some(block) => Ok(block),
            None => carve(cache, class),
        },
        None => run(cache, bytes),
    }
}

/// Makes a slab of `class` and takes a block of it.
#[cold]
#[inline(never)]
fn carve(cache: &Cache, class: usize) -> Result<Block, NoUnits> {
    let (arena, me) = (cache.arena(), cache.me());
    let span = class::span(class);
    let head = unit::claim(arena, me, span)?;
    point!("carve: claimed");
    // Here, not in a free: frees must not ask the system for anything. Made for this slab whatever the pool has, because what
    // is there now is where the blocks handed out already will go.
    depot::provide(arena, depot::magazines_for(arena.geometry(), class));
    point!("carve: provided");
    fill_slab(cache, head, class);
    cache.pop(class).ok_or(NoUnits::Full)
}

/// Makes a slab of `class` of the claimed run at `head`, all of it free.
pub(crate) fn fill_slab(cache: &Cache, head: u32, class: usize) {
    let (arena, me) = (cache.arena(), cache.me());
    let first = arena.granule_of(head);
    let granule = |i: u32| first + i * class::granules(class);
    // Every block starts as ours; then the slab is announced; then we free them like any others. Killed before the
    // announcement, a claimed run is left; after it, blocks that the header scan frees.
    for i in 0..class::blocks(class) {
        if let Some(block) = arena.block(granule(i)) {
            block.meta.store(Meta { class: class::index(class), offset: 16, count: 0 }.pack(), Ordering::Relaxed);
            block.state.store(block::owned(me).0, Ordering::Relaxed);
        }
        point!("carve: header");
    }
    unit::publish(arena, head, unit::slab_word(class, class::span(class)));
    point!("carve: published");
    for i in (0..class::blocks(class)).rev() {
        depot::grow_if_empty(arena);
        free_found(cache, Handle::new(class::index(class), granule(i)));
        point!("carve: pushed");
    }
    depot::grow_if_empty(arena);
}

/// Units of a run with `bytes` behind its header.
pub(crate) const fn run_span(bytes: u64) -> u64 {
    bytes.saturating_add(BLOCK_HEADER).div_ceil(UNIT)
}

/// Allocates whole units.
#[cold]
#[inline(never)]
pub(crate) fn run(cache: &Cache, bytes: u64) -> Result<Block, NoUnits> {
    let (arena, me) = (cache.arena(), cache.me());
    let span = u32::try_from(run_span(bytes)).map_err(|_| NoUnits::Full)?;
    let head = unit::claim(arena, me, span)?;
    point!("run: claimed");
    let granule = arena.granule_of(head);
    let Some(start) = arena.start(granule) else { return Err(NoUnits::Full) };
    let header = start.header();
    header.meta.store(Meta { class: class::RUN, offset: 16, count: 0 }.pack(), Ordering::Relaxed);
    header.state.store(block::owned(me).0, Ordering::Relaxed);
    point!("run: header");
    unit::publish(arena, head, unit::run_word(span));
    point!("run: published");
    cache.count(1);
    Ok(Block { handle: Handle::new(class::RUN, granule), start })
}

/// Classes up to a block of twice the size.
const NEAR: usize = 4;

/// A free block of a class that is not much larger, when the right one has none and no slab can be made.
pub(crate) fn alloc_near(cache: &Cache, bytes: u64) -> Option<Block> {
    let class = class::for_bytes(bytes)?;
    (class + 1..class::COUNT).take(NEAR).find_map(|class| cache.pop(class))
}

/// A free block of any larger class, or whole units, when there is nothing better.
pub(crate) fn alloc_larger(cache: &Cache, bytes: u64) -> Option<Block> {
    let class = class::for_bytes(bytes)?;
    let larger = (class + 1..class::COUNT).find_map(|class| cache.pop(class));
    larger.or_else(|| run(cache, bytes).ok())
}

/// Frees the block of a record of this process, whose end this is.
#[inline(always)]
pub(crate) fn free(cache: &Cache, handle: Handle) {
    if handle.is_run() {
        cache.count(-1);
        free_run(cache.arena(), cache.me(), handle.granule());
    } else {
        cache.push(handle);
    }
}

/// Frees a block that this process has come by otherwise: it is new, was the dead's, or a channel's.
pub(crate) fn free_found(cache: &Cache, handle: Handle) {
    cache.count(1);
    free(cache, handle);
}

/// Frees a block of whole units that the process `me` owns.
#[cold]
#[inline(never)]
pub(crate) fn free_run(arena: &Arena, me: Owner, granule: u32) {
    let head = arena.unit_of(granule);
    let Some(word) = arena.unit(head).map(|u| u.load(Ordering::Acquire)) else { return };
    let what = unit::run_word(u32::try_from(unit::span_of(Word(word))).unwrap_or(0));
    // Taking the head decides. Killed before it, the block is owned by the dead and freed by the scan; after it, the
    // claimed run is released by the units pass.
    if unit::take(arena, me, head, what) {
        unit::release(arena, head);
    }
}

/// What was free when somebody counted, so that only what has changed is counted again.
#[derive(Debug)]
pub(crate) struct Counted {
    /// By class: [`depot::traffic`] at that time, and the free blocks in the depot.
    classes: [((u64, u64), u64); class::COUNT],
    /// [`unit::freed`] and the units in use at that time, and the free units that are backed.
    backed: Option<((u64, u32), u64)>,
}

impl Default for Counted {
    fn default() -> Self {
        Self { classes: [((0, 0), 0); class::COUNT], backed: None }
    }
}

/// Bytes of data that are free, in whatever pieces. If the system has nothing left to back more with, only what is backed counts.
pub(crate) fn free_bytes(arena: &Arena, why: NoUnits, counted: &mut Counted) -> u64 {
    let (units, in_use) = (arena.geometry().units, arena.header().units_in_use.load(Ordering::Relaxed));
    let free_units = if why == NoUnits::NotBacked {
        let now = (unit::freed(arena), in_use);
        match counted.backed {
            Some((then, free)) if then == now => free,
            _ => counted.backed.insert((now, unit::count_backed_free(arena))).1,
        }
    } else {
        u64::from(units.saturating_sub(in_use))
    };
    let mut total = free_units * UNIT;
    for (class, (then, blocks)) in counted.classes.iter_mut().enumerate() {
        let now = depot::traffic(arena, class);
        if *then != now {
            *blocks = depot::listed(arena, class).map(|(_, magazine)| u64::from(depot::len(magazine))).sum();
            *then = now;
        }
        total += *blocks * block::small_bytes(class::index(class));
    }
    total.min(u64::from(units) * UNIT)
}
