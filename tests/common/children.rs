//! Children forked off a process with one thread and no buffer: how they end, what tells them to go on, and memory that outlives them.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(clippy::multiple_unsafe_ops_per_block)]
#![allow(unsafe_code)] // fork, _exit, waitpid, mmap

use crate::common::Name;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

#[derive(PartialEq, Eq, Debug, Clone, Copy)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
    Stopped,
}

pub const KILLED: Ended = Ended::Signal(libc::SIGKILL);

pub fn quit(code: i32) -> ! {
    // SAFETY: ends the process, without destructors.
    unsafe { libc::_exit(code) }
}

/// Forks, and waits for the child, which does `work` and exits with what that says. Nothing hangs for longer than `limit_s`.
pub fn in_child(limit_s: u32, work: impl FnOnce() -> i32) -> Ended {
    ended(child(limit_s, work))
}

/// Forks a child that does `work` and exits with what that says.
pub fn child(limit_s: u32, work: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the parent has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        crate::common::limits::alarm(limit_s);
        // SAFETY: an attribute of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        std::panic::set_hook(Box::new(|info| {
            let at = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let said = info.payload().downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| info.payload().downcast_ref::<&str>().copied()).unwrap_or_default();
            eprintln!("{}process {}: {at}: {said}", part(), std::process::id());
            quit(101)
        }));
        quit(work());
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    pid
}

/// As [`in_child`], with a name of its own, whose segment must be gone in the end.
pub fn in_segment(tag: &str, limit_s: u32, work: impl FnOnce(&Name) -> i32) -> Ended {
    let name = Name::new(tag);
    in_child(limit_s, || {
        let said = work(&name);
        assert!(!name.exists(), "the segment is left behind");
        said
    })
}

/// Processes that work on cases at once.
const WORKERS: usize = 8;
/// More cases than any one calls for.
const MOST_CASES: usize = 1 << 17;

/// What the workers share with who started them.
struct Board {
    next: AtomicUsize,
    /// A signal, a million and more, or what it said.
    ends: [AtomicU32; MOST_CASES],
}

const SIGNAL: i32 = 1_000_000;

/// Runs each of the cases, some at a time, by `run`, which forks what it needs; how each ended. None of them stops.
pub fn each<T>(cases: &[T], run: impl Fn(&T) -> Ended) -> Vec<Ended> {
    assert!(cases.len() <= MOST_CASES);
    // SAFETY: atomics, for which zeroes are valid.
    let board: &Board = unsafe { shared() };
    let work = || {
        loop {
            let number = board.next.fetch_add(1, SeqCst);
            let Some(case) = cases.get(number) else { return 0 };
            let code = match run(case) {
                Ended::Exit(code) => code,
                Ended::Signal(signal) => SIGNAL + signal,
                Ended::Stopped => SIGNAL + libc::SIGSTOP,
            };
            board.ends[number].store(code.cast_unsigned(), SeqCst);
        }
    };
    let workers: Vec<_> = (0..WORKERS).map(|_| child(24 * 3600, work)).collect();
    workers.into_iter().for_each(|worker| assert_eq!(ended(worker), Ended::Exit(0), "a worker"));
    let code = |number: usize| board.ends[number].load(SeqCst).cast_signed();
    let end = |code| if code >= SIGNAL { Ended::Signal(code - SIGNAL) } else { Ended::Exit(code) };
    (0..cases.len()).map(|number| end(code(number))).collect()
}

/// What this process and those it forks are about, for what they say when they panic.
static PART: Mutex<String> = Mutex::new(String::new());

pub fn set_part(part: &str) {
    *PART.lock().unwrap() = format!("{part}: ");
}

fn part() -> String {
    PART.lock().map(|part| part.clone()).unwrap_or_default()
}

/// Waits until a child ends or stops.
pub fn ended(pid: libc::pid_t) -> Ended {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
    if libc::WIFEXITED(status) {
        Ended::Exit(libc::WEXITSTATUS(status))
    } else if libc::WIFSTOPPED(status) {
        Ended::Stopped
    } else {
        Ended::Signal(libc::WTERMSIG(status))
    }
}

/// Signals a child that was not waited for since it stopped, or at all.
pub fn signal(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a child of this process, whose id nobody else has before it was waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Memory that the children share with this process: zeroes, and mapped as long as the process lives.
///
/// # Safety
/// All zeroes is a `T`, and only atomics change.
pub unsafe fn shared<T>() -> &'static T {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping, checked below.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped for good, and zeroed, which the caller says is a `T`.
    unsafe { &*at.cast::<T>() }
}

/// Whether anybody has the control lock of the segment `name`.
pub fn is_locked(name: &str) -> bool {
    is_taken(name, 0)
}

/// Whether anybody is reaping in the segment `name`.
pub fn is_reaped(name: &str) -> bool {
    is_taken(name, 1)
}

/// Whether anybody searches for memory in the segment `name`.
pub fn is_searched(name: &str) -> bool {
    is_taken(name, 3)
}

fn is_taken(name: &str, byte: libc::off_t) -> bool {
    let file = std::fs::File::options().read(true).write(true).open(format!("/dev/shm/{name}")).unwrap();
    // SAFETY: plain integers; zeroes are valid.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    (lock.l_start, lock.l_len) = (byte, 1);
    // SAFETY: an open descriptor and a lock that lives as long as the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }, 0);
    i32::from(lock.l_type) != libc::F_UNLCK
}

/// Says "go on" from one process to another: made before the fork, used by both.
pub struct Baton {
    from: PipeReader,
    to: PipeWriter,
}

impl Baton {
    pub fn new() -> Self {
        let (from, to) = std::io::pipe().unwrap();
        Self { from, to }
    }

    pub fn pass(&self) {
        (&self.to).write_all(&[1]).unwrap();
    }

    pub fn wait(&self) {
        (&self.from).read_exact(&mut [0]).unwrap();
    }
}
