//! The floors: what this machine does at best at this moment. It moves, so they are measured in every round.

use crate::harness::{Entrant, Trips, solo};
use crate::links::capacity;
use crate::shared::Shared;
use crate::side::{Far, Pair, Span};
use rustix::thread::futex;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of [`ping_pong`].
pub const PING_PONG: &str = "ping-pong";

/// A line of its own, its neighbour (which the prefetcher pulls along) included.
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    fn wait(&self, value: u64) {
        // Bare, with no pause: this is the floor.
        while self.0.load(Ordering::Acquire) != value {}
    }
}

/// One cache line going to and fro between two cores: no hand-over between them is faster. One operation is there and back.
pub fn ping_pong() -> Entrant {
    Entrant::new(PING_PONG, |lab| {
        let near = Arc::new(Line(AtomicU64::new(0)));
        let far = Arc::clone(&near);
        // Both count on from run to run: ping is odd, pong is even.
        let far = Far::thread(lab.cores[1], move || {
            let mut pong = 0;
            Box::new(move |ops: u64| {
                for _ in 0..ops {
                    far.wait(pong + 1);
                    pong += 2;
                    far.0.store(pong, Ordering::Release);
                }
                ops
            })
        });
        let mut pong = 0;
        let near = Trips(move |_| {
            near.0.store(pong + 1, Ordering::Release);
            pong += 2;
            near.wait(pong);
            true
        });
        Box::new(Pair::new(far, Box::new(near), Span::Flow))
    })
}

/// The name of [`futex`].
pub const FUTEX: &str = "futex";

/// Two processes that wake each other by a shared futex and sleep at once: no hand-over to a sleeper is faster.
pub fn futex() -> Entrant {
    let entrant = Entrant::new(FUTEX, |lab| {
        let shared = Shared::create();
        let far = lab.far_process(&shared.key());
        let mut turn = 0;
        let near = Trips(move |_| {
            pass(&shared, turn + 1);
            turn += 2;
            await_turn(&shared, turn);
            true
        });
        Box::new(Pair::new(far, Box::new(near), Span::Flow))
    });
    entrant.with_far(|key| {
        let shared = Shared::open(key);
        let mut turn = 0;
        Box::new(move |ops: u64| {
            for _ in 0..ops {
                await_turn(&shared, turn + 1);
                turn += 2;
                pass(&shared, turn);
            }
            ops
        })
    })
}

/// Makes it the other side's `turn`.
fn pass(shared: &Shared, turn: u32) {
    let [word, _] = shared.words();
    word.store(turn, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1).expect("wake");
}

fn await_turn(shared: &Shared, turn: u32) {
    let [word, _] = shared.words();
    loop {
        let now = word.load(Ordering::Acquire);
        if now == turn {
            return;
        }
        // Changed meanwhile or woken for nothing: look again.
        let _ = futex::wait(word, futex::Flags::empty(), now, None);
    }
}

/// One copy of `W` words: what everybody pays at least once for each message that is copied. As many are in use as a queue holds.
pub fn memcpy<const W: usize>() -> Entrant {
    Entrant::new("memcpy", |_| {
        let slots = capacity::<W>();
        let (mut from, mut to) = (vec![0; slots * W], vec![0; slots * W]);
        solo(move |ops: u64| {
            let copy = |i| {
                let at = i as usize % slots * W;
                let (from, to) = (&mut from[at..][..W], &mut to[at..][..W]);
                from[0] = i;
                to.copy_from_slice(black_box(from));
                u64::from(black_box(to)[0] == i)
            };
            (0..ops).map(copy).sum()
        })
    })
}
