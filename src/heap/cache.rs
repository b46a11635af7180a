//! A context's free blocks: a few magazines a size class, so that nearly every allocation and free is a pop or a push.
//!
//! Promises: [`Cache::pop_fast`] and [`Front::push`] take no lock, no fence, no read-modify-write and no system call unless a
//! magazine runs empty or full; [`Cache::push`] never fails. Refuses: to be used by two threads.
//!
//! # Ownership
//! A magazine whose holder word names this context is written by its thread alone.
//!
//! # The spare
//! The block freed last is kept outside the magazines: what is freed next pushes it into its magazine, and an allocation of its class
//! takes it. So a thread that frees and allocates one size touches a word or two of its own, and no magazine. The spare's header
//! keeps saying `OWNED(me)`. The owner knows it by a private word; the context's *gate* word says the same to others.
//!
//! # Revocation
//! What an idle context caches may be what another one lacks, and its thread may never call again. So when memory is short,
//! another process (the *thief*) may put a context's magazines back into the depot, and take its spare, behind its back.
//! `SYNC(gate)`: the owner stores `gate = INSIDE`, then looks at `revoked`, works, and stores what it has now (Release); the thief writes
//! its name into `revoked`, makes the heavy barrier (`sys::barrier`), and looks at `gate` (Acquire). One of the two sees the
//! other: either the thief sees the owner inside and leaves it alone, or the owner sees the thief's name. Then one CAS on
//! `revoked` decides: the owner refuses, or the thief has it, and the owner keeps out until the thief is done, or dead.
//! ```text
//! gate      INSIDE | BARE | the handle of the spare         by the owner; BARE by who closes the context, the reaper of a dead one too
//! revoked   0, ASKED -> TAKING thief              by the thief
//!           TAKING -> 0                           by the owner, who is awake
//!           TAKING -> TAKEN thief                 by the thief, who saw the owner outside         \
//!           TAKEN -> EMPTIED thief                by the thief: the spare is its own               | under the
//!           TAKEN -> VERIFY, EMPTIED -> FORGET    by the thief when done                           | control lock
//!           VERIFY -> TAKEN, FORGET -> EMPTIED    by the next thief: the owner is outside still   /
//!           TAKEN -> VERIFY, EMPTIED -> FORGET    by who sees that the thief is dead
//!           VERIFY -> 0, FORGET -> 0              by the owner, once it has dropped what it no longer holds
//!           (VERIFY and FORGET bear the theft's number: an owner that has verified after one theft has not after the next)
//!           0 -> ASKED, ASKED -> 0                by who waits for memory, and by the owner, who then gives back what it caches
//! stolen    0 before TAKEN (or EMPTIED, after FORGET), then the handle of the spare                 by the thief only
//! thefts    raised before TAKEN (or EMPTIED): this theft's number                                   by the thief only
//! ```
//!
//! The owner's look at `revoked` leaves `INSIDE` in the gate for a moment, at any time, so nobody who settles a dead thief's affairs may
//! depend on reading the gate. Therefore the thief, which can wait for a better moment or do without, reads the spare there
//! and notes it in `stolen` before it touches the spare's header; who settles reads `stolen`. A header that says `STOLEN` by a
//! thief means this theft and nothing else: no other block ever says so, and a process that has taken over a dead one's slot, and
//! with it the name, takes nothing from anybody. So one who settles late, when somebody else has done so already, changes nothing.
//!
//! # If a process dies
//! A thief: what it had put back is in the depot, the rest is still the owner's. The spare, at each store:
//!
//! | after | the header says | [`settle`](super::gate::settle) makes of it |
//! |---|---|---|
//! | `TAKEN` | `OWNED(owner)` | the owner's, untouched: `stolen` is 0 |
//! | `stolen` | `OWNED(owner)` | the owner's, untouched |
//! | the header | `STOLEN(thief)` | the owner's, with its old name |
//! | `EMPTIED` | `STOLEN(thief)` | nobody's: the owner forgets it, the header scan frees it |
//! | the header | `OWNED(thief)` | the same |
//!
//! `TAKEN` and `EMPTIED` exist under the control lock only, which dies with the thief. So a reaper that has the lock settles all it meets, whoever
//! the thief was, before it frees the slots of dead owners and looks for what anybody owned; that a theft's owner is the one
//! whom the slot names holds until then.
//!
//! The owner: single writer, one store that counts for a pop, and one for a push (`SYNC(kill)`: it is Release, so that neither the
//! compiler nor the machine shows it without what comes before):
//!
//! | after | the block is | repaired by |
//! |---|---|---|
//! | naming: `state = OWNED(me)` | still in the magazine: free | the names pass takes the name off |
//! | pop: entry cleared | owned, in nobody's hands | the header scan frees it |
//! | push: entry written | in the magazine: free | the names pass takes the name off |
//! | the spare, named or not | owned, in nobody's hands | the header scan frees it |
//!
//! So a block is free if and only if it is in a magazine, or a spare (or `LOOSE`), whatever its state word says: a push
//! leaves the name of the last owner there, because the header's line is far away when records are freed in any order.
//!
//! # Names
//! A pop writes no name either: what this process has pushed bears its name, and the blocks of a magazine that others have filled
//! get it a few at a time before they are popped, so that their headers, which are in other cores' caches, come together.
//!
//! # Records
//! A process unmaps the segment when its last record is gone, so nothing that another process writes may make it miscount. Nor may
//! the count cost anything where records come and go. So the cache keeps a *balance*: the number of blocks it holds, plus the
//! records that came into being through it, less those that ended. A pop makes a record of a cached block, and a push a cached
//! block of a record: neither changes the sum. All that does is on slow paths: a magazine taken in or put back; a block that is
//! `LOOSE` now, lost to a thief, new, or a channel's; a large record; and when an end is detached, what it has received less what it
//! has sent. How many blocks a magazine has is read from shared memory once, when it is taken in: from then on it is this
//! cache's word that counts ([`Held::len`], [`Line`]), whatever is written over the entries, and whatever a thief says. When the cache is
//! [flushed](Cache::flush) it holds nothing, and its balance is a number of records.
//!
//! # Invariants
//! 1. Each magazine at hand or in reserve is held by this context in the segment; `UNUSABLE` is held by nobody, no line points into it,
//!    and it is never written.
//! 2. The segment stays mapped while the cache lives (the context holds the process's attachment).
//! 3. The blocks of a held magazine from `named` on are `OWNED(me)`, and every block that is pushed.
//! 4. A [`Line`]'s `named <= top <= end` point at entries of one held magazine, or behind its last; nothing is listed from `top` on.
//! 5. `balance` is the number of blocks cached here (entries below the `len` or `top` of what is held, and the spare) plus the net number
//!    of records that came into being through this cache. It and they are private words: no store of another process changes one
//!    without the other.

#![allow(unsafe_code)]

use crate::format::{ContextSlot, Geometry, Handle, Magazine, Owner, POOL, Word, class, revoked};
use crate::heap::block::{self, Block};
use crate::heap::gate::{self, Gate};
use crate::heap::{depot, unit, want};
use crate::segment::arena::{Arena, Extent, Reach};
use crate::sync::{AtomicU32, Ordering, compiler_fence};
use crate::sys::crash::point;
use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

/// Stands in where there is no magazine.
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
    /// Its entries, as counted when it was taken in, and since.
    len: u32,
    /// Its entries from here on bear this process's name.
    named: u32,
}

impl Held {
    const NONE: Self = Self { magazine: &UNUSABLE.0, index: u32::MAX, len: 0, named: 0 };

    fn is_real(self) -> bool {
        self.index != u32::MAX
    }
}

/// What some entries of a magazine say.
fn granules(magazine: &Magazine, entries: Range<u32>) -> impl Iterator<Item = u32> {
    let entries = magazine.entries.get(entries.start as usize..entries.end as usize).unwrap_or_default();
    entries.iter().map(|entry| entry.load(Ordering::Relaxed))
}

/// What a context has at hand of one class: a stack of entries of one magazine (invariant 4), or nothing, with all three null.
#[repr(align(32))]
struct Line {
    /// Behind the last entry.
    top: Cell<*const AtomicU32>,
    /// The entries from here on bear this process's name.
    named: Cell<*const AtomicU32>,
    /// As far as the stack may grow.
    end: Cell<*const AtomicU32>,
    reach: Reach,
    /// A unit that was seen to be a slab of the class.
    slab: Cell<u32>,
}

impl Line {
    const fn new(reach: Reach) -> Self {
        let [top, named, end] = [const { Cell::new(std::ptr::null()) }; 3];
        Self { top, named, end, reach, slab: Cell::new(u32::MAX) }
    }

    fn is_full(&self) -> bool {
        self.top.get() == self.end.get()
    }

    /// Whether there is nothing to pop until more is named.
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.top.get() == self.named.get()
    }

    /// The entry that a pop would take.
    #[inline(always)]
    fn last(&self) -> Option<&'static AtomicU32> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: invariant 4: above `named` there is an entry.
        let last = unsafe { self.top.get().sub(1) };
        // SAFETY: as above; in the segment, which stays (invariant 2).
        Some(unsafe { &*last })
    }

    /// Takes the last entry off; it names a block no longer.
    #[inline(always)]
    fn drop_last(&self, last: &'static AtomicU32) {
        // SYNC(kill): it bears our name already.
        last.store(0, Ordering::Release);
        self.top.set(self.top.get().wrapping_sub(1));
    }

    #[inline(always)]
    fn push(&self, granule: u32) -> bool {
        let top = self.top.get();
        if top == self.end.get() {
            return false;
        }
        // SAFETY: invariant 4: before `end` there is an entry.
        unsafe { &*top }.store(granule, Ordering::Release);
        point!("push: listed");
        // SAFETY: as above.
        self.top.set(unsafe { top.add(1) });
        true
    }
}

/// What a context has in reserve of one class: a full and an empty magazine, so that who goes to and fro at a magazine's end does not
/// go to the depot each time.
struct Stock {
    /// The magazine of the class's [`Line`]; how far it is filled and named, that one knows.
    current: Cell<Held>,
    /// To pop from next.
    full: Cell<Held>,
    /// To push to next.
    empty: Cell<Held>,
    /// [`capacity`](depot::capacity) of the class.
    room: u32,
}

impl Stock {
    fn new(geometry: &Geometry, class: usize) -> Self {
        let [current, full, empty] = [const { Cell::new(Held::NONE) }; 3];
        Self { current, full, empty, room: depot::capacity(geometry, class) }
    }
}

/// Takes what is held there.
fn take(held: &Cell<Held>) -> Option<Held> {
    Some(held.replace(Held::NONE)).filter(|held| held.is_real())
}

/// The owner inside its cache.
#[must_use]
struct Inside<'a> {
    slot: &'static ContextSlot,
    spare: &'a Cell<Gate>,
}

impl Inside<'_> {
    /// Steps outside, leaving `spare` there.
    #[inline(always)]
    fn leave(&self, spare: Gate) {
        self.spare.set(spare);
        self.step_out(spare);
    }

    /// Steps outside; `spare` is the one there was.
    #[inline(always)]
    fn step_out(&self, spare: Gate) {
        self.slot.gate.store(spare.word(), Ordering::Release);
    }
}

/// What a free needs: a thread without a cache has one of these too, [`NOBODYS`].
#[repr(C)]
pub(crate) struct Front {
    extent: Extent,
    slot: Cell<&'static ContextSlot>,
    /// What the gate says while the owner is outside, for the owner, who does not take another's word for it.
    spare: Cell<Gate>,
    /// One for each class, and some that stand for none: no need to check what a handle says.
    lines: [Line; LINES],
}

struct Nobodys(Front);
// SAFETY: nobody gets in (its slot is `NOWHERE`), so its cells are never written.
unsafe impl Sync for Nobodys {}
static NOBODYS_FRONT: Nobodys = Nobodys(Front {
    extent: Extent::NONE,
    slot: Cell::new(&NOWHERE.0),
    spare: Cell::new(Gate::BARE),
    lines: [const { Line::new(Reach::NONE) }; LINES],
});
/// Where nothing can be freed.
pub(crate) const NOBODYS: *const Front = &raw const NOBODYS_FRONT.0;

impl Front {
    #[inline(always)]
    pub(crate) fn extent(&self) -> Extent {
        self.extent
    }

    /// Steps inside, if no thief is at work, or has been: else the slow path settles it.
    #[inline(always)]
    fn enter(&self) -> Option<Inside<'_>> {
        let slot = self.slot.get();
        slot.gate.store(Gate::INSIDE.word(), Ordering::Relaxed);
        // SYNC(gate)
        compiler_fence(Ordering::SeqCst);
        point!("gate: inside");
        let inside = Inside { slot, spare: &self.spare };
        if slot.revoked.load(Ordering::Relaxed) != 0 {
            // Not read before it is needed here; see `push`.
            compiler_fence(Ordering::SeqCst);
            inside.step_out(self.spare.get());
            return None;
        }
        Some(inside)
    }

    /// The line of the block's class, or some line, if the word is broken.
    #[inline(always)]
    fn line_of(&self, handle: Handle) -> &Line {
        // SAFETY: below 64, and so many there are. (An index costs two instructions more.)
        let line = unsafe { self.lines.as_ptr().byte_add(handle.class_below_64() * size_of::<Line>()) };
        // SAFETY: as above.
        unsafe { &*line }
    }

    /// Frees a block of a class, one of the buffer's that this process owns, if there is room.
    #[inline(always)]
    pub(crate) fn push(&self, handle: Handle) -> bool {
        let Some(inside) = self.enter() else { return false };
        // Compared where it lies: an instruction less than in a register.
        if !self.spare.get().is_bare() {
            compiler_fence(Ordering::SeqCst);
            let spare = self.spare.get();
            if !self.push_inside(spare.handle()) {
                inside.step_out(spare);
                return false;
            }
        }
        inside.leave(Gate::at(handle));
        true
    }

    #[inline(always)]
    fn push_inside(&self, handle: Handle) -> bool {
        self.line_of(handle).push(handle.granule())
    }
}

/// See the module.
#[repr(C)] // what the fast paths need comes first, and together
pub(crate) struct Cache {
    arena: Arena,
    /// The state word of this process's blocks.
    owned: Word,
    front: Front,
    me: Owner,
    /// The holder word of this context's magazines.
    held: Word,
    stocks: [Stock; class::COUNT],
    /// Invariant 5.
    balance: Cell<i64>,
    /// Somebody waits for memory.
    is_asked: Cell<bool>,
    /// Whether that process will never act again; asked while it keeps us out.
    is_dead: Box<dyn Fn(Owner) -> bool>,
}

/// One for each [`Handle::class_below_64`].
const LINES: usize = 64;

/// Blocks of a magazine that get this process's name together, while those after them are asked for: nearly every block was last
/// touched by another core.
const NAMED_TOGETHER: u32 = 15;

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
        let held = Word::of(depot::HELD, context);
        let slot = Cell::new(arena.context(context.index())?);
        let line = |class: usize| Line::new(if class < class::COUNT { arena.reach(class) } else { Reach::NONE });
        Some(Self {
            front: Front {
                extent: arena.extent(),
                slot,
                spare: Cell::new(Gate::BARE),
                lines: std::array::from_fn(line),
            },
            arena,
            me,
            owned: block::owned(me),
            held,
            stocks: std::array::from_fn(|class| Stock::new(arena.geometry(), class)),
            balance: Cell::new(0),
            is_asked: Cell::new(false),
            is_dead: Box::new(is_dead),
        })
    }

    /// Steps inside, once no thief is at work, and forgets what one has taken.
    fn enter_surely(&self) -> Inside<'_> {
        loop {
            if let Some(inside) = self.front.enter() {
                return inside;
            }
            let slot = self.front.slot.get();
            let word = Word(slot.revoked.load(Ordering::Acquire));
            let change = |to| {
                let _ = slot.revoked.compare_exchange(word.0, to, Ordering::AcqRel, Ordering::Relaxed);
            };
            // Whatever brought us here: a thief takes over from who asked.
            self.is_asked.set(want::is_wanted(&self.arena));
            match word.kind() {
                // Not if the thief can help it: if its CAS comes first, it has us.
                revoked::TAKING => change(0),
                revoked::ASKED => change(0),
                revoked::TAKEN | revoked::EMPTIED if (self.is_dead)(word.owner()) => {
                    gate::settle(&self.arena, slot, word)
                }
                revoked::TAKEN | revoked::EMPTIED => std::thread::sleep(Duration::from_micros(20)),
                kind => {
                    self.verify();
                    if kind == revoked::FORGET {
                        self.count(-i64::from(!self.front.spare.replace(Gate::BARE).is_bare()));
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
            for place in [&stock.full, &stock.empty] {
                if !still(place.get()) {
                    self.count(-i64::from(place.replace(Held::NONE).len));
                }
            }
            let current = self.current(class);
            if !still(current) {
                self.count(-i64::from(current.len));
                self.set_current(class, Held::NONE);
            }
        }
    }

    /// Notes that `records` more came into being through this cache than ended, beside those that pops and pushes tell of; or that so many
    /// blocks came into it otherwise. See "Records".
    pub(crate) fn count(&self, records: i64) {
        self.balance.set(self.balance.get().wrapping_add(records));
    }

    /// What [`take_count`](Self::take_count) would say after a flush, without one: by private words alone (invariant 5).
    pub(crate) fn records(&self) -> i64 {
        let held = |(class, stock): (usize, &Stock)| {
            let (current, full, empty) = (self.current(class), stock.full.get(), stock.empty.get());
            i64::from(current.len) + i64::from(full.len) + i64::from(empty.len)
        };
        let cached: i64 = self.stocks.iter().enumerate().map(held).sum();
        self.balance.get() - cached - i64::from(!self.front.spare.get().is_bare())
    }

    /// The records that came into being through this cache, less those that ended, since this was asked last. It is
    /// [flushed](Self::flush).
    pub(crate) fn take_count(&self) -> i64 {
        self.balance.take()
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
        let end = self.arena.unit_of(granule) + class::span(class);
        let is_slab = unit::is_slab(&self.arena, granule, class) && end <= self.arena.geometry().units;
        if is_slab {
            self.front.lines[class].slab.set(self.arena.unit_of(granule));
        }
        is_slab
    }

    /// The holder word of this cache's magazines.
    pub(crate) fn holder(&self) -> Word {
        self.held
    }

    /// A free block of `class`, which is `OWNED(me)`: the spare, one from the magazine at hand, or from the depot; `None` if that has
    /// none either.
    #[inline(always)]
    pub(crate) fn pop_fast(&self, class: usize) -> Option<Block> {
        let Some(inside) = self.front.enter() else { return self.pop(class) };
        let spare = self.front.spare.get();
        if spare.handle().is_of(class)
            && let Some(line) = self.front.lines.get(class)
            && let Some(start) = self.arena.block_of(spare.handle(), line.reach)
        {
            inside.leave(Gate::BARE);
            return Some(Block { handle: spare.handle(), start });
        }
        let Some(found) = self.pop_inside(class) else { return self.refill_and_leave(class, &inside) };
        inside.step_out(spare);
        Some(found)
    }

    #[cold]
    #[inline(never)]
    fn refill_and_leave(&self, class: usize, inside: &Inside<'_>) -> Option<Block> {
        let found = self.refill(class);
        inside.step_out(self.front.spare.get());
        found
    }

    #[inline(always)]
    fn pop_inside(&self, class: usize) -> Option<Block> {
        let line = self.front.lines.get(class)?;
        let last = line.last()?;
        let granule = last.load(Ordering::Relaxed);
        let start = self.arena.block_within(granule, line.reach)?;
        line.drop_last(last);
        point!("pop: taken");
        Some(Block { handle: Handle::new(class::index(class), granule), start })
    }

    /// As [`pop_fast`](Self::pop_fast), whatever a thief may be doing.
    #[cold]
    #[inline(never)]
    pub(crate) fn pop(&self, class: usize) -> Option<Block> {
        if self.is_shut() {
            return None;
        }
        let inside = self.enter_surely();
        let there = self.front.spare.get();
        let spare = there.spare(&self.arena).filter(|spare| spare.handle.is_of(class));
        let found = spare.or_else(|| self.refill(class));
        inside.leave(if spare.is_some() { Gate::BARE } else { there });
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
            if let Some(last) = line.last() {
                // It names no block: a foreign hand wrote it. Drop it, and go on.
                line.drop_last(last);
                self.count(-1);
            } else if current.named > 0 {
                self.name_some(class, current);
            } else {
                let full = take(&stock.full).or_else(|| self.take(class, class))?;
                point!("refill: taken");
                if current.is_real() {
                    self.keep(class, &stock.empty, current);
                }
                self.set_current(class, full);
            }
        }
    }

    /// Gives some more of the blocks of the magazine at hand this process's name, and asks for those that come next.
    fn name_some(&self, class: usize, current: Held) {
        let (line, stock) = (&self.front.lines[class], &self.stocks[class]);
        let Held { magazine, named, .. } = current;
        let begin = named.saturating_sub(NAMED_TOGETHER);
        for granule in granules(magazine, begin..named) {
            if let Some(start) = self.arena.block_within(granule, line.reach) {
                start.header().state.store(self.owned.0, Ordering::Relaxed);
                point!("name: owned");
            }
        }
        line.named.set(&raw const magazine.entries[begin as usize]);
        // Its lines are here when it is the next one.
        if (1..=NAMED_TOGETHER).contains(&begin)
            && !stock.full.get().is_real()
            && let Some(held) = self.take(class, class)
        {
            stock.full.set(held);
        }
        let after = begin.saturating_sub(NAMED_TOGETHER)..begin;
        let rest = NAMED_TOGETHER - (after.end - after.start);
        self.ask_for(magazine, after);
        let next = stock.full.get();
        self.ask_for(next.magazine, next.named.saturating_sub(rest)..next.named);
    }

    /// Asks for the headers of blocks that will be named soon.
    fn ask_for(&self, magazine: &Magazine, entries: Range<u32>) {
        granules(magazine, entries).for_each(|granule| self.arena.prefetch(granule));
    }

    /// Keeps a magazine, and puts the one kept before into the depot.
    fn keep(&self, class: usize, place: &Cell<Held>, held: Held) {
        let before = place.replace(held);
        if before.is_real() {
            self.put(class, before);
        }
    }

    /// Puts a magazine into the depot.
    fn put(&self, class: usize, held: Held) {
        self.count(-i64::from(held.len));
        depot::put(&self.arena, held.index, held.magazine, class);
    }

    pub(crate) fn front(&self) -> &Front {
        &self.front
    }

    /// Frees a block of a class that this process owns.
    #[cold]
    #[inline(never)]
    pub(crate) fn push(&self, handle: Handle) {
        if self.is_shut() {
            return;
        }
        let inside = self.enter_surely();
        self.put_away();
        inside.leave(Gate::at(handle));
        self.give_back_if_asked();
    }

    fn give_back_if_asked(&self) {
        if self.is_asked.get() {
            self.flush();
        }
    }

    /// Pushes the spare, if there is one.
    fn put_away(&self) {
        let there = self.front.spare.get();
        let Some(spare) = there.spare(&self.arena) else { return self.count(-i64::from(!there.is_bare())) };
        self.make_room(spare.handle.class().into());
        if !self.front.push_inside(spare.handle) {
            // No magazine anywhere has room: still free, still found.
            self.count(-1);
            block::loosen(&self.arena, spare.header());
        }
    }

    fn make_room(&self, class: usize) {
        if !self.front.lines[class].is_full() {
            // It had room all along: a thief kept us out.
            return;
        }
        let stock = &self.stocks[class];
        let empty = take(&stock.empty).or_else(|| self.take(POOL, class)).or_else(|| self.take_partial(class));
        if let Some(empty) = empty {
            point!("make room: taken");
            let current = self.current(class);
            if current.is_real() {
                self.keep(class, &stock.full, current);
            }
            self.set_current(class, empty);
        }
    }

    /// The magazine at hand.
    #[allow(clippy::cast_possible_truncation)] // at most `MAGAZINE_ENTRIES`
    fn current(&self, class: usize) -> Held {
        let (line, held) = (&self.front.lines[class], self.stocks[class].current.get());
        let start = held.magazine.entries.as_ptr().addr();
        let place = |at: *const AtomicU32| ((at.addr() - start) / size_of::<AtomicU32>()) as u32;
        if held.is_real() { Held { len: place(line.top.get()), named: place(line.named.get()), ..held } } else { held }
    }

    fn set_current(&self, class: usize, held: Held) {
        let (line, stock) = (&self.front.lines[class], &self.stocks[class]);
        stock.current.set(held);
        let place = |i: u32| {
            if held.is_real() { held.magazine.entries.as_ptr().wrapping_add(i as usize) } else { std::ptr::null() }
        };
        // Invariant 4.
        line.top.set(place(held.len.min(stock.room)));
        line.named.set(place(held.named.min(held.len).min(stock.room)));
        line.end.set(place(stock.room));
    }

    /// Takes a magazine of `list` in, for blocks of `class`.
    fn take(&self, list: usize, class: usize) -> Option<Held> {
        let index = depot::take(&self.arena, list, self.held)?;
        let magazine = std::ptr::from_ref(self.arena.magazine(index)?);
        // SAFETY: inside the segment, which outlives this cache (invariant 2); no copy leaves the cache.
        let magazine: &'static Magazine = unsafe { &*magazine };
        // A foreign hand may have written more entries than there is room for.
        let len = depot::len(magazine).min(self.stocks[class].room);
        self.count(len.into());
        Some(Held { magazine, index, len, named: len })
    }

    /// A magazine of the depot that is not full, when there is no empty one.
    fn take_partial(&self, class: usize) -> Option<Held> {
        let partial = self.take(class, class)?;
        if partial.len < self.stocks[class].room {
            return Some(partial);
        }
        self.count(-i64::from(partial.len));
        depot::put_back(&self.arena, partial.index, partial.magazine, class);
        None
    }

    /// Gives every magazine back.
    pub(crate) fn flush(&self) {
        if self.is_shut() {
            return;
        }
        let inside = self.enter_surely();
        self.put_away();
        point!("flush: no spare");
        for (class, stock) in self.stocks.iter().enumerate() {
            let current = self.current(class);
            self.set_current(class, Held::NONE);
            let all = [Some(current).filter(|held| held.is_real()), take(&stock.full), take(&stock.empty)];
            for held in all.into_iter().flatten() {
                let moved = self.merge(class, held);
                self.put(class, Held { len: held.len - moved, ..held });
            }
        }
        self.is_asked.set(false);
        inside.leave(Gate::BARE);
    }

    /// Fills a half-empty magazine of the depot from `held`, so that contexts that come and go don't litter the depot
    /// with magazines of few entries. Says how many it moved.
    fn merge(&self, class: usize, held: Held) -> u32 {
        let (room, len) = (self.stocks[class].room as usize, held.len as usize);
        if len == 0 || len >= room {
            return 0;
        }
        let Some(other) = self.take(class, class) else { return 0 };
        let mut moved = 0;
        let free = other.magazine.entries.get(other.len as usize..room).unwrap_or_default();
        for (from, to) in held.magazine.entries[..len].iter().rev().zip(free) {
            let granule = from.load(Ordering::Relaxed);
            let Some(block) = self.arena.block(granule) else { break };
            // A pop and a push, each of which a kill may follow.
            block.state.store(self.owned.0, Ordering::Relaxed);
            point!("merge: owned");
            from.store(0, Ordering::Release);
            point!("merge: popped");
            to.store(granule, Ordering::Release);
            point!("merge: listed");
            moved += 1;
        }
        self.put(class, Held { len: other.len + moved, ..other });
        moved
    }

    /// Never touches the segment again: the context is closed, or (in a forked child) the parent's.
    pub(crate) fn forget(&self) {
        self.front.slot.set(&NOWHERE.0);
        for (class, stock) in self.stocks.iter().enumerate() {
            self.set_current(class, Held::NONE);
            stock.full.set(Held::NONE);
            stock.empty.set(Held::NONE);
        }
    }
}
