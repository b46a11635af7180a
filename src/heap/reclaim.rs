//! Memory that is free but of no use where it is: empty slabs back to units, `LOOSE` blocks and idle caches back to depots, when memory
//! is short or the caller wants it returned to the system.
//!
//! # Who searches
//! One at a time in the segment (a lease byte) and in the process (a mutex), see `Attachment::searching`: two who each hold a part of a
//! class would both find no empty slab. While somebody searches, `searches` is odd, so that who fails to find a block meanwhile,
//! maybe because the other has it in hand, waits for its turn and looks again ([`is_due`]).
//!
//! The searcher needs no control lock for what only it can do: count, take magazines, claim heads, drop entries. But a reaper reads an
//! entry or a head and then changes the block's header, under the control lock, and an audit reads headers: so between claiming heads and
//! dropping entries, and giving the units back, the searcher has the control lock once ([`Turn`]). Whoever has seen the entries
//! or the slab's head has finished by then; whoever comes later sees neither.
//!
//! # What is remembered
//! | of | remembered | until |
//! |---|---|---|
//! | a class | `searched`: what `put` was when a search found no empty slab (more) | a magazine with blocks comes to its depot |
//! | `LOOSE` blocks | `collected`: what `loosened` was when they were collected | another block becomes `LOOSE` |
//! | units | see `unit` | units become free |
//! | a context | `VERIFY` or `FORGET` in `revoked`: nothing is cached | its owner is inside again |
//!
//! All of this is noted after a search that was complete, with the number as it was read before it (and what the searcher itself
//! put there). They are hints: a foreign value costs a search in vain, or an `OutOfMemory` that was not needed.
//!
//! # If a process dies
//! - While it searches: `searches` stays odd, and the next one makes it even again.
//! - With magazines in hand: they are `HELD` by its context, and reaping puts them back.
//! - A slab's head is claimed (`SLAB -> CLAIMED(me)`) before its entries leave the magazines, and released after: a reaper
//!   that finds entries of a unit that is no slab drops them, then releases the unit.
//! - An entry is dropped by overwriting it with the last one, which is popped first and pushed again there: at no point is a
//!   block in two entries (see the table in `cache`).
//! - Having put a magazine back, or made a block `LOOSE`, uncounted: reaping counts the one and collects the other.

use crate::format::class;
use crate::format::{ContextSlot, Handle, Magazine, Owner, Word, flag, revoked};
use crate::heap::cache::Cache;
use crate::heap::gate::Gate;
use crate::heap::{alloc, block, depot, unit};
use crate::segment::arena::Arena;
use crate::sync::{Ordering, fence};
use crate::sys::barrier;
use crate::sys::crash::point;

/// Sees to it that the caller has the control lock, letting others have it first if it has had it for long; false if it can't be had.
pub(crate) type Turn<'a> = &'a mut dyn FnMut() -> bool;

/// How often somebody has begun or ended a search. To be read before a try to allocate, for [`is_due`].
pub(crate) fn searches(arena: &Arena) -> u64 {
    // SYNC(search)
    arena.header().searches.load(Ordering::Acquire)
}

/// Begins a search. The caller excludes others.
pub(crate) fn begin(arena: &Arena) {
    let searches = &arena.header().searches;
    searches.store(searches.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
    // SYNC(search): before anything is taken out of a depot; who has found it gone, and fences, sees the odd number.
    fence(Ordering::SeqCst);
    point!("search: begun");
}

/// Ends a search: all that was in hand is back.
pub(crate) fn end(arena: &Arena) {
    let searches = &arena.header().searches;
    // SYNC(search)
    searches.store((searches.load(Ordering::Relaxed) | 1).wrapping_add(1), Ordering::Release);
}

/// Whether a search may find memory for one who has tried to allocate in vain since it read `seen`.
pub(crate) fn is_due(arena: &Arena, seen: u64) -> bool {
    // SYNC(search): after the loads of the try.
    fence(Ordering::Acquire);
    searches(arena) != seen
        || seen % 2 == 1
        || is_loose_due(arena)
        || (0..class::COUNT).any(|class| is_class_due(arena, class))
}

fn is_class_due(arena: &Arena, class: usize) -> bool {
    // SYNC(put)
    arena
        .header()
        .recent
        .get(class)
        .is_some_and(|recent| recent.put.load(Ordering::Acquire) != recent.searched.load(Ordering::Relaxed))
}

fn is_loose_due(arena: &Arena) -> bool {
    // SYNC(loose)
    arena.header().loosened.load(Ordering::Acquire) != arena.header().collected.load(Ordering::Relaxed)
}

/// Frees blocks that no magazine had room for, if there can be any. The caller searches, so no slab is given back meanwhile, and none of
/// their memory returned to the system.
pub(crate) fn collect_loose(cache: &Cache) {
    let (arena, header) = (cache.arena(), cache.arena().header());
    // SYNC(loose)
    let seen = header.loosened.load(Ordering::Acquire);
    if seen == header.collected.load(Ordering::Relaxed) {
        return;
    }
    let slabs =
        unit::heads(arena).filter(|(_, what)| what.kind() == unit::SLAB && unit::class_of(*what) < class::COUNT);
    for (head, what) in slabs {
        let (class, first) = (unit::class_of(what), arena.granule_of(head));
        for granule in (0..class::blocks(class)).map(|i| first + i * class::granules(class)) {
            let Some(block) = arena.block(granule) else { break };
            let state = Word(block.state.load(Ordering::Acquire));
            if state.kind() == block::state::LOOSE && block::change(block, state, block::owned(cache.me())) {
                // Unlike a plain free, this one may ask for more magazines.
                depot::grow_if_empty(arena);
                alloc::free_found(cache, Handle::new(class::index(class), granule));
            }
        }
    }
    header.collected.store(seen, Ordering::Relaxed);
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

/// Whether the context of `cache` may take others' idle caches, and there is one that its owner may have filled since it was last
/// emptied.
pub(crate) fn has_idle(cache: &Cache) -> bool {
    !is_fenced(cache.arena()) && idle(cache).next().is_some()
}

/// Whether somebody would not notice that its cache is being taken.
fn is_fenced(arena: &Arena) -> bool {
    arena.header().flags.load(Ordering::Acquire) & flag::FENCED != 0
}

/// Other contexts that may cache something, with what `revoked` says there.
fn idle<'a>(cache: &'a Cache) -> impl Iterator<Item = (u32, &'a ContextSlot, Word)> + 'a {
    let mine = cache.holder().owner().index();
    let slots = (0..cache.arena().context_top()).filter(move |index| *index != mine);
    slots.filter_map(|index| Some((index, cache.arena().context(index)?))).filter_map(|(index, slot)| {
        let word = Word(slot.revoked.load(Ordering::Acquire));
        let may_have = match word.kind() {
            0 | revoked::ASKED => true,
            revoked::VERIFY | revoked::FORGET => word.value() & revoked::PARTLY != 0,
            _ => false,
        };
        (may_have && slot.owner.load(Ordering::Acquire) != 0).then_some((index, slot, word))
    })
}

/// Puts the magazines of every context that is not inside its cache right now into the depot, and frees its spare; see "Revocation"
/// in `cache`. Says how many of both. The caller searches, and has not taken over a dead process's name. What is decided is decided
/// in turns under the control lock, which keeps reapers away.
pub(crate) fn revoke_idle(cache: &Cache, turn: Turn<'_>) -> u64 {
    let (arena, me) = (cache.arena(), cache.me());
    if is_fenced(arena) {
        return 0;
    }
    let taking = Word::of(revoked::TAKING, me);
    let change = |slot: &ContextSlot, from: Word, to: Word| {
        slot.revoked.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    };
    // Those who are outside since an earlier theft stay marked by that.
    let is_out = |word: Word| matches!(word.kind(), revoked::VERIFY | revoked::FORGET);
    let mut marked: Vec<(u32, &ContextSlot, Word)> = idle(cache)
        .filter_map(|(index, slot, word)| {
            if is_out(word) {
                Some((index, slot, word))
            } else {
                change(slot, word, taking).then_some((index, slot, taking))
            }
        })
        .collect();
    point!("revoke: marked");
    // SYNC(gate): without the barrier nobody can be seen to be outside.
    let is_seen = barrier::heavy();
    let refuse = |slot: &ContextSlot| {
        let _ = slot.revoked.compare_exchange(taking.0, 0, Ordering::AcqRel, Ordering::Relaxed);
    };
    // Inside for a few instructions, as a rule. A thread stopped there keeps its cache.
    marked.retain(|(_, slot, word)| {
        let is_left = is_out(*word) || is_seen && outside(slot).is_some();
        if !is_left {
            refuse(slot);
        }
        is_left
    });
    // Whoever is still marked when we come to it has not been inside since: this is what it holds.
    let magazines = if marked.is_empty() { Vec::new() } else { held_magazines(arena) };
    point!("revoke: listed");
    let mut taken = 0;
    for (index, slot, word) in &marked {
        if !turn() {
            break;
        }
        // Before it is decided: whoever finds the theft decided and us dead reads these.
        slot.stolen.store(0, Ordering::Relaxed);
        let number = slot.thefts.load(Ordering::Relaxed).wrapping_add(1) & (revoked::PARTLY - 1);
        slot.thefts.store(number, Ordering::Relaxed);
        let mut now = Word::of(if word.kind() == revoked::FORGET { revoked::EMPTIED } else { revoked::TAKEN }, me);
        if !change(slot, *word, now) {
            // It has refused.
            continue;
        }
        point!("revoke: taken");
        // Short from here on: the owner, if it wakes, waits for us.
        let (mut spare, mut partly) = (None, false);
        if now.kind() == revoked::TAKEN {
            // An owner that looks in just now says INSIDE for a moment.
            match outside(slot) {
                Some(gate) => spare = take_spare(cache, slot, gate),
                None => partly = true,
            }
            if spare.is_some() {
                now = Word::of(revoked::EMPTIED, me);
            }
        }
        let first = magazines.partition_point(|(_, holder)| holder.index() < *index);
        for (magazine, holder) in magazines[first..].iter().take_while(|(_, holder)| holder.index() == *index) {
            put_back(arena, *magazine, *holder);
            taken += 1;
        }
        let then = if now.kind() == revoked::EMPTIED { revoked::FORGET } else { revoked::VERIFY };
        let number = if partly { number | revoked::PARTLY } else { number };
        slot.revoked.store(Word::number(then, number).0, Ordering::Release);
        point!("revoke: verify");
        if let Some(spare) = spare {
            alloc::free_found(cache, spare);
            taken += 1;
        }
    }
    marked.iter().for_each(|(_, slot, _)| refuse(slot));
    // Nor may their spares stay with us.
    cache.flush();
    taken
}

/// What the gate of a context says, once its owner is outside.
fn outside(slot: &ContextSlot) -> Option<Gate> {
    (0..100).find_map(|_| {
        let gate = Gate::of(slot);
        if !gate.is_outside() {
            std::thread::yield_now();
        }
        gate.is_outside().then_some(gate)
    })
}

/// Every magazine that a context holds, and which; by contexts.
fn held_magazines(arena: &Arena) -> Vec<(u32, Owner)> {
    let holder = |index| Some(Word(arena.magazine(index)?.holder.load(Ordering::Acquire)));
    let held = (0..arena.magazine_top()).filter_map(|index| Some((index, holder(index)?)));
    let held = held.filter(|(_, holder)| holder.kind() == depot::HELD);
    let mut held: Vec<_> = held.map(|(index, holder)| (index, holder.owner())).collect();
    held.sort_by_key(|(_, holder)| holder.index());
    held
}

/// Takes the spare that `gate` names from a context that is `TAKEN`, which is `EMPTIED` then.
fn take_spare(cache: &Cache, slot: &ContextSlot, gate: Gate) -> Option<Handle> {
    let me = cache.me();
    let owner = Word(slot.owner.load(Ordering::Acquire)).owner();
    let spare = gate.spare(cache.arena())?;
    // SYNC(kill), as each of these stores; see the table in `cache`.
    slot.stolen.store(spare.handle.word(), Ordering::Release);
    point!("revoke: told");
    if !block::change(spare.header(), block::owned(owner), block::stolen(me)) {
        return None;
    }
    point!("revoke: spare");
    slot.revoked.store(Word::of(revoked::EMPTIED, me).0, Ordering::Release);
    point!("revoke: emptied");
    // Nobody else changes it: its old owner forgets it, and nobody alive looks for what we have stolen.
    block::change(spare.header(), block::stolen(me), block::owned(me)).then_some(())?;
    point!("revoke: named");
    Some(spare.handle)
}

/// Puts a magazine of a context that is `TAKEN` into the depot.
fn put_back(arena: &Arena, index: u32, holder: Owner) {
    let Some(magazine) = arena.magazine(index) else { return };
    // Not any more, if its owner was out since an earlier theft, and was reaped since this one began: `revoked` still says what it
    // said then.
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

/// Gives back the empty slabs of every class where there may be some; says how many units that were. The caller searches.
pub(crate) fn empty_slabs(cache: &Cache, turn: Turn<'_>) -> u64 {
    let arena = cache.arena();
    let mut counts = Counts { by_head: Vec::new(), heads: Vec::new() };
    let due = (0..class::COUNT).filter(|class| is_class_due(arena, *class));
    due.map(|class| empty_slabs_of(cache, class, &mut counts, turn)).sum()
}

/// Free blocks by slab.
struct Counts {
    /// By the number of the slab's head.
    by_head: Vec<u32>,
    /// Those that are not 0.
    heads: Vec<u32>,
}

impl Counts {
    fn clear(&mut self, arena: &Arena) {
        for head in self.heads.drain(..) {
            self.by_head[head as usize] = 0;
        }
        self.by_head.resize(arena.unit_top() as usize, 0);
    }

    /// Counts a block of the slab at `head`.
    fn add(&mut self, head: u32) {
        if let Some(count) = self.by_head.get_mut(head as usize) {
            if *count == 0 {
                self.heads.push(head);
            }
            *count = count.saturating_add(1);
        }
    }

    fn of(&self, head: u32) -> u32 {
        self.by_head.get(head as usize).copied().unwrap_or(0)
    }
}

fn empty_slabs_of(cache: &Cache, class: usize, counts: &mut Counts, turn: Turn<'_>) -> u64 {
    let (arena, blocks) = (cache.arena(), class::blocks(class));
    let Some(recent) = arena.header().recent.get(class) else { return 0 };
    // SYNC(put)
    let seen = recent.put.load(Ordering::Acquire);
    // Nothing is taken before there is something to be found. Magazines change hands meanwhile, so a slab may seem to be empty that is not;
    // or the other way round, if a block moved, which then has come to the depot after we have read the number.
    counts.clear(arena);
    for granule in depot::listed(arena, class).flat_map(|(_, magazine)| depot::entries(magazine)) {
        if let Some(head) = unit::slab_of(arena, granule, class) {
            counts.add(head);
        }
    }
    let (mut own, mut units) = (0, 0);
    if counts.heads.iter().any(|head| counts.of(*head) >= blocks) {
        units = give_back_empty(cache, class, counts, &mut own, turn);
    }
    recent.searched.store(seen.wrapping_add(own), Ordering::Relaxed);
    units
}

/// Takes the magazines that list blocks of what `counts` says are empty slabs, and gives those back that are; says how many units. Counts in
/// `own` the magazines that go back to the depot.
fn give_back_empty(cache: &Cache, class: usize, counts: &mut Counts, own: &mut u64, turn: Turn<'_>) -> u64 {
    let (arena, blocks) = (cache.arena(), class::blocks(class));
    let is_full = |granule| unit::slab_of(arena, granule, class).is_some_and(|head| counts.of(head) >= blocks);
    let taken: Vec<(u32, &Magazine)> = depot::listed(arena, class)
        .filter(|(_, magazine)| depot::entries(magazine).any(is_full))
        .filter(|(index, _)| depot::take_listed(arena, class, *index, cache.holder()))
        .collect();
    point!("empty: taken");
    counts.clear(arena);
    for granule in taken.iter().flat_map(|(_, magazine)| depot::entries(magazine)) {
        if let Some(head) = unit::slab_of(arena, granule, class) {
            counts.add(head);
        }
    }
    let what = unit::slab_word(class, class::span(class));
    let is_empty = |head: &u32| counts.of(*head) == blocks && unit::take(arena, cache.me(), *head, what);
    let empty: Vec<u32> = counts.heads.iter().copied().filter(is_empty).collect();
    if !empty.is_empty() {
        point!("empty: heads");
        counts.clear(arena);
        empty.iter().for_each(|head| counts.add(*head));
        // The heads are claimed, so `slab_of` no longer knows them.
        let is_stale =
            |granule: u32| arena.block(granule).is_none() || counts.of(unit::link(arena, arena.unit_of(granule))) > 0;
        for (_, magazine) in &taken {
            drop_entries(arena, cache.me(), magazine, is_stale);
        }
        point!("empty: dropped");
    }
    for (index, magazine) in taken {
        *own += u64::from(depot::put_back(arena, index, magazine, class));
    }
    point!("empty: put");
    // See "Who searches" in the module.
    if empty.is_empty() {
        return 0;
    }
    if !turn() {
        // Somebody sits on the lock: what can't be given back is a slab again.
        empty.iter().for_each(|head| alloc::fill_slab(cache, *head, class));
        return 0;
    }
    for head in &empty {
        unit::release(arena, *head);
        point!("empty: released");
        depot::retire(arena, depot::magazines_for(arena.geometry(), class));
    }
    empty.len() as u64 * u64::from(class::span(class))
}
