//! The operations that are killed, and what must be left of the records in the channels then.

use crate::tracee::stop;
use crate::work;
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, Select, ThreadContext, ValueChannel, WaitStrategy,
};
use std::mem::forget;
use std::ops::RangeInclusive;
use std::time::Duration;

pub const CAPACITY: u64 = 1 << 20;
pub const SLOTS: usize = 4;
const UNIT: usize = 64 << 10;

/// What a live process has of the buffer meanwhile; on the copies it is as dead as everybody.
#[derive(Default)]
pub struct Survivor {
    pub rx: Option<Channel<[u64], Consumer>>,
    pub tx: Option<Channel<[u64], Producer>>,
    pub ctx: Option<ThreadContext>,
    pub buffer: Option<Buffer>,
}

/// The records, or values, 0, 1, 2 .. of a channel: which may be the first that is still delivered, and how many were sent.
#[derive(Clone)]
pub struct Expect {
    pub id: i64,
    /// The channel is one of [`Wide`] values.
    pub values: bool,
    pub first: RangeInclusive<u64>,
    pub sent: RangeInclusive<u64>,
    /// The channel, with all that is queued, may be gone.
    pub may_vanish: bool,
}

/// Somebody who is killed, and after how many events.
type Corpse = (fn(&str), usize);

pub struct Case {
    pub name: &'static str,
    /// Prepares, calls `stop`, operates, calls `stop`. What it has then is not dropped.
    pub victim: fn(&str),
    pub survivor: fn(&str) -> Survivor,
    /// Killed right before the operation: at its first stop, or after so many events from there on.
    pub corpse: Option<Corpse>,
    /// Takes tens of thousands of events: left to `--full`, unless it is asked for by name.
    pub is_long: bool,
    pub expect: Vec<Expect>,
}

fn case(name: &'static str, victim: fn(&str)) -> Case {
    Case { name, victim, survivor: attached, corpse: None, is_long: false, expect: Vec::new() }
}

impl Case {
    fn survivor(self, survivor: fn(&str) -> Survivor) -> Self {
        Self { survivor, ..self }
    }

    fn corpse(self, corpse: fn(&str), events: usize) -> Self {
        Self { corpse: Some((corpse, events)), ..self }
    }

    fn expect(mut self, id: i64, first: RangeInclusive<u64>, sent: RangeInclusive<u64>) -> Self {
        self.expect.push(Expect { id, values: false, first, sent, may_vanish: false });
        self
    }

    fn expect_values(mut self, id: i64, first: RangeInclusive<u64>, sent: RangeInclusive<u64>) -> Self {
        self.expect.push(Expect { id, values: true, first, sent, may_vanish: false });
        self
    }

    fn long(self) -> Self {
        Self { is_long: true, ..self }
    }

    fn or_gone(mut self) -> Self {
        self.expect.iter_mut().for_each(|expect| expect.may_vanish = true);
        self
    }
}

pub fn open(name: &str) -> Buffer {
    Buffer::options().capacity(CAPACITY).open(name).unwrap()
}

fn context(name: &str) -> ThreadContext {
    open(name).context().unwrap()
}

pub fn kept() -> ChannelOptions {
    ChannelOptions::new().capacity(SLOTS).persistent(true)
}

fn passing() -> ChannelOptions {
    ChannelOptions::new().capacity(SLOTS)
}

/// A value of several words, which shows if they are not of one.
pub type Wide = [u64; 3];

pub fn wide(number: u64) -> Wide {
    [number, !number, number.wrapping_mul(0x9e37_79b9_7f4a_7c15)]
}

fn value_ends(ctx: &ThreadContext) -> (ValueChannel<Wide, Producer>, ValueChannel<Wide, Consumer>) {
    (ctx.value_producer_with(1, &kept()).unwrap(), ctx.value_consumer_with(1, &kept()).unwrap())
}

fn send(ctx: &ThreadContext, tx: &mut Channel<[u64], Producer>, numbers: std::ops::Range<u64>) {
    numbers.for_each(|number| tx.try_send(work::numbered(ctx, number, 20)).unwrap());
}

fn nobody(_: &str) -> Survivor {
    Survivor::default()
}

/// Has the buffer open, and no more.
fn attached(name: &str) -> Survivor {
    Survivor { buffer: Some(open(name)), ..Survivor::default() }
}

/// Has freed blocks of several classes, and gave them back.
fn full_depot(name: &str) -> Survivor {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    many(&ctx, 300).into_iter().for_each(drop);
    drop((0..20).map(|_| ctx.slice_uninit::<u8>(5000).unwrap().assume_init()).collect::<Vec<_>>());
    ctx.flush();
    Survivor { ctx: Some(ctx), buffer: Some(buffer), ..Survivor::default() }
}

fn many(ctx: &ThreadContext, count: u64) -> Vec<ipc_buffer::Record<u64>> {
    (0..count).map(|i| ctx.record(i).unwrap()).collect()
}

fn consumes(name: &str, options: &ChannelOptions) -> Survivor {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let rx = ctx.consumer_with::<[u64]>(1, options).unwrap();
    Survivor { rx: Some(rx), ctx: Some(ctx), buffer: Some(buffer), tx: None }
}

fn produces(name: &str) -> Survivor {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
    send(&ctx, &mut tx, 0..SLOTS as u64);
    Survivor { tx: Some(tx), ctx: Some(ctx), buffer: Some(buffer), rx: None }
}

/// Every empty slab's blocks lie idle in its cache.
fn hoards(name: &str) -> Survivor {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    drop(many(&ctx, 3));
    drop((0..3).map(|_| ctx.slice_uninit::<u8>(3000).unwrap().assume_init()).collect::<Vec<_>>());
    Survivor { ctx: Some(ctx), buffer: Some(buffer), ..Survivor::default() }
}

/// Dies holding something of everything: records, caches, a large run, roles, queued and received records.
fn wealthy(name: &str) {
    let ctx = context(name);
    let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
    let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
    send(&ctx, &mut tx, 0..4);
    let received = rx.try_recv().unwrap();
    let mut other = ctx.producer_with::<[u64]>(2, &passing()).unwrap();
    send(&ctx, &mut other, 0..3);
    let held = many(&ctx, 100);
    drop(many(&ctx, 20));
    let large = ctx.slice_uninit::<u8>(2 * UNIT + 1).unwrap().assume_init();
    stop();
    forget((received, held, large, tx, rx, other));
}

/// Dies inside a batch of values, if killed early enough: behind three that are queued. There are two of them in a row.
fn torn(name: &str) {
    let ctx = context(name);
    let mut tx = ctx.value_producer_with(1, &kept().capacity(8)).unwrap();
    let rx = ctx.value_consumer::<Wide>(1).unwrap();
    tx.try_send_batch((0..3).map(wide)).unwrap();
    stop();
    let _ = tx.try_send_batch((8..13).map(wide));
    stop();
    drop((tx, rx));
}

/// Dies making a channel, inside the control lock, if killed late enough.
fn creator(name: &str) {
    let ctx = context(name);
    drop(ctx.producer_with::<[u64]>(4, &passing()).unwrap());
    stop();
    let tx = ctx.producer_with::<[u64]>(3, &passing()).unwrap();
    stop();
    drop(tx);
}

pub fn all() -> Vec<Case> {
    vec![
        case("alloc", |name| {
            let ctx = context(name);
            drop(many(&ctx, 2));
            stop();
            let record = ctx.record(7_u64).unwrap();
            stop();
            drop(record);
        }),
        case("alloc_exchange", |name| {
            let ctx = context(name);
            let ready = many(&ctx, 60);
            stop();
            let records = many(&ctx, 130);
            stop();
            drop((ready, records));
        })
        .survivor(full_depot),
        case("alloc_carve", |name| {
            let ctx = context(name);
            stop();
            let record = ctx.slice_uninit::<u8>(5000).unwrap().assume_init();
            stop();
            drop(record);
        }),
        case("alloc_carve_smallest", |name| {
            let ctx = context(name);
            stop();
            let record = ctx.record(1_u64).unwrap();
            stop();
            drop(record);
        }),
        case("alloc_run", |name| {
            let ctx = context(name);
            stop();
            let record = ctx.slice_uninit::<u8>(5 * UNIT).unwrap().assume_init();
            stop();
            drop(record);
        }),
        case("free", |name| {
            let ctx = context(name);
            let record = ctx.record(7_u64).unwrap();
            stop();
            drop(record);
            stop();
            drop(ctx);
        }),
        case("free_exchange", |name| {
            let ctx = context(name);
            let records = many(&ctx, 400);
            stop();
            drop(records);
            stop();
            drop(ctx);
        }),
        case("free_run", |name| {
            let ctx = context(name);
            let record = ctx.slice_uninit::<u8>(5 * UNIT).unwrap().assume_init();
            stop();
            drop(record);
            stop();
            drop(ctx);
        }),
        case("send", |name| {
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            let record = work::numbered(&ctx, 3, 20);
            stop();
            tx.try_send(record).unwrap();
            stop();
            drop(tx);
        })
        .survivor(|name| consumes(name, &kept()))
        .expect(1, 0..=0, 3..=4),
        case("send_next_lap", |name| {
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..4);
            let received: Vec<_> = rx.try_iter().take(3).collect();
            stop();
            send(&ctx, &mut tx, 4..7);
            stop();
            drop((tx, received));
        })
        .expect(1, 3..=3, 4..=7),
        case("recv", |name| {
            let ctx = context(name);
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            stop();
            let record = rx.try_recv().unwrap();
            stop();
            drop((rx, record));
        })
        .survivor(produces)
        .expect(1, 0..=1, 4..=4),
        case("recv_and_free", |name| {
            let ctx = context(name);
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            stop();
            rx.try_iter().for_each(drop);
            stop();
            drop(rx);
        })
        .survivor(produces)
        .expect(1, 0..=4, 4..=4),
        case("wait", |name| {
            let ctx = context(name);
            let asleep = kept().wait_strategy(WaitStrategy::Block);
            let mut rx = ctx.consumer_with::<[u64]>(1, &asleep).unwrap();
            rx.try_iter().for_each(drop);
            stop();
            assert!(rx.recv_timeout(Duration::from_millis(150)).is_err());
            stop();
            drop(rx);
        })
        .survivor(produces)
        .expect(1, 4..=4, 4..=4),
        case("select", |name| {
            let ctx = context(name);
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            rx.try_iter().for_each(drop);
            let mut full = ctx.producer_with::<[u64]>(2, &passing()).unwrap();
            send(&ctx, &mut full, 0..SLOTS as u64);
            let mut select = Select::new().wait_strategy(WaitStrategy::Block);
            select.recv(&rx);
            select.send(&full);
            stop();
            assert_eq!(select.ready_timeout(Duration::from_millis(150)), None);
            stop();
            drop((rx, full));
        })
        .survivor(produces)
        .expect(1, 4..=4, 4..=4),
        case("send_back_and_forth", |name| {
            // One process at both ends: its own name is on the record before, in and after the window.
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..2);
            let records: Vec<_> = (2..5).map(|number| work::numbered(&ctx, number, 20)).collect();
            stop();
            for record in records {
                tx.try_send(record).unwrap();
                drop(rx.try_recv().unwrap());
            }
            stop();
            drop((tx, rx));
        })
        .expect(1, 0..=3, 2..=5),
        case("send_batch", |name| {
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..1);
            let batch: Vec<_> = (1..4).map(|number| work::numbered(&ctx, number, 20)).collect();
            stop();
            tx.try_send_batch(batch).unwrap();
            stop();
            drop(tx);
        })
        .survivor(|name| consumes(name, &kept()))
        .expect(1, 0..=0, 1..=4),
        case("recv_batch", |name| {
            let ctx = context(name);
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            stop();
            let batch = rx.try_recv_batch(3).unwrap();
            stop();
            drop((rx, batch));
        })
        .survivor(produces)
        .expect(1, 0..=3, 4..=4),
        case("send_values", |name| {
            let ctx = context(name);
            let (mut tx, rx) = value_ends(&ctx);
            tx.try_send(wide(0)).unwrap();
            stop();
            tx.try_send(wide(1)).unwrap();
            tx.try_send_batch((2..4).map(wide)).unwrap();
            stop();
            drop((tx, rx));
        })
        .expect_values(1, 0..=0, 1..=4),
        case("recv_values", |name| {
            let ctx = context(name);
            let (mut tx, mut rx) = value_ends(&ctx);
            tx.try_send_batch((0..4).map(wide)).unwrap();
            stop();
            let values = (rx.try_recv().unwrap(), rx.try_recv_batch(3).unwrap());
            stop();
            drop((tx, rx, values));
        })
        .expect_values(1, 0..=4, 4..=4),
        case("values_next_lap", |name| {
            let ctx = context(name);
            let (mut tx, mut rx) = value_ends(&ctx);
            tx.try_send_batch((0..4).map(wide)).unwrap();
            rx.try_recv_batch(3).unwrap();
            stop();
            tx.try_send_batch((4..6).map(wide)).unwrap();
            rx.try_recv_batch(2).unwrap();
            tx.try_send(wide(6)).unwrap();
            stop();
            drop((tx, rx));
        })
        .expect_values(1, 3..=5, 4..=7),
        case("attach_behind_a_torn_batch", |name| {
            let ctx = context(name);
            stop();
            let mut tx = ctx.value_producer::<Wide>(1).unwrap();
            tx.try_send(wide(3)).unwrap();
            stop();
            drop(tx);
        })
        // Five values and the stamps of the second and the third row.
        .corpse(torn, 17)
        .expect_values(1, 0..=0, 3..=4),
        case("attach_producer_creating", |name| {
            let ctx = context(name);
            stop();
            let tx = ctx.producer_with::<[u64]>(1, &passing()).unwrap();
            stop();
            drop(tx);
        }),
        case("attach_consumer_creating", |name| {
            let ctx = context(name);
            drop(many(&ctx, 1));
            stop();
            let rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            stop();
            drop(rx);
        }),
        case("attach_consumer_joining", |name| {
            let ctx = context(name);
            stop();
            let rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            stop();
            drop(rx);
        })
        .survivor(produces)
        .expect(1, 0..=0, 4..=4),
        case("attach_producer_joining", |name| {
            let ctx = context(name);
            stop();
            let tx = ctx.producer_with::<[u64]>(1, &passing()).unwrap();
            stop();
            drop(tx);
        })
        .survivor(|name| consumes(name, &passing())),
        case("detach_producer", |name| {
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            stop();
            drop(tx);
            stop();
            drop(ctx);
        })
        .survivor(|name| consumes(name, &kept()))
        .expect(1, 0..=0, 3..=3),
        case("detach_consumer", |name| {
            let ctx = context(name);
            let mut rx = ctx.consumer_with::<[u64]>(1, &kept()).unwrap();
            drop(rx.try_recv().unwrap());
            stop();
            drop(rx);
            stop();
            drop(ctx);
        })
        .survivor(produces)
        .expect(1, 1..=1, 4..=4),
        case("detach_last", |name| {
            let ctx = context(name);
            let mut tx = ctx.producer_with::<[u64]>(1, &passing()).unwrap();
            let rx = ctx.consumer_with::<[u64]>(1, &passing()).unwrap();
            send(&ctx, &mut tx, 0..3);
            stop();
            drop(rx);
            drop(tx);
            stop();
            drop(ctx);
        }),
        case("remove_channel", |name| {
            let buffer = open(name);
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            drop(tx);
            stop();
            assert!(buffer.remove_channel(1).unwrap());
            stop();
            drop(ctx);
        })
        .expect(1, 0..=0, 3..=3)
        .or_gone(),
        case("remove_channel_in_use", |name| {
            let buffer = open(name);
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            stop();
            assert!(buffer.remove_channel(1).unwrap());
            drop(tx);
            stop();
            drop(ctx);
        })
        .expect(1, 0..=0, 3..=3)
        .or_gone(),
        case("close_context", |name| {
            let buffer = open(name);
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            drop(many(&ctx, 150));
            stop();
            drop(ctx);
            stop();
            drop((tx, buffer));
        })
        .survivor(full_depot)
        .expect(1, 0..=0, 3..=3),
        case("open_creating", |name| {
            stop();
            let buffer = open(name);
            stop();
            drop(buffer);
        })
        .survivor(nobody),
        case("open_joining", |name| {
            stop();
            let buffer = open(name);
            stop();
            drop(buffer);
        })
        .survivor(produces)
        .expect(1, 0..=0, 4..=4),
        case("close_last", |name| {
            let buffer = open(name);
            drop(many(&buffer.context().unwrap(), 10));
            stop();
            drop(buffer);
            stop();
        })
        .survivor(nobody),
        case("close_persistent", |name| {
            let buffer = Buffer::options().capacity(CAPACITY).persist(true).open(name).unwrap();
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<[u64]>(1, &kept()).unwrap();
            send(&ctx, &mut tx, 0..3);
            drop((tx, ctx));
            stop();
            drop(buffer);
            stop();
        })
        .survivor(nobody)
        .expect(1, 0..=0, 3..=3),
        case("close_with_a_record_in_hand", |name| {
            let buffer = open(name);
            let record = buffer.context().unwrap().record(1_u64).unwrap();
            stop();
            drop(buffer);
            drop(record);
            stop();
        }),
        case("trim", |name| {
            let buffer = open(name);
            stop();
            assert!(buffer.trim().unwrap() > 0);
            stop();
        })
        .survivor(full_depot),
        case("out_of_memory_ladder", |name| {
            let ctx = context(name);
            drop(many(&ctx, 3));
            stop();
            let record = ctx.slice_uninit::<u8>(16 * UNIT - 16).unwrap().assume_init();
            stop();
            drop(record);
        })
        .survivor(hoards),
        case("reap", |name| {
            let buffer = open(name);
            stop();
            assert_eq!(buffer.reap().unwrap().processes, 1);
            stop();
        })
        .corpse(wealthy, 0)
        .expect(1, 1..=1, 4..=4),
        case("reap_a_channel_being_made", |name| {
            let buffer = open(name);
            stop();
            assert_eq!(buffer.reap().unwrap().processes, 1);
            stop();
        })
        .corpse(creator, 20)
        .long(),
        case("reap_a_channel_nearly_made", |name| {
            let buffer = open(name);
            stop();
            assert_eq!(buffer.reap().unwrap().processes, 1);
            stop();
        })
        .corpse(creator, 55),
    ]
}
