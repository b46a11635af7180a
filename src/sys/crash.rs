//! Places to be killed at, between each two stores that matter: for tests, and there only with the feature `crash-points`.
//!
//! Promises: without the feature, [`point!`] is nothing at all: no call, no branch, no label in the binary. With it, a label that
//! is not in `ALL` does not compile, and a process that has armed one is killed by SIGKILL where it comes to it (`arm`), or stopped
//! by SIGSTOP (`arm_stop`). How often it has come to each is counted meanwhile.

/// Marks a place. The label says what has just been done: `operation: step`.
macro_rules! point {
    ($label:literal) => {
        #[cfg(feature = "crash-points")]
        {
            const NUMBER: u32 = $crate::sys::crash::number($label);
            $crate::sys::crash::hit(NUMBER);
        }
    };
}
pub(crate) use point;

#[cfg(feature = "crash-points")]
pub use armed::{ALL, arm, arm_stop, disarm, passed};
#[cfg(feature = "crash-points")]
pub(crate) use armed::{hit, number};

#[cfg(feature = "crash-points")]
mod armed {
    use crate::sync::{AtomicBool, AtomicU32, Ordering};
    use rustix::process::{Signal, getpid, kill_process};

    /// Every label, in the order of an operation's life.
    pub const ALL: &[&str] = &[
        // Segment and process.
        "enter: created",
        "enter: opened",
        "enter: locked",
        "enter: empty file removed",
        "enter: sized",
        "enter: obsolete removed",
        "enter: mapped",
        "complete: backed",
        "complete: nonce",
        "complete: mode",
        "complete: header",
        "complete: magic",
        "complete: latch",
        "join: lease",
        "join: epoch",
        "join: alive",
        "open: entered",
        "open: joined",
        "open: unlocked",
        "context: owner",
        "context: epoch",
        "close: detached",
        "close: flushed",
        "close: forgotten",
        "leave: unlisted",
        "leave: flushed",
        "leave: locked",
        "leave: unlinked",
        "leave: slot",
        "unlink: locked",
        "unlink: done",
        "control: locked",
        "control: named",
        "control: cleared",
        // Blocks and magazines.
        "gate: inside",
        "name: owned",
        "pop: taken",
        "push: listed",
        "refill: taken",
        "make room: taken",
        "merge: owned",
        "merge: popped",
        "merge: listed",
        "want: cleared",
        "flush: no spare",
        "settle: spare",
        "verify: checked",
        "verify: settled",
        "take: recalled",
        "take: found",
        "take: stale",
        "clear: leaf",
        "clear: sum",
        "take: claimed",
        "take: listed",
        "put: holder",
        "put: uncounted",
        "grow: raised",
        "frontier: backed",
        "frontier: raised",
        // Units.
        "claim: head",
        "claim: body",
        "claim: backed",
        "claim: marked",
        "claim: uncounted",
        "give back: taken",
        "give back: unit",
        "give back: untold",
        "give back: uncounted",
        "carve: claimed",
        "carve: header",
        "carve: provided",
        "carve: published",
        "carve: pushed",
        "run: claimed",
        "run: header",
        "run: published",
        "trim: claimed",
        "trim: unmarked",
        "trim: punched",
        "trim: limited",
        "trim: beyond",
        "search: begun",
        "empty: taken",
        "empty: heads",
        "empty: dropped",
        "empty: put",
        "empty: released",
        "drop: cleared",
        "drop: owned",
        "drop: popped",
        "drop: moved",
        "revoke: marked",
        "revoke: listed",
        "revoke: taken",
        "revoke: told",
        "revoke: spare",
        "revoke: emptied",
        "revoke: named",
        "revoke: put",
        "revoke: verify",
        // Channels.
        "send: before the slot",
        "send: slot",
        "send: before the wake",
        "send batch: begun",
        "send batch: before a slot",
        "send batch: slot",
        "recv: owned",
        "recv: head",
        "recv: before the wake",
        "recv batch: owned",
        "poll: nothing there",
        "poll: looked",
        "poll: left for good",
        "sleep: named",
        "sleep: armed",
        "sleep: woken",
        "wake: cleared",
        "wake: hinted",
        "wake: changed",
        "tell: raised",
        "announce: changed",
        "create: busy",
        "create: written",
        "create: storage",
        "create: emptied",
        "create: block",
        "create: live",
        "create: indexed",
        "attach: role",
        "attach: seen",
        "attach: returned",
        "attach: cleared",
        "vacate: gone",
        "vacate: cell",
        "detach: left",
        "detach: released",
        "remove: state",
        "remove: unindexed",
        "index: moved",
        "settle: removed",
        "freeze: queued",
        "freeze: noted",
        "freeze: done",
        "dismantle: busy",
        "dismantle: drained",
        "dismantle: owned",
        "dismantle: freed",
        "dismantle: no storage",
        "dismantle: left",
        "drain: owned",
        "drain: head",
        "index: zeroed",
        "index: rebuilt",
        // Reaping.
        "reap: locked",
        "reap: magazine put",
        "reap: magazines done",
        "reap: contexts done",
        "reap: noted",
        "reap: queued",
        "reap: vacated",
        "names: cleared",
        "reap: names done",
        "reap: met",
        "reap: record taken",
        "reap: record freed",
        "reap: records done",
        "reap: unit released",
        "reap: units done",
        "reap: hints",
        "reap: counted",
        "reap: buried",
        "reap: done",
    ];

    /// A label's place in [`ALL`]; fails to compile if it has none.
    pub(crate) const fn number(label: &str) -> u32 {
        let mut number = 0_u32;
        while (number as usize) < ALL.len() {
            if same(ALL[number as usize].as_bytes(), label.as_bytes()) {
                return number;
            }
            number += 1;
        }
        panic!("this label is not in ALL")
    }

    const fn same(one: &[u8], two: &[u8]) -> bool {
        let mut i = 0;
        while i < one.len() && i < two.len() && one[i] == two[i] {
            i += 1;
        }
        i == one.len() && i == two.len()
    }

    /// The armed label's number + 1, or 0.
    static ARMED: AtomicU32 = AtomicU32::new(0);
    /// How often it is still passed by.
    static LEFT: AtomicU32 = AtomicU32::new(0);
    static STOPS: AtomicBool = AtomicBool::new(false);
    /// How often this process, or one it was forked off, has come to each label.
    static PASSED: [AtomicU32; ALL.len()] = [const { AtomicU32::new(0) }; ALL.len()];

    /// From now on, this process dies where it comes to `label` for the `count`th time (from 1).
    ///
    /// # Panics
    /// If there is no such label.
    pub fn arm(label: &str, count: u32) {
        STOPS.store(false, Ordering::SeqCst);
        set(label, count);
    }

    /// From now on, this process stops where it comes to `label` for the `count`th time (from 1), and goes on by SIGCONT.
    ///
    /// # Panics
    /// If there is no such label.
    pub fn arm_stop(label: &str, count: u32) {
        STOPS.store(true, Ordering::SeqCst);
        set(label, count);
    }

    /// From now on, this process goes past every label.
    pub fn disarm() {
        ARMED.store(0, Ordering::SeqCst);
    }

    /// How often this process, or one it was forked off, has come to each label, in the order of [`ALL`].
    pub fn passed() -> Vec<u32> {
        PASSED.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    fn set(label: &str, count: u32) {
        LEFT.store(count, Ordering::SeqCst);
        ARMED.store(number(label) + 1, Ordering::SeqCst);
    }

    #[inline(never)]
    pub(crate) fn hit(number: u32) {
        if let Some(count) = PASSED.get(number as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if ARMED.load(Ordering::SeqCst) == number + 1 && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
            if STOPS.load(Ordering::SeqCst) {
                let _ = kill_process(getpid(), Signal::STOP);
                return;
            }
            let _ = kill_process(getpid(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}
