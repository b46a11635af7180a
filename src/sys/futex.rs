//! Sleeping on a shared word. Spurious returns are part of the contract: callers look again.

use crate::sync::AtomicU32;
use rustix::thread::futex::{self, Flags, Timespec};
use std::time::Duration;

/// Sleeps while `word` is `expected`, at most `timeout`.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // Not PRIVATE: the word is shared between address spaces. EAGAIN, EINTR and ETIMEDOUT all mean "look again".
    let _ = futex::wait(word, Flags::empty(), expected, Some(&timeout));
}

/// Wakes every sleeper on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX.unsigned_abs());
}
