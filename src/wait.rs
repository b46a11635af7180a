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
use crate::sys::{barrier, futex};
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

const MAX_SPINS: u32 = 8192;
const MIN_SPINS: u32 = 64;

/// How long this endpoint spins: doubled when it paid, halved when it did not.
#[derive(Debug)]
pub(crate) struct Patience {
    spins: Cell<u32>,
    /// Slept in vain since the last look at the peer, over all waits: short timeouts in a row must see a dead peer too.
    slept: Cell<Duration>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        let spins = if has_other_cores() { MAX_SPINS / 8 } else { 0 };
        Self { spins: Cell::new(spins), slept: Cell::new(Duration::ZERO) }
    }
}

fn has_other_cores() -> bool {
    static CORES: AtomicU32 = AtomicU32::new(0);
    let known = CORES.load(Ordering::Relaxed);
    if known != 0 {
        return known > 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    CORES.store(cores, Ordering::Relaxed);
    cores > 1
}

/// Waits until `ready` gives something or `deadline` has passed. `tick` runs after every [`TICK`] of
/// sleeping in vain, be it in one wait or in many short ones.
pub(crate) fn until<R>(
    patience: &Patience,
    asleep_in: &AtomicU32,
    futex_word: &AtomicU32,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<R>,
    mut tick: impl FnMut(),
) -> Option<R> {
    if let Some(result) = ready() {
        return Some(result);
    }
    let spins = patience.spins.get();
    for _ in 0..spins {
        std::hint::spin_loop();
        if let Some(result) = ready() {
            patience.spins.set((spins * 2).min(MAX_SPINS));
            return Some(result);
        }
    }
    if spins > 0 {
        patience.spins.set((spins / 2).max(MIN_SPINS));
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
            patience.slept.set(Duration::ZERO);
            return Some(result);
        }
        let slept = patience.slept.get().saturating_add(before.elapsed());
        patience.slept.set(slept);
        if slept >= TICK {
            patience.slept.set(Duration::ZERO);
            tick();
        }
    }
}

/// Wakes the other side, which said in `asleep_in` that it sleeps on `futex_word`.
#[cold]
#[inline(never)]
pub(crate) fn wake(asleep_in: &AtomicU32, futex_word: &AtomicU32) {
    asleep_in.fetch_and(!flags::ASLEEP, Ordering::SeqCst);
    announce(futex_word);
}

/// Changes a futex word and wakes whoever sleeps on it.
pub(crate) fn announce(futex_word: &AtomicU32) {
    futex_word.fetch_add(1, Ordering::AcqRel);
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
