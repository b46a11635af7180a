//! What X does, and is stopped in: every kind of operation.

use crate::children::{KILLED, in_child};
use crate::hoard::{Hoard, Of, make, seed};
use crate::parties::{CAPACITY, open, passer};
use crate::streams::*;
use ipc_buffer::crash_points::arm;
use ipc_buffer::{AllocError, Buffer, ChannelOptions, Select, ThreadContext};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MOMENT: Duration = Duration::from_millis(3);

pub struct X {
    pub name: String,
    ctx: ThreadContext,
    hoard: Hoard,
    from_victim: RecordsIn,
    to_victim: RecordsOut,
    left: Option<RecordsIn>,
    values_from_victim: ValuesIn,
    values_to_victim: ValuesOut,
    from_reaper: RecordsIn,
    to_reaper: RecordsOut,
    values_from_reaper: ValuesIn,
    values_to_reaper: ValuesOut,
    stored: Option<RecordsIn>,
    own: Option<(RecordsOut, RecordsIn)>,
    buffer: Buffer,
}

impl X {
    pub fn new(name: &str) -> Option<Self> {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        Some(Self {
            name: name.into(),
            from_victim: records_in(&ctx, id::VICTIM_TO_X)?,
            to_victim: records_out(&ctx, id::X_TO_VICTIM)?,
            left: records_in(&ctx, id::LEFT),
            values_from_victim: values_in(&ctx, id::VALUES_VICTIM_TO_X)?,
            values_to_victim: values_out(&ctx, id::VALUES_X_TO_VICTIM)?,
            from_reaper: records_in(&ctx, id::REAPER_TO_X)?,
            to_reaper: records_out(&ctx, id::X_TO_REAPER)?,
            values_from_reaper: values_in(&ctx, id::VALUES_REAPER_TO_X)?,
            values_to_reaper: values_out(&ctx, id::VALUES_X_TO_REAPER)?,
            stored: records_in(&ctx, id::STORED),
            own: Some((records_out(&ctx, id::OWN)?, records_in(&ctx, id::OWN)?)),
            hoard: Hoard::new(Of::X),
            ctx,
            buffer,
        })
    }

    pub fn prepares(&mut self) {
        let ctx = &self.ctx;
        self.to_victim.send_batch(ctx, 20);
        self.values_to_victim.send_batch(ctx, 20);
        self.own.as_mut().unwrap().0.send(ctx, 10);
        self.hoard.make_many(ctx, 5, 30);
        self.hoard.make_many(ctx, 12_000, 1);
        self.hoard.churn(ctx, 5, 300);
    }

    /// Whatever it did, it can do all of this, and goes.
    pub fn ends(mut self) {
        self.hoard.look();
        self.to_reaper.send(&self.ctx, 2);
        self.values_to_reaper.send(&self.ctx, 2);
        self.from_reaper.receive(&mut self.hoard, 64);
        self.values_from_reaper.receive(&mut self.hoard, 64);
        self.from_victim.receive(&mut self.hoard, 64);
        self.values_from_victim.receive(&mut self.hoard, 64);
        self.leaves();
    }

    /// Channels, context, buffer, and after them the records.
    fn leaves(mut self) {
        self.hoard.look();
        drop((self.from_victim, self.to_victim, self.left, self.values_from_victim, self.values_to_victim));
        drop((self.from_reaper, self.to_reaper, self.values_from_reaper, self.values_to_reaper));
        drop((self.stored, self.own, self.ctx, self.buffer));
        self.hoard.shrink(0);
    }

    /// A thread with a context of its own.
    fn thread(&self, work: impl FnOnce(&ThreadContext) + Send + 'static) -> std::thread::JoinHandle<()> {
        let buffer = self.buffer.clone();
        std::thread::spawn(move || work(&buffer.context().unwrap()))
    }

    /// A process that comes by and is killed at a point.
    fn loses(&self, point: &str, work: impl FnOnce(&Buffer, &ThreadContext)) {
        let name = self.name.clone();
        let ended = in_child(20, || {
            let buffer = open(&name);
            let ctx = buffer.context().unwrap();
            arm(point, 1);
            work(&buffer, &ctx);
            0
        });
        assert_eq!(ended, KILLED, "a process killed at {point}");
    }
}

/// Takes all there is in blocks of `len` words.
fn take_all(ctx: &ThreadContext, len: usize) -> Vec<crate::hoard::Words> {
    std::iter::from_fn(|| make(ctx, len, 0)).collect()
}

pub enum Deed {
    /// X is there before it and after it.
    Stays(fn(&mut X)),
    /// What is prepared first, without a stop.
    After(fn(&mut X), fn(&mut X)),
    /// X is gone after it.
    Goes(fn(X)),
    /// X was not there before it.
    Comes(fn(&str)),
}
use Deed::{After, Comes, Goes, Stays};

pub const ACTS: &[(&str, Deed)] = &[
    // Memory.
    ("allocates", Stays(|x| x.hoard.make_many(&x.ctx, 5, 600))),
    ("allocates and frees", Stays(|x| (0..3).for_each(|_| x.hoard.churn(&x.ctx, 5, 600)))),
    (
        "slices of all sizes",
        Stays(|x| {
            for len in [0, 1, 30, 100, 400, 1500, 6000] {
                x.hoard.make_many(&x.ctx, len, 3);
            }
            x.hoard.thin();
        }),
    ),
    (
        "runs",
        Stays(|x| {
            for len in [20_000, 10_000, 30_000] {
                x.hoard.make_many(&x.ctx, len, 2);
                x.hoard.thin();
            }
        }),
    ),
    ("frees", Stays(|x| x.hoard.shrink(0))),
    (
        "flushes",
        Stays(|x| {
            x.ctx.flush();
            x.hoard.churn(&x.ctx, 5, 300);
            x.hoard.churn(&x.ctx, 11, 20);
            x.ctx.flush();
        }),
    ),
    (
        "runs out of memory",
        Stays(|x| {
            let before = x.hoard.len();
            for len in [20_000, 400, 30, 5] {
                while x.hoard.make(&x.ctx, len) {}
            }
            x.hoard.look();
            x.hoard.shrink(before);
        }),
    ),
    (
        "asks for another class",
        Stays(|x| {
            let before = x.hoard.len();
            for len in [20_000, 400, 60] {
                while x.hoard.make(&x.ctx, len) {}
            }
            x.hoard.make_many(&x.ctx, 11, 20);
            x.hoard.thin();
            x.hoard.shrink(before.min(x.hoard.len()));
        }),
    ),
    (
        "waits for memory",
        After(
            |x| while x.hoard.make(&x.ctx, 400) {},
            |x| {
                match x.ctx.within(MOMENT).slice_zeroed::<u64>(400) {
                    Ok(_) | Err(AllocError::OutOfMemory { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                x.hoard.shrink(20);
            },
        ),
    ),
    (
        "frees what is waited for",
        Stays(|x| {
            while x.hoard.make(&x.ctx, 7000) {}
            let waits = x.thread(|ctx| drop(ctx.within(MOMENT * 20).slice_uninit::<u64>(7000)));
            std::thread::sleep(MOMENT);
            x.hoard.shrink(30);
            waits.join().unwrap();
        }),
    ),
    (
        "finds its cache taken",
        After(
            |x| {
                x.hoard.churn(&x.ctx, 437, 50);
                x.thread(|ctx| drop(take_all(ctx, 7000))).join().unwrap();
            },
            |x| x.hoard.make_many(&x.ctx, 437, 3),
        ),
    ),
    (
        "takes from the idle",
        Stays(|x| {
            let (idle, wait) = std::sync::mpsc::channel();
            let (go, on) = std::sync::mpsc::channel();
            let other = x.thread(move |ctx| {
                let mut hoard = Hoard::new(Of::Passer);
                hoard.churn(ctx, 437, 50);
                hoard.make_many(ctx, 437, 3);
                idle.send(()).unwrap();
                on.recv().unwrap();
                hoard.make_many(ctx, 437, 5);
                hoard.look();
            });
            wait.recv().unwrap();
            drop(take_all(&x.ctx, 7000));
            go.send(()).unwrap();
            other.join().unwrap();
        }),
    ),
    (
        "merges magazines",
        After(
            |x| {
                x.hoard.churn(&x.ctx, 1, 5);
                x.thread(|ctx| drop((0..25).filter_map(|_| make(ctx, 1, 0)).collect::<Vec<_>>())).join().unwrap();
            },
            |x| x.ctx.flush(),
        ),
    ),
    (
        "trims",
        After(
            |x| {
                x.hoard.churn(&x.ctx, 437, 60);
                x.hoard.churn(&x.ctx, 20_000, 2);
            },
            |x| _ = x.buffer.trim().unwrap(),
        ),
    ),
    (
        "trims tables",
        After(
            |x| {
                // Memory that somebody has filled holes with, beyond all frontiers.
                let file = File::options().write(true).open(format!("/dev/shm/{}", x.buffer.name())).unwrap();
                let data = file.metadata().unwrap().len() - CAPACITY;
                file.write_all_at(&[0; 8192], data - (2 << 20)).unwrap();
            },
            |x| _ = x.buffer.trim().unwrap(),
        ),
    ),
    (
        "trims what is mixed",
        After(
            |x| {
                let mut one: Vec<_> = (0..34).filter_map(|_| make(&x.ctx, 437, 0)).collect();
                let other = one.split_off(17);
                one.into_iter().zip(other.into_iter().skip(1)).for_each(drop);
                x.hoard.make_many(&x.ctx, 437, 1);
                x.ctx.flush();
            },
            |x| _ = x.buffer.trim().unwrap(),
        ),
    ),
    // Messages.
    (
        "sends",
        Stays(|x| {
            x.to_victim.send(&x.ctx, 4);
            x.to_reaper.send(&x.ctx, 4);
        }),
    ),
    (
        "sends batches",
        Stays(|x| {
            x.to_victim.send_batch(&x.ctx, 6);
            x.to_reaper.send_batch(&x.ctx, 5);
        }),
    ),
    (
        "sends values",
        Stays(|x| {
            x.values_to_victim.send(&x.ctx, 4);
            x.values_to_reaper.send(&x.ctx, 5);
        }),
    ),
    (
        "sends batches of values",
        Stays(|x| {
            x.values_to_victim.send_batch(&x.ctx, 6);
            x.values_to_reaper.send_batch(&x.ctx, 9);
        }),
    ),
    (
        "receives",
        Stays(|x| {
            x.from_victim.receive(&mut x.hoard, 30);
            x.from_reaper.receive(&mut x.hoard, 5);
        }),
    ),
    (
        "receives batches",
        Stays(|x| {
            x.from_victim.receive_batch(&mut x.hoard, 9);
            x.from_reaper.receive_batch(&mut x.hoard, 5);
            x.from_victim.receive_batch(&mut x.hoard, 30);
        }),
    ),
    (
        "receives values",
        Stays(|x| {
            x.values_from_victim.receive(&mut x.hoard, 30);
            x.values_from_reaper.receive(&mut x.hoard, 5);
        }),
    ),
    (
        "receives batches of values",
        Stays(|x| {
            x.values_from_victim.receive_batch(&mut x.hoard, 9);
            x.values_from_reaper.receive_batch(&mut x.hoard, 5);
        }),
    ),
    (
        "iterates over what is stored",
        Stays(|x| {
            let stored = x.stored.as_mut().unwrap();
            stored.take(&mut x.hoard, 7, |end| end.try_iter().take(7).collect());
        }),
    ),
    (
        "receives from who has left",
        Stays(|x| {
            let left = x.left.as_mut().unwrap();
            left.take(&mut x.hoard, 64, |end| end.iter().collect());
        }),
    ),
    (
        "sends on",
        Stays(|x| {
            // The same blocks.
            let got = received(x.own.as_mut().unwrap().1.end.try_recv_batch(5)).unwrap();
            drop(got);
            x.own.as_mut().unwrap().0.send(&x.ctx, 5);
        }),
    ),
    // Waiting.
    (
        "waits in vain",
        Stays(|x| {
            x.from_reaper.receive_batch(&mut x.hoard, 64);
            // Unless more has come in a stop.
            for _ in 0..2 {
                x.from_reaper.take(&mut x.hoard, 1, |end| end.recv_timeout(MOMENT).into_iter().collect());
            }
        }),
    ),
    (
        "waits for the victim",
        Stays(|x| {
            x.from_victim.receive_batch(&mut x.hoard, 64);
            for _ in 0..2 {
                x.from_victim.take(&mut x.hoard, 1, |end| end.recv_timeout(MOMENT * 90).into_iter().collect());
            }
        }),
    ),
    (
        "waits for room",
        Stays(|x| {
            x.own.as_mut().unwrap().0.send(&x.ctx, 64);
            x.own.as_mut().unwrap().0.give(&x.ctx, 1, |end, made| {
                made.into_iter().filter_map(|it| end.send_timeout(it, MOMENT).ok()).count()
            });
        }),
    ),
    (
        "wakes",
        Stays(|x| {
            let mut tx = records_out(&x.ctx, id::NEW).unwrap();
            let sleeper = x.thread(|ctx| {
                let mut rx = records_in(ctx, id::NEW).unwrap();
                let mut hoard = Hoard::new(Of::Passer);
                while rx.take(&mut hoard, 1, |end| end.recv().into_iter().collect()) == 1 {}
            });
            assert!(tx.end.wait_for_consumer(MOMENT * 1000).is_ok());
            for _ in 0..5 {
                std::thread::sleep(MOMENT);
                tx.send(&x.ctx, 1);
            }
            drop(tx);
            sleeper.join().unwrap();
        }),
    ),
    (
        "selects among many",
        Stays(|x| {
            x.from_reaper.receive_batch(&mut x.hoard, 64);
            // So many that they are armed, instead of looked at.
            let options = ChannelOptions::new().capacity(2);
            let many: Vec<_> =
                (1000..1070).filter_map(|i| x.ctx.value_consumer_with::<u64>(i, &options).ok()).collect();
            let mut select = Select::new();
            many.iter().for_each(|end| _ = select.recv(end));
            select.recv(&x.from_reaper.end);
            (0..2).for_each(|_| _ = select.ready_timeout(MOMENT));
            x.from_reaper.receive(&mut x.hoard, 20);
        }),
    ),
    (
        "selects",
        Stays(|x| {
            x.from_reaper.receive_batch(&mut x.hoard, 64);
            x.from_victim.receive_batch(&mut x.hoard, 64);
            x.values_from_reaper.receive_batch(&mut x.hoard, 64);
            let mut select = Select::new();
            select.recv(&x.from_reaper.end);
            select.recv(&x.from_victim.end);
            select.recv(&x.values_from_reaper.end);
            (0..2).for_each(|_| _ = select.ready_timeout(MOMENT));
        }),
    ),
    #[cfg(feature = "async")]
    ("awaits a record", Stays(awaits::record)),
    #[cfg(feature = "async")]
    ("awaits room", Stays(awaits::room)),
    #[cfg(feature = "async")]
    ("awaits a value in vain", Stays(awaits::in_vain)),
    // Channels.
    (
        "creates",
        Stays(|x| {
            for _ in 0..2 {
                let (mut tx, mut rx) = (records_out(&x.ctx, id::NEW).unwrap(), records_in(&x.ctx, id::NEW).unwrap());
                tx.send(&x.ctx, 5);
                rx.receive(&mut x.hoard, 5);
            }
        }),
    ),
    (
        "creates for values",
        Stays(|x| {
            let (mut tx, mut rx) = (values_out(&x.ctx, id::NEW).unwrap(), values_in(&x.ctx, id::NEW).unwrap());
            tx.send_batch(&x.ctx, 5);
            rx.receive(&mut x.hoard, 5);
        }),
    ),
    (
        "takes the place of the victim",
        Stays(|x| {
            drop((records_out(&x.ctx, id::VICTIM_TO_X), records_in(&x.ctx, id::X_TO_VICTIM)));
            drop((records_out(&x.ctx, id::VICTIMS), values_out(&x.ctx, id::VALUES_VICTIM_TO_X)));
        }),
    ),
    (
        "comes and goes at an end",
        Stays(|x| {
            x.stored = None;
            x.stored = records_in(&x.ctx, id::STORED);
            drop(records_out(&x.ctx, id::STORED));
        }),
    ),
    (
        "leaves a full channel",
        Stays(|x| {
            x.left = None;
            x.hoard.make_many(&x.ctx, 5, 100);
        }),
    ),
    (
        "leaves a channel of its own",
        Stays(|x| {
            let (tx, rx) = x.own.take().unwrap();
            drop(rx);
            drop(tx);
            x.hoard.make_many(&x.ctx, 5, 50);
        }),
    ),
    (
        "removes a channel it is in",
        Stays(|x| {
            assert!(x.buffer.remove_channel(id::LEFT.into()).unwrap());
            x.left = None;
            assert!(x.buffer.remove_channel(id::OWN.into()).unwrap());
            x.own = None;
            x.hoard.make_many(&x.ctx, 5, 50);
        }),
    ),
    (
        "removes a channel of the victim",
        Stays(|x| {
            let _ = x.buffer.remove_channel(id::VICTIMS.into()).unwrap();
            x.hoard.make_many(&x.ctx, 5, 50);
        }),
    ),
    (
        "asks for channels",
        Stays(|x| {
            let _ = x.buffer.has_channel(id::VICTIMS.into()).unwrap();
            let _ = x.buffer.channels().unwrap();
            let _ = x.buffer.wait_for_channel(99, MOMENT).unwrap();
        }),
    ),
    (
        "follows a torn batch of records",
        After(
            |x| {
                // All of it received, so that the numbers go on where they are.
                x.stored.take().unwrap().receive(&mut x.hoard, 64);
                x.loses("send batch: slot", |_, ctx| {
                    let mut tx = records_out(ctx, id::STORED).unwrap();
                    tx.end.send_batch((0..4).filter_map(|i| make(ctx, 5, seed(Of::Passer, 1, i)))).unwrap();
                });
            },
            |x| {
                let mut tx = records_out(&x.ctx, id::STORED).unwrap();
                tx.send(&x.ctx, 1);
                x.stored = records_in(&x.ctx, id::STORED);
                x.stored.iter_mut().for_each(|rx| rx.receive(&mut x.hoard, 9));
            },
        ),
    ),
    (
        "repairs the index",
        After(
            |x| x.loses("create: live", |_, ctx| drop(records_out(ctx, id::NEW))),
            |x| {
                let _ = x.buffer.has_channel(id::NEW.into()).unwrap();
                drop((records_out(&x.ctx, id::NEW), records_in(&x.ctx, id::NEW)));
            },
        ),
    ),
    // The whole.
    ("reaps", Stays(|x| while x.buffer.reap().unwrap().processes > 0 {})),
    (
        "reaps who died in a trim",
        After(
            |x| {
                x.hoard.churn(&x.ctx, 437, 60);
                x.ctx.flush();
                x.loses("drop: cleared", |buffer, ctx| {
                    let mut hoard = Hoard::new(Of::Passer);
                    hoard.churn(ctx, 437, 60);
                    ctx.flush();
                    let _ = buffer.trim();
                });
            },
            |x| while x.buffer.reap().unwrap().processes > 0 {},
        ),
    ),
    ("audits", Stays(|x| drop((x.buffer.audit().unwrap(), x.buffer.stats().unwrap())))),
    (
        "closes a thread's context",
        Stays(|x| {
            let thread = x.thread(|ctx| {
                let mut hoard = Hoard::new(Of::Passer);
                hoard.make_many(ctx, 5, 300);
                hoard.shrink(20);
                let (tx, rx) = (records_out(ctx, id::NEW), records_in(ctx, id::NEW));
                drop((rx, hoard, tx));
            });
            thread.join().unwrap();
        }),
    ),
    ("leaves", Goes(X::leaves)),
    (
        "leaves with its context first",
        Goes(|x| {
            let X { ctx, buffer, mut hoard, .. } = x;
            drop(ctx);
            // Without a context, and some after the last handle.
            hoard.shrink(20);
            drop(buffer);
            hoard.shrink(0);
        }),
    ),
    ("comes by", Comes(|name| passer(name, id::NEW))),
    (
        "comes for what is stored",
        Comes(|name| {
            let ctx = open(name).context().unwrap();
            let mut hoard = Hoard::new(Of::X);
            let mut stored = records_in(&ctx, id::STORED).unwrap();
            stored.receive(&mut hoard, 9);
            drop(stored);
            hoard.look();
        }),
    ),
];

#[cfg(feature = "async")]
mod awaits {
    use super::*;
    use crate::executor::Bell;
    use std::task::Poll;

    /// Sleeps, is woken by a record, and has it.
    pub fn record(x: &mut X) {
        let (tx, rx) = x.own.as_mut().unwrap();
        rx.receive_batch(&mut x.hoard, 64);
        rx.take(&mut x.hoard, 1, |end| {
            let bell = Bell::new();
            let mut next = end.recv_async();
            assert!(bell.settle(&mut next).is_pending());
            let before = bell.rung();
            tx.send(&x.ctx, 1);
            bell.wait(before);
            match bell.settle(&mut next) {
                Poll::Ready(Ok(record)) => vec![record],
                other => panic!("{other:?}"),
            }
        });
    }

    pub fn room(x: &mut X) {
        let (tx, rx) = x.own.as_mut().unwrap();
        tx.send(&x.ctx, 64);
        tx.give(&x.ctx, 1, |end, made| {
            let Some(it) = made.into_iter().next() else { return 0 };
            let bell = Bell::new();
            let mut sent = end.send_async(it);
            assert!(bell.settle(&mut sent).is_pending());
            rx.receive_batch(&mut x.hoard, 64);
            loop {
                if let Poll::Ready(done) = bell.settle(&mut sent) {
                    done.unwrap();
                    break 1;
                }
                std::thread::yield_now();
            }
        });
    }

    /// Is dropped while it waits.
    pub fn in_vain(x: &mut X) {
        x.values_from_reaper.receive_batch(&mut x.hoard, 64);
        x.values_from_reaper.take(&mut x.hoard, 1, |end| {
            match Bell::new().settle(&mut end.recv_async()) {
                // It has come in a stop.
                Poll::Ready(received) => received.into_iter().collect(),
                Poll::Pending => vec![],
            }
        });
    }
}
