//! The ledger: what each process is about to do and has done, outside of the buffer, and what may follow from it.
//!
//! A log that everybody appends to, one `write` per event: a kill leaves an event there or not, never half of it, and the
//! order of the log agrees with every process's own. Its rules:
//!
//! - An attachment is noted before and after it is made, and before it is given up; a send, and a receive, before and after.
//! - A worker is noted as doomed before it is killed, and as dead when it has been waited for.
//!
//! So a record that was noted as sent must come, in order and once, unless a consumer of its channel was killed with it: inside
//! a receive, by its notes, and so the one next in line, and no more than one for each such kill. A send that was
//! announced by a doomed worker and not noted as done may have happened or not. Nothing else is excused.

use ipc_buffer::Audit;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Records of these channels are excused by kills alone: they are persistent, and nobody removes them. The others come and go.
pub(crate) fn is_persistent(channel: u32) -> bool {
    channel.is_multiple_of(2)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum What {
    /// About to attach to `channel`.
    Attaches,
    /// The producer `end` of `channel` is attached.
    Produces,
    /// The consumer `end` of `channel` is attached.
    Consumes,
    /// `end` is about to be given up.
    Leaves,
    /// `end` is about to send `seq`.
    Sends,
    /// `end` has sent `seq`.
    Sent,
    /// `seq` was handed back to `end`.
    NotSent,
    /// `end` is about to receive.
    Receives,
    /// `end` was given nothing.
    Nothing,
    /// `end` has received what `peer` had sent as `seq`.
    Received,
    /// `end` was told that everything was received and the producer has left.
    Drained,
    /// `channel` is about to be removed.
    Removes,
    /// It is removed.
    Removed,
    /// About to wait without an end at `channel`: to send, if `seq` is 1.
    Waits,
    /// At rest for pause `seq`, with `peer` records in hand.
    Paused,
    /// Something is wrong; what, is on standard error.
    Wrong,
    /// About to be killed.
    Doomed,
    /// Waited for.
    Dead,
}

const EVERY: [What; 18] = {
    use What::*;
    [
        Attaches, Produces, Consumes, Leaves, Sends, Sent, NotSent, Receives, Nothing, Received, Drained, Removes,
        Removed, Waits, Paused, Wrong, Doomed, Dead,
    ]
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) what: What,
    pub(crate) worker: u32,
    pub(crate) channel: u32,
    pub(crate) end: u64,
    pub(crate) peer: u64,
    pub(crate) seq: u64,
}

impl Event {
    const BYTES: usize = 32;

    pub(crate) fn new(what: What, worker: u32) -> Self {
        Self { what, worker, channel: 0, end: 0, peer: 0, seq: 0 }
    }

    fn pack(self) -> [u8; Self::BYTES] {
        let first = u64::from(self.worker) << 32 | u64::from(self.channel) << 8 | self.what as u64;
        let mut bytes = [0; Self::BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip([first, self.end, self.peer, self.seq]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn unpack(bytes: &[u8]) -> Option<Self> {
        let word = |i: usize| Some(u64::from_le_bytes(bytes.get(8 * i..8 * i + 8)?.try_into().ok()?));
        let first = word(0)?;
        Some(Self {
            what: *EVERY.get((first & 0xff) as usize)?,
            worker: (first >> 32) as u32,
            channel: (first >> 8 & 0xff_ffff) as u32,
            end: word(1)?,
            peer: word(2)?,
            seq: word(3)?,
        })
    }
}

/// The log; a worker's standard output.
pub(crate) struct Log {
    file: File,
    read: u64,
}

impl Log {
    pub(crate) fn create() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("ledger", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND)?;
        Ok(Self { file: file.into(), read: 0 })
    }

    pub(crate) fn inherited() -> io::Result<Self> {
        Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), read: 0 })
    }

    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(crate) fn note(&self, event: Event) {
        if let Err(error) = (&self.file).write_all(&event.pack()) {
            eprintln!("crash_soak: can't write the ledger: {error}");
            std::process::exit(4);
        }
    }

    /// The events since the last call.
    pub(crate) fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut bytes = vec![0; 1 << 20];
        let len = self.file.read_at(&mut bytes, self.read)? / Event::BYTES * Event::BYTES;
        self.read += len as u64;
        let event = |bytes| Event::unpack(bytes).ok_or_else(|| io::Error::other("the ledger is damaged"));
        bytes[..len].chunks_exact(Event::BYTES).map(event).collect()
    }

    /// Forgets what was read. Nobody may be writing.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        self.read = 0;
        self.file.set_len(0)
    }
}

/// Events that are kept, and of these, that are told with the first violation.
const RECENT: usize = 1 << 17;
const TOLD: usize = 60;

/// An attached end.
struct End {
    worker: u32,
    channel: u32,
    sends: bool,
    /// When its worker was about to attach it.
    since: u64,
    /// A consumer's: the producer whose record it had last.
    from: Option<u64>,
    /// A consumer's: how many it may have received that were not noted yet; more than 0 inside a receive only.
    receives: u64,
    /// Those are counted among the excuses already, its worker being doomed.
    excused: bool,
}

/// What a producer has done, attached or not any more.
struct Producer {
    worker: u32,
    channel: u32,
    /// When it was noted.
    at: u64,
    /// What a consumer had of it last.
    received: Option<u64>,
}

/// A send that was announced, and not yet received.
struct Item {
    producer: u64,
    seq: u64,
    sent: bool,
}

#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) doomed: bool,
    pub(crate) dead: bool,
    /// The pause it is in, and how many records it has in hand.
    pub(crate) paused: Option<(u64, u64)>,
    /// The channel it waits at, and whether to send.
    pub(crate) waits: Option<(u32, bool)>,
    /// When it was about to attach last.
    attaches: u64,
    /// The channel it is removing.
    removes: Option<u32>,
}

/// Follows the log, and finds what must not be.
#[derive(Default)]
pub(crate) struct Checker {
    clock: u64,
    /// The last events, for who has to find out what went wrong.
    recent: VecDeque<(u64, Event)>,
    pub(crate) workers: HashMap<u32, Worker>,
    ends: HashMap<u64, End>,
    producers: HashMap<u64, Producer>,
    /// What is queued, or may be: by channel where the channel stays, else by producer.
    lines: HashMap<u64, VecDeque<Item>>,
    /// Records that consumers killed inside a receive may have taken along, by channel.
    excuses: HashMap<u32, u64>,
    /// When a removal was over, last, by channel.
    removed: HashMap<u32, u64>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Records that went with a consumer killed in a receive.
    pub(crate) taken_along: u64,
    /// Sends that a killed producer had announced and did not make.
    pub(crate) not_made: u64,
    pub(crate) violations: u64,
}

fn line_of(channel: u32, producer: u64) -> u64 {
    if is_persistent(channel) { channel.into() } else { producer }
}

impl Checker {
    pub(crate) fn violation(&mut self, text: impl std::fmt::Display) {
        self.violations += 1;
        if self.violations <= 20 {
            eprintln!("crash_soak: VIOLATION: {text}");
        }
    }

    fn is_doomed(&self, worker: u32) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.doomed || worker.dead)
    }

    pub(crate) fn apply(&mut self, event: Event) {
        self.clock += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((self.clock, event));
        let violations = self.violations;
        self.follow(event);
        if violations == 0 && self.violations > 0 {
            self.tell(event);
        }
    }

    /// What happened lately at the channel, and to those who were there.
    fn tell(&self, event: Event) {
        let at_channel = |event: &Event, channel| {
            use What::*;
            let is_about_channel = !matches!(event.what, Paused | Wrong | Doomed | Dead);
            is_about_channel && event.channel == channel
        };
        let workers: HashSet<u32> =
            self.recent.iter().filter(|(_, e)| at_channel(e, event.channel)).map(|(_, e)| e.worker).collect();
        let matters = |e: &Event| {
            at_channel(e, event.channel) || matches!(e.what, What::Doomed | What::Dead) && workers.contains(&e.worker)
        };
        let lately: Vec<_> = self.recent.iter().filter(|(_, e)| matters(e)).collect();
        for (clock, Event { what, worker, channel, end, peer, seq }) in &lately[lately.len().saturating_sub(TOLD)..] {
            eprintln!("  {clock}: worker {worker} {what:?} channel {channel} end {end:x} peer {peer:x} seq {seq}");
        }
    }

    fn follow(&mut self, event: Event) {
        let worker = self.workers.entry(event.worker).or_default();
        let was_dead = worker.dead;
        if let What::Receives | What::Nothing | What::Received | What::Drained = event.what
            && let Some(end) = self.ends.get_mut(&event.end)
        {
            end.receives = match event.what {
                What::Receives => event.seq,
                // Of a batch, this is one.
                What::Received => end.receives.saturating_sub(1),
                _ => 0,
            };
        }
        if event.what != What::Doomed
            && let Some(channel) = worker.removes.take()
        {
            self.removed.insert(channel, self.clock);
        }
        match event.what {
            What::Paused => worker.paused = Some((event.seq, event.peer)),
            What::Waits => worker.waits = Some((event.channel, event.seq == 1)),
            What::Doomed => worker.doomed = true,
            What::Dead => worker.dead = true,
            _ => (worker.paused, worker.waits) = (None, None),
        }
        if was_dead {
            return self.violation(format_args!("a dead worker acts: {event:?}"));
        }
        match event.what {
            What::Paused | What::Waits | What::Doomed | What::Removed | What::Receives | What::Nothing => {}
            What::Attaches => worker.attaches = self.clock,
            What::Removes => worker.removes = Some(event.channel),
            What::Produces | What::Consumes => self.attached(event),
            What::Leaves => {
                if self.ends.remove(&event.end).is_none() {
                    self.violation(format_args!("an end that somebody has taken over leaves: {event:?}"));
                }
            }
            What::Sends => {
                let item = Item { producer: event.end, seq: event.seq, sent: false };
                self.lines.entry(line_of(event.channel, event.end)).or_default().push_back(item);
            }
            What::Sent => self.sent(event),
            What::NotSent => {
                let line = self.lines.entry(line_of(event.channel, event.end)).or_default();
                match line.iter().rposition(|item| (item.producer, item.seq) == (event.end, event.seq)) {
                    Some(i) => drop(line.remove(i)),
                    None => self.violation(format_args!("received, and handed back to its sender: {event:?}")),
                }
            }
            What::Received => self.received(event),
            What::Drained => {
                if let Some(from) = self.ends.get(&event.end).and_then(|end| end.from) {
                    self.nothing_left(event, from);
                }
            }
            What::Wrong => self.violation(format_args!("a worker says so: {event:?}")),
            What::Dead => {
                let dead: Vec<u64> =
                    self.ends.iter().filter(|(_, end)| end.worker == event.worker).map(|(id, _)| *id).collect();
                dead.into_iter().for_each(|id| self.bury(id));
            }
        }
    }

    /// An end that its process did not leave.
    fn bury(&mut self, id: u64) {
        if let Some(end) = self.ends.remove(&id).filter(|end| !end.excused) {
            *self.excuses.entry(end.channel).or_default() += end.receives;
        }
    }

    /// A role is taken: who had it has left, or is doomed, or is at a channel that was removed.
    fn attached(&mut self, event: Event) {
        let Event { worker, channel, .. } = event;
        let sends = event.what == What::Produces;
        let since = self.workers.get(&worker).map_or(0, |worker| worker.attaches);
        // This one or that one may be at a channel that was removed after it had come.
        let is_removed = |other: u64| {
            let since = other.min(since);
            self.workers.values().any(|worker| worker.removes == Some(channel))
                || self.removed.get(&channel).is_some_and(|when| *when > since)
        };
        let (mut dead, mut robbed) = (Vec::new(), Vec::new());
        for (id, end) in self.ends.iter_mut().filter(|(_, end)| end.channel == channel && end.sends == sends) {
            let is_doomed = self.workers.get(&end.worker).is_some_and(|worker| worker.doomed);
            if is_doomed && is_persistent(channel) {
                dead.push(*id);
            } else if is_doomed {
                // Or it is at a removed channel, and not yet dead.
                *self.excuses.entry(channel).or_default() += if end.excused { 0 } else { end.receives };
                end.excused |= end.receives > 0;
            } else if is_persistent(channel) || !is_removed(end.since) {
                robbed.push(end.worker);
            }
        }
        dead.into_iter().for_each(|id| self.bury(id));
        robbed
            .into_iter()
            .for_each(|who| self.violation(format_args!("worker {who} lives and has the role: {event:?}")));
        self.ends.insert(event.end, End { worker, channel, sends, since, from: None, receives: 0, excused: false });
        if sends {
            self.producers.insert(event.end, Producer { worker, channel, at: self.clock, received: None });
        }
    }

    fn sent(&mut self, event: Event) {
        self.sent += 1;
        let line = self.lines.entry(line_of(event.channel, event.end)).or_default();
        match line.iter_mut().rev().find(|item| (item.producer, item.seq) == (event.end, event.seq)) {
            Some(item) => item.sent = true,
            // The consumer was faster than this note.
            None if self.producers.get(&event.end).is_some_and(|p| p.received >= Some(event.seq)) => {}
            None => self.violation(format_args!("sent without an announcement: {event:?}")),
        }
    }

    fn received(&mut self, event: Event) {
        let Event { channel, end, peer, seq, .. } = event;
        self.received += 1;
        let key = line_of(channel, peer);
        let Some((at, last)) = self
            .producers
            .get_mut(&peer)
            .filter(|producer| producer.channel == channel)
            .map(|producer| (producer.at, producer.received.replace(seq)))
        else {
            return self.violation(format_args!("received from nobody: {event:?}"));
        };
        let found = self.lines.get(&key).and_then(|line| {
            let place = line.iter().position(|item| (item.producer, item.seq) == (peer, seq))?;
            Some(place)
        });
        let Some(place) = found else {
            return self
                .violation(format_args!("received twice, out of order, or never sent: {event:?}, after {last:?}"));
        };
        let passed: Vec<Item> = self.lines.entry(key).or_default().drain(..=place).take(place).collect();
        let mut lost = 0;
        for item in &passed {
            let author = self.producers.get(&item.producer).map_or(0, |producer| producer.worker);
            if item.sent {
                lost += 1;
            } else if self.is_doomed(author) {
                self.not_made += 1;
            } else {
                self.violation(format_args!("overtook {} of {:x}, not sent yet: {event:?}", item.seq, item.producer));
            }
        }
        let Some(consumer) = self.ends.get_mut(&end) else {
            return self.violation(format_args!("received by an end that is not there: {event:?}"));
        };
        let before = consumer.from.replace(peer);
        let excuses = self.excuses.entry(channel).or_default();
        // Who had the one before has this one, too.
        let excused = if before == Some(peer) { 0 } else { *excuses };
        if is_persistent(channel) {
            *excuses = 0;
        } else {
            *excuses -= lost.min(excused);
        }
        self.taken_along += lost.min(excused);
        if lost > excused {
            let which: Vec<_> = passed.iter().map(|item| (item.producer, item.seq, item.sent)).collect();
            self.violation(format_args!("{lost} lost, {excused} excused, before {event:?}: {which:x?}"));
        }
        if let Some(before) = before.filter(|before| *before != peer) {
            if self.producers.get(&before).is_some_and(|before| before.at > at) {
                self.violation(format_args!("received from {before:x} before: {event:?}"));
            }
            self.nothing_left(event, before);
        }
    }

    /// A consumer is through with all that a producer had sent.
    fn nothing_left(&mut self, event: Event, producer: u64) {
        let key = line_of(event.channel, producer);
        let Some(line) = self.lines.get_mut(&key) else { return };
        let left: Vec<(u64, bool)> =
            line.iter().filter(|item| item.producer == producer).map(|item| (item.seq, item.sent)).collect();
        line.retain(|item| item.producer != producer);
        self.not_made += left.iter().filter(|(_, sent)| !sent).count() as u64;
        if left.iter().any(|(_, sent)| *sent) {
            self.violation(format_args!("{producer:x} had sent (number, noted as sent) {left:?} before {event:?}"));
        }
    }

    /// Compares the ledger with the buffer while everybody rests. `living`: processes and their workers.
    pub(crate) fn compare(&mut self, audit: &Audit, living: &HashMap<u32, u32>) {
        let total = audit.free_bytes
            + audit.cached_bytes
            + audit.channel_bytes
            + audit.unaccounted_bytes
            + audit.owned_bytes()
            + audit.queued_bytes();
        if !audit.is_sound() || total != audit.capacity_bytes {
            self.violation(format_args!("unsound, or {total} bytes in sum: {audit:#?}"));
        }
        let mut owned: HashMap<u32, u64> = audit.owned.iter().map(|owned| (owned.pid, owned.records)).collect();
        for (pid, worker) in living {
            let held = self.workers.get(worker).and_then(|worker| worker.paused).map_or(0, |(_, held)| held);
            let owned = owned.remove(pid).unwrap_or(0);
            if owned != held {
                self.violation(format_args!("worker {worker} has {held} records, the buffer says {owned}"));
            }
        }
        owned.into_iter().for_each(|(pid, n)| self.violation(format_args!("{n} records are {pid}'s, who is nobody")));

        let mut queued: HashMap<u32, u64> = HashMap::new();
        for entry in &audit.queued {
            *queued.entry(u32::try_from(entry.channel).unwrap_or(u32::MAX)).or_default() += entry.records;
        }
        // Of each channel: the least and the most that can be queued.
        let mut bounds: HashMap<u32, (u64, u64)> = queued.keys().map(|channel| (*channel, (0, 0))).collect();
        for (key, line) in &self.lines {
            let Some(channel) = line.front().and_then(|item| self.producers.get(&item.producer)).map(|p| p.channel)
            else {
                continue;
            };
            let stays = is_persistent(channel)
                || self
                    .ends
                    .iter()
                    .any(|(id, end)| (*id == *key || end.from == Some(*key)) && !self.is_doomed(end.worker));
            let (least, most) = bounds.entry(channel).or_default();
            *most += line.len() as u64;
            *least += line.iter().filter(|item| stays && item.sent).count() as u64;
        }
        for (channel, (least, most)) in bounds {
            let excuses = self.excuses.get(&channel).copied().unwrap_or(0);
            let least = least.saturating_sub(excuses);
            let found = queued.get(&channel).copied().unwrap_or(0);
            if !(least..=most).contains(&found) {
                self.violation(format_args!(
                    "channel {channel} has {found} records queued, not {least} to {most} ({excuses} excused)"
                ));
            }
        }
        self.tidy(&queued);
    }

    /// Forgets what can't come any more.
    fn tidy(&mut self, queued: &HashMap<u32, u64>) {
        // Where there is no channel, nothing is queued.
        let producers = &self.producers;
        self.lines.retain(|_, line| {
            let channel = line.front().and_then(|item| producers.get(&item.producer)).map(|p| p.channel);
            channel.is_some_and(|channel| is_persistent(channel) || queued.contains_key(&channel))
        });
        self.excuses.retain(|channel, _| is_persistent(*channel) || queued.contains_key(channel));
        let in_lines: Vec<u64> = self.lines.values().flatten().map(|item| item.producer).collect();
        let (ends, workers) = (&self.ends, &self.workers);
        self.producers.retain(|id, producer| {
            workers.get(&producer.worker).is_some_and(|worker| !worker.dead)
                || in_lines.contains(id)
                || ends.values().any(|end| end.from == Some(*id))
        });
        let (ends, producers) = (&self.ends, &self.producers);
        self.workers.retain(|id, worker| {
            !worker.dead || ends.values().any(|end| end.worker == *id) || producers.values().any(|p| p.worker == *id)
        });
    }

    /// The end of a round: everybody is dead, and what was queued in persistent channels was received.
    pub(crate) fn close(&mut self) {
        for (key, line) in std::mem::take(&mut self.lines) {
            let Some(channel) = u32::try_from(key).ok() else { continue };
            let left: Vec<_> = line.iter().filter(|item| item.sent).map(|item| (item.producer, item.seq)).collect();
            let excused = self.excuses.get(&channel).copied().unwrap_or(0);
            self.taken_along += left.len() as u64;
            self.not_made += (line.len() - left.len()) as u64;
            if left.len() as u64 > excused {
                self.violation(format_args!("lost in channel {channel}, {excused} excused, at the end: {left:x?}"));
            }
        }
        let kept = std::mem::take(self);
        *self = Self {
            sent: kept.sent,
            received: kept.received,
            taken_along: kept.taken_along,
            not_made: kept.not_made,
            violations: kept.violations,
            clock: kept.clock,
            ..Self::default()
        };
    }
}
