//! When a process leaves a buffer: not before its last record is gone, whatever others write into the segment; then at once; and what one
//! buffer waits for, no other one does.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/stuck.rs"]
mod stuck;

use common::{Name, all_free, sound, watchdog};
use ipc_buffer::{Buffer, ChannelOptions, Record, ThreadContext};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use stuck::Holder;

/// How many mappings of the segment this process has: those that can be accessed, or if there are none, those that keep locks.
fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_it = |line: &&str| line.split('/').next_back().is_some_and(|file| file.split(' ').next() == Some(name));
    let all = maps.lines().filter(is_it).count();
    let accessible = maps.lines().filter(is_it).filter(|line| line.contains(" rw-s ")).count();
    if accessible > 0 { accessible } else { all }
}

/// The segment's file, as whoever may open it can write it.
fn file(name: &Name) -> File {
    File::options().read(true).write(true).open(name.path()).unwrap()
}

/// Where in the segment a record lies, of this process's one mapping.
fn place(name: &str, record: &[u8]) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains(name) && line.contains(" rw-s ")).unwrap();
    let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    (record.as_ptr().addr() - start) as u64
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

// ------------------------------------------------------------------------------------------- what others write

/// Symptom: a record of safe code read unmapped memory. Cause: the records were counted by their headers, which any process that may open
/// the segment can write. Fix: they are counted by private words.
#[test]
fn a_record_keeps_its_mapping_whatever_its_header_says() {
    let _dog = watchdog();
    for state in [0, u64::MAX, 1, 2 << 60, 8 << 60, 9 << 60] {
        let name = Name::new("header");
        let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        let record = ctx.slice_from(b"still here").unwrap();
        let large = ctx.slice_from(&[b'x'; 100_000]).unwrap();
        let file = file(&name);
        for at in [place(&name, &record), place(&name, &large)] {
            file.write_all_at(&u64::to_le_bytes(state), at - 16).unwrap();
        }
        drop((ctx, buffer));
        assert_eq!((mappings(&name), &*record, large.len()), (1, &b"still here"[..], 100_000), "{state:x}");
        drop(record);
        assert_eq!((mappings(&name), large[99_999]), (1, b'x'), "{state:x}");
        drop(large);
        assert_eq!(mappings(&name), 0, "{state:x}");
    }
}

/// What a context's gate says of its spare is for others; the context does not read it.
#[test]
fn a_spare_is_its_contexts_whatever_the_gate_says() {
    let _dog = watchdog();
    let name = Name::new("gate");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (other, record) = (ctx.slice_from(b"another one").unwrap(), ctx.slice_from(b"the next spare").unwrap());
    let (address, block) = (record.as_ptr(), place(&name, &record) - 16);
    drop(record);
    let file = file(&name);
    // The block's place, and the class of the smallest.
    let bytes = std::fs::read(name.path()).unwrap();
    let gates = (0..bytes.len() / 8).filter(|i| bytes[i * 8..i * 8 + 8] == block.to_le_bytes());
    let gates: Vec<usize> = gates.collect();
    assert_eq!(gates.len(), 1);
    let forged = place(&name, &other) - 16;
    for word in [u64::MAX, forged, 12345 << 6, 63] {
        file.write_all_at(&word.to_le_bytes(), gates[0] as u64 * 8).unwrap();
        let record = ctx.slice_from(b"the next spare").unwrap();
        assert_eq!(record.as_ptr(), address, "{word:x}");
        file.write_all_at(&word.to_le_bytes(), gates[0] as u64 * 8).unwrap();
        drop(record);
    }
    assert_eq!(&*other, b"another one");
    all_free_but(&buffer, 1);
    file.write_all_at(&u64::MAX.to_le_bytes(), gates[0] as u64 * 8).unwrap();
    drop((ctx, buffer));
    assert_eq!(mappings(&name), 1);
    drop(other);
    assert_eq!(mappings(&name), 0);
}

/// Sound, with so many records in this process's hands.
fn all_free_but(buffer: &Buffer, records: u64) {
    let audit = sound(buffer);
    assert_eq!(audit.owned.iter().map(|owned| owned.records).sum::<u64>(), records);
}

/// Entries of magazines, slots and headers are written over at random while records come and go: some are lost, some are refused, but the
/// mapping stays as long as there is a record, and not longer.
#[test]
fn no_word_of_the_segment_decides_how_many_records_there_are() {
    let _dog = watchdog();
    const CAPACITY: u64 = 1 << 20;
    for seed in 1..=8_u64 {
        let name = Name::new("scribble");
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut below = |end: usize| usize::try_from(dice.below(end as u64)).unwrap();
        let buffer = Buffer::options().capacity(CAPACITY).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        let options = ChannelOptions::new().capacity(64);
        let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
        let mut rx = ctx.consumer::<u64>(1).unwrap();
        let mut kept: Vec<Record<u64>> = (0..1000).map(|i| ctx.record(i).unwrap()).collect();
        drop(kept.drain(..500));
        (0..64).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        // Where blocks of the data are named: in magazines' entries and slots, by granules; and the headers of the first thousand.
        let bytes = std::fs::read(name.path()).unwrap();
        let data = (bytes.len() as u64 - CAPACITY) / 64;
        let granule = |i: usize| u64::from(u32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().unwrap()));
        let named =
            (0..bytes.len() / 4).filter(|i| (data + 1..data + 2000).contains(&granule(*i))).map(|i| i as u64 * 4);
        let headers = (0..1000).flat_map(|i| [0, 8].map(|word| (data + i) * 64 + word));
        let places: Vec<u64> = named.chain(headers).collect();
        assert!(places.len() > 2564, "{}", places.len());
        let file = file(&name);
        for round in 0..3000_u32 {
            match below(8) {
                0..3 => kept.extend(ctx.record(round.into()).ok()),
                3 | 4 if !kept.is_empty() => drop(kept.swap_remove(below(kept.len()))),
                5 if !kept.is_empty() => {
                    let at = below(kept.len());
                    // What is refused is freed.
                    let _ = tx.try_send(kept.swap_remove(at));
                }
                // One that is corrupted is passed over, and nobody's.
                6 => kept.extend(rx.try_recv().ok()),
                _ => {
                    let block = u32::try_from(data).unwrap() + u32::try_from(below(3000)).unwrap();
                    let word = [block, u32::MAX, 0, 1 << 31][below(4)];
                    file.write_all_at(&word.to_le_bytes(), places[below(places.len())]).unwrap();
                }
            }
        }
        // Two may be in one block by now; each is a record all the same.
        let last = kept.pop();
        drop((tx, rx, kept, ctx, buffer));
        assert_eq!(mappings(&name), usize::from(last.is_some()), "seed {seed}");
        drop(last);
        assert_eq!(mappings(&name), 0, "seed {seed}");
    }
}

// ------------------------------------------------------------------------------------------- what is counted

/// A record of any kind.
enum Kept {
    Small(Record<u64>),
    Odd(Record<[u8]>),
    Large(Record<[u8]>),
}

/// Allocates, frees, sends and receives at random, alone and in batches, and lets others have what it has made.
fn work(buffer: &Buffer, seed: u64, pool: &Mutex<Vec<Kept>>, rounds: u64) {
    let mut dice = Dice(seed);
    let index = seed.cast_signed();
    let mut ctx = buffer.context().unwrap();
    let mut mine: Vec<Kept> = Vec::new();
    let ends = |ctx: &ThreadContext| {
        let options = ChannelOptions::new().capacity(16);
        let records = (ctx.producer_with::<u64>(index, &options).unwrap(), ctx.consumer::<u64>(index).unwrap());
        (records, ctx.value_producer::<u64>(-index).unwrap(), ctx.value_consumer::<u64>(-index).unwrap())
    };
    let ((mut tx, mut rx), mut vtx, mut vrx) = ends(&ctx);
    for round in 0..rounds {
        let bytes = usize::try_from(dice.below(3000)).unwrap();
        match dice.below(14) {
            0..3 => mine.extend(ctx.record(round).ok().map(Kept::Small)),
            3 => mine.extend(ctx.slice_zeroed(bytes).ok().map(Kept::Odd)),
            4 => mine.extend(ctx.slice_zeroed(60_000 + bytes * 30).ok().map(Kept::Large)),
            5 | 6 => _ = mine.pop(),
            7 => pool.lock().unwrap().extend(mine.pop()),
            8 => {
                // Made by whatever thread.
                let theirs = pool.lock().unwrap().pop();
                drop(theirs);
            }
            9 => {
                let batch: Vec<_> = (0..dice.below(6)).filter_map(|i| ctx.record(i).ok()).collect();
                // What finds no slot is freed.
                let _ = tx.try_send_batch(batch);
            }
            10 => mine.extend(rx.try_recv_batch(3).into_iter().flatten().map(Kept::Small)),
            11 => {
                let _ = vtx.try_send(round);
                let _ = vrx.try_recv();
                mine.extend(rx.try_recv().ok().map(Kept::Small));
            }
            12 if dice.below(20) == 0 => {
                // Everything that is held by a context is given up, but for the records.
                drop((tx, rx, vtx, vrx, ctx));
                ctx = buffer.context().unwrap();
                ((tx, rx), vtx, vrx) = ends(&ctx);
            }
            12 => ctx.flush(),
            _ => drop(mine.drain(mine.len() / 2..)),
        }
    }
    pool.lock().unwrap().extend(mine);
}

/// Several threads in a buffer that is too small for them: idle caches are taken back, other classes must do. Whatever
/// happened, the mapping goes with the last record, in whatever thread that is dropped.
#[test]
fn the_mapping_goes_with_the_last_record_and_not_before() {
    let _dog = watchdog();
    for seed in 1..=6_u64 {
        let name = Name::new("count");
        let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
        let pool = Arc::new(Mutex::new(Vec::new()));
        // Idle throughout, with full caches: what is taken back is theirs.
        let (done, wait) = mpsc::channel::<()>();
        let idle = {
            let buffer = buffer.clone();
            thread::spawn(move || {
                let ctx = buffer.context().unwrap();
                drop((0..500).filter_map(|i| ctx.record(i).ok()).collect::<Vec<_>>());
                let spare = ctx.slice_zeroed::<u8>(700);
                drop(spare);
                let _ = wait.recv();
                // And then it goes on.
                drop((0..500).filter_map(|i| ctx.record(i).ok()).collect::<Vec<_>>());
            })
        };
        let workers: Vec<_> = (0..3)
            .map(|i| {
                let (buffer, pool) = (buffer.clone(), Arc::clone(&pool));
                thread::spawn(move || work(&buffer, seed * 100 + i, &pool, 500))
            })
            .collect();
        workers.into_iter().for_each(|thread| thread.join().unwrap());
        drop(done);
        idle.join().unwrap();
        let mut kept = std::mem::take(&mut *pool.lock().unwrap());
        kept.truncate(usize::try_from(seed).unwrap() * 3);
        all_free_but(&buffer, kept.len() as u64);
        let ctx = buffer.context().unwrap();
        drop(buffer);
        kept.push(Kept::Small(ctx.record(1).unwrap()));
        drop(ctx);
        while let Some(record) = kept.pop() {
            assert_eq!(mappings(&name), 1, "seed {seed}, with {} records", kept.len() + 1);
            if kept.len() % 2 == 0 { drop(record) } else { thread::spawn(move || drop(record)).join().unwrap() }
        }
        assert_eq!(mappings(&name), 0, "seed {seed}");
        assert!(!name.exists(), "it was the last process");
        // What a record can be asked at any time is also used here, so that all of it is read.
        let _ = |kept: Kept| match kept {
            Kept::Small(record) => *record,
            Kept::Odd(bytes) | Kept::Large(bytes) => bytes.len() as u64,
        };
    }
}

/// A record that is forgotten is one for good.
#[test]
fn what_is_forgotten_keeps_the_mapping() {
    let _dog = watchdog();
    let name = Name::new("forgotten");
    let ctx = Buffer::open(&name).unwrap().context().unwrap();
    let record: &'static mut Record<u64> = Box::leak(Box::new(ctx.record(7).unwrap()));
    drop(ctx);
    assert_eq!((mappings(&name), **record), (1, 7));
    all_free_but(&Buffer::open(&name).unwrap(), 1);
    assert_eq!((mappings(&name), **record), (1, 7));
}

/// What is still queued when its sender leaves is the channel's, and keeps nobody: not the sender attached, nor the record from its
/// receiver.
#[test]
fn what_is_queued_keeps_nobody() {
    if let Some((_, name)) = common::role() {
        let ctx = Buffer::open(&name).unwrap().context().unwrap();
        let options = ChannelOptions::new().persistent(true);
        let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
        (0..100).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        drop((tx, ctx));
        assert_eq!(mappings(&name), 0);
        return;
    }
    let _dog = watchdog();
    let name = Name::new("queued");
    let buffer = Buffer::open(&name).unwrap();
    common::start("what_is_queued_keeps_nobody", "sender", &name).success();
    assert_eq!(buffer.reap().unwrap().processes, 0, "it has left");
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    assert!(rx.try_iter().map(|record| *record).eq(0..100));
    drop(rx);
    assert!(buffer.remove_channel(1).unwrap());
    drop(ctx);
    all_free(&buffer);
}

/// Symptom: a process that had dropped everything stayed attached, and the segment was left behind. Cause: what the other one was about to
/// drain still had this one's name, and was counted. Fix: names are not counted.
#[test]
fn two_that_leave_at_once_leave_nothing() {
    const QUEUED: u64 = 1 << 14;
    if let Some((role, names)) = common::role() {
        let (name, meeting) = names.split_once(' ').unwrap();
        let meeting = Buffer::open(meeting).unwrap().context().unwrap();
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        let options = ChannelOptions::new().capacity(usize::try_from(QUEUED).unwrap());
        let is_producer = role == "producer";
        let rx = (!is_producer).then(|| ctx.consumer_with::<u64>(1, &options).unwrap());
        if is_producer {
            let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
            (0..QUEUED).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        }
        let id = i64::from(is_producer);
        // Both ends before a word is said: a channel that nobody is in goes, and what it carries with it.
        let mut go = meeting.value_consumer::<u64>(id + 2).unwrap();
        let mut ready = meeting.value_producer::<u64>(id).unwrap();
        ready.send(1).unwrap();
        go.recv().unwrap();
        drop((rx, ctx));
        assert_eq!(mappings(name), 0, "{role}");
        return;
    }
    let _dog = watchdog();
    for _ in 0..10 {
        let (name, meeting) = (Name::new("at-once"), Name::new("meeting"));
        let ctx = Buffer::open(&meeting).unwrap().context().unwrap();
        let names = format!("{} {}", &*name, &*meeting);
        let start = |role| {
            let id = i64::from(role == "producer");
            // First: what is sent to nobody goes with its sender.
            let mut ready = ctx.value_consumer::<u64>(id).unwrap();
            let go = ctx.value_producer::<u64>(id + 2).unwrap();
            let process = common::start("two_that_leave_at_once_leave_nothing", role, &names);
            assert_eq!(ready.recv().unwrap(), 1);
            (process, go)
        };
        let mut both = [start("consumer"), start("producer")];
        both.iter_mut().for_each(|(_, go)| go.send(1).unwrap());
        both.map(|(process, _)| process).into_iter().for_each(common::Process::success);
        assert!(!name.exists());
    }
}

// ------------------------------------------------------------------------------------------- what waits for whom

/// Somebody sits on the control locks of four buffers, and a thread of this process waits for one after the other, 5 seconds each. What
/// has to do with other buffers only is done long before.
fn meanwhile(stuck: impl FnOnce(Vec<Name>) -> Box<dyn FnOnce() + Send>) {
    let _dog = watchdog();
    let names: Vec<Name> = (0..4).map(|_| Name::new("stuck")).collect();
    let (b, c) = (Name::new("stuck-not"), Name::new("stuck-not"));
    names.iter().for_each(|name| drop(Buffer::options().persist(true).open(name).unwrap()));
    let again = names.iter().map(|name| Name(name.0.clone())).collect();
    let stuck = stuck(again);
    let holders: Vec<Holder> = names.iter().map(Holder::new).collect();
    let at_work = thread::spawn(stuck);
    holders[0].until_waited_for();
    let buffer = Buffer::options().capacity(8 << 20).open(&b).unwrap();
    let ctx = buffer.context().unwrap();
    let (small, large) = (ctx.record(5_u64).unwrap(), ctx.slice_zeroed::<u8>(1 << 20).unwrap());
    thread::spawn(move || drop(small)).join().unwrap();
    assert!(large.capacity_bytes() >= 1 << 20);
    thread::spawn(move || drop(large)).join().unwrap();
    drop(Buffer::options().persist(true).open(&c).unwrap());
    Buffer::unlink(&c).unwrap();
    drop((ctx, buffer));
    assert!(!b.exists());
    assert!(!at_work.is_finished(), "they waited for a stuck buffer");
    drop(holders);
    at_work.join().unwrap();
}

#[test]
fn no_buffer_waits_for_one_that_is_opened() {
    meanwhile(|names| {
        Box::new(move || {
            names.iter().for_each(|name| _ = Buffer::open(name).map(drop));
        })
    });
}

#[test]
fn no_buffer_waits_for_one_that_is_unlinked() {
    meanwhile(|names| Box::new(move || names.iter().for_each(|name| _ = Buffer::unlink(name))));
}

#[test]
fn no_buffer_waits_for_one_whose_last_handle_goes() {
    meanwhile(|names| {
        let buffers: Vec<Buffer> = names.iter().map(|name| Buffer::open(name).unwrap()).collect();
        Box::new(move || drop((buffers, names)))
    });
}

#[test]
fn no_buffer_waits_for_one_whose_last_record_goes() {
    meanwhile(|names| {
        let record = |name: &Name| Buffer::open(name).unwrap().context().unwrap().record(1_u64).unwrap();
        let records: Vec<Record<u64>> = names.iter().map(record).collect();
        Box::new(move || drop((records, names)))
    });
}

/// A record is dropped in a thread without a context while another thread waits for the control lock of the same buffer.
#[test]
fn no_record_waits_for_its_buffers_lock() {
    let _dog = watchdog();
    let name = Name::new("stuck");
    let buffer = Buffer::options().capacity(8 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let records: Vec<_> = (0..1000).map(|i| ctx.record(i).unwrap()).collect();
    let holder = Holder::new(&name);
    let stuck = buffer.clone();
    let at_work = thread::spawn(move || {
        for _ in 0..3 {
            let _ = stuck.remove_channel(1);
            let _ = stuck.trim();
        }
    });
    holder.until_waited_for();
    thread::spawn(move || drop(records)).join().unwrap();
    assert!(!at_work.is_finished(), "they waited for the lock");
    drop(holder);
    at_work.join().unwrap();
    drop(ctx);
    all_free(&buffer);
}

/// Threads that open a name at the same time share one attachment.
#[test]
fn who_opens_a_name_at_once_shares_a_mapping() {
    let _dog = watchdog();
    let name = Name::new("at-once");
    for _ in 0..100 {
        let here = Arc::new(Barrier::new(4));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (name, here) = (name.0.clone(), Arc::clone(&here));
                thread::spawn(move || {
                    here.wait();
                    Buffer::options().capacity(1 << 20).open(&name).unwrap()
                })
            })
            .collect();
        let buffers: Vec<Buffer> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(mappings(&name), 1);
        drop(buffers);
        assert!(mappings(&name) == 0 && !name.exists());
    }
}

/// Who opens while another thread lets the last handle go has an attachment of its own, for the moment that takes.
#[test]
fn a_buffer_is_opened_while_it_is_left() {
    let _dog = watchdog();
    let name = Name::new("left");
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let (name, stop) = (name.0.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    let ctx = Buffer::options().capacity(1 << 20).open(&name).unwrap().context().unwrap();
                    let (mut tx, mut rx) = (ctx.producer::<u64>(i).unwrap(), ctx.consumer::<u64>(i).unwrap());
                    tx.send(ctx.record(rounds).unwrap()).unwrap();
                    let record = rx.recv().unwrap();
                    drop((tx, rx, ctx));
                    // Often the last of this process.
                    assert_eq!(*record, rounds);
                    drop(record);
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() > 0));
    assert!(mappings(&name) == 0 && !name.exists());
}
