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
//! 2. **Channels**, under the control lock: a victim's roles are vacated and the peers woken; what it owns inside any window becomes
//!    `QUEUED`; entries half made, half removed, or deserted are taken out.
//! 3. **Names**, under the control lock: the victims' are taken off the free blocks of all magazines, whoever holds those.
//! 4. **Headers**, under the control lock: what still says `OWNED(victim)` is taken over by CAS and freed.
//! 5. **Units** claimed by a victim are released.
//! 6. **Hints** are rebuilt; last, the process slots are freed.
//!
//! The window pass comes before the header scan because a queued record's header still names its sender; it may come at
//! all only because the victim is dead, so that nothing of its can enter a window behind our back. A consumer that takes
//! a record meanwhile stores its own name over ours, or before it: both are right. Why no window is left out, and none gets a victim's
//! name later, is shown in `directory`.
//!
//! # Whose time
//! A heap of gigabytes takes longer than a caller may have. So the control lock is given up every fraction of a millisecond, and a
//! reaper stops when its [`Effort`] is spent and notes in the victims' slots how far it came, for the next one to go on. Nobody
//! waits for a reaper without a bound: a peer of the dead ends its wait by itself (`channel`), and one who wants a role takes it
//! from the dead (`directory::relieve`), as one does who needs a directory entry ([`sweep`]).
//!
//! # If a process dies
//! The victim's slot is freed last, so the next reaper finds it again and repeats every pass, or goes on from the note; each step
//! is a CAS from what the victim left, or a store that may be repeated. What the dead reaper had taken over names the reaper,
//! which is a victim itself by then, without a note, so that all is looked at once more.

use crate::directory::{self, Seized, Settled, Spot};
use crate::error::BufferError;
use crate::format::class;
use crate::format::{BlockHeader, CONTEXTS, Handle, Magazine, Owner, Word};
use crate::heap::cache::Cache;
use crate::heap::gate::{self, Gate};
use crate::heap::{self, block, depot, reclaim, unit};
use crate::membership::participant;
use crate::membership::{Control, Membership};
use crate::segment::PATIENCE;
use crate::segment::arena::Arena;
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

    /// The same for one who has no more than `left`.
    pub(crate) fn within(self, left: Duration) -> Self {
        Self { work: Some(self.work.map_or(left, |work| work.min(left))), others: self.others.min(left) }
    }
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
pub(crate) fn reap(member: &Membership, effort: Effort) -> (Reaped, End) {
    let segment = member.segment();
    let mut reaped = Reaped::default();
    if member.check().is_err() {
        return (reaped, End::Done);
    }
    if participant::dead(segment, member.me()).is_empty() {
        return (reaped, sweep(member, effort));
    }
    let now = Instant::now();
    let (until, give_up) = (effort.work.map(|work| now + work), now + effort.others);
    // Threads share the lease byte, and would both return the same magazines.
    let threads = member.reaping(give_up);
    let lock = threads.and_then(|threads| Some((Lock::take(member, give_up)?, threads)));
    let Some(_lock) = lock else {
        let pid = member.arena().header().reaper_pid.load(Ordering::Relaxed);
        return (reaped, End::Stuck(BufferError::Busy { pid: u32::try_from(pid).unwrap_or(0) }));
    };
    point!("reap: locked");
    // Judged again under the lock: the last reaper may just have finished.
    let victims = participant::dead(segment, member.me());
    if victims.is_empty() {
        return (reaped, End::Done);
    }
    let end = match (Work { member, victims: &victims, until, reaped: &mut reaped }).give_back() {
        Ok(()) => {
            for victim in &victims {
                participant::bury(member.arena(), *victim);
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

/// Takes out the channels that nobody is in, or only the dead are. Needs no reaper's lock, and nobody dead: a live process that could not
/// have the control lock leaves such a channel, and a reaper may be stopped.
pub(crate) fn sweep(member: &Membership, effort: Effort) -> End {
    let arena = member.arena();
    // Raised after every change that deserts a channel, except by those who die in between, and they are found dead.
    let version = arena.header().directory_version.load(Ordering::Acquire);
    let gone = participant::dead(member.segment(), member.me());
    if member.check().is_err() || gone.is_empty() && member.is_swept(version) {
        return End::Done;
    }
    member.leave_behind(false);
    let are_gone = |who| gone.contains(&who);
    // Where there is something to do: however short the time, a sweep gets somewhere.
    let Some(first) = directory::first_to_relieve(arena, &are_gone) else {
        member.note_swept(version);
        return End::Done;
    };
    let until = effort.work.map(|work| Instant::now() + work);
    let swept = member.with_cache(|cache| {
        each_channel(member, cache, Spot::at(first), until, |control, spot| {
            directory::relieve(control, cache.me(), spot.index, &are_gone, &mut 0)
        })
    });
    let end = match swept {
        Ok(Ok(())) => End::Done,
        Ok(Err((_, end))) => end,
        Err(error) => End::Stuck(error),
    };
    member.leave_behind(end != End::Done);
    end
}

/// Takes out the channel in `index`, which nobody is in.
pub(crate) fn take_out(member: &Membership, index: u32) {
    // Not with the cache for all threads: a long queue takes its time, and what others drop must not wait for us.
    let taken_out = member.with_cache(|cache| {
        let control = member.control_within(PATIENCE)?;
        Ok(directory::take_out(control, cache, index, PATIENCE, || true))
    });
    if !matches!(taken_out, Ok(Ok::<_, BufferError>(true))) {
        member.leave_behind(true);
        directory::announce(member.arena());
    }
}

/// Takes each entry of the directory from `spot` on through `step`, in turns under the control lock, and dismantles what that has seized.
/// If the time is up, or a lock stuck, says where to go on.
fn each_channel(
    member: &Membership,
    cache: &Cache,
    mut spot: Spot,
    until: Option<Instant>,
    mut step: impl FnMut(&Control<'_>, Spot) -> Settled,
) -> Result<(), (Spot, End)> {
    let arena = cache.arena();
    let worked = loop {
        let control = match member.control_within(patience(until)) {
            Ok(control) => control,
            Err(error) => break Err((spot, End::Stuck(error))),
        };
        let mut seized = Vec::new();
        let top = arena.directory_top();
        while spot.index < top {
            spot = match step(&control, spot) {
                Settled::Partly(spot) => spot,
                Settled::Done => Spot::at(spot.index + 1),
                Settled::Seized(one) => {
                    seized.push(one);
                    Spot::at(spot.index + 1)
                }
            };
            if control.is_overdue() {
                break;
            }
        }
        control.release();
        // What has no time any more is to be met again.
        let dismantle = |one: Seized| (one.index, directory::dismantle(cache, one, || is_before(until)));
        let left = seized.into_iter().map(dismantle).filter(|(_, is_done)| !is_done).map(|(index, _)| index).min();
        if let Some(index) = left {
            break Err((Spot::at(index), End::TimeIsUp));
        }
        if spot.index >= top {
            break Ok(());
        }
        if !is_before(until) {
            break Err((spot, End::TimeIsUp));
        }
    };
    directory::announce(arena);
    worked
}

fn is_before(until: Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

/// How long to wait for the control lock.
fn patience(until: Option<Instant>) -> Duration {
    until.map_or(PATIENCE, |until| until.saturating_duration_since(Instant::now()).min(PATIENCE))
}

/// Gives back what this process has taken over with its slot (see `participant::adopt`), before it has anything of its own.
pub(crate) fn inherit(member: &Membership) -> bool {
    let victims = [member.me()];
    // From the start: we act in the victim's name by now.
    participant::note(member.arena(), &victims, Word::ZERO);
    let done = Work { member, victims: &victims, until: None, reaped: &mut Reaped::default() }.give_back().is_ok();
    participant::note(member.arena(), &victims, Word::ZERO);
    done
}

/// The lease byte that the one reaper holds.
struct Lock<'a>(&'a Membership);

impl<'a> Lock<'a> {
    fn take(member: &'a Membership, give_up: Instant) -> Option<Self> {
        while !member.segment().try_lock_reaping() {
            if Instant::now() >= give_up {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        member.arena().header().reaper_pid.store(std::process::id().into(), Ordering::Relaxed);
        Some(Self(member))
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
    pub(super) const HINTS: u64 = 4;
}

/// What one reaper does for its victims.
struct Work<'a> {
    member: &'a Membership,
    victims: &'a [Owner],
    until: Option<Instant>,
    reaped: &'a mut Reaped,
}

impl<'a> Work<'a> {
    /// The passes, from where the last reaper stopped.
    fn give_back(&mut self) -> Result<(), End> {
        let arena = self.member.arena();
        let noted = participant::reaped_to(arena, self.victims);
        // Where to begin with a pass, if it is not done.
        let begin = |pass| (noted.kind() <= pass).then_some(if noted.kind() == pass { noted.value() } else { 0 });
        // The victims' context slots may be all there are: return magazines before asking for a cache of our own.
        if let Some(from) = begin(pass::MAGAZINES) {
            self.return_magazines(from)?;
        }
        // Not the one for all threads: what others drop must not wait for us.
        let worked = self.member.with_cache(|cache| {
            begin(pass::CHANNELS).map_or(Ok(()), |from| self.settle_channels(cache, from))?;
            // Nothing is freed between the names and the headers: what we free has our name, and it may be us who inherits.
            cache.flush();
            begin(pass::NAMES).map_or(Ok(()), |from| self.clear_names(from))?;
            begin(pass::HEADERS).map_or(Ok(()), |from| self.free_owned(cache, from))
        });
        worked.map_err(End::Stuck)??;
        release_units(arena, self.victims);
        point!("reap: units done");
        self.rebuild_hints(begin(pass::HINTS).unwrap_or(0))?;
        point!("reap: hints");
        depot::recount(arena);
        depot::tell_all(arena);
        unit::recount(arena);
        point!("reap: counted");
        Ok(())
    }

    /// Pass 6, which needs no lock.
    fn rebuild_hints(&self, from: u64) -> Result<(), End> {
        let arena = self.member.arena();
        let top = arena.magazine_top();
        for index in u32::try_from(from).unwrap_or(top)..top {
            depot::rebuild(arena, index);
            if index % STRIDE == STRIDE - 1 && index + 1 < top && !self.has_time() {
                return Err(self.stop(pass::HINTS, index + 1, End::TimeIsUp));
            }
        }
        Ok(())
    }

    fn has_time(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    fn control(&self) -> Result<Control<'a>, BufferError> {
        self.member.control_within(patience(self.until))
    }

    /// Notes how far a pass has come.
    fn stop(&self, pass: u64, at: impl Into<u64>, end: End) -> End {
        participant::note(self.member.arena(), self.victims, Word::number(pass, at.into()));
        point!("reap: noted");
        end
    }

    /// Pass 1.
    fn return_magazines(&mut self, from: u64) -> Result<(), End> {
        let arena = self.member.arena();
        let is_victims =
            |index: u32| participant::context_owner(arena, index).is_some_and(|who| self.victims.contains(&who));
        // Nobody takes an idle context's magazines meanwhile, or ours.
        let mut control = self.control_at(pass::MAGAZINES, from)?;
        (0..CONTEXTS).filter_map(|index| arena.context(index)).for_each(|slot| gate::settle_any(arena, slot));
        let contexts: Vec<u32> = (0..CONTEXTS).filter(|index| is_victims(*index)).collect();
        // A context's slot goes after all of its magazines: without one there are none.
        let top = if contexts.is_empty() { 0 } else { arena.magazine_top() };
        // What a foreign hand may have noted is behind the end.
        for index in u32::try_from(from).unwrap_or(top)..top {
            let Some(magazine) = arena.magazine(index) else { break };
            let holder = Word(magazine.holder.load(Ordering::Acquire));
            if holder.kind() == depot::HELD && contexts.binary_search(&holder.owner().index()).is_ok() {
                self.reaped.cached_blocks += return_magazine(arena, self.member.me(), index, magazine);
                point!("reap: magazine put");
            }
            if index % STRIDE == STRIDE - 1 {
                control = self.breathe(control, pass::MAGAZINES, index + 1)?;
            }
        }
        point!("reap: magazines done");
        for index in contexts {
            if let Some(slot) = arena.context(index) {
                // Its spare is freed by the header scan, and is nothing of who has the slot next.
                slot.gate.store(Gate::BARE.word(), Ordering::Relaxed);
                slot.owner.store(0, Ordering::Release);
            }
        }
        point!("reap: contexts done");
        Ok(())
    }

    /// Pass 2.
    fn settle_channels(&mut self, cache: &Cache, from: u64) -> Result<(), End> {
        let mut roles = 0;
        let worked = each_channel(self.member, cache, Spot::from_number(from), self.until, |control, spot| {
            directory::settle(control, cache.me(), spot, self.victims, &mut roles)
        });
        self.reaped.endpoints += roles;
        worked.map_err(|(spot, end)| self.stop(pass::CHANNELS, spot.number(), end))?;
        point!("reap: vacated");
        Ok(())
    }

    /// Pass 3.
    fn clear_names(&self, from: u64) -> Result<(), End> {
        let arena = self.member.arena();
        let mut control = self.control_at(pass::NAMES, from)?;
        let top = arena.magazine_top();
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
        if !is_before(self.until) {
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
    reclaim::drop_entries(arena, me, magazine, |granule| unit::slab_of(arena, granule, class).is_none());
    let blocks = depot::len(magazine);
    depot::put(arena, index, magazine, class);
    blocks.into()
}

/// Frees what `victims` own in one slab or run, and what no magazine had room for; says how many records were the victims'. Under the
/// control lock.
fn free_owned(cache: &Cache, head: u32, what: Word, victims: &[Owner]) -> u64 {
    let mut records = 0;
    point!("reap: met");
    for at in blocks(cache.arena(), head, what) {
        let state = Word(at.header.state.load(Ordering::Acquire));
        // Stolen by one of them, too: what was to go back to its old owner has gone back (pass 1).
        let is_victims =
            matches!(state.kind(), block::state::OWNED | block::state::STOLEN) && victims.contains(&state.owner());
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
            heap::free_found(cache, Handle::new(at.class, at.granule));
            point!("reap: record freed");
            records += u64::from(is_victims);
        }
    }
    records
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
            (class::index(class), class::granules(class), class::blocks(class))
        }
        _ => (class::RUN, 0, 0),
    };
    (0..blocks).map(move |i| first + i * size).filter_map(move |granule| {
        let header = arena.block(granule)?;
        Some(At { granule, class, header, head, what })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::segment::Wish;

    /// Whose name it bears may have been reaped in part: what it does in that name lies where nobody would look any more.
    #[test]
    fn who_takes_a_dead_ones_place_looks_through_all_it_had() {
        let name = format!("ipc-buffer-test-inherit-{}", std::process::id());
        let (capacity, mode) = (Some(1 << 20), 0o600);
        let wish = Wish { capacity, create_new: false, must_exist: false, persist: false, mode, dumped: false };
        let hold = crate::process::open(&name, &wish).unwrap();
        let left = std::thread::scope(|scope| {
            let works = || {
                let ctx = Buffer::open(&name).unwrap().context().unwrap();
                drop((0..300).map(|i| ctx.record(i).unwrap()).collect::<Vec<_>>());
                // Nobody is in it then, so it is taken out, and what is freed there is in the cache that is used for all this.
                let (mut tx, rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(1).unwrap());
                (0..5).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
                std::mem::forget((ctx.record(1_u64), ctx, tx, rx));
            };
            scope.spawn(works).join()
        });
        // It never leaves, so its segment goes here.
        crate::segment::remove(&name).unwrap();
        left.unwrap();
        let arena = hold.arena();
        let held = || {
            let holders = (0..arena.magazine_top()).filter_map(|i| arena.magazine(i));
            holders.filter(|magazine| Word(magazine.holder.load(Ordering::Acquire)).kind() == depot::HELD).count()
        };
        assert!(held() > 0);
        participant::note(arena, &[hold.me()], Word::number(pass::HEADERS, u64::from(u32::MAX)));
        assert!(inherit(&hold));
        assert_eq!(held(), 0);
        assert!((0..CONTEXTS).all(|index| participant::context_owner(arena, index).is_none()));
        let mut owned = 0;
        for at in unit::heads(arena).flat_map(|(head, what)| blocks(arena, head, what)) {
            owned += u64::from(at.header.state.load(Ordering::Acquire) == block::owned(hold.me()).0);
        }
        let listed = (0..arena.magazine_top()).filter_map(|i| arena.magazine(i));
        let listed = listed.flat_map(depot::entries).filter_map(|granule| arena.block(granule));
        let named = listed.filter(|block| block.state.load(Ordering::Acquire) == block::owned(hold.me()).0).count();
        assert_eq!(owned, named as u64, "what bears its name is free");
    }
}
