//! Children made by fork, that are killed when the test is done with them.
#![allow(unsafe_code)]

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use std::io::{Read, Write};

/// A forked child; killed (by its id) and waited for when dropped.
pub struct Forked(Pid);

impl Forked {
    /// Runs `part` in a forked child that then stays as it is; returns when `part` is through.
    pub fn after(part: impl FnOnce()) -> Self {
        let (mut ready, mut says) = std::io::pipe().expect("pipe");
        // SAFETY: the child runs what the test says, and never returns from here.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            die_with_parent();
            part();
            says.write_all(b"x").expect("tell the parent");
            loop {
                std::thread::park();
            }
        }
        drop(says);
        let child = Self(Pid::from_raw(pid).expect("fork"));
        ready.read_exact(&mut [0]).expect("the child got through its part");
        child
    }

    /// Runs `part` in a forked child, which dies at its end, if not before; waits for that.
    pub fn killed_after(part: impl FnOnce()) {
        // SAFETY: the child runs what the test says, and never returns from here.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            die_with_parent();
            part();
            die();
        }
        let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// Has this process killed when the thread ends that has started it.
pub fn die_with_parent() {
    // SAFETY: an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// As if killed from outside, at this very place.
pub fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    unreachable!("SIGKILL leaves nobody here")
}
