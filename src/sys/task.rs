//! Who we are, where we run, and what nobody else has.

#![allow(unsafe_code)]

use std::time::Duration;

/// The user this process acts as.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Eight bytes nobody else has.
pub(crate) fn nonce() -> u64 {
    let mut bytes = [0_u8; 8];
    let random = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK).is_ok();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clock = u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id());
    // Only "told apart" is asked of it: without entropy, time and process id do.
    (if random { u64::from_ne_bytes(bytes) } else { clock }) | 1
}

/// The kernel's id of this thread, for people.
pub(crate) fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_pid().unsigned_abs()
}

/// Runs `start`, which starts a thread, with all signals blocked, which that thread inherits.
#[cfg(feature = "async")]
pub(crate) fn without_signals<R>(start: impl FnOnce() -> R) -> R {
    /// Puts the mask back, also if `start` panics.
    struct Before(libc::sigset_t);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: a mask that this thread has had before.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: a set of signals is plain integers; all zeroes is a valid value.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid, and written.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both sets are valid; the second is written.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    let _before = Before(before);
    start()
}

/// The least memory that a control group of this process may have, if any is limited and this can be read.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        // Version 2 has one hierarchy, version 1 one for each controller.
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let read = |group: &std::path::Path| {
            let text = std::fs::read_to_string(format!("{root}{}/{file}", group.display())).ok()?;
            text.trim().parse::<u64>().ok()
        };
        // Those around it limit it, too.
        std::path::Path::new(group).ancestors().filter_map(read).min()
    });
    // Version 1 says "none" by a number that nobody has.
    limits.min().filter(|limit| *limit < 1 << 60)
}

/// Cores that are online, whether this thread may run on them or not: the other side may.
pub(crate) fn cores() -> u32 {
    // SAFETY: sysconf reads a number.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(online).unwrap_or(1).max(1)
}

/// What the monotonic clock shows.
pub(crate) fn clock() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// What the monotonic clock showed at the last tick of the kernel's, up to 10 ms ago. Some 5 ns: no counter is read.
pub(crate) fn coarse_clock() -> Duration {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time to where it may.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// How long it is until the monotonic clock shows the next multiple of `period`, which is not zero.
pub(crate) fn until_multiple(period: Duration) -> Duration {
    let part_ns = clock().as_nanos() % period.as_nanos();
    period - Duration::from_nanos(u64::try_from(part_ns).unwrap_or(0))
}
