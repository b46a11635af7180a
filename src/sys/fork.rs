//! Hooks around fork(2). What a child must not keep of its parent is listed in `shm`.
//!
//! Covers every `fork` of the C library. A child made by a bare `clone` system call is not seen; one made by
//! `std::process::Command` either runs these hooks or execs at once, and all our descriptors are close-on-exec.

#![allow(unsafe_code)]

use crate::sync::{AtomicBool, AtomicPtr, Ordering};
use std::ptr;

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
