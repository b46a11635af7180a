//! The waiter: one thread that sleeps for all the futures of a process.
//!
//! Promises: it is started by the first future that has to wait, keeps no buffer open, and goes when for a while nobody needs it, or
//! the last buffer is left. It sleeps in the process's bed of every buffer that futures wait in (see `wait`), all at once, and
//! wakes the futures whose bells were rung, who are due, or, looked at once per [`tick`], whose peers are dead. Refuses: to look
//! into channels, and to reap: that is for the thread of an end, when its future is polled.
//!
//! A future that has to wait *parks*: it writes the bed's name on its bell, leaves its waker here, and looks once more. Who rings
//! takes the name off again (`wait::wake`). So those to be woken are those whose bells say something else, whatever their
//! channels carry.
//!
//! Where the kernel can't watch the beds of several buffers at once (see `sys::futex::wait_any`), what comes in others than the
//! first is noticed within a [`nap`](wait::nap).
//!
//! # Ownership
//! Everything here is under one lock. No waker is cloned, woken or dropped under it: that runs others' code.
//!
//! # Orderings
//! `SYNC(rung)`: who rings takes the name off the bell, then changes the bed's word (Release). The waiter reads the word
//! (Acquire), then looks at the bells, then sleeps on the word it read: it sees the bell without the name, or does not sleep. A
//! bell that was rung before it was listed here is nobody's to see but the future's: it looks at the bell after it has parked (the
//! lock gives it what the waiter has seen), and if the name is gone, writes it again.
//!
//! # After fork
//! The child has neither the thread nor what was parked. It begins anew.
//!
//! # Invariants
//! 1. A place is listed only while its attachment is: [`forget`] comes before it goes.
//! 2. A bell is listed only while its end is attached: [`unpark`] comes before that is detached.
//! 3. What the thread sleeps on is mapped: `forget` waits until it has got up.

#![allow(unsafe_code)]

use crate::attachment::Attachment;
use crate::directory::{self, Side};
use crate::layout::Owner;
use crate::participant;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::fork::PerProcess;
use crate::sys::task;
use crate::wait::{self, Bed, tick};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::task::Waker;
use std::time::Instant;
use std::{io, mem, ptr, thread};

static WAITER: PerProcess<Waiter> = PerProcess::new();

#[derive(Default)]
struct Waiter {
    state: Mutex<State>,
    /// Told whenever the thread has got up.
    up: Condvar,
}

#[derive(Default)]
struct State {
    /// The buffers that futures wait in, or did lately.
    places: Vec<Place>,
    /// Whether the thread is there.
    runs: bool,
    /// Where it sleeps, and until when.
    asleep: Option<(Vec<Bed<'static>>, Instant)>,
}

/// The futures that wait in one buffer.
struct Place {
    attachment: NonNull<Attachment>,
    bed: Bed<'static>,
    /// By address of their bells.
    parked: BTreeMap<usize, Parked>,
    /// Whether any came since the waiter last looked around.
    is_used: bool,
}

// SAFETY: an `Attachment` is Sync; all else is Send by itself.
unsafe impl Send for Place {}

/// An end that a future waits for.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    pub(crate) bell: &'static AtomicU32,
    /// Its directory entry.
    pub(crate) channel: u32,
    /// Its other side.
    pub(crate) peer: Side,
}

struct Parked {
    watched: Watched,
    /// Gone when it was woken.
    waker: Option<Waker>,
    /// When to wake it, rung or not.
    due: Option<Instant>,
    news: News,
}

/// What a future can't see for itself, when it is polled again.
#[derive(Clone, Copy, Default)]
pub(crate) struct News {
    /// The process at the other end is dead.
    pub(crate) peer_died: bool,
    /// This one of all whose peers have died is to help reaping them; the others would only be late.
    pub(crate) is_asked_to_reap: bool,
    /// It was woken because it was due.
    pub(crate) was_due: bool,
}

fn key(bell: &AtomicU32) -> usize {
    ptr::from_ref(bell).addr()
}

/// Has `waker` woken, instead of what was parked with this bell before, when the bell no longer says `bed`, or at `due`.
pub(crate) fn park(
    attachment: &Attachment,
    bed: Bed<'static>,
    watched: Watched,
    waker: Waker,
    due: Option<Instant>,
) -> Result<News, io::Error> {
    let waiter = WAITER.get();
    let mut state = waiter.state.lock();
    if !state.runs {
        // Signals are for the application's threads.
        let spawn = || thread::Builder::new().name("ipc-buffer-waiter".into()).spawn(move || waiter.run());
        task::without_signals(spawn)?;
        state.runs = true;
    }
    let known = state.places.iter().position(|place| place.bed == bed);
    let at = known.unwrap_or_else(|| {
        let attachment = NonNull::from(attachment);
        state.places.push(Place { attachment, bed, parked: BTreeMap::new(), is_used: false });
        state.places.len() - 1
    });
    let place = &mut state.places[at];
    place.is_used = true;
    let parked = place.parked.entry(key(watched.bell)).or_insert(Parked {
        watched,
        waker: None,
        due: None,
        news: News::default(),
    });
    let before = parked.waker.replace(waker);
    let news = mem::take(&mut parked.news);
    parked.due = due.or(parked.due);
    if state.asleep.as_ref().is_some_and(|(beds, _)| !beds.contains(&bed)) {
        state.disturb();
    }
    state.mind(due);
    drop(state);
    drop(before);
    Ok(news)
}

/// Has what is parked with this bell woken at `due`, and not when it was due before.
pub(crate) fn set_due(bell: &'static AtomicU32, due: Option<Instant>) {
    let mut state = WAITER.get().state.lock();
    if let Some(parked) = state.places.iter_mut().find_map(|place| place.parked.get_mut(&key(bell))) {
        parked.due = due;
        state.mind(due);
    }
}

/// Takes out what is parked with this bell; gives its waker back if it was not woken.
pub(crate) fn unpark(bell: &'static AtomicU32) -> Option<Waker> {
    let mut state = WAITER.get().state.lock();
    state.places.iter_mut().find_map(|place| place.parked.remove(&key(bell)))?.waker
}

/// Forgets a buffer that this process leaves. Its ends are detached.
pub(crate) fn forget(attachment: NonNull<Attachment>) {
    let Some(waiter) = WAITER.made() else { return };
    let mut state = waiter.state.lock();
    let Some(at) = state.places.iter().position(|place| place.attachment == attachment) else { return };
    let place = state.places.swap_remove(at);
    debug_assert!(place.parked.is_empty());
    while state.asleep.as_ref().is_some_and(|(beds, _)| beds.contains(&place.bed)) {
        state.disturb();
        waiter.up.wait(&mut state);
    }
}

/// In a forked child: see the module.
pub(crate) fn leave() {
    WAITER.leave();
}

impl State {
    /// Lets the thread sleep no longer than until `due`.
    fn mind(&self, due: Option<Instant>) {
        let overslept = self.asleep.as_ref().zip(due).is_some_and(|((_, until), due)| *until > due);
        if overslept {
            self.disturb();
        }
    }

    /// Gets the sleeping thread up.
    fn disturb(&self) {
        if let Some(bed) = self.asleep.as_ref().and_then(|(beds, _)| beds.first()) {
            wait::announce(bed.word());
        }
    }
}

impl Waiter {
    /// What the thread does.
    fn run(&self) {
        let mut look_around = Instant::now() + task::until_multiple(tick());
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let mut woken = Vec::new();
            if now >= look_around || state.places.is_empty() {
                look_around = now + task::until_multiple(tick());
                state.places.retain_mut(Place::is_needed);
                if state.places.is_empty() {
                    state.runs = false;
                    return;
                }
                state.places.iter_mut().for_each(|place| place.look_around(&mut woken));
            }
            // SYNC(rung)
            let read = |word: &'static AtomicU32| (word, word.load(Ordering::Acquire));
            let words: Vec<_> = state.places.iter().map(|place| read(place.bed.word())).collect();
            let mut until = look_around;
            for place in &mut state.places {
                until = place.look(now, &mut woken).map_or(until, |due| due.min(until));
            }
            if !woken.is_empty() {
                MutexGuard::unlocked(&mut state, || woken.into_iter().for_each(wake));
                continue;
            }
            state.asleep = Some((state.places.iter().map(|place| place.bed).collect(), until));
            MutexGuard::unlocked(&mut state, || wait::sleep_on(&words, until.duration_since(now)));
            state.asleep = None;
            self.up.notify_all();
        }
    }
}

fn wake(waker: Waker) {
    // One that panics has told so; the others are to be woken all the same.
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

impl Place {
    /// Whether anybody waits here, or has come since the last time this was asked.
    fn is_needed(&mut self) -> bool {
        mem::take(&mut self.is_used) || !self.parked.is_empty()
    }

    /// Adds to `woken` who was rung, and who is due; says when the next one is.
    fn look(&mut self, now: Instant, woken: &mut Vec<Waker>) -> Option<Instant> {
        let mut next = None;
        for parked in self.parked.values_mut().filter(|parked| parked.waker.is_some()) {
            let is_due = parked.due.is_some_and(|due| due <= now);
            if is_due || !self.bed.is_on(parked.watched.bell) {
                parked.news.was_due = is_due;
                parked.due = None;
                woken.extend(parked.waker.take());
            } else if let Some(due) = parked.due {
                next = Some(next.unwrap_or(due).min(due));
            }
        }
        next
    }

    /// Adds to `woken` whose peer is dead.
    fn look_around(&mut self, woken: &mut Vec<Waker>) {
        // SAFETY: invariant 1.
        let attachment = unsafe { self.attachment.as_ref() };
        let mut seen: Vec<(Owner, bool)> = Vec::new();
        let mut somebody_reaps = false;
        for parked in self.parked.values_mut() {
            let entry = attachment.arena().directory_entry(parked.watched.channel);
            let Some(peer) = entry.and_then(|entry| directory::holder(entry, parked.watched.peer)) else { continue };
            let known = seen.iter().find(|(who, _)| *who == peer).map(|(_, is_alive)| *is_alive);
            let is_alive = known.unwrap_or_else(|| {
                let is_alive = participant::is_alive(attachment.segment(), attachment.me(), peer);
                seen.push((peer, is_alive));
                is_alive
            });
            if !is_alive {
                parked.news.peer_died = true;
                parked.news.is_asked_to_reap |= !mem::replace(&mut somebody_reaps, true);
                woken.extend(parked.waker.take());
            }
        }
    }
}
