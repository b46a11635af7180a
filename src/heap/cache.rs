//! A context's free blocks: a few magazines a size class, so that nearly every allocation and free is a pop or a push.
//!
//! Promises: [`Cache::pop`] and [`Cache::push`] take no lock, no fence, no read-modify-write and no system call unless a
//! magazine runs empty or full; a push never fails. Refuses: to be used by two threads.
//!
//! # Ownership
//! A magazine whose holder word names this context is written by its thread alone.
//!
//! # The spare
//! The block freed last is kept outside the magazines, named by the context's *gate* word: what is freed next pushes it into its
//! magazine, and an allocation of its class takes it. So a thread that frees and allocates one size touches one word of its own,
//! and no magazine. The spare's header keeps saying `OWNED(me)`.
//!
//! # Revocation
//! What an idle context caches may be what another one lacks, and its thread may never call again. So when memory is short,
//! another process (the *thief*) may put a context's magazines back into the depot, and take its spare, behind its back.
//! `SYNC(gate)`: the owner stores `gate = INSIDE`, then looks at `revoked`, works, and stores what it has now (Release); the thief writes
//! its name into `revoked`, makes the heavy barrier (`sys::barrier`), and looks at `gate` (Acquire). One of the two sees the
//! other: either the thief sees the owner inside and leaves it alone, or the owner sees the thief's name. Then one CAS on
//! `revoked` decides: the owner refuses, or the thief has it, and the owner keeps out until the thief is done, or dead.
//! ```text
//! gate      INSIDE | BARE | the handle of the spare                                 written by the owner only
//! revoked   idle: 0, or the owner's tag, which the owner puts there when it next looks
//!           idle -> TAKING thief                  by the thief
//!           TAKING -> 0                           by the owner, who is awake
//!           TAKING -> TAKEN thief                 by the thief, who saw the owner outside
//!           TAKEN -> EMPTIED thief                by the thief, when the spare is its own
//!           TAKEN -> VERIFY, EMPTIED -> FORGET    by the thief when done, or by who sees that it is dead
//!           VERIFY -> 0, FORGET -> 0              by the owner, once it has dropped what it no longer holds
//!           VERIFY -> TAKEN, FORGET -> EMPTIED    by the next thief: the owner is outside still
//!           (VERIFY and FORGET are numbered: an owner that has verified after one theft has not after the next)
//!           idle -> ASKED, ASKED -> 0             by who waits for memory, and by the owner, who then gives back what it caches
//! ```
//!
//! # If a process dies
//! A thief: what it had put back is in the depot, the rest is still the owner's. Killed after it had written its name into
//! the spare's header, but before `EMPTIED`: the header is given its old name again before anybody looks for what the
//! thief owned ([`settle`]).
//!
//! The owner: single writer, program order (`SYNC(kill)`: the second store is Release, so the compiler keeps the order and the
//! machine can't show the second without the first):
//!
//! | after | the block is | repaired by |
//! |---|---|---|
//! | naming: `state = OWNED(me)` | still in the magazine: free | the names pass takes the name off |
//! | pop: `n - 1` | owned, in nobody's hands | the header scan frees it |
//! | push: entry | owned, beyond `n` | the header scan frees it |
//! | push: `n + 1` | in the magazine: free | the names pass takes the name off |
//! | the spare, named or not | owned, in nobody's hands | the header scan frees it |
//!
//! So a block is free if and only if it is in a magazine, or a spare (or `LOOSE`), whatever its state word says: a push
//! leaves the name of the last owner there, because the header's line is far away when records are freed in any order.
//!
//! # Names
//! A pop writes no name either: what this process has pushed bears its name, and the blocks of a magazine that others have filled
//! get it a few at a time before they are popped, so that their headers, which are in other cores' caches, come together.
//!
//! # Invariants
//! 1. Each magazine of a line is held by this context in the segment; `UNUSABLE` is held by nobody and is never written,
//!    because its line has `room` 0.
//! 2. The segment stays mapped while the cache lives (the context holds the process's attachment).
//! 3. The blocks of a held magazine from `named` on are `OWNED(me)`, and every block that is pushed.

#![allow(unsafe_code)]

use crate::arena::{Arena, Reach};
use crate::heap::block::{self, Block, Handle, Tag, state};
use crate::heap::{self, class, depot, unit, want};
use crate::layout::{ContextSlot, GRANULE, Geometry, MAGAZINE_ENTRIES, Magazine, Owner, POOL, UNIT, Word};
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

/// The slot of a cache that has none any more, and of a thread that has no cache: it looks revoked for good.
struct Nowhere(ContextSlot);
// SAFETY: atomics throughout; nobody acts on what is written there.
unsafe impl Sync for Nowhere {}
static NOWHERE: Nowhere = Nowhere(ContextSlot::revoked_for_good(Word::number(revoked::VERIFY, 0)));

#[derive(Clone, Copy)]
struct Held {
    magazine: &'static Magazine,
    index: u32,
    /// Its entries from here on bear this process's name.
    named: u32,
}

impl Held {
    const NONE: Self = Self { magazine: &UNUSABLE.0, index: u32::MAX, named: 0 };

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

    fn last(&self) -> Option<Held> {
        Some(self.held.get(self.len.get().wrapping_sub(1))?.get())
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

/// Of the first `end` entries, the last that are named together.
fn last_of(magazine: &Magazine, end: u32) -> impl Iterator<Item = u32> {
    let range = end.saturating_sub(NAMED_TOGETHER) as usize..end as usize;
    magazine.entries.get(range).unwrap_or_default().iter().map(|entry| entry.load(Ordering::Relaxed))
}

/// What a context has at hand of one class.
#[repr(align(32))]
struct Line {
    magazine: Cell<&'static Magazine>,
    index: Cell<u32>,
    /// The magazine's entries from here on bear this process's name.
    named: Cell<u32>,
    /// Entries the magazine may have: the class's capacity, at most [`MAGAZINE_ENTRIES`], or 0 if there is no magazine.
    room: Cell<u32>,
    reach: Reach,
    /// A unit that was seen to be a slab of the class.
    slab: Cell<u32>,
}

impl Line {
    const fn new(reach: Reach) -> Self {
        Self {
            magazine: Cell::new(Held::NONE.magazine),
            index: Cell::new(Held::NONE.index),
            named: Cell::new(0),
            room: Cell::new(0),
            reach,
            slab: Cell::new(u32::MAX),
        }
    }
}

/// What a context has in reserve of one class.
struct Stock {
    /// Magazines to pop from next.
    full: Reserve,
    /// Magazines to push to next.
    empty: Reserve,
    /// [`capacity`] of the class.
    room: u32,
    /// Magazines of the class that go to the depot together; a context keeps twice as many full ones. Where blocks are large, one.
    chained: usize,
}

impl Stock {
    fn new(geometry: &Geometry, class: usize) -> Self {
        let room = capacity(geometry, class);
        let magazine = u64::from(room * class::granules(class)) * GRANULE;
        let chained = usize::try_from(budget(geometry) / 2 / magazine).unwrap_or(1).clamp(1, MOST_CHAINED);
        Self { full: Reserve::new(), empty: Reserve::new(), room, chained }
    }
}

/// Kinds of `ContextSlot::revoked`; see the module.
pub(crate) mod revoked {
    use crate::layout::Word;

    pub(crate) const TAKING: u64 = 1;
    pub(crate) const TAKEN: u64 = 2;
    pub(crate) const EMPTIED: u64 = 3;
    pub(crate) const VERIFY: u64 = 4;
    pub(crate) const FORGET: u64 = 5;
    pub(crate) const ASKED: u64 = 6;

    /// In the number of a theft that somebody else ended; for [`VERIFY`] and [`FORGET`].
    pub(crate) const BY_THE_DEAD: u64 = 1 << 55;

    /// Whether nobody wants anything of the owner: 0, or its tag, which is above all of these.
    pub(crate) const fn is_idle(word: Word) -> bool {
        word.kind() == 0 || word.kind() >= 8
    }
}

/// What `ContextSlot::gate` says: inside, or the [`Handle`] of the spare, or that there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate(Handle);

impl Gate {
    const INSIDE: Self = Self(Handle::from_word(0));
    /// Outside, without a spare.
    pub(crate) const BARE: Self = Self(Handle::from_word(u64::MAX));

    pub(crate) fn of(slot: &ContextSlot) -> Self {
        // SYNC(gate)
        Self(Handle::from_word(slot.gate.load(Ordering::Acquire)))
    }

    pub(crate) const fn word(self) -> u64 {
        self.0.word()
    }

    pub(crate) fn is_outside(self) -> bool {
        self.0.is_marked()
    }

    /// Whether there is no spare, as the owner sees it.
    #[inline(always)]
    fn is_bare(self) -> bool {
        self.0.word() == Self::BARE.0.word()
    }

    /// The spare, if there is one that may be a block: a foreign hand may have written there.
    fn spare(self, arena: &Arena) -> Option<Block> {
        let class = usize::from(self.0.class());
        (self.is_outside() && class < class::COUNT).then_some(())?;
        Some(Block { handle: self.0, start: arena.block_within(self.0.granule(), arena.reach(class))? })
    }
}

/// The spare of the context `slot`, unless a thief has taken it, or the owner is inside.
pub(crate) fn spare(arena: &Arena, slot: &ContextSlot) -> Option<Block> {
    let spare = Gate::of(slot).spare(arena);
    let revoked = Word(slot.revoked.load(Ordering::Acquire)).kind();
    spare.filter(|_| !matches!(revoked, revoked::EMPTIED | revoked::FORGET))
}

/// The owner inside its cache: what the gate said when it entered.
#[must_use]
struct Inside {
    slot: &'static ContextSlot,
    gate: Gate,
}

impl Inside {
    /// Steps outside, leaving what `gate` names there.
    #[inline(always)]
    fn leave(&self, gate: Gate) {
        self.slot.gate.store(gate.word(), Ordering::Release);
    }
}

/// Undoes what the dead `thief` did to the spare of `slot`'s context, if its death cut it short, and lets the context go on. To
/// be called before anybody looks for what the thief owned.
pub(crate) fn settle(arena: &Arena, slot: &ContextSlot, thief: Owner) {
    let word = Word(slot.revoked.load(Ordering::Acquire));
    if word.owner() != thief {
        return;
    }
    let then = match word.kind() {
        revoked::TAKING => Word::ZERO,
        revoked::TAKEN => {
            let owner = Word(slot.owner.load(Ordering::Acquire)).owner();
            if let Some(spare) = spare(arena, slot) {
                block::change(spare.header(), block::owned(thief), block::owned(owner));
                point!("settle: spare");
            }
            Word::number(revoked::VERIFY, revoked::BY_THE_DEAD | Word::of(0, thief).value())
        }
        revoked::EMPTIED => Word::number(revoked::FORGET, revoked::BY_THE_DEAD | Word::of(0, thief).value()),
        _ => return,
    };
    let _ = slot.revoked.compare_exchange(word.0, then.0, Ordering::AcqRel, Ordering::Relaxed);
}

/// What a free needs: a thread without a cache has one of these too, [`NOBODYS`].
#[repr(C)]
pub(crate) struct Front {
    slot: Cell<&'static ContextSlot>,
    /// One for each class, and some that stand for none: no need to check what a handle says.
    lines: [Line; LINES],
}

struct Nobodys(Front);
// SAFETY: nobody gets in (its slot is `NOWHERE`), so its cells are never written.
unsafe impl Sync for Nobodys {}
static NOBODYS_FRONT: Nobodys =
    Nobodys(Front { slot: Cell::new(&NOWHERE.0), lines: [const { Line::new(Reach::NONE) }; LINES] });
/// Where nothing can be freed.
pub(crate) const NOBODYS: *const Front = &raw const NOBODYS_FRONT.0;

impl Front {
    /// Steps inside, if `is_idle` says of the word `revoked` that no thief is at work, or has been: else the slow path settles it.
    #[inline(always)]
    fn enter(&self, is_idle: impl FnOnce(u64) -> bool) -> Option<Inside> {
        let slot = self.slot.get();
        let gate = Gate(Handle::from_word(slot.gate.load(Ordering::Relaxed)));
        slot.gate.store(Gate::INSIDE.word(), Ordering::Relaxed);
        // SYNC(gate)
        compiler_fence(Ordering::SeqCst);
        let inside = Inside { slot, gate };
        if !is_idle(slot.revoked.load(Ordering::Relaxed)) {
            inside.leave(gate);
            return None;
        }
        Some(inside)
    }

    /// Frees a block that this process owns, if it is one of the buffer's and there is room: then nothing else need be looked at.
    #[inline(always)]
    pub(crate) fn push(&self, handle: Handle) -> bool {
        let Some(inside) = self.enter(|word| handle.is_small_of(word)) else { return false };
        let done = inside.gate.is_bare() || self.push_inside(inside.gate.0);
        inside.leave(if done { Gate(handle) } else { inside.gate });
        done
    }

    #[inline(always)]
    fn push_inside(&self, handle: Handle) -> bool {
        let line = &self.lines[handle.class_below::<LINES>()];
        let magazine = line.magazine.get();
        let n = magazine.n.load(Ordering::Relaxed);
        if n >= line.room.get() {
            return false;
        }
        // SAFETY: `n` is below `room`, which is at most the number of entries.
        let entry = unsafe { magazine.entries.get_unchecked(n as usize) };
        entry.store(handle.granule(), Ordering::Relaxed);
        point!("push: listed");
        // SYNC(kill)
        magazine.n.store(n + 1, Ordering::Release);
        point!("push: counted");
        true
    }
}

/// See the module.
#[repr(C)] // what the fast paths need comes first, and together
pub(crate) struct Cache {
    arena: Arena,
    /// The state word of this process's blocks.
    owned: Word,
    /// What this cache's handles carry.
    tag: Tag,
    front: Front,
    me: Owner,
    /// The holder word of this context's magazines.
    held: Word,
    stocks: [Stock; class::COUNT],
    /// Somebody waits for memory.
    is_asked: Cell<bool>,
    /// Whether that process will never act again; asked while it keeps us out.
    is_dead: Box<dyn Fn(Owner) -> bool>,
}

/// A power of two.
const LINES: usize = class::COUNT.next_power_of_two();

/// Blocks of a magazine that get this process's name together, while those after them are asked for: nearly every block was last
/// touched by another core.
const NAMED_TOGETHER: u32 = 15;

/// Entries a magazine of `class` may hold: what is cached is worth at most the [`budget`], within reason.
pub(crate) fn capacity(geometry: &Geometry, class: usize) -> u32 {
    let block = u64::from(class::granules(class)) * GRANULE;
    u32::try_from(budget(geometry) / block).unwrap_or(1).clamp(1, MAGAZINE_ENTRIES)
}

/// A 4096th of the buffer, in bytes, within reason.
fn budget(geometry: &Geometry) -> u64 {
    (u64::from(geometry.units) * UNIT / 4096).clamp(16 << 10, 256 << 10)
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
        tag: Tag,
        context: Owner,
        is_dead: impl Fn(Owner) -> bool + 'static,
    ) -> Option<Self> {
        let held = Word::of(depot::HELD, context);
        let slot = Cell::new(arena.context(context.index())?);
        let line = |class: usize| Line::new(if class < class::COUNT { arena.reach(class) } else { Reach::NONE });
        Some(Self {
            front: Front { slot, lines: std::array::from_fn(line) },
            arena,
            me,
            owned: block::owned(me),
            tag,
            held,
            stocks: std::array::from_fn(|class| Stock::new(arena.geometry(), class)),
            is_asked: Cell::new(false),
            is_dead: Box::new(is_dead),
        })
    }

    /// Steps inside, once no thief is at work, and forgets what one has taken.
    fn enter_surely(&self) -> Inside {
        loop {
            if let Some(inside) = self.front.enter(|word| self.tag.word() == word) {
                return inside;
            }
            let slot = self.front.slot.get();
            let word = Word(slot.revoked.load(Ordering::Acquire));
            let change = |to| {
                let _ = slot.revoked.compare_exchange(word.0, to, Ordering::AcqRel, Ordering::Relaxed);
            };
            if revoked::is_idle(word) {
                change(self.tag.word());
                continue;
            }
            // Whatever brought us here: a thief takes over from who asked.
            self.is_asked.set(want::is_wanted(&self.arena));
            match word.kind() {
                // Not if the thief can help it: if its CAS comes first, it has us.
                revoked::TAKING => change(0),
                revoked::ASKED => change(0),
                revoked::TAKEN | revoked::EMPTIED if (self.is_dead)(word.owner()) => {
                    settle(&self.arena, slot, word.owner());
                }
                revoked::TAKEN | revoked::EMPTIED => std::thread::sleep(Duration::from_micros(20)),
                kind => {
                    self.verify();
                    if kind == revoked::FORGET {
                        slot.gate.store(Gate::BARE.word(), Ordering::Release);
                    }
                    point!("verify: checked");
                    change(0);
                    point!("verify: settled");
                }
            }
        }
    }

    /// Whether this cache is at its end: see [`forget`](Self::forget).
    fn is_shut(&self) -> bool {
        std::ptr::eq(self.front.slot.get(), &raw const NOWHERE.0)
    }

    /// Forgets the magazines that are no longer this context's.
    fn verify(&self) {
        let still = |held: Held| held.magazine.holder.load(Ordering::Acquire) == self.held.0;
        for (class, stock) in self.stocks.iter().enumerate() {
            stock.full.retain(still);
            stock.empty.retain(still);
            if !still(self.current(class)) {
                self.set_current(class, Held::NONE);
            }
        }
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn me(&self) -> Owner {
        self.me
    }

    /// The state word of this process's blocks.
    #[inline(always)]
    pub(crate) fn owned(&self) -> Word {
        self.owned
    }

    #[inline(always)]
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    /// Names a block to this cache.
    #[inline(always)]
    pub(crate) fn handle(&self, class: usize, granule: u32) -> Handle {
        Handle::new(self.tag, heap::index(class), granule)
    }

    /// Whether a block of `class` starts at `granule` of the data, by what its unit says: for slabs of one unit only, as nearly all
    /// are. What was seen to be a slab is not looked at again: a block that is anybody's keeps its slab in place.
    #[inline(always)]
    pub(crate) fn is_block(&self, granule: u32, class: usize) -> bool {
        let is_slab =
            self.front.lines[class].slab.get() == self.arena.unit_of(granule) || self.finds_slab(granule, class);
        is_slab && class::starts_at(class, self.arena.granules_into_unit(granule))
    }

    #[cold]
    #[inline(never)]
    fn finds_slab(&self, granule: u32, class: usize) -> bool {
        let is_slab = unit::is_slab(&self.arena, granule, class);
        if is_slab {
            self.front.lines[class].slab.set(self.arena.unit_of(granule));
        }
        is_slab
    }

    /// The holder word of this cache's magazines.
    pub(crate) fn holder(&self) -> Word {
        self.held
    }

    /// A free block of `class`, now `OWNED(me)`; `None` if this context and the depot have none.
    pub(crate) fn pop(&self, class: usize) -> Option<Block> {
        self.pop_fast(class).or_else(|| self.pop_slow(class))
    }

    /// A free block of `class`: the spare, or one from the magazine at hand.
    #[inline(always)]
    pub(crate) fn pop_fast(&self, class: usize) -> Option<Block> {
        let inside = self.front.enter(|word| self.tag.word() == word)?;
        let spare = inside.gate.0;
        if spare.is_of(self.tag, class) {
            // Checked, for a foreign hand may have written there.
            let start = self.arena.block_within(spare.granule(), self.front.lines.get(class)?.reach);
            inside.leave(Gate::BARE);
            return start.map(|start| Block { handle: spare, start });
        }
        let found = self.pop_inside(class);
        inside.leave(inside.gate);
        found
    }

    #[inline(always)]
    fn pop_inside(&self, class: usize) -> Option<Block> {
        let line = self.front.lines.get(class)?;
        let magazine = line.magazine.get();
        let n = magazine.n.load(Ordering::Relaxed);
        if n <= line.named.get() {
            return None;
        }
        // Above the last there is none: the word is broken.
        let granule = magazine.entries.get(n as usize - 1)?.load(Ordering::Relaxed);
        let start = self.arena.block_within(granule, line.reach)?;
        // SYNC(kill): it bears our name already.
        magazine.n.store(n - 1, Ordering::Release);
        point!("pop: counted");
        Some(Block { handle: self.handle(class, granule), start })
    }

    #[cold]
    #[inline(never)]
    fn pop_slow(&self, class: usize) -> Option<Block> {
        if self.is_shut() {
            return None;
        }
        let inside = self.enter_surely();
        let found = self.refill(class);
        inside.leave(inside.gate);
        self.give_back_if_asked();
        found
    }

    fn refill(&self, class: usize) -> Option<Block> {
        let (line, stock) = (self.front.lines.get(class)?, self.stocks.get(class)?);
        loop {
            // First: it may have been a thief that sent us here, and the magazine at hand is as good as ever.
            if let Some(found) = self.pop_inside(class) {
                return Some(found);
            }
            let current = self.current(class);
            let n = current.n();
            if current.is_real() && n > 0 {
                if n > MAGAZINE_ENTRIES || n > line.named.get() {
                    // An entry that names no block: a foreign hand wrote it. Drop it, or all, and go on.
                    current.magazine.n.store(if n > MAGAZINE_ENTRIES { 0 } else { n - 1 }, Ordering::Release);
                } else {
                    self.name_some(class, n);
                }
            } else {
                let full = stock.full.pop().or_else(|| self.take_from(class, &stock.full))?;
                point!("refill: taken");
                if current.is_real() {
                    self.reserve(class, POOL, &stock.empty, current);
                }
                self.set_current(class, full);
            }
        }
    }

    /// Gives some more of the `n` blocks of the magazine at hand this process's name, and asks for those that come next.
    fn name_some(&self, class: usize, n: u32) {
        let (line, stock) = (&self.front.lines[class], &self.stocks[class]);
        let magazine = line.magazine.get();
        let begin = n.saturating_sub(NAMED_TOGETHER);
        for granule in last_of(magazine, n) {
            if let Some(start) = self.arena.block_within(granule, line.reach) {
                start.header().state.store(self.owned.0, Ordering::Relaxed);
                point!("name: owned");
            }
        }
        line.named.set(begin);
        let next =
            if begin > 0 { Some((magazine, begin)) } else { stock.full.last().map(|held| (held.magazine, held.named)) };
        if let Some((magazine, end)) = next {
            last_of(magazine, end).for_each(|granule| self.arena.prefetch(granule));
        }
        // Its lines are here when it is the next one.
        if (1..=NAMED_TOGETHER).contains(&begin)
            && stock.full.len.get() == 0
            && let Some(held) = self.take_from(class, &stock.full)
        {
            stock.full.push(held);
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
        let chained = self.stocks[class].chained;
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

    pub(crate) fn front(&self) -> &Front {
        &self.front
    }

    /// Frees a block of a class that this process owns.
    pub(crate) fn push(&self, handle: Handle) {
        if !self.front.push(handle) {
            self.push_slow(handle);
        }
    }

    #[cold]
    #[inline(never)]
    fn push_slow(&self, handle: Handle) {
        if self.is_shut() {
            return;
        }
        let inside = self.enter_surely();
        self.put_away(inside.gate);
        inside.leave(Gate(handle));
        self.give_back_if_asked();
    }

    fn give_back_if_asked(&self) {
        if self.is_asked.get() {
            self.flush();
        }
    }

    /// Pushes the spare that `gate` names.
    fn put_away(&self, gate: Gate) {
        let Some(spare) = gate.spare(&self.arena) else { return };
        self.make_room(spare.handle.class().into());
        if !self.front.push_inside(spare.handle) {
            // No magazine anywhere has room: still free, still found. One store, so a free can't fail.
            spare.header().state.store(Word::number(state::LOOSE, 0).0, Ordering::Release);
        }
    }

    fn make_room(&self, class: usize) {
        let stock = &self.stocks[class];
        let room = stock.room;
        let current = self.current(class);
        if current.is_real() && current.n() < room {
            // It had room all along: a thief kept us out.
            return;
        }
        let empty =
            stock.empty.pop().or_else(|| self.take_from(POOL, &stock.empty)).or_else(|| self.take_partial(class, room));
        if let Some(empty) = empty {
            point!("make room: taken");
            if current.is_real() {
                self.reserve(class, class, &stock.full, current);
            }
            self.set_current(class, empty);
        }
    }

    fn current(&self, class: usize) -> Held {
        let line = &self.front.lines[class];
        Held { magazine: line.magazine.get(), index: line.index.get(), named: line.named.get() }
    }

    fn set_current(&self, class: usize, held: Held) {
        let line = &self.front.lines[class];
        line.magazine.set(held.magazine);
        line.index.set(held.index);
        line.named.set(held.named);
        line.room.set(if held.is_real() { self.stocks[class].room } else { 0 });
    }

    fn take(&self, list: usize) -> Option<Held> {
        depot::take(&self.arena, list, self.held).and_then(|index| self.held(index))
    }

    fn held(&self, index: u32) -> Option<Held> {
        let magazine = std::ptr::from_ref(self.arena.magazine(index)?);
        self.arena.prefetch_magazine(index);
        // SAFETY: inside the segment, which outlives this cache (invariant 2); no copy leaves the cache.
        let magazine: &'static Magazine = unsafe { &*magazine };
        Some(Held { magazine, index, named: magazine.n.load(Ordering::Relaxed) })
    }

    /// A magazine of the depot that is not full, when there is no empty one.
    fn take_partial(&self, class: usize, room: u32) -> Option<Held> {
        let partial = self.take(class)?;
        if partial.n() < room {
            return Some(partial);
        }
        depot::put_back(&self.arena, partial.index, partial.magazine, class);
        None
    }

    /// Gives every magazine back.
    pub(crate) fn flush(&self) {
        if self.is_shut() {
            return;
        }
        let inside = self.enter_surely();
        self.put_away(inside.gate);
        point!("flush: no spare");
        for (class, stock) in self.stocks.iter().enumerate() {
            let current = self.current(class);
            self.set_current(class, Held::NONE);
            let reserves = std::iter::from_fn(|| stock.full.pop().or_else(|| stock.empty.pop()));
            for held in std::iter::once(current).filter(|held| held.is_real()).chain(reserves) {
                self.merge(class, held);
                depot::put(&self.arena, held.index, held.magazine, class);
            }
            depot::leave_chain(&self.arena, class, stock.full.next.take());
            depot::leave_chain(&self.arena, POOL, stock.empty.next.take());
        }
        self.is_asked.set(false);
        inside.leave(Gate::BARE);
    }

    /// Fills a half-empty magazine of the depot from `held`, so that contexts that come and go don't litter the depot
    /// with magazines of few entries.
    fn merge(&self, class: usize, held: Held) {
        let room = self.stocks[class].room;
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
        block.state.store(self.owned.0, Ordering::Relaxed);
        point!("merge: owned");
        held.magazine.n.store(n, Ordering::Release);
        point!("merge: popped");
        Some(granule)
    }

    fn push_to(&self, held: Held, granule: u32) {
        let n = held.n();
        let Some(entry) = held.magazine.entries.get(n as usize) else { return };
        entry.store(granule, Ordering::Relaxed);
        point!("merge: listed");
        held.magazine.n.store(n + 1, Ordering::Release);
        point!("merge: counted");
    }

    /// Never touches the segment again: the context is closed, or (in a forked child) the parent's.
    pub(crate) fn forget(&self) {
        self.front.slot.set(&NOWHERE.0);
        for (class, stock) in self.stocks.iter().enumerate() {
            self.set_current(class, Held::NONE);
            stock.full.retain(|_| false);
            stock.empty.retain(|_| false);
            stock.full.next.set(None);
            stock.empty.next.set(None);
        }
    }
}
