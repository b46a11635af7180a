//! This process's side of a segment: one attachment per segment, however often it is opened.
//!
//! Promises: the mapping stays as long as anything of this process points into it: a [`Hold`] (every `Buffer` and context
//! has one) or a record. Whoever drops the last of them detaches the process; nobody else of it waits for that.
//!
//! # Records
//! Records carry no count, so that they cost nothing, and no word of the segment is asked how many there are: another process may have
//! written it. Each cache knows by private words alone how many records came into being through it, less those that ended (see
//! `heap::cache`), endpoints add what they have received and sent, and a context adds it all up here when it closes. A sum can be
//! negative, where a context frees what another one has allocated. But a context has a hold; so without holds the sum
//! over all is the number of records this process has, and with none the mapping goes. Those that are dropped later, by threads
//! without a context, come through [`free_homeless`] and are taken off, with a hold for as long as that takes. A record that is
//! forgotten ([`std::mem::forget`]) counts for good: then the process stays attached until it ends.
//!
//! # Ownership
//! The registry's lock owns the list of attachments, and the decision to detach. It is held for looks at the list only, never while
//! anything is waited for: not the control lock, not another thread. So a buffer whose control lock is stuck is in the way of
//! no other buffer, of no record of another, and of no fork. Where two threads open a name at once, the second waits for the first,
//! by name. An attachment that is about to detach is listed no longer: who opens the buffer meanwhile makes a new
//! attachment, with a mapping, a descriptor and a lease of its own, as another process would.
//!
//! # After fork
//! The child gets a fresh registry; every inherited attachment is marked and its mapping made copy-on-write
//! ([`Segment::abandon`]): drops do nothing, writes reach nobody, reads see what the parent's pages hold until they are written
//! here. What some other thread was about to open or to leave at that moment is closed and unmapped (`sys::shm`): no handle
//! leads there. The parent notices nothing.
//!
//! # If the lease is lost
//! A process that others have reaped though it lives (a checkpoint was restored, say) owns nothing here any more. Every slow path
//! looks whether its process slot still is what this process took, and answers `Evicted` if not; as after a fork, drops do
//! nothing. The mapping stays, since nobody knows how many records still lead there; who opens the buffer anew gets a new attachment.
//! The fast paths don't look. So until the first slow path, at most what the caches and rings at hand have room for is written
//! where it is another's.
//!
//! # Invariants
//! 1. An attachment is freed only by who has taken it off the list, under the registry's lock, when `holds` was 0 and `records` was 0:
//!    so no hold and no record of this process is left, and without the list none can be made. `holds` is raised from 0 under that
//!    lock only.
//! 2. In a forked child no inherited attachment is ever freed.
//! 3. As long as a record exists, its attachment has a hold, or `records` is not 0. For `records` and the balances of this attachment's
//!    caches add up to its records plus the blocks cached, by private words alone; a cache is in use only while somebody has a
//!    hold, and is empty, and its balance added to `records`, when that hold goes.

#![allow(unsafe_code)]

use crate::arena::Arena;
use crate::directory;
use crate::error::{BufferError, OpenError};
use crate::heap::block::Known;
use crate::heap::cache::Cache;
use crate::heap::{self, reclaim};
use crate::layout::{CONTEXTS, Owner, UNIT, Word, flag};
use crate::local;
use crate::participant;
use crate::recovery::{self, Effort};
use crate::segment::{self, COURTESY, PATIENCE, Segment, Unlocked, Wish};
use crate::sync::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use crate::sys::barrier;
use crate::sys::crash::point;
use crate::sys::fork::{self, PerProcess};
use crate::sys::shm::{self, Kept};
#[cfg(feature = "async")]
use crate::waiter;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How long a holder of the control lock that has much to do keeps it at a time. Not at all in tests for kills, so that it is let go
/// wherever it may be.
const TURN: Duration = Duration::from_micros(if cfg!(feature = "crash-points") { 0 } else { 200 });

/// How long a thread without a context waits for the cache that such threads share, before it makes one of its own.
const BRIEFLY: Duration = Duration::from_millis(1);

/// No version.
const NEVER: u64 = u64::MAX;

/// See the module.
pub(crate) struct Attachment {
    segment: Segment,
    me: Owner,
    pid: u32,
    /// Excludes this process's threads from each other on the control plane; the byte lock excludes processes.
    control: Mutex<()>,
    /// A cache that belongs to no thread: for reaping, and for records dropped where no context is.
    service: Mutex<Option<(Owner, Cache)>>,
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
    /// Holds alive; only raised from 0 under the registry's lock.
    holds: AtomicUsize,
    /// What closed caches have counted; see "Records".
    records: AtomicI64,
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
    list: Mutex<List>,
    /// Told whenever a name is not being opened any more.
    opened: Condvar,
}

#[derive(Default)]
struct List {
    attachments: Vec<Entry>,
    /// Names that a thread is about to attach to.
    opening: Vec<String>,
}

/// An attachment of this process.
struct Entry(NonNull<Attachment>);

// SAFETY: an `Attachment` is Send and Sync; the pointer is only followed under the registry's lock or through a hold.
unsafe impl Send for Entry {}

static REGISTRY: PerProcess<Registry> = PerProcess::new();

impl List {
    fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        // SAFETY: listed, and the lock is held, so not freed (invariant 1).
        self.attachments.iter().map(|entry| unsafe { entry.0.as_ref() })
    }

    /// The attachment to the segment that `name` leads to now. Not one that was evicted, which others' records may still lead to.
    fn named(&self, name: &str) -> Option<&Attachment> {
        let is_it = |it: &&Attachment| it.segment.name() == name && it.check().is_ok() && it.segment.is_named();
        self.attachments().find(is_it)
    }

    /// The attachment that is mapped at `address`, and the granule that lies there.
    fn mapped_at(&self, address: usize) -> Option<(&Attachment, u32)> {
        self.attachments().find_map(|attachment| Some((attachment, attachment.arena().extent().granule(address)?)))
    }
}

/// The name that this thread is opening.
struct Turn<'a> {
    registry: &'a Registry,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.registry.list.lock().opening.retain(|other| other != self.name);
        self.registry.opened.notify_all();
    }
}

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
            detach_if_unused(self.0);
        }
    }
}

/// Takes an attachment out of the process for good if nothing of it is left, after its last hold was dropped.
#[cold]
fn detach_if_unused(attachment: NonNull<Attachment>) {
    let mut list = REGISTRY.get().list.lock();
    // Somebody may have opened it again, or detached it, while we waited for the lock.
    let Some(at) = list.attachments.iter().position(|entry| entry.0 == attachment) else { return };
    // SAFETY: still listed, so not freed (invariant 1), and the lock keeps it so.
    let this = unsafe { attachment.as_ref() };
    // SYNC(hold)
    let holds = this.holds.load(Ordering::Acquire);
    let records = this.records.load(Ordering::Relaxed);
    // With fewer than none left, something was counted wrongly: then it stays.
    debug_assert!(holds != 0 || records >= 0, "{records} records");
    if holds != 0 || records != 0 {
        return;
    }
    let Entry(attachment) = list.attachments.swap_remove(at);
    drop(list);
    point!("leave: unlisted");
    #[cfg(feature = "async")]
    waiter::forget(attachment);
    // SAFETY: invariant 1, by the checks above; it was boxed in `attach`, and is in no list any more.
    let attachment = unsafe { Box::from_raw(attachment.as_ptr()) };
    attachment.leave();
}

/// Attaches to the segment `name`, or counts one more hold on the attachment this process has.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Hold, OpenError> {
    segment::check_name(name)?;
    assert!(install_hooks(), "pthread_atfork has no memory");
    let give_up = Instant::now() + PATIENCE;
    let registry = REGISTRY.get();
    let mut list = registry.list.lock();
    loop {
        if let Some(attachment) = list.named(name) {
            attachment.allow(wish)?;
            attachment.holds.fetch_add(1, Ordering::Relaxed);
            return Ok(Hold(NonNull::from(attachment)));
        }
        if !list.opening.iter().any(|other| other == name) {
            break;
        }
        if Instant::now() >= give_up {
            return Err(OpenError::Busy { name: name.into(), pid: 0 });
        }
        registry.opened.wait_until(&mut list, give_up);
    }
    list.opening.push(name.to_owned());
    drop(list);
    let turn = Turn { registry, name };
    let pointer = NonNull::from(Box::leak(attach(name, wish, give_up)?));
    registry.list.lock().attachments.push(Entry(pointer));
    drop(turn);
    // Counted when it was made.
    let hold = Hold(pointer);
    recovery::reap(&hold, Effort::ALL);
    Ok(hold)
}

/// Makes an attachment, with one hold.
fn attach(name: &str, wish: &Wish, give_up: Instant) -> Result<Box<Attachment>, OpenError> {
    // Before the control lock is taken: it may take the kernel tens of milliseconds.
    let fenced = !barrier::register();
    let mut pause = Duration::from_millis(1);
    let (segment, me, adopted) = loop {
        let segment = segment::enter(name, wish, give_up)?;
        point!("open: entered");
        if let Some(me) = participant::join(&segment) {
            break (segment, me, false);
        }
        if let Some(me) = participant::adopt(&segment) {
            break (segment, me, true);
        }
        // A table that is full of the dead is worth a wait for whoever reaps them; anew, because the last one may leave meanwhile, and
        // take the name along.
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || !participant::has_dead(&segment) {
            return Err(OpenError::TooManyProcesses { name: name.into(), limit: crate::layout::PROCESSES });
        }
        drop(segment);
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    let attachment = Box::new(Attachment {
        segment,
        me,
        pid: std::process::id(),
        control: Mutex::new(()),
        service: Mutex::new(None),
        reaping: Mutex::new(()),
        left_behind: AtomicBool::new(false),
        swept_at: AtomicU64::new(NEVER),
        searching: Mutex::new(()),
        adopted,
        forked: AtomicBool::new(false),
        holds: AtomicUsize::new(1),
        records: AtomicI64::new(0),
        fenced,
    });
    if attachment.fenced {
        attachment.arena().header().flags.fetch_or(flag::FENCED, Ordering::AcqRel);
    }
    point!("open: joined");
    attachment.segment.unlock();
    point!("open: unlocked");
    if adopted && !recovery::inherit(&attachment) {
        // The lease goes with the attachment: dead again, as found.
        return Err(OpenError::Busy { name: name.into(), pid: 0 });
    }
    Ok(attachment)
}

/// Removes the name of a segment.
pub(crate) fn remove(name: &str) -> Result<(), OpenError> {
    assert!(install_hooks(), "pthread_atfork has no memory");
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

/// Why a lock was not to be had, whose holder has left its pid there.
fn refused(why: Unlocked, holder: &AtomicU64) -> BufferError {
    match why {
        Unlocked::Busy => BufferError::Busy { pid: u32::try_from(holder.load(Ordering::Relaxed)).unwrap_or(0) },
        Unlocked::Lost | Unlocked::Refused(_) => BufferError::NoDescriptor,
    }
}

/// The right to search for memory to reclaim, held; see `heap::reclaim`.
pub(crate) struct Searching<'a> {
    attachment: &'a Attachment,
    _threads: MutexGuard<'a, ()>,
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        reclaim::end(self.attachment.arena());
        self.attachment.segment.unlock_searching();
    }
}

/// The control lock, had in turns.
pub(crate) struct Turns<'a> {
    attachment: &'a Attachment,
    control: Option<Control<'a>>,
    /// How long to wait for it: once it could not be had, no more.
    patience: Duration,
}

impl<'a> Turns<'a> {
    pub(crate) fn new(attachment: &'a Attachment) -> Self {
        Self::within(attachment, PATIENCE)
    }

    /// Waits no longer than `patience` for each turn.
    pub(crate) fn within(attachment: &'a Attachment, patience: Duration) -> Self {
        Self { attachment, control: None, patience }
    }

    /// The control lock, when others have had it who waited while this one had it for long.
    pub(crate) fn turn(&mut self) -> Result<&Control<'a>, BufferError> {
        let patience = std::mem::take(&mut self.patience);
        let control = match self.control.take() {
            Some(control) => control.breathe(patience)?,
            None => self.attachment.control_within(patience)?,
        };
        self.patience = patience;
        Ok(self.control.insert(control))
    }
}

impl Attachment {
    /// Whether what is asked for can be had of this attachment; makes the segment stay, if that is asked for.
    fn allow(&self, wish: &Wish) -> Result<(), OpenError> {
        let name = || self.segment.name().into();
        if wish.create_new {
            return Err(OpenError::AlreadyExists { name: name() });
        }
        let units = self.segment.arena().geometry().units;
        if let Some(capacity) = wish.capacity {
            let (asked, actual) = (segment::units_for(capacity)?, units);
            if asked != actual {
                let (asked, actual) = (u64::from(asked) * UNIT, u64::from(actual) * UNIT);
                return Err(OpenError::CapacityMismatch { name: name(), asked, actual });
            }
        }
        if wish.persist {
            self.segment.arena().header().flags.fetch_or(flag::PERSIST, Ordering::AcqRel);
        }
        if wish.dumped {
            self.segment.set_dumped();
        }
        Ok(())
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
        let this = NonNull::from(self);
        let is_dead = move |who| {
            // SAFETY: by the caller, the attachment is there whenever the cache is asked.
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
        self.records.fetch_add(cache.take_count(), Ordering::Relaxed);
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
        Ok(Searching { attachment: self, _threads: threads })
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

    /// Runs `work`, which waits for nobody, with the cache that belongs to no thread; or with one of its own, if other threads
    /// want that too.
    fn with_service<R>(&self, work: impl FnOnce(&Cache) -> R) -> Result<R, BufferError> {
        self.check()?;
        let Some(mut service) = self.service.try_lock_for(BRIEFLY) else { return self.with_cache(work) };
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
        self.settle(cache);
        Ok(result)
    }

    /// The process's last act in the segment.
    fn leave(&self) {
        if let Some((context, cache)) = self.service.lock().take() {
            cache.flush();
            self.settle(&cache);
            participant::close_context(self.arena(), context);
        }
        point!("leave: flushed");
        if self.has_left_behind() {
            recovery::sweep(self, Effort::A_MOMENT);
        }
        let control = self.control();
        point!("leave: locked");
        let persists = self.arena().header().flags.load(Ordering::Acquire) & flag::PERSIST != 0;
        if control.is_ok() && !persists && !participant::has_company(&self.segment, self.me) {
            self.segment.unlink();
            point!("leave: unlinked");
        }
        // Without the lock, as the killed do: slot taken and lease dropped with the descriptor, and the next reaper finds everything.
        if control.is_ok() {
            participant::leave(&self.segment, self.me);
        }
        drop(control);
    }
}

/// Asks the arena that is mapped at `address`, and tells it the granule; `None` in a forked child, if it was the parent's.
pub(crate) fn look<R>(address: usize, ask: impl FnOnce(&Arena, u32) -> Option<R>) -> Option<R> {
    let (hold, granule) = hold_at(address)?;
    ask(hold.arena(), granule)
}

/// Holds the attachment that is mapped at `address`, and says which granule lies there.
fn hold_at(address: usize) -> Option<(Hold, u32)> {
    let list = REGISTRY.get().list.lock();
    let (attachment, granule) = list.mapped_at(address)?;
    attachment.holds.fetch_add(1, Ordering::Relaxed);
    Some((Hold(NonNull::from(attachment)), granule))
}

/// Frees a block that was dropped in a thread without a context of its buffer. Does nothing in a forked child with what it has
/// inherited: no attachment of the child is mapped there.
///
/// # Safety
/// `address` is inside the block of a record which existed until now: so its attachment is not freed (invariant 3).
#[cold]
pub(crate) unsafe fn free_homeless(address: usize, known: Known) {
    let Some((hold, granule)) = hold_at(address) else { return };
    if hold.check().is_err() {
        return;
    }
    let arena = hold.arena();
    let handle = known.find(arena, granule);
    let small = handle.filter(|handle| !handle.is_run());
    if let Some(handle) = small
        && hold.with_service(|cache| heap::free(cache, handle)).is_ok()
    {
        return;
    }
    // Whatever becomes of its block, it is a record no longer.
    hold.records.fetch_sub(1, Ordering::Relaxed);
    match (small, handle) {
        // No context slot left to free through: leave it where the next scan finds it.
        (Some(small), _) => {
            if let Some(block) = arena.block(small.granule()) {
                reclaim::loosen(arena, block);
            }
        }
        (None, Some(run)) => heap::free_run(arena, hold.me, run.granule()),
        // A foreign hand has written where it stands what block it is: that stays this process's.
        (None, None) => {}
    }
}

/// What nobody changes while a thread forks.
type Still = (MutexGuard<'static, List>, MutexGuard<'static, Kept>);

thread_local! {
    /// Held across a fork, so that the child finds lists that nobody was changing. Without a destructor, so that it is there
    /// whenever somebody forks, even from another thread-local's destructor.
    static ACROSS_FORK: Cell<Option<ManuallyDrop<Still>>> = const { Cell::new(None) };
}

const _: () = assert!(!std::mem::needs_drop::<Cell<Option<ManuallyDrop<Still>>>>());

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
    ACROSS_FORK.set(held.or_else(|| Some(ManuallyDrop::new((REGISTRY.get().list.lock(), shm::kept())))));
}

extern "C" fn after_fork_in_parent() {
    drop(ACROSS_FORK.take().map(ManuallyDrop::into_inner));
}

extern "C" fn after_fork_in_child() {
    barrier::forget();
    local::abandon_all();
    // The old lists stay locked for ever (unlocking could want to wake threads that are not here), and nobody looks at them
    // again.
    let Some(mut still) = ACROSS_FORK.take() else { return };
    let (list, kept) = &mut *still;
    REGISTRY.leave();
    shm::leave();
    #[cfg(feature = "async")]
    waiter::leave();
    for attachment in list.attachments() {
        attachment.forked.store(true, Ordering::Relaxed);
        attachment.segment.abandon(kept);
    }
    kept.let_go();
}
