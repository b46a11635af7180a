//! Ways for messages from one side to the other: a message is allocated, written, sent; received, read, freed.
//!
//! Every byte of a message is written and read. Whoever can, waits in the same way: try, `spin_loop`, try again. A queue holds
//! [`capacity`] messages where its maker lets one choose.

use crate::harness::{Entrant, Trips, Work};
use crate::side::{Far, Pair, Span};

/// Sends messages of words that are all the same.
pub trait Tx: 'static {
    fn send(&mut self, value: u64);
}

/// Receives messages; the result is the word all of the message consisted of, or another one if it did not.
pub trait Rx: 'static {
    fn recv(&mut self) -> u64;
}

/// Messages a queue holds: 1024, or 4 MiB of larger ones, but no fewer than two.
pub const fn capacity<const W: usize>() -> usize {
    match (4 << 20) / (W * size_of::<u64>()) {
        0 | 1 => 2,
        few @ 2..1024 => few,
        _ => 1024,
    }
}

/// A queue each way between two processes.
pub trait Link: 'static {
    const NAME: &'static str;
    type Tx: Tx;
    type Rx: Rx;

    /// Makes what both sides share, under `name` if it needs one, and this side's ends. `start` runs the far side, handing it
    /// the key to what is shared, and returns when that side has its own ends.
    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, Self::Tx, Self::Rx);

    /// The far side's ends, in its own process.
    fn far(key: &str) -> (Self::Rx, Self::Tx);
}

/// A queue between two threads; two of them make a link.
pub trait Queue: 'static {
    const NAME: &'static str;
    type Tx: Tx + Send;
    type Rx: Rx + Send;

    fn new() -> (Self::Tx, Self::Rx);
}

/// What the two sides do with their ends.
pub trait Task: 'static {
    fn near(tx: impl Tx, rx: impl Rx) -> impl Work + 'static;
    fn far(rx: impl Rx, tx: impl Tx) -> impl Work + 'static;
}

/// Messages flow from near to far, as fast as they can.
pub struct Stream;

impl Task for Stream {
    fn near(mut tx: impl Tx, rx: impl Rx) -> impl Work + 'static {
        move |ops| {
            let _unused = &rx;
            (0..ops).for_each(|i| tx.send(i));
            ops
        }
    }

    fn far(mut rx: impl Rx, tx: impl Tx) -> impl Work + 'static {
        move |ops| {
            let _unused = &tx;
            (0..ops).map(|i| u64::from(rx.recv() == i)).sum()
        }
    }
}

/// A message there, and one back when it has come: each a fresh one.
pub struct RoundTrip;

impl Task for RoundTrip {
    fn near(mut tx: impl Tx, mut rx: impl Rx) -> impl Work + 'static {
        Trips(move |i| {
            tx.send(i);
            rx.recv() == i
        })
    }

    fn far(mut rx: impl Rx, mut tx: impl Tx) -> impl Work + 'static {
        move |ops| {
            (0..ops).for_each(|_| {
                let value = rx.recv();
                tx.send(value);
            });
            ops
        }
    }
}

/// Does `T` between two processes, linked by `L`.
pub fn processes<T: Task, L: Link>() -> Entrant {
    let entrant = Entrant::new(L::NAME, |lab| {
        let (far, tx, rx) = L::near(&lab.name(), |key| lab.far_process(key));
        Box::new(Pair::new(far, Box::new(T::near(tx, rx)), Span::Flow))
    });
    entrant.with_far(|key| {
        let (rx, tx) = L::far(key);
        Box::new(T::far(rx, tx))
    })
}

/// Does `T` between two threads, by queues `Q`.
pub fn threads<T: Task, Q: Queue>() -> Entrant {
    Entrant::new(Q::NAME, |lab| {
        let (tx, far_rx) = Q::new();
        let (far_tx, rx) = Q::new();
        let far = Far::thread(lab.cores[1], move || Box::new(T::far(far_rx, far_tx)));
        Box::new(Pair::new(far, Box::new(T::near(tx, rx)), Span::Flow))
    })
}
