//! Fork: what was opened before it is inert in the child, and the child opens the buffer anew.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // fork, _exit, kill and waitpid

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;
#[path = "common/stuck.rs"]
mod stuck;

use common::{Name, all_free, sound};
use ipc_buffer::{
    AllocError, AttachError, Buffer, BufferError, ChannelOptions, Error, PeerError, RecvError, RecvTimeoutError,
    Select, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use scenarios::{Child, Scenario, end, end_after, fork, hear, tell};
use std::io::{PipeWriter, pipe};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("inherited_handles_say_forked", inherited_handles_say_forked),
    ("drops_in_the_child_do_nothing", drops_in_the_child_do_nothing),
    ("the_last_drop_is_the_parents", the_last_drop_is_the_parents),
    ("reading_works_writing_reaches_nobody", reading_works_writing_reaches_nobody),
    ("the_child_opens_the_buffer_anew", the_child_opens_the_buffer_anew),
    ("a_child_that_opened_anew_is_a_process_of_its_own", a_child_that_opened_anew_is_a_process_of_its_own),
    ("a_child_keeps_no_lease_of_its_parent", a_child_keeps_no_lease_of_its_parent),
    ("a_child_keeps_no_segment", a_child_keeps_no_segment),
    ("descriptors_do_not_outlive_exec", descriptors_do_not_outlive_exec),
    ("sleepers_are_the_parents", sleepers_are_the_parents),
    ("grandchildren", grandchildren),
    ("more_than_the_machine_has", more_than_the_machine_has),
    ("where_private_memory_is_refused", where_private_memory_is_refused),
    ("generations_keep_no_descriptors", generations_keep_no_descriptors),
    ("generations_keep_no_mappings", generations_keep_no_mappings),
    ("the_view_goes_with_the_last_handle", the_view_goes_with_the_last_handle),
    ("the_view_stays_with_what_is_held", the_view_stays_with_what_is_held),
    ("the_view_stays_with_other_threads", the_view_stays_with_other_threads),
    ("fork_under_load", fork_under_load),
    ("many_threads_fork", many_threads_fork),
    ("fork_while_opening_and_closing", fork_while_opening_and_closing),
    ("fork_while_unlinking", fork_while_unlinking),
    ("fork_while_reaping", fork_while_reaping),
    ("fork_while_others_wait", fork_while_others_wait),
];

fn main() {
    scenarios::main("fork", SCENARIOS)
}

/// Something of every kind in a buffer.
macro_rules! furnish {
    ($name:expr => $buffer:ident, $context:ident, $tx:ident, $rx:ident, $record:ident, $slice:ident) => {
        let $buffer = Buffer::open($name).unwrap();
        let $context = $buffer.context().unwrap();
        let mut $tx = $context.producer::<u64>(1).unwrap();
        let mut $rx = $context.consumer::<u64>(1).unwrap();
        #[allow(unused_mut)]
        let mut $record = $context.record(7_u64).unwrap();
        #[allow(unused_mut)]
        let mut $slice = $context.slice_uninit::<u32>(300_000).unwrap().fill_with(|i| u32::try_from(i).unwrap());
        for value in 0..5 {
            $tx.send($context.record(value).unwrap()).unwrap();
        }
    };
}

// ---------------------------------------------------------------------------------------------------------- scenarios

fn inherited_handles_say_forked(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    let full = ChannelOptions::new().capacity(2);
    let mut full = context.producer_with::<u64>(2, &full).unwrap();
    full.send(context.record(1).unwrap()).unwrap();
    full.send(context.record(2).unwrap()).unwrap();
    let mut idle = context.consumer::<u64>(3).unwrap();
    let before = sound(&buffer);
    let Some(child) = fork() else {
        let soon = Duration::from_millis(1);
        // The buffer.
        assert_eq!(buffer.context().unwrap_err(), BufferError::Forked);
        assert_eq!(buffer.clone().context().unwrap_err(), BufferError::Forked);
        assert_eq!(buffer.has_channel(1), Err(BufferError::Forked));
        assert_eq!(buffer.wait_for_channel(99, Duration::MAX), Err(BufferError::Forked));
        assert_eq!(buffer.has_active_channels(), Err(BufferError::Forked));
        assert_eq!(buffer.channels(), Err(BufferError::Forked));
        assert_eq!(buffer.remove_channel(1), Err(BufferError::Forked));
        assert_eq!(buffer.reap(), Err(BufferError::Forked));
        assert_eq!(buffer.trim(), Err(BufferError::Forked));
        assert_eq!(buffer.audit(), Err(BufferError::Forked));
        assert_eq!((buffer.name(), buffer.capacity(), buffer.is_persistent()), (&**name, 1 << 30, false));
        // The context.
        assert_eq!(context.record(1_u8).unwrap_err(), AllocError::Forked);
        assert_eq!(context.zeroed::<[u8; 4096]>().unwrap_err(), AllocError::Forked);
        assert_eq!(context.uninit::<u64>().unwrap_err(), AllocError::Forked);
        assert_eq!(context.slice_zeroed::<u8>(0).unwrap_err(), AllocError::Forked);
        assert_eq!(context.clone().slice_from(&[1_u64; 100_000]).unwrap_err(), AllocError::Forked);
        assert_eq!(context.producer::<u64>(9).unwrap_err(), AttachError::Forked);
        assert_eq!(context.consumer::<u64>(1).unwrap_err(), AttachError::Forked);
        context.flush();
        // The endpoints; a record that is not sent comes back.
        let Err(TrySendError::Forked(record)) = tx.try_send(record) else { panic!() };
        let Err(SendError::Forked(record)) = tx.send(record) else { panic!() };
        let Err(SendTimeoutError::Forked(record)) = tx.send_timeout(record, Duration::MAX) else { panic!() };
        let Err(SendError::Forked(record)) = full.send(record) else { panic!("full makes no difference") };
        assert_eq!(*record, 7);
        assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::Forked));
        assert_eq!(rx.recv().unwrap_err(), RecvError::Forked);
        assert_eq!(idle.recv().unwrap_err(), RecvError::Forked, "empty makes no difference");
        assert_eq!(rx.recv_timeout(Duration::MAX).unwrap_err(), RecvTimeoutError::Recv(RecvError::Forked));
        assert!(rx.try_iter().next().is_none() && idle.try_iter().next().is_none());
        assert_eq!(tx.wait_for_consumer(soon), Err(PeerError::Forked));
        assert_eq!(idle.wait_for_producer(soon), Err(PeerError::Forked));
        let _ = (tx.has_consumer(), rx.has_producer(), tx.len(), rx.is_empty(), tx.capacity());
        // All of them are one variant of the joint error.
        for error in [
            Error::from(BufferError::Forked),
            AllocError::Forked.into(),
            AttachError::Forked.into(),
            tx.send(record).unwrap_err().into(),
            rx.recv().unwrap_err().into(),
            rx.try_recv().unwrap_err().into(),
        ] {
            assert!(matches!(error, Error::Forked), "{error:?}");
            assert!(error.to_string().contains("open the buffer anew in the child"), "{error}");
        }
        drop(slice);
        end()
    };
    child.succeeds();
    assert_eq!(sound(&buffer), before);
    // The parent noticed nothing.
    tx.send(record).unwrap();
    assert_eq!(rx.try_iter().map(|r| *r).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 7]);
    *slice.last_mut().unwrap() = 1;
    drop((tx, rx, full, idle, slice, context));
    all_free(&buffer);
}

fn drops_in_the_child_do_nothing(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    // Another thread's things: the child has the records, and not the thread.
    let others = Arc::new(Mutex::new(Vec::new()));
    let (filled, stop) = (Arc::clone(&others), Arc::new(AtomicBool::new(false)));
    let (stopped, theirs) = (Arc::clone(&stop), buffer.clone());
    let thread = std::thread::spawn(move || {
        let context = theirs.context().unwrap();
        let _tx = context.producer::<u64>(5).unwrap();
        filled.lock().unwrap().extend((0..100_u64).map(|i| context.record(i).unwrap()));
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    while others.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let before = sound(&buffer);
    for order in 0..4 {
        let lock = others.lock().unwrap();
        let Some(child) = fork() else {
            let mut lock = lock;
            lock.clear();
            match order {
                0 => drop((buffer, context, tx, rx, record, slice)),
                1 => drop((slice, record, rx, tx, context, buffer)),
                2 => {
                    // Through every destructor of the process.
                    drop((rx, context));
                    std::process::exit(0)
                }
                _ => {
                    // In a thread of the child, with the buffer open anew or not.
                    let anew = Buffer::open(name).unwrap();
                    std::thread::spawn(move || drop((record, slice))).join().unwrap();
                    drop((context, buffer, tx, rx));
                    drop(anew);
                }
            }
            end()
        };
        drop(lock);
        child.succeeds();
        assert_eq!(sound(&buffer), before, "order {order}");
        assert!(name.exists());
    }
    assert_eq!((others.lock().unwrap().len(), *record, slice.len()), (100, 7, 300_000));
    assert_eq!(rx.try_iter().map(|r| *r).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    others.lock().unwrap().clear();
    tx.send(context.record(1).unwrap()).unwrap();
    *record += 1;
    slice.truncate(5);
    drop((tx, rx, record, slice, context));
    all_free(&buffer);
}

fn the_last_drop_is_the_parents(name: &Name) {
    // Only a record keeps the process attached; the child's drop of it must not be the last one.
    let record = Buffer::open(name).unwrap().context().unwrap().record(3_u64).unwrap();
    let Some(child) = fork() else {
        assert_eq!(*record, 3);
        drop(record);
        end()
    };
    child.succeeds();
    assert!(name.exists());
    let buffer = Buffer::options().must_exist(true).open(name).unwrap();
    assert_eq!((sound(&buffer).owned[0].records, *record), (1, 3));
    drop(record);
    all_free(&buffer);
}

fn reading_works_writing_reaches_nobody(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    let Some(child) = fork() else {
        assert_eq!((*record, slice.len()), (7, 300_000));
        assert!(slice.iter().zip(0..).all(|(value, i)| *value == i));
        *record = 8;
        slice.fill(0xdead);
        slice.truncate(3);
        assert_eq!((*record, &*slice), (8, &[0xdead; 3][..]), "the child sees what it wrote");
        end()
    };
    child.succeeds();
    assert_eq!((*record, slice.len()), (7, 300_000));
    assert!(slice.iter().zip(0..).all(|(value, i)| *value == i), "the parent doesn't");
    sound(&buffer);
    tx.send(record).unwrap();
    assert_eq!(rx.try_iter().last().as_deref(), Some(&7));
    record = context.record(0).unwrap();
    slice.truncate(usize::try_from(*record).unwrap());
    drop((tx, rx, record, slice, context));
    all_free(&buffer);
}

fn the_child_opens_the_buffer_anew(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    let mut to_child = context.producer::<[u8]>(10).unwrap();
    let mut from_child = context.consumer::<[u8]>(11).unwrap();
    let Some(child) = fork() else {
        let anew = Buffer::options().must_exist(true).open(name).unwrap();
        let fresh = anew.context().unwrap();
        assert_eq!(buffer.context().unwrap_err(), BufferError::Forked, "the old one stays inert");
        // An inherited record is of another mapping.
        let mut echo = fresh.producer::<[u8]>(11).unwrap();
        let mut own = fresh.producer::<u64>(12).unwrap();
        let Err(TrySendError::ForeignRecord(record)) = own.try_send(record) else { panic!() };
        assert_eq!(*record, 7);
        drop((record, tx, rx, slice, to_child, from_child, context, buffer));
        // What the parent's endpoints held is still taken, by the parent.
        assert!(matches!(fresh.producer::<u64>(1), Err(AttachError::RoleTaken { .. })));
        for received in fresh.consumer::<[u8]>(10).unwrap() {
            echo.send(received).unwrap();
        }
        end()
    };
    for len in [0_usize, 1, 1000, 100_000, 1_000_000] {
        to_child.send(context.slice_from(&vec![len.to_le_bytes()[1]; len]).unwrap()).unwrap();
        assert_eq!(&*from_child.recv().unwrap(), vec![len.to_le_bytes()[1]; len]);
    }
    drop(to_child);
    child.succeeds();
    assert_eq!(from_child.recv().unwrap_err(), RecvError::Disconnected);
    assert_eq!((rx.try_iter().count(), *record, slice.len()), (5, 7, 300_000));
    *record += 0;
    slice.truncate(1);
    drop((tx, rx, record, slice, from_child, context));
    all_free(&buffer);
}

fn a_child_that_opened_anew_is_a_process_of_its_own(name: &Name) {
    let (mut heard, mut told) = pipe().unwrap();
    let (mut done, mut doing) = pipe().unwrap();
    let buffer = Buffer::open(name).unwrap();
    let kept = buffer.context().unwrap().record(1_u64).unwrap();
    let Some(child) = fork() else {
        drop((told, done));
        let anew = Buffer::open(name).unwrap();
        let context = anew.context().unwrap();
        let mine = context.record(2_u64).unwrap();
        drop((buffer, kept));
        tell(&mut doing);
        assert!(hear(&mut heard));
        // The parent has left.
        assert!(name.exists());
        drop((mine, context));
        all_free(&anew);
        end_after(move || drop(anew))
    };
    drop(doing);
    assert!(hear(&mut done));
    let owned = sound(&buffer).owned;
    assert_eq!(owned.iter().filter(|o| o.is_self && o.records == 1).count(), 1);
    assert!(owned.iter().any(|o| !o.is_self && o.is_alive && o.records == 1 && o.pid == child.0.cast_unsigned()));
    drop((kept, buffer));
    assert!(name.exists(), "the child has it open");
    tell(&mut told);
    child.succeeds();
    assert!(!name.exists(), "and was the last");
}

fn a_child_keeps_no_lease_of_its_parent(name: &Name) {
    let (mut heard, told) = pipe().unwrap();
    let (mut up, mut ready) = pipe().unwrap();
    let (mut done, mut doing) = pipe().unwrap();
    let buffer = Buffer::open(name).unwrap();
    let context = buffer.context().unwrap();
    let mut rx = context.consumer::<u64>(20).unwrap();
    let Some(victim) = fork() else {
        drop(told);
        let theirs = Buffer::open(name).unwrap();
        let context = theirs.context().unwrap();
        let mut tx = context.producer::<u64>(20).unwrap();
        tx.send(context.record(5).unwrap()).unwrap();
        let kept: Vec<_> = (0..1000).map(|i| context.record(i).unwrap()).collect();
        let lingers = fork();
        tell(&mut ready);
        let Some(_lingers) = lingers else {
            // Outlives its parent, until told to end by the pipe's other side closing.
            let _ = hear(&mut heard);
            assert_eq!(context.record(1_u64).unwrap_err(), AllocError::Forked);
            drop((kept, tx, context, theirs));
            tell(&mut doing);
            end()
        };
        loop {
            std::hint::black_box(&kept);
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    drop((heard, ready, doing));
    assert!(hear(&mut up) && hear(&mut up), "both are up");
    assert!(sound(&buffer).owned.iter().all(|o| o.is_alive));
    victim.kill();
    // The victim's child lives, and holds nothing of it: the victim is dead for everybody.
    let reaped = buffer.reap().unwrap();
    assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, 1000, 1));
    assert_eq!(*rx.recv().unwrap(), 5);
    assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
    drop((rx, context));
    all_free(&buffer);
    // Nor does it act for its parent.
    drop(told);
    assert!(hear(&mut done));
    all_free(&buffer);
}

fn a_child_keeps_no_segment(name: &Name) {
    let (mut heard, told) = pipe().unwrap();
    furnish!(name => buffer, context, tx, rx, record, slice);
    let Some(child) = fork() else {
        drop(told);
        assert!(!hear(&mut heard));
        assert!(!name.exists(), "the parent was the last out: this one does not count");
        assert_eq!((*record, slice.len()), (7, 300_000), "what was inherited can be read even now");
        drop((tx, rx, record, slice, context, buffer));
        // The name is free for a new one, which has nothing to do with the old.
        let new = Buffer::options().create_new(true).open(name).unwrap();
        all_free(&new);
        end_after(move || drop(new))
    };
    // Freed, and left as they are: nobody writes there any more.
    rx.try_iter().for_each(drop);
    drop((tx, rx, record, slice, context, buffer));
    assert!(!name.exists());
    drop(told);
    child.succeeds();
}

fn descriptors_do_not_outlive_exec(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let _record = buffer.context().unwrap().record(1_u64).unwrap();
    let list = |command: &mut std::process::Command| {
        let output = command.args(["-l", "/proc/self/fd"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("->") && !text.contains(&name.0), "{text}");
    };
    // By posix_spawn, and by fork and exec.
    list(&mut std::process::Command::new("ls"));
    use std::os::unix::process::CommandExt;
    let mut forked = std::process::Command::new("ls");
    // SAFETY: the hook does nothing.
    list(unsafe { forked.pre_exec(|| Ok(())) });
    sound(&buffer);
    // A forked child has closed what carries the lease.
    let Some(child) = fork() else {
        let mut names = std::fs::read_dir("/proc/self/fd").unwrap();
        let carried = names.by_ref().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let open = carried.filter(|target| target.to_string_lossy().contains(&name.0)).count();
        assert!(open <= 1, "{open} descriptors of the segment; the mapping's own carries nothing");
        end()
    };
    child.succeeds();
}

fn sleepers_are_the_parents(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let context = buffer.context().unwrap();
    let (mut rx, tx) = (context.consumer::<u64>(9).unwrap(), context.producer::<u64>(10).unwrap());
    let mut select = Select::new();
    select.recv(&rx);
    assert_eq!(select.try_ready(), None);
    let asleep = |ids: &'static [i64]| {
        let buffer = buffer.clone();
        std::thread::spawn(move || {
            let context = buffer.context().unwrap();
            let mut ends: Vec<_> = ids.iter().map(|id| context.consumer::<u64>(*id).unwrap()).collect();
            let mut select = Select::new();
            ends.iter().for_each(|rx| _ = select.recv(rx));
            let number = if ends.len() == 1 { 0 } else { select.ready().unwrap() };
            *ends[number].recv().unwrap()
        })
    };
    let sleepers = [asleep(&[1]), asleep(&[2, 3, 4])];
    (1..=4).for_each(|id| assert!(buffer.wait_for_channel(id, Duration::MAX).unwrap()));
    std::thread::sleep(Duration::from_millis(20));
    let Some(child) = fork() else {
        // What was built before is inert, and says so at once.
        assert_eq!(select.ready(), Some(0));
        assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::Forked));
        assert_eq!((select.send(&tx), select.ready()), (1, Some(1)));
        let anew = Buffer::open(name).unwrap();
        let mine = anew.context().unwrap();
        for id in [1, 3] {
            mine.producer(id).unwrap().send(mine.record(id.cast_unsigned()).unwrap()).unwrap();
        }
        drop((buffer, context, mine));
        end_after(move || drop(anew))
    };
    assert_eq!(sleepers.map(|sleeper| sleeper.join().unwrap()), [1, 3]);
    child.succeeds();
    assert_eq!(select.try_ready(), None);
    drop((rx, tx, context));
    all_free(&buffer);
}

fn grandchildren(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    let mut from_grandchild = context.consumer::<u64>(30).unwrap();
    let before = sound(&buffer).owned;
    let Some(child) = fork() else {
        // Forks again without opening anew, and after.
        let Some(unopened) = fork() else {
            assert_eq!(buffer.audit(), Err(BufferError::Forked));
            assert_eq!(*record, 7);
            drop((tx, rx, record, slice, context, buffer, from_grandchild));
            end()
        };
        unopened.succeeds();
        let second = Buffer::open(name).unwrap();
        let second_context = second.context().unwrap();
        let mut second_tx = second_context.producer::<u64>(31).unwrap();
        let second_record = second_context.record(70_u64).unwrap();
        let Some(grandchild) = fork() else {
            assert_eq!(buffer.audit(), Err(BufferError::Forked));
            assert_eq!(second.audit(), Err(BufferError::Forked));
            assert!(matches!(tx.try_send(record), Err(TrySendError::Forked(_))));
            assert!(matches!(second_tx.try_send(second_record), Err(TrySendError::Forked(_))));
            let third = Buffer::open(name).unwrap();
            let third_context = third.context().unwrap();
            let mut out = third_context.producer::<u64>(30).unwrap();
            drop((context, second_context, buffer, second));
            out.send(third_context.record(99).unwrap()).unwrap();
            drop((out, third_context));
            end_after(move || drop(third))
        };
        grandchild.succeeds();
        second_tx.send(second_record).unwrap();
        assert_eq!(sound(&second).queued.iter().find(|q| q.channel == 31).unwrap().records, 1);
        drop((second_tx, second_context));
        end_after(move || drop(second))
    };
    assert_eq!(*from_grandchild.recv().unwrap(), 99);
    child.succeeds();
    assert_eq!(sound(&buffer).owned, before);
    assert_eq!((rx.try_iter().count(), *record), (5, 7));
    tx.send(record).unwrap();
    record = rx.recv().unwrap();
    *record += 1;
    slice.truncate(1);
    drop((tx, rx, record, slice, from_grandchild, context));
    all_free(&buffer);
}

/// What a child forked out of a busy process does: nothing with the old, something with the new.
fn work_in_a_child(name: &Name, round: i64, inherited: &Buffer) -> ! {
    assert_eq!(inherited.audit(), Err(BufferError::Forked));
    if round % 2 == 0 {
        let anew = Buffer::open(name).unwrap();
        let context = anew.context().unwrap();
        let mut tx = context.producer::<[u8]>(1000 + round).unwrap();
        let mut rx = context.consumer::<[u8]>(1000 + round).unwrap();
        for len in [1, 3000, 100_000] {
            tx.send(context.slice_from(&vec![5; len]).unwrap()).unwrap();
            assert_eq!(&*rx.recv().unwrap(), vec![5; len]);
        }
        drop((tx, rx, context));
        drop(anew);
    }
    end()
}

/// Threads that allocate, send, receive, free, attach and detach until told to stop.
fn load(buffer: &Buffer, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<u64>> {
    let worker = |id: i64| {
        let (buffer, stop) = (buffer.clone(), Arc::clone(stop));
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let context = buffer.context().unwrap();
                let mut tx = context.producer::<[u8]>(id).unwrap();
                let mut rx = context.consumer::<[u8]>(id).unwrap();
                for len in [8, 100, 5000, 70_000] {
                    tx.send(context.slice_zeroed(len).unwrap()).unwrap();
                    assert_eq!(rx.recv().unwrap().len(), len);
                }
                let homeless = context.record(1_u64).unwrap();
                tx.send(context.slice_zeroed(1).unwrap()).unwrap();
                drop((tx, rx, context));
                drop(homeless);
                rounds += 1;
            }
            rounds
        })
    };
    (0..3).map(worker).collect()
}

fn fork_under_load(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let threads = load(&buffer, &stop);
    for round in 0..200 {
        match fork() {
            Some(child) => child.succeeds(),
            None => work_in_a_child(name, round, &buffer),
        }
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        assert!(thread.join().unwrap() > 0);
    }
    all_free(&buffer);
}

fn many_threads_fork(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let forker = |id: i64| {
        let (buffer, name) = (buffer.clone(), Name(name.0.clone()));
        std::thread::spawn(move || {
            let context = buffer.context().unwrap();
            for round in 0..25 {
                let record = context.record(round).unwrap();
                match fork() {
                    Some(child) => child.succeeds(),
                    None => {
                        assert_eq!(context.record(1_u8).unwrap_err(), AllocError::Forked);
                        work_in_a_child(&name, id * 100 + round, &buffer)
                    }
                }
                assert_eq!(*record, round);
            }
            // The name is the scenario's to remove.
            std::mem::forget(name);
        })
    };
    let threads: Vec<_> = (0..4).map(forker).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    all_free(&buffer);
}

/// Runs `busy` again and again in a thread while the caller forks children that live on for a while: whatever lock they were
/// born with, they would keep.
fn fork_meanwhile(rounds: usize, busy: impl Fn() + Send + 'static, in_child: impl Fn(usize), check: impl Fn()) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            busy();
        }
    });
    let mut lingering = std::collections::VecDeque::new();
    for round in 0..rounds {
        let (mut heard, told) = pipe().unwrap();
        match fork() {
            Some(child) => lingering.push_back((told, child)),
            None => {
                // Siblings' pipes came along; they must not be kept open from here.
                lingering.drain(..).for_each(|(told, child): (PipeWriter, Child)| {
                    close(&told);
                    std::mem::forget((told, child));
                });
                drop(told);
                in_child(round);
                let _ = hear(&mut heard);
                end()
            }
        }
        check();
        if lingering.len() > 10 {
            let (told, child) = lingering.pop_front().unwrap();
            drop(told);
            child.succeeds();
        }
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    for (told, child) in lingering {
        drop(told);
        child.succeeds();
    }
}

fn close(pipe: &PipeWriter) {
    // SAFETY: the caller forgets the pipe.
    unsafe { libc::close(pipe.as_raw_fd()) };
}

fn fork_while_opening_and_closing(name: &Name) {
    let there = name.0.clone();
    let busy = move || {
        let buffer = Buffer::open(&there).unwrap();
        let context = buffer.context().unwrap();
        let _record = context.record(1_u64).unwrap();
        let _tx = context.producer::<u64>(1).unwrap();
        drop(buffer);
    };
    let in_child = |round: usize| {
        if round.is_multiple_of(2) {
            let anew = Buffer::open(name).unwrap();
            let context = anew.context().unwrap();
            drop(context.record(round).unwrap());
        }
    };
    fork_meanwhile(200, busy, in_child, || _ = Buffer::open(name).unwrap().has_channel(1).unwrap());
    all_free(&Buffer::open(name).unwrap());
}

fn fork_while_unlinking(name: &Name) {
    // Whoever has the buffer open needs its control lock afterwards, also when the name is gone.
    let current = Arc::new(Mutex::new(Buffer::open(name).unwrap()));
    let (there, open) = (name.0.clone(), Arc::clone(&current));
    let busy = move || {
        let _ = Buffer::unlink(&there);
        let buffer = Buffer::open(&there).unwrap();
        assert!(!buffer.has_channel(1).unwrap());
        *open.lock().unwrap() = buffer;
    };
    let check = || {
        let buffer = current.lock().unwrap().clone();
        assert_eq!(buffer.has_channel(1), Ok(false));
    };
    fork_meanwhile(300, busy, |_| (), check);
    drop(current);
    let _ = Buffer::unlink(name);
}

fn fork_while_reaping(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reapers: Vec<_> = (0..2)
        .map(|_| {
            let (buffer, stop) = (buffer.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    buffer.reap().unwrap();
                }
            })
        })
        .collect();
    for round in 0..100_u64 {
        let (mut up, mut ready) = pipe().unwrap();
        match fork() {
            Some(child) => {
                drop(ready);
                assert!(hear(&mut up));
                child.kill();
            }
            None => {
                // Dies with records, a role and something queued.
                let anew = Buffer::open(name).unwrap();
                let context = anew.context().unwrap();
                let _kept: Vec<_> = (0..50).map(|i| context.record(i).unwrap()).collect();
                let mut tx = context.producer::<u64>(round.cast_signed()).unwrap();
                tx.send(context.record(round).unwrap()).unwrap();
                tell(&mut ready);
                std::thread::sleep(Duration::from_secs(50));
                end()
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    reapers.into_iter().for_each(|thread| thread.join().unwrap());
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// Descriptors of the segment that this process has, and mappings.
fn handles(name: &Name) -> (usize, usize) {
    let targets = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let descriptors = targets.filter(|target| target.to_string_lossy().contains(&name.0)).count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors, maps.lines().filter(|line| line.contains(&name.0)).count())
}

/// Somebody sits on the control lock, and threads wait for it: to open the buffer, to remove its name, to leave it. No fork waits for
/// that, and the child has nothing of what they wait with.
fn fork_while_others_wait(name: &Name) {
    type Wait = fn(&str, Option<Buffer>);
    let waits: [(&str, Wait); 3] = [
        ("open", |name, _| _ = Buffer::open(name).map(drop)),
        ("unlink", |name, _| _ = Buffer::unlink(name)),
        ("leave", |_, buffer| drop(buffer)),
    ];
    for (what, wait) in waits {
        drop(Buffer::options().persist(true).open(name).unwrap());
        let buffer = (what == "leave").then(|| Buffer::open(name).unwrap());
        let holder = stuck::Holder::new(name);
        let there = name.0.clone();
        let thread = std::thread::spawn(move || wait(&there, buffer));
        holder.until_waited_for();
        let Some(child) = fork() else {
            // The holder's, and the one of a mapping, which carries no lock.
            let (descriptors, mappings) = handles(name);
            assert!(descriptors <= 2 && mappings == 0, "{what}: {descriptors} descriptors, {mappings} mappings");
            // It can wait for the lock itself, and does not have it.
            assert!(Buffer::open(name).is_err(), "{what}");
            end()
        };
        assert!(!thread.is_finished(), "{what}: the fork waited for it");
        child.succeeds();
        drop(holder);
        thread.join().unwrap();
        assert_eq!(handles(name), (0, 0), "{what}");
        let _ = Buffer::unlink(name);
    }
}

fn more_than_the_machine_has(name: &Name) {
    let buffer = Buffer::options().capacity(200 << 30).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut record = ctx.record(1_u64).unwrap();
    let Some(child) = fork() else {
        assert_eq!(*record, 1);
        *record = 2;
        assert_eq!(*record, 2);
        end()
    };
    child.succeeds();
    assert_eq!(*record, 1);
}

/// From here on, private mappings in place of others are refused, as strict overcommit refuses them: those that can be written to, or
/// all that can be accessed.
fn refuse_private_memory(readable_too: bool) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let half = if cfg!(target_endian = "big") { 4 } else { 0 };
    let (load, is, has, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let access = if readable_too { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_WRITE };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let mut filter = [
        step(load, 0, 0, 0),
        step(is, 0, 5, u32::try_from(libc::SYS_mmap).unwrap()),
        step(load, 0, 0, 16 + 2 * 8 + half),
        step(has, 0, 3, access.unsigned_abs()),
        step(load, 0, 0, 16 + 3 * 8 + half),
        step(is, 0, 1, flags.unsigned_abs()),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOMEM.unsigned_abs()),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: sets a flag of this process.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the filter is well-formed and lives for the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }, 0);
}

/// What can't be private is not shared either: it can be seen at most, and its addresses stay taken.
fn where_private_memory_is_refused(name: &Name) {
    let buffer = Buffer::options().capacity(256 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut record = ctx.record(1_u64).unwrap();
    for readable_too in [false, true] {
        refuse_private_memory(readable_too);
        let (mut up, mut ready) = pipe().unwrap();
        let Some(child) = fork() else {
            if !readable_too {
                assert_eq!(*record, 1);
            }
            // What is opened anew lies elsewhere, so that old handles can't mean it.
            let old = std::ptr::from_ref(&*record).addr();
            let anew = Buffer::open(name).unwrap();
            let own = anew.context().unwrap().record(5_u64).unwrap();
            assert!(std::ptr::from_ref(&*own).addr().abs_diff(old) >= 64 << 20);
            std::mem::forget((own, anew));
            tell(&mut ready);
            *record = 2;
            end()
        };
        drop(ready);
        assert!(hear(&mut up));
        assert_eq!(child.wait(), scenarios::Ended::Signal(libc::SIGSEGV));
        assert_eq!(*record, 1);
    }
    drop((record, ctx));
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// A child's child's child, each of which opens the buffer anew, has no more descriptors than the first.
fn generations_keep_no_descriptors(name: &Name) {
    fn next(name: &Name, left: u32, descriptors: usize) {
        let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
        let now = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(descriptors == 0 || now == descriptors, "{now} instead of {descriptors}");
        if left > 0 {
            let Some(child) = fork() else {
                end_after(|| {
                    next(name, left - 1, now);
                    std::mem::forget(buffer);
                });
            };
            child.succeeds();
        }
    }
    next(name, 4, 0);
    let buffer = Buffer::open(name).unwrap();
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// Bytes of the segment's mappings.
fn mapped(name: &Name) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bytes = |line: &str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(to)? - number(from)?)
    };
    maps.lines().filter(|line| line.contains(&name.0)).filter_map(bytes).sum()
}

/// Fifty of them, one inside the other: each opens the buffer, uses it, and forks the next, which drops what it has of it.
fn generations_keep_no_mappings(name: &Name) {
    fn next(name: &Name, left: u64, before: Option<((usize, usize), u64)>) {
        let buffer = Buffer::options().capacity(32 << 20).open(name).unwrap();
        let context = buffer.context().unwrap();
        let id = left.cast_signed();
        let (mut tx, mut rx) = (context.producer::<u64>(id).unwrap(), context.consumer::<u64>(id).unwrap());
        for value in 0..20 {
            tx.send(context.record(value).unwrap()).unwrap();
        }
        let received: Vec<_> = rx.try_recv_batch(10).unwrap();
        let large = context.slice_uninit::<u64>(1000).unwrap().fill_with(|_| left);
        drop(context.record(1_u64).unwrap());
        let now = (handles(name), mapped(name));
        assert!(before.is_none_or(|before| before == now), "{left} left: {before:?}, {now:?}");
        if left > 0 {
            let Some(child) = fork() else {
                assert!(large.iter().all(|word| *word == left) && received.len() == 10);
                match left % 3 {
                    0 => drop((large, received, tx, rx, context, buffer)),
                    1 => drop((buffer, context, rx, tx, received, large)),
                    _ => {
                        std::thread::spawn(move || drop((received, large, buffer))).join().unwrap();
                        drop((rx, tx, context));
                    }
                }
                end_after(|| next(name, left - 1, Some(now)))
            };
            child.succeeds();
        }
    }
    next(name, 50, None);
    let buffer = Buffer::open(name).unwrap();
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// Of all kinds, in any order: as long as one is there it can be read, and then nothing of the segment is mapped any more.
fn the_view_goes_with_the_last_handle(name: &Name) {
    furnish!(name => buffer, context, tx, rx, record, slice);
    // By ways that count: received, sent, freed by another context than made it, by none, from a context that is closed.
    let received = rx.recv().unwrap();
    let mixed: Vec<_> = (0..700_u64).map(|i| context.record(i).unwrap()).collect();
    tx.send(context.record(5).unwrap()).unwrap();
    drop(context.slice_zeroed::<u8>(200_000).unwrap());
    let elsewhere = {
        let (buffer, freed) = (buffer.clone(), mixed);
        let thread = std::thread::spawn(move || {
            let mut freed = freed;
            drop(freed.split_off(500));
            let context = buffer.context().unwrap();
            drop(freed.split_off(300));
            (context.record(77_u64).unwrap(), freed)
        });
        thread.join().unwrap()
    };
    let select = {
        let mut select = Select::new();
        select.recv(&rx);
        select
    };
    type Handle = (&'static str, Box<dyn FnOnce()>);
    let handles = |seed: usize| {
        move |mut all: Vec<Handle>| {
            let turn = seed % all.len();
            all.rotate_left(turn);
            if seed % 2 == 1 {
                all.reverse();
            }
            all
        }
    };
    let address = std::ptr::from_ref(&*record).addr();
    macro_rules! handle {
        ($handle:ident) => {
            (stringify!($handle), Box::new(move || drop($handle)) as Box<dyn FnOnce()>)
        };
    }
    let (mut up, mut ready) = pipe().unwrap();
    for seed in 0..8 {
        let Some(child) = fork() else {
            assert_eq!((*record, *received, *elsewhere.0, slice[299_999]), (7, 0, 77, 299_999));
            let all = vec![
                handle!(buffer),
                handle!(context),
                handle!(tx),
                handle!(rx),
                handle!(record),
                handle!(slice),
                handle!(received),
                handle!(elsewhere),
                handle!(select),
            ];
            let view = mapped(name);
            assert!(view > 1 << 30);
            for (what, handle) in handles(seed)(all) {
                assert_eq!(mapped(name), view, "before {what} is dropped");
                // SAFETY: a view of the segment is mapped there as long as any handle is left.
                assert_eq!(unsafe { (address as *const u64).read_volatile() }, 7);
                handle();
            }
            assert_eq!((mapped(name), self::handles(name)), (0, (0, 0)));
            // The same place may be the next one's.
            let anew = Buffer::open(name).unwrap();
            drop(anew.context().unwrap().record(1_u64).unwrap());
            drop(anew);
            tell(&mut ready);
            end()
        };
        assert!(hear(&mut up));
        child.succeeds();
    }
    assert_eq!((*record, rx.try_iter().count()), (7, 5));
    drop((select, tx, rx, record, slice, received, elsewhere, context));
    all_free(&buffer);
}

/// One view for each generation that has left something: a grandchild that drops it is rid of it.
fn the_view_stays_with_what_is_held(name: &Name) {
    let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
    let context = buffer.context().unwrap();
    let kept = context.record(1_u64).unwrap();
    let one = mapped(name);
    let Some(child) = fork() else {
        drop((context, buffer));
        assert!(mapped(name) > 0 && *kept == 1);
        let view = mapped(name);
        let buffer = Buffer::open(name).unwrap();
        assert_eq!((mapped(name), handles(name).0), (one + view, 2));
        let mine = buffer.context().unwrap().record(2_u64).unwrap();
        std::mem::forget(buffer.context().unwrap().record(3_u64).unwrap());
        let Some(grandchild) = fork() else {
            assert_eq!((mapped(name), *kept, *mine), (2 * view, 1, 2));
            drop(kept);
            assert_eq!((mapped(name), *mine), (view, 2));
            // A record is forgotten, so this one stays.
            drop((mine, buffer));
            assert_eq!(mapped(name), view);
            end()
        };
        grandchild.succeeds();
        drop(kept);
        assert_eq!((mapped(name), *mine), (one, 2));
        end()
    };
    child.succeeds();
    assert_eq!(*kept, 1);
    drop((kept, context));
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// What other threads had is anybody's guess.
fn the_view_stays_with_other_threads(name: &Name) {
    let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
    let (theirs, shared) = (buffer.clone(), Arc::new(Mutex::new(Vec::new())));
    let (mut up, mut ready) = pipe().unwrap();
    let (mut heard, told) = pipe().unwrap();
    let filled = Arc::clone(&shared);
    let thread = std::thread::spawn(move || {
        let context = theirs.context().unwrap();
        filled.lock().unwrap().extend((0..10_u64).map(|i| context.record(i).unwrap()));
        tell(&mut ready);
        let _ = hear(&mut heard);
    });
    assert!(hear(&mut up));
    let Some(child) = fork() else {
        drop(buffer);
        let view = mapped(name);
        let mut records = std::mem::take(&mut *shared.lock().unwrap());
        while let Some(record) = records.pop() {
            assert_eq!(*record, records.len() as u64);
        }
        assert!(view > 0 && mapped(name) == view);
        end()
    };
    child.succeeds();
    drop(told);
    thread.join().unwrap();
    shared.lock().unwrap().clear();
    all_free(&buffer);
}
