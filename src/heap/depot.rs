//! The depot: full magazines that any context may take, empty ones that any may fill.
//!
//! The truth is each magazine's holder word; taking one is a CAS on it. Which magazines are worth a look is kept per size
//! class (and for the empty ones) in a word with the two that came last, and in a tree of bits. Both are hints: a lost one
//! costs time until the next [`rebuild`], a stale one costs a failed CAS. Where one context frees what another allocates,
//! magazines go round through the word alone, one line from core to core.
//!
//! # Layout
//! ```text
//! holder   POOL (0)           empty, anybody's
//!          DEPOT  class       has free blocks of the class, anybody's
//!          HELD   context     the context's, which alone writes its entries
//! ```
//!
//! # Orderings
//! - `SYNC(magazine)`: [`put`] stores the holder with Release after the entries, [`take`] CASes it with Acquire. It carries
//!   the entries, and with them every access a former owner made to the blocks listed there.
//! - Hints: a bit is set after the holder was stored, and cleared before the holder is looked at again; all on SeqCst
//!   read-modify-writes, so of a setter and a clearer at least one sees the other (`set`, `clear`).
//!
//! # If a process dies
//! Between the holder's store and the hint, or the count: the magazine is in the depot and found by [`rebuild`], which reaping ends
//! with; then all are told ([`tell_all`]).
//! Between the holder's CAS and anything else: it is `HELD` by a dead process's context, and reaping puts it back.

use crate::format::{
    CONTEXTS, GRANULE, Geometry, HINT_BLOCK, MAGAZINE_ENTRIES, MAGAZINES_PER_PAGE, Magazine, Owner, POOL, UNIT, Word,
    class,
};
use crate::heap::{block, unit, want};
use crate::segment::arena::Arena;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::memory::NotBacked;

pub(crate) const IN_POOL: u64 = 0;
pub(crate) const IN_DEPOT: u64 = 1;
pub(crate) const HELD: u64 = 2;

fn holder_in(list: usize) -> Word {
    if list == POOL { Word::ZERO } else { Word::number(IN_DEPOT, list as u64) }
}

/// Where a magazine's bit is: block, word, bit.
const fn place(index: u32) -> (u32, u32, u32) {
    (index / HINT_BLOCK, index % HINT_BLOCK / 64, index % 64)
}

fn set_bit(word: Option<&AtomicU64>, bit: u32) {
    if let Some(word) = word
        && word.load(Ordering::SeqCst) & (1 << bit) == 0
    {
        word.fetch_or(1 << bit, Ordering::SeqCst);
    }
}

/// Clears a bit; true if that emptied the word.
fn clear_bit(word: Option<&AtomicU64>, bit: u32) -> bool {
    word.is_some_and(|word| word.fetch_and(!(1 << bit), Ordering::SeqCst) & !(1 << bit) == 0)
}

fn set(arena: &Arena, list: usize, index: u32) {
    let (block, word, bit) = place(index);
    if let Some(leaf) = arena.hint(list, block, word) {
        leaf.fetch_or(1 << bit, Ordering::SeqCst);
    }
    set_bit(arena.hint(list, block, 64), word);
    set_bit(arena.hint_root(list, block / 64), block % 64);
}

fn clear(arena: &Arena, list: usize, index: u32) {
    let (block, word, bit) = place(index);
    let is_set = |w: Option<&AtomicU64>| w.is_some_and(|w| w.load(Ordering::SeqCst) != 0);
    if clear_bit(arena.hint(list, block, word), bit) {
        point!("clear: leaf");
        if clear_bit(arena.hint(list, block, 64), word) {
            point!("clear: sum");
            clear_bit(arena.hint_root(list, block / 64), block % 64);
            // Somebody may have set a bit below between our reads: restore what sums it up.
            if is_set(arena.hint(list, block, 64)) {
                set_bit(arena.hint_root(list, block / 64), block % 64);
            }
        }
    }
    if is_set(arena.hint(list, block, word)) {
        set_bit(arena.hint(list, block, 64), word);
        set_bit(arena.hint_root(list, block / 64), block % 64);
    }
}

/// Notes a magazine in the list's word, if that has room: two halves of index + 1.
fn remember(arena: &Arena, list: usize, index: u32) -> bool {
    let Some(recent) = arena.header().recent.get(list) else { return false };
    let old = recent.word.load(Ordering::Relaxed);
    let new = if old & u64::from(u32::MAX) == 0 {
        old | u64::from(index + 1)
    } else if old >> 32 == 0 {
        old | u64::from(index + 1) << 32
    } else {
        return false;
    };
    recent.word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Takes a magazine out of the list's word.
#[allow(clippy::cast_possible_truncation)] // the two halves of a word
fn recall(arena: &Arena, list: usize) -> Option<u32> {
    let recent = arena.header().recent.get(list)?;
    let mut old = recent.word.load(Ordering::Relaxed);
    while old != 0 {
        let (number, new) =
            if old >> 32 != 0 { ((old >> 32) as u32, old & u64::from(u32::MAX)) } else { (old as u32, 0) };
        match recent.word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                point!("take: recalled");
                return Some(number - 1);
            }
            Err(now) => old = now,
        }
    }
    None
}

fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros();
            word &= word - 1;
            bit
        })
    })
}

/// Takes a magazine of `list` for the context `held` names.
pub(crate) fn take(arena: &Arena, list: usize, held: Word) -> Option<u32> {
    let index = recall_and_claim(arena, list, held).or_else(|| search(arena, list, held))?;
    count_taken(arena, list);
    point!("take: claimed");
    Some(index)
}

fn count_taken(arena: &Arena, list: usize) {
    if let Some(recent) = arena.header().recent.get(list) {
        recent.taken.fetch_add(1, Ordering::Relaxed);
    }
}

fn recall_and_claim(arena: &Arena, list: usize, held: Word) -> Option<u32> {
    std::iter::from_fn(|| recall(arena, list)).find(|index| claim(arena, *index, holder_in(list), held))
}

/// Looks through the tree.
fn search(arena: &Arena, list: usize, held: Word) -> Option<u32> {
    let load = |w: Option<&AtomicU64>| w.map_or(0, |w| w.load(Ordering::SeqCst));
    for root in 0..arena.geometry().root_words {
        for block in bits(load(arena.hint_root(list, root))).map(|bit| root * 64 + bit) {
            for word in bits(load(arena.hint(list, block, 64))) {
                for bit in bits(load(arena.hint(list, block, word))) {
                    let index = block * HINT_BLOCK + word * 64 + bit;
                    if claim(arena, index, holder_in(list), held) {
                        point!("take: found");
                        clear(arena, list, index);
                        return Some(index);
                    }
                    point!("take: stale");
                    // Stale, unless it came back while we were clearing.
                    clear(arena, list, index);
                    if arena.magazine(index).is_some_and(|m| m.holder.load(Ordering::Acquire) == holder_in(list).0) {
                        set(arena, list, index);
                    }
                }
            }
        }
    }
    None
}

/// Takes the magazine `index` out of the hands of `from`.
pub(crate) fn claim(arena: &Arena, index: u32, from: Word, to: Word) -> bool {
    arena
        .magazine(index)
        .is_some_and(|m| m.holder.compare_exchange(from.0, to.0, Ordering::Acquire, Ordering::Relaxed).is_ok())
}

/// Where a magazine belongs that lists blocks of `class`, or nothing.
fn list_of(magazine: &Magazine, class: usize) -> usize {
    if is_empty(magazine) { POOL } else { class }
}

/// Puts a held magazine where its contents belong: the depot of `class`, or the pool if it is empty. Tells those who wait for
/// memory.
pub(crate) fn put(arena: &Arena, index: u32, magazine: &Magazine, class: usize) {
    let list = list_of(magazine, class);
    link(arena, index, magazine, list);
    if list != POOL {
        want::tell(arena);
    }
}

/// As [`put`], for a magazine that was only looked at: nobody need be told. Says whether it has blocks.
pub(crate) fn put_back(arena: &Arena, index: u32, magazine: &Magazine, class: usize) -> bool {
    let list = list_of(magazine, class);
    link(arena, index, magazine, list);
    list != POOL
}

fn link(arena: &Arena, index: u32, magazine: &Magazine, list: usize) {
    // SYNC(magazine)
    magazine.holder.store(holder_in(list).0, Ordering::Release);
    point!("put: holder");
    if !remember(arena, list, index) {
        set(arena, list, index);
    }
    point!("put: uncounted");
    if list != POOL {
        tell_put(arena, list);
    }
}

/// Counts a magazine with blocks that has come to the depot of `class`, so that what was learned there before is not believed any more.
fn tell_put(arena: &Arena, class: usize) {
    if let Some(recent) = arena.header().recent.get(class) {
        // SYNC(put): Release after holder and hint; who reads the number before it looks finds the magazine, and who notes the number
        // with what it has not found has read it before.
        recent.put.fetch_add(1, Ordering::Release);
    }
}

/// How many magazines with blocks have come to the depot of `class`, and gone: as long as both stay as they are, so does what is
/// there.
pub(crate) fn traffic(arena: &Arena, class: usize) -> (u64, u64) {
    let recent = arena.header().recent.get(class);
    // SYNC(put)
    recent.map_or((0, 0), |recent| (recent.put.load(Ordering::Acquire), recent.taken.load(Ordering::Acquire)))
}

/// The magazines of `list` that hints lead to, without touching these.
pub(crate) fn listed(arena: &Arena, list: usize) -> impl Iterator<Item = (u32, &Magazine)> {
    let load = |w: Option<&AtomicU64>| w.map_or(0, |w| w.load(Ordering::SeqCst));
    let recent = arena.header().recent.get(list).map_or(0, |recent| recent.word.load(Ordering::Acquire));
    let halves =
        [recent & u64::from(u32::MAX), recent >> 32].map(|half| u32::try_from(half).unwrap_or(0).checked_sub(1));
    let blocks = (0..arena.geometry().root_words)
        .flat_map(move |root| bits(load(arena.hint_root(list, root))).map(move |bit| root * 64 + bit));
    let words = blocks.flat_map(move |block| bits(load(arena.hint(list, block, 64))).map(move |word| (block, word)));
    let indices = words.flat_map(move |(block, word)| {
        bits(load(arena.hint(list, block, word))).map(move |bit| block * HINT_BLOCK + word * 64 + bit)
    });
    let indices = indices.filter(move |index| !halves.contains(&Some(*index)));
    halves.into_iter().flatten().chain(indices).filter_map(move |index| {
        let magazine = arena.magazine(index)?;
        (magazine.holder.load(Ordering::Acquire) == holder_in(list).0).then_some((index, magazine))
    })
}

/// Takes one of those for the context `held` names, if it is still there.
pub(crate) fn take_listed(arena: &Arena, list: usize, index: u32, held: Word) -> bool {
    let is_mine = claim(arena, index, holder_in(list), held);
    if is_mine {
        clear(arena, list, index);
        count_taken(arena, list);
        point!("take: listed");
    }
    is_mine
}

/// Whether the pool looks empty.
fn pool_is_empty(arena: &Arena) -> bool {
    let none_recent = arena.header().recent.get(POOL).is_none_or(|recent| recent.word.load(Ordering::Relaxed) == 0);
    none_recent
        && (0..arena.geometry().root_words)
            .all(|root| arena.hint_root(POOL, root).is_none_or(|word| word.load(Ordering::Relaxed) == 0))
}

/// Sees to it that the pool is not empty, if that can be had.
pub(crate) fn grow_if_empty(arena: &Arena) {
    while pool_is_empty(arena) {
        if !grow_pool(arena).unwrap_or(false) {
            break;
        }
    }
}

/// Magazines beyond what blocks and contexts need.
const SLACK: u32 = 64;

/// Magazines that a context may keep empty, or half empty: enough for the few classes that a thread works with.
pub(crate) const PER_CONTEXT: u32 = 32;

/// Adds `count` to the magazines that there should be, for a slab whose blocks fill so many or a context, and makes what is missing.
/// With too few, frees work all the same, but what they free is `LOOSE`; so the count may be wrong until somebody [`recount`]s.
pub(crate) fn provide(arena: &Arena, count: u32) {
    let header = arena.header();
    let due = header.magazines_due.fetch_add(count, Ordering::Relaxed).saturating_add(count);
    let due = due.saturating_add(SLACK).min(arena.geometry().magazines);
    while arena.magazine_top() < due {
        if !grow_pool(arena).unwrap_or(false) {
            break;
        }
    }
}

/// Takes `count` off again: the slab or the context is gone. The magazines stay, for the next one.
pub(crate) fn retire(arena: &Arena, count: u32) {
    let due = &arena.header().magazines_due;
    let _ = due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| Some(due.saturating_sub(count)));
}

/// Corrects the count of magazines that there should be, which the dead may have left wrong.
pub(crate) fn recount(arena: &Arena) {
    let slabs = unit::heads(arena).filter(|(_, what)| what.kind() == unit::SLAB);
    let due = slabs.map(|(_, what)| unit::class_of(what)).filter(|class| *class < class::COUNT);
    let due = due.map(|class| magazines_for(arena.geometry(), class)).fold(0, u32::saturating_add);
    let contexts = (0..CONTEXTS).filter_map(|i| arena.context(i)).filter(|c| c.owner.load(Ordering::Relaxed) != 0);
    let due = contexts.fold(due, |due, _| due.saturating_add(PER_CONTEXT));
    arena.header().magazines_due.store(due, Ordering::Relaxed);
}

/// Adds a page of empty magazines to the pool; false if there is no room for more.
fn grow_pool(arena: &Arena) -> Result<bool, NotBacked> {
    let Some(first) = arena.grow_magazines()? else { return Ok(false) };
    point!("grow: raised");
    for index in first..arena.magazine_top().min(first + MAGAZINES_PER_PAGE) {
        if arena.magazine(index).is_some_and(|m| m.holder.load(Ordering::Relaxed) == Word::ZERO.0) {
            set(arena, POOL, index);
        }
    }
    Ok(true)
}

/// Sets the hint of the magazine `index` if nobody holds it: repairs what deaths have lost. Those in a list's word get a second one,
/// which is stale once they are taken.
pub(crate) fn rebuild(arena: &Arena, index: u32) {
    let Some(magazine) = arena.magazine(index) else { return };
    let holder = Word(magazine.holder.load(Ordering::Acquire));
    match holder.kind() {
        IN_POOL => set(arena, POOL, index),
        IN_DEPOT => set(arena, usize::try_from(holder.value()).unwrap_or(POOL).min(POOL), index),
        _ => {}
    }
}

/// Has others look into every depot: for magazines that the dead have put there uncounted.
pub(crate) fn tell_all(arena: &Arena) {
    (0..class::COUNT).for_each(|class| tell_put(arena, class));
}

/// Takes the names of `gone` off the free blocks of a magazine, which keep the name of their last owner: what still has such a name
/// when this was done to all magazines is in none. `gone` allocate and free nothing meanwhile, and the caller holds the control
/// lock, so that no slab is given back.
///
/// A block whose header names one of them and which is listed was pushed by them, or named to be popped, and is not popped: whoever
/// pops it has named it anew before that. So whatever happens to the magazine meanwhile, the CAS hits free blocks only.
pub(crate) fn clear_names(arena: &Arena, magazine: u32, gone: &[Owner]) {
    let Some(magazine) = arena.magazine(magazine) else { return };
    for block in entries(magazine).filter_map(|granule| arena.block(granule)) {
        let name = Word(block.state.load(Ordering::Acquire));
        if name.kind() == block::state::OWNED && gone.contains(&name.owner()) {
            block::change(block, name, Word::number(block::state::FREE, 0));
            point!("names: cleared");
        }
    }
}

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

/// What a magazine lists: its entries up to the first 0.
pub(crate) fn entries(magazine: &Magazine) -> impl Iterator<Item = u32> + '_ {
    magazine.entries.iter().map(|entry| entry.load(Ordering::Acquire)).take_while(|granule| *granule != 0)
}

pub(crate) fn is_empty(magazine: &Magazine) -> bool {
    entries(magazine).next().is_none()
}

/// How many entries a magazine has.
pub(crate) fn len(magazine: &Magazine) -> u32 {
    // Most are full or empty.
    let is_full = magazine.entries.last().is_some_and(|entry| entry.load(Ordering::Relaxed) != 0);
    if is_full { MAGAZINE_ENTRIES } else { entries(magazine).fold(0, |len, _| len + 1) }
}

/// The class of the blocks a magazine lists; `None` if it lists none.
pub(crate) fn class_of(arena: &Arena, magazine: &Magazine) -> Option<usize> {
    entries(magazine).find_map(|granule| {
        let (_, what) = arena.block(granule).and_then(|_| unit::head_of(arena, arena.unit_of(granule)))?;
        (what.kind() == unit::SLAB).then(|| unit::class_of(what)).filter(|class| *class < class::COUNT)
    })
}
