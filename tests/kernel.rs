//! What is taken for granted of the kernel: whose lease stands, and when it falls, whatever threads, children, descriptors,
//! namespaces and process ids do meanwhile.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // system calls that no safe wrapper has

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/scenarios.rs"]
mod scenarios;
#[path = "common/work.rs"]
mod work;

use common::{Name, all_free, sound};
use ipc_buffer::{AttachError, Buffer, Channel, ChannelOptions, Consumer, Reaped, RecvError, Select, ThreadContext};
use scenarios::{Child, Ended, Scenario, end, fork, hear, quit, stay, tell};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::mem::forget;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("the_lease_goes_with_the_last_thread", the_lease_goes_with_the_last_thread),
    ("a_zombie_is_dead", a_zombie_is_dead),
    ("stopped_is_alive_and_killed_while_stopped_is_dead", stopped_is_alive_and_killed_while_stopped_is_dead),
    ("exec_ends_a_participant", exec_ends_a_participant),
    ("a_child_that_nobody_saw_keeps_its_parents_lease", a_child_that_nobody_saw_keeps_its_parents_lease),
    ("a_child_that_nobody_saw_and_that_execs_does_not", a_child_that_nobody_saw_and_that_execs_does_not),
    ("no_descriptor_carries_the_lease", no_descriptor_carries_the_lease),
    ("the_file_opened_and_closed_changes_nothing", the_file_opened_and_closed_changes_nothing),
    ("a_file_opened_through_proc_keeps_nothing", a_file_opened_through_proc_keeps_nothing),
    ("who_cannot_tell_takes_it_for_alive", who_cannot_tell_takes_it_for_alive),
    ("a_peer_in_another_pid_namespace", a_peer_in_another_pid_namespace),
    ("two_with_the_same_pid_at_once", two_with_the_same_pid_at_once),
    ("a_pid_that_is_used_again", a_pid_that_is_used_again),
    ("many_open_at_once_and_some_are_killed", many_open_at_once_and_some_are_killed),
    ("no_handlers_no_threads", no_handlers_no_threads),
    ("what_nothing_replaces_is_there", what_nothing_replaces_is_there),
    ("what_something_replaces_is_not_missed", what_something_replaces_is_not_missed),
];

fn main() {
    scenarios::main("kernel", SCENARIOS)
}

/// Records that a participant keeps, and dies with.
const KEPT: u64 = 5;

/// Who looks on.
struct Observer {
    buffer: Buffer,
    ctx: ThreadContext,
    rx: Channel<u64, Consumer>,
}

impl Observer {
    fn new(name: &Name) -> Self {
        let buffer = Buffer::open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let rx = ctx.consumer::<u64>(1).unwrap();
        Self { buffer, ctx, rx }
    }

    /// The participant counts as alive, whatever is asked.
    #[track_caller]
    fn sees_it_alive(&mut self) {
        assert!(self.rx.has_producer());
        assert_eq!(self.buffer.reap().unwrap(), Reaped::default());
        let taken = self.ctx.producer::<u64>(1).unwrap_err();
        assert!(matches!(taken, AttachError::RoleTaken { .. }), "{taken}");
        let audit = sound(&self.buffer);
        assert!(audit.owned.iter().any(|o| !o.is_self && o.is_alive && o.records == KEPT), "{audit:#?}");
    }

    /// It counts as dead; what it had sent is there, and what it had is given back.
    #[track_caller]
    fn sees_it_dead(mut self) {
        let reaped = self.buffer.reap().unwrap();
        assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, KEPT, 1));
        assert!(!self.rx.has_producer());
        assert_eq!(*self.rx.recv().unwrap(), 7);
        assert_eq!(self.rx.recv().unwrap_err(), RecvError::Disconnected);
        drop((self.rx, self.ctx));
        all_free(&self.buffer);
    }
}

/// What a participant is and has: the producer of channel 1, one record sent, some kept.
fn participate(name: &str) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<u64>(1).unwrap();
    tx.send(ctx.record(7).unwrap()).unwrap();
    let kept: Vec<_> = (0..KEPT).map(|i| ctx.record(i).unwrap()).collect();
    forget((kept, tx, ctx, buffer));
}

/// A child that participates, then does what it is told, then stays; returns when it is so far.
fn participant(name: &Name, then: impl FnOnce()) -> Child {
    let (mut up, mut ready) = pipe().unwrap();
    match fork() {
        Some(child) => {
            drop(ready);
            assert!(hear(&mut up), "{:?}", child.wait());
            child
        }
        None => {
            participate(name);
            then();
            tell(&mut ready);
            stay()
        }
    }
}

/// The state of a process as ps shows it; 'X' if there is none.
fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X')
}

/// Whether the program is there, asleep over its input: a process has its new name before the descriptors that exec closes are let go.
fn is_a_cat(pid: i32) -> bool {
    state(pid) == 'S' && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "cat\n")
}

/// Looks again until it is so; the alarm ends it if it never is.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends this thread and no other, without the C library's knowledge: what the kernel makes of it is the question.
fn end_this_thread() -> ! {
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit does not return")
}

// -------------------------------------------------------------------------------------------------- threads and states

fn the_lease_goes_with_the_last_thread(name: &Name) {
    let mut observer = Observer::new(name);
    let (mut heard, mut told) = pipe().unwrap();
    let (mut up, mut ready) = pipe().unwrap();
    let Some(child) = fork() else {
        drop(told);
        let there = name.0.clone();
        // Opened in the first thread, used in another.
        participate(name);
        std::thread::spawn(move || {
            tell(&mut ready);
            while hear(&mut heard) {
                // Threads come, have contexts, and go.
                let there = there.clone();
                let another = std::thread::spawn(move || {
                    let buffer = Buffer::open(&there).unwrap();
                    let ctx = buffer.context().unwrap();
                    let mut tx = ctx.producer_with::<u64>(2, &ChannelOptions::new().persistent(true)).unwrap();
                    tx.send(ctx.record(8).unwrap()).unwrap();
                });
                another.join().unwrap();
                tell(&mut ready);
            }
            end_this_thread()
        });
        end_this_thread()
    };
    drop(heard);
    assert!(hear(&mut up));
    wait_until(|| state(child.0) == 'Z');
    // By its state, and by most tools, it is dead: its first thread is. It works all the same.
    observer.sees_it_alive();
    tell(&mut told);
    assert!(hear(&mut up));
    assert_eq!(*observer.ctx.consumer::<u64>(2).unwrap().recv().unwrap(), 8);
    observer.sees_it_alive();
    assert!(observer.buffer.remove_channel(2).unwrap());
    // The last thread ends.
    drop(told);
    assert_eq!(child.wait(), Ended::Exit(0));
    observer.sees_it_dead();
}

fn a_zombie_is_dead(name: &Name) {
    let mut observer = Observer::new(name);
    let child = participant(name, || {});
    observer.sees_it_alive();
    child.signal(libc::SIGKILL);
    // Nobody has waited for it: its id is still its own.
    wait_until(|| state(child.0) == 'Z');
    observer.sees_it_dead();
    assert_eq!(state(child.0), 'Z');
}

fn stopped_is_alive_and_killed_while_stopped_is_dead(name: &Name) {
    let mut observer = Observer::new(name);
    let child = participant(name, || {});
    child.signal(libc::SIGSTOP);
    wait_until(|| state(child.0) == 'T');
    observer.sees_it_alive();
    child.kill();
    observer.sees_it_dead();
}

fn exec_ends_a_participant(name: &Name) {
    let mut observer = Observer::new(name);
    let (heard, told) = pipe().unwrap();
    let (goes_on, go_on) = pipe().unwrap();
    let child = participant(name, || {
        drop((told.try_clone().unwrap(), go_on.try_clone().unwrap()));
        std::thread::spawn({
            let (heard, goes_on) = (heard.as_raw_fd(), goes_on.as_raw_fd());
            move || {
                let mut goes_on = unsafe { PipeReader::from(OwnedFd::from_raw_fd(goes_on)) };
                assert!(hear(&mut goes_on));
                become_a_cat(heard)
            }
        });
    });
    observer.sees_it_alive();
    let mut go_on = go_on;
    tell(&mut go_on);
    wait_until(|| is_a_cat(child.0));
    // The process is there, with its id and its parent; what participated is not.
    observer.sees_it_dead();
    assert!(matches!(state(child.0), 'S' | 'R'));
    child.kill();
    drop((heard, told));
}

/// Becomes another program, that reads from there for ever.
fn become_a_cat(from: i32) -> ! {
    // Not a call that allocates or locks: the caller may be a child that nobody saw.
    unsafe {
        libc::dup2(from, 0);
        libc::execl(c"/bin/cat".as_ptr(), c"cat".as_ptr(), std::ptr::null::<libc::c_char>());
    }
    quit(99)
}

// --------------------------------------------------------------------------------------------- children and descriptors

/// Forks without the C library, so that nothing that was to be done at a fork is done.
fn bare_fork() -> libc::c_long {
    let flags = libc::c_long::from(libc::SIGCHLD);
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) }
}

/// A participant with a child that nobody saw, which does what it is told; and the child's id.
fn with_an_unseen_child(name: &Name, part: impl Fn()) -> (Child, i32) {
    let (mut says, mut said) = pipe().unwrap();
    let child = participant(name, || {
        let pid = bare_fork();
        if pid == 0 {
            part();
            quit(0);
        }
        said.write_all(&i32::try_from(pid).unwrap().to_ne_bytes()).unwrap();
    });
    let mut pid = [0; 4];
    says.read_exact(&mut pid).unwrap();
    (child, i32::from_ne_bytes(pid))
}

fn a_child_that_nobody_saw_keeps_its_parents_lease(name: &Name) {
    let mut observer = Observer::new(name);
    let (mut heard, told) = pipe().unwrap();
    let writes = told.as_raw_fd();
    let (child, unseen) = with_an_unseen_child(name, || {
        unsafe { libc::close(writes) };
        // Until the other side closes.
        unsafe { libc::read(heard.as_raw_fd(), [0_u8; 1].as_mut_ptr().cast(), 1) };
    });
    observer.sees_it_alive();
    // Its parent's copy of the pipe goes with the parent.
    child.kill();
    // It has the page that keeps the lease. It might act for its parent: nobody can tell.
    observer.sees_it_alive();
    assert!(matches!(state(unseen), 'S' | 'R'));
    drop(told);
    wait_until(|| matches!(state(unseen), 'Z' | 'X'));
    observer.sees_it_dead();
    assert_eq!(heard.read(&mut [0]).unwrap(), 0);
}

fn a_child_that_nobody_saw_and_that_execs_does_not(name: &Name) {
    let observer = Observer::new(name);
    let (heard, told) = pipe().unwrap();
    let writes = told.as_raw_fd();
    let (child, unseen) = with_an_unseen_child(name, || {
        unsafe { libc::close(writes) };
        become_a_cat(heard.as_raw_fd())
    });
    wait_until(|| is_a_cat(unseen));
    child.kill();
    observer.sees_it_dead();
    assert!(matches!(state(unseen), 'S' | 'R'), "and the child lives");
    drop(told);
    wait_until(|| matches!(state(unseen), 'Z' | 'X'));
}

/// The descriptors of this process that carry a lock of the kind that leases are.
fn carriers() -> Vec<i32> {
    let numbers =
        fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let carries =
        |fd: &String| fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).is_ok_and(|i| i.contains("OFDLCK"));
    numbers.filter(carries).map(|fd| fd.parse().unwrap()).collect()
}

/// So none can be handed over, taken by a debugger, or closed by accident.
fn no_descriptor_carries_the_lease(name: &Name) {
    let mut observer = Observer::new(name);
    let child = participant(name, || assert_eq!(carriers(), []));
    observer.sees_it_alive();
    child.kill();
    observer.sees_it_dead();
}

fn the_file_opened_and_closed_changes_nothing(name: &Name) {
    let mut observer = Observer::new(name);
    let there = name.path();
    let child = participant(name, || {
        // Locks of the older kind would be gone with the first of these.
        drop(File::open(&there).unwrap());
        drop(File::options().read(true).write(true).open(&there).unwrap());
        // And a mapping with its file.
        let file = File::open(&there).unwrap();
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    });
    observer.sees_it_alive();
    child.kill();
    observer.sees_it_dead();
}

fn a_file_opened_through_proc_keeps_nothing(name: &Name) {
    let mut observer = Observer::new(name);
    let child = participant(name, || {});
    // Of each descriptor the process has; among them the one that carries the lease.
    let links = fs::read_dir(format!("/proc/{}/fd", child.0)).unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let ours = links.filter(|link| fs::read_link(link).is_ok_and(|target| target.to_str() == Some(&name.path())));
    let opened: Vec<File> = ours.map(|link| File::options().read(true).write(true).open(link).unwrap()).collect();
    assert!(opened.len() >= 2, "{opened:?}");
    observer.sees_it_alive();
    child.kill();
    // The same file, opened anew: another open file, with no lease on it.
    observer.sees_it_dead();
    assert!(opened.iter().all(|file| file.metadata().is_ok()));
}

fn who_cannot_tell_takes_it_for_alive(name: &Name) {
    let observer = Observer::new(name);
    let child = participant(name, || {});
    child.kill();
    let Some(blind) = fork() else {
        forget(observer);
        // From here on, this process can't ask who holds a byte.
        sandbox::refuse(&[(libc::SYS_fcntl, Some((1, libc::F_OFD_GETLK)), libc::EPERM)]);
        let buffer = Buffer::open(name).unwrap();
        assert_eq!(buffer.reap().unwrap(), Reaped::default());
        let ctx = buffer.context().unwrap();
        assert!(matches!(ctx.producer::<u64>(1), Err(AttachError::RoleTaken { .. })));
        // It works otherwise.
        drop(ctx.record(1_u64).unwrap());
        drop(ctx);
        drop(buffer);
        end()
    };
    blind.succeeds();
    observer.sees_it_dead();
}

// --------------------------------------------------------------------------------------------------------- namespaces

/// From here on, this process's children are in a new pid namespace, whose first process is the next child.
fn leave_pid_namespace() -> Result<(), std::io::Error> {
    let tried = |flags| match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    tried(libc::CLONE_NEWPID).or_else(|_| tried(libc::CLONE_NEWUSER | libc::CLONE_NEWPID))
}

/// Someone in a pid namespace of its own.
struct Foreigner {
    /// Its parent, who is here and has nothing to do with the buffer.
    _guard: Child,
    /// Its id here.
    pid: i32,
    to: PipeWriter,
    from: PipeReader,
}

impl Foreigner {
    /// Runs `part` as the first process of a new pid namespace, which is told and heard through pipes. `None` if there can be none.
    fn start(part: impl FnOnce(PipeReader, PipeWriter)) -> Option<Self> {
        let (heard, to) = pipe().unwrap();
        let (mut from, mut ready) = pipe().unwrap();
        let (mut says, mut said) = pipe().unwrap();
        let Some(guard) = fork() else {
            drop((to, from, says));
            if let Err(error) = leave_pid_namespace() {
                println!("skipped: no pid namespace of our own: {error}");
                quit(0);
            }
            let Some(first) = fork() else {
                drop(said);
                assert_eq!(std::process::id(), 1);
                // It dies with its parent, which dies with ours.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                tell(&mut ready);
                part(heard, ready);
                end()
            };
            said.write_all(&first.0.to_ne_bytes()).unwrap();
            drop((heard, ready, said));
            first.wait();
            end()
        };
        drop((heard, ready, said));
        let mut pid = [0; 4];
        if says.read_exact(&mut pid).is_err() {
            assert_eq!(guard.wait(), Ended::Exit(0));
            return None;
        }
        assert!(hear(&mut from), "it came to life");
        Some(Self { _guard: guard, pid: i32::from_ne_bytes(pid), to, from })
    }

    fn tell(&mut self) {
        tell(&mut self.to);
    }

    #[track_caller]
    fn hear(&mut self) {
        assert!(hear(&mut self.from), "it ended too soon");
    }

    /// Kills it, and waits until it is gone.
    fn kill(mut self) {
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        assert!(!hear(&mut self.from));
        wait_until(|| matches!(state(self.pid), 'Z' | 'X'));
    }
}

fn a_peer_in_another_pid_namespace(name: &Name) {
    let mut observer = Observer::new(name);
    let there = name.0.clone();
    let foreigner = Foreigner::start(|mut heard, mut says| {
        participate(&there);
        let buffer = Buffer::open(&there).unwrap();
        let ctx = buffer.context().unwrap();
        let second = ctx.consumer::<u64>(2).unwrap();
        tell(&mut says);
        // Those outside, whose ids mean nothing here.
        assert!(hear(&mut heard));
        assert!(second.has_producer());
        assert_eq!(buffer.reap().unwrap(), Reaped::default());
        assert!(sound(&buffer).owned.iter().all(|owned| owned.is_alive));
        tell(&mut says);
        // One of them has died.
        assert!(hear(&mut heard));
        assert!(!second.has_producer());
        let reaped = buffer.reap().unwrap();
        assert!(reaped.processes <= 1 && sound(&buffer).owned.iter().all(|owned| owned.is_alive), "{reaped:?}");
        tell(&mut says);
        stay()
    });
    let Some(mut foreigner) = foreigner else {
        drop(observer);
        return;
    };
    foreigner.hear();
    observer.sees_it_alive();
    let info = observer.buffer.channels().unwrap().into_iter().find(|info| info.id == 1).unwrap();
    assert_eq!(info.producer, Some(1), "its id, where it is");
    let (mut up, mut ready) = pipe().unwrap();
    let Some(neighbour) = fork() else {
        forget(observer);
        let buffer = Buffer::open(name).unwrap();
        let ctx = buffer.context().unwrap();
        forget((ctx.producer::<u64>(2).unwrap(), ctx.record(1_u64), ctx, buffer));
        tell(&mut ready);
        stay()
    };
    assert!(hear(&mut up));
    foreigner.tell();
    foreigner.hear();
    observer.sees_it_alive();
    neighbour.kill();
    foreigner.tell();
    foreigner.hear();
    observer.sees_it_alive();
    foreigner.kill();
    observer.rx.has_producer();
    drop(observer.rx);
    while observer.buffer.reap().unwrap().processes > 0 {}
    drop(observer.ctx);
    all_free(&observer.buffer);
}

/// Two that both are process 1, each in its own namespace: one dies, and the other one's things stay its own.
fn two_with_the_same_pid_at_once(name: &Name) {
    let mut observer = Observer::new(name);
    let there = name.0.clone();
    let first = Foreigner::start(|_, mut says| {
        participate(&there);
        tell(&mut says);
        stay()
    });
    let Some(mut first) = first else { return drop(observer) };
    let second = Foreigner::start(|_, mut says| {
        let buffer = Buffer::open(&there).unwrap();
        let ctx = buffer.context().unwrap();
        let kept: Vec<_> = (0..3).map(|i| ctx.record(i).unwrap()).collect();
        tell(&mut says);
        forget((kept, ctx, buffer));
        stay()
    });
    let mut second = second.unwrap();
    first.hear();
    second.hear();
    observer.sees_it_alive();
    let owned = |buffer: &Buffer| {
        let others = sound(buffer).owned.into_iter().filter(|owned| !owned.is_self);
        let mut facts: Vec<_> = others.map(|owned| (owned.pid, owned.records, owned.is_alive)).collect();
        facts.sort_unstable();
        facts
    };
    assert_eq!(owned(&observer.buffer), [(1, 3, true), (1, KEPT, true)]);
    first.kill();
    let reaped = observer.buffer.reap().unwrap();
    assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, KEPT, 1));
    assert_eq!(owned(&observer.buffer), [(1, 3, true)]);
    second.kill();
    assert_eq!(observer.buffer.reap().unwrap().records, 3);
    drop((observer.rx, observer.ctx));
    all_free(&observer.buffer);
}

/// Makes `pid` the next one of this namespace. Needs a right that the first process of one of our own has.
fn choose_next(pid: i32) -> Result<(), std::io::Error> {
    fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
}

fn a_pid_that_is_used_again(name: &Name) {
    const PID: i32 = 77;
    let observer = Observer::new(name);
    let there = name.0.clone();
    let foreigner = Foreigner::start(|mut heard, mut says| {
        if let Err(error) = choose_next(PID) {
            println!("skipped: process ids can't be chosen: {error}");
            quit(0);
        }
        let (mut up, mut ready) = pipe().unwrap();
        let Some(victim) = fork() else {
            participate(&there);
            tell(&mut ready);
            stay()
        };
        assert!(hear(&mut up));
        assert_eq!(victim.0, PID);
        tell(&mut says);
        assert!(hear(&mut heard));
        victim.kill();
        // The same id at once, for one who is not in the buffer yet, and comes in later.
        choose_next(PID).unwrap();
        let (mut goes_on, mut go_on) = pipe().unwrap();
        let Some(next) = fork() else {
            assert!(hear(&mut goes_on));
            let buffer = Buffer::open(&there).unwrap();
            let ctx = buffer.context().unwrap();
            forget(((0..3).map(|i| ctx.record(i).unwrap()).collect::<Vec<_>>(), ctx, buffer));
            tell(&mut ready);
            stay()
        };
        assert_eq!(next.0, PID);
        tell(&mut says);
        assert!(hear(&mut heard));
        tell(&mut go_on);
        assert!(hear(&mut up));
        tell(&mut says);
        assert!(!hear(&mut heard));
        next.kill();
    });
    let Some(mut foreigner) = foreigner else { return drop(observer) };
    if !hear(&mut foreigner.from) {
        return drop(observer);
    }
    let mut observer = observer;
    observer.sees_it_alive();
    foreigner.tell();
    foreigner.hear();
    // Process 77 is alive, and the participant that was process 77 is dead.
    assert!(!observer.rx.has_producer());
    let dead = observer.ctx.producer::<u64>(1);
    assert!(dead.is_ok(), "{dead:?}");
    drop(dead);
    foreigner.tell();
    foreigner.hear();
    while observer.buffer.reap().unwrap().processes > 0 {}
    let owned = sound(&observer.buffer).owned.into_iter().filter(|owned| !owned.is_self);
    let owned: Vec<_> = owned.map(|owned| (owned.pid, owned.records, owned.is_alive)).collect();
    assert_eq!(owned, [(PID.unsigned_abs(), 3, true)]);
    drop(foreigner);
    wait_until(|| observer.buffer.reap().unwrap().processes > 0);
    drop((observer.rx, observer.ctx));
    all_free(&observer.buffer);
}

// ------------------------------------------------------------------------------------------------------------ creation

/// Rounds of many who open a buffer that is not there, all at once, some of whom are killed while they do.
fn many_open_at_once_and_some_are_killed(name: &Name) {
    const OPENERS: u64 = 64;
    const ROUNDS: u64 = 10;
    let mut rng = work::Rng::new(u64::from(std::process::id()));
    let mut on_their_way = 0;
    for round in 0..ROUNDS {
        let (mut go, going) = pipe().unwrap();
        let (mut up, ready) = pipe().unwrap();
        let (mut all, done) = pipe().unwrap();
        let mut children: Vec<Child> = Vec::new();
        for number in 0..OPENERS {
            let Some(child) = fork() else {
                children.into_iter().for_each(forget);
                drop((going, up));
                let (mut ready, mut done) = (ready, done);
                tell(&mut ready);
                assert!(!hear(&mut go));
                let buffer = common::open_patiently(&Buffer::options().capacity(4 << 20), name);
                let ctx = buffer.context().unwrap();
                let id = number.cast_signed();
                let is_busy = |error: &AttachError| matches!(error, AttachError::Busy { .. });
                let options = ChannelOptions::new().capacity(4);
                let mut tx = common::patiently(is_busy, || ctx.producer_with::<u64>(id, &options));
                tx.send(ctx.record(number).unwrap()).unwrap();
                let kept: Vec<_> = (0..=number).map(|i| ctx.record(i).unwrap()).collect();
                done.write_all(&[u8::try_from(number).unwrap()]).unwrap();
                forget((kept, tx, ctx, buffer));
                stay()
            };
            children.push(child);
        }
        drop((ready, done));
        (0..OPENERS).for_each(|_| assert!(hear(&mut up)));
        drop((go, going));
        // Every second one is killed, at any moment of the few milliseconds that it takes.
        let most_us = u64::try_from(common::limits::scaled(Duration::from_millis(6)).as_micros()).unwrap();
        let (start, mut moments): (_, Vec<u64>) =
            (Instant::now(), (0..OPENERS / 2).map(|_| rng.below(most_us)).collect());
        moments.sort_unstable();
        let mut alive: Vec<(u64, Child)> = (0..).zip(children).collect();
        let killed: Vec<Child> = alive.extract_if(.., |(number, _)| *number % 2 == 1).map(|(_, child)| child).collect();
        for (child, moment) in killed.iter().zip(moments) {
            std::thread::sleep(Duration::from_micros(moment).saturating_sub(start.elapsed()));
            child.signal(libc::SIGKILL);
        }
        drop(killed);
        // The others get through, each with all that it asked for.
        let (mut got_through, mut number) = (HashSet::new(), [0]);
        while alive.iter().any(|(number, _)| !got_through.contains(number)) {
            all.read_exact(&mut number).unwrap();
            got_through.insert(u64::from(number[0]));
        }
        let buffer = Buffer::options().must_exist(true).open(name).unwrap();
        while buffer.reap().unwrap().processes > 0 {}
        let audit = sound(&buffer);
        let mut owned: Vec<_> = audit.owned.iter().map(|owned| (owned.pid, owned.records)).collect();
        owned.sort_unstable();
        let mut expected: Vec<_> = alive.iter().map(|(number, child)| (child.0.unsigned_abs(), number + 1)).collect();
        expected.sort_unstable();
        assert_eq!(owned, expected, "round {round}: all in one buffer, each with its own");
        on_their_way += OPENERS - got_through.len() as u64;
        let ctx = buffer.context().unwrap();
        for (number, child) in alive {
            let mut rx = ctx.consumer::<u64>(number.cast_signed()).unwrap();
            assert_eq!(*rx.recv().unwrap(), number);
            child.kill();
            assert!(!rx.has_producer());
        }
        drop(ctx);
        while buffer.reap().unwrap().processes > 0 {}
        all_free(&buffer);
        drop(buffer);
        assert!(!name.exists(), "round {round}");
    }
    println!("{on_their_way} of {} were killed on their way", ROUNDS * OPENERS / 2);
}

// ----------------------------------------------------------------------------------------------------- nothing else is

fn no_handlers_no_threads(name: &Name) {
    let facts = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let kept = |line: &&str| ["Sig", "Shd", "Threads"].iter().any(|start| line.starts_with(start));
        status.lines().filter(kept).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = facts();
    assert!(before.len() >= 5, "{before:?}");
    let mut observer = Observer::new(name);
    let child = participant(name, || {});
    assert_eq!(*observer.rx.recv().unwrap(), 7);
    assert!(observer.rx.recv_timeout(Duration::from_millis(1)).is_err());
    child.kill();
    assert_eq!(observer.rx.recv().unwrap_err(), RecvError::Disconnected);
    assert_eq!(facts(), before, "no handler, no mask, no thread, neither while it is in use...");
    drop(observer);
    assert_eq!(facts(), before, "...nor afterwards");
}

// ---------------------------------------------------------------------------------------------------- what a kernel has

/// Locks of open file descriptions, and memory that is reserved behind a file and returned: without them there is no buffer. What
/// there is a fallback for is said, for whoever reads the run on an old kernel.
fn what_nothing_replaces_is_there(name: &Name) {
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(name.path()).unwrap();
    let (one, other) = (open(), open());
    let lock = |file: &File, command| {
        let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
        (lock.l_type, lock.l_len) = (libc::F_WRLCK.try_into().unwrap(), 1);
        let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0;
        done.then_some(i32::from(lock.l_type))
    };
    assert_eq!(lock(&one, libc::F_OFD_SETLK), Some(libc::F_WRLCK));
    assert_eq!(lock(&other, libc::F_OFD_SETLK), None, "two descriptions of one process exclude each other");
    assert_eq!(lock(&other, libc::F_OFD_GETLK), Some(libc::F_WRLCK));
    let duplicate = one.try_clone().unwrap();
    drop(one);
    assert_eq!(lock(&other, libc::F_OFD_GETLK), Some(libc::F_WRLCK), "a descriptor is left");
    drop(duplicate);
    assert_eq!(lock(&other, libc::F_OFD_GETLK), Some(libc::F_UNLCK));

    const MIB: i64 = 1 << 20;
    let backed = || std::os::unix::fs::MetadataExt::blocks(&other.metadata().unwrap()) * 512;
    assert_eq!(unsafe { libc::fallocate(other.as_raw_fd(), 0, 0, MIB) }, 0);
    assert_eq!((backed(), other.metadata().unwrap().len()), (1 << 20, 1 << 20));
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(unsafe { libc::fallocate(other.as_raw_fd(), punch, 0, MIB) }, 0);
    assert_eq!((backed(), other.metadata().unwrap().len()), (0, 1 << 20));
    fs::remove_file(name.path()).unwrap();

    let error = |result: libc::c_long| {
        if result == -1 { std::io::Error::last_os_error().to_string() } else { "yes".to_owned() }
    };
    let global = 1 << 1 | 1 << 2; // MEMBARRIER_CMD_GLOBAL_EXPEDITED and its registration
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
    println!("facility membarrier(GLOBAL_EXPEDITED): {}", if commands & global == global { "yes" } else { "no" });
    // Watching nothing is a mistake where the call is known.
    let watched = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0) };
    assert_eq!(watched, -1);
    let known = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
    println!("facility futex_waitv: {}", if known { "yes".to_owned() } else { error(watched) });
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    let populated = unsafe { libc::madvise(page, 4096, libc::MADV_POPULATE_WRITE) };
    println!("facility MADV_POPULATE_WRITE: {}", error(populated.into()));
}

/// Linux 5.10 and a strict sandbox in one: all that there is a fallback for is refused, as each of them does it.
fn what_something_replaces_is_not_missed(name: &Name) {
    sandbox::refuse(&[
        (libc::SYS_membarrier, None, libc::EPERM),
        (libc::SYS_futex_waitv, None, libc::ENOSYS),
        (libc::SYS_madvise, Some((2, libc::MADV_POPULATE_WRITE)), libc::EINVAL),
        (libc::SYS_madvise, Some((2, libc::MADV_REMOVE)), libc::EINVAL),
        (libc::SYS_madvise, Some((2, libc::MADV_DONTDUMP)), libc::EINVAL),
    ]);
    // Lives and deaths.
    let mut observer = Observer::new(name);
    let child = participant(name, || {});
    observer.sees_it_alive();
    child.kill();
    observer.sees_it_dead();
    // Memory comes when it is asked for, and goes.
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let backed = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(name.path()).unwrap()) * 512;
    let before = backed();
    drop(ctx.slice_zeroed::<u8>(8 << 20).unwrap());
    assert!(backed() >= before + (8 << 20));
    assert!(buffer.trim().unwrap() >= 8 << 20);
    assert!(backed() < before + (1 << 20));
    // Ends of two buffers: the second's news ends the sleep, late.
    let second = Name::new("kernel-second");
    let another = Buffer::open(&second).unwrap();
    let ctxs = [ctx, another.context().unwrap()];
    let mut rxs = ctxs.each_ref().map(|ctx| ctx.consumer::<u64>(1).unwrap());
    let Some(child) = fork() else {
        forget((rxs, ctxs, buffer, another));
        let ctx = Buffer::open(&second).unwrap().context().unwrap();
        let mut tx = ctx.producer::<u64>(1).unwrap();
        for i in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            tx.send(ctx.record(i).unwrap()).unwrap();
        }
        drop((tx, ctx));
        forget(second);
        end()
    };
    let mut select = Select::new().wait_strategy(ipc_buffer::WaitStrategy::Block);
    rxs.iter().for_each(|rx| _ = select.recv(rx));
    for i in 0..20 {
        assert_eq!(select.ready(), Some(1));
        assert_eq!(*rxs[1].try_recv().unwrap(), i);
    }
    assert_eq!(select.ready(), Some(1));
    assert!(rxs[1].try_recv().is_err(), "it has left");
    child.succeeds();
    drop((rxs, ctxs));
    all_free(&buffer);
    all_free(&another);
}
