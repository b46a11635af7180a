//! iceoryx2: publish-subscribe between processes, lossless: a full subscriber holds the publisher up.

#![allow(unsafe_code)]

use crate::links::{Link, Rx, Tx, capacity};
use crate::side::Far;
use crate::words;
use iceoryx2::node::Node;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{BackpressureStrategy, LogLevel, NodeBuilder, ipc, set_log_level};
use iceoryx2::service::port_factory::{event, publish_subscribe::PortFactory};
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::slice;

/// Samples of `W` words, written and read in place.
pub struct Samples<const W: usize>;

pub struct SampleTx<const W: usize>(Publisher<ipc::Service, [u64; W], ()>, #[allow(dead_code)] Keep<W>);

pub struct SampleRx<const W: usize>(Subscriber<ipc::Service, [u64; W], ()>, #[allow(dead_code)] Keep<W>);

/// Samples, and an event after each one for a receiver that sleeps.
pub struct Events<const W: usize>;

pub struct EventTx<const W: usize>(SampleTx<W>, Notifier<ipc::Service>);

pub struct EventRx<const W: usize>(SampleRx<W>, Listener<ipc::Service>);

/// What the ports need to exist.
type Keep<const W: usize> = (PortFactory<ipc::Service, [u64; W], ()>, Rc<Node<ipc::Service>>);

pub fn node() -> Rc<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    Rc::new(NodeBuilder::new().create().expect("a node"))
}

fn service<const W: usize>(node: &Rc<Node<ipc::Service>>, name: &str) -> Keep<W> {
    let service = node
        .service_builder(&name.try_into().expect("a service's name"))
        .publish_subscribe::<[u64; W]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(capacity::<W>())
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .open_or_create()
        .expect("a service");
    (service, Rc::clone(node))
}

impl<const W: usize> SampleTx<W> {
    pub fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let keep = service(node, name);
        let ports = keep.0.publisher_builder().backpressure_strategy(BackpressureStrategy::RetryUntilDelivered);
        Self(ports.create().expect("a publisher"), keep)
    }
}

impl<const W: usize> SampleRx<W> {
    pub fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let keep = service(node, name);
        Self(keep.0.subscriber_builder().create().expect("a subscriber"), keep)
    }
}

impl<const W: usize> Link for Samples<W> {
    const NAME: &'static str = "iceoryx2";
    type Tx = SampleTx<W>;
    type Rx = SampleRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, SampleTx<W>, SampleRx<W>) {
        let node = node();
        let ends = (SampleTx::new(&node, &there(name)), SampleRx::new(&node, &back(name)));
        (start(name), ends.0, ends.1)
    }

    fn far(key: &str) -> (SampleRx<W>, SampleTx<W>) {
        let node = node();
        (SampleRx::new(&node, &there(key)), SampleTx::new(&node, &back(key)))
    }
}

fn there(name: &str) -> String {
    format!("{name}-there")
}

fn back(name: &str) -> String {
    format!("{name}-back")
}

impl<const W: usize> Tx for SampleTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut sample = self.0.loan_uninit().expect("a sample");
        let at: *mut [u64; W] = sample.payload_mut().as_mut_ptr();
        // SAFETY: the sample's `W` words, which nobody else has.
        words::fill(unsafe { slice::from_raw_parts_mut(at.cast::<MaybeUninit<u64>>(), W) }, value);
        // SAFETY: every word has been written.
        let receivers = unsafe { sample.assume_init() }.send().expect("a send");
        assert_eq!(receivers, 1, "a message was lost");
    }
}

impl<const W: usize> SampleRx<W> {
    #[inline(always)]
    fn try_recv(&mut self) -> Option<u64> {
        let sample = self.0.receive().expect("a receive")?;
        Some(words::read(sample.payload()))
    }
}

impl<const W: usize> Rx for SampleRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.try_recv() {
                Some(value) => return value,
                None => spin_loop(),
            }
        }
    }
}

fn event(node: &Node<ipc::Service>, name: &str) -> event::PortFactory<ipc::Service> {
    let name = format!("{name}-event");
    let service = node.service_builder(&name[..].try_into().expect("a service's name")).event();
    service.max_notifiers(1).max_listeners(1).open_or_create().expect("an event service")
}

impl<const W: usize> EventTx<W> {
    fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let notifier = event(node, name).notifier_builder().create().expect("a notifier");
        Self(SampleTx::new(node, name), notifier)
    }
}

impl<const W: usize> EventRx<W> {
    fn new(node: &Rc<Node<ipc::Service>>, name: &str) -> Self {
        let listener = event(node, name).listener_builder().create().expect("a listener");
        Self(SampleRx::new(node, name), listener)
    }
}

impl<const W: usize> Link for Events<W> {
    const NAME: &'static str = "iceoryx2 event";
    type Tx = EventTx<W>;
    type Rx = EventRx<W>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, EventTx<W>, EventRx<W>) {
        let node = node();
        let ends = (EventTx::new(&node, &there(name)), EventRx::new(&node, &back(name)));
        (start(name), ends.0, ends.1)
    }

    fn far(key: &str) -> (EventRx<W>, EventTx<W>) {
        let node = node();
        (EventRx::new(&node, &there(key)), EventTx::new(&node, &back(key)))
    }
}

impl<const W: usize> Tx for EventTx<W> {
    fn send(&mut self, value: u64) {
        self.0.send(value);
        self.1.notify().expect("a notification");
    }
}

impl<const W: usize> Rx for EventRx<W> {
    fn recv(&mut self) -> u64 {
        loop {
            if let Some(value) = self.0.try_recv() {
                return value;
            }
            self.1.blocking_wait(|_| ()).expect("an event");
        }
    }
}
