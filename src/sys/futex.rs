//! Sleeping on a shared word. Spurious returns are part of the contract: callers look again.

use crate::sync::AtomicU32;
#[cfg(feature = "async")]
use crate::sys::task;
#[cfg(feature = "async")]
use rustix::io::Errno;
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

/// Sleeps while every word is as expected, at most `timeout`.
///
/// At most 128 words, and where the kernel (before 5.16) or a filter of system calls knows no better, one: changes of those behind
/// are not noticed.
#[cfg(feature = "async")]
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], timeout: Duration) {
    use rustix::thread::{ClockId, futex as sys};
    let &[(first, expected), _, ..] = words else {
        return words.iter().for_each(|(word, expected)| wait(word, *expected, timeout));
    };
    let all: Vec<sys::Wait> = (words.iter().take(128))
        .map(|(word, expected)| {
            let mut one = sys::Wait::new();
            one.val = u64::from(*expected);
            one.uaddr = sys::WaitPtr::new(word.as_ptr().cast());
            one.flags = sys::WaitFlags::SIZE_U32;
            one
        })
        .collect();
    // Unlike the other form, it takes a time, and not a length of time.
    let until = timespec(task::clock().saturating_add(timeout));
    let result = sys::waitv(&all, sys::WaitvFlags::empty(), Some(&until), ClockId::Monotonic);
    if !matches!(result, Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT)) {
        wait(first, expected, timeout);
    }
}

/// Wakes every sleeper on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, Flags::empty(), i32::MAX.unsigned_abs());
}
