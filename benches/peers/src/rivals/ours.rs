//! Ours: records and values through channels, between processes.

use crate::heaps::{Block, Heap, Ours};
use crate::links::{Link, Rx, Tx, capacity};
#[cfg(feature = "tokio")]
use crate::rivals::tokio::{AwaitRx, AwaitTx};
use crate::side::Far;
use crate::words;
use ipc_buffer::{Channel, ChannelOptions, Consumer, Producer, TryRecvError, TrySendError, ValueChannel, WaitStrategy};
use std::hint::spin_loop;
use std::rc::Rc;

const THERE: i64 = 1;
const BACK: i64 = 2;

/// Records of `W` words; waits as the others do.
pub struct Records<const W: usize>;

/// The same, waiting with the library's own `send` and `recv` (or their futures): as they do by default, or asleep at once.
pub struct Waiting<const W: usize, const SLEEPS: bool>;

/// Drops its endpoint before the buffer.
pub struct RecordTx<const W: usize>(Channel<[u64; W], Producer>, Rc<Ours>);

/// See [`RecordTx`].
pub struct RecordRx<const W: usize>(Channel<[u64; W], Consumer>, #[allow(dead_code)] Rc<Ours>);

/// See [`Waiting`].
pub struct WaitingTx<const W: usize>(RecordTx<W>);

/// See [`Waiting`].
pub struct WaitingRx<const W: usize>(RecordRx<W>);

fn ends<const W: usize>(ours: &Rc<Ours>, tx: i64, rx: i64, wait: WaitStrategy) -> (RecordTx<W>, RecordRx<W>) {
    let options = ChannelOptions::new().capacity(capacity::<W>()).wait_strategy(wait);
    let tx = ours.ctx.producer_with(tx, &options).expect("the producer's role");
    let rx = ours.ctx.consumer_with(rx, &options).expect("the consumer's role");
    (RecordTx(tx, Rc::clone(ours)), RecordRx(rx, Rc::clone(ours)))
}

fn near<const W: usize>(
    name: &str,
    start: impl FnOnce(&str) -> Far,
    wait: WaitStrategy,
) -> (Far, RecordTx<W>, RecordRx<W>) {
    let ours = Rc::new(Ours::create(name));
    let (tx, rx) = ends(&ours, THERE, BACK, wait);
    let far = start(name);
    ours.hide();
    (far, tx, rx)
}

fn far<const W: usize>(key: &str, wait: WaitStrategy) -> (RecordRx<W>, RecordTx<W>) {
    let ours = Rc::new(Ours::open(key));
    let (tx, rx) = ends(&ours, BACK, THERE, wait);
    (rx, tx)
}

impl<const W: usize> Link for Records<W> {
    const NAME: &'static str = "ours";
    type Tx = RecordTx<W>;
    type Rx = RecordRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, RecordTx<W>, RecordRx<W>) {
        near(name, start, WaitStrategy::Spin)
    }

    fn far(key: &str) -> (RecordRx<W>, RecordTx<W>) {
        far(key, WaitStrategy::Spin)
    }
}

impl<const W: usize> Tx for RecordTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut record = self.1.fixed::<W>();
        record.fill(value);
        while let Err(refused) = self.0.try_send(record) {
            let TrySendError::Full(back) = refused else { panic!("{refused}") };
            record = back;
            spin_loop();
        }
    }
}

impl<const W: usize> Rx for RecordRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.try_recv() {
                Ok(mut record) => return record.read(),
                Err(TryRecvError::Empty) => spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl<const W: usize, const SLEEPS: bool> Waiting<W, SLEEPS> {
    const HOW: WaitStrategy = if SLEEPS { WaitStrategy::Block } else { WaitStrategy::Adaptive };
}

impl<const W: usize, const SLEEPS: bool> Link for Waiting<W, SLEEPS> {
    const NAME: &'static str = "ours";
    type Tx = WaitingTx<W>;
    type Rx = WaitingRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, WaitingTx<W>, WaitingRx<W>) {
        let (far, tx, rx) = near(name, start, Self::HOW);
        (far, WaitingTx(tx), WaitingRx(rx))
    }

    fn far(key: &str) -> (WaitingRx<W>, WaitingTx<W>) {
        let (rx, tx) = far(key, Self::HOW);
        (WaitingRx(rx), WaitingTx(tx))
    }
}

impl<const W: usize> Tx for WaitingTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let RecordTx(channel, ours) = &mut self.0;
        let mut record = ours.fixed::<W>();
        record.fill(value);
        channel.send(record).expect("a send");
    }
}

impl<const W: usize> Rx for WaitingRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        self.0.0.recv().expect("a record").read()
    }
}

#[cfg(feature = "tokio")]
impl<const W: usize> AwaitTx for WaitingTx<W> {
    async fn send(&mut self, value: u64) {
        let RecordTx(channel, ours) = &mut self.0;
        let mut record = ours.fixed::<W>();
        record.fill(value);
        channel.send_async(record).await.expect("a send");
    }
}

#[cfg(feature = "tokio")]
impl<const W: usize> AwaitRx for WaitingRx<W> {
    async fn recv(&mut self) -> u64 {
        self.0.0.recv_async().await.expect("a record").read()
    }
}

/// `W` words by value, in the channel's own slots.
pub struct Values<const W: usize>;

/// See [`RecordTx`].
pub struct ValueTx<const W: usize>(ValueChannel<[u64; W], Producer>, #[allow(dead_code)] Rc<Ours>);

/// See [`RecordTx`].
pub struct ValueRx<const W: usize>(ValueChannel<[u64; W], Consumer>, #[allow(dead_code)] Rc<Ours>);

impl<const W: usize> Values<W> {
    fn ends(ours: &Rc<Ours>, tx: i64, rx: i64) -> (ValueTx<W>, ValueRx<W>) {
        let options = ChannelOptions::new().capacity(capacity::<W>());
        let tx = ours.ctx.value_producer_with(tx, &options).expect("the producer's role");
        let rx = ours.ctx.value_consumer_with(rx, &options).expect("the consumer's role");
        (ValueTx(tx, Rc::clone(ours)), ValueRx(rx, Rc::clone(ours)))
    }
}

impl<const W: usize> Link for Values<W> {
    const NAME: &'static str = "ours by value";
    type Tx = ValueTx<W>;
    type Rx = ValueRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, ValueTx<W>, ValueRx<W>) {
        let ours = Rc::new(Ours::create(name));
        let (tx, rx) = Self::ends(&ours, THERE, BACK);
        let far = start(name);
        ours.hide();
        (far, tx, rx)
    }

    fn far(key: &str) -> (ValueRx<W>, ValueTx<W>) {
        let (tx, rx) = Self::ends(&Rc::new(Ours::open(key)), BACK, THERE);
        (rx, tx)
    }
}

impl<const W: usize> Tx for ValueTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        while let Err(refused) = self.0.try_send([value; W]) {
            let TrySendError::Full(_) = refused else { panic!("{refused}") };
            spin_loop();
        }
    }
}

impl<const W: usize> Rx for ValueRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.try_recv() {
                Ok(value) => return words::read(&value),
                Err(TryRecvError::Empty) => spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
