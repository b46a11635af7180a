//! Statistics: how a buffer's memory is used, read from its words by whoever asks.
//!
//! Nothing here is counted on a fast path: block counts are derived from magazines and slabs, exchanges are counted where a
//! magazine changes hands, and the high-water mark where units do.

use crate::format::class;
use crate::format::{CONTEXTS, UNIT, Word};
use crate::heap::{depot, gate, unit};
use crate::membership::participant;
use crate::segment::arena::Arena;
use crate::sync::Ordering;
use crate::sys::task;

/// How a buffer's memory is used; made by [`Buffer::stats`](crate::Buffer::stats). Under traffic, a snapshot whose parts are from
/// slightly different moments.
///
/// ```
/// # let name = format!("doc-stats-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let large = ctx.slice_zeroed::<u8>(1 << 20)?;
/// let stats = buffer.stats()?;
/// assert_eq!((stats.large_records, stats.used_bytes), (1, stats.large_bytes));
/// drop(large);
/// let stats = buffer.stats()?;
/// assert!(stats.used_bytes == 0 && stats.high_water_bytes > 1 << 20);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes for records.
    pub capacity_bytes: u64,
    /// In blocks that are neither free nor cached: records, queued or held, and channels' slots.
    pub used_bytes: u64,
    /// In free blocks that contexts cache.
    pub cached_bytes: u64,
    /// Backed by memory of the system.
    pub reserved_bytes: u64,
    /// What the control groups of this process allow it, if they limit its memory and say so. The buffer's memory counts as memory of
    /// whoever uses it first; where it is more than this, the kernel kills a process instead of refusing a record.
    pub memory_limit_bytes: Option<u64>,
    /// The most that was ever in slabs and large records at once.
    pub high_water_bytes: u64,
    /// Size classes with slabs, smallest first.
    pub classes: Vec<ClassStats>,
    /// Records of whole units.
    pub large_records: u64,
    /// Their bytes.
    pub large_bytes: u64,
}

/// Part of [`Stats`]: one size class.
///
/// ```
/// # let name = format!("doc-stats-class-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let kept = ctx.record(1_u64)?;
/// let class = &buffer.stats()?.classes[0];
/// assert_eq!(class.block_bytes, 64);
/// assert_eq!(class.blocks - class.free - class.cached, 1);
/// # drop(kept);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes of a block, 16 of which are its header.
    pub block_bytes: u64,
    /// Blocks in all its slabs.
    pub blocks: u64,
    /// Of those, free in the depot.
    pub free: u64,
    /// Of those, free in the caches of contexts.
    pub cached: u64,
    /// Magazines that contexts took from the depot, ever.
    pub exchanges: u64,
}

pub(crate) fn stats(arena: &Arena) -> Stats {
    let header = arena.header();
    let mut classes: Vec<ClassStats> = (0..class::COUNT)
        .map(|class| ClassStats {
            block_bytes: u64::from(class::granules(class)) * 64,
            exchanges: header.recent.get(class).map_or(0, |recent| recent.taken.load(Ordering::Relaxed)),
            ..ClassStats::default()
        })
        .collect();
    let mut stats = Stats {
        capacity_bytes: u64::from(arena.geometry().units) * UNIT,
        reserved_bytes: unit::count(arena).1 * UNIT,
        memory_limit_bytes: task::memory_limit(),
        high_water_bytes: u64::from(header.units_high_water.load(Ordering::Relaxed)) * UNIT,
        ..Stats::default()
    };
    for (_, what) in unit::heads(arena) {
        match what.kind() {
            unit::SLAB => {
                if let Some(stats) = classes.get_mut(unit::class_of(what)) {
                    stats.blocks += u64::from(class::blocks(unit::class_of(what)));
                }
            }
            unit::RUN => {
                stats.large_records += 1;
                stats.large_bytes += unit::span_of(what) * UNIT;
            }
            _ => {}
        }
    }
    for index in 0..arena.magazine_top() {
        let Some(magazine) = arena.magazine(index) else { break };
        let n = || u64::from(depot::len(magazine));
        let holder = Word(magazine.holder.load(Ordering::Relaxed));
        match holder.kind() {
            depot::IN_DEPOT => {
                if let Some(stats) = usize::try_from(holder.value()).ok().and_then(|class| classes.get_mut(class)) {
                    stats.free += n();
                }
            }
            depot::HELD => {
                if let Some(stats) = depot::class_of(arena, magazine).and_then(|class| classes.get_mut(class)) {
                    stats.cached += n();
                }
            }
            _ => {}
        }
    }
    for (index, slot) in (0..CONTEXTS).filter_map(|index| Some((index, arena.context(index)?))) {
        if participant::context_owner(arena, index).is_some()
            && let Some(spare) = gate::spare(arena, slot)
            && let Some(stats) = classes.get_mut(usize::from(spare.handle.class()))
        {
            stats.cached += 1;
        }
    }
    classes.retain(|class| class.blocks > 0);
    stats.cached_bytes = classes.iter().map(|class| class.cached * class.block_bytes).sum();
    let used = |class: &ClassStats| class.blocks.saturating_sub(class.free + class.cached) * class.block_bytes;
    stats.used_bytes = stats.large_bytes + classes.iter().map(used).sum::<u64>();
    stats.classes = classes;
    stats
}
