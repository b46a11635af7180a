//! Waiting: spin while it pays, then sleep on a shared futex.
//!
//! Promises: the side that is waited for pays one load of a quiet word; a wake-up is never lost; no sleep is longer than
//! [`TICK`], so what nobody announces (a killed peer, a wake that died with its sender) is seen within that time.
//!
//! # Orderings
//! `SYNC(wake)`: the sleeper sets `ASLEEP` in the word the peer looks at, makes the barrier that is heavy for both
//! (`sys::barrier`), and looks for what it waits for once more before it sleeps on the futex word it read before all that.
//! The peer makes its change, then looks at the flag: one of the two sees the other's store. The peer then clears the flag,
//! changes the futex word, and wakes.

use crate::sync::{AtomicU32, Ordering};
use crate::sys::crash::point;
use crate::sys::{barrier, futex, task};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Bits of the words that each side looks at.
pub(crate) mod flags {
    /// The other side sleeps.
    pub(crate) const ASLEEP: u32 = 1;
    /// The consumer has left (in the producer's word only).
    pub(crate) const GONE: u32 = 2;
    /// The other side can't make heavy barriers: fence for yourself.
    pub(crate) const FENCED: u32 = 4;
}

/// The longest sleep without looking around.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How long to look before sleeping: about what falling asleep and being woken costs, so that at worst waiting costs twice what
/// the better choice would have.
const SPIN: Duration = Duration::from_micros(20);
/// Looks between two readings of the clock, or questions that cost more than a look.
const LOOKS: u32 = 64;

/// Whether the other side can run while this one looks.
fn has_other_cores() -> bool {
    static CORES: AtomicU32 = AtomicU32::new(0);
    let mut cores = CORES.load(Ordering::Relaxed);
    if cores == 0 {
        cores = task::cores();
        CORES.store(cores, Ordering::Relaxed);
    }
    cores > 1
}

/// Where to sleep: the flag that tells the other side, and the word to sleep on.
#[derive(Clone, Copy)]
pub(crate) struct Bed<'a> {
    pub(crate) asleep_in: &'a AtomicU32,
    pub(crate) futex_word: &'a AtomicU32,
    /// Slept in vain since the last tick, over all waits: short timeouts in a row must see a dead peer too.
    pub(crate) slept: &'a Cell<Duration>,
}

/// Waits until `ready` gives something or `deadline` has passed. `glance` is cheap and says whether `ready` is worth a try;
/// between glances it goes at `pace`, so that the line it looks at is left to the other side for a moment. `tick` runs after
/// every [`TICK`] of sleeping in vain, be it in one wait or in many short ones.
pub(crate) fn until<R>(
    bed: Bed<'_>,
    deadline: Option<Instant>,
    pace: u32,
    glance: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<R>,
    mut tick: impl FnMut(),
) -> Option<R> {
    let Bed { asleep_in, futex_word, slept } = bed;
    if let Some(result) = ready() {
        return Some(result);
    }
    if has_other_cores() {
        let mut look = || {
            (0..LOOKS / pace.clamp(1, LOOKS)).find_map(|_| {
                (0..pace).for_each(|_| std::hint::spin_loop());
                if glance() { ready() } else { None }
            })
        };
        // In a stream the other side is never far: the first looks don't even ask the clock.
        if let Some(result) = look() {
            return Some(result);
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            if let Some(result) = look() {
                return Some(result);
            }
        }
    }
    loop {
        let seen = futex_word.load(Ordering::Acquire);
        // SYNC(wake)
        asleep_in.fetch_or(flags::ASLEEP, Ordering::SeqCst);
        barrier::heavy();
        let result = ready();
        let left = deadline.map_or(TICK, |deadline| deadline.saturating_duration_since(Instant::now()).min(TICK));
        if result.is_some() || left.is_zero() {
            asleep_in.fetch_and(!flags::ASLEEP, Ordering::SeqCst);
            return result;
        }
        let before = Instant::now();
        futex::wait(futex_word, seen, left);
        asleep_in.fetch_and(!flags::ASLEEP, Ordering::SeqCst);
        if let Some(result) = ready() {
            slept.set(Duration::ZERO);
            return Some(result);
        }
        slept.set(slept.get().saturating_add(before.elapsed()));
        if slept.get() >= TICK {
            slept.set(Duration::ZERO);
            tick();
        }
    }
}

/// Wakes the other side, which said in `asleep_in` that it sleeps on `futex_word`.
#[cold]
#[inline(never)]
pub(crate) fn wake(asleep_in: &AtomicU32, futex_word: &AtomicU32) {
    asleep_in.fetch_and(!flags::ASLEEP, Ordering::SeqCst);
    point!("wake: cleared");
    announce(futex_word);
}

/// Changes a futex word and wakes whoever sleeps on it.
pub(crate) fn announce(futex_word: &AtomicU32) {
    futex_word.fetch_add(1, Ordering::AcqRel);
    point!("announce: changed");
    futex::wake_all(futex_word);
}

/// Waits for `ready` by looking again whenever `futex_word` changes, and every [`TICK`] at least.
pub(crate) fn for_change<R>(
    futex_word: &AtomicU32,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<R>,
) -> Option<R> {
    loop {
        let seen = futex_word.load(Ordering::Acquire);
        if let Some(result) = ready() {
            return Some(result);
        }
        let left = deadline.map_or(TICK, |deadline| deadline.saturating_duration_since(Instant::now()).min(TICK));
        if left.is_zero() {
            return None;
        }
        futex::wait(futex_word, seen, left);
    }
}
