//! Runs the cases: copies of every state, and kills.

use crate::cases::{self, Case, Expect, Survivor, Wide};
use crate::common::{self, Name, Watchdog};
use crate::tracee::{Event, Tracee};
use crate::work::{self, Rng};
use ipc_buffer::{AttachError, Buffer, Channel, Consumer, Reaped, RecvError, RecvTimeoutError, ThreadContext};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

/// Longer than anything takes; only a hang is ended by it.
const LONG: Duration = Duration::from_secs(20);
const PAGE: usize = 4096;
const LINE: usize = 64;

struct Plan {
    full: bool,
    /// Of each instruction, the states after so many executions are checked.
    executions: u32,
    /// Of the other states, one in so many.
    one_in: u64,
    kills: u64,
    /// As many kills as that many events from the start allow.
    kill_events: u64,
    /// One in so many copies is opened by a reaper first that is killed while opening.
    reaper_one_in: u64,
    /// Only this one: after so many events and instructions.
    only: Option<(u64, u64)>,
}

#[derive(Default)]
struct Counts {
    events: usize,
    states: usize,
    checked: usize,
    reapers: usize,
    kills: usize,
    /// Events at which a storing instruction was executed for the first time.
    firsts: Vec<u64>,
}

/// What is being checked, for the report of a failure.
static AT: Mutex<String> = Mutex::new(String::new());

pub fn main() {
    let mut full = std::env::var_os("IPC_BUFFER_KILL_FULL").is_some();
    let mut seed = 1;
    let mut only = None;
    let mut filters = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => return cases::all().iter().for_each(|case| println!("{}: test", case.name)),
            "--full" => full = true,
            "--seed" => seed = arguments.next().and_then(|seed| seed.parse().ok()).expect("--seed N"),
            "--kill" => only = arguments.next().and_then(|at| event_and_step(&at)),
            _ if argument.starts_with('-') => {}
            _ => filters.push(argument),
        }
    }
    let plan = if full {
        Plan { full, executions: u32::MAX, one_in: 1, kills: 150, kill_events: 200_000, reaper_one_in: 8, only }
    } else {
        Plan { full, executions: 1, one_in: 50, kills: 8, kill_events: 30_000, reaper_one_in: 4, only }
    };
    let chosen = |case: &Case| {
        let named = filters.iter().any(|filter| case.name.contains(filter.as_str()));
        named || filters.is_empty() && (full || !case.is_long)
    };
    let (mut passed, mut failed) = (0, 0);
    let mut total = Counts::default();
    for case in cases::all().into_iter().filter(chosen) {
        let _dog = Watchdog::new(Duration::from_secs(if full { 3600 } else { 120 }));
        let mut counts = Counts::default();
        let mut rng = Rng::new(seed);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if let Some((after, steps)) = plan.only {
                return kill(&case, after, steps, false);
            }
            breadth(&case, &plan, &mut rng, &mut counts);
            truth(&case, &plan, &mut rng, &mut counts);
        }));
        let Counts { events, states, checked, reapers, kills, .. } = counts;
        let said = if ended.is_ok() { "ok" } else { "FAILED" };
        println!(
            "test {} ... {said} ({events} events, {states} states, {checked} checked, {kills} kills, {reapers} of reapers)",
            case.name
        );
        if ended.is_err() {
            println!("    {}", AT.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        }
        (passed, failed) = (passed + u32::from(ended.is_ok()), failed + u32::from(ended.is_err()));
        total.states += states;
        total.checked += checked;
        total.reapers += reapers;
        total.kills += kills;
    }
    let Counts { states, checked, reapers, kills, .. } = total;
    println!("{states} states, {checked} of them checked; {kills} kills, {reapers} of reapers; seed {seed}");
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

fn event_and_step(text: &str) -> Option<(u64, u64)> {
    let (event, step) = text.split_once(',')?;
    Some((event.parse().ok()?, step.parse().ok()?))
}

fn note(what: String) {
    *AT.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = what;
}

// -------------------------------------------------------------------------------------------------------- the stage

/// The victim right before its operation, and what else there is.
struct Stage {
    victim: Tracee,
    survivor: Survivor,
    name: Name,
}

impl Stage {
    fn set(case: &Case) -> Self {
        let name = Name::new("step");
        // Both are forked before anything is open here.
        let mut victim = Tracee::fork(&name.path(), || (case.victim)(&name));
        let corpse = case.corpse.map(|(part, events)| (Tracee::fork(&name.path(), || part(&name)), events));
        let survivor = (case.survivor)(&name);
        victim.run();
        if let Some((mut corpse, events)) = corpse {
            corpse.run();
            corpse.observe();
            (0..events).for_each(|_| assert_ne!(corpse.next(), Event::Stopped));
        }
        victim.observe();
        Self { victim, survivor, name }
    }
}

// ---------------------------------------------------------------------------------------------------------- breadth

/// The bytes of a segment, as last seen.
#[derive(Default)]
struct Image {
    file: Option<File>,
    bytes: Vec<u8>,
    /// Pages that are not all zeroes.
    live: Vec<bool>,
    /// Of all lines that are not all zeroes, exclusive-ored.
    hash: u64,
}

fn hash(line: usize, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write_usize(line);
    hasher.write(bytes);
    hasher.finish()
}

impl Image {
    /// Reads all of it. False if there is nothing under the name (any more).
    fn read(&mut self, name: &Name) -> bool {
        if self.file.is_none() {
            self.file = File::open(name.path()).ok();
        }
        let Some(file) = &self.file else { return false };
        let facts = file.metadata().unwrap();
        self.bytes = vec![0; facts.size() as usize];
        file.read_exact_at(&mut self.bytes, 0).unwrap();
        self.live = self.bytes.chunks(PAGE).map(|page| page.iter().any(|byte| *byte != 0)).collect();
        let lines = self.bytes.chunks(LINE).enumerate().filter(|(line, _)| self.live[line * LINE / PAGE]);
        self.hash = lines.fold(facts.size(), |all, (line, bytes)| all ^ hash(line, bytes));
        facts.nlink() > 0
    }

    /// Reads what a store at `offset` can have changed.
    fn update(&mut self, offset: u64) {
        let file = self.file.as_ref().expect("a segment that was stored to has a file");
        let first = offset as usize / LINE;
        for line in [first, first + 1] {
            let mut new = [0; LINE];
            let (start, end) = (line * LINE, ((line + 1) * LINE).min(self.bytes.len()));
            if start >= end {
                continue;
            }
            file.read_exact_at(&mut new, start as u64).unwrap();
            let old = &mut self.bytes[start..end];
            if *old != new {
                self.hash ^= hash(line, old) ^ hash(line, &new);
                old.copy_from_slice(&new);
                self.live[start / PAGE] = true;
            }
        }
    }

    fn copy(&self, name: &Name) {
        let file = File::create(name.path()).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        let mut page = 0;
        while page < self.live.len() {
            let run = self.live[page..].iter().take_while(|live| **live).count();
            if run > 0 {
                let (start, end) = (page * PAGE, ((page + run) * PAGE).min(self.bytes.len()));
                file.write_all_at(&self.bytes[start..end], start as u64).unwrap();
            }
            page += run + 1;
        }
    }
}

fn breadth(case: &Case, plan: &Plan, rng: &mut Rng, counts: &mut Counts) {
    let mut stage = Stage::set(case);
    let mut image = Image::default();
    let mut seen = HashSet::new();
    let mut executed: HashMap<u64, u32> = HashMap::new();
    let mut history = History::default();
    let mut exists = image.read(&stage.name);
    let mut event = Event::Call(0);
    loop {
        if exists && seen.insert(image.hash) {
            counts.states += 1;
            let times = match event {
                Event::Store { at, .. } => *executed.entry(at).and_modify(|n| *n += 1).or_insert(1),
                _ => 1,
            };
            if times == 1 {
                counts.firsts.push(counts.events as u64);
            }
            if plan.full || times <= plan.executions || rng.below(plan.one_in) == 0 {
                note(format!("in the copy after event {}, {event:x?}", counts.events));
                counts.checked += 1;
                check_copy(case, &image, None, Some(&mut history));
                if rng.below(plan.reaper_one_in) == 0 {
                    let killed_after = rng.size(1, 3000);
                    note(format!("after event {}, {event:x?}, opener killed after {killed_after}", counts.events));
                    (counts.reapers, counts.kills) = (counts.reapers + 1, counts.kills + 1);
                    check_copy(case, &image, Some(killed_after), None);
                }
            }
        }
        note(format!("after event {}, {event:x?}", counts.events));
        event = stage.victim.next();
        counts.events += 1;
        match event {
            Event::Stopped => break,
            Event::Store { offset, .. } if image.file.is_some() => image.update(offset),
            // The calls that change the file, or its size, or its name.
            Event::Call(
                libc::SYS_fallocate
                | libc::SYS_madvise
                | libc::SYS_ftruncate
                | libc::SYS_open
                | libc::SYS_openat
                | libc::SYS_unlinkat
                | libc::SYS_unlink,
            )
            | Event::Store { .. } => exists = image.read(&stage.name),
            Event::Call(_) => {}
        }
    }
    // No store was missed.
    let (hash, bytes) = (image.hash, std::mem::take(&mut image.bytes));
    image.read(&stage.name);
    assert!(hash == image.hash && bytes == image.bytes, "the segment changed unobserved");
    note("killed at the end".into());
    kill_and_go_on(case, stage, false);
    counts.kills += 1;
}

/// What was found in the channels before: time does not run backwards.
#[derive(Default)]
struct History(HashMap<i64, (u64, u64)>);

fn check_copy(case: &Case, image: &Image, reaper_events: Option<usize>, mut history: Option<&mut History>) {
    let name = Name::new("copy");
    image.copy(&name);
    if let Some(events) = reaper_events {
        let part = || {
            let _ = Buffer::options().must_exist(true).open(&name).map(std::mem::forget);
            crate::tracee::stop();
        };
        let mut reaper = Tracee::fork(&name.path(), part);
        reaper.observe();
        let _ = (0..events).all(|_| reaper.next() != Event::Stopped);
    }
    let buffer = match Buffer::options().must_exist(true).open(&name) {
        Ok(buffer) => buffer,
        // An empty file is no segment yet, and is removed; then one is made.
        Err(ipc_buffer::OpenError::NotFound { .. }) if image.bytes.is_empty() => cases::open(&name),
        Err(error) => panic!("open: {error}"),
    };
    assert_eq!(buffer.reap(), Ok(Reaped::default()), "opening has reaped");
    let audit = common::sound(&buffer);
    assert!(audit.owned.is_empty() && audit.cached_bytes == 0, "{audit:#?}");
    let ctx = buffer.context().unwrap();
    let mut delivered = 0;
    for expect in &case.expect {
        let numbers = drain(&buffer, &ctx, expect);
        delivered += numbers.as_ref().filter(|_| !expect.values).map_or(0, Vec::len);
        judge(expect, numbers.as_deref(), history.as_deref_mut());
    }
    let queued: u64 = audit.queued.iter().map(|queued| queued.records).sum();
    assert_eq!(delivered as u64, queued, "everything queued is delivered");
    finish(&buffer, ctx);
    drop(buffer);
}

/// What the channel delivers to a new consumer; `None` if it is gone.
fn drain(buffer: &Buffer, ctx: &ThreadContext, expect: &Expect) -> Option<Vec<u64>> {
    buffer.has_channel(expect.id).unwrap().then(|| {
        if !expect.values {
            let mut rx = ctx.consumer::<[u64]>(expect.id).unwrap();
            let left = rx.try_iter().map(|record| work::number(&record)).collect();
            follow(ctx, &mut rx);
            return left;
        }
        let mut rx = ctx.value_consumer::<Wide>(expect.id).unwrap();
        let left: Vec<Wide> = rx.try_iter().collect();
        assert!(left.iter().all(|value| *value == cases::wide(value[0])), "{left:x?}");
        let mut tx = ctx.value_producer::<Wide>(expect.id).unwrap();
        for value in (0..cases::SLOTS as u64).map(cases::wide) {
            tx.try_send(value).unwrap();
            assert_eq!(rx.try_recv_batch(usize::MAX), Ok(vec![value]));
        }
        left.iter().map(|value| value[0]).collect()
    })
}

/// Behind what the next producer sends, if nobody else sends, comes nothing of a batch that was never sent.
fn follow(ctx: &ThreadContext, rx: &mut Channel<[u64], Consumer>) {
    match ctx.producer::<[u64]>(rx.id()) {
        Err(AttachError::RoleTaken { .. }) => {}
        other => {
            let mut tx = other.unwrap();
            for number in 0..cases::SLOTS as u64 {
                tx.try_send(work::numbered(ctx, number, 20)).unwrap();
                let received: Vec<u64> = rx.try_iter().map(|record| work::number(&record)).collect();
                assert_eq!(received, [number]);
            }
        }
    }
}

/// Whether these are the right records.
fn judge(expect: &Expect, numbers: Option<&[u64]>, history: Option<&mut History>) {
    let gone = (u64::MAX, u64::MAX);
    let now = match numbers {
        None => {
            assert!(expect.may_vanish, "channel {} is gone", expect.id);
            gone
        }
        Some([]) => (*expect.sent.end(), *expect.sent.end()),
        Some(numbers) => {
            let in_order = numbers.windows(2).all(|two| two[0] + 1 == two[1]);
            assert!(in_order, "lost, doubled or out of order: {numbers:?}");
            (numbers[0], numbers[0] + numbers.len() as u64)
        }
    };
    let right = now == gone || expect.first.contains(&now.0) && expect.sent.contains(&now.1);
    assert!(right, "received {numbers:?}, of first {:?} and sent {:?}", expect.first, expect.sent);
    if let Some(History(history)) = history {
        let before = history.insert(expect.id, now).unwrap_or_default();
        assert!(before.0 <= now.0 && before.1 <= now.1, "{now:?} after {before:?}: delivered again, or lost");
    }
}

/// The buffer works, and in the end nothing is in use.
fn finish(buffer: &Buffer, ctx: ThreadContext) {
    let id = 1000;
    let small: Vec<_> = (0..70_u64).map(|i| ctx.record(i).unwrap()).collect();
    let medium = ctx.slice_from(&[7_u64; 600]).unwrap();
    let large = ctx.slice_uninit::<u8>(150_000).unwrap().assume_init();
    let mut tx = ctx.producer::<[u64]>(id).unwrap();
    let mut rx = ctx.consumer::<[u64]>(id).unwrap();
    (0..3).for_each(|number| tx.try_send(work::numbered(&ctx, number, 50)).unwrap());
    let received: Vec<u64> = rx.try_iter().map(|record| work::number(&record)).collect();
    assert_eq!(received, [0, 1, 2]);
    assert!(small.iter().enumerate().all(|(i, record)| **record == i as u64) && medium.iter().all(|word| *word == 7));
    drop((small, medium, large, tx, rx));
    for info in buffer.channels().unwrap() {
        assert!(info.producer.is_none() && info.consumer.is_none(), "{info:?}");
        assert!(buffer.remove_channel(info.id).unwrap());
    }
    drop(ctx);
    common::all_free(buffer);
}

// ------------------------------------------------------------------------------------------------------------ truth

fn truth(case: &Case, plan: &Plan, rng: &mut Rng, counts: &mut Counts) {
    let events = counts.events as u64;
    let kills = plan.kills.min(events).min(plan.kill_events / events);
    for n in 0..2 * kills {
        // One in each of so many equal parts, and as many where an instruction stores for the first time.
        let (from, to) = (n / 2 * events / kills, (n / 2 + 1) * events / kills);
        let after = if n % 2 == 0 || counts.firsts.is_empty() {
            from + rng.below((to - from).max(1))
        } else {
            counts.firsts[rng.below(counts.firsts.len() as u64) as usize]
        };
        let steps = rng.below(30);
        kill(case, after, steps, n / 2 % 2 == 0);
        counts.kills += 1;
    }
}

fn kill(case: &Case, after: u64, steps: u64, reaps_first: bool) {
    let mut stage = Stage::set(case);
    let mut last = None;
    for _ in 0..after {
        last = Some(stage.victim.next());
        if last == Some(Event::Stopped) {
            break;
        }
    }
    note(format!("--kill {after},{steps} (so many events, so many instructions; the last event: {last:x?})"));
    if last != Some(Event::Stopped) && !stage.victim.is_in_a_call() {
        stage.victim.release();
        let _ = (0..steps).all(|_| stage.victim.step());
    }
    kill_and_go_on(case, stage, reaps_first);
}

/// Kills the victim; the live process finds out, repairs, and goes on.
fn kill_and_go_on(case: &Case, stage: Stage, reaps_first: bool) {
    let Stage { mut victim, survivor, name } = stage;
    victim.kill();
    let Survivor { rx, tx, ctx, buffer } = survivor;
    let buffer = buffer.unwrap_or_else(|| cases::open(&name));
    let ctx = ctx.unwrap_or_else(|| buffer.context().unwrap());
    if reaps_first {
        buffer.reap().unwrap();
    }
    if let Some(mut rx) = rx {
        let numbers = match case.expect.first() {
            Some(_) => receive_all(|| rx.recv_timeout(LONG)),
            // There may never have been a producer.
            None => rx.try_iter().map(|record| work::number(&record)).collect(),
        };
        case.expect.iter().for_each(|expect| judge(expect, Some(&numbers), None));
        follow(&ctx, &mut rx);
    } else {
        for expect in &case.expect {
            let numbers = drain(&buffer, &ctx, expect);
            judge(expect, numbers.as_deref(), None);
        }
    }
    if let Some(mut tx) = tx {
        // The next consumer gets what is sent next.
        let mut rx = ctx.consumer_with::<[u64]>(tx.id(), &cases::kept()).unwrap();
        tx.send(work::numbered(&ctx, 9, 20)).unwrap();
        assert_eq!(work::number(&rx.recv_timeout(LONG).unwrap()), 9);
    }
    while buffer.reap().unwrap().processes > 0 {}
    let audit = common::sound(&buffer);
    assert!(audit.owned.iter().all(|owned| owned.is_self), "{audit:#?}");
    finish(&buffer, ctx);
    drop(buffer);
}

fn receive_all(mut next: impl FnMut() -> Result<ipc_buffer::Record<[u64]>, RecvTimeoutError>) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        match next() {
            Ok(record) => numbers.push(work::number(&record)),
            Err(RecvTimeoutError::Recv(RecvError::Disconnected)) => return numbers,
            Err(other) => panic!("after {numbers:?}: {other}"),
        }
    }
}
