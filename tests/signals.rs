//! Signals: periodic ones undo nothing, and those of the application reach its own threads.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // setitimer, sigaction

mod common;

use common::{Name, role, start, start_with, watchdog};
use ipc_buffer::Buffer;

extern "C" fn nothing(_: libc::c_int) {}

/// A profiler's timer, each millisecond, while records of many MiB are made.
#[test]
fn a_timer_undoes_nothing() {
    let _dog = watchdog();
    if let Some((_, name)) = role() {
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        assert_eq!(unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) }, 0);
        let step = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        let timer = libc::itimerval { it_interval: step, it_value: step };
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) }, 0);
        let buffer = Buffer::options().capacity(256 << 20).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        for _ in 0..3 {
            drop(ctx.slice_zeroed::<u8>(128 << 20).unwrap());
            buffer.trim().unwrap();
        }
        return;
    }
    let name = Name::new("timer");
    start("a_timer_undoes_nothing", "runs", &name).success();
    start_with("a_timer_undoes_nothing", "runs", &name, &[("IPC_BUFFER_NO_POPULATE", "1")]).success();
}

#[cfg(feature = "async")]
#[test]
fn the_waiter_takes_no_signals() {
    use futures_util::FutureExt;
    use std::task::{Context, Waker};
    let _dog = watchdog();
    let name = Name::new("mask");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.value_consumer::<u64>(1).unwrap();
    let tx = ctx.value_producer::<u64>(1).unwrap();
    let mut received = Box::pin(rx.recv_async());
    // It looks a few times before it has itself woken.
    (0..1000).for_each(|_| assert!(received.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending()));
    let find = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let mut statuses = tasks.filter_map(|task| std::fs::read_to_string(task.join("status")).ok());
        statuses.find(|status| status.starts_with("Name:\tipc-buffer-wait"))
    };
    // It names itself when it has started.
    let waiter = loop {
        match find() {
            Some(waiter) => break waiter,
            None => std::thread::yield_now(),
        }
    };
    let blocked = waiter.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    for signal in
        [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGALRM, libc::SIGPROF, libc::SIGCHLD, libc::SIGUSR1]
    {
        assert!(blocked & 1 << (signal - 1) != 0, "signal {signal}, {blocked:x}");
    }
    // And this thread takes what it took before.
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    assert_eq!(u64::from_str_radix(own, 16).unwrap(), 0);
    drop((received, tx));
}
