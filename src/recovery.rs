//! Reaping: giving back what dead processes held.
//!
//! Promises: what a dead process owned is free again, what it had sent stays queued, and its roles are vacant, whenever it
//! died, and whenever any earlier reaper died. Live traffic goes on meanwhile: nothing here takes a lock that sending,
//! receiving, allocating or freeing takes. Refuses: to judge by time, or by process ids.
//!
//! # The passes
//! One reaper at a time among processes (a lease byte) and threads (a mutex). For all victims together:
//! 1. **Magazines** of their contexts, under the control lock: every entry names a free block, whatever its state says; entries of
//!    units that are no slab are dropped, the magazine goes to its depot. Then the context slots.
//! 2. **Channels**, under the control lock: what a victim owns inside any window becomes `QUEUED`; then its roles are vacated and
//!    the peers woken; entries half made, half removed, or deserted are dismantled.
//! 3. **Names**, under the control lock: the victims' are taken off the free blocks of all magazines, whoever holds those.
//! 4. **Headers**, under the control lock: what still says `OWNED(victim)` is taken over by CAS and freed.
//! 5. **Units** claimed by a victim are released.
//! 6. **Hints** are rebuilt; last, the process slots are freed.
//!
//! The window pass comes before the header scan because a queued record's header still names its sender; it may come at
//! all only because the victim is dead, so that nothing of its can enter a window behind our back. A consumer that takes
//! a record meanwhile stores its own name over ours, or before it: both are right.
//!
//! # Whose time
//! A heap of gigabytes takes longer than a caller may have. So the control lock is given up every fraction of a millisecond, and a
//! reaper stops when its [`Effort`] is spent and notes in the victims' slots how far it came, for the next one to go on. Nobody
//! waits for a reaper without a bound: a peer of the dead ends its wait by itself (`channel`), and one who wants a role takes it
//! from the dead (`directory::bereave`).
//!
//! # If a process dies
//! The victim's slot is freed last, so the next reaper finds it again and repeats every pass, or goes on from the note; each step
//! is a CAS from what the victim left, or a store that may be repeated. What the dead reaper had taken over names the reaper,
//! which is a victim itself by then, without a note, so that all is looked at once more.

use crate::arena::Arena;
use crate::attachment::{Attachment, Control};
use crate::directory::{self, Settled, Spot};
use crate::error::BufferError;
use crate::heap::block::Handle;
use crate::heap::cache::{self, Cache};
use crate::heap::{self, block, class, depot, reclaim, unit};
use crate::layout::{BlockHeader, CHANNELS, CONTEXTS, Magazine, Owner, Word};
use crate::participant;
use crate::segment::PATIENCE;
use crate::sync::Ordering;
use crate::sys::crash::point;
use std::time::{Duration, Instant};

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

/// How long one who needs something waits for another reaper, who may be about to give it back.
pub(crate) const OTHERS: Duration = Duration::from_millis(200);

/// How much of the caller's time reaping may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// For the work itself, and to wait for the control lock; `None` for all that it takes.
    work: Option<Duration>,
    /// To wait for another reaper.
    others: Duration,
}

impl Effort {
    /// All of it, unless another is at it.
    pub(crate) const ALL: Self = Self { work: None, others: Duration::ZERO };
    /// All of it, and if another is at it, it is given a moment.
    pub(crate) const PATIENT: Self = Self { work: None, others: OTHERS };
    /// All of it, and if another is at it, what that one leaves.
    pub(crate) const THOROUGH: Self = Self { work: None, others: PATIENCE };
    /// What one gives who has something else to do.
    pub(crate) const A_MOMENT: Self = Self { work: Some(brief(20)), others: Duration::ZERO };
    /// What one gives at a time who needs memory.
    pub(crate) const A_BIT: Self = Self { work: Some(brief(1)), others: Duration::ZERO };
}

/// No time in tests for kills, so that every step is one to stop after.
const fn brief(ms: u64) -> Duration {
    Duration::from_millis(if cfg!(feature = "crash-points") { 0 } else { ms })
}

/// How many magazines are looked at between two questions for the time.
const STRIDE: u32 = if cfg!(feature = "crash-points") { 4 } else { 256 };

/// How reaping ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Nobody dead is left.
    Done,
    /// The time was up.
    TimeIsUp,
    /// Another was at it, or kept a lock.
    Stuck(BufferError),
}

/// Reaps every dead process of this buffer.
pub(crate) fn reap(attachment: &Attachment, effort: Effort) -> (Reaped, End) {
    let segment = attachment.segment();
    let mut reaped = Reaped::default();
    if attachment.check().is_err() || participant::dead(segment, attachment.me()).is_empty() {
        return (reaped, End::Done);
    }
    let until = effort.work.map(|work| Instant::now() + work);
    // Threads share the lease byte, and would both return the same magazines.
    let threads = attachment.reaping(effort.others);
    let lock = threads.and_then(|threads| Some((Lock::take(attachment, effort.others)?, threads)));
    let Some(_lock) = lock else {
        let pid = attachment.arena().header().reaper_pid.load(Ordering::Relaxed);
        return (reaped, End::Stuck(BufferError::Busy { pid: u32::try_from(pid).unwrap_or(0) }));
    };
    point!("reap: locked");
    // Judged again under the lock: the last reaper may just have finished.
    let victims = participant::dead(segment, attachment.me());
    if victims.is_empty() {
        return (reaped, End::Done);
    }
    let end = match (Work { attachment, victims: &victims, until, reaped: &mut reaped }).give_back() {
        Ok(()) => {
            for victim in &victims {
                participant::bury(attachment.arena(), *victim);
                point!("reap: buried");
            }
            reaped.processes = victims.len();
            End::Done
        }
        Err(end) => end,
    };
    point!("reap: done");
    (reaped, end)
}

/// Gives back what this process has taken over with its slot (see `participant::adopt`), before it has anything of its own.
pub(crate) fn inherit(attachment: &Attachment) -> bool {
    let victims = [attachment.me()];
    // From the start: we act in the victim's name by now.
    participant::note(attachment.arena(), &victims, Word::ZERO);
    let done = Work { attachment, victims: &victims, until: None, reaped: &mut Reaped::default() }.give_back().is_ok();
    participant::note(attachment.arena(), &victims, Word::ZERO);
    done
}

/// The lease byte that the one reaper holds.
struct Lock<'a>(&'a Attachment);

impl<'a> Lock<'a> {
    fn take(attachment: &'a Attachment, patience: Duration) -> Option<Self> {
        let give_up = Instant::now() + patience;
        while !attachment.segment().try_lock_reaping() {
            if Instant::now() >= give_up {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        attachment.arena().header().reaper_pid.store(std::process::id().into(), Ordering::Relaxed);
        Some(Self(attachment))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.0.segment().unlock_reaping();
    }
}

/// The passes, as they are noted, together with the number of the magazine, spot or unit to go on at.
mod pass {
    pub(super) const MAGAZINES: u64 = 0;
    pub(super) const CHANNELS: u64 = 1;
    pub(super) const NAMES: u64 = 2;
    pub(super) const HEADERS: u64 = 3;
}

/// What one reaper does for its victims.
struct Work<'a> {
    attachment: &'a Attachment,
    victims: &'a [Owner],
    until: Option<Instant>,
    reaped: &'a mut Reaped,
}

impl<'a> Work<'a> {
    /// The passes, from where the last reaper stopped.
    fn give_back(&mut self) -> Result<(), End> {
        let arena = self.attachment.arena();
        let noted = participant::reaped_to(arena, self.victims);
        // Where to begin with a pass, if it is not done.
        let begin = |pass| (noted.kind() <= pass).then_some(if noted.kind() == pass { noted.value() } else { 0 });
        // The victims' context slots may be all there are: return magazines before asking for a cache of our own.
        if let Some(from) = begin(pass::MAGAZINES) {
            self.return_magazines(from)?;
        }
        // Not the one for all threads: what others drop must not wait for us.
        let worked = self.attachment.with_cache(|cache| {
            begin(pass::CHANNELS).map_or(Ok(()), |from| self.settle_channels(cache, from))?;
            // Nothing is freed between the names and the headers: what we free has our name, and it may be us who inherits.
            cache.flush();
            begin(pass::NAMES).map_or(Ok(()), |from| self.clear_names(from))?;
            begin(pass::HEADERS).map_or(Ok(()), |from| self.free_owned(cache, from))
        });
        worked.map_err(End::Stuck)??;
        release_units(arena, self.victims);
        point!("reap: units done");
        depot::rebuild(arena);
        point!("reap: hints");
        depot::recount(arena);
        unit::recount(arena);
        point!("reap: counted");
        Ok(())
    }

    fn has_time(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    fn control(&self) -> Result<Control<'a>, BufferError> {
        self.attachment.control_within(self.patience())
    }

    fn patience(&self) -> Duration {
        self.until.map_or(PATIENCE, |until| until.saturating_duration_since(Instant::now()).min(PATIENCE))
    }

    /// Notes how far a pass has come.
    fn stop(&self, pass: u64, at: impl Into<u64>, end: End) -> End {
        participant::note(self.attachment.arena(), self.victims, Word::number(pass, at.into()));
        point!("reap: noted");
        end
    }

    /// Pass 1.
    fn return_magazines(&mut self, from: u64) -> Result<(), End> {
        let arena = self.attachment.arena();
        let is_victims =
            |index: u32| participant::context_owner(arena, index).is_some_and(|who| self.victims.contains(&who));
        // Nobody takes an idle context's magazines meanwhile, or ours.
        let mut control = self.control_at(pass::MAGAZINES, from)?;
        for slot in (0..CONTEXTS).filter_map(|index| arena.context(index)) {
            self.victims.iter().for_each(|victim| cache::settle(arena, slot, *victim));
        }
        let contexts: Vec<u32> = (0..CONTEXTS).filter(|index| is_victims(*index)).collect();
        // A context's slot goes after all of its magazines: without one there are none.
        let top = if contexts.is_empty() { 0 } else { arena.header().magazine_top.load(Ordering::Acquire) };
        // What a foreign hand may have noted is behind the end.
        for index in u32::try_from(from).unwrap_or(top)..top {
            let Some(magazine) = arena.magazine(index) else { break };
            let holder = Word(magazine.holder.load(Ordering::Acquire));
            if holder.kind() == depot::HELD && contexts.binary_search(&holder.owner().index()).is_ok() {
                self.reaped.cached_blocks += return_magazine(arena, self.attachment.me(), index, magazine);
                point!("reap: magazine put");
            }
            if index % STRIDE == STRIDE - 1 {
                control = self.breathe(control, pass::MAGAZINES, index + 1)?;
            }
        }
        point!("reap: magazines done");
        for index in contexts {
            if let Some(slot) = arena.context(index) {
                slot.owner.store(0, Ordering::Release);
            }
        }
        point!("reap: contexts done");
        Ok(())
    }

    /// Pass 2.
    fn settle_channels(&mut self, cache: &Cache, from: u64) -> Result<(), End> {
        let arena = cache.arena();
        let (mut spot, mut roles) = (Spot::from_number(from), 0);
        let worked = loop {
            let control = match self.control() {
                Ok(control) => control,
                Err(error) => break Err(End::Stuck(error)),
            };
            let mut deserted = Vec::new();
            let top = arena.header().directory_top.load(Ordering::Acquire).min(CHANNELS);
            while spot.index < top {
                spot = match directory::settle(&control, cache.me(), spot, self.victims, &mut roles) {
                    Settled::Partly(spot) => spot,
                    Settled::Done => Spot::at(spot.index + 1),
                    Settled::Deserted => {
                        deserted.push(spot.index);
                        Spot::at(spot.index + 1)
                    }
                };
                if control.is_overdue() {
                    break;
                }
            }
            control.release();
            // What has no time any more is to be met again.
            let has_time = || self.has_time();
            let left = deserted.into_iter().filter(|index| !directory::dismantle(cache, *index, has_time)).min();
            if let Some(index) = left {
                spot = Spot::at(index);
                break Err(End::TimeIsUp);
            }
            if spot.index >= top {
                break Ok(());
            }
            if !self.has_time() {
                break Err(End::TimeIsUp);
            }
        };
        self.reaped.endpoints += roles;
        directory::announce(arena);
        worked.map_err(|end| self.stop(pass::CHANNELS, spot.number(), end))?;
        point!("reap: vacated");
        Ok(())
    }

    /// Pass 3.
    fn clear_names(&self, from: u64) -> Result<(), End> {
        let arena = self.attachment.arena();
        let mut control = self.control_at(pass::NAMES, from)?;
        let top = arena.header().magazine_top.load(Ordering::Acquire);
        for index in u32::try_from(from).unwrap_or(top)..top {
            depot::clear_names(arena, index, self.victims);
            if index % STRIDE == STRIDE - 1 {
                control = self.breathe(control, pass::NAMES, index + 1)?;
            }
        }
        point!("reap: names done");
        Ok(())
    }

    /// The control lock, for a pass that has come to `at`.
    fn control_at(&self, pass: u64, at: impl Into<u64>) -> Result<Control<'a>, End> {
        self.control().map_err(|error| self.stop(pass, at, End::Stuck(error)))
    }

    /// Lets others have the control lock if it is overdue, and stops if our time is up.
    fn breathe(&self, control: Control<'a>, pass: u64, at: u32) -> Result<Control<'a>, End> {
        if !control.is_overdue() {
            return Ok(control);
        }
        control.release();
        if !self.has_time() {
            return Err(self.stop(pass, at, End::TimeIsUp));
        }
        self.control_at(pass, at)
    }

    /// Pass 4, and what no magazine had room for.
    fn free_owned(&mut self, cache: &Cache, from: u64) -> Result<(), End> {
        let mut at = u32::try_from(from).unwrap_or(u32::MAX);
        let mut control = self.control_at(pass::HEADERS, at)?;
        // Under the lock, so that nobody trims away the memory we look at.
        while let Some((head, what)) = unit::heads_from(cache.arena(), at).next() {
            self.reaped.records += free_owned(cache, head, what, self.victims);
            at = head + 1;
            control = self.breathe(control, pass::HEADERS, at)?;
        }
        point!("reap: records done");
        Ok(())
    }
}

/// Returns a magazine of the dead to its depot; says how many blocks were in it.
fn return_magazine(arena: &Arena, me: Owner, index: u32, magazine: &Magazine) -> u64 {
    // Nobody writes it: its holder is dead, and we are the only reaper.
    let Some(class) = depot::class_of(arena, magazine) else {
        // Nothing in it that is a block.
        magazine.entries.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
        depot::put(arena, index, magazine, 0);
        return 0;
    };
    // Entries of a slab that died while it was being given back are dropped; the rest is free, whatever it says.
    reclaim::drop_entries(arena, me, magazine, |granule| reclaim::slab_of(arena, granule, class).is_none());
    let blocks = depot::len(magazine);
    depot::put(arena, index, magazine, class);
    blocks.into()
}

/// Frees what `victims` own in one slab or run, and what no magazine had room for; says how many records were the victims'. Under the
/// control lock.
fn free_owned(cache: &Cache, head: u32, what: Word, victims: &[Owner]) -> u64 {
    let mut records = 0;
    for at in blocks(cache.arena(), head, what) {
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
            heap::free(cache, Handle::new(at.class, at.granule));
            point!("reap: record freed");
            records += u64::from(is_victims);
        }
    }
    records
}

/// Frees blocks that no magazine had room for. The lock is let go now and then.
pub(crate) fn collect_loose<'a>(control: Control<'a>, cache: &Cache) -> Result<Control<'a>, BufferError> {
    let mut control = control;
    let mut at = 0;
    while let Some((head, what)) = unit::heads_from(cache.arena(), at).next() {
        free_owned(cache, head, what, &[]);
        at = head + 1;
        control = control.breathe(PATIENCE)?;
    }
    Ok(control)
}

/// Pass 5.
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

/// The blocks of a slab or run, as its head says.
pub(crate) fn blocks(arena: &Arena, head: u32, what: Word) -> impl Iterator<Item = At<'_>> {
    let first = arena.granule_of(head);
    let (class, size, blocks) = match what.kind() {
        unit::RUN => (class::RUN, 0, 1),
        unit::SLAB if unit::class_of(what) < class::COUNT => {
            let class = unit::class_of(what);
            (heap::index(class), class::granules(class), class::blocks(class))
        }
        _ => (class::RUN, 0, 0),
    };
    (0..blocks).map(move |i| first + i * size).filter_map(move |granule| {
        let header = arena.block(granule)?;
        Some(At { granule, class, header, head, what })
    })
}

/// Every block of every slab, and every large block. What is in use changes meanwhile.
pub(crate) fn for_each_block(arena: &Arena, mut visit: impl FnMut(At<'_>)) {
    unit::heads(arena).for_each(|(head, what)| blocks(arena, head, what).for_each(&mut visit));
}
