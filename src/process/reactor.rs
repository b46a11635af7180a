//! The waiter: one thread that sleeps for all the futures of a process.
//!
//! Promises: it is started by the first future that has to wait, keeps no buffer open, and goes when for a while nobody needs it, or
//! the last buffer is left. It sleeps in the process's bed of every buffer that futures wait in (see `wait`), all at once, and
//! wakes the futures whose bells were rung, who are due, or, looked at once per [`tick`], whose peers are dead. Refuses: to look
//! into channels, and to reap: that is for the thread of an end, when its future is polled.
//!
//! A future that has to wait *parks*: it writes the bed's name on its bell, leaves its waker here, and looks once more. Who rings
//! takes the name off again and says which end it was (`wait::wake`). So those to be woken are those who are named by a hint and whose
//! bells say something else, whatever their channels carry. The thread looks at these, at those who are due, kept in the order of
//! time, and once per tick at all: for dead peers, for what a ringer that was killed has left out, and whether this process was evicted. To park, or to be woken, costs
//! the same however many others wait.
//!
//! Where the kernel can't watch the beds of several buffers at once (see `sys::futex::wait_any`), what comes in others than the
//! first is noticed within a [`nap`](wait::nap).
//!
//! # Ownership
//! Everything here is under one lock. No waker is cloned, woken or dropped under it: that runs others' code (see `wakers`).
//!
//! # Orderings
//! `SYNC(rung)`: who rings takes the name off the bell, leaves the hint, then changes the bed's word (Release). The waiter reads the
//! word (Acquire), then takes the hints and looks at their bells, then sleeps on the word it read: it sees the bell without the
//! name, or does not sleep. A bell that was rung before it was listed here is nobody's to see but the future's: its hint is passed
//! over, so it looks at the bell after it has parked (the lock gives it what the waiter has seen), and if the name is gone,
//! writes it again.
//!
//! # After fork
//! The child has neither the thread nor what was parked. It begins anew.
//!
//! # Invariants
//! 1. A place is listed only while its membership is: [`forget`] comes before it goes.
//! 2. A bell is listed only while its end is attached: [`unpark`] comes before that is detached.
//! 3. What the thread sleeps on is mapped: `forget` waits until it has got up.

#![allow(unsafe_code)]

use crate::directory::{self, Side};
use crate::format::Owner;
use crate::membership::{Membership, participant};
use crate::sync::AtomicU32;
use crate::sys::fork::PerProcess;
use crate::sys::task;
use crate::wait::wakers;
use crate::wait::{self, Bed, EndKey, tick};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::task::Waker;
use std::time::Instant;
use std::{mem, thread};

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
    member: NonNull<Membership>,
    bed: Bed<'static>,
    /// By what hints call their ends.
    parked: BTreeMap<EndKey, Parked>,
    /// Who is to be woken at a time, the soonest first: [`Parked::due`] of each that has one.
    dues: BTreeSet<(Instant, EndKey)>,
    /// Whether any came since the waiter last looked around.
    is_used: bool,
}

// SAFETY: a `Membership` is Sync; all else is Send by itself.
unsafe impl Send for Place {}

/// An end that a future waits for.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    pub(crate) key: EndKey,
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

/// Has `waker` woken, instead of what was parked for this end before, when its bell no longer says `bed`, or at `due`. Gives back who
/// was parked before; or `waker`, if there is no thread to be had.
pub(crate) fn park(
    member: &Membership,
    bed: Bed<'static>,
    watched: Watched,
    waker: Waker,
    due: Option<Instant>,
) -> Result<(News, Option<Waker>), Waker> {
    let waiter = WAITER.get();
    let mut state = waiter.state.lock();
    if !state.runs {
        // Signals are for the application's threads.
        let spawn = || thread::Builder::new().name("ipc-buffer-waiter".into()).spawn(move || waiter.run());
        if task::without_signals(spawn).is_err() {
            return Err(waker);
        }
        state.runs = true;
    }
    let known = state.places.iter().position(|place| place.bed == bed);
    let at = known.unwrap_or_else(|| {
        let member = NonNull::from(member);
        let (parked, dues) = (BTreeMap::new(), BTreeSet::new());
        state.places.push(Place { member, bed, parked, dues, is_used: false });
        state.places.len() - 1
    });
    let place = &mut state.places[at];
    place.is_used = true;
    let (news, before) = place.park(watched, waker, due);
    if state.asleep.as_ref().is_some_and(|(beds, _)| !beds.contains(&bed)) {
        state.disturb();
    }
    state.mind(due);
    Ok((news, before))
}

/// Has what is parked for the end `key` woken at `due`, and not when it was due before.
pub(crate) fn set_due(bed: Bed<'static>, key: EndKey, due: Option<Instant>) {
    let mut state = WAITER.get().state.lock();
    if let Some(place) = state.place(bed) {
        place.set_due(key, due);
        state.mind(due);
    }
}

/// Takes out what is parked for the end `key`; gives its waker back if it was not woken.
pub(crate) fn unpark(bed: Bed<'static>, key: EndKey) -> Option<Waker> {
    let mut state = WAITER.get().state.lock();
    let place = state.place(bed)?;
    place.set_due(key, None);
    place.parked.remove(&key)?.waker
}

/// Forgets a buffer that this process leaves. Its ends are detached.
pub(crate) fn forget(member: &Membership) {
    let Some(waiter) = WAITER.made() else { return };
    let mut state = waiter.state.lock();
    let Some(at) = state.places.iter().position(|place| place.member == NonNull::from(member)) else { return };
    let place = state.places.swap_remove(at);
    debug_assert!(place.parked.is_empty());
    while state.asleep.as_ref().is_some_and(|(beds, _)| beds.contains(&place.bed)) {
        state.disturb();
        waiter.up.wait(&mut state);
    }
    drop(state);
    wakers::let_go(place.parked.into_values().filter_map(|parked| parked.waker));
}

/// In a forked child: see the module.
pub(crate) fn leave() {
    WAITER.leave();
}

impl State {
    /// The buffer that this bed is in.
    fn place(&mut self, bed: Bed<'static>) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.bed == bed)
    }

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
            bed.ring();
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
            let words: Vec<_> = state.places.iter().map(|place| place.bed.read()).collect();
            let mut until = look_around;
            for place in &mut state.places {
                until = place.look(now, &mut woken).map_or(until, |due| due.min(until));
            }
            if !woken.is_empty() {
                MutexGuard::unlocked(&mut state, || wakers::wake(woken));
                continue;
            }
            state.asleep = Some((state.places.iter().map(|place| place.bed).collect(), until));
            MutexGuard::unlocked(&mut state, || wait::sleep_on(&words, until.duration_since(now)));
            state.asleep = None;
            self.up.notify_all();
        }
    }
}

impl Place {
    /// Whether anybody waits here, or has come since the last time this was asked.
    fn is_needed(&mut self) -> bool {
        mem::take(&mut self.is_used) || !self.parked.is_empty()
    }

    /// Has `waker` woken, at `due` or when it was due before; says what the future does not know, and whose place it takes.
    fn park(&mut self, watched: Watched, waker: Waker, due: Option<Instant>) -> (News, Option<Waker>) {
        let new = Parked { watched, waker: None, due: None, news: News::default() };
        let parked = self.parked.entry(watched.key).or_insert(new);
        let before = parked.waker.replace(waker);
        let news = mem::take(&mut parked.news);
        if due.is_some() {
            self.set_due(watched.key, due);
        }
        (news, before)
    }

    /// Has what is parked for `key` woken at `due`, and not when it was due before.
    fn set_due(&mut self, key: EndKey, due: Option<Instant>) {
        let Some(parked) = self.parked.get_mut(&key) else { return };
        if let Some(before) = mem::replace(&mut parked.due, due) {
            self.dues.remove(&(before, key));
        }
        self.dues.extend(due.map(|due| (due, key)));
    }

    /// Takes out the waker of `key`, who is no longer due.
    fn take_waker(&mut self, key: EndKey) -> Option<Waker> {
        self.set_due(key, None);
        self.parked.get_mut(&key)?.waker.take()
    }

    /// Adds to `woken` who was rung, and who is due; says when the next one is.
    fn look(&mut self, now: Instant, woken: &mut Vec<Waker>) -> Option<Instant> {
        let mut rung = Vec::new();
        if self.bed.take_hints(|key| rung.push(key)) {
            self.look_at_bells(woken);
        }
        for key in rung {
            // A hint may be older than the name.
            if self.parked.get(&key).is_some_and(|parked| !self.bed.is_on(parked.watched.bell)) {
                woken.extend(self.take_waker(key));
            }
        }
        while let Some(&(due, key)) = self.dues.first() {
            if due > now {
                return Some(due);
            }
            let waker = self.take_waker(key);
            if let Some(parked) = self.parked.get_mut(&key) {
                parked.news.was_due |= waker.is_some();
            }
            woken.extend(waker);
        }
        None
    }

    /// Adds to `woken` all who were rung.
    fn look_at_bells(&mut self, woken: &mut Vec<Waker>) {
        let bed = self.bed;
        let rung = |(key, parked): (&EndKey, &Parked)| (!bed.is_on(parked.watched.bell)).then_some(*key);
        let rung: Vec<EndKey> = self.parked.iter().filter_map(rung).collect();
        woken.extend(rung.into_iter().filter_map(|key| self.take_waker(key)));
    }

    /// Adds to `woken` whose peer is dead, and who was rung by one who died of it.
    fn look_around(&mut self, woken: &mut Vec<Waker>) {
        self.look_at_bells(woken);
        // SAFETY: invariant 1.
        let member = unsafe { self.member.as_ref() };
        if member.check().is_err() {
            // Nobody rings for the evicted: who is polled now says so.
            let all: Vec<EndKey> = self.parked.keys().copied().collect();
            woken.extend(all.into_iter().filter_map(|key| self.take_waker(key)));
            return;
        }
        let mut seen: BTreeMap<Owner, bool> = BTreeMap::new();
        self.bereave(woken, |watched| {
            let entry = member.arena().directory_entry(watched.channel);
            let Some(peer) = entry.and_then(|entry| directory::holder(entry, watched.peer)) else { return false };
            let is_alive = || participant::is_alive(member.segment(), member.me(), peer);
            !*seen.entry(peer).or_insert_with(is_alive)
        });
    }

    /// Adds to `woken` whose peer is dead, again at each look as long as it has not been reaped: who was to reap may have stopped half-way.
    fn bereave(&mut self, woken: &mut Vec<Waker>, mut is_dead: impl FnMut(&Watched) -> bool) {
        let bereaved: Vec<EndKey> =
            self.parked.iter().filter(|(_, parked)| is_dead(&parked.watched)).map(|(key, _)| *key).collect();
        for (i, key) in bereaved.into_iter().enumerate() {
            woken.extend(self.take_waker(key));
            if let Some(parked) = self.parked.get_mut(&key) {
                parked.news.peer_died = true;
                parked.news.is_asked_to_reap |= i == 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::tests::{LOOKS, bed, bell, ring};
    use std::sync::Arc;
    use std::task::Wake;
    use std::time::Duration;

    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    /// So many parked futures.
    fn place(count: u32) -> Place {
        let bed = bed(4);
        let parked = (0..count).map(|channel| {
            let key = EndKey::new(channel, false);
            let watched = Watched { key, bell: bell(bed, true), channel, peer: Side::Producer };
            let waker = Some(Waker::from(Arc::new(Nobody)));
            (key, Parked { watched, waker, due: None, news: News::default() })
        });
        let (parked, dues) = (parked.collect(), BTreeSet::new());
        Place { member: NonNull::dangling(), bed, parked, dues, is_used: true }
    }

    /// How many are woken by a look, and how many bells that looks at.
    fn look(place: &mut Place, now: Instant) -> (usize, usize) {
        let mut woken = Vec::new();
        LOOKS.set(0);
        place.look(now, &mut woken);
        (woken.len(), LOOKS.get())
    }

    #[test]
    fn who_is_not_concerned_is_not_looked_at() {
        let now = Instant::now();
        for count in [10, 10_000] {
            let mut place = place(count);
            assert_eq!(look(&mut place, now), (0, 0));
            let key = EndKey::new(5, false);
            ring(place.bed, place.parked[&key].watched.bell, key);
            assert_eq!(look(&mut place, now), (1, 1), "of {count}");
            assert_eq!(look(&mut place, now), (0, 0));
            // Of somebody else, and of one that bears the name again.
            let other = place.parked[&EndKey::new(6, false)].watched.bell;
            ring(place.bed, bell(place.bed, true), EndKey::new(count, true));
            ring(place.bed, bell(place.bed, true), EndKey::new(6, false));
            assert_eq!(look(&mut place, now), (0, 1));
            // One whose hint was lost is found by a look at all.
            ring(place.bed, other, EndKey::new(7, true));
            assert_eq!(look(&mut place, now), (0, 0));
            let mut woken = Vec::new();
            place.look_at_bells(&mut woken);
            assert_eq!(woken.len(), 1);
        }
    }

    #[test]
    fn more_rings_than_hints() {
        let mut place = place(100);
        let rung: Vec<EndKey> = place.parked.keys().copied().step_by(3).collect();
        for key in &rung {
            ring(place.bed, place.parked[key].watched.bell, *key);
        }
        assert_eq!(look(&mut place, Instant::now()).0, rung.len());
        assert!(place.parked.iter().all(|(key, parked)| parked.waker.is_none() == rung.contains(key)));
    }

    #[test]
    fn who_is_due_is_woken_in_time() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut place = place(1000);
        for (channel, ms) in [(1, 30), (2, 10), (3, 20), (4, 20)] {
            place.set_due(EndKey::new(channel, false), Some(at(ms)));
        }
        // Put off, and not at all any more.
        place.set_due(EndKey::new(2, false), Some(at(40)));
        place.set_due(EndKey::new(4, false), None);
        let mut woken = Vec::new();
        assert_eq!(place.look(now, &mut woken), Some(at(20)));
        assert_eq!(place.look(at(20), &mut woken), Some(at(30)));
        assert_eq!((woken.len(), place.parked[&EndKey::new(3, false)].news.was_due), (1, true));
        // Rung before it is due: then it is not due any more.
        let key = EndKey::new(1, false);
        ring(place.bed, place.parked[&key].watched.bell, key);
        assert_eq!(place.look(at(25), &mut woken), Some(at(40)));
        assert_eq!((woken.len(), place.parked[&key].news.was_due), (2, false));
        assert_eq!(place.look(at(50), &mut woken), None);
        assert_eq!((woken.len(), place.dues.len()), (3, 0));
        assert!(place.parked.values().all(|parked| parked.due.is_none()));
    }

    #[test]
    fn polled_again_it_is_due_all_the_same() {
        let (now, mut place) = (Instant::now(), place(3));
        let at = |ms| now + Duration::from_millis(ms);
        let watched = place.parked[&EndKey::new(1, false)].watched;
        let waker = || Waker::from(Arc::new(Nobody));
        let mut woken = Vec::new();
        place.park(watched, waker(), Some(at(10)));
        let (_, before) = place.park(watched, waker(), None);
        assert!(before.is_some());
        assert_eq!(place.look(now, &mut woken), Some(at(10)));
        assert_eq!(place.look(at(10), &mut woken), None);
        assert_eq!(woken.len(), 1);
        let (news, before) = place.park(watched, waker(), None);
        assert!(news.was_due && before.is_none());
        assert_eq!(place.look(at(1000), &mut woken), None);
    }

    #[test]
    fn one_of_the_bereaved_reaps_and_all_are_told_until_it_is_done() {
        let mut place = place(10);
        for round in 0..3 {
            let mut woken = Vec::new();
            place.bereave(&mut woken, |watched| watched.channel >= 4);
            assert_eq!(woken.len(), 6);
            let all: Vec<Watched> = place.parked.values().map(|parked| parked.watched).collect();
            let news: Vec<News> =
                all.iter().map(|watched| place.park(*watched, Waker::from(Arc::new(Nobody)), None).0).collect();
            assert_eq!(news.iter().filter(|news| news.peer_died).count(), 6, "in round {round}");
            assert_eq!(news.iter().filter(|news| news.is_asked_to_reap).count(), 1, "in round {round}");
        }
    }
}
