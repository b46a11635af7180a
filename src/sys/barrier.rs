//! The asymmetric fence: the rare side pays a system call so that the frequent side pays nothing.
//!
//! `SYNC(asymmetric)`: a frequent side that stores X and then loads Y with only a compiler fence between them, and a rare
//! side that stores Y, calls [`heavy`] and then loads X: at least one of the two sees the other's store. membarrier(2)
//! with `GLOBAL_EXPEDITED` gives this across processes, for every process that has registered.

use crate::sync::{AtomicU32, Ordering, fence};
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

const UNKNOWN: u32 = 0;
const YES: u32 = 1;
const NO: u32 = 2;

static SUPPORT: AtomicU32 = AtomicU32::new(UNKNOWN);

/// Registers this process for [`heavy`] of others, once; false where the kernel or a seccomp filter refuses it, or
/// `IPC_BUFFER_NO_MEMBARRIER` is set in the environment, which is for tests.
pub(crate) fn register() -> bool {
    match SUPPORT.load(Ordering::Relaxed) {
        YES => return true,
        NO => return false,
        _ => {}
    }
    let wanted = MembarrierQuery::GLOBAL_EXPEDITED | MembarrierQuery::REGISTER_GLOBAL_EXPEDITED;
    let yes = std::env::var_os("IPC_BUFFER_NO_MEMBARRIER").is_none()
        && membarrier_query().contains(wanted)
        && membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok();
    SUPPORT.store(if yes { YES } else { NO }, Ordering::Relaxed);
    yes
}

/// A full fence on this thread and on every running thread of every registered process. False if it was one on this thread
/// only, because the system refuses more: then the frequent sides must fence for themselves.
#[must_use]
pub(crate) fn heavy() -> bool {
    fence(Ordering::SeqCst);
    if SUPPORT.load(Ordering::Relaxed) != YES {
        return false;
    }
    let done = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    if !done {
        // A filter came after the registration. Others still reach this process; it can't reach them any more.
        SUPPORT.store(NO, Ordering::Relaxed);
    }
    fence(Ordering::SeqCst);
    done
}

/// A forked child starts unregistered.
pub(crate) fn forget() {
    SUPPORT.store(UNKNOWN, Ordering::Relaxed);
}
