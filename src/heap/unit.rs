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
//! repair, and [`release`] repairs it, again and again if need be.

use crate::arena::Arena;
use crate::heap::{class, want};
use crate::layout::{Owner, Word};
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

/// Claims `span` contiguous units and backs them. The head stays `CLAIMED` until [`publish`].
///
/// Where the system has no memory left, only runs that are backed already will do; if there is none, it is `NotBacked`, and
/// [`trim`] may help: the memory of free units elsewhere can back new ones.
pub(crate) fn claim(arena: &Arena, me: Owner, span: u32) -> Result<u32, NoUnits> {
    let units = arena.geometry().units;
    if span == 0 || span > units {
        return Err(NoUnits::Full);
    }
    let header = arena.header();
    let mut kept = 0;
    let mut at = header.unit_cursor.load(Ordering::Relaxed) % units;
    // Two passes from a hint: the second also sees what lies before it. The frontier grows while looking.
    let mut left = u64::from(units) + u64::from(span);
    while left > 0 {
        if at.checked_add(span).is_none_or(|end| end > units) {
            left = left.saturating_sub(u64::from(units - at));
            at = 0;
            continue;
        }
        while header.unit_top.load(Ordering::Acquire) < at + span {
            if arena.grow_units()?.is_none() {
                break;
            }
        }
        let taken = claim_at(arena, me, at, span, kept);
        if taken == span && back(arena, at, span).is_ok() {
            point!("claim: uncounted");
            // A single unit is likely to be followed by another request of its kind; a hint, so a plain store will do.
            header.unit_cursor.store(at + span, Ordering::Relaxed);
            let in_use = header.units_in_use.fetch_add(span, Ordering::Relaxed).saturating_add(span);
            header.units_high_water.fetch_max(in_use.min(units), Ordering::Relaxed);
            return Ok(at);
        }
        if taken == span {
            give_back(arena, at);
            // From here on, from the start.
            (kept, left) = (BACKED, u64::from(units) + u64::from(span));
            continue;
        }
        at += taken + 1;
        left = left.saturating_sub(u64::from(taken) + 1);
    }
    Err(if kept == 0 { NoUnits::Full } else { NoUnits::NotBacked })
}

/// Tries the run at `at`, of units that have the bits `with`; returns how many of its units were free in a row, having claimed all
/// or none.
fn claim_at(arena: &Arena, me: Owner, at: u32, span: u32, with: u64) -> u32 {
    for i in 0..span {
        let wanted = if i == 0 { Word::of(CLAIMED, me) } else { Word::number(BODY, u64::from(at)) };
        let claimed = arena.unit(at + i).is_some_and(|unit| {
            let old = unit.load(Ordering::Relaxed);
            Word(old).kind() == FREE
                && old & with == with
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
    let _ = in_use.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(freed)));
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

/// Whether the unit that `granule` of the data lies in is the head of a slab of `class`.
#[inline(always)]
pub(crate) fn is_slab(arena: &Arena, granule: u32, class: usize) -> bool {
    let wanted = slab_word(class, class::span(class)).0;
    arena.unit_around(granule).is_some_and(|unit| unit.load(Ordering::Acquire) & !BACKED == wanted)
}

/// Every head below the frontier with what it says, in address order; free units are left out.
pub(crate) fn heads(arena: &Arena) -> impl Iterator<Item = (u32, Word)> + '_ {
    heads_from(arena, 0)
}

/// As [`heads`], from the unit `from` on.
pub(crate) fn heads_from(arena: &Arena, from: u32) -> impl Iterator<Item = (u32, Word)> + '_ {
    let top = arena.header().unit_top.load(Ordering::Acquire).min(arena.geometry().units);
    (from..top).filter_map(|unit| {
        let word = Word(arena.unit(unit)?.load(Ordering::Acquire) & !BACKED);
        (!matches!(word.kind(), FREE | BODY) && is_inside(arena, unit, word)).then_some((unit, word))
    })
}

/// How many units are free and how many have memory behind them, right now.
pub(crate) fn count(arena: &Arena) -> (u64, u64) {
    let top = arena.header().unit_top.load(Ordering::Acquire).min(arena.geometry().units);
    let words = (0..top).filter_map(|unit| arena.unit(unit)).map(|u| u.load(Ordering::Relaxed));
    let (free, backed) = words.fold((0, 0), |(free, mem), word| {
        (free + u64::from(Word(word).kind() == FREE), mem + u64::from(backed(word) != 0))
    });
    (free + u64::from(arena.geometry().units - top), backed)
}

/// How many units are free and have memory behind them.
pub(crate) fn count_backed_free(arena: &Arena) -> u64 {
    let top = arena.header().unit_top.load(Ordering::Acquire).min(arena.geometry().units);
    (0..top).filter_map(|unit| arena.unit(unit)).filter(|u| u.load(Ordering::Relaxed) == BACKED).count() as u64
}

/// Corrects the count of units in use, which the dead may have left wrong.
pub(crate) fn recount(arena: &Arena) {
    let in_use = u64::from(arena.geometry().units).saturating_sub(count(arena).0);
    arena.header().units_in_use.store(u32::try_from(in_use).unwrap_or(0), Ordering::Relaxed);
}

/// Returns the memory of free units to the system, and of those that nobody has asked any for; says how many units that were.
pub(crate) fn trim(arena: &Arena, me: Owner) -> u64 {
    trim_backed(arena, me) + trim_strays(arena, me)
}

/// Returns the memory that units have got behind our backs: mlockall(2) or a core dump has read their holes, or somebody was killed
/// between asking for it and saying so.
fn trim_strays(arena: &Arena, me: Owner) -> u64 {
    let (mut at, mut returned) = (0, 0);
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
        // Beyond the frontier, a unit can't be claimed, and so not be looked after.
        while arena.unit(at).is_none() {
            if !matches!(arena.grow_units(), Ok(Some(_))) {
                return returned;
            }
        }
        if claim_at(arena, me, at, 1, 0) == 1 {
            let is_stray = arena.unit(at).is_some_and(|u| backed(u.load(Ordering::Relaxed)) == 0);
            returned += u64::from(is_stray && arena.punch_units(at, 1));
            give_back(arena, at);
        }
        at += 1;
    }
    returned
}

fn trim_backed(arena: &Arena, me: Owner) -> u64 {
    let top = arena.header().unit_top.load(Ordering::Acquire).min(arena.geometry().units);
    let mut returned = 0;
    let is_idle = |u: &AtomicU64| u.load(Ordering::Relaxed) == BACKED;
    for at in 0..top {
        if !arena.unit(at).is_some_and(is_idle) || claim_at(arena, me, at, 1, BACKED) != 1 {
            continue;
        }
        if let Some(unit) = arena.unit(at) {
            point!("trim: claimed");
            // "Not backed" first: killed between the two, the memory is there and will merely be asked for again.
            unit.store(Word::of(CLAIMED, me).0, Ordering::Release);
            point!("trim: unmarked");
            if arena.punch_units(at, 1) {
                point!("trim: punched");
                returned += 1;
            } else {
                unit.store(Word::of(CLAIMED, me).0 | BACKED, Ordering::Release);
            }
        }
        give_back(arena, at);
    }
    returned
}
