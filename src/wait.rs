//! Waiting: look while it pays, then sleep on a shared futex.
//!
//! Promises: the side that is waited for pays one load of a quiet word; a wake-up is never lost; no sleep is longer than
//! [`tick`], so what nobody announces (a killed peer, a wake that died with its sender) is seen within that time; who waits for
//! many ends looks at those that rang.
//!
//! A context sleeps on one word, its *bed*, whatever it waits for; a process has one more, for its futures (see `waiter`). Each end
//! of a channel has a *bell*, which the other side looks at after each of its operations. Who goes to sleep writes the bed's
//! name on the bell of each end it waits for; who finds a name on a bell takes it off and wakes that bed. So waiting for a
//! thousand ends is one sleep, and costs their other sides what waiting for one does. A bed that is woken for nothing, by an
//! old name, a signal or a stranger, looks around and sleeps on.
//!
//! Who waits for few ends writes the names when it falls asleep, takes them off when it wakes, and looks at all of them. For many
//! ends that is too much: there the names stay on the bells (the ends are *armed*), also while nobody sleeps, and the ringer
//! leaves a *hint* beside the bed, which says what end it was. See [`Select`](crate::Select) and `waiter`.
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
//! | it took a name off | a sleeper that nobody wakes, an armed end that has no name any more | the sleeper, and whoever armed it: it looks at all its ends within a [`tick`] |
//! | it left the hint | a sleeper that nobody wakes | the same; or the next ringer, and then the hint is there |
//! | it changed the bed's word | the same | the same |
//! | `ASLEEP` was set | a bit where nobody sleeps | whoever has that bed next; until then a ring makes a system call in vain |
//!
//! A hint that names no end of this bed's (a former user's, a foreign hand's) is passed over; one that names an end that did not ring
//! is a look in vain.

use crate::arena::Arena;
use crate::layout::{CHANNELS, CONTEXTS};
use crate::ready::Ready;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sys::crash::point;
use crate::sys::{barrier, futex, task};
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::{Rc, Weak};
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
    /// Say who rang.
    pub(crate) const HINT: u32 = 16;
    /// The bed, or 0 if nobody sleeps.
    pub(crate) const BED: u32 = !0 << BED_SHIFT;
    pub(crate) const BED_SHIFT: u32 = 8;
}
use flags::{BED, BED_SHIFT, EAGER, FENCED, HINT, OFTEN};
/// What goes with a name, and is taken off with it.
const NAME: u32 = BED | EAGER | HINT;

/// In a bed's word: somebody sleeps on it.
const ASLEEP: u32 = 1;
/// The other bits of a bed's word count changes.
const CHANGE: u32 = 2;

/// How long to look before sleeping: about what falling asleep and being woken costs, so that at worst waiting costs twice what
/// the better choice would have.
const SPIN: Duration = Duration::from_micros(20);
/// Looks between two readings of the clock, or questions that cost more than a look.
const LOOKS: u32 = 64;
/// Operations between two sleeps that make a heavy barrier cheaper than a fence at each of them.
const BUSY: u32 = 64;

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

/// Which end of which channel of a buffer, as a hint says it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct EndKey(u16);

impl EndKey {
    /// Some hints found no place.
    const ALL: u64 = 0xffff;
    const BITS: u32 = 16;

    /// The producer of channel number `index`, or its consumer.
    #[allow(clippy::cast_possible_truncation)] // at most 2^15
    pub(crate) const fn new(index: u32, sends: bool) -> Self {
        Self((1 + 2 * (index % CHANNELS) + sends as u32) as u16)
    }
}
const _: () = assert!(2 * (CHANNELS as u64) < EndKey::ALL);

/// The word that a context sleeps on, or a process's waiter, what is said beside it, and its name on bells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bed<'a> {
    word: &'a AtomicU32,
    hints: &'a [AtomicU64],
    name: u32,
}

impl<'a> Bed<'a> {
    /// The bed of the context slot `index`.
    pub(crate) fn of(arena: &Arena, index: u32) -> Option<Bed<'a>> {
        let slot = arena.context(index)?;
        Some(Bed { word: &slot.bed, hints: &slot.hints, name: (index + 1) << BED_SHIFT })
    }

    /// The bed of the process slot `index`.
    pub(crate) fn of_process(arena: &Arena, index: u32) -> Option<Bed<'a>> {
        let slot = arena.process(index)?;
        Some(Bed { word: &slot.bed, hints: &slot.hints, name: (CONTEXTS + index + 1) << BED_SHIFT })
    }

    /// The bed that is named on a bell which says `bell`.
    fn named(arena: &Arena, bell: u32) -> Option<Bed<'a>> {
        let index = (bell >> BED_SHIFT).checked_sub(1)?;
        index.checked_sub(CONTEXTS).map_or_else(|| Self::of(arena, index), |index| Self::of_process(arena, index))
    }

    /// Its word, with what it says now, to be slept on.
    pub(crate) fn read(self) -> (&'a AtomicU32, u32) {
        // SYNC(rung)
        (self.word, self.word.load(Ordering::Acquire) | ASLEEP)
    }

    /// Whether its name is still on the bell: nobody has rung.
    pub(crate) fn is_on(self, bell: &AtomicU32) -> bool {
        #[cfg(test)]
        tests::LOOKS.set(tests::LOOKS.get() + 1);
        bell.load(Ordering::Acquire) & BED == self.name
    }

    /// Whether there are hints to be taken.
    pub(crate) fn has_hints(self) -> bool {
        self.hints.iter().any(|cell| cell.load(Ordering::Relaxed) != 0)
    }

    /// Takes the hints; true if there were others that found no place. Each is some end's of this buffer, which may be nobody's here.
    #[must_use]
    pub(crate) fn take_hints(self, mut hint: impl FnMut(EndKey)) -> bool {
        let mut all = false;
        for cell in self.hints.iter().filter(|cell| cell.load(Ordering::Relaxed) != 0) {
            // SYNC(rung)
            let taken = cell.swap(0, Ordering::Acquire);
            for lane in lanes() {
                match taken >> lane & EndKey::ALL {
                    EndKey::ALL => all = true,
                    key @ 1.. => hint(EndKey(u16::try_from(key).unwrap_or(0))),
                    0 => {}
                }
            }
        }
        all
    }

    /// Says beside the bed what end was rung.
    fn leave_hint(self, key: EndKey) {
        for cell in self.hints {
            let mut seen = cell.load(Ordering::Relaxed);
            // Who changes a cell meanwhile has left a hint there or taken them; a foreign hand does not go on for ever either.
            for _ in 0..4 * lanes().count() {
                let Some(free) = lanes().find(|lane| seen >> lane & EndKey::ALL == 0) else { break };
                let said = seen | u64::from(key.0) << free;
                // SYNC(rung)
                match cell.compare_exchange(seen, said, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            }
        }
        if let (Some(cell), Some(lane)) = (self.hints.last(), lanes().last()) {
            // SYNC(rung)
            cell.fetch_or(EndKey::ALL << lane, Ordering::Release);
        }
    }

    /// Changes the word, and wakes whoever sleeps on it.
    pub(crate) fn ring(self) {
        // SYNC(rung), SYNC(asleep)
        let old = self.word.fetch_add(CHANGE, Ordering::AcqRel);
        point!("wake: changed");
        if old & ASLEEP != 0 {
            futex::wake_all(self.word);
        }
    }
}

/// Where in a word the hints are.
fn lanes() -> impl Iterator<Item = u32> {
    (0..u64::BITS / EndKey::BITS).map(|i| i * EndKey::BITS)
}

impl PartialEq for Bed<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.word, other.word)
    }
}

/// Numbers of ends that a [`Select`](crate::Select) is to look at.
pub(crate) type Inbox = RefCell<Vec<usize>>;

/// A `Select` that waits for an end, by a number of its own.
#[derive(Debug)]
struct Watcher {
    inbox: Weak<Inbox>,
    number: usize,
    /// It does not look at the end before it is told to.
    counts_on: bool,
}

/// What an end remembers of its sleeps, and of the other side's.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// [`Ready::position`] at the last sleep.
    position: Cell<u64>,
    /// The `OFTEN` or `FENCED` that stood on the bell at the last sleep is known to the peer.
    fences: Cell<bool>,
    /// Looks in a row at the other side's bell that found nobody asleep.
    alone: Cell<u32>,
    watchers: RefCell<Vec<Watcher>>,
}

impl Waits {
    /// A nap is over: whatever stood on the bell, the peer knows it by now.
    pub(crate) fn have_napped(&self) {
        self.fences.set(true);
    }

    /// After [`lie_down`]: whether the peer is certain to see what was written.
    pub(crate) fn is_known(&self) -> bool {
        self.fences.get()
    }

    /// Has `inbox` told by `number` when the end is no longer armed, from each [`count_on`](Self::count_on) on.
    pub(crate) fn watch(&self, inbox: &Rc<Inbox>, number: usize) {
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher| watcher.inbox.strong_count() > 0);
        watchers.push(Watcher { inbox: Rc::downgrade(inbox), number, counts_on: false });
    }

    pub(crate) fn unwatch(&self, inbox: &Rc<Inbox>, number: usize) {
        self.watchers.borrow_mut().retain(|watcher| !watcher.is_of(inbox, number));
    }

    /// The end is armed and was seen not to be ready.
    pub(crate) fn count_on(&self, inbox: &Rc<Inbox>, number: usize) {
        for watcher in &mut *self.watchers.borrow_mut() {
            watcher.counts_on |= watcher.is_of(inbox, number);
        }
    }

    /// The end may be ready, or is no longer armed: those who count on being told are told, once.
    pub(crate) fn disarm(&self) {
        for watcher in self.watchers.borrow_mut().iter_mut().filter(|watcher| watcher.counts_on) {
            watcher.counts_on = false;
            if let Some(inbox) = watcher.inbox.upgrade() {
                inbox.borrow_mut().push(watcher.number);
            }
        }
    }
}

impl Watcher {
    fn is_of(&self, inbox: &Rc<Inbox>, number: usize) -> bool {
        self.number == number && std::ptr::eq(self.inbox.as_ptr(), Rc::as_ptr(inbox))
    }
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
pub(crate) fn until<R>(
    wait: Wait,
    ends: &[Rc<dyn Ready>],
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

fn sleep<R>(wait: Wait, ends: &[Rc<dyn Ready>], mut ready: impl FnMut() -> Option<R>) -> Option<R> {
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
fn beds_of(ends: &[Rc<dyn Ready>]) -> Vec<Bed<'_>> {
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

/// Writes each end's bed's name on its bell, with `more` bits. From here on, whoever changes one of `ends` after the caller has looked
/// at it wakes its bed; false if that is certain only after a [`nap`] for some ([`Waits::is_known`] says for which).
pub(crate) fn lie_down(ends: &[Rc<dyn Ready>], bed: impl Fn(&dyn Ready) -> Option<Bed<'_>>, more: u32) -> bool {
    let mut unknown: Vec<&Rc<dyn Ready>> = Vec::new();
    for end in ends {
        let Some(bed) = bed(&**end) else { continue };
        let waits = end.waits();
        let position = end.position();
        let often = position.wrapping_sub(waits.position.replace(position)) < BUSY.into();
        let name = bed.name | more | if often { OFTEN } else { 0 };
        let sign = |old| (old & (flags::GONE | FENCED)) | name;
        // SYNC(wake)
        let old = end.bell().update(Ordering::SeqCst, Ordering::Relaxed, sign);
        // Whatever stood there and stands there still.
        if old & sign(old) & (OFTEN | FENCED) == 0 || !waits.fences.get() {
            unknown.push(end);
        }
    }
    let known = if unknown.is_empty() {
        fence(Ordering::SeqCst);
        true
    } else if barrier::heavy() {
        unknown.iter().for_each(|end| end.waits().fences.set(true));
        true
    } else {
        for end in unknown {
            end.waits().fences.set(false);
            end.bell().fetch_or(FENCED, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        false
    };
    if more & HINT == 0 {
        ends.iter().for_each(|end| end.waits().disarm());
    }
    known
}

/// As [`lie_down`], to stay: whoever rings says which end it was.
pub(crate) fn arm(ends: &[Rc<dyn Ready>]) -> bool {
    lie_down(ends, |end| end.bed(), EAGER | HINT)
}

/// Takes the name off every bell.
pub(crate) fn get_up(ends: &[Rc<dyn Ready>]) {
    ends.iter().for_each(|end| clear(end.bell(), end.waits()));
}

/// Takes the name off a bell.
pub(crate) fn clear(bell: &AtomicU32, waits: &Waits) {
    if bell.load(Ordering::Relaxed) & BED != 0 {
        bell.fetch_and(!NAME, Ordering::SeqCst);
    }
    waits.disarm();
}

/// For a side that found something on the `bell` of the end `key`, its peer, after its operation: wakes who sleeps, if `is_due` or
/// eager.
#[cold]
#[inline(never)]
pub(crate) fn answer(arena: &Arena, bell: &AtomicU32, key: EndKey, waits: &Waits, is_due: impl FnOnce() -> bool) {
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
        wake(arena, bell, key);
    }
}

/// Wakes who sleeps by the bell of the end `key`, after a change that all looks at `ready` see.
pub(crate) fn wake(arena: &Arena, bell: &AtomicU32, key: EndKey) {
    // SYNC(wake): both sides change the bell, so one of them comes first; if that is us, the sleeper sees our change.
    let old = bell.fetch_and(!NAME, Ordering::SeqCst);
    if let Some(bed) = Bed::named(arena, old) {
        point!("wake: cleared");
        if old & HINT != 0 {
            bed.leave_hint(key);
            point!("wake: hinted");
        }
        bed.ring();
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::thread;

    thread_local! {
        /// Looks of this thread whether a name is on a bell.
        pub(crate) static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    /// A bed in private memory, with so many words of hints.
    pub(crate) fn bed(words: usize) -> Bed<'static> {
        let hints = Vec::leak((0..words).map(|_| AtomicU64::new(0)).collect());
        Bed { word: Box::leak(Box::new(AtomicU32::new(0))), hints, name: 7 << BED_SHIFT }
    }

    /// A bell with the name of `bed`, or without.
    pub(crate) fn bell(bed: Bed<'_>, named: bool) -> &'static AtomicU32 {
        Box::leak(Box::new(AtomicU32::new(if named { bed.name | HINT } else { OFTEN })))
    }

    /// As whoever rings it.
    pub(crate) fn ring(bed: Bed<'_>, bell: &AtomicU32, key: EndKey) {
        assert_ne!(bell.fetch_and(!NAME, Ordering::SeqCst) & BED, 0);
        bed.leave_hint(key);
        bed.ring();
    }

    fn taken(bed: Bed<'_>) -> (Vec<EndKey>, bool) {
        let mut keys = Vec::new();
        let all = bed.take_hints(|key| keys.push(key));
        (keys, all)
    }

    #[test]
    fn hints_are_taken_once_or_all_are_to_be_looked_at() {
        for words in [3, 4] {
            let bed = bed(words);
            for count in 0..40_u32 {
                let left: Vec<EndKey> = (0..count).map(|i| EndKey::new(CHANNELS - 1 - i / 2, i % 2 == 1)).collect();
                left.iter().for_each(|key| bed.leave_hint(*key));
                assert_eq!(bed.has_hints(), count > 0);
                let (keys, all) = taken(bed);
                let found = 4 * words;
                assert_eq!(all, left.len() > found);
                // The last place says that there were more.
                assert_eq!(keys, left[..left.len().min(if all { found - 1 } else { found })]);
                assert_eq!((taken(bed), bed.has_hints()), ((vec![], false), false));
            }
        }
    }

    #[test]
    fn ends_have_keys_of_their_own() {
        let all: BTreeSet<EndKey> =
            (0..CHANNELS).flat_map(|index| [EndKey::new(index, true), EndKey::new(index, false)]).collect();
        assert_eq!(all.len(), 2 * CHANNELS as usize);
        assert!(all.iter().all(|key| (1..0xffff).contains(&key.0)));
    }

    #[test]
    fn whatever_stands_in_the_hints() {
        let bed = bed(3);
        let mut state = 1_u64;
        for i in 0..10_000 {
            for cell in bed.hints {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(i);
                // With places free, or all ones.
                let odd = state & [u64::MAX, 0xffff, 0xffff_0000_0000_ffff, 0][(state >> 60 & 3) as usize];
                cell.store(odd | if state >> 59 & 1 == 1 { 0xffff << 16 } else { 0 }, Ordering::Relaxed);
            }
            let key = EndKey::new(5, false);
            bed.leave_hint(key);
            let (keys, all) = taken(bed);
            assert!(all || keys.contains(&key));
            assert!(!bed.has_hints());
        }
    }

    #[test]
    fn ringers_and_one_who_takes_lose_nothing() {
        const RINGERS: u32 = 3;
        const EACH: u32 = if cfg!(miri) { 50 } else { 20_000 };
        let bed = bed(3);
        let bells: Vec<&AtomicU32> = (0..RINGERS).map(|_| bell(bed, true)).collect();
        let mut left = vec![EACH; RINGERS as usize];
        thread::scope(|scope| {
            for (i, bell) in (0..).zip(&bells) {
                scope.spawn(move || {
                    let mut rung = 0;
                    while rung < EACH {
                        if bell.load(Ordering::Relaxed) & BED == 0 {
                            thread::yield_now();
                            continue;
                        }
                        ring(bed, bell, EndKey::new(i, true));
                        rung += 1;
                    }
                });
            }
            while left.iter().any(|left| *left > 0) {
                let words = [bed.read()];
                let (keys, all) = taken(bed);
                let rung = |i: u32| all || keys.contains(&EndKey::new(i, true));
                let mut any = false;
                for (i, (bell, left)) in (0..).zip(bells.iter().zip(&mut left)) {
                    if rung(i) && !bed.is_on(bell) && *left > 0 {
                        *left -= 1;
                        any = true;
                        if *left > 0 {
                            bell.fetch_or(bed.name | HINT, Ordering::SeqCst);
                        }
                    }
                }
                if !any {
                    // For longer than a test may take: who is not woken hangs.
                    sleep_on(&words, Duration::from_secs(1000));
                }
            }
        });
        assert!(bells.iter().all(|bell| !bed.is_on(bell)));
    }

    #[test]
    fn a_ring_changes_what_is_slept_on() {
        let bed = bed(3);
        let (_, seen) = bed.read();
        assert_eq!(bed.read().1, seen);
        bed.ring();
        assert_ne!(bed.read().1, seen);
        // Not slept on: the word is another by now.
        sleep_on(&[(bed.word, seen)], Duration::from_secs(1000));
        assert_eq!(bed.word.load(Ordering::Relaxed) & ASLEEP, 0, "nobody sleeps any more");
        sleep_on(&[bed.read()], Duration::from_millis(1));
        assert_eq!(bed.word.load(Ordering::Relaxed) & ASLEEP, 0);
    }

    /// An end that is a bell and nothing else.
    struct Bare(AtomicU32, Waits, Bed<'static>);

    impl Ready for Bare {
        fn has_work(&self) -> bool {
            false
        }
        fn is_refused(&self) -> bool {
            false
        }
        fn is_patient(&self) -> bool {
            false
        }
        fn position(&self) -> u64 {
            1000
        }
        fn local(&self) -> &Rc<crate::local::Local> {
            unreachable!("it has none")
        }
        fn bed(&self) -> Option<Bed<'_>> {
            Some(self.2)
        }
        fn bell(&self) -> &AtomicU32 {
            &self.0
        }
        fn waits(&self) -> &Waits {
            &self.1
        }
        fn peer(&self) -> Option<crate::layout::Owner> {
            None
        }
        fn look_again(&self) {}
        fn check_peer(&self) -> bool {
            true
        }
        fn lend_a_hand(&self) {}
    }

    fn ends(count: usize) -> Vec<Rc<dyn Ready>> {
        (0..count).map(|_| Rc::new(Bare(AtomicU32::new(0), Waits::default(), bed(3))) as Rc<dyn Ready>).collect()
    }

    #[test]
    fn a_name_leaves_what_is_the_directorys() {
        let all = ends(2);
        for stood in [0, flags::GONE, FENCED, flags::GONE | FENCED] {
            for end in &all {
                end.bell().store(stood | OFTEN | (99 << BED_SHIFT), Ordering::Relaxed);
                let known = lie_down(std::slice::from_ref(end), |end| end.bed(), EAGER);
                let name = end.bed().map_or(0, |bed| bed.name);
                assert_eq!(end.bell().load(Ordering::Relaxed) & BED, name);
                assert_eq!(end.bell().load(Ordering::Relaxed) & (flags::GONE | stood), stood);
                assert_eq!(known, end.waits().is_known());
                get_up(std::slice::from_ref(end));
                assert_eq!(end.bell().load(Ordering::Relaxed) & NAME, 0);
                assert_eq!(end.bell().load(Ordering::Relaxed) & (flags::GONE | stood), stood);
            }
        }
    }

    #[test]
    fn each_end_knows_for_itself_what_its_peer_knows() {
        for unknown in 0..3 {
            let all = ends(3);
            for (i, end) in all.iter().enumerate() {
                end.bell().store(FENCED, Ordering::Relaxed);
                end.waits().fences.set(i != unknown);
            }
            let known = lie_down(&all, |end| end.bed(), EAGER);
            // In a process that makes heavy barriers all are known after one.
            assert!(known == all[unknown].waits().is_known());
            assert!((0..3).all(|i| i == unknown || all[i].waits().is_known()), "those who knew, know");
            assert!(known || barrier_is_refused());
            all[unknown].waits().have_napped();
            assert!(lie_down(&all, |end| end.bed(), EAGER), "after a nap");
        }
    }

    fn barrier_is_refused() -> bool {
        !barrier::heavy()
    }

    #[test]
    fn who_counts_on_it_is_told_once() {
        let all = ends(1);
        let end = &all[0];
        let (one, two) = (Rc::new(Inbox::default()), Rc::new(Inbox::default()));
        end.waits().watch(&one, 1);
        end.waits().watch(&two, 2);
        end.waits().disarm();
        assert!(one.borrow().is_empty() && two.borrow().is_empty(), "nobody counts on it");
        let told = |inbox: &Rc<Inbox>| inbox.take();
        arm(&all);
        end.waits().count_on(&one, 1);
        arm(&all);
        assert_eq!((told(&one), told(&two)), (vec![], vec![]), "it is armed still");
        lie_down(&all, |end| end.bed(), EAGER);
        get_up(&all);
        assert_eq!((told(&one), told(&two)), (vec![1], vec![]));
        end.waits().count_on(&one, 1);
        end.waits().count_on(&two, 2);
        end.waits().unwatch(&one, 1);
        clear(end.bell(), end.waits());
        assert_eq!((told(&one), told(&two)), (vec![], vec![2]));
    }
}
