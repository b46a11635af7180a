//! Waiting: look while it pays, then sleep on a shared futex.
//!
//! Promises: the side that is waited for pays one load of a quiet word; a wake-up is never lost; no sleep is longer than
//! [`tick`], so what nobody announces (a killed peer, a wake that died with its sender) is seen within that time; who waits for
//! many ends looks at those that rang.
//!
//! A context sleeps on one word, its *bed*, whatever it waits for; a process has one more, for its futures (see `process::reactor`). Each end
//! of a channel has a *bell*, which the other side looks at after each of its operations. Who goes to sleep writes the bed's
//! name on the bell of each end it waits for; who finds a name on a bell takes it off and wakes that bed. So waiting for a
//! thousand ends is one sleep, and costs their other sides what waiting for one does. A bed that is woken for nothing, by an
//! old name, a signal or a stranger, looks around and sleeps on.
//!
//! Who waits for few ends writes the names when it falls asleep, takes them off when it wakes, and looks at all of them. For many
//! ends that is too much: there the names stay on the bells (the ends are *armed*), also while nobody sleeps, and the ringer
//! leaves a *hint* beside the bed, which says what end it was. See [`Select`](crate::Select) and `process::reactor`.
//!
//! Who waits for ends of several buffers has a context in each, and sleeps in all their beds at once. Where the kernel can't do
//! that (see `sys::futex::wait_any`) it sleeps in the first, a [`nap`] at a time, and looks at the others in between.
//!
//! Whether a peer lives is asked by all who find nothing, asleep, looking or polling, whenever the last time is long enough ago
//! ([`is_due`]); a sleep only sees to it that they look.
//!
//! Time is the monotonic clock's throughout (`Instant`, and the kernel's for a futex's relative timeout): setting the wall clock
//! ends no wait and prolongs none.
//!
//! # Layout
//! ```text
//! bell:  31                      8 7  5    4      3       2       1      0
//!        [ bed                    ][   ][HINT][EAGER][OFTEN][FENCED][GONE]     0 in steady state
//! bed:   0 nobody's, 1 + context slot, 1 + CONTEXTS + process slot
//! word:  31                                                        1      0
//!        [ changes                                                  ][ASLEEP]
//! hints: 63     48 47     32 31     16 15      0
//!        [ hint   ][ hint   ][ hint   ][ hint   ]     12 for a context, 16 for a process
//! hint:  0 none, 1 + 2 * channel + (1 for its producer), or all ones: some found no place, look at all
//! ```
//!
//! # Ownership
//! Of a bell: the bed, `HINT`, `EAGER` and `OFTEN` are set by the side that sleeps, and cleared by it, the other side, or whoever changes
//! the channel under the control lock, or leaves it; `GONE` is set by the consumer that leaves, and cleared by the next one when it has
//! the role; `FENCED` is the directory's, under that lock, and the sleeper's (see below). A bed's word is changed by whoever wakes it;
//! `ASLEEP` is the sleeper's. Hints are set by ringers, who find a place free, and taken by whoever has the bed.
//!
//! # Orderings
//! `SYNC(wake)`: the sleeper reads its bed's word, writes its name on the bell, makes a barrier, and looks for what it waits for
//! once more before it sleeps on the word it read. The peer makes its change, then looks at the bell: one of the two sees
//! the other's store. A peer that sees a name takes it off, leaves the hint, changes the bed's word, and wakes.
//!
//! `SYNC(rung)`: name, hint (Release) and word (Release) are changed in this order. The sleeper reads the word (Acquire), then takes the
//! hints (Acquire), then looks at the ends they name, then sleeps on the word it read: if the ringer's change of the word is part
//! of what it read, the hint is there to be taken, the name is off, and what was rung for is seen; if not, it does not sleep.
//!
//! So an end that was armed, and seen not to be ready after the barrier, becomes ready only by a ring, and who has taken all hints and
//! looked at what they name has seen all ends that are ready; but for what nobody rings for.
//!
//! `SYNC(asleep)`: the sleeper sets `ASLEEP` by a read-modify-write of the word just before it sleeps, and does not if that shows another
//! word than it read. The ringer changes the same word by a read-modify-write, and makes the system call if that shows the bit. One of
//! the two comes first in the order of changes of that one word: the sleeper sees the change, or the ringer sees the bit. Who is
//! awake with names on bells costs its peers no system call.
//!
//! The peer's store and load have only a compiler fence between them, so the sleeper's barrier must be heavy for both
//! (`sys::barrier`). Or the peer fences for itself, on its slow path, to which any bit on the bell leads it. The sleeper asks for that
//! with `OFTEN` when so little happens between its sleeps that a fence at each operation is cheaper than a system call at
//! each sleep: one heavy barrier after the bit was set, and none as long as it stands. The peer clears it when it
//! has looked `BUSY` times and found nobody asleep.
//!
//! A process that can't make heavy barriers sets `FENCED` on the bells of its channels, both when it attaches and when a barrier
//! fails, which stays. Instead of the barrier after that, its first sleep is a [`nap`]: no processor keeps a store to itself
//! for so long. The other way round, what is registered for heavy barriers can't be forbidden later.
//!
//! # If a process dies
//! | after | what is left | who makes up for it |
//! |---|---|---|
//! | its name is on the bell | the name of a bed where nobody sleeps, or somebody else | the next peer that looks takes it off; whoever has that bed looks around once in vain |
//! | it took a name off | a sleeper that nobody wakes, an armed end that has no name any more | the sleeper, and whoever armed it: it looks at all its ends within a [`tick`] |
//! | it left the hint | a sleeper that nobody wakes | the same; or the next ringer, and then the hint is there |
//! | it changed the bed's word | the same | the same |
//! | `ASLEEP` was set | a bit where nobody sleeps | whoever has that bed next; until then a ring makes a system call in vain |
//!
//! A hint that names no end of this bed's (a former user's, a foreign hand's) is passed over; one that names an end that did not ring
//! is a look in vain.

mod event;
mod strategy;
pub(crate) mod wakers;

#[cfg(all(test, feature = "async"))]
pub(crate) use event::tests;
pub(crate) use event::{Bed, EndKey, Inbox, Waitable, Waits, answer, arm, clear, flags, get_up, lie_down, wake};
pub use strategy::WaitStrategy;

use crate::sync::{AtomicU32, Ordering};
use crate::sys::crash::point;
use crate::sys::{futex, task};
use event::{ASLEEP, flags::EAGER};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};
use strategy::{LOOKS, SPIN, has_other_cores};

/// The longest sleep without looking around: 125 ms, half of what a dead peer may go unnoticed ([`is_due`]). Sleeps end at multiples of it, so
/// that all who sleep look around together, and leave the cores alone in between.
///
/// `IPC_BUFFER_TICK_MS` in the environment says otherwise, for tests: with hours, a lost wake-up is a hang that they see.
pub(crate) fn tick() -> Duration {
    static TICK_MS: AtomicU32 = AtomicU32::new(0);
    let mut tick_ms = TICK_MS.load(Ordering::Relaxed);
    if tick_ms == 0 {
        let told = std::env::var("IPC_BUFFER_TICK_MS").ok().and_then(|text| text.parse().ok());
        tick_ms = told.filter(|ms| *ms > 0).unwrap_or(125);
        TICK_MS.store(tick_ms, Ordering::Relaxed);
    }
    Duration::from_millis(tick_ms.into())
}

/// Whether somebody who looked last when the coarse clock showed `looked`, and finds nothing now, is to look again whether its peers
/// live. Somewhat sooner than after a [`tick`]: who sleeps for one, and the clock's grain, are to come late by less than another.
pub(crate) fn is_due(looked: Duration) -> bool {
    task::coarse_clock().saturating_sub(looked) >= tick() * 4 / 5
}

/// The first sleep of an end that may be kept waiting for more room, or whose name a peer may not have seen: 5 ms.
pub(crate) fn nap() -> Duration {
    tick() / 25
}

/// How to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) strategy: WaitStrategy,
    pub(crate) deadline: Option<Instant>,
    /// Breaths between two glances, so that the line looked at is left to the other side for a moment.
    pub(crate) pace: u32,
}

impl Wait {
    pub(crate) fn left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Waits for `ends` until `ready` gives something or the deadline has passed. `glance` is cheap and says whether `ready` is
/// worth a try. `ready` is asked at every [`tick`] at least, and sees for itself if it is due to look whether the peers live.
pub(crate) fn until<R, E: Waitable + ?Sized>(
    wait: Wait,
    ends: &[Rc<E>],
    glance: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<R>,
) -> Option<R> {
    match look_on(wait, glance, &mut ready) {
        ControlFlow::Break(result) => result,
        ControlFlow::Continue(()) => sleep(wait, ends, ready),
    }
}

/// The part of a wait that comes before sleep. What it gives is the wait's result.
pub(crate) fn look_on<R>(
    wait: Wait,
    glance: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<R>,
) -> ControlFlow<Option<R>> {
    let result = ready();
    if result.is_some() || wait.left().is_zero() {
        return ControlFlow::Break(result);
    }
    let spins = match wait.strategy {
        WaitStrategy::Spin => true,
        WaitStrategy::Adaptive => has_other_cores(),
        WaitStrategy::Block => false,
    };
    if spins {
        // In a stream the other side is never far: the first looks don't even ask the clock.
        if let Some(result) = look(wait.pace, &glance, &mut ready) {
            return ControlFlow::Break(Some(result));
        }
        if wait.strategy == WaitStrategy::Spin {
            return ControlFlow::Break(spin(wait, glance, ready));
        }
        let (start, longest) = (Instant::now(), wait.left().min(SPIN));
        while start.elapsed() < longest {
            if let Some(result) = look(wait.pace, &glance, &mut ready) {
                return ControlFlow::Break(Some(result));
            }
        }
    }
    ControlFlow::Continue(())
}

/// Looks some dozens of times.
#[inline]
pub(crate) fn look<R>(pace: u32, glance: &impl Fn() -> bool, ready: &mut impl FnMut() -> Option<R>) -> Option<R> {
    (0..LOOKS / pace.clamp(1, LOOKS)).find_map(|_| {
        (0..pace).for_each(|_| std::hint::spin_loop());
        if glance() { ready() } else { None }
    })
}

fn spin<R>(wait: Wait, glance: impl Fn() -> bool, mut ready: impl FnMut() -> Option<R>) -> Option<R> {
    loop {
        // What is not work is seen here: a glance does not look for it.
        let result = look(wait.pace, &glance, &mut ready).or_else(&mut ready);
        if result.is_some() || wait.left().is_zero() {
            return result;
        }
        if !has_other_cores() {
            std::thread::yield_now();
        }
    }
}

fn sleep<R, E: Waitable + ?Sized>(wait: Wait, ends: &[Rc<E>], mut ready: impl FnMut() -> Option<R>) -> Option<R> {
    // Without an open context there is nothing to wait for.
    let bed = ends.iter().find_map(|end| end.bed())?;
    let beds = if ends.iter().all(|end| end.bed() == Some(bed)) { vec![bed] } else { beds_of(ends) };
    let mut words: Vec<_> = beds.iter().map(|bed| bed.read()).collect();
    let mut eager = !ends.iter().any(|end| end.is_patient());
    loop {
        // SYNC(rung)
        words.iter_mut().zip(&beds).for_each(|(word, bed)| *word = bed.read());
        let known = lie_down(ends, |end| end.bed(), if eager { EAGER } else { 0 });
        point!("sleep: named");
        // As long as nobody rings, the name stays where it is.
        while is_quiet(&words) {
            let (result, left) = (ready(), wait.left());
            if result.is_some() || left.is_zero() {
                get_up(ends);
                return result;
            }
            let napping = !(eager && known);
            let longest = longest_sleep(!napping);
            let before = Instant::now();
            sleep_on(&words, left.min(longest));
            point!("sleep: woken");
            if napping && before.elapsed() >= longest {
                eager = true;
                ends.iter().for_each(|end| end.waits().have_napped());
                break;
            }
        }
        get_up(ends);
        if let Some(result) = ready() {
            return Some(result);
        }
    }
}

/// How long to sleep, if it is certain that the peers know of it, or not.
pub(crate) fn longest_sleep(is_known: bool) -> Duration {
    if is_known { task::until_multiple(tick()) } else { nap() }
}

/// These ends' beds, each once.
fn beds_of<E: Waitable + ?Sized>(ends: &[Rc<E>]) -> Vec<Bed<'_>> {
    let mut beds: Vec<Bed<'_>> = Vec::new();
    for bed in ends.iter().filter_map(|end| end.bed()) {
        if !beds.contains(&bed) {
            beds.push(bed);
        }
    }
    beds
}

/// Whether every word is what it was seen to be.
fn is_quiet(words: &[(&AtomicU32, u32)]) -> bool {
    words.iter().all(|(word, seen)| word.load(Ordering::Acquire) | ASLEEP == *seen)
}

/// Sleeps while every word is what it was seen to be, at most `longest`; where they can't all be watched, while the first is, and
/// no longer than a [`nap`].
pub(crate) fn sleep_on(words: &[(&AtomicU32, u32)], longest: Duration) {
    // SYNC(asleep)
    if words.iter().all(|(word, seen)| word.fetch_or(ASLEEP, Ordering::AcqRel) | ASLEEP == *seen)
        && !futex::wait_any(words, longest)
        && let Some((first, seen)) = words.first()
    {
        futex::wait(first, *seen, longest.min(nap()));
    }
    // Or each ring would make a system call for nobody.
    words.iter().for_each(|(word, _)| _ = word.fetch_and(!ASLEEP, Ordering::Relaxed));
}

/// Changes a futex word and wakes whoever sleeps on it.
pub(crate) fn announce(futex_word: &AtomicU32) {
    futex_word.fetch_add(1, Ordering::AcqRel);
    point!("announce: changed");
    futex::wake_all(futex_word);
}

/// Waits for `ready` by looking again whenever `futex_word` changes, and every [`tick`] at least.
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
        let left = deadline.map_or(tick(), |deadline| deadline.saturating_duration_since(Instant::now()).min(tick()));
        if left.is_zero() {
            return None;
        }
        futex::wait(futex_word, seen, left);
    }
}
