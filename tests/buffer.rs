//! Buffers: names, capacities, opening and closing, what else may lie under the name, and bad days.
//!
//! Other processes are this binary, started anew ([`peer_process`]), and obey commands line by line.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // system calls that only tests need: umask, setuid, mount, byte locks

mod common;
#[path = "common/peer.rs"]
mod peer;

use common::{Name, all_free, sound, watchdog};
use ipc_buffer::{
    AllocError, AttachError, Buffer, BufferError, BufferOptions, Channel, ChannelOptions, Consumer, Error, OpenError,
    Producer, RecvTimeoutError, ThreadContext,
};
use peer::{Peer, listen, tell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

const UNIT: u64 = 64 << 10;
const MIN: u64 = 256 << 10;
const MAX: u64 = 224 << 30;
const NOBODY: u32 = 65534;

// ---------------------------------------------------------------------------------------------------- other processes

/// What a peer has open.
#[derive(Default)]
struct Shell {
    records: Vec<ipc_buffer::Record<u64>>,
    producers: HashMap<i64, Channel<u64, Producer>>,
    consumers: HashMap<i64, Channel<u64, Consumer>>,
    context: Option<ThreadContext>,
    buffer: Option<Buffer>,
}

impl Shell {
    fn obey(&mut self, name: &str, line: &str) -> Result<String, Error> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<i64>().unwrap();
        match words[0] {
            "open" => {
                let buffer = options(&words[1..]).open(name)?;
                self.context = Some(buffer.context()?);
                self.buffer = Some(buffer);
            }
            // The clock is the same in every process: who is told the same time opens at the same time.
            "open-at" => {
                while now_ns() < number(1).cast_unsigned() {
                    std::hint::spin_loop();
                }
                let buffer = common::open_patiently(&Buffer::options(), name);
                self.context = Some(buffer.context()?);
                self.buffer = Some(buffer);
            }
            "close" => *self = Self::default(),
            "producer" => {
                let context = self.context.as_ref().unwrap();
                self.producers.insert(number(1), context.producer(number(1))?);
            }
            "consumer" => {
                let context = self.context.as_ref().unwrap();
                self.consumers.insert(number(1), context.consumer(number(1))?);
            }
            "send" => {
                let record = self.context.as_ref().unwrap().record(number(2).cast_unsigned())?;
                self.producers.get_mut(&number(1)).unwrap().send(record)?;
            }
            "recv" => {
                let record = self.consumers.get_mut(&number(1)).unwrap().recv_timeout(Duration::from_secs(30))?;
                return Ok(record.to_string());
            }
            "keep" => {
                let records = (0..number(1)).map(|i| self.context.as_ref().unwrap().record(i.cast_unsigned()));
                self.records = records.collect::<Result<_, AllocError>>()?;
            }
            "leave" => {
                self.producers.remove(&number(1));
                self.consumers.remove(&number(1));
            }
            "remove" => {
                return Ok(self.buffer.as_ref().unwrap().remove_channel(number(1))?.to_string());
            }
            "has" => {
                return Ok(self.buffer.as_ref().unwrap().has_channel(number(1))?.to_string());
            }
            "unlink" => Buffer::unlink(name)?,
            "umask" => {
                // SAFETY: sets a number of this process.
                unsafe { libc::umask(u32::from_str_radix(words[1], 8).unwrap()) };
            }
            "become-nobody" => {
                // SAFETY: changes who this process acts as.
                assert_eq!(unsafe { libc::setgid(NOBODY) }, 0);
                // SAFETY: as above.
                assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
            }
            "mount" => mount_shm(words[1]).unwrap(),
            "sweep" => sweep_a_full_shm(name),
            "fill" => fill_and_go_on(name),
            "churn" => loop {
                let buffer = Buffer::open(name)?;
                let context = buffer.context()?;
                drop(context.slice_zeroed::<u8>(5000)?);
                let _tx = context.producer::<u64>(1)?;
            },
            other => panic!("no such command: {other}"),
        }
        Ok("ok".into())
    }
}

fn options(words: &[&str]) -> BufferOptions {
    words.iter().fold(Buffer::options(), |options, word| match word.split_once('=') {
        Some(("capacity", bytes)) => options.capacity(bytes.parse().unwrap()),
        Some(("mode", bits)) => options.mode(u32::from_str_radix(bits, 8).unwrap()),
        _ if *word == "create_new" => options.create_new(true),
        _ if *word == "must_exist" => options.must_exist(true),
        _ if *word == "persist" => options.persist(true),
        _ => panic!("no such option: {word}"),
    })
}

/// Not a test: what the other processes of the tests here run.
#[test]
fn peer_process() {
    let Some((_, name)) = common::role() else {
        return;
    };
    let _watchdog = watchdog();
    let mut shell = Shell::default();
    while let Some(line) = listen() {
        match shell.obey(&name, &line) {
            Ok(answer) => tell(answer),
            Err(error) => tell(format!("error: {error}")),
        }
    }
}

fn start(name: &str) -> Peer {
    Peer::start("peer_process", "peer", name)
}

fn now_ns() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The message must name each of the facts.
#[track_caller]
fn says(error: &dyn std::error::Error, facts: &[&dyn std::fmt::Display]) {
    let text = error.to_string();
    for fact in facts {
        assert!(text.contains(&fact.to_string()), "{text:?} does not say {fact}");
    }
}

/// Refused as no buffer, for a reason that contains `why`, by `open` and by `unlink`.
#[track_caller]
fn is_no_segment(name: &Name, why: &str) {
    for error in [Buffer::open(name).unwrap_err(), Buffer::options().must_exist(true).open(name).unwrap_err()] {
        assert!(matches!(&error, OpenError::NotASegment { name: n, .. } if *n == name.0), "{error:?}");
        says(&error, &[&name.path(), &why]);
    }
    let error = Buffer::unlink(name).unwrap_err();
    assert!(matches!(error, OpenError::NotASegment { .. }), "{error:?}");
    assert!(name.exists(), "it is left alone");
    assert_eq!(open_descriptors(name), 0, "nothing is left open");
    assert_eq!(mappings(name), 0);
}

/// Mappings of the segment in this process that can be accessed; the others keep locks.
fn mappings(name: &Name) -> usize {
    let is_ours = |line: &&str| line.contains(&name.path()) && line.contains(" rw-s ");
    fs::read_to_string("/proc/self/maps").unwrap().lines().filter(is_ours).count()
}

/// Descriptors of the segment in this process.
fn open_descriptors(name: &Name) -> usize {
    let targets = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with(&name.path())).count()
}

/// A segment that nobody has open, of this capacity.
fn make_segment(name: &Name, capacity: u64) {
    drop(Buffer::options().capacity(capacity).persist(true).open(name).unwrap());
    assert!(name.exists());
}

/// Writes word `index` of the file.
fn poke(name: &Name, index: u64, word: u64) {
    let file = File::options().write(true).open(name.path()).unwrap();
    file.write_all_at(&word.to_ne_bytes(), index * 8).unwrap();
}

/// The buffer works in this process: records and a channel, and everything comes back.
fn works(buffer: &Buffer) {
    let context = buffer.context().unwrap();
    let mut tx = context.producer::<[u8]>(-1).unwrap();
    let mut rx = context.consumer::<[u8]>(-1).unwrap();
    for len in [0, 1, 100, 5000, 70_000] {
        tx.send(context.slice_from(&vec![7; len]).unwrap()).unwrap();
        assert_eq!(&*rx.recv().unwrap(), vec![7; len]);
    }
    drop((tx, rx));
    all_free(buffer);
}

// -------------------------------------------------------------------------------------------------------------- names

#[test]
fn names_that_are_none() {
    let before = fs::read_dir("/dev").unwrap().count();
    for (name, why) in [
        ("", "empty"),
        (".", "directory"),
        ("..", "directory"),
        ("a/b", "slash"),
        ("/abs", "slash"),
        ("../ipc-buffer-test-escape", "slash"),
        ("a\0b", "NUL"),
        ("\0", "NUL"),
        (&"x".repeat(201), "longer than 200"),
        (&"\u{1F980}".repeat(51), "longer than 200"),
    ] {
        let created = Buffer::options().create_new(true).capacity(1).open(name);
        for error in [Buffer::open(name).unwrap_err(), created.unwrap_err(), Buffer::unlink(name).unwrap_err()] {
            assert!(matches!(error, OpenError::InvalidName { .. }), "{name:?}: {error:?}");
            let start: String = name.chars().take(40).collect();
            says(&error, &[&format!("{start:?}"), &why]);
            assert!(error.to_string().len() < 400, "a long name is shortened");
        }
    }
    assert!(!Path::new("/dev/ipc-buffer-test-escape").exists());
    assert_eq!(fs::read_dir("/dev").unwrap().count(), before);
}

#[test]
fn names_that_are_odd() {
    let guard = Name::new("odd");
    let longest = Name(format!("{}-{}", guard.0, "x".repeat(199 - guard.len())));
    assert_eq!(longest.len(), 200);
    for tail in ["...", " with spaces\tand\nlines", "\u{1F980}", "-%s%n", "*?"] {
        let name = Name(format!("{}{tail}", guard.0));
        let buffer = Buffer::open(&name).unwrap();
        assert!(name.exists() && buffer.name() == name.0);
        works(&buffer);
        drop(buffer);
        assert!(!name.exists());
    }
    let hidden = Name(format!(".{}", guard.0));
    works(&Buffer::open(&hidden).unwrap());
    works(&Buffer::open(&longest).unwrap());
    assert!(!longest.exists() && !hidden.exists());
}

#[test]
fn names_from_paths() {
    let directory = Name::new("from-path");
    fs::create_dir(directory.path()).unwrap();
    let name = Name(ipc_buffer::name_from_path(directory.path(), 3).unwrap());
    assert_eq!(*name, *ipc_buffer::name_from_path(format!("/dev/../dev/shm/./{}/", directory.0), 3).unwrap());
    assert_ne!(*name, *ipc_buffer::name_from_path(directory.path(), 4).unwrap());
    works(&Buffer::open(&name).unwrap());
    let missing = ipc_buffer::name_from_path(format!("{}/missing", directory.path()), 3).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

// ----------------------------------------------------------------------------------------------------------- capacity

#[test]
fn capacities_that_are_none() {
    let name = Name::new("capacity");
    for capacity in [0, 1, MIN - 1, MAX + 1, u64::MAX] {
        let error = Buffer::options().capacity(capacity).open(&name).unwrap_err();
        let OpenError::CapacityOutOfRange { capacity: asked, min, max } = error else { panic!("{error:?}") };
        assert_eq!((asked, min, max), (capacity, MIN, MAX));
        says(&error, &[&capacity, &MIN, &MAX]);
        assert!(!name.exists(), "nothing is created");
    }
    // Not in a process that has it open, either, and nothing changes for who has.
    let buffer = Buffer::open(&name).unwrap();
    for capacity in [0, u64::MAX] {
        let error = Buffer::options().capacity(capacity).open(&name).unwrap_err();
        assert!(matches!(error, OpenError::CapacityOutOfRange { .. }), "{error:?}");
    }
    works(&buffer);
}

#[test]
fn capacities_from_the_smallest_to_the_largest() {
    let name = Name::new("capacities");
    for (asked, given) in [(MIN, MIN), (MIN + 1, MIN + UNIT), (10 << 20, 10 << 20), (MAX - 1, MAX), (MAX, MAX)] {
        let buffer = match Buffer::options().capacity(asked).create_new(true).open(&name) {
            // 224 GiB of address space: a ulimit may be in the way.
            Err(OpenError::NoSpace { .. }) if asked > 1 << 30 => continue,
            other => other.unwrap(),
        };
        assert_eq!(buffer.capacity(), given);
        assert_eq!(sound(&buffer).capacity_bytes, given);
        works(&buffer);
        let resident = fs::metadata(name.path()).unwrap().blocks() * 512;
        assert!(resident < 4 << 20, "a buffer of {given} bytes takes {resident} when hardly used");
        drop(buffer);
        assert!(!name.exists());
    }
    assert_eq!(Buffer::open(&name).unwrap().capacity(), 1 << 30, "the default");
}

#[test]
fn another_capacity() {
    let _watchdog = watchdog();
    let name = Name::new("other-capacity");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    // Asked for within the last unit it is the same capacity.
    drop(Buffer::options().capacity((1 << 20) - 5).open(&name).unwrap());
    for asked in [MIN, (2 << 20) - 5, MAX] {
        let error = Buffer::options().capacity(asked).open(&name).unwrap_err();
        let rounded = asked.next_multiple_of(UNIT);
        says(&error, &[&name.0, &rounded, &(1 << 20)]);
        assert!(matches!(error, OpenError::CapacityMismatch { .. }), "{error:?}");
        // The same words from a process that has it not open.
        let mut other = start(&name);
        assert_eq!(other.ask(&format!("open capacity={asked}")), format!("error: {error}"));
        other.does("open capacity=1048576");
        other.ends();
    }
    works(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

// ------------------------------------------------------------------------------------------------ opening and closing

#[test]
fn create_new_wants_to_be_the_first() {
    let _watchdog = watchdog();
    let name = Name::new("create-new");
    let new = || Buffer::options().create_new(true).open(&name);
    let mut other = start(&name);
    for _ in 0..3 {
        let buffer = new().unwrap();
        let error = new().unwrap_err();
        assert!(matches!(error, OpenError::AlreadyExists { .. }), "{error:?}");
        says(&error, &[&name.0, &"create_new", &"Buffer::unlink"]);
        assert_eq!(other.ask("open create_new"), format!("error: {error}"));
        works(&buffer);
        drop(buffer);
        other.does("open create_new");
        assert!(matches!(new().unwrap_err(), OpenError::AlreadyExists { .. }));
        other.does("close");
        assert!(!name.exists());
    }
    other.ends();
}

#[test]
fn must_exist_creates_nothing() {
    let _watchdog = watchdog();
    let name = Name::new("must-exist");
    let old = || Buffer::options().must_exist(true).open(&name);
    let error = old().unwrap_err();
    assert!(matches!(error, OpenError::NotFound { .. }), "{error:?}");
    says(&error, &[&name.0, &"must_exist"]);
    assert!(!name.exists());
    let mut other = start(&name);
    other.does("open");
    let buffer = old().unwrap();
    drop(old().unwrap());
    other.does("close");
    works(&buffer);
    drop(buffer);
    assert!(matches!(old().unwrap_err(), OpenError::NotFound { .. }));
    other.ends();
}

#[test]
fn the_last_process_removes_the_segment() {
    let _watchdog = watchdog();
    let name = Name::new("last");
    let mut other = start(&name);
    // Whichever leaves first.
    let buffer = Buffer::open(&name).unwrap();
    other.does("open");
    drop(buffer);
    assert!(name.exists());
    assert_eq!((mappings(&name), open_descriptors(&name)), (0, 0), "but this process is out");
    other.does("close");
    assert!(!name.exists());
    other.does("open");
    let buffer = Buffer::open(&name).unwrap();
    other.does("close");
    all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
    // The end of a process closes nothing by itself: the next one to leave finds it dead.
    other.does("open");
    other.does("keep 10");
    let buffer = Buffer::open(&name).unwrap();
    other.process.kill();
    drop(buffer);
    assert!(!name.exists());
}

#[test]
fn contexts_and_records_keep_the_process_attached() {
    let name = Name::new("keep");
    let buffer = Buffer::open(&name).unwrap();
    let context = buffer.context().unwrap();
    drop(buffer);
    let record = context.record(5_u64).unwrap();
    drop(context);
    assert!(name.exists() && *record == 5);
    let mut again = Buffer::options().must_exist(true).open(&name).unwrap();
    assert_eq!((mappings(&name), sound(&again).owned.len()), (1, 1));
    let second = again.context().unwrap().record(6_u64).unwrap();
    again = again.clone();
    drop(again);
    std::thread::spawn(move || drop(record)).join().unwrap();
    assert!(name.exists() && *second == 6);
    drop(second);
    assert!(!name.exists());
    assert_eq!((mappings(&name), open_descriptors(&name)), (0, 0));
}

#[test]
fn persistent_segments_stay() {
    let _watchdog = watchdog();
    let name = Name::new("persist");
    let mut other = start(&name);
    assert!(!Buffer::open(&name).unwrap().is_persistent());
    assert!(!name.exists());
    // Sticky: one who wants it is enough, though the others don't ask for it.
    let buffer = Buffer::open(&name).unwrap();
    other.does("open persist");
    assert!(buffer.is_persistent());
    other.does("close");
    let context = buffer.context().unwrap();
    let mut tx = context.producer_with::<u64>(9, &ChannelOptions::new().persistent(true)).unwrap();
    tx.send(context.record(81).unwrap()).unwrap();
    drop((tx, context, buffer));
    assert!(name.exists());
    // What a persistent channel held is there for the next one.
    other.does("open must_exist");
    other.does("consumer 9");
    assert_eq!(other.ask("recv 9"), "81");
    assert_eq!(other.ask("remove 9"), "true");
    other.does("close");
    assert!(name.exists());
    let buffer = Buffer::open(&name).unwrap();
    all_free(&buffer);
    drop(buffer);
    Buffer::unlink(&name).unwrap();
    assert!(!name.exists());
    other.ends();
}

#[test]
fn unlinking_leaves_who_has_it_open() {
    let _watchdog = watchdog();
    let name = Name::new("unlink");
    let error = Buffer::unlink(&name).unwrap_err();
    assert!(matches!(error, OpenError::NotFound { .. }), "{error:?}");
    says(&error, &[&name.0]);
    let old = Buffer::open(&name).unwrap();
    let mut other = start(&name);
    other.does("open");
    other.does("unlink");
    assert!(!name.exists());
    // The old one goes on between the two.
    let mut rx = old.context().unwrap().consumer::<u64>(1).unwrap();
    assert!(matches!(rx.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Recv(_))), "its context is gone");
    let old_context = old.context().unwrap();
    let mut rx = old_context.consumer::<u64>(1).unwrap();
    other.does("producer 1");
    other.does("send 1 17");
    assert_eq!(*rx.recv().unwrap(), 17);
    // The name leads to a new one; both are mapped.
    let new = Buffer::options().create_new(true).open(&name).unwrap();
    assert!(!new.has_channel(1).unwrap() && old.has_channel(1).unwrap());
    let foreign = new.context().unwrap().record(1_u64).unwrap();
    let mut tx = old_context.producer::<u64>(2).unwrap();
    assert!(matches!(tx.try_send(foreign), Err(ipc_buffer::TrySendError::ForeignRecord(_))));
    works(&new);
    // Leaving the old one must not take the new one's name away.
    other.does("close");
    drop((tx, rx, old_context));
    all_free(&old);
    drop(old);
    assert!(name.exists());
    assert_eq!(mappings(&name), 1);
    other.does("open must_exist");
    other.ends();
    drop(new);
    assert!(!name.exists());
}

#[test]
fn a_name_removed_by_hand() {
    let _watchdog = watchdog();
    let name = Name::new("rm");
    let buffer = Buffer::open(&name).unwrap();
    fs::remove_file(name.path()).unwrap();
    works(&buffer);
    assert!(matches!(Buffer::unlink(&name).unwrap_err(), OpenError::NotFound { .. }));
    let mut other = start(&name);
    assert!(other.ask("open must_exist").contains("no buffer"));
    // What somebody puts there meanwhile is not ours to remove.
    fs::write(name.path(), "theirs").unwrap();
    drop(buffer);
    assert_eq!(fs::read_to_string(name.path()).unwrap(), "theirs");
    fs::remove_file(name.path()).unwrap();
    // Moved away and back, it is the same again.
    let buffer = Buffer::open(&name).unwrap();
    let aside = Name::new("rm-aside");
    fs::rename(name.path(), aside.path()).unwrap();
    assert!(matches!(Buffer::options().must_exist(true).open(&name), Err(OpenError::NotFound { .. })));
    fs::rename(aside.path(), name.path()).unwrap();
    other.does("open must_exist");
    other.ends();
    drop(buffer);
    assert!(!name.exists());
}

#[test]
fn one_mapping_a_process() {
    let name = Name::new("one-mapping");
    let first = Buffer::open(&name).unwrap();
    let descriptors = open_descriptors(&name);
    assert_eq!(mappings(&name), 1);
    let more: Vec<Buffer> = (0..50).map(|_| Buffer::open(&name).unwrap()).chain([first.clone()]).collect();
    assert_eq!((mappings(&name), open_descriptors(&name)), (1, descriptors));
    drop(first);
    let context = more[7].context().unwrap();
    let record = more[8].context().unwrap().record(1_u64).unwrap();
    context.producer::<u64>(1).unwrap().send(record).unwrap();
    drop(context);
    works(&more[9]);
    drop(more);
    assert_eq!((mappings(&name), open_descriptors(&name)), (0, 0));
    assert!(!name.exists());
}

#[test]
fn threads_open_and_close_at_once() {
    let _watchdog = watchdog();
    let name = Name::new("threads");
    const THREADS: usize = 4;
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..100 {
                    barrier.wait();
                    let buffer = Buffer::open(&name).unwrap();
                    let record = buffer.context().unwrap().record(3_u64).unwrap();
                    barrier.wait();
                    assert_eq!((mappings(&name), buffer.audit().unwrap().owned[0].records), (1, THREADS as u64));
                    barrier.wait();
                    drop(buffer);
                    drop(record);
                }
            });
        }
    });
    assert_eq!((mappings(&name), open_descriptors(&name), name.exists()), (0, 0, false));
}

#[test]
fn the_mode_is_what_was_asked_for() {
    let _watchdog = watchdog();
    let name = Name::new("mode");
    let bits = || fs::metadata(name.path()).unwrap().permissions().mode() & 0o7777;
    let mut other = start(&name);
    for umask in ["077", "022", "0"] {
        other.does(&format!("umask {umask}"));
        for (asked, got) in [("", 0o600), (" mode=660", 0o660), (" mode=666", 0o666), (" mode=7640", 0o640)] {
            other.does(&format!("open{asked}"));
            assert_eq!(bits(), got, "umask {umask}, {asked}");
            // It counts for who creates.
            drop(Buffer::options().mode(0o606).open(&name).unwrap());
            assert_eq!(bits(), got);
            other.does("close");
            assert!(!name.exists());
        }
    }
    other.ends();
}

// ---------------------------------------------------------------------------------------- what else may have the name

#[test]
fn another_format_version() {
    let name = Name::new("version");
    make_segment(&name, 1 << 20);
    poke(&name, 1, 77);
    let error = Buffer::open(&name).unwrap_err();
    let OpenError::VersionMismatch { found, ours, .. } = error else { panic!("{error:?}") };
    assert_eq!((found, ours), (77, 2));
    says(&error, &[&name.0, &77, &2, &"one release"]);
    // The file of another release may have any size and layout.
    File::options().write(true).open(name.path()).unwrap().set_len(5000).unwrap();
    assert!(matches!(Buffer::open(&name).unwrap_err(), OpenError::VersionMismatch { .. }));
    assert_eq!(open_descriptors(&name), 0);
    poke(&name, 1, 2);
    assert!(matches!(Buffer::open(&name).unwrap_err(), OpenError::Truncated { .. }));
    // It has our magic, so it is ours to remove when asked.
    Buffer::unlink(&name).unwrap();
    assert!(!name.exists());
}

#[test]
fn another_layout() {
    let name = Name::new("layout");
    make_segment(&name, 1 << 20);
    poke(&name, 2, 12345);
    let error = Buffer::open(&name).unwrap_err();
    assert!(matches!(error, OpenError::NotASegment { .. }), "{error:?}");
    says(&error, &[&name.path(), &"layout"]);
    Buffer::unlink(&name).unwrap();
}

#[test]
fn truncated_and_extended() {
    let name = Name::new("truncated");
    make_segment(&name, 1 << 20);
    let whole = fs::metadata(name.path()).unwrap().len();
    let file = File::options().write(true).open(name.path()).unwrap();
    for size in [whole + 1, whole + 4096, whole + UNIT, whole - 1, whole - 4096, whole - UNIT, 4096, 4095, 64] {
        file.set_len(size).unwrap();
        let error = Buffer::open(&name).unwrap_err();
        let OpenError::Truncated { size: found, expected, .. } = error else { panic!("{size}: {error:?}") };
        assert_eq!((found, expected), (size, whole));
        says(&error, &[&name.0, &size, &whole, &"Buffer::unlink"]);
    }
    // What is left of the magic.
    for size in [8, 7, 1] {
        file.set_len(size).unwrap();
        let error = Buffer::open(&name).unwrap_err();
        assert!(
            matches!(error, OpenError::NotASegment { .. } | OpenError::VersionMismatch { .. }),
            "{size}: {error:?}"
        );
        assert_eq!(fs::metadata(name.path()).unwrap().len(), size, "left alone");
    }
    assert_eq!((mappings(&name), open_descriptors(&name)), (0, 1), "the one is this test's");
    file.set_len(0).unwrap();
    works(&Buffer::open(&name).unwrap());
    assert!(!name.exists());
}

#[test]
fn a_header_that_lies_about_the_capacity() {
    let name = Name::new("lies");
    make_segment(&name, 1 << 20);
    for capacity in [0, 1, MIN - 1, MAX + 1, u64::MAX] {
        poke(&name, 3, capacity);
        let error = Buffer::open(&name).unwrap_err();
        assert!(matches!(error, OpenError::NotASegment { .. }), "{capacity}: {error:?}");
        says(&error, &[&"impossible capacity"]);
    }
    for capacity in [MIN, 2 << 20, MAX] {
        poke(&name, 3, capacity);
        let error = Buffer::open(&name).unwrap_err();
        assert!(matches!(error, OpenError::Truncated { .. }), "{capacity}: {error:?}");
    }
    poke(&name, 3, 1 << 20);
    works(&Buffer::open(&name).unwrap());
    Buffer::unlink(&name).unwrap();
}

#[test]
fn foreign_files_are_left_alone() {
    let name = Name::new("foreign");
    let mut noise = 1_u64;
    let noise: Vec<u8> = (0..20_000)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_be_bytes()[0]
        })
        .collect();
    for content in
        [&b"x"[..], b"1234567", b"#!/bin/sh\necho a program\n", &[0xff; 4096], &noise, &[0, 0, 0, 0, 0, 0, 0, 1]]
    {
        fs::write(name.path(), content).unwrap();
        is_no_segment(&name, "magic number");
        assert_eq!(fs::read(name.path()).unwrap(), content);
        assert!(matches!(Buffer::options().create_new(true).open(&name), Err(OpenError::AlreadyExists { .. })));
    }
    for zeroes in [1, 8, 4095, 4097, 1 << 20, (1 << 20) + 1] {
        fs::write(name.path(), vec![0; zeroes]).unwrap();
        is_no_segment(&name, "a size that no buffer has");
        assert_eq!(fs::read(name.path()).unwrap(), vec![0; zeroes]);
    }
}

#[test]
fn other_things_of_that_name() {
    let _watchdog = watchdog();
    let name = Name::new("things");
    fs::create_dir(name.path()).unwrap();
    is_no_segment(&name, "directory");
    fs::remove_dir(name.path()).unwrap();

    let path = std::ffi::CString::new(name.path()).unwrap();
    // SAFETY: a path that ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    is_no_segment(&name, "regular file");
    fs::remove_file(name.path()).unwrap();

    let socket = std::os::unix::net::UnixListener::bind(name.path()).unwrap();
    is_no_segment(&name, "socket");
    drop(socket);
}

#[test]
fn symbolic_links_are_not_followed() {
    let (name, target) = (Name::new("link"), Name::new("link-target"));
    // Into nothing: nothing is created there.
    symlink(target.path(), name.path()).unwrap();
    is_no_segment(&name, "symbolic link");
    assert!(!target.exists());
    // To a file, which is not touched.
    fs::write(target.path(), "precious").unwrap();
    let before = fs::metadata(target.path()).unwrap();
    is_no_segment(&name, "symbolic link");
    let after = fs::metadata(target.path()).unwrap();
    assert_eq!((after.ino(), after.mtime_nsec(), after.mode()), (before.ino(), before.mtime_nsec(), before.mode()));
    assert_eq!(fs::read_to_string(target.path()).unwrap(), "precious");
    // To an empty file: it isn't taken for a creator's leftover.
    fs::write(target.path(), "").unwrap();
    is_no_segment(&name, "symbolic link");
    assert!(target.exists());
    fs::remove_file(target.path()).unwrap();
    // To a real segment, by its own name a good one.
    let buffer = Buffer::open(&target).unwrap();
    is_no_segment(&name, "symbolic link");
    works(&buffer);
    // To a directory, to itself.
    for to in ["/tmp", &name.path()] {
        fs::remove_file(name.path()).unwrap();
        symlink(to, name.path()).unwrap();
        is_no_segment(&name, "symbolic link");
    }
}

// -------------------------------------------------------------------------------------------------------- permissions

#[test]
fn no_permission() {
    if !is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let _watchdog = watchdog();
    let name = Name::new("permission");
    let buffer = Buffer::open(&name).unwrap();
    let mut other = start(&name);
    other.does("become-nobody");
    for command in ["open", "open must_exist", "open persist", "unlink"] {
        let answer = other.ask(command);
        assert!(
            answer.contains("no permission") && answer.contains(&name.0) && answer.contains("BufferOptions::mode"),
            "{answer}"
        );
    }
    works(&buffer);
    drop(buffer);
    // Shared on purpose it works, in both directions.
    let buffer = Buffer::options().mode(0o666).open(&name).unwrap();
    other.does("open");
    let context = buffer.context().unwrap();
    let mut tx = context.producer::<u64>(1).unwrap();
    let mut rx = context.consumer::<u64>(2).unwrap();
    other.does("consumer 1");
    other.does("producer 2");
    tx.send(context.record(5).unwrap()).unwrap();
    assert_eq!(other.ask("recv 1"), "5");
    other.does("send 2 6");
    assert_eq!(*rx.recv().unwrap(), 6);
    other.does("close");
    drop((tx, rx, context));
    all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
    // The other way round.
    other.does("open mode=606");
    assert_eq!(fs::metadata(name.path()).unwrap().uid(), NOBODY);
    works(&Buffer::open(&name).unwrap());
    other.does("close");
    assert!(!name.exists());
    other.ends();
}

#[test]
fn a_segment_of_another_user() {
    if !is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let name = Name::new("owner");
    make_segment(&name, 1 << 20);
    std::os::unix::fs::chown(name.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mode = |bits| fs::set_permissions(name.path(), fs::Permissions::from_mode(bits)).unwrap();
    // Root may open anything, which is why the mode decides.
    for bits in [0o600, 0o700, 0o711, 0] {
        mode(bits);
        let error = Buffer::open(&name).unwrap_err();
        let OpenError::ForeignOwner { user, mode, .. } = error else { panic!("{bits:o}: {error:?}") };
        assert_eq!((user, mode), (NOBODY, bits));
        says(&error, &[&name.0, &NOBODY, &format!("{bits:o}")]);
        assert_eq!(open_descriptors(&name), 0);
    }
    for bits in [0o660, 0o606, 0o666] {
        mode(bits);
        works(&Buffer::open(&name).unwrap());
    }
    // A stranger's empty file is no leftover of ours.
    mode(0o600);
    File::options().write(true).open(name.path()).unwrap().set_len(0).unwrap();
    assert!(matches!(Buffer::open(&name).unwrap_err(), OpenError::ForeignOwner { .. }));
    assert!(name.exists());
}

// ------------------------------------------------------------------------------------------------------ full /dev/shm

/// Puts a small tmpfs over /dev/shm, for this thread and what it starts.
fn mount_shm(options: &str) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let options = std::ffi::CString::new(options).unwrap();
    // SAFETY: gives this thread a mount table of its own.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings that end with NUL, or null where the call allows it; only this thread's table changes.
    check(unsafe { libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) })?;
    // SAFETY: as above.
    let data = options.as_ptr().cast();
    // SAFETY: as above.
    check(unsafe { libc::mount(c"shm".as_ptr(), c"/dev/shm".as_ptr(), c"tmpfs".as_ptr(), 0, data) })
}

/// A peer with a /dev/shm of its own.
fn start_confined(name: &Name, options: &str) -> Option<Peer> {
    // Whether it may be done at all, asked in a thread, which takes its mount table with it.
    if let Err(error) = std::thread::spawn(|| mount_shm("size=64k")).join().unwrap() {
        eprintln!("skipped: can't mount a /dev/shm of our own: {error}");
        return None;
    }
    let mut peer = start(name);
    peer.does(&format!("mount {options}"));
    Some(peer)
}

/// /dev/shm with room for 0 to 200 pages more, of which the tables take 107: whatever step fails for want of memory gives its error, and the next ones
/// go on. A touch of what is not backed would kill this process.
fn sweep_a_full_shm(name: &str) {
    let ballast = File::create("/dev/shm/ballast").unwrap();
    let size = rustix::fs::statvfs("/dev/shm").unwrap();
    let all = size.f_blocks * size.f_frsize;
    let fill = |bytes| rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    let (mut opened, mut refused, mut served) = (0, 0, 0);
    for pages in 0..200 {
        ballast.set_len(0).unwrap();
        fill(all - pages * 4096);
        let buffer = match Buffer::open(name) {
            Ok(buffer) => buffer,
            Err(error) => {
                assert!(matches!(error, OpenError::NoSpace { .. }), "{pages}: {error:?}");
                says(&error, &[&name, &"/dev/shm"]);
                assert!(!Path::new(&format!("/dev/shm/{name}")).exists(), "no file is left that can't be used");
                refused += 1;
                continue;
            }
        };
        opened += 1;
        let context = buffer.context().unwrap();
        let channel = context.producer::<u64>(1);
        assert!(matches!(channel, Ok(_) | Err(AttachError::OutOfMemory { .. })), "{pages}: {channel:?}");
        let mut kept = Vec::new();
        for len in [1, 100, 3000, 70_000, 200_000] {
            match context.slice_zeroed::<u8>(len) {
                Ok(record) => kept.push(record),
                Err(error) => assert!(matches!(error, AllocError::OutOfMemory { .. }), "{pages}: {error:?}"),
            }
        }
        served += kept.len();
        sound(&buffer);
        buffer.trim().unwrap();
        // With memory again, it goes on as if nothing had been.
        ballast.set_len(0).unwrap();
        drop((kept, channel));
        works(&buffer);
        drop(context);
        all_free(&buffer);
    }
    assert!(opened > 20 && refused > 20 && served > 20, "{opened} {refused} {served}: the sweep met both sides");
}

/// Fills a /dev/shm that is smaller than the buffer, frees, and goes on.
fn fill_and_go_on(name: &str) {
    let buffer = Buffer::open(name).unwrap();
    let context = buffer.context().unwrap();
    for len in [1, 1000, 4096, 60_000, 300_000] {
        let fill = || {
            let mut kept = Vec::new();
            loop {
                match context.slice_uninit::<u8>(len) {
                    Ok(record) => kept.push(record.fill_with(|i| i.to_ne_bytes()[0])),
                    Err(AllocError::OutOfMemory { asked, .. }) => {
                        assert!(asked > len as u64);
                        break kept;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let kept = fill();
        let bytes = kept.len() * len;
        // A megabyte or more of the four fits; for the smallest, what 16 bytes of header leave of it.
        assert!(bytes >= 1 << 20 || len == 1 && kept.len() > 1 << 14, "{len}: {} records", kept.len());
        assert!(kept.iter().all(|record| { record.iter().enumerate().all(|(i, byte)| *byte == i.to_ne_bytes()[0]) }));
        sound(&buffer);
        // The system has nothing left, the buffer has: what one record gave back serves the next.
        let mut kept = kept;
        for _ in 0..100 {
            kept.pop();
            kept.push(context.slice_zeroed::<u8>(len).unwrap());
        }
        let (full, _) = (kept.len(), drop(kept));
        // Everything again, in every size, once the old slabs are taken apart.
        assert!(fill().len() >= full * 9 / 10, "{len}");
        all_free(&buffer);
        buffer.trim().unwrap();
    }
    drop(context);
    all_free(&buffer);
}

#[test]
fn full_shm_is_an_error_and_never_a_signal() {
    let _watchdog = watchdog();
    let name = Name::new("full");
    let Some(mut peer) = start_confined(&name, "size=2m") else {
        return;
    };
    peer.does("sweep");
    peer.ends();
    assert!(!name.exists());
}

#[test]
fn a_shm_smaller_than_the_buffer() {
    let _watchdog = watchdog();
    let name = Name::new("small-shm");
    let Some(mut peer) = start_confined(&name, "size=4m") else {
        return;
    };
    peer.does("fill");
    peer.ends();
}

#[test]
fn no_room_for_even_one_file() {
    let _watchdog = watchdog();
    let name = Name::new("no-inode");
    // The root directory takes the only inode.
    let Some(mut peer) = start_confined(&name, "nr_inodes=1") else {
        return;
    };
    let answer = peer.ask("open");
    assert!(answer.contains("No space left on device") && answer.contains("no inode"), "{answer}");
    assert!(answer.contains(&name.0), "{answer}");
    peer.ends();
}

// ---------------------------------------------------------------------------------------------------- many processes

#[test]
fn two_create_at_once() {
    let _watchdog = watchdog();
    let name = Name::new("two");
    let (mut one, mut two) = (start(&name), start(&name));
    for round in 0..64 {
        // A few microseconds apart, now this one first, now that.
        let (when, shift) = (now_ns() + 300_000, (round * 7919) % 40_000);
        one.say(&format!("open-at {when}"));
        two.say(&format!("open-at {}", when + shift));
        assert_eq!((one.hear().unwrap(), two.hear().unwrap()), ("ok".into(), "ok".into()), "round {round}");
        // The same segment: what one sends the other receives.
        one.does("producer 1");
        two.does("consumer 1");
        one.does(&format!("send 1 {round}"));
        assert_eq!(two.ask("recv 1"), round.to_string());
        // Both leave at once: exactly one is the last.
        one.say("close");
        two.say("close");
        assert_eq!((one.hear().unwrap(), two.hear().unwrap()), ("ok".into(), "ok".into()));
        assert!(!name.exists(), "round {round}");
    }
    one.ends();
    two.ends();
}

#[test]
fn sixty_four_open_at_once() {
    let _watchdog = watchdog();
    let name = Name::new("many");
    let mut peers: Vec<Peer> = (0..64).map(|_| start(&name)).collect();
    // All are up before any opens.
    assert!(peers.iter_mut().all(|peer| peer.ask("umask 022") == "ok"));
    let when = now_ns() + 20_000_000;
    peers.iter_mut().for_each(|peer| peer.say(&format!("open-at {when}")));
    peers.iter_mut().for_each(|peer| assert_eq!(peer.hear().unwrap(), "ok"));
    for (i, peer) in peers.iter_mut().enumerate() {
        peer.does(&format!("keep {}", i + 1));
    }
    let buffer = Buffer::options().must_exist(true).open(&name).unwrap();
    let mut owned: Vec<(u64, u32)> = sound(&buffer).owned.iter().map(|o| (o.records, o.pid)).collect();
    owned.sort_unstable();
    let expected: Vec<(u64, u32)> = (1..).zip(peers.iter().map(|peer| peer.process.pid())).collect();
    assert_eq!(owned, expected, "all in one segment, each in a slot of its own");
    // All leave at once.
    peers.iter_mut().for_each(|peer| peer.say("close"));
    assert!(peers.iter_mut().all(|peer| peer.hear().unwrap() == "ok"));
    all_free(&buffer);
    peers.into_iter().for_each(Peer::ends);
    drop(buffer);
    assert!(!name.exists());
}

#[test]
fn leftovers_of_a_creator_are_taken_over() {
    let name = Name::new("leftover");
    // Killed after creating the file.
    fs::write(name.path(), "").unwrap();
    works(&Buffer::open(&name).unwrap());
    assert!(!name.exists());
    fs::write(name.path(), "").unwrap();
    assert!(matches!(Buffer::options().must_exist(true).open(&name).unwrap_err(), OpenError::NotFound { .. }));
    fs::write(name.path(), "").unwrap();
    works(&Buffer::options().create_new(true).open(&name).unwrap());
    // Killed after that: a page.
    fs::write(name.path(), [0; 4096]).unwrap();
    works(&Buffer::options().capacity(1 << 20).open(&name).unwrap());
    assert!(!name.exists());
    fs::write(name.path(), "").unwrap();
    Buffer::unlink(&name).unwrap();
    assert!(!name.exists());
    // Killed after giving it its size, or with some of the header written: everything but the magic, which comes last.
    for (capacity, words) in [(1 << 20, 0), (1 << 30, 0), (1 << 20, 2), (1 << 20, 4), (1 << 20, 5)] {
        make_segment(&name, capacity);
        let size = fs::metadata(name.path()).unwrap().len();
        let mut header = vec![0; 64];
        File::open(name.path()).unwrap().read_exact_at(&mut header, 0).unwrap();
        let file = File::create(name.path()).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&header[..words * 8], 0).unwrap();
        poke(&name, 0, 0);
        let buffer = Buffer::options().mode(0o640).open(&name).unwrap();
        assert_eq!(buffer.capacity(), capacity);
        assert_eq!(
            fs::metadata(name.path()).unwrap().mode() & 0o777,
            0o640,
            "the one who completes it chooses the mode"
        );
        assert_eq!(fs::metadata(name.path()).unwrap().ino(), file.metadata().unwrap().ino(), "it is the same file");
        works(&buffer);
        drop(buffer);
        assert!(!name.exists());
    }
}

#[test]
fn creators_killed_at_any_moment() {
    let _watchdog = watchdog();
    let name = Name::new("killed");
    let mut seed = u64::from(std::process::id());
    let mut leftovers = 0;
    // To register for heavy barriers takes the kernel longer than all that is of interest here.
    let quick = [("IPC_BUFFER_NO_MEMBARRIER", "1")];
    for round in 0..200 {
        let mut peer = Peer::start_with("peer_process", "peer", &name, &quick);
        peer.does("umask 022");
        peer.say("churn");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((seed >> 33) % 2000));
        peer.process.kill();
        leftovers += usize::from(name.exists());
        let buffer = Buffer::open(&name).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        works(&buffer);
        drop(buffer);
        assert!(!name.exists(), "round {round}");
    }
    assert!(leftovers > 10, "only {leftovers} of 200 were killed with the segment there");
}

// ----------------------------------------------------------------------------------------------- a stuck control lock

#[test]
fn a_control_lock_that_nobody_gives_back() {
    let _watchdog = watchdog();
    let name = Name::new("busy");
    let buffer = Buffer::open(&name).unwrap();
    let file = File::options().read(true).write(true).open(name.path()).unwrap();
    // SAFETY: plain integers; zeroes are valid.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    lock.l_len = 1;
    // SAFETY: an open descriptor and a lock that lives as long as the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }, 0);
    let (mut other, mut another) = (start(&name), start(&name));
    other.say("open");
    another.say("unlink");
    // Here the last one to hold it was this process.
    let error = buffer.has_channel(1).unwrap_err();
    assert!(matches!(error, BufferError::Busy { .. }), "{error:?}");
    let answer = other.hear().unwrap();
    for answer in [answer, another.hear().unwrap()] {
        assert!(answer.contains("is being changed by process") && answer.contains(&name.0), "{answer}");
    }
    // Fast paths need no lock.
    let context = buffer.context().unwrap();
    drop(context.record(1_u64).unwrap());

    drop(file);
    drop(context);
    works(&buffer);
    other.does("open");
    other.ends();
    another.ends();
}

// ------------------------------------------------------------------------------------------- questions about channels

#[test]
fn channels_seen_from_another_process() {
    let _watchdog = watchdog();
    let name = Name::new("channels");
    let buffer = Buffer::open(&name).unwrap();
    let mut other = start(&name);
    other.does("open");
    assert!(!buffer.has_channel(4).unwrap() && !buffer.has_active_channels().unwrap());
    assert!(buffer.channels().unwrap().is_empty());
    assert!(!buffer.wait_for_channel(4, Duration::from_millis(30)).unwrap());
    assert!(!buffer.wait_for_channel(4, Duration::ZERO).unwrap());

    // The wait ends when the channel comes; another channel's coming does not end it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| buffer.wait_for_channel(4, Duration::MAX).unwrap());
        other.does("producer -9");
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        other.does("consumer 4");
        assert!(waiting.join().unwrap());
    });
    other.does(&format!("producer {}", i64::MAX));
    other.does(&format!("producer {}", i64::MIN));
    assert!(buffer.has_active_channels().unwrap());
    assert!(
        buffer.has_channel(i64::MIN).unwrap()
            && buffer.has_channel(i64::MAX).unwrap()
            && !buffer.has_channel(0).unwrap()
    );
    for value in 0..3 {
        other.does(&format!("send -9 {value}"));
    }
    let pid = other.process.pid();
    let list = buffer.channels().unwrap();
    let seen: Vec<_> = list.iter().map(|c| (c.id, c.queued, c.producer, c.consumer)).collect();
    let expected = [
        (i64::MIN, 0, Some(pid), None),
        (-9, 3, Some(pid), None),
        (4, 0, None, Some(pid)),
        (i64::MAX, 0, Some(pid), None),
    ];
    assert_eq!(seen, expected, "ordered by id");
    assert!(list.iter().all(|c| c.kind == "spsc" && c.carries == "u64 (8 bytes, align 8)" && c.capacity == 1024));
    assert!(list.iter().all(|c| !c.persistent));
    let audit = sound(&buffer);
    assert_eq!(audit.queued.iter().map(|q| q.records).sum::<u64>(), 3);

    // The role is taken, and the error says by whom.
    let context = buffer.context().unwrap();
    let error = context.producer::<u64>(-9).unwrap_err();
    assert!(matches!(error, AttachError::RoleTaken { .. }), "{error:?}");
    says(&error, &[&-9, &"producer", &pid]);
    let error = context.consumer::<f32>(-9).unwrap_err();
    says(&error, &[&-9, &"f32 (4 bytes, align 4)", &"u64 (8 bytes, align 8)"]);

    // Removed: the id is free at once, the storage when its last endpoint has left.
    assert!(buffer.remove_channel(-9).unwrap() && !buffer.remove_channel(-9).unwrap());
    assert_eq!(other.ask("has -9"), "false");
    let fresh = context.consumer::<f32>(-9).unwrap();
    assert_eq!(other.ask("has -9"), "true");
    assert_eq!(buffer.channels().unwrap()[1].carries, "f32 (4 bytes, align 4)");
    other.does("send -9 3");
    assert_eq!((fresh.len(), sound(&buffer).queued.iter().map(|q| q.records).sum::<u64>()), (0, 4));
    other.does("leave -9");
    assert_eq!(sound(&buffer).queued.iter().map(|q| q.records).sum::<u64>(), 0, "freed with the last endpoint");
    drop(fresh);
    assert!(!buffer.has_channel(-9).unwrap());

    // Removed by the other process, with an endpoint of this one left.
    let mine = context.producer::<u64>(4).unwrap();
    assert_eq!(other.ask("remove 4"), "true");
    assert!(!buffer.has_channel(4).unwrap());
    drop(mine);
    other.does("close");
    assert!(!buffer.has_active_channels().unwrap() && buffer.channels().unwrap().is_empty());
    drop(context);
    all_free(&buffer);
    other.ends();
}

#[test]
fn channels_of_a_process_that_was_killed() {
    let _watchdog = watchdog();
    let name = Name::new("channels-killed");
    let buffer = Buffer::open(&name).unwrap();
    let context = buffer.context().unwrap();
    let mut other = start(&name);
    other.does("open");
    other.does("producer 1");
    other.does("consumer 2");
    other.does("send 1 11");
    let mut rx = context.consumer::<u64>(1).unwrap();
    let mut tx = context.producer::<u64>(2).unwrap();
    tx.send(context.record(22).unwrap()).unwrap();
    other.process.kill();
    assert_eq!(*rx.recv().unwrap(), 11, "what it had sent is delivered");
    assert_eq!(rx.recv().unwrap_err(), ipc_buffer::RecvError::Disconnected);
    common::give_back_the_rest(&buffer);
    let list = buffer.channels().unwrap();
    assert_eq!((list[0].producer, list[1].consumer, list[1].queued), (None, None, 1));
    // The next one goes on where the dead one stopped.
    let mut next = start(&name);
    next.does("open");
    next.does("consumer 2");
    assert_eq!(next.ask("recv 2"), "22");
    next.ends();
    drop((rx, tx, context));
    all_free(&buffer);
}

#[test]
fn many_threads_reap_at_once() {
    // Byte locks don't exclude the threads of one process from each other.
    let _watchdog = watchdog();
    let name = Name::new("reapers");
    let buffer = Buffer::open(&name).unwrap();
    const THREADS: usize = 4;
    for _ in 0..20 {
        let mut peers: Vec<Peer> = (0..3).map(|_| start(&name)).collect();
        for peer in &mut peers {
            peer.does("open");
            peer.does("keep 3000");
            peer.does("producer 1");
            peer.does("send 1 1");
            peer.does("leave 1");
        }
        peers.iter_mut().for_each(|peer| peer.process.kill());
        let barrier = Barrier::new(THREADS);
        let reaped: usize = std::thread::scope(|scope| {
            let reap = || {
                let context = buffer.context().unwrap();
                let _kept: Vec<_> = (0..100).map(|i| context.record(i).unwrap()).collect();
                barrier.wait();
                let reaped = buffer.reap().unwrap();
                let more: Vec<_> = (0..2000_u64).map(|i| context.record(i).unwrap()).collect();
                assert!(more.iter().zip(0..).all(|(record, i)| **record == i));
                reaped.processes
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(reap)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(reaped, 3, "each once");
        all_free(&buffer);
    }
}

#[test]
fn errors_reach_the_joint_type() {
    let error = Error::from(Buffer::open("").unwrap_err());
    assert!(matches!(error, Error::Open(OpenError::InvalidName { .. })));
    assert_eq!(error.to_string(), Buffer::open("").unwrap_err().to_string(), "transparent");
}
