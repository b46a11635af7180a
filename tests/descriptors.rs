//! Descriptors belong to the whole process: closed by others, used again by others, or 0 to 2 to begin with.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // close, close_range, fork

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Name, all_free, sound};
use ipc_buffer::{AttachError, Buffer, BufferError, Reaped};
use scenarios::{Child, Scenario, end, fork, hear, tell};
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, pipe};
use std::mem::forget;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("closing_all_of_them_keeps_the_lease", closing_all_of_them_keeps_the_lease),
    ("a_number_used_again_is_left_alone", a_number_used_again_is_left_alone),
    ("a_number_used_again_is_left_alone_by_old_kernels", a_number_used_again_is_left_alone_by_old_kernels),
    ("without_a_name_nothing_can_be_locked", without_a_name_nothing_can_be_locked),
    ("a_fork_after_all_are_closed", a_fork_after_all_are_closed),
    ("one_of_them_leads_to_the_same_file", one_of_them_leads_to_the_same_file),
    ("none_is_stdio", none_is_stdio),
    ("few_are_kept_and_none_is_leaked", few_are_kept_and_none_is_leaked),
];

fn main() {
    scenarios::main("descriptors", SCENARIOS)
}

/// Numbers of this process that lead to the segment.
fn numbers(name: &Name) -> Vec<i32> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        target.to_str()?.starts_with(&name.path()).then_some(fd)
    });
    entries.collect()
}

/// closefrom(3), but for what a scenario talks through.
fn close_all_but(kept: &[i32]) {
    for fd in (3..256).filter(|fd| !kept.contains(fd)) {
        unsafe { libc::close(fd) };
    }
}

/// A file without a name, full of sevens.
fn foreign() -> File {
    let file = unsafe { File::from(OwnedFd::from_raw_fd(libc::memfd_create(c"foreign".as_ptr(), 0))) };
    file.write_all_at(&[7; 300_000], 0).unwrap();
    file
}

#[track_caller]
fn is_untouched(file: &File) {
    let mut content = vec![0; 300_000];
    assert_eq!(file.metadata().expect("it is open still").len(), 300_000);
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == 7));
}

/// Whether memory is asked for by address here: with `MADV_POPULATE_WRITE`, which Linux has since 5.14.
fn populates() -> bool {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    let is_known = unsafe { libc::madvise(page, 4096, libc::MADV_POPULATE_WRITE) } == 0;
    unsafe { libc::munmap(page, 4096) };
    is_known && std::env::var_os("IPC_BUFFER_NO_POPULATE").is_none()
}

const RECORDS: u64 = 1000;

/// A process that has records, closes all descriptors, and then tells, and checks that they are what they were when it is told.
fn careless(name: &Name) -> (Child, PipeReader, PipeWriter) {
    let (mut told, says) = pipe().unwrap();
    let (hears, mut tells) = pipe().unwrap();
    let Some(child) = fork() else {
        drop((says, hears));
        let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let mut kept: Vec<_> = (0..RECORDS).map(|i| ctx.record([i; 6]).unwrap()).collect();
        close_all_but(&[told.as_raw_fd(), tells.as_raw_fd()]);
        tell(&mut tells);
        assert!(hear(&mut told));
        assert!((0..).zip(&kept).all(|(i, record)| **record == [i; 6]));
        kept.iter_mut().for_each(|record| **record = [u64::MAX; 6]);
        tell(&mut tells);
        assert!(hear(&mut told));
        drop(kept);
        drop(ctx);
        drop(buffer);
        end()
    };
    drop((told, tells));
    (child, hears, says)
}

fn closing_all_of_them_keeps_the_lease(name: &Name) {
    let (child, mut hears, mut says) = careless(name);
    assert!(hear(&mut hears));
    let buffer = Buffer::options().must_exist(true).open(name).unwrap();
    assert_eq!(buffer.reap().unwrap(), Reaped::default());
    let owned = sound(&buffer).owned;
    assert!(owned.iter().any(|owned| owned.is_alive && owned.records == RECORDS), "{owned:?}");
    let ctx = buffer.context().unwrap();
    let mine: Vec<_> = (0..2 * RECORDS).map(|_| ctx.record([5_u64; 6]).unwrap()).collect();
    tell(&mut says);
    assert!(hear(&mut hears));
    assert!(mine.iter().all(|record| **record == [5; 6]));
    tell(&mut says);
    child.succeeds();
    drop((mine, ctx));
    // It has left in good order: by its name it could open the buffer again.
    assert_eq!(buffer.reap().unwrap(), Reaped::default());
    all_free(&buffer);
    drop(buffer);

    // And killed, it is dead.
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    let (child, mut hears, says) = careless(name);
    assert!(hear(&mut hears));
    assert_eq!(buffer.reap().unwrap(), Reaped::default());
    child.kill();
    let reaped = buffer.reap().unwrap();
    assert_eq!((reaped.processes, reaped.records), (1, RECORDS));
    all_free(&buffer);
    drop(says);
}

fn a_number_used_again_is_left_alone(name: &Name) {
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    drop(ctx.slice_zeroed::<u8>(8 << 20).unwrap());
    close_all_but(&[]);
    let others: Vec<File> = (0..8).map(|_| foreign()).collect();
    assert!(numbers(name).is_empty());
    let memory = || fs::metadata(name.path()).map(|facts| std::os::unix::fs::MetadataExt::blocks(&facts)).unwrap_or(0);
    let before = memory();
    let populates = populates();
    assert!(buffer.trim().unwrap() >= 8 << 20);
    assert!(memory() < before);
    assert_eq!(ctx.slice_zeroed::<u8>(40 << 20).is_ok(), populates, "old kernels need the descriptor");
    assert!(buffer.channels().unwrap().is_empty());
    assert_eq!(ctx.producer::<u64>(1).is_ok(), populates);
    buffer.trim().unwrap();
    all_free_but_cached(&buffer);
    drop(ctx);
    all_free(&buffer);
    drop(buffer);
    others.iter().for_each(is_untouched);
    assert!(numbers(name).is_empty() && !name.exists());
}

fn all_free_but_cached(buffer: &Buffer) {
    let audit = sound(buffer);
    assert!(audit.owned.is_empty() && audit.queued.is_empty(), "{audit:#?}");
}

/// Where memory can't be asked for by address, it is asked for by descriptor, or not at all.
fn a_number_used_again_is_left_alone_by_old_kernels(name: &Name) {
    unsafe { std::env::set_var("IPC_BUFFER_NO_POPULATE", "1") };
    a_number_used_again_is_left_alone(name);
    // As long as the descriptors are there, all is well.
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    assert!(buffer.context().unwrap().slice_zeroed::<u8>(40 << 20).is_ok());
    assert!(buffer.trim().unwrap() >= 40 << 20);
}

fn without_a_name_nothing_can_be_locked(name: &Name) {
    let observer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    let (mut hears, mut tells) = pipe().unwrap();
    let Some(child) = fork() else {
        let buffer = Buffer::open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let mut tx = ctx.value_producer::<u64>(1).unwrap();
        let mut rx = ctx.value_consumer::<u64>(1).unwrap();
        let kept = ctx.record(8_u64).unwrap();
        Buffer::unlink(name).unwrap();
        close_all_but(&[tells.as_raw_fd()]);
        let others: Vec<File> = (0..8).map(|_| foreign()).collect();
        // What needs no lock goes on.
        tx.send(6).unwrap();
        assert_eq!((rx.recv().unwrap(), *kept), (6, 8));
        assert_eq!(ctx.slice_zeroed::<u8>(20 << 20).is_ok(), populates(), "old kernels need the descriptor");
        // What needs one says why it can't be had.
        assert_eq!(ctx.producer::<u64>(2).unwrap_err(), AttachError::NoDescriptor);
        assert_eq!(buffer.channels().unwrap_err(), BufferError::NoDescriptor);
        assert_eq!(buffer.trim().unwrap_err(), BufferError::NoDescriptor);
        // Nobody is judged dead.
        assert_eq!(buffer.reap().unwrap(), Reaped::default());
        tell(&mut tells);
        drop((rx, tx, kept, ctx));
        drop(buffer);
        others.iter().for_each(is_untouched);
        end()
    };
    drop(tells);
    assert!(hear(&mut hears));
    child.succeeds();
    // What it could not give back is given back now.
    observer.reap().unwrap();
    all_free(&observer);
}

fn a_fork_after_all_are_closed(name: &Name) {
    let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut record = ctx.record(1_u64).unwrap();
    close_all_but(&[]);
    let other = foreign();
    let Some(child) = fork() else {
        // By its name.
        assert_eq!(*record, 1);
        *record = 2;
        assert_eq!(buffer.channels().unwrap_err(), BufferError::Forked);
        is_untouched(&other);
        end()
    };
    child.succeeds();
    assert_eq!(*record, 1);
}

/// Another description of the same file, under the numbers of ours.
fn one_of_them_leads_to_the_same_file(name: &Name) {
    let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    for fd in numbers(name) {
        let other = File::options().read(true).write(true).open(name.path()).unwrap();
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
    }
    for id in 0..3 {
        drop(ctx.producer::<u64>(id).unwrap());
    }
    let Some(child) = fork() else {
        let buffer = Buffer::open(name).unwrap();
        assert!(buffer.channels().unwrap().is_empty(), "the lock can be had");
        assert_eq!(buffer.reap().unwrap(), Reaped::default());
        forget(buffer);
        end()
    };
    child.succeeds();
    drop((ctx, buffer));
    assert!(!name.exists());
}

fn none_is_stdio(name: &Name) {
    for closed in [&[0][..], &[1], &[2], &[0, 1], &[0, 1, 2]] {
        let Some(child) = fork() else {
            // The harness reads this child's status only.
            closed.iter().for_each(|fd| assert_eq!(unsafe { libc::close(*fd) }, 0));
            let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
            let is_open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
            let ok = numbers(name).iter().all(|fd| *fd > 2)
                && closed.iter().all(|fd| !is_open(*fd))
                && buffer.context().unwrap().slice_zeroed::<u8>(100_000).is_ok();
            // What somebody prints goes nowhere.
            let _ = unsafe { libc::write(2, b"spoiled".as_ptr().cast(), if closed.contains(&2) { 7 } else { 0 }) };
            let sound = buffer.audit().is_ok_and(|audit| audit.is_sound());
            drop(buffer);
            scenarios::quit(i32::from(!(ok && sound && numbers(name).is_empty() && !name.exists())))
        };
        child.succeeds();
    }
}

fn few_are_kept_and_none_is_leaked(name: &Name) {
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for _ in 0..20 {
        let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
        assert_eq!((count(), numbers(name).len()), (before + 2, 2));
        assert!(Buffer::options().capacity(2 << 20).open(name).is_err());
        assert!(Buffer::options().create_new(true).open(name).is_err());
        drop(buffer);
        assert!(Buffer::options().must_exist(true).open(name).is_err());
        assert_eq!(count(), before);
    }
    // A file of another kind is looked at, and closed again.
    fs::write(name.path(), "something else").unwrap();
    assert!(Buffer::open(name).is_err() && Buffer::unlink(name).is_err());
    assert_eq!(count(), before);
    fs::remove_file(name.path()).unwrap();
}
