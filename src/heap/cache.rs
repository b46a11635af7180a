//! A context's free blocks: two magazines a size class, so that nearly every allocation and free is a pop or a push.
//!
//! Promises: [`Cache::pop`] and [`Cache::push`] take no lock, no fence, no read-modify-write and no system call unless a
//! magazine runs empty or full; a push never fails. Refuses: to be used by two threads.
//!
//! # Ownership
//! A magazine whose holder word names this context is written by its thread alone.
//!
//! # If a process dies
//! Single writer, program order (`SYNC(kill)`: the second store is Release, so the compiler keeps the order and the
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

use crate::arena::Arena;
use crate::heap::block::{self, state};
use crate::heap::{class, depot};
use crate::layout::{Geometry, MAGAZINE_ENTRIES, Magazine, Owner, POOL, Word};
use crate::sync::Ordering;
use std::cell::Cell;

/// Stands in where a line has no magazine: nothing to pop, no room to push.
struct Unusable(Magazine);
// SAFETY: atomics throughout, and never written (invariant 1).
unsafe impl Sync for Unusable {}
// SAFETY: all zeroes is a valid magazine (`Shared`).
static UNUSABLE: Unusable = Unusable(unsafe { std::mem::zeroed() });

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

/// What a context holds of one class.
struct Line {
    current: Cell<Held>,
    /// Entries the current magazine may have: the class's capacity, or 0 if there is no magazine.
    room: Cell<u32>,
    spare: Cell<Held>,
}

/// See the module.
pub(crate) struct Cache {
    arena: Arena,
    me: Owner,
    /// The holder word of this context's magazines.
    held: Word,
    lines: [Line; class::COUNT],
    /// Nothing is taken from the depot any more.
    forgotten: Cell<bool>,
}

/// Entries a magazine of `class` may hold: what is cached is worth at most a 4096th of the buffer, within reason.
pub(crate) fn capacity(geometry: &Geometry, class: usize) -> u32 {
    let budget = (u64::from(geometry.units) * 16).clamp(16 << 10, 256 << 10);
    let block = u64::from(class::granules(class)) * 64;
    u32::try_from(budget / block).unwrap_or(1).clamp(1, MAGAZINE_ENTRIES as u32)
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("me", &self.me).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache for the context slot `context`, which belongs to the process `me`.
    pub(crate) fn new(arena: Arena, me: Owner, context: Owner) -> Self {
        let line = |_| Line { current: Cell::new(Held::NONE), room: Cell::new(0), spare: Cell::new(Held::NONE) };
        let held = Word::of(depot::HELD, context);
        Self { arena, me, held, lines: std::array::from_fn(line), forgotten: Cell::new(false) }
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
    #[inline(always)]
    pub(crate) fn pop(&self, class: usize) -> Option<u32> {
        self.pop_fast(class).or_else(|| self.pop_slow(class))
    }

    #[inline(always)]
    fn pop_fast(&self, class: usize) -> Option<u32> {
        let magazine = self.lines[class].current.get().magazine;
        let n = magazine.n.load(Ordering::Relaxed).wrapping_sub(1);
        // Above 59 there is none (n was 0), or the word is broken.
        let granule = magazine.entries.get(n as usize)?.load(Ordering::Relaxed);
        let block = self.arena.block(granule).filter(|_| self.arena.fits(granule, class))?;
        block.state.store(block::owned(self.me).0, Ordering::Relaxed);
        // SYNC(kill)
        magazine.n.store(n, Ordering::Release);
        Some(granule)
    }

    #[cold]
    #[inline(never)]
    fn pop_slow(&self, class: usize) -> Option<u32> {
        let line = &self.lines[class];
        loop {
            let (current, spare) = (line.current.get(), line.spare.get());
            if current.is_real() && current.n() > 0 {
                // An entry that names no block: a foreign hand wrote it. Drop it, or all, and go on.
                let n = current.n();
                current.magazine.n.store(if n as usize > MAGAZINE_ENTRIES { 0 } else { n - 1 }, Ordering::Release);
            } else if spare.is_real() && spare.n() > 0 {
                self.set_current(class, spare);
                line.spare.set(current);
            } else {
                let full = self.take(class)?;
                // Keep one empty magazine for the frees to come.
                if spare.is_real() && current.is_real() {
                    depot::put(&self.arena, current.index, current.magazine, class);
                } else if current.is_real() {
                    line.spare.set(current);
                }
                self.set_current(class, full);
            }
            if let Some(granule) = self.pop_fast(class) {
                return Some(granule);
            }
        }
    }

    /// Frees a block of `class` that this process owns.
    #[inline(always)]
    pub(crate) fn push(&self, class: usize, granule: u32) {
        if !self.push_fast(class, granule) {
            self.push_slow(class, granule);
        }
    }

    #[inline(always)]
    fn push_fast(&self, class: usize, granule: u32) -> bool {
        let line = &self.lines[class];
        let magazine = line.current.get().magazine;
        let n = magazine.n.load(Ordering::Relaxed);
        if n >= line.room.get() {
            return false;
        }
        let (Some(entry), Some(block)) = (magazine.entries.get(n as usize), self.arena.block(granule)) else {
            return false;
        };
        entry.store(granule, Ordering::Relaxed);
        // SYNC(kill), twice
        magazine.n.store(n + 1, Ordering::Release);
        block.state.store(Word::number(state::FREE, 0).0, Ordering::Release);
        true
    }

    #[cold]
    #[inline(never)]
    fn push_slow(&self, class: usize, granule: u32) {
        let line = &self.lines[class];
        let room = capacity(self.arena.geometry(), class);
        let (current, spare) = (line.current.get(), line.spare.get());
        if spare.is_real() && spare.n() < room {
            self.set_current(class, spare);
            line.spare.set(current);
        } else if let Some(empty) = self.take_room(class, room) {
            if spare.is_real() {
                depot::put(&self.arena, spare.index, spare.magazine, class);
            }
            line.spare.set(current);
            self.set_current(class, empty);
        }
        if !self.push_fast(class, granule)
            && let Some(block) = self.arena.block(granule)
        {
            // No magazine anywhere has room: still free, still found. One store, so a free can't fail.
            block.state.store(Word::number(state::LOOSE, 0).0, Ordering::Release);
        }
    }

    fn set_current(&self, class: usize, held: Held) {
        let line = &self.lines[class];
        line.current.set(held);
        line.room.set(if held.is_real() { capacity(self.arena.geometry(), class) } else { 0 });
    }

    fn take(&self, list: usize) -> Option<Held> {
        if self.forgotten.get() {
            return None;
        }
        depot::take(&self.arena, list, self.held).and_then(|index| self.held(index))
    }

    fn held(&self, index: u32) -> Option<Held> {
        let magazine = std::ptr::from_ref(self.arena.magazine(index)?);
        // SAFETY: inside the segment, which outlives this cache (invariant 2); no copy leaves the cache.
        Some(Held { magazine: unsafe { &*magazine }, index })
    }

    /// A magazine with room: an empty one, or one of the class that is not full.
    fn take_room(&self, class: usize, room: u32) -> Option<Held> {
        if let Some(empty) = self.take(POOL) {
            return Some(empty);
        }
        let partial = self.take(class)?;
        if partial.n() < room {
            return Some(partial);
        }
        depot::put(&self.arena, partial.index, partial.magazine, class);
        None
    }

    /// Gives every magazine back.
    pub(crate) fn flush(&self) {
        for class in 0..class::COUNT {
            let line = &self.lines[class];
            let (current, spare) = (line.current.get(), line.spare.get());
            self.set_current(class, Held::NONE);
            line.spare.set(Held::NONE);
            for held in [current, spare] {
                if held.is_real() {
                    self.merge(class, held);
                    depot::put(&self.arena, held.index, held.magazine, class);
                }
            }
        }
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
        held.magazine.n.store(n, Ordering::Release);
        Some(granule)
    }

    fn push_to(&self, held: Held, granule: u32) {
        let n = held.n();
        let (Some(entry), Some(block)) = (held.magazine.entries.get(n as usize), self.arena.block(granule)) else {
            return;
        };
        entry.store(granule, Ordering::Relaxed);
        held.magazine.n.store(n + 1, Ordering::Release);
        block.state.store(Word::ZERO.0, Ordering::Release);
    }

    /// Forgets every magazine without touching the segment: in a forked child they are the parent's.
    pub(crate) fn forget(&self) {
        self.forgotten.set(true);
        for class in 0..class::COUNT {
            self.set_current(class, Held::NONE);
            self.lines[class].spare.set(Held::NONE);
        }
    }
}
