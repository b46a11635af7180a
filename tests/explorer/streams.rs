//! Streams of numbered messages through channels, counted outside of the buffer: nothing is lost, comes twice, or out of order.

use crate::children::shared;
use crate::hoard::{Hoard, Of, Words, check, make, seed, write};
use crate::ledger::Counts;
use ipc_buffer::{
    AttachError, Channel, ChannelOptions, Consumer, Message, Payload, Producer, RecvError, ThreadContext, TryRecvError,
};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A value has two of its kind in a row of the ring.
pub type Row = [u64; 3];

/// Channel ids, which number the streams, too.
pub mod id {
    pub const VICTIM_TO_X: u8 = 1;
    pub const X_TO_VICTIM: u8 = 2;
    /// Its producer has left.
    pub const LEFT: u8 = 3;
    pub const VALUES_VICTIM_TO_X: u8 = 4;
    pub const VALUES_X_TO_VICTIM: u8 = 5;
    pub const REAPER_TO_X: u8 = 6;
    pub const X_TO_REAPER: u8 = 7;
    pub const VALUES_REAPER_TO_X: u8 = 8;
    pub const VALUES_X_TO_REAPER: u8 = 9;
    /// Persistent; its producer has left.
    pub const STORED: u8 = 10;
    /// Both ends are X's.
    pub const OWN: u8 = 11;
    /// Both ends are the reaper's.
    pub const TRAFFIC: u8 = 12;
    /// Both ends are the victim's, and records are queued.
    pub const VICTIMS: u8 = 13;
    /// Attached and left by whoever does so.
    pub const NEW: u8 = 14;
    pub const PASSERS: u8 = 15;
    pub const COUNT: usize = 16;
}

/// Counts of each stream, first asked for before a case forks.
pub fn counts(id: u8) -> &'static Counts {
    // SAFETY: atomics, for which zeroes are valid.
    static COUNTS: LazyLock<&'static [Counts; id::COUNT]> = LazyLock::new(|| unsafe { shared() });
    &COUNTS[usize::from(id)]
}

fn options(id: u8) -> ChannelOptions {
    ChannelOptions::new().capacity(64).persistent(id == id::STORED)
}

/// Records and values alike.
pub trait Item: Message {
    fn make(ctx: &ThreadContext, seed: u64) -> Option<Self>;
    fn check(self, seed: u64, hoard: &mut Hoard);
}

impl Item for Words {
    fn make(ctx: &ThreadContext, seed: u64) -> Option<Self> {
        // Of two classes.
        make(ctx, if seed.is_multiple_of(4) { 11 } else { 5 }, seed)
    }

    #[track_caller]
    fn check(self, seed: u64, hoard: &mut Hoard) {
        check(&self, seed);
        hoard.keep(self);
    }
}

impl Item for Row {
    fn make(_: &ThreadContext, seed: u64) -> Option<Self> {
        let mut row = [0; 3];
        write(&mut row, seed);
        Some(row)
    }

    #[track_caller]
    fn check(self, seed: u64, _: &mut Hoard) {
        check(&self, seed);
    }
}

pub struct Out<T: ?Sized + Payload, M: Item> {
    pub id: u8,
    pub end: Channel<T, Producer, M>,
}

pub struct In<T: ?Sized + Payload, M: Item> {
    pub id: u8,
    pub end: Channel<T, Consumer, M>,
}

pub type RecordsOut = Out<[u64], Words>;
pub type RecordsIn = In<[u64], Words>;
pub type ValuesOut = Out<Row, Row>;
pub type ValuesIn = In<Row, Row>;

/// What there is, if it is not taken by another who lives, or there is no memory for the channel.
fn unless_refused<C>(attached: Result<C, AttachError>) -> Option<C> {
    match attached {
        Ok(end) => Some(end),
        Err(AttachError::RoleTaken { .. } | AttachError::OutOfMemory { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

pub fn records_out(ctx: &ThreadContext, id: u8) -> Option<RecordsOut> {
    Some(Out { id, end: unless_refused(ctx.producer_with(id.into(), &options(id)))? })
}

pub fn records_in(ctx: &ThreadContext, id: u8) -> Option<RecordsIn> {
    Some(In { id, end: unless_refused(ctx.consumer_with(id.into(), &options(id)))? })
}

pub fn values_out(ctx: &ThreadContext, id: u8) -> Option<ValuesOut> {
    Some(Out { id, end: unless_refused(ctx.value_producer_with(id.into(), &options(id)))? })
}

pub fn values_in(ctx: &ThreadContext, id: u8) -> Option<ValuesIn> {
    Some(In { id, end: unless_refused(ctx.value_consumer_with(id.into(), &options(id)))? })
}

/// What was received, if anything; nothing may be found that nobody sent.
#[track_caller]
pub fn received<I>(result: Result<I, TryRecvError>) -> Option<I> {
    match result {
        Ok(it) => Some(it),
        Err(TryRecvError::Empty | TryRecvError::Recv(RecvError::Disconnected)) => None,
        Err(error) => panic!("{error}"),
    }
}

type Sending<T, M> = Channel<T, Producer, M>;
type Receiving<T, M> = Channel<T, Consumer, M>;

impl<T: ?Sized + Payload, M: Item> Out<T, M> {
    /// Sends up to `most` in the way of `give`, which says how many it sent.
    pub fn give(&mut self, ctx: &ThreadContext, most: u64, give: impl FnOnce(&mut Sending<T, M>, Vec<M>) -> usize) {
        counts(self.id).try_send(most, |numbers| {
            let made: Vec<M> = numbers.map_while(|n| M::make(ctx, seed(Of::Sent, self.id, n))).collect();
            give(&mut self.end, made) as u64
        });
    }

    /// Sends up to `most`, one by one, and does not wait.
    pub fn send(&mut self, ctx: &ThreadContext, most: u64) {
        for _ in 0..most {
            self.give(ctx, 1, |end, made| made.into_iter().filter_map(|it| end.try_send(it).ok()).count());
        }
    }

    /// Sends up to `most` in one batch, and does not wait.
    pub fn send_batch(&mut self, ctx: &ThreadContext, most: u64) {
        self.give(ctx, most, |end, made| {
            let count = made.len();
            end.try_send_batch(made).map_or_else(|error| count - error.into_inner().len(), |()| count)
        });
    }
}

impl<T: ?Sized + Payload, M: Item> In<T, M> {
    /// Receives up to `most` in the way of `take`; how many.
    #[track_caller]
    pub fn take(&mut self, hoard: &mut Hoard, most: u64, take: impl FnOnce(&mut Receiving<T, M>) -> Vec<M>) -> u64 {
        let counts = counts(self.id);
        let first = counts.received.load(SeqCst);
        counts.try_receive(most, || {
            let taken = take(&mut self.end);
            let numbers = first..first + taken.len() as u64;
            taken.into_iter().zip(numbers.clone()).for_each(|(it, n)| it.check(seed(Of::Sent, self.id, n), hoard));
            numbers.collect()
        })
    }

    /// Receives up to `most`, one by one, and does not wait.
    #[track_caller]
    pub fn receive(&mut self, hoard: &mut Hoard, most: u64) {
        (0..most).all(|_| self.take(hoard, 1, |end| received(end.try_recv()).into_iter().collect()) == 1);
    }

    /// Receives up to `most` in one batch, and does not wait.
    #[track_caller]
    pub fn receive_batch(&mut self, hoard: &mut Hoard, most: u64) {
        self.take(hoard, most, |end| received(end.try_recv_batch(most as usize)).unwrap_or_default());
    }

    /// Receives what is left, of which the first must be one that the last consumer may not have received.
    #[track_caller]
    pub fn receive_rest(&mut self, hoard: &mut Hoard) {
        let counts = counts(self.id);
        let of = |word: &AtomicU64| word.load(SeqCst);
        let (received, receiving) = (of(&counts.received), of(&counts.receiving));
        let mut rest: Vec<M> = self.end.try_iter().collect();
        // What was being received may be received, and what was being sent may be sent; there is no telling from outside.
        let all = (received + rest.len() as u64).clamp(of(&counts.sent), of(&counts.sending));
        let first = all.checked_sub(rest.len() as u64).expect("no more is queued than was sent");
        assert!((received..=receiving).contains(&first), "{first} is next, {received} were received of {receiving}");
        for (it, n) in rest.drain(..).zip(first..) {
            it.check(seed(Of::Sent, self.id, n), hoard);
        }
        counts.received.store(all, SeqCst);
        counts.receiving.store(all, SeqCst);
    }
}
