//! This process's side of a segment: one attachment per segment, however often it is opened.
//!
//! Promises: the mapping stays as long as anything of this process points into it: a [`Hold`] (every `Buffer` and context
//! has one) or a record. Records carry no count, so that they cost nothing: when the last hold goes, the headers are
//! scanned for blocks this process still owns, and their drops, which then all come through [`free_homeless`], are counted
//! down.
//!
//! # Ownership
//! The registry's lock owns the list of attachments, the count of homeless records, and the moment of detaching.
//!
//! # After fork
//! The child gets a fresh registry; every inherited attachment is marked and its mapping made copy-on-write
//! ([`Segment::abandon`]): drops do nothing, writes reach nobody, reads see what the parent's pages hold until they are written
//! here. The parent notices nothing.
//!
//! # If the lease is lost
//! A process that others have reaped though it lives (a checkpoint was restored, say) owns nothing here any more. Every slow path
//! looks whether its process slot still is what this process took, and answers `Evicted` if not; as after a fork, drops do
//! nothing. The mapping stays, since nobody knows how many records still lead there; who opens the buffer anew gets a new attachment.
//! The fast paths don't look. So until the first slow path, at most what the caches and rings at hand have room for is written
//! where it is another's.
//!
//! # Invariants
//! 1. An attachment is freed only under the registry's lock, when `holds` is 0 and no record of this process is left.
//! 2. In a forked child no inherited attachment is ever freed.

#![allow(unsafe_code)]

use crate::arena::Arena;
use crate::directory;
use crate::error::{BufferError, OpenError};
use crate::heap::block::Known;
use crate::heap::cache::Cache;
use crate::heap::{self, block, depot, unit};
use crate::layout::{CONTEXTS, Owner, UNIT, Word, flag};
use crate::local;
use crate::participant;
use crate::recovery::{self, At, Effort};
use crate::segment::{self, COURTESY, PATIENCE, Segment, Unlocked, Wish};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sys::barrier;
use crate::sys::crash::point;
use crate::sys::fork::{self, PerProcess};
use crate::sys::shm;
#[cfg(feature = "async")]
use crate::waiter;
use parking_lot::{Mutex, MutexGuard};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How long a holder of the control lock that has much to do keeps it at a time. Not at all in tests for kills, so that it is let go
/// wherever it may be.
const TURN: Duration = Duration::from_micros(if cfg!(feature = "crash-points") { 0 } else { 200 });

/// Nobody has counted the records yet: there are holds, or the last one to go waits for the registry's lock to do it.
const UNCOUNTED: u64 = u64::MAX;

/// See the module.
pub(crate) struct Attachment {
    segment: Segment,
    me: Owner,
    pid: u32,
    /// Excludes this process's threads from each other on the control plane; the byte lock excludes processes.
    control: Mutex<()>,
    /// A cache that belongs to no thread: for reaping, and for records dropped where no context is.
    service: Mutex<Option<(Owner, Cache)>>,
    /// One thread of this process reaps at a time; the byte lock excludes processes, not threads. Comes before `control`.
    reaping: Mutex<()>,
    forked: AtomicBool,
    /// Holds alive; only raised from 0 under the registry's lock.
    holds: AtomicUsize,
    /// Whether anybody here ever had a cache to own blocks with.
    has_worked: AtomicBool,
    /// Records left when the last hold went, or [`UNCOUNTED`]; under the registry's lock.
    homeless: AtomicU64,
    /// This process can't be reached by others' membarrier: its channels are fenced.
    fenced: bool,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").field("segment", &self.segment).field("me", &self.me).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Registry {
    attachments: Mutex<Vec<Entry>>,
}

/// An attachment of this process.
struct Entry(NonNull<Attachment>);

// SAFETY: an `Attachment` is Send and Sync; the pointer is only followed under the registry's lock or through a hold.
unsafe impl Send for Entry {}

static REGISTRY: PerProcess<Registry> = PerProcess::new();

/// Keeps the attachment.
#[derive(Debug)]
pub(crate) struct Hold(NonNull<Attachment>);

// SAFETY: a hold is a counted shared reference to an `Attachment`, which is Send and Sync.
unsafe impl Send for Hold {}
// SAFETY: as above.
unsafe impl Sync for Hold {}

impl Deref for Hold {
    type Target = Attachment;
    fn deref(&self) -> &Attachment {
        // SAFETY: invariant 1: not freed while this hold is counted.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.check().is_err() {
            return;
        }
        // SYNC(hold): Release of this holder's accesses, Acquire of everyone's by the one who detaches.
        if self.holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut attachments = REGISTRY.get().attachments.lock();
            // Somebody may have opened it again, or detached it, while we waited for the lock.
            let known = attachments.iter().any(|entry| entry.0 == self.0);
            // SAFETY: still listed, so not freed (invariant 1), and the lock keeps it so.
            if known && unsafe { self.0.as_ref() }.holds.load(Ordering::Acquire) == 0 {
                // SAFETY: as above.
                let left = unsafe { self.0.as_ref() }.count_records();
                // SAFETY: as above.
                unsafe { self.0.as_ref() }.homeless.store(left, Ordering::Relaxed);
                if left == 0 {
                    detach(&mut attachments, self.0);
                }
            }
        }
    }
}

/// Takes the attachment out of the process for good. The lock is held, there are no holds and no records.
fn detach(attachments: &mut Vec<Entry>, attachment: NonNull<Attachment>) {
    attachments.retain(|entry| entry.0 != attachment);
    #[cfg(feature = "async")]
    waiter::forget(attachment);
    // SAFETY: invariant 1 holds by the caller's checks; it was boxed in `open` and is in no list any more.
    let mut attachment = unsafe { Box::from_raw(attachment.as_ptr()) };
    attachment.leave();
    attachment.segment.close();
}

/// Attaches to the segment `name`, or counts one more hold on the attachment this process has.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Hold, OpenError> {
    segment::check_name(name)?;
    assert!(install_hooks(), "pthread_atfork has no memory");
    let mut attachments = REGISTRY.get().attachments.lock();
    // SAFETY: listed, and the lock is held (invariant 1). Those that go are never freed.
    attachments.retain(|entry| unsafe { entry.0.as_ref() }.check().is_ok());
    for entry in attachments.iter() {
        // SAFETY: listed, and the lock is held (invariant 1).
        let attachment = unsafe { entry.0.as_ref() };
        if attachment.segment.name() == name && attachment.segment.is_named() {
            if wish.create_new {
                return Err(OpenError::AlreadyExists { name: name.into() });
            }
            let units = attachment.segment.arena().geometry().units;
            if let Some(capacity) = wish.capacity {
                let (asked, actual) = (segment::units_for(capacity)?, units);
                if asked != actual {
                    let (asked, actual) = (u64::from(asked) * UNIT, u64::from(actual) * UNIT);
                    return Err(OpenError::CapacityMismatch { name: name.into(), asked, actual });
                }
            }
            if wish.persist {
                attachment.segment.arena().header().flags.fetch_or(flag::PERSIST, Ordering::AcqRel);
            }
            if wish.dumped {
                attachment.segment.set_dumped();
            }
            attachment.homeless.store(UNCOUNTED, Ordering::Relaxed);
            attachment.holds.fetch_add(1, Ordering::Relaxed);
            return Ok(Hold(entry.0));
        }
    }
    // Before the control lock is taken: it may take the kernel tens of milliseconds.
    let fenced = !barrier::register();
    let mut segment = segment::enter(name, wish)?;
    point!("open: entered");
    let Some((me, adopted)) = take_slot(&segment) else {
        segment.close();
        return Err(OpenError::TooManyProcesses { name: name.into(), limit: crate::layout::PROCESSES });
    };
    let mut attachment = Box::new(Attachment {
        segment,
        me,
        pid: std::process::id(),
        control: Mutex::new(()),
        service: Mutex::new(None),
        reaping: Mutex::new(()),
        forked: AtomicBool::new(false),
        has_worked: AtomicBool::new(false),
        holds: AtomicUsize::new(1),
        homeless: AtomicU64::new(UNCOUNTED),
        fenced,
    });
    if attachment.fenced {
        attachment.arena().header().flags.fetch_or(flag::FENCED, Ordering::AcqRel);
    }
    point!("open: joined");
    attachment.segment.unlock();
    point!("open: unlocked");
    if adopted && !recovery::inherit(&attachment) {
        // The lease goes with the descriptor: dead again, as found.
        attachment.segment.close();
        return Err(OpenError::Busy { name: name.into(), pid: 0 });
    }
    let pointer = NonNull::from(Box::leak(attachment));
    attachments.push(Entry(pointer));
    drop(attachments);
    let hold = Hold(pointer);
    recovery::reap(&hold, Effort::ALL);
    Ok(hold)
}

/// A process slot, and whether it is a dead one's with all that it had. A table that is full of the dead is worth a wait for whoever
/// reaps them. The caller holds the control lock, and does so if there is one.
fn take_slot(segment: &Segment) -> Option<(Owner, bool)> {
    let give_up = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let joined = participant::join(segment).map(|me| (me, false));
        let slot = joined.or_else(|| Some((participant::adopt(segment)?, true)));
        if slot.is_some() {
            return slot;
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || !participant::has_dead(segment) {
            return None;
        }
        segment.unlock();
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
        segment.lock(left).ok()?;
    }
}

/// Removes the name of a segment.
pub(crate) fn remove(name: &str) -> Result<(), OpenError> {
    assert!(install_hooks(), "pthread_atfork has no memory");
    // Nobody forks meanwhile: the child would inherit the descriptor, and with it the control lock, for good.
    let _attachments = REGISTRY.get().attachments.lock();
    segment::remove(name)
}

/// The control lock, held.
pub(crate) struct Control<'a> {
    attachment: &'a Attachment,
    threads: Option<MutexGuard<'a, ()>>,
    since: Instant,
}

impl Drop for Control<'_> {
    fn drop(&mut self) {
        self.attachment.arena().header().control_owner.store(0, Ordering::Release);
        point!("control: cleared");
        self.attachment.segment.unlock();
    }
}

impl Control<'_> {
    pub(crate) fn arena(&self) -> &Arena {
        self.attachment.arena()
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
        let attachment = self.attachment;
        self.release();
        attachment.control_within(patience)
    }

    /// Gives it up to whoever waits for it, if anybody does.
    pub(crate) fn release(mut self) {
        let segment = &self.attachment.segment;
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
        self.attachment.fenced
    }
}

impl Attachment {
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
        } else if participant::is_registered(self.arena(), self.me, self.pid) {
            Ok(())
        } else {
            Err(BufferError::Evicted)
        }
    }

    /// Takes the control lock; repairs the directory if its last holder died inside.
    pub(crate) fn control(&self) -> Result<Control<'_>, BufferError> {
        self.control_within(PATIENCE)
    }

    /// As [`control`](Self::control), waiting up to `patience` for threads, and for processes.
    pub(crate) fn control_within(&self, patience: Duration) -> Result<Control<'_>, BufferError> {
        self.check()?;
        let header = self.arena().header();
        let busy = || BufferError::Busy { pid: u32::try_from(header.control_pid.load(Ordering::Relaxed)).unwrap_or(0) };
        let threads = self.control.try_lock_for(patience).ok_or_else(busy)?;
        self.segment.lock(patience).map_err(|why| match why {
            Unlocked::Busy => busy(),
            Unlocked::Lost | Unlocked::Refused(_) => BufferError::NoDescriptor,
        })?;
        point!("control: locked");
        // While it waited, it may have been reaped.
        if let Err(why) = self.check() {
            self.segment.unlock();
            return Err(why);
        }
        let dirty = header.control_owner.swap(Word::of(1, self.me).0, Ordering::AcqRel) != 0;
        header.control_pid.store(std::process::id().into(), Ordering::Relaxed);
        let control = Control { attachment: self, threads: Some(threads), since: Instant::now() };
        point!("control: named");
        if dirty {
            directory::rebuild_index(self.arena());
        }
        Ok(control)
    }

    /// A cache for the context slot `context`.
    ///
    /// # Safety
    /// The cache is not asked for anything once the attachment is gone.
    pub(crate) unsafe fn new_cache(&self, context: Owner) -> Option<Cache> {
        self.has_worked.store(true, Ordering::Relaxed);
        let this = NonNull::from(self);
        let is_dead = move |who| {
            // SAFETY: by the caller, the attachment is there whenever the cache is asked.
            let this = unsafe { this.as_ref() };
            !participant::is_alive(&this.segment, this.me, who)
        };
        Cache::new(*self.arena(), self.me, context, is_dead)
    }

    /// Held by the one thread of this process that reaps; `None` if another one still does after `patience`.
    pub(crate) fn reaping(&self, patience: Duration) -> Option<MutexGuard<'_, ()>> {
        self.reaping.try_lock_for(patience)
    }

    /// Runs `work` with a cache made for it alone.
    pub(crate) fn with_cache<R>(&self, work: impl FnOnce(&Cache) -> R) -> Result<R, BufferError> {
        let full = BufferError::TooManyContexts { limit: CONTEXTS };
        let context = participant::open_context(self.arena(), self.me).ok_or(full)?;
        // SAFETY: it goes before this function returns.
        let cache = unsafe { self.new_cache(context) };
        let result = cache.map(|cache| {
            let result = work(&cache);
            cache.flush();
            result
        });
        participant::close_context(self.arena(), context);
        result.ok_or(full)
    }

    /// Runs `work` with the cache that belongs to no thread.
    pub(crate) fn with_service<R>(&self, work: impl FnOnce(&Cache) -> R) -> Result<R, BufferError> {
        self.check()?;
        let mut service = self.service.lock();
        if service.is_none() {
            let context = participant::open_context(self.arena(), self.me)
                .ok_or(BufferError::TooManyContexts { limit: CONTEXTS })?;
            // SAFETY: the service cache lives in the attachment itself and is dropped with it.
            let cache = unsafe { self.new_cache(context) };
            *service = cache.map(|cache| (context, cache));
        }
        let (_, cache) = service.as_ref().ok_or(BufferError::Forked)?;
        let result = work(cache);
        // Nothing stays cached here: what nobody uses must not be what others lack.
        cache.flush();
        Ok(result)
    }

    /// How many records are in this process's hands, now that there are no contexts and no endpoints: what is still queued becomes
    /// the channels', and the blocks it still owns are counted. If the control lock can't be had, the queued ones count too, and
    /// the process stays attached: its end frees or queues them.
    fn count_records(&self) -> u64 {
        if !self.has_worked.load(Ordering::Relaxed) {
            return 0;
        }
        let arena = self.arena();
        let mut control = self.control().ok();
        if let Some(control) = &control {
            directory::disown(control, &[self.me]);
            point!("leave: disowned");
        }
        for index in 0..arena.header().magazine_top.load(Ordering::Acquire) {
            depot::clear_names(arena, index, &[self.me]);
            control = control.and_then(|control| control.breathe(PATIENCE).ok());
        }
        let owned = block::owned(self.me);
        let (mut left, mut next) = (0, 0);
        // Under the lock, so that nobody trims away the memory we look at.
        while let Some((head, what)) = unit::heads_from(arena, next).next() {
            let is_ours = |at: &At<'_>| at.header.state.load(Ordering::Acquire) == owned.0 && at.is_current(arena);
            left += recovery::blocks(arena, head, what).filter(is_ours).count() as u64;
            next = head + 1;
            control = control.and_then(|control| control.breathe(PATIENCE).ok());
        }
        left
    }

    /// The process's last act in the segment.
    fn leave(&self) {
        if let Some((context, cache)) = self.service.lock().take() {
            cache.flush();
            participant::close_context(self.arena(), context);
        }
        point!("leave: flushed");
        let control = self.control();
        point!("leave: locked");
        let persists = self.arena().header().flags.load(Ordering::Acquire) & flag::PERSIST != 0;
        if control.is_ok() && !persists && !participant::has_company(&self.segment, self.me) {
            self.segment.unlink();
            point!("leave: unlinked");
        }
        // A role that could not be given up (see `channel`) would be nobody's for ever if the slot went: then leave as the
        // killed do, slot taken and lease dropped with the descriptor, and the next reaper finds everything.
        if let Ok(control) = &control
            && !directory::has_role(control, self.me)
        {
            participant::leave(&self.segment, self.me);
        }
        drop(control);
    }
}

/// The attachment that is mapped at `address`, and the granule that lies there.
fn mapped_at(attachments: &[Entry], address: usize) -> Option<(NonNull<Attachment>, u32)> {
    attachments.iter().find_map(|entry| {
        // SAFETY: listed, and the caller holds the lock (invariant 1).
        let granule = unsafe { entry.0.as_ref() }.arena().extent().granule(address)?;
        Some((entry.0, granule))
    })
}

/// Asks the arena that is mapped at `address`, and tells it the granule; `None` in a forked child, if it was the parent's.
pub(crate) fn look<R>(address: usize, ask: impl FnOnce(&Arena, u32) -> Option<R>) -> Option<R> {
    let attachments = REGISTRY.get().attachments.lock();
    let (attachment, granule) = mapped_at(&attachments, address)?;
    // SAFETY: listed, and the lock is held (invariant 1).
    ask(unsafe { attachment.as_ref() }.arena(), granule)
}

/// Frees a block that was dropped in a thread without a context of its buffer. Does nothing in a forked child with what it has
/// inherited: no attachment of the child is mapped there.
///
/// # Safety
/// `address` is inside the block of a record which existed until now: so its attachment is not freed (invariant 1).
#[cold]
pub(crate) unsafe fn free_homeless(address: usize, known: Known) {
    let mut attachments = REGISTRY.get().attachments.lock();
    let Some((attachment, granule)) = mapped_at(&attachments, address) else { return };
    // SAFETY: as above.
    let this = unsafe { attachment.as_ref() };
    if this.check().is_err() {
        return;
    }
    let Some(handle) = known.find(this.arena(), granule) else { return };
    if handle.is_run() {
        heap::free_run(this.arena(), this.me, handle.granule());
    } else if this.with_service(|cache| heap::free(cache, handle)).is_err()
        && let Some(block) = this.arena().block(handle.granule())
    {
        // No context slot left to free through: leave it where the next scan finds it.
        block.state.store(Word::number(block::state::LOOSE, 0).0, Ordering::Release);
    }
    let left = this.homeless.load(Ordering::Relaxed);
    // Uncounted, this record was freed in time to be left out of the count.
    if this.holds.load(Ordering::Acquire) == 0 && left != UNCOUNTED {
        let left = left.saturating_sub(1);
        this.homeless.store(left, Ordering::Relaxed);
        if left == 0 {
            detach(&mut attachments, attachment);
        }
    }
}

thread_local! {
    /// Held across a fork, so that the child finds a list that nobody was changing. Without a destructor, so that it is there
    /// whenever somebody forks, even from another thread-local's destructor.
    static ACROSS_FORK: Cell<Option<ManuallyDrop<MutexGuard<'static, Vec<Entry>>>>> = const { Cell::new(None) };
}

const _: () = assert!(!std::mem::needs_drop::<Cell<Option<ManuallyDrop<MutexGuard<'static, Vec<Entry>>>>>>());

/// Run before `main`, while there is one thread: where a thread forks while another one opens the first buffer, the hooks must be there
/// already, or the child finds the registry locked by somebody who is not there.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        // If this fails, who opens a buffer will see.
        let _ = install_hooks();
    }
    at_load
};

fn install_hooks() -> bool {
    fork::install(before_fork, after_fork_in_parent, after_fork_in_child)
}

// Each may be called twice (see `fork::install`).

extern "C" fn before_fork() {
    let held = ACROSS_FORK.take();
    ACROSS_FORK.set(held.or_else(|| Some(ManuallyDrop::new(REGISTRY.get().attachments.lock()))));
    // Whoever has the registry may open and close, not the other way round.
    shm::before_fork();
}

extern "C" fn after_fork_in_parent() {
    shm::after_fork_in_parent();
    drop(ACROSS_FORK.take().map(ManuallyDrop::into_inner));
}

extern "C" fn after_fork_in_child() {
    barrier::forget();
    local::abandon_all();
    // The old registry stays locked for ever (unlocking could want to wake threads that are not here), and nobody looks at it
    // again.
    let inherited = shm::inherited();
    let Some(attachments) = ACROSS_FORK.take() else { return inherited.close() };
    REGISTRY.leave();
    #[cfg(feature = "async")]
    waiter::leave();
    for entry in attachments.iter() {
        // SAFETY: listed, so not freed (invariant 1).
        let attachment = unsafe { entry.0.as_ref() };
        attachment.forked.store(true, Ordering::Relaxed);
        attachment.segment.abandon();
    }
    // The views are mapped.
    inherited.close();
}
