//! The queues, behind two traits: a message is allocated, written, sent; received, read, freed.
//!
//! Everybody waits in the same way: try, `spin_loop`, try again. Every ring holds [`CAPACITY`] messages.

use crate::heaps::{Allocator, Block, Heap, Ours, Rival, RivalFixed};
use iceoryx2::node::Node;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{BackpressureStrategy, LogLevel, NodeBuilder, ipc, set_log_level};
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;
use ipc_buffer::{Channel, ChannelOptions, Consumer, Producer, TryRecvError, TrySendError};
use std::hint::spin_loop;
use std::rc::Rc;

pub const CAPACITY: usize = 1024;

/// Sends messages of words that are all the same.
pub trait Tx: 'static {
    fn send(&mut self, value: u64);
}

/// Receives messages; the result is the word all of the message consisted of, or another one if it did not.
pub trait Rx: 'static {
    fn recv(&mut self) -> u64;
}

/// Sends 0 to `ops`.
pub fn produce(mut tx: impl Tx) -> impl FnMut(u64) -> u64 {
    move |ops| {
        (0..ops).for_each(|i| tx.send(i));
        ops
    }
}

/// Receives 0 to `ops`.
pub fn consume(mut rx: impl Rx) -> impl FnMut(u64) -> u64 {
    move |ops| (0..ops).map(|i| u64::from(rx.recv() == i)).sum()
}

/// Sends back what it receives, in a message of its own.
pub fn echo(mut rx: impl Rx, mut tx: impl Tx) -> impl FnMut(u64) -> u64 {
    move |ops| {
        (0..ops).for_each(|_| {
            let value = rx.recv();
            tx.send(value);
        });
        ops
    }
}

/// Our channel of records of `W` words. Drops its endpoint before the buffer.
pub struct OurTx<const W: usize>(Channel<[u64; W], Producer>, Rc<Ours>);

/// See [`OurTx`].
pub struct OurRx<const W: usize>(Channel<[u64; W], Consumer>, #[allow(dead_code)] Rc<Ours>);

impl<const W: usize> OurTx<W> {
    pub fn new(ours: &Rc<Ours>, id: i64) -> Self {
        let options = ChannelOptions::new().capacity(CAPACITY);
        Self(ours.ctx.producer_with(id, &options).expect("the producer's role"), Rc::clone(ours))
    }
}

impl<const W: usize> OurRx<W> {
    pub fn new(ours: &Rc<Ours>, id: i64) -> Self {
        let options = ChannelOptions::new().capacity(CAPACITY);
        Self(ours.ctx.consumer_with(id, &options).expect("the consumer's role"), Rc::clone(ours))
    }
}

impl<const W: usize> Tx for OurTx<W> {
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

impl<const W: usize> Rx for OurRx<W> {
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

/// An rtrb ring of boxes of `W` words on allocator `A`.
pub struct RtrbTx<A: Allocator, const W: usize>(rtrb::Producer<RivalFixed<A, W>>);

/// See [`RtrbTx`].
pub struct RtrbRx<A: Allocator, const W: usize>(rtrb::Consumer<RivalFixed<A, W>>);

pub fn rtrb<A: Allocator, const W: usize>() -> (RtrbTx<A, W>, RtrbRx<A, W>) {
    let (tx, rx) = rtrb::RingBuffer::new(CAPACITY);
    (RtrbTx(tx), RtrbRx(rx))
}

impl<A: Allocator, const W: usize> Tx for RtrbTx<A, W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut block = Rival(A::IT).fixed::<W>();
        block.fill(value);
        while let Err(rtrb::PushError::Full(back)) = self.0.push(block) {
            block = back;
            spin_loop();
        }
    }
}

impl<A: Allocator, const W: usize> Rx for RtrbRx<A, W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.pop() {
                Ok(mut block) => return block.read(),
                Err(_) => spin_loop(),
            }
        }
    }
}

type IceService<const W: usize> = PortFactory<ipc::Service, [u64; W], ()>;

/// iceoryx2's publish-subscribe, lossless: a full subscriber holds the publisher up.
pub struct IceTx<const W: usize>(Publisher<ipc::Service, [u64; W], ()>, #[allow(dead_code)] IceKeep<W>);

/// See [`IceTx`].
pub struct IceRx<const W: usize>(Subscriber<ipc::Service, [u64; W], ()>, #[allow(dead_code)] IceKeep<W>);

/// What the ports need to exist.
type IceKeep<const W: usize> = (IceService<W>, Rc<Node<ipc::Service>>);

pub fn ice_node() -> Rc<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    Rc::new(NodeBuilder::new().create().expect("a node"))
}

fn ice_service<const W: usize>(node: &Rc<Node<ipc::Service>>, name: &str) -> IceKeep<W> {
    let service = node
        .service_builder(&name.try_into().expect("a service's name"))
        .publish_subscribe::<[u64; W]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(CAPACITY)
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .open_or_create()
        .expect("a service");
    (service, Rc::clone(node))
}

impl<const W: usize> IceTx<W> {
    pub fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let keep = ice_service(node, name);
        let ports = keep.0.publisher_builder().backpressure_strategy(BackpressureStrategy::RetryUntilDelivered);
        Self(ports.create().expect("a publisher"), keep)
    }
}

impl<const W: usize> IceRx<W> {
    pub fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let keep = ice_service(node, name);
        Self(keep.0.subscriber_builder().create().expect("a subscriber"), keep)
    }
}

impl<const W: usize> Tx for IceTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let sample = self.0.loan_uninit().expect("a sample").write_payload([value; W]);
        let receivers = sample.send().expect("a send");
        assert_eq!(receivers, 1, "a message was lost");
    }
}

impl<const W: usize> Rx for IceRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.receive().expect("a receive") {
                Some(sample) => {
                    let words: &[u64; W] = std::hint::black_box(sample.payload());
                    let odd = words.iter().fold(0, |odd, word| odd | (word ^ words[0]));
                    return words[0].wrapping_add(odd);
                }
                None => spin_loop(),
            }
        }
    }
}
