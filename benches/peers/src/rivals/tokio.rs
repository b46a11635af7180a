//! tokio: its own bounded channel between two threads, each with a runtime for itself, without timers or I/O.
//!
//! And the round trip by `await` that it is measured with: ours awaits on the same runtime, between processes.

use crate::harness::{Entrant, TimedTrips, Work};
use crate::links::Link;
use crate::side::{Far, Pair, Span};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// As [`links::Tx`](crate::links::Tx).
pub trait AwaitTx: 'static {
    fn send(&mut self, value: u64) -> impl Future<Output = ()>;
}

/// As [`links::Rx`](crate::links::Rx).
pub trait AwaitRx: 'static {
    fn recv(&mut self) -> impl Future<Output = u64>;
}

impl AwaitTx for Sender<u64> {
    async fn send(&mut self, value: u64) {
        Sender::send(self, value).await.expect("the other side lives");
    }
}

impl AwaitRx for Receiver<u64> {
    async fn recv(&mut self) -> u64 {
        Receiver::recv(self).await.expect("the other side lives")
    }
}

/// tokio's own channel.
pub fn mpsc() -> Entrant {
    Entrant::new("tokio mpsc", |lab| {
        let ((tx, far_rx), (far_tx, rx)) = (channel(1024), channel(1024));
        let far = Far::thread(lab.cores[1], move || Box::new(echo(far_rx, far_tx)));
        Box::new(Pair::new(far, Box::new(Awaited::new(tx, rx)), Span::Flow))
    })
}

/// The ends of `L`, awaited by two processes.
pub fn processes<L: Link<Tx: AwaitTx, Rx: AwaitRx>>() -> Entrant {
    let entrant = Entrant::new(L::NAME, |lab| {
        let (far, tx, rx) = L::near(&lab.name(), |key| lab.far_process(key));
        Box::new(Pair::new(far, Box::new(Awaited::new(tx, rx)), Span::Flow))
    });
    entrant.with_far(|key| {
        let (rx, tx) = L::far(key);
        Box::new(echo(rx, tx))
    })
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

/// The near side of round trips.
struct Awaited<T, R> {
    runtime: Runtime,
    tx: T,
    rx: R,
}

impl<T: AwaitTx, R: AwaitRx> Awaited<T, R> {
    fn new(tx: T, rx: R) -> Self {
        Self { runtime: runtime(), tx, rx }
    }

    /// Does `ops` trips, and `after` each one; returns how many came out right.
    fn trips_and(&mut self, ops: u64, mut after: impl FnMut()) -> u64 {
        self.runtime.block_on(async {
            let mut good = 0;
            for i in 0..ops {
                self.tx.send(i).await;
                good += u64::from(self.rx.recv().await == i);
                after();
            }
            good
        })
    }
}

impl<T: AwaitTx, R: AwaitRx> Work for Awaited<T, R> {
    fn run(&mut self, ops: u64) -> u64 {
        self.trips_and(ops, || ())
    }

    fn trips(&mut self) -> Option<&mut dyn TimedTrips> {
        Some(self)
    }
}

impl<T: AwaitTx, R: AwaitRx> TimedTrips for Awaited<T, R> {
    fn run_timed(&mut self, ops: u64, each_ns: &mut Vec<u64>) -> u64 {
        let mut before = Instant::now();
        self.trips_and(ops, || {
            let now = Instant::now();
            each_ns.push((now - before).as_nanos() as u64);
            before = now;
        })
    }
}

/// The far side of round trips.
fn echo(mut rx: impl AwaitRx, mut tx: impl AwaitTx) -> impl Work {
    let runtime = runtime();
    move |ops| {
        runtime.block_on(async {
            for _ in 0..ops {
                let value = rx.recv().await;
                tx.send(value).await;
            }
            ops
        })
    }
}
