//! A thread's side of a buffer: its cache, its endpoints, and how a record that is dropped finds the cache.
//!
//! Promises: allocation and drop on the thread of an open context touch no lock and no count. Refuses: to outlive the
//! last `ThreadContext`: then the cache is given back, every endpoint is detached, and what is left answers
//! [`Inert::Closed`].
//!
//! A context that closes is closed from the first step on: nobody finds it any more, and who asks the buffer for this thread's context
//! gets a new one. Others' code (the wakers of futures that waited for its ends) runs when nothing is left to do, and may do
//! all of that; see `wakers`.
//!
//! A closed or forked context is told from a working one at no cost: its cache has nothing to pop and no room to push,
//! and its endpoints have no slots, so every operation ends on its slow path, which asks [`Local::check`].
//!
//! # Invariants
//! 1. `CURRENT` is nobody's, or the front of the cache of a `Local` of this thread whose status is `Open`, and `CURRENT_LOCAL` is null, or
//!    that `Local`: both are set by its owner thread and cleared before the status changes or the `Local` is freed.
//! 2. While the status is `Open`, and until `close` is done with the cache and the endpoints, `hold` is there, so the segment is mapped.

#![allow(unsafe_code)]

use crate::error::{AllocError, BufferError};
use crate::format::{BLOCK_HEADER, CONTEXTS, Handle, Owner, UNIT};
use crate::heap::block::{Block, Known};
use crate::heap::cache::{Cache, Front, NOBODYS};
use crate::heap::unit::{self, NoUnits};
use crate::heap::{self, Counted, depot, reclaim, want};
use crate::membership::Turns;
use crate::membership::participant;
use crate::process::attachment::{self, Attachment, Hold};
use crate::recovery::{self, Effort, End, OTHERS};
use crate::segment::PATIENCE;
use crate::segment::arena::Extent;
use crate::sys::crash::point;
use crate::wait::wakers;
use crate::wait::{self, Bed, EndKey};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr;
use std::rc::{Rc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

thread_local! {
    /// The front of the cache last used on this thread. No destructor, so it can be asked at any time.
    static CURRENT: Cell<*const Front> = const { Cell::new(NOBODYS) };
    /// Whose that is.
    static CURRENT_LOCAL: Cell<*const Local> = const { Cell::new(ptr::null()) };
    /// Every context of this thread; closed ones too, as long as something refers to them.
    static CONTEXTS_HERE: RefCell<Vec<Weak<Local>>> = const { RefCell::new(Vec::new()) };
}

/// Why a handle no longer acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inert {
    Closed,
    Forked,
    /// The process was taken for dead, and reaped: see `attachment`.
    Evicted,
}

/// An endpoint, as its context sees it.
pub(crate) trait Attached {
    /// Leaves the channel. Who waited for this end is to be woken, once the caller has nothing else left to do.
    fn detach(&self) -> Option<Waker>;
    /// Records that came into this process's hands by this end, less those that went.
    fn records(&self) -> i64;
    /// Forgets the channel without touching it.
    fn abandon(&self);
    /// As [`abandon`](Self::abandon), where the process has not changed: gives the waker of the future that waits for it.
    fn evict(&self) -> Option<Waker>;
    /// Its bell was rung.
    fn is_rung(&self);
    /// Looks whether its bell was rung.
    fn look_at_bell(&self, bed: Bed<'_>);
}

/// See the module.
pub(crate) struct Local {
    cache: Cache,
    context: Owner,
    pid: u32,
    status: Cell<Result<(), Inert>>,
    /// `ThreadContext` handles.
    handles: Cell<usize>,
    /// By what hints call them.
    endpoints: RefCell<BTreeMap<EndKey, Weak<dyn Attached>>>,
    hold: RefCell<Option<Hold>>,
    /// What this context has counted for its last refusal.
    counted: RefCell<Box<Counted>>,
    /// When it is time again to look into others' caches, if that was of no use the last time.
    no_revoking_before: Cell<Option<Instant>>,
}

/// A handle of a context, as a `ThreadContext` is one.
pub(crate) struct StayOpen(Rc<Local>);

impl Drop for StayOpen {
    fn drop(&mut self) {
        self.0.drop_handle();
    }
}

/// How many times as long as it took to look into others' caches in vain, that is not done again.
const FRUITLESS: u32 = 10;

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("context", &self.context).field("status", &self.status).finish_non_exhaustive()
    }
}

/// This thread's working context of the buffer that is mapped at `address`.
fn find(address: usize) -> Option<Rc<Local>> {
    // What is mapped there now may be another buffer than that of a closed context.
    let is_there =
        |local: &Rc<Local>| local.status.get().is_ok() && local.cache.arena().extent().granule(address).is_some();
    let find = |here: &RefCell<Vec<Weak<Local>>>| here.borrow().iter().filter_map(Weak::upgrade).find(is_there);
    let local = CONTEXTS_HERE.try_with(find).ok().flatten()?;
    // Not inside the borrow: it may wake others.
    local.check().ok()?;
    Some(local)
}

/// This thread's context of the buffer, made if need be, with one more handle.
pub(crate) fn enter(hold: &Hold) -> Result<Rc<Local>, BufferError> {
    hold.check()?;
    let local = match find(hold.arena().extent().start()) {
        Some(local) => local,
        None => {
            let open = || participant::open_context(hold.arena(), hold.me());
            // A full table may be full of the dead, whom another may be at.
            let give_up = Instant::now() + PATIENCE;
            let context = loop {
                let has_dead = || !participant::dead(hold.segment(), hold.me()).is_empty();
                let context = open().or_else(|| {
                    recovery::reap(hold, Effort::PATIENT);
                    open()
                });
                if let Some(context) = context {
                    break context;
                }
                if Instant::now() >= give_up || !has_dead() {
                    return Err(BufferError::TooManyContexts { limit: CONTEXTS });
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            depot::provide(hold.arena(), depot::PER_CONTEXT);
            // SAFETY: `close` makes the cache forget the segment before the hold below goes.
            let cache = unsafe { hold.new_cache(context) };
            let local = Rc::new(Local {
                cache: cache.ok_or(BufferError::TooManyContexts { limit: CONTEXTS })?,
                context,
                pid: std::process::id(),
                status: Cell::new(Ok(())),
                handles: Cell::new(0),
                endpoints: RefCell::default(),
                hold: RefCell::new(Some(hold.clone())),
                counted: RefCell::default(),
                no_revoking_before: Cell::new(None),
            });
            let _ = CONTEXTS_HERE.try_with(|here| {
                let mut here = here.borrow_mut();
                here.retain(|other| other.strong_count() > 0);
                here.push(Rc::downgrade(&local));
            });
            local
        }
    };
    local.handles.set(local.handles.get() + 1);
    local.be_current();
    Ok(local)
}

/// Frees the block that a record held, `address` being inside: `at_once` says which that is, if it is one of a class that is
/// mapped at an extent, and this is easily told; else `known` says what there is to go by.
///
/// # Safety
/// The record exists until this call, and both tell the truth of it.
#[inline(always)]
pub(crate) unsafe fn free(
    address: usize,
    at_once: impl FnOnce(Extent) -> Option<Handle>,
    known: impl FnOnce() -> Known,
) {
    // SAFETY: invariant 1.
    let front = unsafe { &*CURRENT.get() };
    if !at_once(front.extent()).is_some_and(|handle| front.push(handle)) {
        // SAFETY: by the caller.
        unsafe { free_slow(address, known()) };
    }
}

/// # Safety
/// As [`free`].
#[cold]
#[inline(never)]
unsafe fn free_slow(address: usize, known: Known) {
    // SAFETY: invariant 1.
    let current = unsafe { CURRENT_LOCAL.get().as_ref() };
    if current.is_some_and(|local| local.free(address, known)) {
        return;
    }
    match find(address) {
        Some(local) => {
            local.be_current();
            local.free(address, known);
        }
        // SAFETY: by the caller.
        None => unsafe { attachment::free_homeless(address, known) },
    }
}

fn let_go_of_current() {
    CURRENT.set(NOBODYS);
    CURRENT_LOCAL.set(ptr::null());
}

/// In a forked child: this thread's contexts are the parent's. They add what they have counted to their attachments; false if there may be
/// others, which can't be got at.
pub(crate) fn abandon_all() -> bool {
    let_go_of_current();
    let abandon_all = |here: &RefCell<Vec<Weak<Local>>>| {
        // The only thread here, but the fork may have come from inside a borrow.
        let Ok(mut here) = here.try_borrow_mut() else { return false };
        for local in here.drain(..).filter_map(|local| local.upgrade()) {
            local.status.set(Err(Inert::Forked));
            let mut records = local.cache.records();
            local.cache.forget();
            for endpoint in local.endpoints.take().into_values() {
                if let Some(endpoint) = endpoint.upgrade() {
                    records = records.wrapping_add(endpoint.records());
                    endpoint.abandon();
                }
            }
            // Closed, it has none any more, and has counted.
            if let Some(hold) = &*local.hold.borrow() {
                hold.add_records(records);
            }
        }
        true
    };
    CONTEXTS_HERE.try_with(abandon_all).unwrap_or(false)
}

impl Local {
    /// Whether the context works.
    pub(crate) fn check(&self) -> Result<(), Inert> {
        self.status.get()?;
        // Invariant 2: the segment is mapped.
        if !participant::is_registered(self.cache.arena(), self.cache.me(), self.pid) {
            self.evict();
        }
        self.status.get()
    }

    /// Ends the context without touching what is others' by now. It keeps its hold, whose drop does nothing.
    #[cold]
    fn evict(&self) {
        self.status.set(Err(Inert::Evicted));
        if let Some(hold) = &*self.hold.borrow() {
            hold.stay();
        }
        self.cache.forget();
        if ptr::eq(CURRENT.get(), self.cache.front()) {
            let_go_of_current();
        }
        let endpoints = self.endpoints.take();
        let woken: Vec<Waker> = endpoints.into_values().filter_map(|endpoint| endpoint.upgrade()?.evict()).collect();
        wakers::wake(woken);
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What is freed next on this thread is looked for here first.
    fn be_current(&self) {
        CURRENT.set(self.cache.front());
        CURRENT_LOCAL.set(self);
    }

    /// Frees the block around `address` that a record held, if it is one of this buffer's.
    fn free(&self, address: usize, known: Known) -> bool {
        let arena = self.cache.arena();
        let Some(granule) = arena.extent().granule(address) else { return false };
        if self.check().is_err() {
            return true;
        }
        match known.find(arena, granule) {
            Some(handle) => heap::free(&self.cache, handle),
            // A foreign hand has written where it stands what block it is: that stays this process's, but it is a record no longer.
            None => self.cache.count(-1),
        }
        true
    }

    /// The attachment, held; `None` once the context is closed.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.check().ok()?;
        self.hold.borrow().clone()
    }

    /// As [`hold`](Self::hold), also for the context that is about to close.
    pub(crate) fn hold_to_the_end(&self) -> Option<Hold> {
        self.hold.borrow().clone()
    }

    /// Where this thread sleeps; `None` once the context is closed.
    pub(crate) fn bed(&self) -> Option<Bed<'_>> {
        self.check().ok()?;
        // Invariant 2: the segment is mapped.
        Bed::of(self.cache.arena(), self.context.index())
    }

    /// Remembers an endpoint, to detach it when the context closes. A role has one holder, so it is the only one of this `key`.
    pub(crate) fn register(&self, key: EndKey, endpoint: Weak<dyn Attached>) {
        self.endpoints.borrow_mut().insert(key, endpoint);
    }

    /// Forgets an endpoint that is about to leave.
    pub(crate) fn forget(&self, key: EndKey) {
        self.endpoints.borrow_mut().remove(&key);
    }

    /// Whether there are hints to be taken.
    pub(crate) fn has_hints(&self) -> bool {
        self.bed().is_some_and(Bed::has_hints)
    }

    /// Passes on what those who rang have left beside the bed: to the ends they name, or if there were too many, to all whose bells do
    /// not bear the bed's name.
    pub(crate) fn take_hints(&self) {
        let Some(bed) = self.bed() else { return };
        let mut keys = Vec::new();
        let all = bed.take_hints(|key| keys.push(key));
        let endpoints = self.endpoints.borrow();
        if all {
            endpoints.values().filter_map(Weak::upgrade).for_each(|endpoint| endpoint.look_at_bell(bed));
        } else {
            let rung = keys.iter().filter_map(|key| endpoints.get(key)?.upgrade());
            rung.for_each(|endpoint| endpoint.is_rung());
        }
    }

    /// One more `ThreadContext`.
    pub(crate) fn add_handle(&self) {
        self.handles.set(self.handles.get() + 1);
    }

    /// Keeps the context open.
    pub(crate) fn stay_open(self: &Rc<Self>) -> StayOpen {
        self.add_handle();
        StayOpen(Rc::clone(self))
    }

    /// One `ThreadContext` less; the last one closes the context.
    pub(crate) fn drop_handle(&self) {
        self.handles.set(self.handles.get() - 1);
        if self.handles.get() == 0 && self.check().is_ok() {
            self.close();
        }
    }

    fn close(&self) {
        // First: no drop, no context that is asked for, and no endpoint finds this one any more.
        if ptr::eq(CURRENT.get(), self.cache.front()) {
            let_go_of_current();
        }
        self.status.set(Err(Inert::Closed));
        let endpoints = self.endpoints.take();
        let woken: Vec<Waker> = endpoints.into_values().filter_map(|endpoint| endpoint.upgrade()?.detach()).collect();
        point!("close: detached");
        self.cache.flush();
        point!("close: flushed");
        self.cache.forget();
        if let Some(hold) = self.hold.take() {
            point!("close: forgotten");
            hold.settle(&self.cache);
            participant::close_context(hold.arena(), self.context);
            depot::retire(hold.arena(), depot::PER_CONTEXT);
        }
        // What they do finds this context closed, and its buffer left, if this was the last of it here.
        wakers::wake(woken);
    }

    /// Gives every cached block back.
    pub(crate) fn flush(&self) {
        if self.check().is_ok() {
            self.cache.flush();
        }
    }

    /// A block with `bytes` behind its header, if one is free in a slab, and its class.
    #[inline(always)]
    pub(crate) fn alloc_fast(&self, bytes: u64) -> Option<(u8, Block)> {
        heap::alloc_fast(&self.cache, bytes)
    }

    /// As [`alloc_slow`](Self::alloc_slow), and waits for memory until `deadline`.
    #[cold]
    pub(crate) fn alloc_waiting(&self, bytes: u64, deadline: Option<Instant>) -> Result<Block, AllocError> {
        let Some(hold) = self.hold() else { return self.alloc_slow(bytes) };
        let total = u64::from(hold.arena().geometry().units) * UNIT;
        let left = || deadline.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()).min(PATIENCE));
        let attempt = || match self.alloc_within(bytes, left()) {
            Err(AllocError::OutOfMemory { asked, .. }) if asked <= total => None,
            result => Some(result),
        };
        let ready = || {
            want::announce(hold.arena(), hold.me(), self.context.index());
            attempt()
        };
        let found = attempt().or_else(|| wait::for_change(want::version(hold.arena()), deadline, ready));
        found.unwrap_or_else(|| self.alloc_within(bytes, left()))
    }

    /// Allocates a block with `bytes` behind its header.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, bytes: u64) -> Result<Block, AllocError> {
        self.alloc_within(bytes, PATIENCE)
    }

    /// As [`alloc_slow`](Self::alloc_slow), waiting no longer than `patience` for others' locks.
    fn alloc_within(&self, bytes: u64, patience: Duration) -> Result<Block, AllocError> {
        self.check().map_err(|inert| match inert {
            Inert::Forked => AllocError::Forked,
            Inert::Evicted => AllocError::Evicted,
            Inert::Closed => AllocError::ContextClosed,
        })?;
        if let Ok(block) = heap::alloc(&self.cache, bytes) {
            return Ok(block);
        }
        self.make_room(bytes, patience)
    }

    /// Allocates when nothing is at hand. The ladder: each rung makes room for the next try, and is left out where nothing has
    /// changed since it was last of no use, so that a refusal costs no more than a few tries and a look at who is alive.
    #[cold]
    #[inline(never)]
    fn make_room(&self, bytes: u64, patience: Duration) -> Result<Block, AllocError> {
        let give_up = Instant::now() + patience;
        let left = |most: Duration| give_up.saturating_duration_since(Instant::now()).min(most);
        let hold = self.hold().ok_or(AllocError::ContextClosed)?;
        let arena = hold.arena();
        let refusal = |why| {
            let (asked, free) = (bytes.saturating_add(BLOCK_HEADER), self.free_bytes(why));
            AllocError::OutOfMemory { asked, free }
        };
        if heap::run_span(bytes) > u64::from(arena.geometry().units) {
            return Err(refusal(NoUnits::Full));
        }
        let seen = reclaim::searches(arena);
        let attempt = || heap::alloc(&self.cache, bytes);
        // What the dead had, as much of it as is needed.
        let from_the_dead = |patience| {
            let give_up = Instant::now() + patience;
            loop {
                let (_, end) = recovery::reap(&hold, Effort::A_BIT);
                if let Ok(block) = attempt() {
                    return Some(block);
                }
                match end {
                    End::TimeIsUp => {}
                    End::Stuck(_) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(1)),
                    End::Stuck(_) | End::Done => return None,
                }
            }
        };
        if let Some(block) = from_the_dead(Duration::ZERO).or_else(|| heap::alloc_near(&self.cache, bytes)) {
            return Ok(block);
        }
        let why = match attempt() {
            Ok(block) => return Ok(block),
            Err(why) => why,
        };
        let is_due = || {
            reclaim::is_due(arena, seen)
                || self.is_revoking_due(&hold)
                || why == NoUnits::NotBacked && unit::is_trim_due(arena)
        };
        let mut found = None;
        if !is_due() {
            found = heap::alloc_larger(&self.cache, bytes);
            if found.is_none() {
                // What is cached here keeps its slab.
                self.cache.flush();
            }
        }
        // Once more: somebody may have had in hand what was not found.
        if found.is_none() && is_due() {
            found = self
                .search(&hold, bytes, left(OTHERS), left(PATIENCE))
                .or_else(|| heap::alloc_larger(&self.cache, bytes));
        }
        // Only when nothing else has helped: another reaper may take its time, or be stopped.
        found.or_else(|| from_the_dead(left(OTHERS))).ok_or_else(|| refusal(why))
    }

    /// Bytes that are free in the buffer, for a refusal.
    pub(crate) fn free_bytes(&self, why: NoUnits) -> u64 {
        heap::free_bytes(self.cache.arena(), why, &mut self.counted.borrow_mut())
    }

    /// Looks for memory that is free in the wrong place, and allocates of that. One at a time: whoever comes second finds here what
    /// the first one had in hand.
    fn search(&self, hold: &Attachment, bytes: u64, others: Duration, control: Duration) -> Option<Block> {
        let arena = hold.arena();
        let _searching = hold.searching(others).ok()?;
        let mut turns = Turns::within(hold, control);
        let mut turn = || turns.turn().is_ok();
        let attempt = || heap::alloc(&self.cache, bytes);
        reclaim::collect_loose(&self.cache);
        self.cache.flush();
        reclaim::empty_slabs(&self.cache, &mut turn);
        let mut result = attempt();
        if result.is_err() && self.is_revoking_due(hold) {
            let start = Instant::now();
            let taken = reclaim::revoke_idle(&self.cache, &mut turn);
            reclaim::empty_slabs(&self.cache, &mut turn);
            result = attempt();
            self.no_revoking_before.set((taken == 0).then(|| Instant::now() + start.elapsed() * FRUITLESS));
        }
        // The system is out of memory, and free units too short for this hold some of it.
        if matches!(result, Err(NoUnits::NotBacked)) && unit::is_trim_due(arena) {
            unit::trim(arena, hold.me(), &mut turn);
            result = attempt();
        }
        result.ok().or_else(|| heap::alloc_larger(&self.cache, bytes))
    }

    /// Whether to take what idle contexts cache: there is one that may, and the last time that it was of no use is long enough ago.
    fn is_revoking_due(&self, hold: &Attachment) -> bool {
        hold.may_revoke()
            && self.no_revoking_before.get().is_none_or(|until| Instant::now() >= until)
            && reclaim::has_idle(&self.cache)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // Every handle is gone, so it is closed or forked; a forked one keeps its hold, whose drop does nothing.
        debug_assert!(self.status.get().is_err());
    }
}
