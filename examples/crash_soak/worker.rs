//! A worker: does whatever comes into its mind, notes it in the ledger, and is killed sooner or later.

use crate::Outcome;
use crate::ledger::{Event, Log, What, is_persistent};
use crate::rng::Rng;
use ipc_buffer::{
    AllocError, AttachError, Buffer, BufferError, Channel, ChannelOptions, Consumer, OpenError, Producer, Record,
    RecvError, RecvTimeoutError, SendTimeoutError, ThreadContext, TryRecvError, TrySendError,
};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

/// What the parent wants: the low byte of the control word, whose rest is the number of the pause.
pub(crate) const OPEN: u64 = 0;
pub(crate) const RUN: u64 = 1;
pub(crate) const PAUSE: u64 = 2;
pub(crate) const QUIT: u64 = 3;

/// What a worker is told at its start, after its own executable's name and `--worker`.
#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) seed: u64,
    pub(crate) parent: u32,
    pub(crate) channels: u32,
    pub(crate) buffer_mib: u32,
    /// Words it may hold.
    pub(crate) share: u64,
}

impl Orders {
    pub(crate) fn to_args(&self) -> Vec<String> {
        let Self { name, number, seed, parent, channels, buffer_mib, share } = self.clone();
        let numbers = [number.into(), seed, parent.into(), channels.into(), buffer_mib.into(), share];
        ["--worker".into(), name].into_iter().chain(numbers.map(|n: u64| n.to_string())).collect()
    }

    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let name = args.next().ok_or("--worker is not for you")?;
        let mut number = || args.next().and_then(|n| n.parse::<u64>().ok()).ok_or("--worker is not for you");
        Ok(Self {
            name,
            number: u32::try_from(number()?)?,
            seed: number()?,
            parent: u32::try_from(number()?)?,
            channels: u32::try_from(number()?)?,
            buffer_mib: u32::try_from(number()?)?,
            share: number()?,
        })
    }
}

/// Words of a record: length, seed of the rest, channel, producer, sequence number, sum of these; then the rest.
const HEAD: usize = 6;

fn word(seed: u64, i: usize) -> u64 {
    seed.wrapping_mul(2 * i as u64 + 1).rotate_left(17)
}

fn sum(record: &[u64]) -> u64 {
    record[..5].iter().fold(0x5eed, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

fn stamp(record: &mut [u64], channel: u32, producer: u64, seq: u64) {
    record[2..5].copy_from_slice(&[channel.into(), producer, seq]);
    record[5] = sum(record);
}

/// Whether the record is whole: what was written into it, and nothing else.
pub(crate) fn check(record: &[u64]) -> Result<(), String> {
    if record.len() < HEAD || record[0] != record.len() as u64 || record[5] != sum(record) {
        return Err(format!("a record of {} words begins with {:x?}", record.len(), &record[..record.len().min(HEAD)]));
    }
    let spoilt = (HEAD..record.len()).find(|i| record[*i] != word(record[1], *i));
    spoilt.map_or(Ok(()), |i| Err(format!("word {i} of {} is {:x}: {:x?}", record.len(), record[i], &record[..HEAD])))
}

pub(crate) fn slots(channel: u32) -> ChannelOptions {
    ChannelOptions::new().capacity(2 << (channel % 6)).persistent(is_persistent(channel))
}

struct Tx {
    end: u64,
    channel: u32,
    next: u64,
    tx: Channel<[u64], Producer>,
}

struct Rx {
    end: u64,
    channel: u32,
    rx: Channel<[u64], Consumer>,
}

struct Life {
    orders: Orders,
    log: Log,
    control: File,
    rng: Rng,
    ends: u64,
    made: u64,
    /// Words in hand.
    weight: u64,
    held: Vec<Record<[u64]>>,
    tx: Vec<Tx>,
    rx: Vec<Rx>,
    ctx: Option<ThreadContext>,
    buffer: Option<Buffer>,
}

/// A worker's life.
pub(crate) fn work(orders: Orders) -> Outcome<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get().cast_unsigned() != orders.parent) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut life = Life {
        rng: Rng::new(orders.seed),
        orders,
        log: Log::inherited()?,
        control: io::stdin().as_fd().try_clone_to_owned()?.into(),
        ends: 0,
        made: 0,
        weight: 0,
        held: Vec::new(),
        tx: Vec::new(),
        rx: Vec::new(),
        ctx: None,
        buffer: None,
    };
    loop {
        let mut word = [0; 8];
        life.control.read_exact_at(&mut word, 0)?;
        let word = u64::from_le_bytes(word);
        match word & 0xff {
            PAUSE => life.rest(word)?,
            QUIT => break,
            phase => {
                if !life.step(phase == RUN) {
                    break;
                }
            }
        }
    }
    life.close(true);
    Ok(ExitCode::SUCCESS)
}

impl Life {
    fn note(&self, what: What, channel: u32, end: u64, peer: u64, seq: u64) {
        self.log.note(Event { what, worker: self.orders.number, channel, end, peer, seq });
    }

    fn wrong(&self, text: impl std::fmt::Display) -> ! {
        eprintln!("crash_soak: worker {}: {text}", self.orders.number);
        self.log.note(Event::new(What::Wrong, self.orders.number));
        std::process::exit(3)
    }

    /// Stays still until the control word is another one.
    fn rest(&mut self, word: u64) -> io::Result<()> {
        self.log.note(Event {
            seq: word >> 8,
            peer: self.held.len() as u64,
            ..Event::new(What::Paused, self.orders.number)
        });
        let mut now = word.to_le_bytes();
        while now == word.to_le_bytes() {
            std::thread::sleep(Duration::from_micros(500));
            self.control.read_exact_at(&mut now, 0)?;
        }
        Ok(())
    }

    /// One thing. False to leave.
    fn step(&mut self, all: bool) -> bool {
        if self.buffer.is_none() {
            let mib = u64::from(self.orders.buffer_mib);
            match Buffer::options().capacity(mib << 20).open(&self.orders.name) {
                Ok(buffer) => self.buffer = Some(buffer),
                Err(OpenError::Busy { .. } | OpenError::TooManyProcesses { .. } | OpenError::NoSpace { .. }) => {}
                Err(error) => self.wrong(format_args!("{error}: {:?}", std::error::Error::source(&error))),
            }
            return true;
        }
        if all && self.tx.len() + self.rx.len() < 4 && self.rng.below(8) == 0 {
            let sends = self.rng.below(2) == 0;
            self.attach(sends);
        }
        let Some(buffer) = &self.buffer else { return true };
        if self.ctx.is_none() {
            match buffer.context() {
                Ok(ctx) => self.ctx = Some(ctx),
                Err(BufferError::TooManyContexts { .. } | BufferError::Busy { .. }) => {}
                Err(error) => self.wrong(error),
            }
            return true;
        }
        match self.rng.below(1000) {
            0..200 => self.hold(),
            200..380 => self.free(),
            380..384 => self.close(false),
            384..388 => self.close_context(),
            388..396 => self.expect(buffer.reap()),
            396..400 => self.expect(buffer.trim()),
            400..402 => self.expect(buffer.stats()),
            402..404 => self.expect(buffer.channels()),
            // What it says under traffic is not to be relied on; that it ends is.
            404..405 => self.expect(buffer.audit()),
            405..411 => self.ctx.iter().for_each(ThreadContext::flush),
            411..412 if self.rng.below(4) == 0 => return false,
            _ if !all => {}
            412..440 => self.attach(true),
            440..468 => self.attach(false),
            468..474 => self.leave(true),
            474..480 => self.leave(false),
            480..484 => self.remove(),
            484..680 => (0..=self.rng.below(8)).for_each(|_| self.send()),
            680..740 => self.send_batch(),
            740..940 => (0..=self.rng.below(8)).for_each(|_| self.receive()),
            _ => self.receive_batch(),
        }
        true
    }

    fn expect<R>(&self, result: Result<R, BufferError>) {
        match result {
            Ok(_) | Err(BufferError::Busy { .. } | BufferError::TooManyContexts { .. }) => {}
            Err(error) => self.wrong(error),
        }
    }

    fn make(&mut self) -> Option<Record<[u64]>> {
        let most = match self.rng.below(100) {
            0..80 => 64,
            80..95 => 1024,
            95..99 => 1 << 14,
            _ => 1 << 16,
        };
        let words = HEAD + self.rng.size(most);
        let record = match self.ctx.as_ref()?.slice_uninit::<u64>(words) {
            Ok(record) => record,
            Err(AllocError::OutOfMemory { .. }) => {
                self.free();
                return None;
            }
            Err(error) => self.wrong(error),
        };
        self.made += 1;
        let seed = u64::from(self.orders.number) << 32 | self.made;
        let mut record = record.fill_with(|i| word(seed, i));
        record[..2].copy_from_slice(&[words as u64, seed]);
        stamp(&mut record, u32::MAX, 0, 0);
        Some(record)
    }

    fn keep(&mut self, record: Record<[u64]>) {
        self.weight += record.len() as u64;
        self.held.push(record);
    }

    fn hold(&mut self) {
        if self.weight > self.orders.share {
            self.free();
        } else if let Some(record) = self.make() {
            self.keep(record);
        }
    }

    /// Any of the records in hand, checked.
    fn pick(&mut self) -> Option<Record<[u64]>> {
        let place = self.rng.index(self.held.len())?;
        let record = self.held.swap_remove(place);
        self.weight -= record.len() as u64;
        if let Err(error) = check(&record) {
            self.wrong(format_args!("in my hands: {error}"));
        }
        Some(record)
    }

    fn free(&mut self) {
        drop(self.pick());
    }

    fn new_end(&mut self) -> u64 {
        self.ends += 1;
        u64::from(self.orders.number) << 32 | self.ends
    }

    fn attach(&mut self, sends: bool) {
        let channel = self.rng.below(self.orders.channels.into()) as u32;
        let Some(ctx) = self.ctx.clone().filter(|_| self.tx.len().max(self.rx.len()) < 6) else { return };
        let (id, options) = (i64::from(channel), slots(channel));
        self.note(What::Attaches, channel, 0, 0, 0);
        let result = if sends {
            ctx.producer_with(id, &options).map(|tx| {
                let end = self.new_end();
                self.note(What::Produces, channel, end, 0, 0);
                self.tx.push(Tx { end, channel, next: 1, tx });
            })
        } else {
            ctx.consumer_with(id, &options).map(|rx| {
                let end = self.new_end();
                self.note(What::Consumes, channel, end, 0, 0);
                self.rx.push(Rx { end, channel, rx });
            })
        };
        match result {
            Ok(())
            | Err(AttachError::RoleTaken { .. } | AttachError::OutOfMemory { .. } | AttachError::Busy { .. }) => {}
            Err(error) => self.wrong(error),
        }
    }

    fn leave(&mut self, sends: bool) {
        if sends {
            let Some(place) = self.rng.index(self.tx.len()) else { return };
            self.note(What::Leaves, self.tx[place].channel, self.tx[place].end, 0, 0);
            self.tx.swap_remove(place);
        } else {
            let Some(place) = self.rng.index(self.rx.len()) else { return };
            self.note(What::Leaves, self.rx[place].channel, self.rx[place].end, 0, 0);
            self.rx.swap_remove(place);
        }
    }

    fn say_that_all_leave(&self) {
        self.tx.iter().for_each(|tx| self.note(What::Leaves, tx.channel, tx.end, 0, 0));
        self.rx.iter().for_each(|rx| self.note(What::Leaves, rx.channel, rx.end, 0, 0));
    }

    /// Closes the context below its endpoints, which must then know.
    fn close_context(&mut self) {
        self.say_that_all_leave();
        self.ctx = None;
        for Rx { rx, .. } in &mut self.rx {
            if let Err(error) = rx.try_recv().map(drop)
                && error != RecvError::ContextClosed.into()
            {
                let text = format!("after the context was closed: {error}");
                eprintln!("crash_soak: worker {}: {text}", self.orders.number);
                self.log.note(Event::new(What::Wrong, self.orders.number));
            }
        }
        self.tx.clear();
        self.rx.clear();
    }

    /// Closes the buffer; what is in hand may outlive it.
    fn close(&mut self, for_good: bool) {
        self.say_that_all_leave();
        if for_good || self.rng.below(2) == 0 {
            while self.pick().is_some() {}
        }
        self.tx.clear();
        self.rx.clear();
        self.ctx = None;
        self.buffer = None;
    }

    fn remove(&mut self) {
        let channel = self.rng.below(self.orders.channels.into()) as u32;
        if !is_persistent(channel)
            && let Some(buffer) = &self.buffer
        {
            self.note(What::Removes, channel, 0, 0, 0);
            self.expect(buffer.remove_channel(channel.into()));
            self.note(What::Removed, channel, 0, 0, 0);
        }
    }

    fn send(&mut self) {
        let record = if self.rng.below(4) == 0 { self.pick() } else { None };
        if let Some(record) = record.or_else(|| self.make()) {
            self.send_on(record);
        }
    }

    fn send_on(&mut self, mut record: Record<[u64]>) {
        let Some(place) = self.rng.index(self.tx.len()) else { return self.keep(record) };
        let (form, wait) = (self.rng.below(1000), Duration::from_micros(self.rng.below(2000)));
        let Tx { end, channel, next, .. } = self.tx[place];
        self.tx[place].next += 1;
        stamp(&mut record, channel, end, next);
        self.note(What::Sends, channel, end, 0, next);
        let for_ever = form == 0 && self.tx[place].tx.has_consumer();
        if for_ever {
            self.note(What::Waits, channel, end, 0, 1);
        }
        let tx = &mut self.tx[place].tx;
        let result = match form {
            0 if for_ever => tx.send(record).map_err(|error| (error.to_string(), error.into_inner())),
            0..50 => match tx.send_timeout(record, wait) {
                Err(SendTimeoutError::Timeout(record)) => Err((String::new(), record)),
                other => other.map_err(|error| (error.to_string(), error.into_inner())),
            },
            _ => tx.try_send(record).map_err(|error| (error.to_string(), error.into_inner())),
        };
        match result {
            Ok(()) => self.note(What::Sent, channel, end, 0, next),
            Err((text, record)) => {
                self.note(What::NotSent, channel, end, 0, next);
                if text.contains("another buffer") || text.contains("fork") || text.contains("closed") {
                    self.wrong(text);
                }
                self.keep(record);
            }
        }
    }

    fn receive(&mut self) {
        let Some(place) = self.rng.index(self.rx.len()) else { return };
        let (form, wait) = (self.rng.below(1000), Duration::from_micros(self.rng.below(2000)));
        let Rx { end, channel, .. } = self.rx[place];
        let for_ever = form == 0 && self.rx[place].rx.has_producer();
        self.note(What::Receives, channel, end, 0, 1);
        if for_ever {
            self.note(What::Waits, channel, end, 0, 0);
        }
        let rx = &mut self.rx[place].rx;
        let result = match form {
            0 if for_ever => rx.recv().map_err(RecvTimeoutError::Recv),
            0..50 => rx.recv_timeout(wait),
            _ => rx.try_recv().map_err(|error| match error {
                TryRecvError::Recv(error) => RecvTimeoutError::Recv(error),
                _ => RecvTimeoutError::Timeout(Duration::ZERO),
            }),
        };
        match result {
            Ok(record) => self.received(channel, end, record),
            Err(RecvTimeoutError::Timeout(_)) => self.note(What::Nothing, channel, end, 0, 0),
            Err(RecvTimeoutError::Recv(RecvError::Disconnected)) => self.note(What::Drained, channel, end, 0, 0),
            Err(error) => self.wrong(format_args!("channel {channel}: {error}")),
        }
    }

    fn received(&mut self, channel: u32, end: u64, record: Record<[u64]>) {
        let [peer, seq] = [3, 4].map(|i| record.get(i).copied().unwrap_or(0));
        self.note(What::Received, channel, end, peer, seq);
        if let Err(error) = check(&record) {
            self.wrong(format_args!("received from channel {channel}: {error}"));
        }
        if record[2] != u64::from(channel) {
            self.wrong(format_args!("channel {channel} gave what was sent on {}", record[2]));
        }
        match self.rng.below(3) {
            0 => drop(record),
            1 if self.weight <= self.orders.share => self.keep(record),
            _ => self.send_on(record),
        }
    }

    fn send_batch(&mut self) {
        let Some(place) = self.rng.index(self.tx.len()) else { return };
        let Tx { end, channel, next, .. } = self.tx[place];
        let mut batch: Vec<_> = (0..=self.rng.below(20)).map_while(|_| self.make()).collect();
        self.tx[place].next += batch.len() as u64;
        for (seq, record) in (next..).zip(&mut batch) {
            stamp(record, channel, end, seq);
            self.note(What::Sends, channel, end, 0, seq);
        }
        let all = next + batch.len() as u64;
        let result = self.tx[place].tx.try_send_batch(batch);
        let rest = match result {
            Ok(()) => Vec::new(),
            Err(error @ (TrySendError::Full(_) | TrySendError::Disconnected(_))) => error.into_inner(),
            Err(error) => self.wrong(error),
        };
        let sent = all - rest.len() as u64;
        (next..sent).for_each(|seq| self.note(What::Sent, channel, end, 0, seq));
        for (seq, record) in (sent..).zip(rest) {
            self.note(What::NotSent, channel, end, 0, seq);
            self.keep(record);
        }
    }

    fn receive_batch(&mut self) {
        let Some(place) = self.rng.index(self.rx.len()) else { return };
        let most = 1 + self.rng.below(20);
        let Rx { end, channel, .. } = self.rx[place];
        self.note(What::Receives, channel, end, 0, most);
        match self.rx[place].rx.try_recv_batch(most as usize) {
            Ok(batch) => {
                for record in batch {
                    self.received(channel, end, record);
                }
                self.note(What::Nothing, channel, end, 0, 0);
            }
            Err(TryRecvError::Empty) => self.note(What::Nothing, channel, end, 0, 0),
            Err(TryRecvError::Recv(RecvError::Disconnected)) => self.note(What::Drained, channel, end, 0, 0),
            Err(error) => self.wrong(format_args!("channel {channel}: {error}")),
        }
    }
}
