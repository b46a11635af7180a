//! Bells and beds: who sleeps where, and how who changes something finds out. The protocol is told in [`wait`](super).

use crate::format::{CHANNELS, CONTEXTS};
use crate::segment::arena::Arena;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sys::crash::point;
use crate::sys::{barrier, futex};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

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
pub(super) const ASLEEP: u32 = 1;
/// The other bits of a bed's word count changes.
const CHANGE: u32 = 2;

/// Operations between two sleeps that make a heavy barrier cheaper than a fence at each of them.
const BUSY: u32 = 64;

/// What one waits for: an end of a channel.
pub(crate) trait Waitable {
    /// Whether the other side may put off waking this one, for more room, as long as the bell is not `EAGER`.
    fn is_patient(&self) -> bool;

    /// Operations done, ever.
    fn position(&self) -> u64;

    /// Where this end's thread sleeps in this end's buffer; `None` if its context is closed.
    fn bed(&self) -> Option<Bed<'_>>;

    /// The bell by which the other side wakes this one.
    fn bell(&self) -> &AtomicU32;

    /// What is kept here for it.
    fn waits(&self) -> &Waits;
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

/// The word that a context sleeps on, or a process's reactor, what is said beside it, and its name on bells.
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
    /// [`Waitable::position`] at the last sleep.
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

/// Writes each end's bed's name on its bell, with `more` bits. From here on, whoever changes one of `ends` after the caller has looked
/// at it wakes its bed; false if that is certain only after a `nap` for some ([`Waits::is_known`] says for which).
pub(crate) fn lie_down<E: Waitable + ?Sized>(ends: &[Rc<E>], bed: impl Fn(&E) -> Option<Bed<'_>>, more: u32) -> bool {
    let mut unknown: Vec<&Rc<E>> = Vec::new();
    for end in ends {
        let Some(bed) = bed(&**end) else { continue };
        let waits = end.waits();
        let position = end.position();
        let often = position.wrapping_sub(waits.position.replace(position)) < BUSY.into();
        let name = bed.name | more | if often { OFTEN } else { 0 };
        let sign = |old| (old & (flags::GONE | FENCED)) | name;
        // SYNC(wake)
        let (Ok(old) | Err(old)) = end.bell().fetch_update(Ordering::SeqCst, Ordering::Relaxed, |old| Some(sign(old)));
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
pub(crate) fn arm<E: Waitable + ?Sized>(ends: &[Rc<E>]) -> bool {
    lie_down(ends, |end| end.bed(), EAGER | HINT)
}

/// Takes the name off every bell.
pub(crate) fn get_up<E: Waitable + ?Sized>(ends: &[Rc<E>]) {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wait::sleep_on;
    use std::collections::BTreeSet;
    use std::thread;
    use std::time::Duration;

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

    impl Waitable for Bare {
        fn is_patient(&self) -> bool {
            false
        }
        fn position(&self) -> u64 {
            1000
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
    }

    fn ends(count: usize) -> Vec<Rc<dyn Waitable>> {
        (0..count).map(|_| Rc::new(Bare(AtomicU32::new(0), Waits::default(), bed(3))) as Rc<dyn Waitable>).collect()
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
