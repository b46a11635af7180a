//! This process in a segment: who it is there, and the locks that it takes as one process among others.
//!
//! Promises: one process at a time has the control lock, and one of its threads; who dies inside is noticed by the next, which repairs
//! first. Every slow path asks [`Membership::check`] whether this process still is who it was. Refuses: to know what the lock protects,
//! and to keep anything alive: that is `process`'s business.

#![allow(unsafe_code)]

pub(crate) mod participant;

use crate::error::BufferError;
use crate::format::{CONTEXTS, Owner, Word, flag};
use crate::heap::cache::Cache;
use crate::heap::reclaim;
use crate::segment::arena::Arena;
use crate::segment::{COURTESY, PATIENCE, Segment, Unlocked};
use crate::sync::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use crate::sys::crash::point;
use parking_lot::{Mutex, MutexGuard};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How long a holder of the control lock that has much to do keeps it at a time. Not at all in tests for kills, so that it is let go
/// wherever it may be.
const TURN: Duration = Duration::from_micros(if cfg!(feature = "crash-points") { 0 } else { 200 });

/// No version.
const NEVER: u64 = u64::MAX;

/// See the module.
pub(crate) struct Membership {
    segment: Segment,
    me: Owner,
    pid: u32,
    /// Excludes this process's threads from each other on the control plane; the byte lock excludes processes.
    control: Mutex<()>,
    /// What whoever takes the control lock does first if its last holder died inside.
    repair: fn(&Arena),
    /// Whether this process may have left a deserted channel behind because the control lock was not to be had.
    left_behind: AtomicBool,
    /// `directory_version` when this process last found no channel to take out.
    swept_at: AtomicU64,
    /// One thread of this process reaps at a time; the byte lock excludes processes, not threads. Comes before `control`.
    reaping: Mutex<()>,
    /// One thread of this process searches at a time; the byte lock excludes processes. Comes before `control`.
    searching: Mutex<()>,
    /// The name was a dead process's before; see `participant::adopt`.
    adopted: bool,
    forked: AtomicBool,
    /// The process was found to be evicted; or it was forked where its records could not be counted. Holds and records go uncounted from
    /// then on.
    uncounted: AtomicBool,
    /// What closed caches have counted; see `process::attachment`.
    records: AtomicI64,
    /// This process can't be reached by others' membarrier: its channels are fenced.
    fenced: bool,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("segment", &self.segment).field("me", &self.me).finish_non_exhaustive()
    }
}

impl Membership {
    /// Of this process, which has taken the slot `me`; `adopted`, if it was a dead one's. The caller has the control lock.
    pub(crate) fn new(segment: Segment, me: Owner, adopted: bool, fenced: bool, repair: fn(&Arena)) -> Self {
        if fenced {
            segment.arena().header().flags.fetch_or(flag::FENCED, Ordering::AcqRel);
        }
        Self {
            segment,
            me,
            pid: std::process::id(),
            control: Mutex::new(()),
            repair,
            left_behind: AtomicBool::new(false),
            swept_at: AtomicU64::new(NEVER),
            reaping: Mutex::new(()),
            searching: Mutex::new(()),
            adopted,
            forked: AtomicBool::new(false),
            uncounted: AtomicBool::new(false),
            records: AtomicI64::new(0),
            fenced,
        }
    }

    /// In a forked child: it is the parent's.
    pub(crate) fn note_fork(&self) {
        self.forked.store(true, Ordering::Relaxed);
    }

    /// When it is of no more use.
    pub(crate) fn into_segment(self) -> Segment {
        self.segment
    }

    /// Records of this process, as far as closed caches have counted.
    pub(crate) fn records(&self) -> i64 {
        self.records.load(Ordering::Relaxed)
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(crate) fn arena(&self) -> &Arena {
        self.segment.arena()
    }

    /// This process, in the segment.
    pub(crate) fn me(&self) -> Owner {
        self.me
    }

    /// Whether this process may act here.
    pub(crate) fn check(&self) -> Result<(), BufferError> {
        if self.forked.load(Ordering::Relaxed) {
            Err(BufferError::Forked)
        } else if !self.is_uncounted() && participant::is_registered(self.arena(), self.me, self.pid) {
            Ok(())
        } else {
            self.stay();
            Err(BufferError::Evicted)
        }
    }

    /// From here on handles go uncounted.
    pub(crate) fn stay(&self) {
        self.uncounted.store(true, Ordering::Relaxed);
    }

    /// Whether handles go uncounted.
    pub(crate) fn is_uncounted(&self) -> bool {
        self.uncounted.load(Ordering::Relaxed)
    }

    /// Adds what was counted elsewhere than in a cache: a record that has ended, or in a forked child what an inert context had counted.
    pub(crate) fn add_records(&self, count: i64) {
        self.records.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes the control lock; repairs the directory if its last holder died inside.
    pub(crate) fn control(&self) -> Result<Control<'_>, BufferError> {
        self.control_within(PATIENCE)
    }

    /// As [`control`](Self::control), waiting up to `patience` in all, for threads and for processes.
    pub(crate) fn control_within(&self, patience: Duration) -> Result<Control<'_>, BufferError> {
        self.check()?;
        let header = self.arena().header();
        let refused = |why| refused(why, &header.control_pid);
        let deadline = Instant::now() + patience;
        let threads = self.control.try_lock_until(deadline).ok_or(Unlocked::Busy).map_err(refused)?;
        self.segment.lock(deadline).map_err(refused)?;
        point!("control: locked");
        // While it waited, it may have been reaped.
        if let Err(why) = self.check() {
            self.segment.unlock();
            return Err(why);
        }
        let dirty = header.control_owner.swap(Word::of(1, self.me).0, Ordering::AcqRel) != 0;
        header.control_pid.store(std::process::id().into(), Ordering::Relaxed);
        let control = Control { member: self, threads: Some(threads), since: Instant::now() };
        point!("control: named");
        if dirty {
            self.arena().lift_limits();
            (self.repair)(self.arena());
        }
        Ok(control)
    }

    /// A cache for the context slot `context`.
    ///
    /// # Safety
    /// The cache is not asked for anything once the membership is gone.
    pub(crate) unsafe fn new_cache(&self, context: Owner) -> Option<Cache> {
        let this = NonNull::from(self);
        let is_dead = move |who| {
            // SAFETY: by the caller, the membership is there whenever the cache is asked.
            let this = unsafe { this.as_ref() };
            !participant::is_alive(&this.segment, this.me, who)
        };
        Cache::new(*self.arena(), self.me, context, is_dead)
    }

    /// Held by the one thread of this process that reaps; `None` if another one still does at `deadline`.
    pub(crate) fn reaping(&self, deadline: Instant) -> Option<MutexGuard<'_, ()>> {
        self.reaping.try_lock_until(deadline)
    }

    /// Notes that a deserted channel may have been left behind; what was noted before.
    pub(crate) fn leave_behind(&self, is_left: bool) -> bool {
        self.left_behind.swap(is_left, Ordering::Relaxed)
    }

    /// Whether a deserted channel may have been left behind.
    pub(crate) fn has_left_behind(&self) -> bool {
        self.left_behind.load(Ordering::Relaxed)
    }

    /// Whether no channel was to be taken out when the directory's version was `version`.
    pub(crate) fn is_swept(&self, version: u32) -> bool {
        self.swept_at.load(Ordering::Relaxed) == version.into()
    }

    pub(crate) fn note_swept(&self, version: u32) {
        self.swept_at.store(version.into(), Ordering::Relaxed);
    }

    /// Adds what a flushed cache has counted.
    pub(crate) fn settle(&self, cache: &Cache) {
        // Whoever asks for the sum has seen every hold go, by `SYNC(hold)`.
        self.add_records(cache.take_count());
    }

    /// The right to search, waiting up to `patience` for another who does.
    pub(crate) fn searching(&self, patience: Duration) -> Result<Searching<'_>, BufferError> {
        let header = self.arena().header();
        let refused = |why| refused(why, &header.searcher_pid);
        let deadline = Instant::now() + patience;
        let threads = self.searching.try_lock_until(deadline).ok_or(Unlocked::Busy).map_err(refused)?;
        self.segment.lock_searching(deadline).map_err(refused)?;
        header.searcher_pid.store(std::process::id().into(), Ordering::Relaxed);
        reclaim::begin(self.arena());
        Ok(Searching { member: self, _threads: threads })
    }

    /// Whether this process may take idle caches: its name tells it from all who ever did.
    pub(crate) fn may_revoke(&self) -> bool {
        !self.adopted
    }

    /// Runs `work` with a cache made for it alone.
    pub(crate) fn with_cache<R>(&self, work: impl FnOnce(&Cache) -> R) -> Result<R, BufferError> {
        self.check()?;
        let full = BufferError::TooManyContexts { limit: CONTEXTS };
        let context = participant::open_context(self.arena(), self.me).ok_or(full)?;
        // SAFETY: it goes before this function returns.
        let cache = unsafe { self.new_cache(context) };
        let result = cache.map(|cache| {
            let result = work(&cache);
            cache.flush();
            self.settle(&cache);
            result
        });
        participant::close_context(self.arena(), context);
        result.ok_or(full)
    }
}

/// The control lock, held.
pub(crate) struct Control<'a> {
    member: &'a Membership,
    threads: Option<MutexGuard<'a, ()>>,
    since: Instant,
}

impl Drop for Control<'_> {
    fn drop(&mut self) {
        self.member.arena().header().control_owner.store(0, Ordering::Release);
        point!("control: cleared");
        self.member.segment.unlock();
    }
}

impl Control<'_> {
    pub(crate) fn arena(&self) -> &Arena {
        self.member.arena()
    }

    /// Whether it has been held for so long that a holder with much to do should let others have it.
    pub(crate) fn is_overdue(&self) -> bool {
        self.since.elapsed() >= TURN
    }

    /// Lets others have it if it [is overdue](Self::is_overdue), and takes it again: whatever it protects may have changed.
    pub(crate) fn breathe(self, patience: Duration) -> Result<Self, BufferError> {
        if !self.is_overdue() {
            return Ok(self);
        }
        let member = self.member;
        self.release();
        member.control_within(patience)
    }

    /// Gives it up to whoever waits for it, if anybody does.
    pub(crate) fn release(mut self) {
        let segment = &self.member.segment;
        let is_wanted = segment.is_wanted();
        let threads = self.threads.take();
        drop(self);
        // Else this thread could take it again before another one has woken up.
        if let Some(threads) = threads {
            MutexGuard::unlock_fair(threads);
        }
        if is_wanted {
            std::thread::sleep(COURTESY);
        }
    }

    /// Whether this process's channels must be fenced.
    pub(crate) fn is_fenced(&self) -> bool {
        self.member.fenced
    }
}

/// Why a lock was not to be had, whose holder has left its pid there.
fn refused(why: Unlocked, holder: &AtomicU64) -> BufferError {
    match why {
        Unlocked::Busy => BufferError::Busy { pid: u32::try_from(holder.load(Ordering::Relaxed)).unwrap_or(0) },
        Unlocked::Lost | Unlocked::Refused(_) => BufferError::NoDescriptor,
    }
}

/// The right to search for memory to reclaim, held; see `heap::reclaim`.
pub(crate) struct Searching<'a> {
    member: &'a Membership,
    _threads: MutexGuard<'a, ()>,
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        reclaim::end(self.member.arena());
        self.member.segment.unlock_searching();
    }
}

/// The control lock, had in turns.
pub(crate) struct Turns<'a> {
    member: &'a Membership,
    control: Option<Control<'a>>,
    /// How long to wait for it: once it could not be had, no more.
    patience: Duration,
}

impl<'a> Turns<'a> {
    pub(crate) fn new(member: &'a Membership) -> Self {
        Self::within(member, PATIENCE)
    }

    /// Waits no longer than `patience` for each turn.
    pub(crate) fn within(member: &'a Membership, patience: Duration) -> Self {
        Self { member, control: None, patience }
    }

    /// The control lock, when others have had it who waited while this one had it for long.
    pub(crate) fn turn(&mut self) -> Result<&Control<'a>, BufferError> {
        let patience = std::mem::take(&mut self.patience);
        let control = match self.control.take() {
            Some(control) => control.breathe(patience)?,
            None => self.member.control_within(patience)?,
        };
        self.patience = patience;
        Ok(self.control.insert(control))
    }
}
