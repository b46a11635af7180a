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
//! (`Segment::abandon`): drops reach nobody, writes reach nobody, reads see what the parent's pages hold until they are written
//! here. What some other thread was about to open or to leave at that moment is closed and unmapped (`sys::shm`): no handle
//! leads there. The parent notices nothing.
//!
//! The child has copies of the parent's handles, and so of their counts: holds and records go on being counted, and with the last of them
//! the view is unmapped, in that child or in one that it forks. The forking thread's contexts add up what they have counted as they become
//! inert, by private words alone. What other threads had counted nobody can tell any more; but their contexts have holds, which nobody
//! is left to drop. So where other threads had handles, or handles are forgotten, that generation's view stays: its addresses, and as long
//! as the file has no name either, its memory.
//!
//! # If the lease is lost
//! A process that others have reaped though it lives (a checkpoint was restored, say) owns nothing here any more. Every slow path
//! looks whether its process slot still is what this process took, and answers `Evicted` if not; as after a fork, drops do
//! nothing. The mapping stays, since nobody knows how many records still lead there; who opens the buffer anew gets a new attachment.
//! Once this was seen it stays so, whatever the slot says later: handles have gone uncounted by then.
//! The fast paths don't look. So until the first slow path, at most what the caches and rings at hand have room for is written
//! where it is another's.
//!
//! # Invariants
//! 1. An attachment is freed only by who has taken it off a list, under the registry's lock, when `holds` was 0 and `records` was 0:
//!    so no hold and no record of this process is left, and without the list none can be made. `holds` is raised from 0 under that
//!    lock only.
//! 2. Of an inherited attachment, nothing but its view is given back: its descriptors and pinned pages went at the fork, and their numbers
//!    and addresses may be others' by now.
//! 3. As long as a record exists, its attachment has a hold, or `records` is not 0. For `records` and the balances of this attachment's
//!    caches add up to its records plus the blocks cached, by private words alone; a cache is in use only while somebody has a
//!    hold, and is empty, and its balance added to `records`, when that hold goes.

#![allow(unsafe_code)]

use crate::directory;
use crate::error::{BufferError, OpenError};
use crate::format::{CONTEXTS, Owner, PROCESSES, UNIT, flag};
use crate::heap;
use crate::heap::block::{self, Known};
use crate::heap::cache::Cache;
use crate::membership::{Membership, participant};
#[cfg(feature = "async")]
use crate::process::reactor;
use crate::recovery::{self, Effort};
use crate::segment::arena::Arena;
use crate::segment::{self, PATIENCE, Wish};
use crate::sync::{AtomicUsize, Ordering};
use crate::sys::barrier;
use crate::sys::crash::point;
use crate::sys::fork::PerProcess;
use crate::sys::shm::Kept;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::mem;
use std::ops::Deref;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How long a thread without a context waits for the cache that such threads share, before it makes one of its own.
const BRIEFLY: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Attachment {
    member: Membership,
    /// A cache that belongs to no thread: for records dropped where no context is.
    service: Mutex<Option<(Owner, Cache)>>,
    /// Holds alive; only raised from 0 under the registry's lock.
    holds: AtomicUsize,
}

impl Deref for Attachment {
    type Target = Membership;
    fn deref(&self) -> &Membership {
        &self.member
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
    /// The parent's, and its parents', to which handles of this process still lead.
    inherited: Vec<Entry>,
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
        let is_it = |it: &&Attachment| it.segment().name() == name && it.check().is_ok() && it.segment().is_named();
        self.attachments().find(is_it)
    }

    /// Takes an inherited attachment away, if no handle leads there any more.
    fn let_go_if_unused(&mut self, at: usize) {
        // SAFETY: listed, and the lock is held, so not freed (invariant 1).
        let this = unsafe { self.inherited[at].0.as_ref() };
        // SYNC(hold)
        if this.holds.load(Ordering::Acquire) != 0 || this.records() != 0 {
            return;
        }
        let Entry(attachment) = self.inherited.swap_remove(at);
        // SAFETY: invariant 1, by the checks above; it was boxed in `attach`, and is in no list any more.
        let attachment = unsafe { Box::from_raw(attachment.as_ptr()) };
        // Under the lock: who forks has the entry and the view, or neither.
        attachment.member.into_segment().let_go();
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
        let is_inherited = self.check() == Err(BufferError::Forked);
        // Asked after the check, which may find it out.
        if self.is_uncounted() {
            return;
        }
        // SYNC(hold): Release of this holder's accesses, Acquire of everyone's by the one who detaches.
        if self.holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            if is_inherited { let_go_if_unused(self.0) } else { detach_if_unused(self.0) }
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
    let records = this.records();
    // With fewer than none left, something was counted wrongly: then it stays.
    debug_assert!(holds != 0 || records >= 0, "{records} records");
    if holds != 0 || records != 0 {
        return;
    }
    let Entry(attachment) = list.attachments.swap_remove(at);
    drop(list);
    point!("leave: unlisted");
    #[cfg(feature = "async")]
    // SAFETY: not freed before the next line.
    reactor::forget(unsafe { attachment.as_ref() });
    // SAFETY: invariant 1, by the checks above; it was boxed in `attach`, and is in no list any more.
    let attachment = unsafe { Box::from_raw(attachment.as_ptr()) };
    attachment.leave();
}

/// Takes the view of an inherited attachment away if nothing of it is left, after its last hold was dropped.
#[cold]
fn let_go_if_unused(attachment: NonNull<Attachment>) {
    let mut list = REGISTRY.get().list.lock();
    if let Some(at) = list.inherited.iter().position(|entry| entry.0 == attachment) {
        list.let_go_if_unused(at);
    }
}

/// Attaches to the segment `name`, or counts one more hold on the attachment this process has.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Hold, OpenError> {
    segment::check_name(name)?;
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
            return Err(OpenError::TooManyProcesses { name: name.into(), limit: PROCESSES });
        }
        drop(segment);
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    let member = Membership::new(segment, me, adopted, fenced, directory::rebuild_index);
    let attachment = Box::new(Attachment { member, service: Mutex::new(None), holds: AtomicUsize::new(1) });
    point!("open: joined");
    attachment.segment().unlock();
    point!("open: unlocked");
    if adopted && !recovery::inherit(&attachment) {
        // The lease goes with the attachment: dead again, as found.
        return Err(OpenError::Busy { name: name.into(), pid: 0 });
    }
    Ok(attachment)
}

impl Attachment {
    /// Whether what is asked for can be had of this attachment; makes the segment stay, if that is asked for.
    fn allow(&self, wish: &Wish) -> Result<(), OpenError> {
        let name = || self.segment().name().into();
        if wish.create_new {
            return Err(OpenError::AlreadyExists { name: name() });
        }
        let units = self.arena().geometry().units;
        if let Some(capacity) = wish.capacity {
            let (asked, actual) = (segment::units_for(capacity)?, units);
            if asked != actual {
                let (asked, actual) = (u64::from(asked) * UNIT, u64::from(actual) * UNIT);
                return Err(OpenError::CapacityMismatch { name: name(), asked, actual });
            }
        }
        if wish.persist {
            self.arena().header().flags.fetch_or(flag::PERSIST, Ordering::AcqRel);
        }
        if wish.dumped {
            self.segment().set_dumped();
        }
        Ok(())
    }

    /// Runs `work`, which waits for nobody, with the cache that belongs to no thread; or with one of its own, if other threads
    /// want that too.
    fn with_service<R>(&self, work: impl FnOnce(&Cache) -> R) -> Result<R, BufferError> {
        self.check()?;
        let Some(mut service) = self.service.try_lock_for(BRIEFLY) else { return self.with_cache(work) };
        if service.is_none() {
            let context = participant::open_context(self.arena(), self.me())
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
        if control.is_ok() && !persists && !participant::has_company(self.segment(), self.me()) {
            self.segment().unlink();
            point!("leave: unlinked");
        }
        // Without the lock, as the killed do: slot taken and lease dropped with the descriptor, and the next reaper finds everything.
        if control.is_ok() {
            participant::leave(self.segment(), self.me());
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

/// Frees a block that was dropped in a thread without a context of its buffer. In a forked child, what it has inherited is counted only: no
/// attachment of the child is mapped there.
///
/// # Safety
/// `address` is inside the block of a record which existed until now: so its attachment is not freed (invariant 3).
#[cold]
pub(crate) unsafe fn free_homeless(address: usize, known: Known) {
    let Some((hold, granule)) = hold_at(address) else { return forget_inherited(address) };
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
    hold.add_records(-1);
    match (small, handle) {
        // No context slot left to free through: leave it where the next scan finds it.
        (Some(small), _) => {
            if let Some(block) = arena.block(small.granule()) {
                block::loosen(arena, block);
            }
        }
        (None, Some(run)) => heap::free_run(arena, hold.me(), run.granule()),
        // A foreign hand has written where it stands what block it is: that stays this process's.
        (None, None) => {}
    }
}

/// Counts a record that was inherited, and is no more.
fn forget_inherited(address: usize) {
    let mut list = REGISTRY.get().list.lock();
    // SAFETY: listed, and the lock is held, so not freed (invariant 1).
    let is_it = |entry: &Entry| unsafe { entry.0.as_ref() }.arena().extent().granule(address).is_some();
    let Some(at) = list.inherited.iter().position(is_it) else { return };
    // SAFETY: as above.
    let this = unsafe { list.inherited[at].0.as_ref() };
    if !this.is_uncounted() {
        this.add_records(-1);
        list.let_go_if_unused(at);
    }
}

/// The list of attachments, held across a fork, so that the child finds one that nobody was changing.
pub(super) struct Still(MutexGuard<'static, List>);

impl Still {
    pub(super) fn hold() -> Self {
        Self(REGISTRY.get().list.lock())
    }

    /// In a forked child: gives up what was the parent's. The old list stays locked for ever (unlocking could want to wake threads that
    /// are not here), and nobody looks at it again.
    ///
    /// What handles lead to is inherited, and counted from here on, unless some can't be got at (`are_counted`). Returned, for
    /// [`Inherited::list`], when nothing is left to do with what is kept.
    pub(super) fn abandon(&mut self, kept: &mut Kept, are_counted: bool) -> Inherited {
        REGISTRY.leave();
        let mut inherited = mem::take(&mut self.0.inherited);
        for entry in mem::take(&mut self.0.attachments) {
            // SAFETY: it was listed, and the lock is held, so not freed (invariant 1).
            let attachment = unsafe { entry.0.as_ref() };
            if !are_counted || attachment.check().is_err() {
                attachment.stay();
            }
            attachment.note_fork();
            // Else it was about to be left, and no handle leads there: its mapping goes with what is kept.
            if attachment.holds.load(Ordering::Acquire) != 0 || attachment.records() != 0 {
                attachment.segment().abandon(kept);
                inherited.push(entry);
            }
        }
        Inherited(inherited)
    }
}

/// What handles of a forked child lead to.
pub(super) struct Inherited(Vec<Entry>);

impl Inherited {
    /// Lists it, with the child's own lists made.
    pub(super) fn list(self) {
        REGISTRY.get().list.lock().inherited = self.0;
    }
}
