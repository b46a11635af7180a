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
use crate::heap::block::Handle;
use crate::heap::cache::{self, Cache, Gate, revoked};
use crate::heap::{self, block, class, depot, unit};
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
    let (mut i, mut n) = (0, depot::len(magazine) as usize);
    while i < n {
        let (entry, last) = (&magazine.entries[i], &magazine.entries[n - 1]);
        if !is_stale(entry.load(Ordering::Relaxed)) {
            i += 1;
            continue;
        }
        n -= 1;
        let moved = last.load(Ordering::Relaxed);
        if i == n || is_stale(moved) {
            // SYNC(kill), as each of the stores below.
            last.store(0, Ordering::Release);
            point!("drop: cleared");
        } else if let Some(block) = arena.block(moved) {
            block.state.store(block::owned(me).0, Ordering::Release);
            point!("drop: owned");
            last.store(0, Ordering::Release);
            point!("drop: popped");
            entry.store(moved, Ordering::Release);
            point!("drop: moved");
        } else {
            last.store(0, Ordering::Release);
        }
    }
}

/// Puts the magazines of every context that is not inside its cache right now into the depot, and frees its spare; see "Revocation"
/// in `cache`. The caller holds the control lock: one thief at a time, and nobody who reaps.
pub(crate) fn revoke_idle(cache: &Cache) {
    let (arena, me) = (cache.arena(), cache.me());
    if arena.header().flags.load(Ordering::Acquire) & flag::FENCED != 0 {
        // Somebody would not notice.
        return;
    }
    let mine = cache.holder().owner().index();
    let change = |slot: &ContextSlot, from: Word, to: u64| {
        slot.revoked.compare_exchange(from.0, Word::of(to, me).0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    };
    // Says the number of this theft, of those since the owner was last inside.
    let mark = |slot: &ContextSlot| {
        let now = Word(slot.revoked.load(Ordering::Acquire));
        let (to, number) = match now.kind() {
            0 | revoked::ASKED => (revoked::TAKING, 0),
            // Outside since the last thief.
            revoked::VERIFY => (revoked::TAKEN, now.value() + 1),
            revoked::FORGET => (revoked::EMPTIED, now.value() + 1),
            _ => return None,
        };
        change(slot, now, to).then_some(number)
    };
    let marked: Vec<(u32, &ContextSlot, u64)> = (0..CONTEXTS)
        .filter_map(|index| Some((index, arena.context(index)?)))
        .filter(|(index, slot)| *index != mine && slot.owner.load(Ordering::Acquire) != 0)
        .filter_map(|(index, slot)| Some((index, slot, mark(slot)?)))
        .collect();
    point!("revoke: marked");
    // SYNC(gate): without the barrier nobody can be seen to be outside.
    let is_seen = barrier::heavy();
    let magazines = held_magazines(arena);
    for (index, slot, number) in marked {
        let is_now = |kind| slot.revoked.load(Ordering::Acquire) == Word::of(kind, me).0;
        if is_now(revoked::TAKING) {
            // Inside for a few instructions, as a rule. A thread stopped there keeps its cache.
            let taking = Word::of(revoked::TAKING, me);
            if !is_seen || !is_outside(slot) {
                let _ = slot.revoked.compare_exchange(taking.0, 0, Ordering::AcqRel, Ordering::Relaxed);
            } else {
                change(slot, taking, revoked::TAKEN);
            }
        }
        if !is_now(revoked::TAKEN) && !is_now(revoked::EMPTIED) {
            // It has refused.
            continue;
        }
        point!("revoke: taken");
        // Short from here on: the owner, if it wakes, waits for us.
        let spare = take_spare(cache, slot);
        for (magazine, holder) in &magazines {
            if holder.index() == index {
                put_back(arena, *magazine, *holder);
            }
        }
        let then = if is_now(revoked::EMPTIED) { revoked::FORGET } else { revoked::VERIFY };
        slot.revoked.store(Word::number(then, number).0, Ordering::Release);
        point!("revoke: verify");
        if let Some(spare) = spare {
            heap::free_found(cache, spare);
        }
    }
    // Nor may their spares stay with us.
    cache.flush();
}

fn is_outside(slot: &ContextSlot) -> bool {
    (0..100).any(|_| {
        let outside = Gate::of(slot).is_outside();
        if !outside {
            std::thread::yield_now();
        }
        outside
    })
}

/// Every magazine that a context holds, and which.
fn held_magazines(arena: &Arena) -> Vec<(u32, Owner)> {
    let top = arena.header().magazine_top.load(Ordering::Acquire);
    let holder = |index| Some(Word(arena.magazine(index)?.holder.load(Ordering::Acquire)));
    let held = (0..top).filter_map(|index| Some((index, holder(index)?)));
    held.filter(|(_, holder)| holder.kind() == depot::HELD).map(|(index, holder)| (index, holder.owner())).collect()
}

/// Takes the spare of a context that is `TAKEN`.
fn take_spare(cache: &Cache, slot: &ContextSlot) -> Option<Handle> {
    // An owner that looks in just now says INSIDE for a moment.
    is_outside(slot).then_some(())?;
    let owner = Word(slot.owner.load(Ordering::Acquire)).owner();
    let spare = cache::spare(cache.arena(), slot)?;
    if !block::change(spare.header(), block::owned(owner), block::owned(cache.me())) {
        return None;
    }
    point!("revoke: spare");
    slot.revoked.store(Word::of(revoked::EMPTIED, cache.me()).0, Ordering::Release);
    point!("revoke: emptied");
    Some(spare.handle)
}

/// Puts a magazine of a context that is `TAKEN` into the depot.
fn put_back(arena: &Arena, index: u32, holder: Owner) {
    let Some(magazine) = arena.magazine(index) else { return };
    if magazine.holder.load(Ordering::Acquire) != Word::of(depot::HELD, holder).0 {
        return;
    }
    match depot::class_of(arena, magazine) {
        Some(class) => depot::put(arena, index, magazine, class),
        None if depot::is_empty(magazine) => depot::put(arena, index, magazine, 0),
        None => {}
    }
    point!("revoke: put");
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
        depot::put_back(arena, index, magazine, class);
    }
    point!("empty: put");
    for head in &empty {
        unit::release(arena, *head);
        point!("empty: released");
        depot::retire(arena, cache::magazines_for(arena.geometry(), class));
    }
    empty.len() as u64 * u64::from(class::span(class))
}
