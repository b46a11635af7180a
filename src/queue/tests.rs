//! The two kinds of ring against a queue that is obviously right, wherever they stand, and what a kill leaves in them.

use super::ring::Ring;
use super::spsc::{End, NotPushed};
use super::value;
use super::window::{clear_beyond, records, records_from};
use crate::format::{MAX_VALUE_BYTES, Shape, SpscHeader};
use crate::sync::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Of granules, or of values of so many bytes, at least 8.
type Kind = Option<usize>;

/// One a row, several, and such that take several lines.
const KINDS: [Kind; 8] = [None, Some(8), Some(16), Some(20), Some(32), Some(56), Some(64), Some(200)];

/// A ring over private memory, at `head` ever since.
fn ring(capacity: usize, kind: Kind, head: u64) -> Ring {
    // SAFETY: all zeroes is a valid header (`Shared`).
    #[allow(unsafe_code)]
    let header: &'static SpscHeader = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    header.head.store(head, Ordering::Relaxed);
    let (capacity, shape) = (capacity as u64, kind.map(Shape::of));
    let words = shape.map_or(capacity, |shape| shape.ring_words(capacity));
    Ring { header, words: Vec::leak((0..words).map(|_| AtomicU64::new(0)).collect()), capacity, shape }
}

/// An end, and what the compiler knows of its messages elsewhere.
struct Tested {
    end: End,
    kind: Kind,
}

/// A value whose every byte depends on its number.
fn bytes(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|i| (number + (i << 40)).to_le_bytes()).take(len).collect()
}

fn granule(number: u64) -> u32 {
    u32::try_from(number % 1000).unwrap() + 1
}

impl Tested {
    fn push(&self, number: u64) -> Result<bool, NotPushed> {
        match self.kind {
            None => self.end.push_granule(granule(number)),
            Some(len) => self.end.push_value(Shape::of(len), |words| value::store(&bytes(number, len), words)),
        }
    }

    /// Of consecutive numbers; `each` is told which, before it is written.
    fn push_batch(&self, first: u64, count: usize, each: impl Fn(usize)) -> Result<usize, NotPushed> {
        let number = |i: usize| {
            each(i);
            first + i as u64
        };
        let pushed = match self.kind {
            None => self.end.push_granules(count, |i| granule(number(i))),
            Some(len) => {
                let put = |i, words: &[_]| value::store(&bytes(number(i), len), words);
                self.end.push_values(Shape::of(len), count, put)
            }
        };
        pushed.map(|(count, _)| count)
    }

    /// Takes as many as are queued, up to `max`, which must be `expected` and those after it, and moves the head once.
    fn take(&self, max: usize, expected: u64) -> usize {
        let mut at = self.end.at();
        let mut taken = 0;
        while taken < max {
            let number = expected + taken as u64;
            match self.kind {
                None => {
                    let Some(found) = at.next_granule() else { break };
                    assert_eq!(found, granule(number));
                    at.step();
                }
                Some(len) => {
                    let Some(words) = self.end.next_value(&mut at, Shape::of(len)) else { break };
                    let mut found = vec![0; len];
                    value::load(&mut found, words);
                    assert_eq!(found, bytes(number, len), "{number} of {len} bytes");
                }
            }
            taken += 1;
        }
        if taken > 0 {
            self.end.receive(at);
        }
        taken
    }
}

fn producer(ring: Ring, kind: Kind) -> Tested {
    clear_beyond(ring);
    Tested { end: End::producer(ring), kind }
}

fn consumer(ring: Ring, kind: Kind) -> Tested {
    Tested { end: End::consumer(ring), kind }
}

/// Clears what a torn batch left, as a new producer does, but is killed after `steps` of it.
fn clear_partly(ring: Ring, steps: usize) {
    let before: Vec<u64> = ring.words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
    clear_beyond(ring);
    // The words that changed, in the order in which that was done: from the last position to the first.
    let at = usize::try_from(ring.head() % ring.capacity).unwrap();
    let mut changed: Vec<usize> =
        (0..before.len()).filter(|i| ring.words[*i].load(Ordering::Relaxed) != before[*i]).collect();
    match ring.shape {
        None => changed.sort_by_key(|i| (i + before.len() - at) % before.len()),
        Some(_) => changed.sort_by_key(|i| ring.words[*i].load(Ordering::Relaxed)),
    }
    let undone = changed.len().saturating_sub(steps);
    for i in &changed[..undone] {
        ring.words[*i].store(before[*i], Ordering::Relaxed);
    }
}

/// Random operations, new ends among them, on the ring and on a queue that is obviously right. With `kills`, producers are killed
/// anywhere in a batch, others while they clear what those left, and the consumer goes on meanwhile with what it remembers.
fn like_a_deque(capacity: usize, kind: Kind, head: u64, seed: u64, operations: u64, kills: bool) {
    let ring = ring(capacity, kind, head);
    let (mut tx, mut rx) = (producer(ring, kind), consumer(ring, kind));
    let mut twin = VecDeque::new();
    let mut next = 0;
    let mut state = seed;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        usize::try_from((state >> 33) % limit as u64).unwrap()
    };
    for _ in 0..operations {
        match below(if kills { 10 } else { 8 }) {
            0 | 1 => match tx.push(next) {
                Ok(_) => {
                    twin.push_back(next);
                    next += 1;
                }
                Err(why) => assert_eq!((why, twin.len()), (NotPushed::Full, capacity)),
            },
            2 => {
                let (want, free) = (1 + below(2 * capacity), capacity - twin.len());
                match tx.push_batch(next, want, |_| ()) {
                    Ok(count) => {
                        // The consumer was seen far enough for as many as were asked for, or as there is room for.
                        assert_eq!(count, want.min(free));
                        twin.extend(next..next + count as u64);
                        next += count as u64;
                    }
                    Err(why) => assert_eq!((why, free), (NotPushed::Full, 0)),
                }
            }
            3 | 4 => {
                let expected = twin.pop_front();
                assert_eq!(rx.take(1, expected.unwrap_or(0)), usize::from(expected.is_some()));
            }
            5 => {
                let max = below(capacity + 2);
                let taken = rx.take(max, twin.front().copied().unwrap_or(0));
                assert_eq!(taken, max.min(twin.len()));
                twin.drain(..taken);
            }
            6 => rx = consumer(ring, kind),
            7 | 8 if kills && twin.len() < capacity => {
                // Numbers that nobody may see. The producer is the one there is, with the room it knows of, or a new one.
                let count = 1 + below(capacity - twin.len());
                let written = below(count + 1);
                let word = publishes(ring, tx.end.position());
                let before = word.load(Ordering::Relaxed);
                let lies = 1 << 30;
                if written < count && (kind.is_some() || written > 0) {
                    let stop = |i| assert!(i != written, "killed");
                    let killed = catch_unwind(AssertUnwindSafe(|| tx.push_batch(lies, count, stop)));
                    assert!(killed.is_err());
                } else {
                    assert_eq!(tx.push_batch(lies, count, |_| ()), Ok(count));
                    word.store(before, Ordering::Relaxed);
                }
                assert_eq!(ring.len(), twin.len());
                // The consumer goes on meanwhile.
                let taken = rx.take(below(capacity + 1), twin.front().copied().unwrap_or(0));
                twin.drain(..taken);
                for _ in 0..below(3) {
                    clear_partly(ring, below(capacity));
                    assert_eq!(ring.len(), twin.len());
                    let taken = rx.take(below(2), twin.front().copied().unwrap_or(0));
                    twin.drain(..taken);
                }
                tx = producer(ring, kind);
            }
            _ => tx = producer(ring, kind),
        }
        assert_eq!(ring.len(), twin.len());
        assert_eq!(rx.end.has_queued(), !twin.is_empty());
        assert_eq!(tx.end.has_room(), twin.len() < capacity);
        assert_eq!(rx.end.position() + twin.len() as u64, tx.end.position());
    }
    assert!(kills || next > operations / 8);
}

#[test]
fn a_ring_is_a_queue_wherever_it_stands() {
    for (seed, kind) in (1..).zip(KINDS) {
        for capacity in [2, 4, 8, 16, 64] {
            let lap = capacity as u64;
            for head in [0, 1, 6, 12, (1 << 32) - 3, (1 << 32) * lap - 3, (1 << 50) - 1] {
                like_a_deque(capacity, kind, head, seed + head, 1500, false);
            }
        }
    }
}

/// Through the same slots again and again: hundreds of laps of a few values.
#[test]
fn laps_do_not_wear_a_ring_out() {
    for kind in KINDS {
        like_a_deque(4, kind, 0, 99, 12_000, false);
    }
}

/// A slot that says what it said 2^32 positions ago would look new: every slot in between was written.
#[test]
fn positions_are_told_apart_within_a_lap() {
    for head in [(1_u64 << 32) - 4, (1 << 33) - 1, 5] {
        let ring = ring(4, None, head);
        let tx = End::producer(ring);
        assert!(!(head - 4..head + 8).any(|position| ring.granule(position).is_some()));
        assert_eq!(tx.push_granule(7), Ok(false));
        let seen: Vec<_> = (head - 4..head + 8).filter(|position| ring.granule(*position).is_some()).collect();
        assert_eq!(seen, [head]);
    }
}

/// The word whose store publishes what is at `position`.
fn publishes(ring: Ring, position: u64) -> &'static AtomicU64 {
    match ring.shape {
        None => &ring.words[usize::try_from(position % ring.capacity).unwrap()],
        Some(shape) => value::stamp(ring.words, shape, position).unwrap(),
    }
}

/// A producer that was killed inside a batch of `count`, having written `written` of it, or all but the stamp that publishes it.
fn torn(ring: Ring, kind: Kind, next: u64, count: usize, written: Option<usize>) {
    let dead = producer(ring, kind);
    let word = publishes(ring, dead.end.position());
    let before = word.load(Ordering::Relaxed);
    match written {
        Some(written) => {
            let stop = |i| assert!(i != written, "killed");
            let killed = catch_unwind(AssertUnwindSafe(|| dead.push_batch(next, count, stop)));
            assert!(killed.is_err() && word.load(Ordering::Relaxed) == before);
        }
        None => {
            assert_eq!(dead.push_batch(next, count, |_| ()), Ok(count));
            word.store(before, Ordering::Relaxed);
        }
    }
}

/// Nothing of it is ever seen, and what is queued is as it was, whatever rows the two share.
#[test]
fn what_a_torn_batch_leaves_is_cleared() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = catch_unwind(|| {
        for kind in KINDS {
            for (capacity, head) in [(2, 1), (8, 0), (8, (1 << 32) - 5), (16, 6), (16, 13)] {
                for queued in 0..capacity {
                    for count in 1..=capacity - queued {
                        for written in (0..count).step_by(3).map(Some).chain([None]) {
                            a_torn_batch(capacity, kind, head, queued, count, written);
                        }
                    }
                }
            }
        }
    });
    std::panic::set_hook(quiet);
    result.unwrap();
}

fn a_torn_batch(capacity: usize, kind: Kind, head: u64, queued: usize, count: usize, written: Option<usize>) {
    if kind.is_none() && written == Some(0) {
        // Of granules, the first is written last.
        return;
    }
    let ring = ring(capacity, kind, head);
    let rx = consumer(ring, kind);
    // A lap before, for all stamps to be of some lap, and the consumer amid a row.
    let tx = producer(ring, kind);
    for number in 0..capacity as u64 {
        tx.push(number).unwrap();
        assert_eq!(rx.take(1, number), 1);
    }
    let mut next = capacity as u64;
    (0..queued).for_each(|_| {
        tx.push(next).unwrap();
        next += 1;
    });
    torn(ring, kind, next, count, written);
    let context = (capacity, kind, head, queued, count, written);
    assert_eq!(ring.len(), queued, "nothing of it is seen: {context:?}");
    // The consumer goes on before there is another producer, and then with it.
    let before = queued / 2;
    assert_eq!(rx.take(before, capacity as u64), before, "{context:?}");
    let tx = producer(ring, kind);
    assert_eq!((ring.len(), tx.end.position()), (queued - before, head + next), "{context:?}");
    let room = capacity - (queued - before);
    for number in next..next + room as u64 {
        assert_eq!(ring.len(), queued - before + usize::try_from(number - next).unwrap(), "{context:?}");
        tx.push(number).unwrap();
    }
    assert_eq!(tx.push(0), Err(NotPushed::Full));
    assert_eq!(rx.take(usize::MAX, (capacity + before) as u64), capacity, "{context:?}");
    assert!(!rx.end.has_queued() && !consumer(ring, kind).end.has_queued());
}

/// What stamps say of one lap, and of a batch that is not published, is nothing to those who are in another.
#[test]
fn no_window_has_a_row_of_two_laps() {
    for (capacity, len) in
        [2_u64, 4, 8, 1024].into_iter().flat_map(|capacity| [8, 16, 24, 56, 64].map(|len| (capacity, len)))
    {
        let ring = ring(usize::try_from(capacity).unwrap(), Some(len), 0);
        for head in 0..3 * capacity {
            let row = |position| std::ptr::from_ref(publishes(ring, position));
            let mut beyond = (head..head + capacity).skip_while(|position| row(*position) == row(head));
            assert!(beyond.all(|position| row(position) != row(head)), "{capacity} of {len} bytes from {head}");
        }
    }
}

/// It used to end where the slot at hand had gone round, and with it the reaper's look at a dead sender's records behind it:
/// they were freed while queued.
#[test]
fn a_window_that_moves_on_is_still_seen_to_its_end() {
    let ring = ring(4, None, 0);
    let producer = End::producer(ring);
    (10..14).for_each(|granule| assert!(producer.push_granule(granule).is_ok()));
    let mut walk = records(ring);
    assert_eq!(walk.next(), Some((0, 10)));
    // The consumer takes two, and the producer uses their slots.
    ring.header.head.store(2, Ordering::Release);
    (14..16).for_each(|granule| assert!(producer.push_granule(granule).is_ok()));
    // Not those that came since, or the walk might have no end.
    assert_eq!(walk.collect::<Vec<_>>(), [(2, 12), (3, 13)]);
    assert_eq!(records(ring).collect::<Vec<_>>(), [(2, 12), (3, 13), (4, 14), (5, 15)]);
    assert_eq!(records_from(ring, 4).collect::<Vec<_>>(), [(4, 14), (5, 15)]);
    assert_eq!(records_from(ring, 6).count(), 0);
}

#[test]
fn values_share_lines_and_none_lies_across_two() {
    // Bytes, values a row, lines a row.
    let shapes =
        [(0, 7, 1), (1, 7, 1), (8, 7, 1), (9, 3, 1), (16, 3, 1), (17, 2, 1), (24, 2, 1), (25, 1, 1), (56, 1, 1)];
    let large = [(57, 1, 2), (120, 1, 2), (121, 1, 3), (MAX_VALUE_BYTES, 1, 16)];
    for (bytes, values, lines) in shapes.into_iter().chain(large) {
        let capacity = 1024_u64;
        let rows = (capacity + values - 1).div_ceil(values);
        assert_eq!(Shape::of(bytes).ring_words(capacity), rows * lines * 8, "{bytes}");
    }
    // The smallest ring has room for two, and a batch of two that begins anywhere.
    assert_eq!(Shape::of(8).ring_words(2), 16);
}

#[test]
fn every_length_comes_out_as_it_went_in() {
    for len in 0..=40_usize {
        let value = bytes(1, len);
        let words: Vec<AtomicU64> = (0..len.div_ceil(8)).map(|_| AtomicU64::new(u64::MAX)).collect();
        value::store(&value, &words);
        let mut back = vec![0; len];
        value::load(&mut back, &words);
        assert_eq!(back, value);
    }
}

#[test]
fn a_ring_is_a_queue_whoever_is_killed() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("killed") {
            eprintln!("{info}");
        }
    }));
    let result = catch_unwind(|| {
        for (seed, kind) in (1..).zip(KINDS) {
            for capacity in [2, 4, 8, 16, 64] {
                for head in [0, 1, 6, 12, (1 << 32) - 3, (1 << 50) - 1, (1 << 63) - 5] {
                    like_a_deque(capacity, kind, head, seed ^ head, 2500, true);
                }
            }
        }
    });
    std::panic::set_hook(quiet);
    result.unwrap();
}

/// Whatever a peer writes, there is no panic (debug: no overflow), and every operation ends.
#[test]
fn a_hostile_ring_is_survived() {
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    };
    for kind in KINDS {
        for capacity in [2_usize, 4, 16, 64] {
            let ring = ring(capacity, kind, 0);
            let (mut tx, mut rx) = (End::producer(ring), End::consumer(ring));
            for _ in 0..30_000 {
                let near = |base: u64, random: u64| base.wrapping_add(random % 80).wrapping_sub(40);
                let odd = match random() % 6 {
                    0 => random(),
                    1 => near(u64::MAX, random()),
                    2 => near(0, random()),
                    3 => near(tx.position(), random()),
                    4 => near(rx.position(), random()),
                    _ => near(ring.head(), random()),
                };
                match random() % 16 {
                    0 => ring.header.head.store(odd, Ordering::Relaxed),
                    1 | 2 => {
                        ring.words[usize::try_from(random()).unwrap() % ring.words.len()].store(odd, Ordering::Relaxed)
                    }
                    3 => {
                        let _ = match kind {
                            None => tx.push_granule(5),
                            Some(len) => tx.push_value(Shape::of(len), |_| ()),
                        };
                    }
                    4 => {
                        let count = 1 + usize::try_from(random()).unwrap() % (2 * capacity);
                        let _ = match kind {
                            None => tx.push_granules(count, |_| 5),
                            Some(len) => tx.push_values(Shape::of(len), count, |_, _| ()),
                        };
                    }
                    5..=7 => {
                        let mut at = rx.at();
                        let mut taken = 0;
                        while taken < capacity
                            && match kind {
                                None => at.next_granule().map(|_| (at.glimpse().for_each(drop), at.step()).1).is_some(),
                                Some(len) => rx.next_value(&mut at, Shape::of(len)).is_some(),
                            }
                        {
                            taken += 1;
                        }
                        if taken > 0 {
                            rx.receive(at);
                        }
                        let _ = rx.has_freed_much(taken);
                    }
                    8 => tx = End::producer(ring),
                    9 => rx = End::consumer(ring),
                    10 => clear_beyond(ring),
                    11 => assert!(ring.len() <= capacity),
                    12 => assert!(records_from(ring, odd).count() <= capacity + 1),
                    13 => assert!(!tx.has_room() || capacity > 0),
                    14 => {
                        let _ = rx.has_queued();
                    }
                    _ => {
                        rx.hesitate();
                    }
                }
            }
        }
    }
}

/// Symptom: a stamp that says more than its row has (a hostile or broken segment) makes a consumer deaf for good: it takes the row, and
/// then finds nothing any more, though it says that something is queued.
#[test]
fn a_stamp_beyond_its_row_does_not_make_a_consumer_deaf() {
    for len in [8, 16, 56, 64] {
        let (ring, kind) = (ring(64, Some(len), 0), Some(len));
        let (tx, rx) = (producer(ring, kind), consumer(ring, kind));
        (0..40).for_each(|number| assert!(tx.push(number).is_ok()));
        publishes(ring, 0).store(u64::MAX, Ordering::Relaxed);
        let mut taken = 0;
        for _ in 0..100 {
            assert_eq!(rx.end.has_queued(), taken < 40);
            taken += rx.take(1, taken) as u64;
        }
        assert_eq!(taken, 40, "{len} bytes");
    }
}

/// What a consumer counts while the producer goes on was queued at some moment of the count.
#[test]
fn counted_while_it_grows() {
    let capacity = 1 << 12;
    for (kind, most, head) in [(None, 5, 3), (Some(8), 1, 0), (Some(8), 16, 3), (Some(56), 3, 1), (None, 1, 0)] {
        let ring = ring(capacity, kind, head);
        let (tx, begun, done) = (producer(ring, kind), AtomicU64::new(0), AtomicU64::new(0));
        let mut counts = 0;
        std::thread::scope(|scope| {
            let (begun, done) = (&begun, &done);
            scope.spawn(move || {
                let mut next = 0;
                while next < capacity as u64 {
                    let count = (1 + next % most).min(capacity as u64 - next);
                    begun.store(next + count, Ordering::SeqCst);
                    // Now and then within a batch, so that counts fall into it.
                    let slowly = |_| std::thread::yield_now();
                    if count == 1 {
                        tx.push(next).unwrap();
                    } else {
                        assert_eq!(
                            tx.push_batch(next, usize::try_from(count).unwrap(), slowly),
                            Ok(usize::try_from(count).unwrap())
                        );
                    }
                    next += count;
                    done.store(next, Ordering::SeqCst);
                }
            });
            let mut last = 0;
            while last < capacity as u64 {
                let before = done.load(Ordering::SeqCst);
                last = ring.len() as u64;
                let after = begun.load(Ordering::SeqCst);
                // All of a batch, or nothing of it.
                assert!((before..=after).contains(&last), "{before} <= {last} <= {after}");
                assert!(last == before || last == after || done.load(Ordering::SeqCst) > before, "{last} of a batch");
                counts += 1;
            }
        });
        assert!(counts > 0);
    }
}

/// Whatever stands where the last batch begins: a count, and no more than fits.
#[test]
fn counted_with_any_beginning() {
    for kind in KINDS {
        let ring = ring(8, kind, 5);
        let tx = producer(ring, kind);
        (0..3).for_each(|i| _ = tx.push(i).unwrap());
        for begun in [0, 4, 5, 6, 7, 8, 9, 12, 13, 14, 1 << 40, u64::MAX] {
            ring.header.batch.store(begun, Ordering::Relaxed);
            assert!(ring.len() <= 8);
            assert_eq!(tx.end.not_taken(), 3, "the producer knows");
        }
    }
}

/// A batch that begins, or is published, after a count has begun: what is queued at some moment of the count.
#[test]
fn a_batch_that_begins_during_a_count() {
    for kind in KINDS {
        for queued in 0..6 {
            let ring = ring(32, kind, 3);
            let tx = producer(ring, kind);
            (0..queued).for_each(|i| _ = tx.push(i).unwrap());
            let begun = ring.batch_begun();
            let killed = catch_unwind(AssertUnwindSafe(|| tx.push_batch(1 << 30, 20, |i| assert!(i != 15, "killed"))));
            assert!(killed.is_err());
            assert_eq!(ring.find_end_from(3, begun), 3 + queued, "{kind:?}");
            assert_eq!(ring.find_end_from(3, ring.batch_begun()), 3 + queued, "{kind:?}");
        }
    }
}
