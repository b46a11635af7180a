//! Participants: which processes are attached, and which of them are alive.
//!
//! # Ownership
//! A process slot is its process's from `word = ALIVE(me)` until the process sets it to 0, or a reaper does after
//! everything else of a dead one is done. A context slot is its process's from the CAS of `owner` until it stores 0.
//!
//! # If a process dies
//! The kernel drops its lease (an open-file-description lock on byte `LEASE_BYTES + slot`). A slot that says `ALIVE` while
//! nobody holds its byte is a dead process's. Killed between taking the lease and `ALIVE`: a free slot. The epoch, counted
//! up before `ALIVE`, keeps a slot's next user apart from what the last one left.

use crate::format::{CONTEXTS, HELD_BY, Owner, PROCESSES, ProcessSlot, Word, process};
use crate::heap::gate::Gate;
use crate::segment::arena::Arena;
use crate::segment::{LEASE_BYTES, Segment};
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::sys::task;

/// Takes a process slot and its lease. The caller holds the control lock.
pub(crate) fn join(segment: &Segment) -> Option<Owner> {
    (0..PROCESSES).find_map(|index| {
        let slot = segment.arena().process(index)?;
        if slot.word.load(Ordering::Acquire) != 0 {
            return None;
        }
        // A free slot whose byte is held: a child that somebody forked without our hooks still has its parent's lease.
        if !segment.try_take_lease(index) {
            return None;
        }
        point!("join: lease");
        let me = Owner::new(index, slot.epoch.load(Ordering::Relaxed).wrapping_add(1));
        slot.epoch.store(me.epoch(), Ordering::Relaxed);
        point!("join: epoch");
        slot.pid.store(std::process::id(), Ordering::Relaxed);
        slot.reaped_to.store(0, Ordering::Relaxed);
        slot.word.store(Word::of(process::ALIVE, me).0, Ordering::Release);
        point!("join: alive");
        segment.keep_lease();
        Some(me)
    })
}

/// Takes over a dead process's slot as it is, epoch and all, when every slot is taken and nobody alive may be there to reap. The
/// caller holds the control lock, and gives back what the dead one had before it does anything else: until then, and if it is
/// killed meanwhile, all of that is simply its own.
pub(crate) fn adopt(segment: &Segment) -> Option<Owner> {
    // Not under the hands of a reaper: it would free the slot in the end.
    if !segment.try_lock_reaping() {
        return None;
    }
    let adopted = registered(segment.arena()).find(|who| segment.try_take_lease(who.index()));
    if let Some(slot) = adopted.and_then(|me| segment.arena().process(me.index())) {
        slot.pid.store(std::process::id(), Ordering::Relaxed);
        segment.keep_lease();
    }
    segment.unlock_reaping();
    adopted
}

/// Gives the slot back; everything else of the process is already given back.
pub(crate) fn leave(segment: &Segment, me: Owner) {
    if let Some(slot) = segment.arena().process(me.index()) {
        slot.word.store(0, Ordering::Release);
        point!("leave: slot");
    }
    segment.drop_lease();
}

/// How far reaping all of `dead` has come, as [noted](note): the pass, and where in it to go on.
pub(crate) fn reaped_to(arena: &Arena, dead: &[Owner]) -> Word {
    // SYNC(note)
    let noted = |who: &Owner| arena.process(who.index()).map_or(0, |slot| slot.reaped_to.load(Ordering::Acquire));
    Word(dead.iter().map(noted).min().unwrap_or(0))
}

/// Notes how far reaping all of `dead` has come. Nothing that the dead had can appear where it was already looked for: they can't
/// act, and what is made in their stead bears another's name. The caller is the one reaper, or has taken a dead one's place.
pub(crate) fn note(arena: &Arena, dead: &[Owner], so_far: Word) {
    for slot in dead.iter().filter_map(|who| arena.process(who.index())) {
        // SYNC(note)
        slot.reaped_to.store(so_far.0, Ordering::Release);
    }
}

/// Frees a dead process's slot, as the last step of reaping it.
pub(crate) fn bury(arena: &Arena, dead: Owner) {
    if let Some(slot) = arena.process(dead.index()) {
        let word = Word::of(process::ALIVE, dead).0;
        let _ = slot.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Whether the slot that `me` took, as the process `pid`, still is its. If not, it was given back, or taken over, as a dead one's, with all
/// that it had: the lease was lost.
pub(crate) fn is_registered(arena: &Arena, me: Owner, pid: u32) -> bool {
    let is_own = |slot: &ProcessSlot| {
        slot.word.load(Ordering::Acquire) == Word::of(process::ALIVE, me).0 && slot.pid.load(Ordering::Relaxed) == pid
    };
    arena.process(me.index()).is_some_and(is_own)
}

/// Everyone whose slot says `ALIVE`.
pub(crate) fn registered(arena: &Arena) -> impl Iterator<Item = Owner> + '_ {
    (0..PROCESSES).filter_map(|index| {
        let word = Word(arena.process(index)?.word.load(Ordering::Acquire));
        (word.kind() == process::ALIVE && word.owner().index() == index).then_some(word.owner())
    })
}

/// Whether the lease of `who`'s slot is held: true in doubt.
fn holds_lease(segment: &Segment, me: Owner, who: Owner) -> bool {
    who == me || segment.is_held_elsewhere(LEASE_BYTES + u64::from(who.index()))
}

/// Whether `who` may still act. False is final.
pub(crate) fn is_alive(segment: &Segment, me: Owner, who: Owner) -> bool {
    let slot = segment.arena().process(who.index());
    let registered = slot.is_some_and(|s| s.word.load(Ordering::Acquire) == Word::of(process::ALIVE, who).0);
    registered && holds_lease(segment, me, who)
}

/// Those who died attached.
pub(crate) fn dead(segment: &Segment, me: Owner) -> Vec<Owner> {
    let still = |who: Owner| registered(segment.arena()).any(|r| r == who);
    // One that leaves clears its slot before its lease: still registered after its lease was seen free, it is dead.
    registered(segment.arena()).filter(|who| !holds_lease(segment, me, *who) && still(*who)).collect()
}

/// Whether anybody died attached, as one sees it who is not.
pub(crate) fn has_dead(segment: &Segment) -> bool {
    registered(segment.arena()).any(|who| !segment.is_held_elsewhere(LEASE_BYTES + u64::from(who.index())))
}

/// Whether any process but `me` is attached and alive.
pub(crate) fn has_company(segment: &Segment, me: Owner) -> bool {
    registered(segment.arena()).any(|who| who != me && holds_lease(segment, me, who))
}

/// Process id of `who`, for people.
pub(crate) fn pid(arena: &Arena, who: Owner) -> u32 {
    arena.process(who.index()).map_or(0, |slot| slot.pid.load(Ordering::Relaxed))
}

/// Takes a context slot for a thread of `me`.
pub(crate) fn open_context(arena: &Arena, me: Owner) -> Option<Owner> {
    let taken = Word::of(HELD_BY, me).0;
    (0..CONTEXTS).find_map(|index| {
        let slot = arena.context(index)?;
        let free = slot.owner.load(Ordering::Relaxed) == 0;
        if !free || slot.owner.compare_exchange(0, taken, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return None;
        }
        point!("context: owner");
        // Before anything can be cached there; killed before it, there is nothing.
        if arena.context_top() <= index {
            arena.header().context_top.fetch_max(index + 1, Ordering::AcqRel);
        }
        let epoch = slot.epoch.load(Ordering::Relaxed).wrapping_add(1);
        slot.epoch.store(epoch, Ordering::Relaxed);
        point!("context: epoch");
        // A thief may still be at the last user's magazines: `revoked` is left for the cache to settle.
        slot.gate.store(Gate::BARE.word(), Ordering::Relaxed);
        slot.thread.store(task::thread_id(), Ordering::Relaxed);
        Some(Owner::new(index, epoch))
    })
}

/// Gives a context slot back; no magazine names it any more.
pub(crate) fn close_context(arena: &Arena, context: Owner) {
    if let Some(slot) = arena.context(context.index()) {
        slot.owner.store(0, Ordering::Release);
    }
}

/// The process that the context slot `index` belongs to.
pub(crate) fn context_owner(arena: &Arena, index: u32) -> Option<Owner> {
    let word = Word(arena.context(index)?.owner.load(Ordering::Acquire));
    (word.kind() == HELD_BY).then_some(word.owner())
}
