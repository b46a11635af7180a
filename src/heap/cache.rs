//! A context's free blocks: a few magazines a size class, so that nearly every allocation and free is a pop or a push.
//!
//! Promises: [`Cache::pop`] and [`Cache::push`] take no lock, no fence, no read-modify-write and no system call unless a
//! magazine runs empty or full; a push never fails. Refuses: to be used by two threads.
//!
//! # Ownership
//! A magazine whose holder word names this context is written by its thread alone.
//!
//! # Revocation
//! What an idle context caches may be what another one lacks, and its thread may never call again. So when memory is short,
//! another process (the *thief*) may put a context's magazines back into the depot behind its back:
//! `SYNC(gate)`: the owner stores `gate = 1`, then looks at `revoked`, works, and stores `gate = 0` (Release); the thief writes its
//! name into `revoked`, makes the heavy barrier (`sys::barrier`), and looks at `gate` (Acquire). One of the two sees the other:
//! either the thief sees the owner inside and leaves it alone, or the owner sees the thief and keeps out until the thief is
//! done, or dead. Then `revoked` says `VERIFY`, and the owner forgets what it no longer holds.
//! ```text
//! revoked   0 | TAKING process | VERIFY
//! ```
//!
//! # If a process dies
//! A thief: what it had put back is in the depot, the rest is still the owner's; whoever sees that it is dead writes `VERIFY`.
//!
//! The owner: single writer, program order (`SYNC(kill)`: the second store is Release, so the compiler keeps the order and the
//! machine can't show the second without the first):
//!
//! | after | the block is | repaired by |
//! |---|---|---|
//! | pop: `state = OWNED(me)` | still in the magazine: free | the magazines pass sets it FREE |
//! | pop: `n - 1` | owned, in nobody's hands | the header scan frees it |
//! | push: entry | owned, beyond `n` | the header scan frees it |
//! | push: `n + 1` | in the magazine: free | the magazines pass sets it FREE |
//!
//! So a block is free if and only if it is in a magazine (or `LOOSE`), whatever its state word says.
//!
//! # Invariants
//! 1. Each magazine of a line is held by this context in the segment; `unusable` is held by nobody and is never written,
//!    because its line has `room` 0.
//! 2. The segment stays mapped while the cache lives (the context holds the process's attachment).

#![allow(unsafe_code)]

use crate::arena::{Arena, Reach};
use crate::heap::block::{self, state};
use crate::heap::{class, depot};
use crate::layout::{BlockHeader, ContextSlot, Geometry, MAGAZINE_ENTRIES, Magazine, Owner, POOL, Word};
use crate::sync::{Ordering, compiler_fence};
use crate::sys::crash::point;
use std::cell::Cell;
use std::time::Duration;

/// Stands in where a line has no magazine: nothing to pop, no room to push.
struct Unusable(Magazine);
// SAFETY: atomics throughout, and never written (invariant 1).
unsafe impl Sync for Unusable {}
// SAFETY: all zeroes is a valid magazine (`Shared`).
static UNUSABLE: Unusable = Unusable(unsafe { std::mem::zeroed() });

/// The slot of a cache that has none any more: nobody revokes it, and its gate leads nowhere.
struct Nowhere(ContextSlot);
// SAFETY: atomics throughout; nobody reads what is written there.
unsafe impl Sync for Nowhere {}
// SAFETY: all zeroes is a valid slot (`Shared`).
static NOWHERE: Nowhere = Nowhere(unsafe { std::mem::zeroed() });

#[derive(Clone, Copy)]
struct Held {
    magazine: &'static Magazine,
    index: u32,
}

impl Held {
    const NONE: Self = Self { magazine: &UNUSABLE.0, index: u32::MAX };

    fn is_real(self) -> bool {
        self.index != u32::MAX
    }

    fn n(self) -> u32 {
        self.magazine.n.load(Ordering::Relaxed)
    }
}

/// Most magazines that are put into the depot together.
const MOST_CHAINED: usize = 4;

/// Magazines in reserve, and the chain in the depot from which the next ones are to be had.
struct Reserve {
    held: [Cell<Held>; 2 * MOST_CHAINED],
    len: Cell<usize>,
    next: Cell<Option<u32>>,
}

impl Reserve {
    fn new() -> Self {
        Self { held: std::array::from_fn(|_| Cell::new(Held::NONE)), len: Cell::new(0), next: Cell::new(None) }
    }

    fn push(&self, held: Held) {
        if let Some(slot) = self.held.get(self.len.get()) {
            slot.set(held);
            self.len.set(self.len.get() + 1);
        }
    }

    fn pop(&self) -> Option<Held> {
        let held = self.held.get(self.len.get().wrapping_sub(1))?.replace(Held::NONE);
        self.len.set(self.len.get() - 1);
        Some(held)
    }

    fn retain(&self, keep: impl Fn(Held) -> bool) {
        let all: Vec<Held> = std::iter::from_fn(|| self.pop()).collect();
        all.into_iter().rev().filter(|held| keep(*held)).for_each(|held| self.push(held));
    }
}

/// What a context holds of one class.
#[repr(align(64))]
struct Line {
    current: Cell<Held>,
    /// Entries the current magazine may have: the class's capacity, at most [`MAGAZINE_ENTRIES`], or 0 if there is no magazine.
    room: Cell<u32>,
    reach: Reach,
    /// Magazines to pop from next.
    full: Reserve,
    /// Magazines to push to next.
    empty: Reserve,
}

/// Kinds of `ContextSlot::revoked`.
pub(crate) mod revoked {
    pub(crate) const TAKING: u64 = 1;
    pub(crate) const VERIFY: u64 = 2;
}

/// See the module.
#[repr(C)] // what the fast paths need comes first
pub(crate) struct Cache {
    arena: Arena,
    slot: Cell<&'static ContextSlot>,
    me: Owner,
    /// The holder word of this context's magazines.
    held: Word,
    lines: [Line; class::COUNT],
    /// Whether that process will never act again; asked while it keeps us out.
    is_dead: Box<dyn Fn(Owner) -> bool>,
}

/// A block in hand: its place, and its header.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) granule: u32,
    pub(crate) header: &'static BlockHeader,
}

/// While a block is taken, the one to be taken this many later is asked for: nearly every block was last touched by another
/// core.
const AHEAD: u32 = 6;

/// Entries a magazine of `class` may hold: what is cached is worth at most a 4096th of the buffer, within reason.
pub(crate) fn capacity(geometry: &Geometry, class: usize) -> u32 {
    let block = u64::from(class::granules(class)) * 64;
    u32::try_from(budget(geometry) / block).unwrap_or(1).clamp(1, MAGAZINE_ENTRIES)
}

fn budget(geometry: &Geometry) -> u64 {
    (u64::from(geometry.units) * 16).clamp(16 << 10, 256 << 10)
}

/// Magazines of `class` that go to the depot together; a context keeps twice as many full ones. Where blocks are large, one.
fn chained(geometry: &Geometry, class: usize) -> usize {
    let magazine = u64::from(capacity(geometry, class) * class::granules(class)) * 64;
    usize::try_from(budget(geometry) / 2 / magazine).unwrap_or(1).clamp(1, MOST_CHAINED)
}

/// Magazines that the blocks of a slab of `class` fill.
pub(crate) fn magazines_for(geometry: &Geometry, class: usize) -> u32 {
    class::blocks(class).div_ceil(capacity(geometry, class))
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("me", &self.me).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache for the context slot `context`, which belongs to the process `me`. None if there is no such slot.
    pub(crate) fn new(
        arena: Arena,
        me: Owner,
        context: Owner,
        is_dead: impl Fn(Owner) -> bool + 'static,
    ) -> Option<Self> {
        let line = |class| Line {
            current: Cell::new(Held::NONE),
            room: Cell::new(0),
            reach: arena.reach(class),
            full: Reserve::new(),
            empty: Reserve::new(),
        };
        let held = Word::of(depot::HELD, context);
        let slot = Cell::new(arena.context(context.index())?);
        Some(Self { arena, slot, me, held, lines: std::array::from_fn(line), is_dead: Box::new(is_dead) })
    }

    /// Steps inside. False if a thief is at work, or has been: then the slow path settles it.
    #[inline(always)]
    fn enter(&self) -> bool {
        let slot = self.slot.get();
        slot.gate.store(1, Ordering::Relaxed);
        // SYNC(gate)
        compiler_fence(Ordering::SeqCst);
        slot.revoked.load(Ordering::Relaxed) == 0
    }

    #[inline(always)]
    fn leave(&self) {
        self.slot.get().gate.store(0, Ordering::Release);
    }

    /// Steps inside, once no thief is at work, and forgets what one has taken.
    fn enter_surely(&self) {
        while !self.enter() {
            self.leave();
            let revoked = &self.slot.get().revoked;
            let word = Word(revoked.load(Ordering::Acquire));
            let change = |to: Word| revoked.compare_exchange(word.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if word.kind() != revoked::TAKING {
                self.verify();
                point!("verify: checked");
                change(Word::ZERO);
                point!("verify: settled");
            } else if (self.is_dead)(word.owner()) {
                change(Word::number(revoked::VERIFY, 0));
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Forgets the magazines that are no longer this context's.
    fn verify(&self) {
        let still = |held: Held| held.magazine.holder.load(Ordering::Acquire) == self.held.0;
        for line in &self.lines {
            line.full.retain(still);
            line.empty.retain(still);
            if !still(line.current.get()) {
                line.current.set(Held::NONE);
                line.room.set(0);
            }
        }
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn me(&self) -> Owner {
        self.me
    }

    /// The holder word of this cache's magazines.
    pub(crate) fn holder(&self) -> Word {
        self.held
    }

    /// A free block of `class`, now `OWNED(me)`; `None` if this context and the depot have none.
    pub(crate) fn pop(&self, class: usize) -> Option<Found> {
        self.pop_fast(class).or_else(|| self.pop_slow(class))
    }

    /// A free block of `class` from the magazine at hand.
    #[inline(always)]
    pub(crate) fn pop_fast(&self, class: usize) -> Option<Found> {
        if !self.enter() {
            return None;
        }
        let found = self.pop_inside(class);
        self.leave();
        found
    }

    #[inline(always)]
    fn pop_inside(&self, class: usize) -> Option<Found> {
        let line = self.lines.get(class)?;
        let magazine = line.current.get().magazine;
        let n = magazine.n.load(Ordering::Relaxed).wrapping_sub(1);
        // Above 59 there is none (n was 0), or the word is broken.
        let granule = magazine.entries.get(n as usize)?.load(Ordering::Relaxed);
        let header = self.arena.block_within(granule, line.reach)?;
        header.state.store(block::owned(self.me).0, Ordering::Relaxed);
        point!("pop: owned");
        // SYNC(kill)
        magazine.n.store(n, Ordering::Release);
        point!("pop: counted");
        if let Some(later) = magazine.entries.get(n.wrapping_sub(AHEAD) as usize) {
            self.arena.prefetch(later.load(Ordering::Relaxed));
        }
        Some(Found { granule, header })
    }

    #[cold]
    #[inline(never)]
    fn pop_slow(&self, class: usize) -> Option<Found> {
        if std::ptr::eq(self.slot.get(), &raw const NOWHERE.0) {
            return None;
        }
        self.enter_surely();
        let found = self.refill(class);
        self.leave();
        found
    }

    fn refill(&self, class: usize) -> Option<Found> {
        let line = self.lines.get(class)?;
        loop {
            // First: it may have been a thief that sent us here, and the magazine at hand is as good as ever.
            if let Some(found) = self.pop_inside(class) {
                return Some(found);
            }
            let current = line.current.get();
            if current.is_real() && current.n() > 0 {
                // An entry that names no block: a foreign hand wrote it. Drop it, or all, and go on.
                let n = current.n();
                current.magazine.n.store(if n > MAGAZINE_ENTRIES { 0 } else { n - 1 }, Ordering::Release);
            } else {
                let full = line.full.pop().or_else(|| self.take_from(class, &line.full))?;
                point!("refill: taken");
                if current.is_real() {
                    self.reserve(class, POOL, &line.empty, current);
                }
                self.set_current(class, full);
            }
        }
    }

    /// Takes a magazine of `list`, from the chain this context is at if there is one.
    fn take_from(&self, list: usize, reserve: &Reserve) -> Option<Held> {
        let follow = |next| depot::follow(&self.arena, list, next, self.held);
        let taken = reserve.next.take().and_then(follow);
        let (index, next) = taken.or_else(|| depot::take_chain(&self.arena, list, self.held))?;
        reserve.next.set(next);
        self.held(index)
    }

    /// Keeps a magazine that belongs to `list`; when there are too many, half of them go to the depot together.
    fn reserve(&self, class: usize, list: usize, reserve: &Reserve, held: Held) {
        let chained = chained(self.arena.geometry(), class);
        if reserve.len.get() >= 2 * chained {
            self.put_some(list, reserve, chained);
        }
        reserve.push(held);
    }

    fn put_some(&self, list: usize, reserve: &Reserve, count: usize) {
        let mut chain = [(u32::MAX, Held::NONE.magazine); MOST_CHAINED];
        let mut len = 0;
        while len < count.min(MOST_CHAINED)
            && let Some(held) = reserve.pop()
        {
            chain[len] = (held.index, held.magazine);
            len += 1;
        }
        depot::put_chain(&self.arena, list, &chain[..len]);
    }

    /// Frees a block of `class` that this process owns.
    ///
    /// # Safety
    /// As for [`Arena::block_known`].
    #[inline(always)]
    pub(crate) unsafe fn push_known(&self, class: usize, granule: u32) {
        // SAFETY: by the caller.
        let header = unsafe { self.arena.block_known(granule) };
        if !self.push_fast(class, granule, header) {
            self.push_slow(class, granule, header);
        }
    }

    /// Frees a block of `class` that this process owns. What names no block is left alone.
    pub(crate) fn push(&self, class: usize, granule: u32) {
        if let Some(header) = self.arena.block(granule)
            && !self.push_fast(class, granule, header)
        {
            self.push_slow(class, granule, header);
        }
    }

    #[inline(always)]
    fn push_fast(&self, class: usize, granule: u32, header: &BlockHeader) -> bool {
        let done = self.enter() && self.push_inside(class, granule, header);
        self.leave();
        done
    }

    #[inline(always)]
    fn push_inside(&self, class: usize, granule: u32, header: &BlockHeader) -> bool {
        let line = &self.lines[class];
        let magazine = line.current.get().magazine;
        let n = magazine.n.load(Ordering::Relaxed);
        if n >= line.room.get() {
            return false;
        }
        // SAFETY: `n` is below `room`, which is at most the number of entries.
        let entry = unsafe { magazine.entries.get_unchecked(n as usize) };
        entry.store(granule, Ordering::Relaxed);
        point!("push: listed");
        // SYNC(kill), twice
        magazine.n.store(n + 1, Ordering::Release);
        point!("push: counted");
        header.state.store(Word::number(state::FREE, 0).0, Ordering::Release);
        true
    }

    #[cold]
    #[inline(never)]
    fn push_slow(&self, class: usize, granule: u32, header: &BlockHeader) {
        self.enter_surely();
        self.make_room(class);
        if !self.push_inside(class, granule, header) {
            // No magazine anywhere has room: still free, still found. One store, so a free can't fail.
            header.state.store(Word::number(state::LOOSE, 0).0, Ordering::Release);
        }
        self.leave();
    }

    fn make_room(&self, class: usize) {
        let line = &self.lines[class];
        let room = capacity(self.arena.geometry(), class);
        let current = line.current.get();
        if current.is_real() && current.n() < room {
            // It had room all along: a thief kept us out.
            return;
        }
        let empty =
            line.empty.pop().or_else(|| self.take_from(POOL, &line.empty)).or_else(|| self.take_partial(class, room));
        if let Some(empty) = empty {
            point!("make room: taken");
            if current.is_real() {
                self.reserve(class, class, &line.full, current);
            }
            self.set_current(class, empty);
        }
    }

    fn set_current(&self, class: usize, held: Held) {
        let line = &self.lines[class];
        line.current.set(held);
        line.room.set(if held.is_real() { capacity(self.arena.geometry(), class) } else { 0 });
    }

    fn take(&self, list: usize) -> Option<Held> {
        depot::take(&self.arena, list, self.held).and_then(|index| self.held(index))
    }

    fn held(&self, index: u32) -> Option<Held> {
        let magazine = std::ptr::from_ref(self.arena.magazine(index)?);
        self.arena.prefetch_magazine(index);
        // SAFETY: inside the segment, which outlives this cache (invariant 2); no copy leaves the cache.
        Some(Held { magazine: unsafe { &*magazine }, index })
    }

    /// A magazine of the depot that is not full, when there is no empty one.
    fn take_partial(&self, class: usize, room: u32) -> Option<Held> {
        let partial = self.take(class)?;
        if partial.n() < room {
            return Some(partial);
        }
        depot::put(&self.arena, partial.index, partial.magazine, class);
        None
    }

    /// Gives every magazine back.
    pub(crate) fn flush(&self) {
        self.enter_surely();
        for (class, line) in self.lines.iter().enumerate() {
            let current = line.current.get();
            self.set_current(class, Held::NONE);
            let reserves = std::iter::from_fn(|| line.full.pop().or_else(|| line.empty.pop()));
            for held in std::iter::once(current).filter(|held| held.is_real()).chain(reserves) {
                self.merge(class, held);
                depot::put(&self.arena, held.index, held.magazine, class);
            }
            depot::leave_chain(&self.arena, class, line.full.next.take());
            depot::leave_chain(&self.arena, POOL, line.empty.next.take());
        }
        self.leave();
    }

    /// Fills a half-empty magazine of the depot from `held`, so that contexts that come and go don't litter the depot
    /// with magazines of few entries.
    fn merge(&self, class: usize, held: Held) {
        let room = capacity(self.arena.geometry(), class);
        if held.n() == 0 || held.n() >= room {
            return;
        }
        let Some(other) = self.take(class) else { return };
        while other.n() < room
            && let Some(granule) = self.pop_from(held)
        {
            // A pop and a push, each of which a kill may follow.
            self.push_to(other, granule);
        }
        depot::put(&self.arena, other.index, other.magazine, class);
    }

    fn pop_from(&self, held: Held) -> Option<u32> {
        let n = held.n().checked_sub(1)?;
        let granule = held.magazine.entries.get(n as usize)?.load(Ordering::Relaxed);
        let block = self.arena.block(granule)?;
        block.state.store(block::owned(self.me).0, Ordering::Relaxed);
        point!("merge: owned");
        held.magazine.n.store(n, Ordering::Release);
        point!("merge: popped");
        Some(granule)
    }

    fn push_to(&self, held: Held, granule: u32) {
        let n = held.n();
        let (Some(entry), Some(block)) = (held.magazine.entries.get(n as usize), self.arena.block(granule)) else {
            return;
        };
        entry.store(granule, Ordering::Relaxed);
        point!("merge: listed");
        held.magazine.n.store(n + 1, Ordering::Release);
        point!("merge: counted");
        block.state.store(Word::ZERO.0, Ordering::Release);
    }

    /// Never touches the segment again: the context is closed, or (in a forked child) the parent's.
    pub(crate) fn forget(&self) {
        self.slot.set(&NOWHERE.0);
        for (class, line) in self.lines.iter().enumerate() {
            self.set_current(class, Held::NONE);
            line.full.retain(|_| false);
            line.empty.retain(|_| false);
            line.full.next.set(None);
            line.empty.next.set(None);
        }
    }
}
