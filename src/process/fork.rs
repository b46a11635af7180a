//! A fork, as this process sees it from both sides; [`attachment`](super::attachment) says what becomes of what a child inherits.

#![allow(unsafe_code)]

use super::attachment::Still;
use super::local;
#[cfg(feature = "async")]
use super::reactor;
use crate::sys::shm::{self, Kept};
use crate::sys::{barrier, fork};
use parking_lot::MutexGuard;
use std::cell::Cell;
use std::mem::ManuallyDrop;

/// What nobody changes while a thread forks.
type Held = (Still, MutexGuard<'static, Kept>);

thread_local! {
    /// Held across a fork, so that the child finds lists that nobody was changing. Without a destructor, so that it is there
    /// whenever somebody forks, even from another thread-local's destructor.
    static ACROSS_FORK: Cell<Option<ManuallyDrop<Held>>> = const { Cell::new(None) };
}

const _: () = assert!(!std::mem::needs_drop::<Cell<Option<ManuallyDrop<Held>>>>());

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

/// False if there is no memory for them.
pub(super) fn install_hooks() -> bool {
    fork::install(before_fork, after_fork_in_parent, after_fork_in_child)
}

// Each may be called twice (see `fork::install`).

extern "C" fn before_fork() {
    let held = ACROSS_FORK.take();
    ACROSS_FORK.set(held.or_else(|| Some(ManuallyDrop::new((Still::hold(), shm::kept())))));
}

extern "C" fn after_fork_in_parent() {
    drop(ACROSS_FORK.take().map(ManuallyDrop::into_inner));
}

extern "C" fn after_fork_in_child() {
    barrier::forget();
    let are_counted = local::abandon_all();
    let Some(mut held) = ACROSS_FORK.take() else { return };
    let (still, kept) = &mut *held;
    shm::leave();
    #[cfg(feature = "async")]
    reactor::leave();
    let inherited = still.abandon(kept, are_counted);
    kept.let_go();
    inherited.list();
}
