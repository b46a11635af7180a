//! The audit: where every byte of a buffer is, and whether that adds up.

use crate::directory;
use crate::error::BufferError;
use crate::format::{CONTEXTS, UNIT, Word};
use crate::heap::block::{Meta, state};
use crate::heap::{block, depot, gate, unit};
use crate::membership::participant;
use crate::membership::{Membership, Turns};
use crate::queue::window;
use crate::recovery::{self, At};
use crate::sync::Ordering;
use std::collections::{BTreeMap, HashMap};

/// Where every byte of a buffer is; made by [`Buffer::audit`](crate::Buffer::audit).
///
/// Exact when nobody is at work in the buffer meanwhile; under traffic, what moves while the audit walks may be counted twice or
/// reported in [`problems`](Self::problems).
///
/// ```
/// # let name = format!("doc-audit-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let kept = ctx.record([1_u8; 64])?;
/// let audit = buffer.audit()?;
/// let parts = [audit.free_bytes, audit.cached_bytes, audit.owned_bytes(), audit.queued_bytes(), audit.channel_bytes];
/// assert_eq!(parts.iter().sum::<u64>(), audit.capacity_bytes);
/// assert!(audit.problems.is_empty(), "{:?}", audit.problems);
/// # drop(kept);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// The buffer's data: what all the others add up to.
    pub capacity_bytes: u64,
    /// Free for anybody: units, depot, and the ends of slabs too short for a block.
    pub free_bytes: u64,
    /// Free, in the caches of contexts.
    pub cached_bytes: u64,
    /// Records in the hands of processes.
    pub owned: Vec<Owned>,
    /// Records queued in channels.
    pub queued: Vec<Queued>,
    /// Blocks that hold the channels' slots.
    pub channel_bytes: u64,
    /// Bytes that are none of the above: 0 in a sound buffer at rest.
    pub unaccounted_bytes: u64,
    /// What is wrong, in words; empty in a sound buffer at rest.
    pub problems: Vec<String>,
}

/// Part of an [`Audit`]: the records of one process.
///
/// ```
/// # let name = format!("doc-audit-owned-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let kept = ctx.record(1_u64)?;
/// let owned = &buffer.audit()?.owned[0];
/// assert_eq!((owned.pid, owned.records, owned.bytes), (std::process::id(), 1, 64));
/// assert!(owned.is_self && owned.is_alive);
/// # drop(kept);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owned {
    /// Process id, in its own pid namespace.
    pub pid: u32,
    /// Whether it is this process.
    pub is_self: bool,
    /// Whether it is alive.
    pub is_alive: bool,
    /// Records.
    pub records: u64,
    /// Their blocks.
    pub bytes: u64,
}

/// Part of an [`Audit`]: the records in one channel. One that carries values has none: they are part of its slots.
///
/// ```
/// # let name = format!("doc-audit-queued-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let mut tx = ctx.producer::<u64>(7)?;
/// tx.send(ctx.record(1)?)?;
/// let queued = &buffer.audit()?.queued[0];
/// assert_eq!((queued.channel, queued.records, queued.bytes), (7, 1, 64));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queued {
    /// The channel.
    pub channel: i64,
    /// Records.
    pub records: u64,
    /// Their blocks.
    pub bytes: u64,
}

impl Audit {
    /// Bytes of records in anybody's hands.
    ///
    /// ```
    /// # let name = format!("doc-audit-owned-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let kept = ctx.record(1_u64)?;
    /// assert_eq!(buffer.audit()?.owned_bytes(), 64);
    /// drop(kept);
    /// assert_eq!(buffer.audit()?.owned_bytes(), 0);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn owned_bytes(&self) -> u64 {
        self.owned.iter().map(|owned| owned.bytes).sum()
    }

    /// Bytes of queued records.
    ///
    /// ```
    /// # let name = format!("doc-audit-queued-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u64>(7)?;
    /// tx.send(ctx.record(1)?)?;
    /// let audit = buffer.audit()?;
    /// assert_eq!((audit.queued_bytes(), audit.owned_bytes()), (64, 0));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn queued_bytes(&self) -> u64 {
        self.queued.iter().map(|queued| queued.bytes).sum()
    }

    /// Whether every byte is accounted for.
    ///
    /// ```
    /// # let name = format!("doc-audit-sound-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let kept = ctx.record(1_u64)?;
    /// let audit = buffer.audit()?;
    /// assert!(audit.is_sound() && audit.unaccounted_bytes == 0);
    /// # drop(kept);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_sound(&self) -> bool {
        self.unaccounted_bytes == 0 && self.problems.is_empty()
    }

    /// Whether nothing is in use: every byte is free or cached.
    ///
    /// ```
    /// # let name = format!("doc-audit-free-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let kept = ctx.record(1_u64)?;
    /// assert!(!buffer.audit()?.is_all_free());
    /// drop(kept);
    /// assert!(buffer.audit()?.is_all_free());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_all_free(&self) -> bool {
        self.is_sound() && self.free_bytes + self.cached_bytes == self.capacity_bytes
    }
}

/// A block's place outside anybody's hands.
enum Place {
    Free,
    Cached,
    Queued(usize),
    Storage,
}

pub(crate) fn audit(member: &Membership) -> Result<Audit, BufferError> {
    let arena = member.arena();
    // In turns: who waits for the control lock gets it in between.
    let mut turns = Turns::new(member);
    let mut audit = Audit { capacity_bytes: u64::from(arena.geometry().units) * UNIT, ..Audit::default() };
    let mut places: HashMap<u32, Place> = HashMap::new();
    let mut problems = Vec::new();

    for index in 0..arena.magazine_top() {
        let Some(magazine) = arena.magazine(index) else { break };
        let holder = Word(magazine.holder.load(Ordering::Acquire));
        if holder.kind() == depot::HELD && participant::context_owner(arena, holder.owner().index()).is_none() {
            problems.push(format!("magazine {index} is held by a context that nobody has"));
        }
        for granule in depot::entries(magazine) {
            let place = if holder.kind() == depot::HELD { Place::Cached } else { Place::Free };
            if places.insert(granule, place).is_some() {
                problems.push(format!("block {granule} is in two magazines"));
            }
        }
    }
    for (index, slot) in (0..CONTEXTS).filter_map(|index| Some((index, arena.context(index)?))) {
        if participant::context_owner(arena, index).is_some()
            && let Some(spare) = gate::spare(arena, slot)
            && places.insert(spare.handle.granule(), Place::Cached).is_some()
        {
            let granule = spare.handle.granule();
            problems.push(format!("block {granule} is in a magazine and the spare of context {index}"));
        }
    }
    let mut next = Some(0);
    while let Some(from) = next.take() {
        // Under the lock: nobody takes a channel apart meanwhile.
        let control = turns.turn()?;
        for facts in directory::list_from(control, from) {
            let number = audit.queued.len();
            audit.queued.push(Queued { channel: facts.id, records: 0, bytes: 0 });
            places.insert(facts.storage, Place::Storage);
            match facts.ring {
                Some(ring) => {
                    for (_, granule) in window::records(ring) {
                        if places.insert(granule, Place::Queued(number)).is_some() {
                            problems.push(format!("block {granule} is queued in channel {} and elsewhere", facts.id));
                        }
                    }
                }
                None => problems.push(format!("channel {} has no queue", facts.id)),
            }
            if control.is_overdue() {
                next = Some(facts.index + 1);
                break;
            }
        }
    }

    let mut owners: BTreeMap<(u32, u64), (u64, u64)> = BTreeMap::new();
    let mut seen_bytes = 0;
    let mut look = |at: &At<'_>| {
        let bytes = block::bytes(arena, at.granule, at.class).unwrap_or(0);
        seen_bytes += bytes;
        let word = Word(at.header.state.load(Ordering::Acquire));
        let place = places.remove(&at.granule);
        let header_class = Meta::unpack(at.header.meta.load(Ordering::Relaxed)).class;
        if header_class != at.class {
            problems.push(format!("block {} says class {header_class}, its slab {}", at.granule, at.class));
        }
        match (place, word.kind()) {
            // Whatever it says: the name of who freed it, as a rule.
            (Some(Place::Free), state::FREE | state::OWNED) | (None, state::LOOSE) => audit.free_bytes += bytes,
            (Some(Place::Cached), state::FREE | state::OWNED | state::STOLEN) => audit.cached_bytes += bytes,
            (Some(Place::Queued(number)), state::OWNED | state::QUEUED) => {
                audit.queued[number].records += 1;
                audit.queued[number].bytes += bytes;
            }
            (Some(Place::Storage), state::STORAGE) => audit.channel_bytes += bytes,
            (None, state::OWNED) => {
                let entry = owners.entry((word.owner().index(), word.owner().epoch())).or_default();
                entry.0 += 1;
                entry.1 += bytes;
            }
            (place, kind) => {
                audit.unaccounted_bytes += bytes;
                let place = match place {
                    None => "in no magazine and no channel",
                    Some(Place::Free | Place::Cached) => "in a magazine",
                    Some(Place::Queued(_)) => "in a channel",
                    Some(Place::Storage) => "a channel's storage",
                };
                problems.push(format!("block {} of {bytes} bytes is {place}, with state {kind}", at.granule));
            }
        }
    };
    let mut next = 0;
    loop {
        // Under the lock, so that nobody trims away the memory we look at.
        turns.turn()?;
        let Some((head, what)) = unit::heads_from(arena, next).next() else { break };
        recovery::blocks(arena, head, what).for_each(|at| look(&at));
        next = head + 1;
    }
    drop(turns);
    for granule in places.keys() {
        problems.push(format!("{granule} is listed and is no block"));
    }

    // Units: free ones, slabs and runs (with the tails of slabs, too short for a block), and what belongs to no head.
    let (free_units, _) = unit::count(arena);
    let mut used_units = 0;
    for (head, what) in unit::heads(arena) {
        if what.kind() == unit::CLAIMED {
            problems.push(format!("unit {head} is being claimed or released"));
        } else {
            used_units += unit::span_of(what);
        }
    }
    // Under traffic the walks see different moments, and the difference can be negative.
    audit.free_bytes += (free_units.saturating_add(used_units).saturating_mul(UNIT)).saturating_sub(seen_bytes);
    let lost = u64::from(arena.geometry().units).saturating_sub(free_units.saturating_add(used_units));
    if lost > 0 {
        problems.push(format!("{lost} units belong to nothing"));
        audit.unaccounted_bytes += lost * UNIT;
    }

    for ((index, epoch), (records, bytes)) in owners {
        let who = crate::format::Owner::new(index, epoch);
        let is_alive = participant::is_alive(member.segment(), member.me(), who);
        if !is_alive {
            problems.push(format!("{records} records belong to a process that is gone (slot {index})"));
            audit.unaccounted_bytes += bytes;
        }
        let pid = participant::pid(arena, who);
        audit.owned.push(Owned { pid, is_self: who == member.me(), is_alive, records, bytes });
    }
    audit.problems = problems;
    Ok(audit)
}
