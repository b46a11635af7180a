//! Who is there beside X: the victim, the reaper, and one who comes by.

use crate::children::{is_locked, is_reaped, is_searched};
use crate::hoard::{Hoard, Of, check, seed, write};
use crate::streams::*;
use ipc_buffer::{Buffer, ThreadContext};
use std::sync::atomic::Ordering::SeqCst;

pub const CAPACITY: u64 = 2 << 20;

pub fn open(name: &str) -> Buffer {
    Buffer::options().capacity(CAPACITY).open(name).unwrap()
}

/// Something of every kind that a process may leave.
pub struct Victim {
    ctx: ThreadContext,
    hoard: Hoard,
    to_x: RecordsOut,
    from_x: RecordsIn,
    values_to_x: ValuesOut,
    values_from_x: ValuesIn,
    left: Option<RecordsOut>,
    stored: Option<RecordsOut>,
    own: (RecordsOut, RecordsIn),
    buffer: Buffer,
}

impl Victim {
    pub fn new(name: &str) -> Option<Self> {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        Some(Self {
            to_x: records_out(&ctx, id::VICTIM_TO_X)?,
            from_x: records_in(&ctx, id::X_TO_VICTIM)?,
            values_to_x: values_out(&ctx, id::VALUES_VICTIM_TO_X)?,
            values_from_x: values_in(&ctx, id::VALUES_X_TO_VICTIM)?,
            left: records_out(&ctx, id::LEFT),
            stored: records_out(&ctx, id::STORED),
            own: (records_out(&ctx, id::VICTIMS)?, records_in(&ctx, id::VICTIMS)?),
            hoard: Hoard::new(Of::Victim),
            ctx,
            buffer,
        })
    }

    pub fn sends(&mut self) {
        let ctx = &self.ctx;
        self.to_x.send(ctx, 12);
        self.to_x.send_batch(ctx, 8);
        self.values_to_x.send(ctx, 12);
        self.values_to_x.send_batch(ctx, 8);
        self.own.0.send(ctx, 20);
        for (end, count) in [(&mut self.left, 60), (&mut self.stored, 30)] {
            end.take().unwrap().send(ctx, count);
        }
        self.hoard.make_many(ctx, 5, 50);
        self.hoard.make_many(ctx, 12_000, 1);
        self.hoard.churn(ctx, 5, 400);
        self.hoard.churn(ctx, 60, 20);
    }

    pub fn receives(&mut self) {
        self.from_x.receive(&mut self.hoard, 3);
        self.from_x.receive_batch(&mut self.hoard, 4);
        self.values_from_x.receive(&mut self.hoard, 3);
        self.values_from_x.receive_batch(&mut self.hoard, 4);
        self.hoard.look();
    }

    pub fn leaves(mut self) {
        self.hoard.look();
        drop((self.to_x, self.from_x, self.values_to_x, self.values_from_x, self.own));
        self.hoard.shrink(10);
        drop((self.ctx, self.buffer));
        // After the last handle.
        self.hoard.shrink(0);
    }
}

/// What the reaper does while X is stopped.
pub const PROGRAMS: &[&str] = &["allocates", "takes all", "takes over"];

pub struct Reaper {
    name: String,
    ctx: ThreadContext,
    hoard: Hoard,
    to_x: RecordsOut,
    from_x: RecordsIn,
    values_to_x: ValuesOut,
    values_from_x: ValuesIn,
    traffic: (RecordsOut, RecordsIn),
    /// What it took over from the victim.
    taken: (Option<RecordsOut>, Option<RecordsIn>, Option<ValuesOut>, Option<ValuesIn>),
    buffer: Buffer,
}

impl Reaper {
    pub fn new(name: &str) -> Option<Self> {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let mut this = Self {
            name: name.into(),
            to_x: records_out(&ctx, id::REAPER_TO_X)?,
            from_x: records_in(&ctx, id::X_TO_REAPER)?,
            values_to_x: values_out(&ctx, id::VALUES_REAPER_TO_X)?,
            values_from_x: values_in(&ctx, id::VALUES_X_TO_REAPER)?,
            traffic: (records_out(&ctx, id::TRAFFIC)?, records_in(&ctx, id::TRAFFIC)?),
            taken: (None, None, None, None),
            hoard: Hoard::new(Of::Reaper),
            ctx,
            buffer,
        };
        this.hoard.make_many(&this.ctx, 5, 20);
        this.hoard.churn(&this.ctx, 5, 300);
        this.traffic.0.send(&this.ctx, 5);
        this.sends();
        Some(this)
    }

    fn sends(&mut self) {
        self.to_x.send(&self.ctx, 3);
        self.to_x.send_batch(&self.ctx, 4);
        self.values_to_x.send(&self.ctx, 3);
        self.values_to_x.send_batch(&self.ctx, 4);
    }

    /// X is stopped somewhere, the victim may be dead: nothing waits for either. Only whose cache X is taking back is kept out of it
    /// until X goes on (see docs::guarantees), which may be this one if X `may_revoke`.
    pub fn goes_on(&mut self, program: &str, may_revoke: bool) {
        if !(may_revoke && is_locked(&self.name)) {
            let count = self.hoard.len() - 10;
            self.hoard.shrink(count);
            self.hoard.make_many(&self.ctx, 5, 10);
        }
        self.needs_no_cache();
        // Whatever needs a lock that X is stopped with waits for it, for seconds.
        if !is_locked(&self.name) {
            if !is_reaped(&self.name) {
                let _ = self.buffer.reap().unwrap();
            }
            match program {
                "allocates" => self.allocates(),
                "takes all" => self.takes_all(),
                "takes over" => self.takes_over(),
                other => panic!("{other}"),
            }
            self.sends();
        }
        self.hoard.look();
    }

    /// The same records go round and round.
    fn needs_no_cache(&mut self) {
        let (tx, rx) = &mut self.traffic;
        for _ in 0..40 {
            let (got, sent) = (counts(rx.id).received.load(SeqCst), counts(tx.id).sent.load(SeqCst));
            counts(tx.id).try_send(sent - got, |numbers| {
                let records = rx.end.try_recv_batch(64).unwrap_or_default();
                assert_eq!(records.len() as u64, sent - got);
                counts(rx.id).received.store(sent, SeqCst);
                let again = records.into_iter().zip(numbers).map(|(mut record, number)| {
                    check(&record, seed(Of::Sent, rx.id, number - (sent - got)));
                    write(&mut record, seed(Of::Sent, rx.id, number));
                    record
                });
                tx.end.try_send_batch(again).unwrap();
                sent - got
            });
        }
        self.from_x.receive(&mut self.hoard, 7);
        self.from_x.receive_batch(&mut self.hoard, 64);
        self.values_from_x.receive(&mut self.hoard, 7);
        self.values_from_x.receive_batch(&mut self.hoard, 64);
        self.values_to_x.send_batch(&self.ctx, 4);
    }

    fn allocates(&mut self) {
        self.hoard.make_many(&self.ctx, 5, 600);
        self.hoard.make_many(&self.ctx, 60, 10);
        self.hoard.make_many(&self.ctx, 3000, 3);
        // Not exact while X is in the middle of something, but it must come to an end.
        let _ = self.buffer.audit().unwrap();
    }

    /// Also what others cache, X's included; then lets half of it go.
    fn takes_all(&mut self) {
        for len in [20_000, 400, 60, 11, 5] {
            while self.hoard.make(&self.ctx, len) {}
        }
        self.hoard.look();
        self.hoard.thin();
        // X may be stopped while it searches for memory; then it is busy for everybody else, and says so after five seconds.
        if !is_searched(&self.name) {
            let _ = self.buffer.trim().unwrap();
        }
    }

    fn takes_over(&mut self) {
        let ctx = &self.ctx;
        let (out, values) = (records_out(ctx, id::VICTIM_TO_X), values_out(ctx, id::VALUES_VICTIM_TO_X));
        self.taken = (out, records_in(ctx, id::X_TO_VICTIM), values, values_in(ctx, id::VALUES_X_TO_VICTIM));
        let (tx, rx, values_tx, values_rx) = &mut self.taken;
        tx.iter_mut().for_each(|tx| tx.send(ctx, 3));
        values_tx.iter_mut().for_each(|tx| tx.send_batch(ctx, 5));
        rx.iter_mut().for_each(|rx| rx.receive(&mut self.hoard, 64));
        values_rx.iter_mut().for_each(|rx| rx.receive_batch(&mut self.hoard, 64));
        let _ = self.buffer.remove_channel(id::VICTIMS.into()).unwrap();
        self.hoard.make_many(&self.ctx, 5, 100);
    }

    /// Nobody else is there any more: all is whole, and nothing is lost.
    pub fn ends(mut self) {
        while self.buffer.reap().unwrap().processes > 0 {}
        self.hoard.look();
        let ctx = &self.ctx;
        self.taken = (None, None, None, None);
        // What was sent to this one.
        self.from_x.receive(&mut self.hoard, 64);
        self.values_from_x.receive(&mut self.hoard, 64);
        [id::X_TO_REAPER, id::VALUES_X_TO_REAPER].iter().for_each(|id| counts(*id).check_delivered());
        // What was sent to X and not received.
        [id::REAPER_TO_X, id::STORED].iter().for_each(|id| {
            records_in(ctx, *id).unwrap().receive_rest(&mut self.hoard);
        });
        values_in(ctx, id::VALUES_REAPER_TO_X).unwrap().receive_rest(&mut self.hoard);
        let audit = self.buffer.audit().unwrap();
        assert!(audit.problems.is_empty(), "{} problems, such as {}", audit.problems.len(), audit.problems[0]);
        assert_eq!(audit.unaccounted_bytes, 0, "bytes unaccounted for");
        assert!(audit.owned.iter().all(|owner| owner.is_self), "records of the dead: {:?}", audit.owned);
        let owned = audit.owned.iter().map(|owner| owner.records).sum::<u64>();
        assert_eq!(owned, self.hoard.len() as u64, "records owned, and known");
        drop((self.to_x, self.from_x, self.values_to_x, self.values_from_x, self.traffic));
        for id in 0..id::COUNT {
            let _ = self.buffer.remove_channel(id as i64).unwrap();
        }
        self.hoard.shrink(0);
        let audit = self.buffer.audit().unwrap();
        assert!(audit.is_all_free(), "not all is free: {audit:?}");
    }
}

/// Opens, works, and goes. Once for each `id`: what it leaves in the channel is freed with it, and counted as sent.
pub fn passer(name: &str, id: u8) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut hoard = Hoard::new(Of::Passer);
    if let (Some(mut tx), Some(mut rx)) = (records_out(&ctx, id), records_in(&ctx, id)) {
        tx.send_batch(&ctx, 9);
        rx.receive(&mut hoard, 3);
    }
    hoard.make_many(&ctx, 5, 30);
    hoard.look();
    hoard.shrink(5);
    drop((ctx, buffer));
    hoard.shrink(0);
}
