//! Hooks around fork(2), and what a child must not keep of its parent.
//!
//! A [`Descriptor`] whose open file carries locks is shared with a child, and so are the locks: the kernel would not drop them
//! before both are gone. So each is on a list from the very call that opens it, and the child closes those listed; likewise with
//! [`Mapping`]s, so that a child keeps no segment that it has no handle of. The list's lock is held across a fork, and else only
//! for calls that wait for nobody: open(2), mmap(2) and their reverse.
//!
//! Covers every `fork` of the C library. A child made by a bare `clone` system call is not seen; one made by
//! `std::process::Command` either runs these hooks or execs at once, and all our descriptors are close-on-exec.

#![allow(unsafe_code)]

use super::{memory, shm};
use crate::sync::{AtomicBool, AtomicPtr, Ordering};
use parking_lot::{Mutex, MutexGuard};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::{fmt, io};

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Installs the hooks if they are not there; false if there is no memory for that. Not behind a lock of any kind, which a fork
/// by another thread could leave closed in the child: two threads may install them twice, which must not matter to the hooks.
pub(crate) fn install(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    if !INSTALLED.load(Ordering::Acquire) {
        // SAFETY: the three functions live as long as the program and never unwind (each is a plain `extern "C"`).
        let failed = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        INSTALLED.store(failed == 0, Ordering::Release);
    }
    INSTALLED.load(Ordering::Relaxed)
}

/// The one `T` of this process, made on first use and never freed. Behind locks that a thread may hold when another one forks, and
/// that nobody will ever open in the child: so a child [leaves](Self::leave) its parent's behind.
pub(crate) struct PerProcess<T>(AtomicPtr<T>);

impl<T: Default + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> &'static T {
        if let Some(made) = self.made() {
            return made;
        }
        let new = Box::into_raw(Box::<T>::default());
        if self.0.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // SAFETY: just leaked; never freed.
            return unsafe { &*new };
        }
        // SAFETY: `new` came from a box above and was never shared.
        drop(unsafe { Box::from_raw(new) });
        self.get()
    }

    /// The one there is.
    pub(crate) fn made(&self) -> Option<&'static T> {
        // SAFETY: null, or published by `get` and never freed.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// In a forked child, where no other thread is: the next use makes a new one.
    pub(crate) fn leave(&self) {
        self.0.store(ptr::null_mut(), Ordering::Release);
    }
}

/// What a child closes and unmaps.
#[derive(Default)]
pub(crate) struct Kept {
    descriptors: Vec<RawFd>,
    /// Where they start, and their bytes.
    mappings: Vec<(NonNull<u8>, usize)>,
}

// SAFETY: addresses that are only passed to the kernel.
unsafe impl Send for Kept {}

static KEPT: PerProcess<Mutex<Kept>> = PerProcess::new();

/// Nothing is opened, mapped, closed or unmapped as long as this is held.
pub(crate) fn hold_still() -> MutexGuard<'static, Kept> {
    KEPT.get().lock()
}

impl Kept {
    /// In a forked child: leaves a mapping where it is, because something else has been put in its place.
    pub(crate) fn except(&mut self, start: NonNull<u8>) {
        self.mappings.retain(|(other, _)| *other != start);
    }

    /// In a forked child: closes and unmaps the rest, and leaves the list behind.
    pub(crate) fn let_go(&mut self) {
        for (start, len) in self.mappings.drain(..) {
            // SAFETY: listed, so mapped by a thread of the parent; it is not here, and no handle leads there: see `Mapping`.
            unsafe { memory::unmap(start, len) };
        }
        for descriptor in self.descriptors.drain(..) {
            // SAFETY: listed, so open; whoever has it is not here, or never uses it again: see `Descriptor`.
            unsafe { shm::close(descriptor) };
        }
        KEPT.leave();
    }
}

/// A descriptor that a forked child closes. Nobody uses, or drops, one in a child that has inherited it.
pub(crate) struct Descriptor(ManuallyDrop<OwnedFd>);

impl Descriptor {
    /// What `open` opens, with no fork between that and the listing.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        let mut kept = hold_still();
        let file = open()?;
        kept.descriptors.push(file.as_raw_fd());
        Ok(Self(ManuallyDrop::new(file)))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let mut kept = hold_still();
        let number = self.0.as_raw_fd();
        kept.descriptors.retain(|other| *other != number);
        // SAFETY: dropped once, here. Under the lock: a child must not close what has the number next.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A mapping that a forked child unmaps, unless it puts another in its place. Nobody drops one in a child that has inherited it, and
/// only who [excepts](Kept::except) it there looks into it.
pub(crate) struct Mapping<M>(ManuallyDrop<M>, NonNull<u8>);

impl<M> Mapping<M> {
    /// What `map` maps, with no fork between that and the listing; `place` says where that starts, and its bytes.
    pub(crate) fn make<E>(
        map: impl FnOnce() -> Result<M, E>,
        place: impl FnOnce(&M) -> (NonNull<u8>, usize),
    ) -> Result<Self, E> {
        let mut kept = hold_still();
        let mapped = map()?;
        let (start, len) = place(&mapped);
        kept.mappings.push((start, len));
        Ok(Self(ManuallyDrop::new(mapped), start))
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.1
    }
}

impl<M> Deref for Mapping<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M> Drop for Mapping<M> {
    fn drop(&mut self) {
        let mut kept = hold_still();
        kept.except(self.1);
        // SAFETY: dropped once, here. Under the lock: a child must not unmap what is mapped there next.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}
