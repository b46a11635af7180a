//! Empty slabs back to units, when memory is short or the caller wants it returned to the system.
//!
//! Takes every magazine of a class out of the depot, counts its blocks by slab, and gives back those slabs whose blocks are
//! all there. What other contexts cache or hold keeps its slab. The caller holds the control lock, so that two don't split
//! a class between them and find nothing.
//!
//! # If a process dies
//! - With magazines in hand: they are `HELD` by its context, and reaping puts them back.
//! - A slab's head is claimed (`SLAB -> CLAIMED(me)`) before its entries leave the magazines, and released after: a reaper
//!   that finds entries of a unit that is no slab drops them, then releases the unit.
//! - An entry is dropped by overwriting it with the last one, which is popped first and pushed again there: at no point is a
//!   block in two entries (see the table in `cache`).

use crate::arena::Arena;
use crate::heap::cache::{self, Cache, revoked};
use crate::heap::{block, class, depot, unit};
use crate::layout::{CONTEXTS, ContextSlot, Magazine, Owner, UNIT_GRANULES, Word, flag};
use crate::sync::Ordering;
use crate::sys::barrier;
use crate::sys::crash::point;
use std::collections::{HashMap, HashSet};

/// The head of the slab of `class` that the block at `granule` belongs to; `None` if there is no such block.
#[inline]
pub(crate) fn slab_of(arena: &Arena, granule: u32, class: usize) -> Option<u32> {
    arena.block(granule)?;
    let (head, what) = unit::head_of(arena, arena.unit_of(granule))?;
    let is_slab = what == unit::slab_word(class, class::span(class));
    (is_slab && class::starts_at(class, granule - arena.granule_of(head))).then_some(head)
}

/// Removes those entries of a magazine in this process's hands that `is_stale` names.
pub(crate) fn drop_entries(arena: &Arena, me: Owner, magazine: &Magazine, is_stale: impl Fn(u32) -> bool) {
    let mut i = 0;
    loop {
        let n = magazine.n.load(Ordering::Relaxed);
        let (Some(entry), Some(last)) =
            (magazine.entries.get(i as usize), magazine.entries.get((n as usize).wrapping_sub(1)))
        else {
            return;
        };
        if i >= n {
            return;
        }
        if !is_stale(entry.load(Ordering::Relaxed)) {
            i += 1;
            continue;
        }
        let moved = last.load(Ordering::Relaxed);
        if i + 1 == n || is_stale(moved) {
            // SYNC(kill), as each of the stores below.
            magazine.n.store(n - 1, Ordering::Release);
            point!("drop: counted");
        } else if let Some(block) = arena.block(moved) {
            block.state.store(block::owned(me).0, Ordering::Release);
            point!("drop: owned");
            magazine.n.store(n - 1, Ordering::Release);
            point!("drop: popped");
            entry.store(moved, Ordering::Release);
            point!("drop: moved");
            block.state.store(Word::ZERO.0, Ordering::Release);
        } else {
            magazine.n.store(n - 1, Ordering::Release);
        }
    }
}

/// Puts the magazines of every context that is not inside its cache right now into the depot; see "Revocation" in `cache`. The
/// caller holds the control lock: one thief at a time.
pub(crate) fn revoke_idle(cache: &Cache) {
    let (arena, thief) = (cache.arena(), Word::of(revoked::TAKING, cache.me()));
    if arena.header().flags.load(Ordering::Acquire) & flag::FENCED != 0 {
        // Somebody would not notice.
        return;
    }
    let mine = cache.holder().owner().index();
    let is_marked = |slot: &ContextSlot| {
        slot.owner.load(Ordering::Acquire) != 0
            && slot.revoked.compare_exchange(0, thief.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    };
    let marked: Vec<(u32, &ContextSlot)> = (0..CONTEXTS)
        .filter_map(|index| Some((index, arena.context(index)?)))
        .filter(|(index, slot)| *index != mine && is_marked(slot))
        .collect();
    point!("revoke: marked");
    // SYNC(gate): without the barrier nobody can be seen to be outside.
    let is_seen = barrier::heavy();
    let is_outside = |slot: &ContextSlot| {
        // Inside for a few instructions, as a rule. A thread stopped there keeps its cache.
        (0..100).any(|_| {
            let outside = slot.gate.load(Ordering::Acquire) == 0;
            if !outside {
                std::thread::yield_now();
            }
            outside
        })
    };
    let (taken, left): (Vec<_>, Vec<_>) = marked.into_iter().partition(|(_, slot)| is_seen && is_outside(slot));
    for (_, slot) in left {
        slot.revoked.store(0, Ordering::Release);
    }
    point!("revoke: judged");
    for index in 0..arena.header().magazine_top.load(Ordering::Acquire) {
        let Some(magazine) = arena.magazine(index) else { break };
        let holder = Word(magazine.holder.load(Ordering::Acquire));
        if holder.kind() == depot::HELD && taken.iter().any(|(context, _)| *context == holder.owner().index()) {
            match depot::class_of(arena, magazine) {
                Some(class) => depot::put(arena, index, magazine, class),
                None if magazine.n.load(Ordering::Relaxed) == 0 => depot::put(arena, index, magazine, 0),
                None => {}
            }
            point!("revoke: put");
        }
    }
    // What others are about to follow has no hint: chains they have begun.
    depot::rebuild(arena);
    point!("revoke: rebuilt");
    for (_, slot) in taken {
        slot.revoked.store(Word::number(revoked::VERIFY, 0).0, Ordering::Release);
        point!("revoke: verify");
    }
}

/// Gives back the empty slabs of every class; says how many units that were.
pub(crate) fn empty_slabs(cache: &Cache) -> u64 {
    (0..class::COUNT).map(|class| empty_slabs_of(cache, class)).sum()
}

fn empty_slabs_of(cache: &Cache, class: usize) -> u64 {
    let arena = cache.arena();
    let taken: Vec<u32> = std::iter::from_fn(|| depot::take(arena, class, cache.holder())).collect();
    point!("empty: taken");
    let magazines = || taken.iter().filter_map(|index| Some((*index, arena.magazine(*index)?)));
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for granule in magazines().flat_map(|(_, magazine)| depot::entries(magazine)) {
        if let Some(head) = slab_of(arena, granule, class) {
            *counts.entry(head).or_default() += 1;
        }
    }
    let what = unit::slab_word(class, class::span(class));
    let empty: HashSet<u32> = counts
        .into_iter()
        .filter(|(head, count)| *count == class::blocks(class) && unit::take(arena, cache.me(), *head, what))
        .map(|(head, _)| head)
        .collect();
    if !empty.is_empty() {
        point!("empty: heads");
        let used = class::granules(class) * class::blocks(class);
        let is_stale = |granule: u32| {
            if arena.block(granule).is_none() {
                return true;
            }
            // The heads are claimed, so `slab_of` no longer knows them: look for the one this block lies behind.
            let unit = arena.unit_of(granule);
            let reach = unit.min(used / UNIT_GRANULES);
            (unit - reach..=unit).any(|head| empty.contains(&head) && granule - arena.granule_of(head) < used)
        };
        for (_, magazine) in magazines() {
            drop_entries(arena, cache.me(), magazine, is_stale);
        }
        point!("empty: dropped");
    }
    for (index, magazine) in magazines() {
        depot::put(arena, index, magazine, class);
    }
    point!("empty: put");
    for head in &empty {
        unit::release(arena, *head);
        point!("empty: released");
        depot::retire(arena, cache::magazines_for(arena.geometry(), class));
    }
    empty.len() as u64 * u64::from(class::span(class))
}
