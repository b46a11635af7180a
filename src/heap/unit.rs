//! Units: 64 KiB pieces of the data, claimed in contiguous runs for slabs and for large records.
//!
//! # Layout
//! One word a unit; bit 59 says that the unit's memory is backed.
//! ```text
//! FREE                         nobody's
//! CLAIMED  process             head of a run that is being made or given back
//! BODY     head's index        belongs to the run whose head it names
//! SLAB     class << 32 | span  head of a slab of blocks
//! RUN      span                head of one large block
//! ```
//!
//! # Ownership
//! `FREE -> CLAIMED` and `FREE -> BODY` by CAS; who claimed the head writes the bodies; `SLAB`, `RUN` -> `CLAIMED` by CAS:
//! giving back starts with the head, so one process does it.
//!
//! # If a process dies
//! The bodies of a run are always the units right behind its head, and the head is written last when the run is made
//! and last when it is given back. So a `CLAIMED(dead)` head with the `BODY(head)` units behind it is all there is to
//! repair, and [`release`] repairs it, again and again if need be. Killed after the head is free, before that is told (`units_freed`):
//! what others have learned before may keep them from looking there, until reaping [`recount`]s, which tells.

use crate::format::class;
use crate::format::{Owner, UNIT, Word};
use crate::heap::want;
use crate::segment::arena::{Arena, Table};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::memory::NotBacked;

pub(crate) const FREE: u64 = 0;
pub(crate) const CLAIMED: u64 = 1;
pub(crate) const BODY: u64 = 2;
pub(crate) const SLAB: u64 = 3;
pub(crate) const RUN: u64 = 4;

/// The unit's memory is there.
const BACKED: u64 = 1 << 59;

/// What a head says.
pub(crate) const fn slab_word(class: usize, span: u32) -> Word {
    Word::number(SLAB, (class as u64) << 32 | span as u64)
}

/// What a head says.
pub(crate) const fn run_word(span: u32) -> Word {
    Word::number(RUN, span as u64)
}

/// Units of the slab or run whose head this is.
pub(crate) const fn span_of(head: Word) -> u64 {
    head.value() & 0xffff_ffff
}

/// The class of the slab whose head this is.
pub(crate) const fn class_of(head: Word) -> usize {
    (head.value() >> 32) as usize
}

const fn backed(word: u64) -> u64 {
    word & BACKED
}

/// Why no run was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoUnits {
    /// No such run is free.
    Full,
    /// The system can't back it.
    NotBacked,
}

impl From<NotBacked> for NoUnits {
    fn from(_: NotBacked) -> Self {
        Self::NotBacked
    }
}

/// At which number of `units_freed` no run of so many units was found: what a search that failed leaves for the next one.
///
/// ```text
/// 63                24 23    0
/// [ units_freed       ][ span ]
/// ```
#[derive(Clone, Copy)]
struct Absent(u64);

impl Absent {
    const SPAN_BITS: u32 = 24;

    const fn new(freed: u64, span: u32) -> Self {
        Self(freed << Self::SPAN_BITS | span as u64)
    }

    /// Whether no run of `span` units can have come free since.
    const fn says_none(self, freed: u64, span: u32) -> bool {
        let at_most = self.0 & ((1 << Self::SPAN_BITS) - 1);
        at_most != 0
            && span as u64 >= at_most
            && self.0 >> Self::SPAN_BITS == freed << Self::SPAN_BITS >> Self::SPAN_BITS
    }
}

const _: () = assert!(crate::format::MAX_CAPACITY / crate::format::UNIT < 1 << Absent::SPAN_BITS);

/// How often units have become free.
pub(crate) fn freed(arena: &Arena) -> u64 {
    arena.header().units_freed.load(Ordering::Acquire)
}

/// Raises that, after units became free, so that what was learned before is not believed any more.
fn tell_freed(arena: &Arena) {
    // SYNC(freed): Release after the units' words; who reads the number before a search finds these units, and who notes the number with
    // what its search has not found has read it before.
    arena.header().units_freed.fetch_add(1, Ordering::Release);
}

/// Claims `span` contiguous units and backs them. The head stays `CLAIMED` until [`publish`].
///
/// Where the system has no memory left, only runs that are backed already will do; if there is none, it is `NotBacked`, and
/// [`trim`] may help: the memory of free units elsewhere can back new ones.
///
/// A search that has found nothing is not repeated until units have become free (`units_freed`).
pub(crate) fn claim(arena: &Arena, me: Owner, span: u32) -> Result<u32, NoUnits> {
    let header = arena.header();
    let units = arena.geometry().units;
    if span == 0 || span > units {
        return Err(NoUnits::Full);
    }
    let (mut with, mut none) = (0, &header.no_run);
    loop {
        // What this search itself gives back, it has seen.
        let (seen, mut own) = (freed(arena), 0);
        let known = |none: &AtomicU64| Absent(none.load(Ordering::Relaxed)).says_none(seen, span);
        if known(none) || known(&header.no_run) {
            break;
        }
        let Some(at) = search(arena, me, span, with, &mut own)? else {
            none.store(Absent::new(seen.wrapping_add(own), span).0, Ordering::Relaxed);
            break;
        };
        if back(arena, at, span).is_ok() {
            point!("claim: uncounted");
            // A single unit is likely to be followed by another request of its kind; a hint, so a plain store will do.
            header.unit_cursor.store(at + span, Ordering::Relaxed);
            let in_use = header.units_in_use.fetch_add(span, Ordering::Relaxed).saturating_add(span);
            header.units_high_water.fetch_max(in_use.min(units), Ordering::Relaxed);
            return Ok(at);
        }
        give_back(arena, at);
        (with, none) = (BACKED, &header.no_backed_run);
    }
    Err(if with == 0 { NoUnits::Full } else { NoUnits::NotBacked })
}

/// Claims a run of `span` units that have the bits `with`, if there is one; counts in `own` how often it gave something back.
fn search(arena: &Arena, me: Owner, span: u32, with: u64, own: &mut u64) -> Result<Option<u32>, NoUnits> {
    let units = arena.geometry().units;
    let mut at = arena.header().unit_cursor.load(Ordering::Relaxed) % units;
    // Two passes from a hint: the second also sees what lies before it. The frontier grows while looking.
    let mut left = u64::from(units) + u64::from(span);
    while left > 0 {
        if at.checked_add(span).is_none_or(|end| end > units) {
            left = left.saturating_sub(u64::from(units - at));
            at = 0;
            continue;
        }
        while arena.unit_top() < at + span {
            if arena.grow_units()?.is_none() {
                break;
            }
        }
        // A look first: what is claimed in vain is not there for others meanwhile.
        let is_free = |unit: u32| arena.unit(unit).is_some_and(|u| is_free_with(u.load(Ordering::Relaxed), with));
        let mut free = (at..at + span).take_while(|unit| is_free(*unit)).fold(0, |n, _| n + 1);
        if free == span {
            free = claim_at(arena, me, at, span, with);
            if free == span {
                return Ok(Some(at));
            }
            *own += u64::from(free > 0);
        }
        at += free + 1;
        left = left.saturating_sub(u64::from(free) + 1);
    }
    Ok(None)
}

fn is_free_with(word: u64, with: u64) -> bool {
    Word(word).kind() == FREE && word & with == with
}

/// Tries the run at `at`, of units that have the bits `with`; returns how many of its units were free in a row, having claimed all
/// or none.
fn claim_at(arena: &Arena, me: Owner, at: u32, span: u32, with: u64) -> u32 {
    for i in 0..span {
        let wanted = if i == 0 { Word::of(CLAIMED, me) } else { Word::number(BODY, u64::from(at)) };
        let claimed = arena.unit(at + i).is_some_and(|unit| {
            let old = unit.load(Ordering::Relaxed);
            is_free_with(old, with)
                && unit.compare_exchange(old, wanted.0 | backed(old), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if !claimed {
            if i > 0 {
                give_back(arena, at);
            }
            return i;
        }
        if i == 0 {
            point!("claim: head");
        } else {
            point!("claim: body");
        }
    }
    span
}

/// Backs those units of a claimed run that are not, in as few calls as their pattern allows.
fn back(arena: &Arena, head: u32, span: u32) -> Result<(), NotBacked> {
    let mut i = 0;
    while i < span {
        let missing = |i| arena.unit(head + i).is_some_and(|u| backed(u.load(Ordering::Relaxed)) == 0);
        let first = i;
        while i < span && missing(i) {
            i += 1;
        }
        if i > first {
            arena.back_units(head + first, i - first)?;
            point!("claim: backed");
            for unit in first..i {
                if let Some(unit) = arena.unit(head + unit) {
                    // Ours since the claim: nobody else writes it.
                    unit.store(unit.load(Ordering::Relaxed) | BACKED, Ordering::Relaxed);
                }
            }
            point!("claim: marked");
        }
        i += 1;
    }
    Ok(())
}

/// Says what the claimed run at `head` has become. `SYNC(unit)`: Release, after the headers inside were written.
pub(crate) fn publish(arena: &Arena, head: u32, what: Word) {
    if let Some(unit) = arena.unit(head) {
        unit.store(what.0 | backed(unit.load(Ordering::Relaxed)), Ordering::Release);
    }
}

/// Takes the published run at `head` back into `me`'s hands, if it still is `what`: the first step of giving it back.
pub(crate) fn take(arena: &Arena, me: Owner, head: u32, what: Word) -> bool {
    arena.unit(head).is_some_and(|unit| {
        let old = unit.load(Ordering::Acquire);
        old & !BACKED == what.0
            && unit
                .compare_exchange(old, Word::of(CLAIMED, me).0 | backed(old), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    })
}

/// Frees the claimed run at `head`: its bodies from the last to the first, then the head. The caller holds the head, or
/// holds the reaper's lock and has seen that its holder is dead.
pub(crate) fn release(arena: &Arena, head: u32) {
    point!("give back: taken");
    let freed = give_back(arena, head);
    point!("give back: uncounted");
    let in_use = &arena.header().units_in_use;
    let _ = in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(freed)));
    want::tell(arena);
}

fn give_back(arena: &Arena, head: u32) -> u32 {
    let body = Word::number(BODY, u64::from(head)).0;
    let mut end = head + 1;
    while arena.unit(end).is_some_and(|u| u.load(Ordering::Acquire) & !BACKED == body) {
        end += 1;
    }
    for unit in (head..end).rev() {
        if let Some(unit) = arena.unit(unit) {
            unit.store(backed(unit.load(Ordering::Relaxed)), Ordering::Release);
        }
        point!("give back: unit");
    }
    let cursor = &arena.header().unit_cursor;
    if head < cursor.load(Ordering::Relaxed) {
        cursor.store(head, Ordering::Relaxed);
    }
    point!("give back: untold");
    tell_freed(arena);
    end - head
}

/// Whether what a head says lies inside the data: a foreign hand may have written it.
fn is_inside(arena: &Arena, head: u32, what: Word) -> bool {
    !matches!(what.kind(), SLAB | RUN) || u64::from(head) + span_of(what) <= u64::from(arena.geometry().units)
}

/// The head of the run that `unit` belongs to, and what the head says; `None` for a free unit or a broken link.
#[inline]
pub(crate) fn head_of(arena: &Arena, unit: u32) -> Option<(u32, Word)> {
    let load = |unit| Some(Word(arena.unit(unit)?.load(Ordering::Acquire) & !BACKED));
    let word = load(unit)?;
    match word.kind() {
        FREE => None,
        BODY => {
            let head = u32::try_from(word.value()).ok().filter(|head| *head < unit)?;
            let what = load(head)?;
            let covers = matches!(what.kind(), SLAB | RUN) && u64::from(unit - head) < span_of(what);
            (covers && is_inside(arena, head, what)).then_some((head, what))
        }
        _ => is_inside(arena, unit, word).then_some((unit, word)),
    }
}

/// The head of the run that `unit` belongs to, by its link alone: for a run that this process has claimed.
pub(crate) fn link(arena: &Arena, unit: u32) -> u32 {
    let word = arena.unit(unit).map_or(Word::ZERO, |word| Word(word.load(Ordering::Relaxed) & !BACKED));
    if word.kind() == BODY { u32::try_from(word.value()).unwrap_or(unit) } else { unit }
}

/// Whether the unit that `granule` of the data lies in is the head of a slab of `class`.
#[inline(always)]
pub(crate) fn is_slab(arena: &Arena, granule: u32, class: usize) -> bool {
    let wanted = slab_word(class, class::span(class)).0;
    arena.unit_around(granule).is_some_and(|unit| unit.load(Ordering::Acquire) & !BACKED == wanted)
}

/// The head of the slab of `class` that the block at `granule` belongs to; `None` if there is no such block.
#[inline]
pub(crate) fn slab_of(arena: &Arena, granule: u32, class: usize) -> Option<u32> {
    arena.block(granule)?;
    let (head, what) = head_of(arena, arena.unit_of(granule))?;
    let is_slab = what == slab_word(class, class::span(class));
    (is_slab && class::starts_at(class, granule - arena.granule_of(head))).then_some(head)
}

/// Every head below the frontier with what it says, in address order; free units are left out.
pub(crate) fn heads(arena: &Arena) -> impl Iterator<Item = (u32, Word)> + '_ {
    heads_from(arena, 0)
}

/// As [`heads`], from the unit `from` on.
pub(crate) fn heads_from(arena: &Arena, from: u32) -> impl Iterator<Item = (u32, Word)> + '_ {
    let top = arena.unit_top();
    (from..top).filter_map(|unit| {
        let word = Word(arena.unit(unit)?.load(Ordering::Acquire) & !BACKED);
        (!matches!(word.kind(), FREE | BODY) && is_inside(arena, unit, word)).then_some((unit, word))
    })
}

/// How many units are free and how many have memory behind them, right now.
pub(crate) fn count(arena: &Arena) -> (u64, u64) {
    let top = arena.unit_top();
    let words = (0..top).filter_map(|unit| arena.unit(unit)).map(|u| u.load(Ordering::Relaxed));
    let (free, backed) = words.fold((0, 0), |(free, mem), word| {
        (free + u64::from(Word(word).kind() == FREE), mem + u64::from(backed(word) != 0))
    });
    (free + u64::from(arena.geometry().units - top), backed)
}

/// How many units are free and have memory behind them.
pub(crate) fn count_backed_free(arena: &Arena) -> u64 {
    let top = arena.unit_top();
    (0..top).filter_map(|unit| arena.unit(unit)).filter(|u| u.load(Ordering::Relaxed) == BACKED).count() as u64
}

/// Corrects the count of units in use, which the dead may have left wrong, and has others look for what they gave back without telling.
pub(crate) fn recount(arena: &Arena) {
    let in_use = u64::from(arena.geometry().units).saturating_sub(count(arena).0);
    arena.header().units_in_use.store(u32::try_from(in_use).unwrap_or(0), Ordering::Relaxed);
    tell_freed(arena);
}

/// Whether there may be memory that [`trim`] would return.
pub(crate) fn is_trim_due(arena: &Arena) -> bool {
    arena.header().trimmed.load(Ordering::Relaxed) != freed(arena)
}

/// Returns the memory of free units to the system, and whatever has got some that nobody has asked for; says how many bytes that were. Before each
/// step `turn` sees to it that the caller has the control lock, for others look at headers under it; false if it can't be had any more.
pub(crate) fn trim(arena: &Arena, me: Owner, turn: &mut dyn FnMut() -> bool) -> u64 {
    let seen = freed(arena);
    // What this gives back itself, it has seen.
    let (mut own, mut returned, mut bytes) = (0, 0, 0);
    if trim_strays(arena, me, turn, &mut own, &mut returned)
        && trim_backed(arena, me, turn, &mut own, &mut returned)
        && trim_tables(arena, turn, &mut bytes)
    {
        arena.header().trimmed.store(seen.wrapping_add(own), Ordering::Relaxed);
    }
    returned * UNIT + bytes
}

/// The part of [`trim`] for memory behind tables, beyond what is used of them.
fn trim_tables(arena: &Arena, turn: &mut dyn FnMut() -> bool, returned: &mut u64) -> bool {
    for table in Table::ALL {
        let mut at = 0;
        // A look first: no lock for nothing.
        while let Some(found) = arena.next_beyond(table, at) {
            if !turn() {
                return false;
            }
            let Some((next, bytes)) = arena.trim_beyond(table, found) else { break };
            (at, *returned) = (next, *returned + bytes);
        }
    }
    true
}

/// The part of [`trim`] for memory that units have got behind our backs: mlockall(2) or a core dump has read their holes, or somebody was
/// killed between asking for it and saying so.
fn trim_strays(arena: &Arena, me: Owner, turn: &mut dyn FnMut() -> bool, own: &mut u64, returned: &mut u64) -> bool {
    let mut at = 0;
    while at < arena.geometry().units {
        // No question to the system about what our own words say is there.
        if arena.unit(at).is_some_and(|u| u.load(Ordering::Relaxed) != FREE) {
            at += 1;
            continue;
        }
        let Some(found) = arena.next_unit_in_memory(at) else { break };
        if found > at {
            at = found;
            continue;
        }
        if !turn() {
            return false;
        }
        // Beyond the frontier, a unit can't be claimed, and so not be looked after.
        while arena.unit(at).is_none() {
            if !matches!(arena.grow_units(), Ok(Some(_))) {
                return true;
            }
        }
        if claim_at(arena, me, at, 1, 0) == 1 {
            let is_stray = arena.unit(at).is_some_and(|u| backed(u.load(Ordering::Relaxed)) == 0);
            *returned += u64::from(is_stray && arena.punch_units(at, 1));
            give_back(arena, at);
            *own += 1;
        }
        at += 1;
    }
    true
}

/// The part of [`trim`] for memory that is marked as backed.
fn trim_backed(arena: &Arena, me: Owner, turn: &mut dyn FnMut() -> bool, own: &mut u64, returned: &mut u64) -> bool {
    for at in 0..arena.unit_top() {
        let is_idle = |u: &AtomicU64| u.load(Ordering::Relaxed) == BACKED;
        if !arena.unit(at).is_some_and(is_idle) {
            continue;
        }
        if !turn() {
            return false;
        }
        if claim_at(arena, me, at, 1, BACKED) == 1 {
            *returned += u64::from(unback(arena, me, at));
            give_back(arena, at);
            *own += 1;
        }
    }
    true
}

/// Returns the memory of a claimed unit to the system, if that takes it.
fn unback(arena: &Arena, me: Owner, at: u32) -> bool {
    let Some(unit) = arena.unit(at) else { return false };
    point!("trim: claimed");
    // "Not backed" first: killed between the two, the memory is there and will merely be asked for again.
    unit.store(Word::of(CLAIMED, me).0, Ordering::Release);
    point!("trim: unmarked");
    let is_done = arena.punch_units(at, 1);
    if is_done {
        point!("trim: punched");
    } else {
        unit.store(Word::of(CLAIMED, me).0 | BACKED, Ordering::Release);
    }
    is_done
}
