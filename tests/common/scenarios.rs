//! Tests without a harness: each scenario runs in a process of its own, forked off a process with one thread and no buffer, and
//! whatever it starts is gone when it has ended. Arguments choose scenarios by a part of their names; `--list` names them.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(unsafe_code)] // fork, _exit, kill and waitpid

use crate::common::{Name, limits};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::time::{Duration, Instant};

pub type Scenario = fn(&Name);

/// Runs the scenarios that were asked for, and exits with 0 if all went well.
pub fn main(tag: &str, scenarios: &[(&str, Scenario)]) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios.iter().for_each(|(name, _)| println!("{name}: test"));
        std::process::exit(0);
    }
    // Whose parent has died is ours from then on.
    // SAFETY: an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (test, scenario) in scenarios.iter().filter(|(test, _)| chosen(test)) {
        // Here, so that a scenario that is killed leaves nothing behind either.
        let name = Name::new(&format!("{tag}-{}", passed + failed));
        let Some(child) = fork() else {
            // A group of its own, by which all that it starts is found; and it does not outlive this one.
            // SAFETY: attributes of this process.
            unsafe { libc::setpgid(0, 0) };
            // SAFETY: as above.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            scenario(&name);
            end()
        };
        let group = child.0;
        let ended = child.wait();
        let left = sweep(group);
        let ok = ended == Ended::Exit(0) && !left && !name.exists();
        println!("test {test} ... {}", if ok { "ok" } else { "FAILED" });
        if !ok {
            println!("    {ended:?}, processes left behind: {left}, segment left behind: {}", name.exists());
        }
        (passed, failed) = (passed + u32::from(ok), failed + u32::from(!ok));
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0))
}

/// Ends what a scenario has left, and says whether that was more than processes that were about to end anyway.
fn sweep(group: libc::pid_t) -> bool {
    let start = Instant::now();
    let mut left = false;
    loop {
        // SAFETY: the scenario's children are ours by now.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 if start.elapsed() > Duration::from_secs(2) => {
                left = true;
                // SAFETY: the scenario's own group; nobody else is in it.
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
            0 => {}
            -1 => return left,
            _ => continue,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A forked child, killed and waited for when dropped.
pub struct Child(pub libc::pid_t);

#[derive(PartialEq, Eq, Debug, Clone, Copy)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

/// Forks; `None` in the child, which must go through [`end`], or panic. Each process has three minutes, also where several suites share two cores.
pub fn fork() -> Option<Child> {
    // SAFETY: every child here runs on what POSIX forbids after fork in a process with threads and glibc allows: its own
    // locks are safe across fork. That the library's are, too, is what is tested.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // With a handler, since the first process of a pid namespace ignores what it has none for.
            // SAFETY: the handler only exits.
            unsafe { libc::signal(libc::SIGALRM, too_late as extern "C" fn(libc::c_int) as libc::sighandler_t) };
            limits::alarm(180);
            std::panic::set_hook(Box::new(|info| {
                eprintln!("process {}: {info}", std::process::id());
                // The stack above belongs to the parent's scenario: it must not unwind into it.
                quit(101)
            }));
            None
        }
        pid => Some(Child(pid)),
    }
}

extern "C" fn too_late(_: libc::c_int) {
    quit(142)
}

pub fn quit(code: i32) -> ! {
    // SAFETY: ends the process, without destructors of the parent's statics.
    unsafe { libc::_exit(code) }
}

/// The end of a child that did what it should.
pub fn end() -> ! {
    quit(0)
}

/// Stays as it is until it is killed.
pub fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

pub fn end_after(work: impl FnOnce()) -> ! {
    work();
    end()
}

impl Child {
    pub fn wait(self) -> Ended {
        let mut status = 0;
        loop {
            // SAFETY: waits for a child of this process; it is waited for once, as `self` is forgotten.
            let pid = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
            if pid == self.0 {
                std::mem::forget(self);
                break;
            }
            assert_eq!(std::io::Error::last_os_error().kind(), std::io::ErrorKind::Interrupted);
        }
        if libc::WIFEXITED(status) {
            Ended::Exit(libc::WEXITSTATUS(status))
        } else {
            Ended::Signal(libc::WTERMSIG(status))
        }
    }

    #[track_caller]
    pub fn succeeds(self) {
        assert_eq!(self.wait(), Ended::Exit(0));
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: signals a child of this process that was not waited for yet.
        unsafe { libc::kill(self.0, signal) };
    }

    pub fn kill(self) {
        self.signal(libc::SIGKILL);
        assert_eq!(self.wait(), Ended::Signal(libc::SIGKILL));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        // SAFETY: as in `wait`.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Waits for a byte; false if nobody can send one any more.
pub fn hear(from: &mut PipeReader) -> bool {
    from.read(&mut [0]).unwrap() == 1
}

pub fn tell(to: &mut PipeWriter) {
    to.write_all(&[1]).unwrap();
}
