//! Waiting for memory: how who waits is told of frees, at no cost to frees while nobody does.
//!
//! # Orderings
//! `SYNC(want)`: who waits stores `memory_wanted`, and behind a fence tries to allocate; who gives something back (a magazine to the
//! depot, units) does so, and behind a fence looks at `memory_wanted`. One of the two sees the other: the
//! memory is found, or the version is raised and the sleeper woken.
//!
//! What a thread frees goes into its own cache first. So who waits also puts `ASKED` into every context's `revoked` word: its
//! owner finds it at its next allocation or free, and gives back all it caches.
//!
//! # If a process dies
//! Whoever wanted memory: the mark stays, and costs the next who gives something back one wake-up of nobody. Between clearing the
//! mark and waking: who waits looks again within a tick.

use crate::format::{Owner, Word, revoked};
use crate::segment::arena::Arena;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::crash::point;
use crate::wait;

/// Says that the context `mine` of the process `me` waits for memory, to be called before each try; then sleep on the result.
pub(crate) fn announce(arena: &Arena, me: Owner, mine: u32) {
    arena.header().memory_wanted.store(1, Ordering::SeqCst);
    let asked = Word::of(revoked::ASKED, me).0;
    for slot in (0..arena.context_top()).filter(|index| *index != mine).filter_map(|index| arena.context(index)) {
        if slot.owner.load(Ordering::Relaxed) != 0 {
            let _ = slot.revoked.compare_exchange(0, asked, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    // SYNC(want)
    fence(Ordering::SeqCst);
}

/// What to sleep on.
pub(crate) fn version(arena: &Arena) -> &AtomicU32 {
    &arena.header().memory_version
}

/// Whether somebody waits.
pub(crate) fn is_wanted(arena: &Arena) -> bool {
    arena.header().memory_wanted.load(Ordering::Relaxed) != 0
}

/// Tells those who wait that something was given back.
#[inline]
pub(crate) fn tell(arena: &Arena) {
    // SYNC(want)
    fence(Ordering::SeqCst);
    if is_wanted(arena) {
        arena.header().memory_wanted.store(0, Ordering::SeqCst);
        point!("want: cleared");
        wait::announce(version(arena));
    }
}
