//! Ours: records through channels, between processes.

use crate::heaps::{Block, Heap, Ours};
use crate::links::{Link, Rx, Tx, capacity};
use crate::side::Far;
use ipc_buffer::{Channel, ChannelOptions, Consumer, Producer, TryRecvError, TrySendError};
use std::hint::spin_loop;
use std::rc::Rc;

const THERE: i64 = 1;
const BACK: i64 = 2;

/// Records of `W` words; waits as the others do.
pub struct Records<const W: usize>;

/// The same, waiting with the library's own `send` and `recv`.
pub struct Waiting<const W: usize>;

/// Drops its endpoint before the buffer.
pub struct RecordTx<const W: usize>(Channel<[u64; W], Producer>, Rc<Ours>);

/// See [`RecordTx`].
pub struct RecordRx<const W: usize>(Channel<[u64; W], Consumer>, #[allow(dead_code)] Rc<Ours>);

/// See [`Waiting`].
pub struct WaitingTx<const W: usize>(RecordTx<W>);

/// See [`Waiting`].
pub struct WaitingRx<const W: usize>(RecordRx<W>);

impl<const W: usize> RecordTx<W> {
    pub fn new(ours: &Rc<Ours>, id: i64) -> Self {
        let options = ChannelOptions::new().capacity(capacity::<W>());
        Self(ours.ctx.producer_with(id, &options).expect("the producer's role"), Rc::clone(ours))
    }
}

impl<const W: usize> RecordRx<W> {
    pub fn new(ours: &Rc<Ours>, id: i64) -> Self {
        let options = ChannelOptions::new().capacity(capacity::<W>());
        Self(ours.ctx.consumer_with(id, &options).expect("the consumer's role"), Rc::clone(ours))
    }
}

impl<const W: usize> Link for Records<W> {
    const NAME: &'static str = "ours";
    type Tx = RecordTx<W>;
    type Rx = RecordRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, RecordTx<W>, RecordRx<W>) {
        let ours = Rc::new(Ours::create(name));
        let ends = (RecordTx::new(&ours, THERE), RecordRx::new(&ours, BACK));
        let far = start(name);
        ours.hide();
        (far, ends.0, ends.1)
    }

    fn far(key: &str) -> (RecordRx<W>, RecordTx<W>) {
        let ours = Rc::new(Ours::open(key));
        (RecordRx::new(&ours, THERE), RecordTx::new(&ours, BACK))
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

impl<const W: usize> Link for Waiting<W> {
    const NAME: &'static str = "ours";
    type Tx = WaitingTx<W>;
    type Rx = WaitingRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, WaitingTx<W>, WaitingRx<W>) {
        let (far, tx, rx) = Records::near(name, start);
        (far, WaitingTx(tx), WaitingRx(rx))
    }

    fn far(key: &str) -> (WaitingRx<W>, WaitingTx<W>) {
        let (rx, tx) = Records::far(key);
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
