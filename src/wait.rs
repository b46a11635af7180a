//! Waiting: look while it pays, then sleep on a shared futex.
//!
//! Promises: the side that is waited for pays one load of a quiet word; a wake-up is never lost; no sleep is longer than
//! [`tick`], so what nobody announces (a killed peer, a wake that died with its sender) is seen within that time.
//!
//! A context sleeps on one word, its *bed*, whatever it waits for; a process has one more, for its futures (see `waiter`). Each end
//! of a channel has a *bell*, which the other side looks at after each of its operations. Who goes to sleep writes the bed's
//! name on the bell of each end it waits for; who finds a name on a bell takes it off and wakes that bed. So waiting for a
//! thousand ends is one sleep, and costs their other sides what waiting for one does. A bed that is woken for nothing, by an
//! old name, a signal or a stranger, looks around and sleeps on.
//!
//! Who waits for ends of several buffers has a context in each, and sleeps in all their beds at once. Where the kernel can't do
//! that (see `sys::futex::wait_any`) it sleeps in the first, a [`nap`] at a time, and looks at the others in between.
//!
//! Time is the monotonic clock's throughout (`Instant`, and the kernel's for a futex's relative timeout): setting the wall clock
//! ends no wait and prolongs none.
//!
//! # Layout
//! ```text
//! bell: 31                      8 7    4   3       2       1      0
//!       [ bed                    ][     ][EAGER][OFTEN][FENCED][GONE]     0 in steady state
//! bed:  0 nobody's, 1 + context slot, 1 + CONTEXTS + process slot
//! ```
//!
//! # Ownership
//! Of a bell: the bed, `EAGER` and `OFTEN` are set by the side that sleeps, and cleared by it, the other side, or whoever changes
//! the channel under the control lock, or leaves it; `GONE` is set by the consumer that leaves, and cleared by the next one when it has
//! the role; `FENCED` is the directory's, under that lock, and the sleeper's (see below). A bed's word is changed by whoever wakes it.
//!
//! # Orderings
//! `SYNC(wake)`: the sleeper reads its bed's word, writes its name on the bell, makes a barrier, and looks for what it waits for
//! once more before it sleeps on the word it read. The peer makes its change, then looks at the bell: one of the two sees
//! the other's store. A peer that sees a name takes it off, changes the bed's word, and wakes.
//!
//! The peer's store and load have only a compiler fence between them, so the sleeper's barrier must be heavy for both
//! (`sys::barrier`). Or the peer fences for itself, on its slow path, to which any bit on the bell leads it. The sleeper asks for that
//! with `OFTEN` when so little happens between its sleeps that a fence at each operation is cheaper than a system call at
//! each sleep: one heavy barrier after the bit was set, and none as long as it stands. The peer clears it when it
//! has looked [`BUSY`] times and found nobody asleep.
//!
//! A process that can't make heavy barriers sets `FENCED` on the bells of its channels, both when it attaches and when a barrier
//! fails, which stays. Instead of the barrier after that, its first sleep is a [`nap`]: no processor keeps a store to itself
//! for so long. The other way round, what is registered for heavy barriers can't be forbidden later.
//!
//! # If a process dies
//! | after | what is left | who makes up for it |
//! |---|---|---|
//! | its name is on the bell | the name of a bed where nobody sleeps, or somebody else | the next peer that looks takes it off; whoever has that bed looks around once in vain |
//! | it took a name off | a sleeper that nobody wakes | the sleeper, within a [`tick`] |
//! | it changed the bed's word | the same | the same |

use crate::arena::Arena;
use crate::layout::CONTEXTS;
use crate::ready::Ready;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::crash::point;
use crate::sys::{barrier, futex, task};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What an end does while it has nothing to receive, or no room to send.
///
/// ```
/// # let name = format!("doc-wait-strategy-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{ChannelOptions, WaitStrategy};
/// use std::time::Duration;
/// let options = ChannelOptions::new().wait_strategy(WaitStrategy::Block);
/// let mut rx = ctx.consumer_with::<u64>(1, &options)?;
/// assert!(rx.recv_timeout(Duration::from_millis(1)).is_err(), "slept at once, and came back in time");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Never sleeps: the quickest answer, for one core that does nothing else.
    Spin,
    /// Spins for about as long as falling asleep and being woken would take, then sleeps. Does not spin on a single core.
    #[default]
    Adaptive,
    /// Sleeps at once: leaves the core to others.
    Block,
}

/// Bits of a bell.
pub(crate) mod flags {
    /// The consumer has left (on the producer's side only).
    pub(crate) const GONE: u32 = 1;
    /// Somebody here can't make, or be reached by, heavy barriers: fence for yourself.
    pub(crate) const FENCED: u32 = 2;
    /// The other side sleeps often: fence for yourself.
    pub(crate) const OFTEN: u32 = 4;
    /// Wake the sleeper at the first change, however small.
    pub(crate) const EAGER: u32 = 8;
    /// The bed, or 0 if nobody sleeps.
    pub(crate) const BED: u32 = !0 << BED_SHIFT;
    pub(crate) const BED_SHIFT: u32 = 8;
}
use flags::{BED, BED_SHIFT, EAGER, FENCED, OFTEN};

/// How long to look before sleeping: about what falling asleep and being woken costs, so that at worst waiting costs twice what
/// the better choice would have.
const SPIN: Duration = Duration::from_micros(20);
/// Looks between two readings of the clock, or questions that cost more than a look.
const LOOKS: u32 = 64;
/// Operations between two sleeps that make a heavy barrier cheaper than a fence at each of them.
const BUSY: u32 = 64;

/// The longest sleep without looking around: 125 ms, half of what a dead peer may go unnoticed. Sleeps end at multiples of it, so
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

/// The first sleep of an end that may be kept waiting for more room, or whose name a peer may not have seen: 5 ms.
pub(crate) fn nap() -> Duration {
    tick() / 25
}

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

impl WaitStrategy {
    /// Looks that a wait begins with, before anything is set up for it: none where the other side can't run meanwhile.
    pub(crate) fn first_looks(self) -> u32 {
        if self == WaitStrategy::Block || !has_other_cores() { 0 } else { LOOKS }
    }

    /// Whether a future that began to wait at `since` looks again at once, instead of leaving it to the waiter to wake it.
    #[cfg(feature = "async")]
    pub(crate) fn looks_on(self, since: Instant) -> bool {
        match self {
            WaitStrategy::Spin => true,
            WaitStrategy::Adaptive => has_other_cores() && since.elapsed() < SPIN,
            WaitStrategy::Block => false,
        }
    }
}

/// The word that a context sleeps on, or a process's waiter, and its name on bells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bed<'a> {
    word: &'a AtomicU32,
    name: u32,
}

impl<'a> Bed<'a> {
    /// The bed of the context slot `index`.
    pub(crate) fn of(arena: &Arena, index: u32) -> Option<Bed<'a>> {
        Some(Bed { word: &arena.context(index)?.bed, name: (index + 1) << BED_SHIFT })
    }

    /// The bed of the process slot `index`.
    pub(crate) fn of_process(arena: &Arena, index: u32) -> Option<Bed<'a>> {
        Some(Bed { word: &arena.process(index)?.bed, name: (CONTEXTS + index + 1) << BED_SHIFT })
    }

    /// The bed that is named on a bell which says `bell`.
    fn named(arena: &Arena, bell: u32) -> Option<Bed<'a>> {
        let index = (bell >> BED_SHIFT).checked_sub(1)?;
        index.checked_sub(CONTEXTS).map_or_else(|| Self::of(arena, index), |index| Self::of_process(arena, index))
    }

    #[cfg(feature = "async")]
    pub(crate) fn word(self) -> &'a AtomicU32 {
        self.word
    }

    /// Whether its name is still on the bell: nobody has rung.
    #[cfg(feature = "async")]
    pub(crate) fn is_on(self, bell: &AtomicU32) -> bool {
        bell.load(Ordering::Acquire) & BED == self.name
    }
}

impl PartialEq for Bed<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.word, other.word)
    }
}

/// What an end remembers of its sleeps, and of the other side's.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// [`Ready::position`] at the last sleep.
    position: Cell<u64>,
    /// The `OFTEN` or `FENCED` that stood on the bell at the last sleep is known to the peer.
    fences: Cell<bool>,
    /// Waited in vain since the peer was last looked at, over all waits: short timeouts in a row must see a dead peer too.
    in_vain: Cell<Duration>,
    /// Looks in a row at the other side's bell that found nobody asleep.
    alone: Cell<u32>,
}

/// How to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) strategy: WaitStrategy,
    pub(crate) deadline: Option<Instant>,
    /// Breaths between two glances, so that the line looked at is left to the other side for a moment.
    pub(crate) pace: u32,
}

impl Waits {
    /// A nap is over: whatever stood on the bell, the peer knows it by now.
    pub(crate) fn have_napped(&self) {
        self.fences.set(true);
    }
}

impl Wait {
    fn left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Waits for `ends` until `ready` gives something or the deadline has passed. `glance` is cheap and says whether `ready` is
/// worth a try. Every [`tick`] of waiting in vain, be it in one wait or in many short ones, looks whether the peers live.
pub(crate) fn until<R>(
    wait: Wait,
    ends: &[Rc<dyn Ready>],
    glance: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<R>,
) -> Option<R> {
    let result = ready();
    if result.is_some() || wait.left().is_zero() {
        return result;
    }
    let spins = match wait.strategy {
        WaitStrategy::Spin => true,
        WaitStrategy::Adaptive => has_other_cores(),
        WaitStrategy::Block => false,
    };
    if spins {
        // In a stream the other side is never far: the first looks don't even ask the clock.
        if let Some(result) = look(wait.pace, &glance, &mut ready) {
            return Some(result);
        }
        if wait.strategy == WaitStrategy::Spin {
            return spin(wait, ends, glance, ready);
        }
        let (start, longest) = (Instant::now(), wait.left().min(SPIN));
        while start.elapsed() < longest {
            if let Some(result) = look(wait.pace, &glance, &mut ready) {
                return Some(result);
            }
        }
    }
    sleep(wait, ends, ready)
}

/// Looks some dozens of times.
#[inline]
pub(crate) fn look<R>(pace: u32, glance: &impl Fn() -> bool, ready: &mut impl FnMut() -> Option<R>) -> Option<R> {
    (0..LOOKS / pace.clamp(1, LOOKS)).find_map(|_| {
        (0..pace).for_each(|_| std::hint::spin_loop());
        if glance() { ready() } else { None }
    })
}

fn spin<R>(
    wait: Wait,
    ends: &[Rc<dyn Ready>],
    glance: impl Fn() -> bool,
    mut ready: impl FnMut() -> Option<R>,
) -> Option<R> {
    let mut looked_around = Instant::now();
    loop {
        // What is not work is seen here: a glance does not look for it.
        let result = look(wait.pace, &glance, &mut ready).or_else(&mut ready);
        if result.is_some() || wait.left().is_zero() {
            return result;
        }
        if looked_around.elapsed() >= tick() {
            look_around(ends, looked_around.elapsed());
            looked_around = Instant::now();
        }
        if !has_other_cores() {
            std::thread::yield_now();
        }
    }
}

fn sleep<R>(wait: Wait, ends: &[Rc<dyn Ready>], mut ready: impl FnMut() -> Option<R>) -> Option<R> {
    // Without an open context there is nothing to wait for.
    let bed = ends.iter().find_map(|end| end.bed())?;
    let (mut one, mut several);
    let words = if ends.iter().all(|end| end.bed() == Some(bed)) {
        one = [(bed.word, 0)];
        &mut one[..]
    } else {
        several = words_of(ends);
        &mut several[..]
    };
    let mut eager = !ends.iter().any(|end| end.is_patient());
    loop {
        words.iter_mut().for_each(|(word, seen)| *seen = word.load(Ordering::Acquire));
        let known = lie_down(ends, |end| end.bed(), eager);
        point!("sleep: named");
        // As long as nobody rings, the name stays where it is.
        // SYNC(rung)
        while is_quiet(words) {
            let (result, left) = (ready(), wait.left());
            if result.is_some() || left.is_zero() {
                get_up(ends);
                return result;
            }
            let napping = !(eager && known);
            let longest = if napping { nap() } else { task::until_multiple(tick()) };
            let before = Instant::now();
            sleep_on(words, left.min(longest));
            let slept = before.elapsed();
            point!("sleep: woken");
            if is_quiet(words) {
                look_around(ends, slept);
            }
            if napping && slept >= longest {
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

/// The words of these ends' beds, each once.
fn words_of(ends: &[Rc<dyn Ready>]) -> Vec<(&AtomicU32, u32)> {
    let mut beds: Vec<Bed<'_>> = Vec::new();
    for bed in ends.iter().filter_map(|end| end.bed()) {
        if !beds.contains(&bed) {
            beds.push(bed);
        }
    }
    beds.into_iter().map(|bed| (bed.word, 0)).collect()
}

/// Whether every word is what it was seen to be.
fn is_quiet(words: &[(&AtomicU32, u32)]) -> bool {
    words.iter().all(|(word, seen)| word.load(Ordering::Acquire) == *seen)
}

/// Sleeps while every word is what it was seen to be, at most `longest`; where they can't all be watched, while the first is, and
/// no longer than a [`nap`].
pub(crate) fn sleep_on(words: &[(&AtomicU32, u32)], longest: Duration) {
    if !futex::wait_any(words, longest)
        && let Some((first, seen)) = words.first()
    {
        futex::wait(first, *seen, longest.min(nap()));
    }
}

/// Writes each end's bed's name on its bell. From here on, whoever changes one of `ends` after the caller has looked at it wakes
/// its bed; false if that is certain only after a [`nap`].
pub(crate) fn lie_down(ends: &[Rc<dyn Ready>], bed: impl Fn(&dyn Ready) -> Option<Bed<'_>>, eager: bool) -> bool {
    let mut known = true;
    for end in ends {
        let Some(bed) = bed(&**end) else { continue };
        let waits = end.waits();
        let position = end.position();
        let often = position.wrapping_sub(waits.position.replace(position)) < BUSY.into();
        let name = bed.name | if eager { EAGER } else { 0 } | if often { OFTEN } else { 0 };
        let sign = |old| (old & (flags::GONE | FENCED)) | name;
        // SYNC(wake)
        let old = end.bell().update(Ordering::SeqCst, Ordering::Relaxed, sign);
        // Whatever stood there and stands there still.
        known &= old & sign(old) & (OFTEN | FENCED) != 0 && waits.fences.get();
    }
    if known {
        fence(Ordering::SeqCst);
    } else if barrier::heavy() {
        known = true;
        ends.iter().for_each(|end| end.waits().fences.set(true));
    } else {
        ends.iter().for_each(|end| {
            end.waits().fences.set(false);
            end.bell().fetch_or(FENCED, Ordering::SeqCst);
        });
        fence(Ordering::SeqCst);
    }
    known
}

/// Takes the name off every bell.
pub(crate) fn get_up(ends: &[Rc<dyn Ready>]) {
    ends.iter().for_each(|end| clear(end.bell()));
}

/// Takes the name off a bell.
pub(crate) fn clear(bell: &AtomicU32) {
    if bell.load(Ordering::Relaxed) & BED != 0 {
        bell.fetch_and(!(BED | EAGER), Ordering::SeqCst);
    }
}

/// Looks whether the peers live of those ends that were waited for long enough: each live process once. Lends a hand with reaping
/// the others, once in each buffer: however many have died, all who wait for them are to hear of it soon.
pub(crate) fn look_around(ends: &[Rc<dyn Ready>], waited: Duration) {
    let mut alive = Vec::new();
    let mut bereaved: Vec<&Rc<dyn Ready>> = Vec::new();
    for end in ends {
        let in_vain = end.waits().in_vain.get().saturating_add(waited);
        // The first sleep may be a small part of a tick: the next one is not to be the first to count.
        if in_vain < tick() / 10 {
            end.waits().in_vain.set(in_vain);
            continue;
        }
        end.waits().in_vain.set(Duration::ZERO);
        // It may have died while it left: with nobody to tell.
        end.look_again();
        let Some(peer) = end.peer() else { continue };
        // Each buffer has names of its own for processes, as this thread has a bed of its own in each.
        let bed = end.bed();
        if alive.contains(&(bed, peer)) {
            continue;
        }
        if end.check_peer() {
            alive.push((bed, peer));
        } else if bereaved.iter().all(|other| other.bed() != bed) {
            bereaved.push(end);
        }
    }
    bereaved.iter().for_each(|end| end.lend_a_hand());
}

/// For a side that found something on the other side's `bell` after its operation: wakes who sleeps, if `is_due` or eager.
#[cold]
#[inline(never)]
pub(crate) fn answer(arena: &Arena, bell: &AtomicU32, waits: &Waits, is_due: impl FnOnce() -> bool) {
    // SYNC(wake): for those who ask for it, by `OFTEN` or `FENCED`.
    fence(Ordering::SeqCst);
    let seen = bell.load(Ordering::Relaxed);
    if seen & BED == 0 {
        let alone = waits.alone.get() + 1;
        waits.alone.set(alone % BUSY);
        if alone == BUSY && seen & OFTEN != 0 {
            // Fails if somebody lies down now: then it is needed again.
            let _ = bell.compare_exchange(seen, seen & !OFTEN, Ordering::SeqCst, Ordering::Relaxed);
        }
        return;
    }
    waits.alone.set(0);
    if seen & EAGER != 0 || is_due() {
        wake(arena, bell);
    }
}

/// Wakes who sleeps by this bell, after a change that all looks at `ready` see.
pub(crate) fn wake(arena: &Arena, bell: &AtomicU32) {
    // SYNC(wake): both sides change the bell, so one of them comes first; if that is us, the sleeper sees our change.
    let old = bell.fetch_and(!(BED | EAGER), Ordering::SeqCst);
    if let Some(bed) = Bed::named(arena, old) {
        point!("wake: cleared");
        // SYNC(rung)
        announce(bed.word);
    }
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
