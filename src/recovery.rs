//! Reaping: giving back what dead processes held.
//!
//! Promises: what a dead process owned is free again, what it had sent stays queued, and its roles are vacant, whenever it
//! died, and whenever any earlier reaper died. Live traffic goes on meanwhile: nothing here takes a lock that sending,
//! receiving, allocating or freeing takes. Refuses: to judge by time, or by process ids.
//!
//! # The passes
//! One reaper at a time among processes (a lease byte) and threads (a mutex). For all victims together:
//! 1. **Magazines** of their contexts, under the control lock: every entry names a free block, whatever its state says; entries of units
//!    that are no slab are dropped, the magazine goes to its depot. Then the context slots.
//! 2. **Channels**, under the control lock: entries half made or half removed are removed; what a victim owns inside any
//!    window becomes `QUEUED`; then its roles are vacated and the peers woken.
//! 3. **Headers**: the victims' names are taken off the free blocks of all magazines, whoever holds them; then what still says `OWNED(victim)` is taken over by CAS and freed.
//! 4. **Units** claimed by a victim are released.
//! 5. **Hints** are rebuilt; last, the process slots are freed.
//!
//! The window pass comes before the header scan because a queued record's header still names its sender; it may come at
//! all only because the victim is dead, so that nothing of its can enter a window behind our back. A consumer that takes
//! a record meanwhile stores its own name over ours, or before it: both are right.
//!
//! # If a process dies
//! The victim's slot is freed last, so the next reaper finds it again and repeats every pass; each step is a CAS from
//! what the victim left, or a store that may be repeated. What the dead reaper had taken over names the reaper, which is a
//! victim itself by then.

use crate::arena::Arena;
use crate::attachment::Attachment;
use crate::directory;
use crate::heap::block::Handle;
use crate::heap::cache::{self, Cache};
use crate::heap::{self, block, class, depot, reclaim, unit};
use crate::layout::{BlockHeader, CONTEXTS, Owner, Word};
use crate::participant;
use crate::segment::REAP_BYTE;
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::sys::lease;

/// What reaping gave back.
///
/// ```
/// # let victim = std::env::var("DOC_REAPED");
/// # let name = victim.clone().unwrap_or(format!("doc-reaped-{}", std::process::id()));
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// # if victim.is_ok() {
/// #     let _kept = ctx.record(1_u64)?;
/// #     std::process::exit(0);
/// # }
/// # let mut another = std::process::Command::new(std::env::current_exe().unwrap());
/// # another.env("DOC_REAPED", &name);
/// // Another process allocates a record and ends without dropping it.
/// assert!(another.status().is_ok_and(|status| status.success()));
/// let reaped = buffer.reap()?;
/// assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, 1, 0));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// Dead processes.
    pub processes: usize,
    /// Records (and half-made channels' storage) they held.
    pub records: u64,
    /// Blocks in their caches.
    pub cached_blocks: u64,
    /// Roles they had in channels.
    pub endpoints: usize,
}

/// Reaps every dead process of this buffer. Does nothing if nobody is dead, or if another process is at it.
pub(crate) fn reap(attachment: &Attachment) -> Reaped {
    let segment = attachment.segment();
    if attachment.is_forked() || participant::dead(segment, attachment.me()).is_empty() {
        return Reaped::default();
    }
    // The victims' context slots may be all there are: return magazines before asking for a cache of our own.
    let mut reaped = Reaped::default();
    // Threads share the lease byte, and would both return the same magazines.
    let _threads = attachment.reaping();
    if !lease::try_take(segment.file(), REAP_BYTE).unwrap_or(false) {
        return reaped;
    }
    point!("reap: locked");
    // Judged again under the lock: the last reaper may just have finished.
    let victims = participant::dead(segment, attachment.me());
    if !victims.is_empty() && give_back(attachment, &victims, &mut reaped) {
        for victim in &victims {
            participant::bury(attachment.arena(), *victim);
            point!("reap: buried");
        }
        reaped.processes = victims.len();
    }
    point!("reap: done");
    lease::release(segment.file(), REAP_BYTE);
    reaped
}

/// Gives back what this process has taken over with its slot (see `participant::adopt`), before it has anything of its own.
pub(crate) fn inherit(attachment: &Attachment) -> bool {
    give_back(attachment, &[attachment.me()], &mut Reaped::default())
}

/// The passes but the last. False if a lock could not be had.
fn give_back(attachment: &Attachment, victims: &[Owner], reaped: &mut Reaped) -> bool {
    {
        // Nobody takes an idle context's magazines meanwhile.
        let Ok(_control) = attachment.control() else { return false };
        reaped.cached_blocks = return_magazines(attachment.arena(), attachment.me(), victims);
    }
    let finished = attachment.with_service(|cache| {
        let Ok(control) = attachment.control() else { return false };
        reaped.endpoints = directory::vacate(&control, cache, attachment.arena(), victims);
        point!("reap: vacated");
        // Nothing is freed from here to the scan: what we free has our name, and it may be us who inherits.
        cache.flush();
        depot::clear_names(cache.arena(), victims);
        point!("reap: names done");
        // Still under the lock: nobody trims away the memory we look at.
        reaped.records = free_owned(cache, victims);
        point!("reap: records done");
        drop(control);
        release_units(cache.arena(), victims);
        point!("reap: units done");
        true
    });
    if finished != Ok(true) {
        return false;
    }
    depot::rebuild(attachment.arena());
    point!("reap: hints");
    depot::recount(attachment.arena());
    unit::recount(attachment.arena());
    point!("reap: counted");
    true
}

/// Pass 1.
fn return_magazines(arena: &Arena, me: Owner, victims: &[Owner]) -> u64 {
    let is_victims = |index: u32| participant::context_owner(arena, index).is_some_and(|who| victims.contains(&who));
    for slot in (0..CONTEXTS).filter_map(|index| arena.context(index)) {
        victims.iter().for_each(|victim| cache::settle(arena, slot, *victim));
    }
    let contexts: Vec<u32> = (0..CONTEXTS).filter(|index| is_victims(*index)).collect();
    let mut blocks = 0;
    for index in 0..arena.header().magazine_top.load(Ordering::Acquire) {
        let Some(magazine) = arena.magazine(index) else { break };
        let holder = Word(magazine.holder.load(Ordering::Acquire));
        if holder.kind() != depot::HELD || contexts.binary_search(&holder.owner().index()).is_err() {
            continue;
        }
        // Nobody writes it: its holder is dead, and we are the only reaper.
        let n = magazine.n.load(Ordering::Relaxed);
        if n as usize > magazine.entries.len() {
            magazine.n.store(0, Ordering::Release);
        }
        let Some(class) = depot::class_of(arena, magazine) else {
            // Nothing in it that is a block.
            magazine.n.store(0, Ordering::Release);
            depot::put(arena, index, magazine, 0);
            continue;
        };
        // Entries of a slab that died while it was being given back are dropped; the rest is free, whatever it says.
        reclaim::drop_entries(arena, me, magazine, |granule| reclaim::slab_of(arena, granule, class).is_none());
        blocks += u64::from(magazine.n.load(Ordering::Relaxed));
        depot::put(arena, index, magazine, class);
        point!("reap: magazine put");
    }
    point!("reap: magazines done");
    for index in contexts {
        if let Some(slot) = arena.context(index) {
            slot.owner.store(0, Ordering::Release);
        }
    }
    point!("reap: contexts done");
    blocks
}

/// Pass 3, and what no magazine had room for.
fn free_owned(cache: &Cache, victims: &[Owner]) -> u64 {
    let mut records = 0;
    for_each_block(cache.arena(), |at| {
        let state = Word(at.header.state.load(Ordering::Acquire));
        let is_victims = state.kind() == block::state::OWNED && victims.contains(&state.owner());
        let is_loose = state.kind() == block::state::LOOSE;
        // A slab or run that was given back since we read its head has somebody's payload where its headers were: look
        // at the head again. A block that really is a victim's keeps its slab or run in place.
        if (is_victims || is_loose)
            && at.is_current(cache.arena())
            && block::change(at.header, state, block::owned(cache.me()))
        {
            point!("reap: record taken");
            // No magazine had room, or a dead process held so much: unlike a plain free, this one may ask for more.
            depot::grow_if_empty(cache.arena());
            heap::free(cache, Handle::new(cache.tag(), at.class, at.granule));
            point!("reap: record freed");
            records += u64::from(is_victims);
        }
    });
    records
}

/// Frees blocks that no magazine had room for.
pub(crate) fn collect_loose(attachment: &Attachment, cache: &Cache) {
    debug_assert_eq!(attachment.me(), cache.me());
    free_owned(cache, &[]);
}

/// Pass 4.
fn release_units(arena: &Arena, victims: &[Owner]) {
    for (head, what) in unit::heads(arena) {
        if what.kind() == unit::CLAIMED && victims.contains(&what.owner()) {
            unit::release(arena, head);
            point!("reap: unit released");
        }
    }
}

/// A block met on a walk through the heap.
pub(crate) struct At<'a> {
    pub(crate) granule: u32,
    pub(crate) class: u8,
    pub(crate) header: &'a BlockHeader,
    head: u32,
    what: Word,
}

impl At<'_> {
    /// Whether the slab or run is still what it was when the walk came to it.
    pub(crate) fn is_current(&self, arena: &Arena) -> bool {
        unit::head_of(arena, self.head) == Some((self.head, self.what))
    }
}

/// Every block of every slab, and every large block. What is in use changes meanwhile.
pub(crate) fn for_each_block(arena: &Arena, mut visit: impl FnMut(At<'_>)) {
    for (head, what) in unit::heads(arena) {
        let first = arena.granule_of(head);
        let (class, size, blocks) = match what.kind() {
            unit::RUN => (class::RUN, 0, 1),
            unit::SLAB if unit::class_of(what) < class::COUNT => {
                let class = unit::class_of(what);
                (u8::try_from(class).unwrap_or(class::RUN), class::granules(class), class::blocks(class))
            }
            _ => continue,
        };
        for granule in (0..blocks).map(|i| first + i * size) {
            if let Some(header) = arena.block(granule) {
                visit(At { granule, class, header, head, what });
            }
        }
    }
}
