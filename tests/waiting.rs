//! Waiting: every way a wait can end, between processes that really sleep, with heavy barriers and without.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // signal handlers, a foreign mapping

mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/sandbox.rs"]
mod sandbox;

use common::Name;
use ipc_buffer::{
    AttachError, Buffer, Channel, ChannelOptions, Consumer, Producer, RecvError, RecvTimeoutError, Select,
    SendTimeoutError, ThreadContext, WaitStrategy,
};
use peer::{Peer, answers, falls_asleep, listen, states, tell, timed_out};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LONG_MS: u64 = 100_000;

// ------------------------------------------------------------------------------------------------------ the other side

/// What a process does at each command of the test; see [`Puppet::obey`].
struct Puppet {
    buffer: Buffer,
    ctx: ThreadContext,
    strategy: WaitStrategy,
    tx: BTreeMap<i64, Channel<u64, Producer>>,
    rx: BTreeMap<i64, Channel<u64, Consumer>>,
}

/// Not a test: what the other processes of the tests here run.
#[test]
fn puppet() {
    let Some((role, name)) = common::role() else { return };
    // A watchdog that sleeps through.
    common::limits::alarm(150);
    if role.contains("forbidden") {
        sandbox::forbid(libc::SYS_membarrier);
    }
    let buffer = common::open_patiently(&Buffer::options(), &name);
    let ctx = buffer.context().unwrap();
    if role.contains("late") {
        sandbox::forbid(libc::SYS_membarrier);
    }
    let strategy = match role.split(' ').next() {
        Some("spin") => WaitStrategy::Spin,
        Some("block") => WaitStrategy::Block,
        _ => WaitStrategy::Adaptive,
    };
    let mut puppet = Puppet { buffer, ctx, strategy, tx: BTreeMap::new(), rx: BTreeMap::new() };
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<i64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
        tell(puppet.obey(words[0], &numbers));
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap())
}

/// Attaches to a channel of so many slots, if it has to be made.
fn as_it_is<E>(
    strategy: WaitStrategy,
    slots: i64,
    attach: impl Fn(&ChannelOptions) -> Result<E, AttachError>,
) -> Result<E, AttachError> {
    let options = ChannelOptions::new().wait_strategy(strategy);
    match attach(&options.clone().capacity(usize::try_from(slots).unwrap())) {
        Err(AttachError::CapacityMismatch { .. }) => attach(&options),
        result => result,
    }
}

impl Puppet {
    fn obey(&mut self, command: &str, numbers: &[i64]) -> String {
        let start = Instant::now();
        let is_busy = |error: &AttachError| matches!(error, AttachError::Busy { .. });
        match (command, numbers) {
            ("producer", &[id, slots]) => {
                let attach = || as_it_is(self.strategy, slots, |options| self.ctx.producer_with(id, options));
                self.tx.insert(id, common::patiently(is_busy, attach));
            }
            ("consumer", &[id, slots]) => {
                let attach = || as_it_is(self.strategy, slots, |options| self.ctx.consumer_with(id, options));
                self.rx.insert(id, common::patiently(is_busy, attach));
            }
            ("send", &[id, value, ms]) => {
                let record = self.ctx.record(value.cast_unsigned()).unwrap();
                match self.tx.get_mut(&id).unwrap().send_timeout(record, millis(ms)) {
                    Ok(()) => {}
                    Err(SendTimeoutError::Timeout(_)) => return timed_out(start, millis(ms)),
                    Err(SendTimeoutError::Disconnected(_)) => return "gone".into(),
                    Err(error) => return error.to_string(),
                }
            }
            // Until there is no room.
            ("fill", &[id]) => {
                let tx = self.tx.get_mut(&id).unwrap();
                while tx.try_send(self.ctx.record(0).unwrap()).is_ok() {}
            }
            ("recv", &[id, ms]) => {
                return match self.rx.get_mut(&id).unwrap().recv_timeout(millis(ms)) {
                    Ok(record) => record.to_string(),
                    Err(RecvTimeoutError::Timeout(_)) => timed_out(start, millis(ms)),
                    Err(RecvTimeoutError::Recv(RecvError::Disconnected)) => "gone".into(),
                    Err(error) => error.to_string(),
                };
            }
            // For ever.
            ("recv", &[id]) => {
                return match self.rx.get_mut(&id).unwrap().recv() {
                    Ok(record) => record.to_string(),
                    Err(RecvError::Disconnected) => "gone".into(),
                    Err(error) => error.to_string(),
                };
            }
            // Says which of these ends is ready.
            ("select", [ms, ids @ ..]) => {
                let mut select = Select::new().wait_strategy(self.strategy);
                for id in ids {
                    match (self.rx.get(id), self.tx.get(id)) {
                        (Some(rx), _) => select.recv(rx),
                        (None, tx) => select.send(tx.unwrap()),
                    };
                }
                return match select.ready_timeout(millis(*ms)) {
                    Some(number) => ids[number].to_string(),
                    None => timed_out(start, millis(*ms)),
                };
            }
            ("drop", &[id]) => drop((self.tx.remove(&id), self.rx.remove(&id))),
            ("remove", &[id]) => return self.buffer.remove_channel(id).unwrap().to_string(),
            ("channel", &[id, ms]) => return self.buffer.wait_for_channel(id, millis(ms)).unwrap().to_string(),
            ("peer", &[id, ms]) => {
                return match (self.rx.get(&id), self.tx.get(&id)) {
                    (Some(rx), _) => rx.wait_for_producer(millis(ms)).is_ok(),
                    (None, tx) => tx.unwrap().wait_for_consumer(millis(ms)).is_ok(),
                }
                .to_string();
            }
            ("signals", &[]) => catch_signals(),
            _ => return format!("no such command: {command} {numbers:?}"),
        }
        "ok".into()
    }
}

static CAUGHT: AtomicU32 = AtomicU32::new(0);

/// From now on SIGUSR1 interrupts what this process sleeps in, and is counted.
fn catch_signals() {
    extern "C" fn count(_: libc::c_int) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: all zeroes is a valid sigaction: no flags, so no SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as *const () as usize;
    // SAFETY: the handler changes an atomic, which is safe at any time.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
}

// ------------------------------------------------------------------------------------------------------------ this side

/// What a process may do with membarrier(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barriers {
    Heavy,
    /// None, it was told.
    Fenced,
    /// None, it found out.
    Forbidden,
    /// None any more, once it had opened the buffer.
    Late,
}
use Barriers::{Fenced, Forbidden, Heavy, Late};

/// A puppet. What nobody announces it does not see if it `looks_around` never: then only a wake-up can end a wait.
fn start(name: &Name, strategy: &str, barriers: Barriers, looks_around: bool) -> Peer {
    let role = format!("{strategy} {}", format!("{barriers:?}").to_lowercase());
    let fenced = (barriers == Fenced).then_some(("IPC_BUFFER_NO_MEMBARRIER", "1"));
    let tick = (!looks_around).then_some(("IPC_BUFFER_TICK_MS", "3600000"));
    Peer::start_with("puppet", &role, name, &[fenced, tick].into_iter().flatten().collect::<Vec<_>>())
}

fn pid(peer: &Peer) -> Pid {
    Pid::from_raw(i32::try_from(peer.process.pid()).unwrap()).unwrap()
}

/// Stops the process; it is stopped when this returns, and not only about to be.
fn stop(peer: &Peer) {
    kill_process(pid(peer), Signal::STOP).unwrap();
    while !states(peer).chars().all(|state| state == 'T') {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Each way a wait can end that somebody announces, for a process that waits and another one.
fn announced(strategy: &str, [one, other]: [Barriers; 2]) {
    let name = Name::new("announced");
    let [mut one, mut other] = [one, other].map(|barriers| start(&name, strategy, barriers, false));

    // What is waited for by name: a channel, a peer.
    falls_asleep(&mut one, &format!("channel 1 {LONG_MS}"));
    other.does("producer 1 16");
    answers(&mut one, "true");
    assert_eq!(one.ask("channel 2 20"), "false");
    one.does("consumer 1 2");
    assert_eq!(one.ask("peer 1 0"), "true");
    one.does("consumer 2 2");
    assert_eq!(one.ask("peer 2 20"), "false");
    falls_asleep(&mut one, &format!("peer 2 {LONG_MS}"));
    other.does("producer 2 2");
    answers(&mut one, "true");

    // Data, now and then, for one end and for several.
    for (value, wait) in (0..).zip(["recv 1", "recv 1 100000", "select 100000 2 1"]) {
        falls_asleep(&mut one, wait);
        other.does(&format!("send 1 {value} 0"));
        if wait.starts_with("select") {
            answers(&mut one, "1");
            one.say("recv 1 0");
        }
        answers(&mut one, &value.to_string());
    }
    // Time.
    for wait in ["recv 1 30", "recv 1 0", "recv 1 130", "select 30 1 2", "select 0 1 2"] {
        assert_eq!(one.ask(wait), "timeout");
    }
    // Many short waits, nearly all of which find nothing, lose nothing.
    for value in 0..20 {
        one.say("recv 1 1");
        other.does(&format!("send 1 {value} 0"));
        let answer = one.hear().unwrap();
        assert!(answer == value.to_string() || answer == "timeout" && one.ask("recv 1 0") == value.to_string());
    }

    // Room.
    one.does("producer 3 2");
    other.does("consumer 3 2");
    one.does("fill 3");
    assert_eq!(one.ask("send 3 7 30"), "timeout");
    for wait in ["send 3 7 100000", "select 100000 3 1"] {
        falls_asleep(&mut one, wait);
        assert_eq!(other.ask("recv 3"), "0");
        if wait.starts_with("select") {
            answers(&mut one, "3");
            one.say("send 3 7 0");
        }
        answers(&mut one, "ok");
    }

    // A peer that leaves; a channel that is removed while nobody else is there.
    for wait in ["recv 2", "select 100000 1 2"] {
        falls_asleep(&mut one, wait);
        other.does("drop 2");
        if wait.starts_with("select") {
            answers(&mut one, "2");
            one.say("recv 2 0");
        }
        answers(&mut one, "gone");
        other.does("producer 2 2");
    }
    one.does("fill 3");
    for wait in ["send 3 7 100000", "select 100000 1 3"] {
        falls_asleep(&mut one, wait);
        other.does("drop 3");
        if wait.starts_with("select") {
            answers(&mut one, "3");
            one.say("send 3 7 0");
        }
        answers(&mut one, "gone");
        other.does("consumer 3 2");
    }
    one.does("consumer 4 2");
    one.does("producer 5 2");
    one.does("fill 5");
    one.does("consumer 6 2");
    for (wait, id) in [("recv 4", 4), ("send 5 7 100000", 5), ("select 100000 1 6", 6)] {
        falls_asleep(&mut one, wait);
        assert_eq!(other.ask(&format!("remove {id}")), "true");
        if wait.starts_with("select") {
            answers(&mut one, "6");
            one.say("recv 6 0");
        }
        answers(&mut one, "gone");
    }
    other.ends();
    one.ends();
    assert!(!name.exists());
}

/// What is found out by looking around: that a peer was killed, that a stopped one was not, and that somebody takes his time.
fn unannounced(strategy: &str, [one, other]: [Barriers; 2]) {
    let name = Name::new("unannounced");
    let [mut one, mut other] = [one, other].map(|barriers| start(&name, strategy, barriers, true));
    one.does("consumer 1 2");
    one.does("consumer 2 2");
    other.does("producer 1 2");
    stop(&other);
    assert_eq!(one.ask("recv 1 350"), "timeout");
    assert_eq!(one.ask("select 350 2 1"), "timeout");
    kill_process(pid(&other), Signal::CONT).unwrap();
    falls_asleep(&mut one, "recv 1");
    other.does("send 1 9 0");
    answers(&mut one, "9");

    // One slot of sixteen is room enough for who has slept for a while.
    one.does("producer 3 16");
    other.does("consumer 3 2");
    one.does("fill 3");
    for wait in ["send 3 7 100000", "select 100000 3 1"] {
        falls_asleep(&mut one, wait);
        assert_eq!(other.ask("recv 3"), "0");
        if wait.starts_with("select") {
            answers(&mut one, "3");
            one.say("send 3 7 0");
        }
        answers(&mut one, "ok");
    }

    falls_asleep(&mut one, "recv 1");
    other.process.kill();
    answers(&mut one, "gone");
    let next = |command: &str| {
        let mut next = start(&name, strategy, Heavy, true);
        next.does(command);
        next
    };
    for (attach, wait) in [("producer 1 2", "select 100000 2 1"), ("consumer 3 2", "send 3 7 100000")] {
        let mut next = next(attach);
        if wait.starts_with("send") {
            one.does("fill 3");
        }
        falls_asleep(&mut one, wait);
        next.process.kill();
        if wait.starts_with("select") {
            answers(&mut one, "1");
            one.say("recv 1 0");
        }
        answers(&mut one, "gone");
    }
    one.ends();
    assert!(!name.exists(), "all have left, or are dead and reaped");
}

fn all_ways(strategy: &str, barriers: [Barriers; 2]) {
    let _dog = common::watchdog();
    announced(strategy, barriers);
    unannounced(strategy, barriers);
}

#[test]
fn adaptive() {
    all_ways("adaptive", [Heavy, Heavy]);
    all_ways("adaptive", [Fenced, Heavy]);
}

#[test]
fn asleep_at_once() {
    all_ways("block", [Heavy, Heavy]);
}

#[test]
fn without_heavy_barriers() {
    all_ways("block", [Fenced, Fenced]);
}

#[test]
fn without_heavy_barriers_on_one_side() {
    all_ways("block", [Fenced, Heavy]);
    all_ways("block", [Heavy, Fenced]);
}

#[test]
fn membarrier_is_forbidden() {
    all_ways("block", [Forbidden, Heavy]);
    all_ways("block", [Heavy, Forbidden]);
}

#[test]
fn membarrier_is_forbidden_once_it_was_used() {
    all_ways("block", [Late, Heavy]);
    all_ways("block", [Heavy, Late]);
}

#[test]
fn never_asleep() {
    all_ways("spin", [Heavy, Heavy]);
}

/// Runs `disturb` again and again while `one` sleeps: nothing comes of it but time, and then what was waited for.
fn disturbed(name: &Name, mut disturb: impl FnMut(&Peer), setup: &str) {
    let mut one = start(name, "block", Heavy, false);
    let mut other = start(name, "block", Heavy, false);
    if !setup.is_empty() {
        one.does(setup);
    }
    one.does("consumer 1 2");
    one.does("producer 2 2");
    one.does("fill 2");
    other.does("producer 1 2");
    other.does("consumer 2 2");
    for (value, wait) in (0..).zip(["recv 1 300", "send 2 7 300", "select 300 1 2"]) {
        let verb = wait.split(' ').next().unwrap();
        falls_asleep(&mut one, wait);
        for _ in 0..20 {
            disturb(&one);
        }
        answers(&mut one, "timeout");
        falls_asleep(&mut one, &wait.replace("300", "100000"));
        disturb(&one);
        match verb {
            "recv" => other.does(&format!("send 1 {value} 0")),
            _ => assert_eq!(other.ask("recv 2"), "0"),
        }
        disturb(&one);
        answers(
            &mut one,
            if verb == "recv" {
                "0"
            } else if verb == "send" {
                "ok"
            } else {
                "2"
            },
        );
    }
    if !setup.is_empty() {
        assert_ne!(one.ask("caught"), "0", "it was disturbed");
    }
    other.ends();
    one.ends();
}

#[test]
fn signals() {
    let _dog = common::watchdog();
    let name = Name::new("signals");
    let signal = |one: &Peer| {
        let id = pid(one).as_raw_nonzero().get();
        for task in std::fs::read_dir(format!("/proc/{id}/task")).unwrap() {
            let task: libc::pid_t = task.unwrap().file_name().to_string_lossy().parse().unwrap();
            // SAFETY: signals a thread of a child that was not waited for yet.
            unsafe { libc::syscall(libc::SYS_tgkill, id, task, libc::SIGUSR1) };
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    disturbed(&name, signal, "signals");
}

#[test]
fn wakes_from_a_foreign_hand() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    use rustix::thread::futex;
    let _dog = common::watchdog();
    let name = Name::new("foreign");
    // So that there is something to map; and it stays.
    let buffer = Buffer::open(&name).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(name.path()).unwrap();
    let tables = 256 << 10;
    // SAFETY: a new mapping, of a file that stays larger.
    let at = unsafe {
        mmap(std::ptr::null_mut(), tables, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0).unwrap()
    };
    // SAFETY: mapped for good, aligned, and all who write there do so atomically.
    let words = unsafe { std::slice::from_raw_parts(at.cast::<AtomicU32>(), tables / 4) };
    let mut woken = 0;
    let wake = |_: &Peer| {
        let wake = |word| futex::wake(word, futex::Flags::empty(), 1).unwrap();
        woken += words.iter().map(wake).sum::<usize>();
    };
    disturbed(&name, wake, "");
    assert_ne!(woken, 0, "the bed was among them");
    drop(buffer);
}

#[test]
fn a_killed_sleeper_takes_a_wake_with_it() {
    let _dog = common::watchdog();
    let name = Name::new("takes");
    let mut other = start(&name, "block", Heavy, true);
    other.does("producer 1 2");
    other.does("consumer 2 2");
    for round in 0..3 {
        let mut victim = start(&name, "block", Heavy, true);
        victim.does("consumer 1 2");
        victim.does("producer 2 2");
        victim.does("fill 2");
        let receives = round % 2 == 0;
        falls_asleep(&mut victim, if receives { "recv 1" } else { "send 2 7 100000" });
        stop(&victim);
        other.does(&format!("send 1 {round} 0"));
        assert_eq!(other.ask("recv 2"), "0");
        // It has been woken, and never knew.
        victim.process.kill();
        let mut next = start(&name, "block", Heavy, false);
        next.does("consumer 1 2");
        assert_eq!(next.ask("recv 1"), round.to_string());
        falls_asleep(&mut next, "recv 1");
        other.does("send 1 9 0");
        answers(&mut next, "9");
        assert_eq!([other.ask("recv 2"), other.ask("recv 2")], ["0", "gone"]);
        next.ends();
    }
    other.ends();
    assert!(!name.exists());
}

/// How often the threads of a process have gone to sleep.
fn sleeps(peer: &Peer) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", peer.process.pid())).unwrap();
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    tasks.filter_map(|task| count(std::fs::read_to_string(task.ok()?.path().join("status")).ok()?)).sum()
}

/// Three seconds; `IPC_BUFFER_TEST_SECONDS` says how many instead.
#[test]
fn fifty_sleepers_leave_the_core_alone() {
    let _dog = common::watchdog();
    let name = Name::new("quiet");
    let mut all: Vec<Peer> = (0..50).map(|_| start(&name, "adaptive", Heavy, true)).collect();
    for (i, one) in all.iter_mut().enumerate() {
        // A ring, so that everybody has somebody to look after.
        let next = (i + 1) % 50;
        one.does(&format!("producer {i} 2"));
        one.does(&format!("consumer {next} 2"));
        one.does(&format!("producer {} 2", 100 + i));
        one.does(&format!("fill {}", 100 + i));
    }
    for (i, one) in all.iter_mut().enumerate() {
        let next = (i + 1) % 50;
        match i % 3 {
            0 => one.say(&format!("recv {next}")),
            1 => one.say(&format!("send {} 7 100000", 100 + i)),
            _ => one.say(&format!("select 100000 {next} {}", 100 + i)),
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let seconds = std::env::var("IPC_BUFFER_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let total = || all.iter().map(sleeps).sum::<u64>();
    let (before, start) = (total(), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (slept, passed) = (total() - before, start.elapsed());
    println!("50 sleepers woke up {slept} times in {passed:?}");
    // Each looks around once a tick, 8 times a second, and takes a lock or makes a barrier now and then.
    let ticks = u64::try_from(passed.as_millis()).unwrap() / 125 + 1;
    assert!((50..=50 * 2 * ticks).contains(&slept), "50 sleepers woke up {slept} times in {passed:?}");
}
