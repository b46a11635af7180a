//! Sleeping on a shared word. Spurious returns are part of the contract: callers look again.

use crate::sync::AtomicU32;
use crate::sys::task;
use rustix::io::Errno;
use rustix::thread::ClockId;
use rustix::thread::futex::{self, Flags, Timespec};
use std::time::Duration;

/// Sleeps while `word` is `expected`, at most `timeout`.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    // Not PRIVATE: the word is shared between address spaces. EAGAIN, EINTR and ETIMEDOUT all mean "look again".
    let _ = futex::wait(word, Flags::empty(), expected, Some(&timespec(timeout)));
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// Sleeps while every word is as expected, at most `timeout`. False, without having slept, if they can't all be watched: there
/// are more than 128, or the kernel (before 5.16) or a filter of system calls knows only how to watch one.
#[must_use]
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], timeout: Duration) -> bool {
    if let [(word, expected)] = words {
        wait(word, *expected, timeout);
        return true;
    }
    let watch = |(word, expected): &(&AtomicU32, u32)| {
        let mut watched = futex::Wait::new();
        watched.val = u64::from(*expected);
        watched.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
        watched.flags = futex::WaitFlags::SIZE_U32;
        watched
    };
    let all: Vec<futex::Wait> = words.iter().map(watch).collect();
    // Unlike the other form, it takes a time, and not a length of time.
    let until = timespec(task::clock().saturating_add(timeout));
    let result = futex::waitv(&all, futex::WaitvFlags::empty(), Some(&until), ClockId::Monotonic);
    matches!(result, Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT))
}

/// Wakes every sleeper on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX.unsigned_abs());
}
