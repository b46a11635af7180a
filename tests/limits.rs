//! Limits of the process and of the mount: a typed error that says what helps, and nothing left behind.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // setrlimit, mlockall, umask

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::Name;
use ipc_buffer::{Buffer, OpenError};
use scenarios::{Scenario, end, fork, hear, tell};
use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("the_size_of_files", the_size_of_files),
    ("the_address_space", the_address_space),
    ("open_files", open_files),
    ("locks_refused", locks_refused),
    ("an_odd_umask", an_odd_umask),
    ("all_memory_locked", all_memory_locked),
    ("memory_that_nobody_asked_for", memory_that_nobody_asked_for),
    ("a_file_that_is_filled", a_file_that_is_filled),
    ("nobody_waits_for_anothers_reservation", nobody_waits_for_anothers_reservation),
    ("mounts_of_all_kinds", mounts_of_all_kinds),
    ("a_control_group_is_read", a_control_group_is_read),
    ("main_shows_what_helps", main_shows_what_helps),
];

fn main() {
    scenarios::main("limits", SCENARIOS)
}

fn limit(which: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    assert_eq!(unsafe { libc::setrlimit(which, &raw const limit) }, 0);
}

/// Runs `part` in a child, whose limits end with it.
fn apart(part: impl FnOnce()) {
    match fork() {
        Some(child) => child.succeeds(),
        None => {
            part();
            end()
        }
    }
}

fn the_size_of_files(name: &Name) {
    apart(|| {
        limit(libc::RLIMIT_FSIZE, 8 << 20);
        let error = Buffer::open(name).unwrap_err();
        let text = error.to_string();
        let OpenError::FileSizeLimit { needed, limit, .. } = error else { panic!("{error}") };
        assert!(needed > 1 << 30 && limit == 8 << 20);
        assert!(text.contains(&needed.to_string()) && text.contains("8388608") && text.contains("ulimit -f"), "{text}");
        assert!(!name.exists());
        // A smaller one fits, and so does one that is there.
        drop(Buffer::options().capacity(256 << 10).open(name).unwrap_err());
        assert!(!name.exists());
    });
    let there = Buffer::options().capacity(64 << 20).open(name).unwrap();
    apart(|| {
        limit(libc::RLIMIT_FSIZE, 4096);
        let buffer = Buffer::open(name).unwrap();
        assert!(buffer.context().unwrap().slice_zeroed::<u8>(10 << 20).is_ok(), "it is as long as it is");
    });
    drop(there);
}

fn the_address_space(name: &Name) {
    apart(|| {
        limit(libc::RLIMIT_AS, 512 << 20);
        let text = Buffer::open(name).unwrap_err().to_string();
        assert!(text.contains("mmap: Cannot allocate memory") && text.contains("ulimit -v"), "{text}");
        assert!(!name.exists());
        assert!(Buffer::options().capacity(16 << 20).open(name).is_ok());
    });
}

fn open_files(name: &Name) {
    // As many as it takes to come through, one more each time.
    for spare in 0..32 {
        let highest =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let highest: u64 = highest.filter_map(|fd| fd.parse().ok()).max().unwrap();
        let mut opened = false;
        let status = match fork() {
            Some(child) => child.wait(),
            None => {
                // No gaps below.
                let mut fillers = Vec::new();
                while let Ok(file) = fs::File::open("/dev/null") {
                    if std::os::fd::AsRawFd::as_raw_fd(&file) as u64 > highest {
                        break;
                    }
                    fillers.push(file);
                }
                limit(libc::RLIMIT_NOFILE, highest + 1 + spare);
                match Buffer::options().capacity(1 << 20).open(name) {
                    Ok(buffer) => {
                        drop(buffer);
                        assert!(!name.exists());
                        scenarios::quit(7)
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("ulimit -n"), "{error}");
                        assert!(!name.exists(), "{spare} spare: {error}");
                        end()
                    }
                }
            }
        };
        match status {
            scenarios::Ended::Exit(7) => opened = true,
            status => assert_eq!(status, scenarios::Ended::Exit(0)),
        }
        if opened {
            assert!(spare > 0);
            return;
        }
    }
    panic!("it takes more than 32 descriptors");
}

fn locks_refused(name: &Name) {
    apart(|| {
        sandbox::refuse(&[(libc::SYS_fcntl, Some((1, libc::F_OFD_SETLK)), libc::EINVAL)]);
        let error = Buffer::options().capacity(1 << 20).open(name).unwrap_err();
        assert!(matches!(error, OpenError::NoLocks { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("F_OFD_SETLK") && text.contains("Invalid argument") && text.contains("sandbox"),
            "{text}"
        );
        assert!(!name.exists());
    });
}

fn an_odd_umask(name: &Name) {
    for umask in [0o777, 0o700, 0o277, 0o077, 0] {
        apart(|| {
            // Root opens everything.
            if unsafe { libc::geteuid() } == 0 {
                assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
            }
            unsafe { libc::umask(umask) };
            let buffer = Buffer::options().capacity(1 << 20).mode(0o640).open(name).unwrap();
            assert_eq!(fs::metadata(name.path()).unwrap().mode() & 0o777, 0o640);
            drop(buffer);
            assert!(!name.exists());
            // Left by a creator that was killed before it could mend the mode.
            for size in [0, 4096] {
                fs::File::create(name.path()).unwrap().set_len(size).unwrap();
                drop(Buffer::options().capacity(1 << 20).open(name).unwrap());
                assert!(!name.exists());
            }
            // One that its owner has locked itself out of can be removed.
            drop(Buffer::options().capacity(1 << 20).persist(true).mode(0).open(name).unwrap());
            let error = Buffer::open(name).unwrap_err();
            assert!(matches!(error, OpenError::PermissionDenied { .. }), "{error:?}");
            assert!(error.to_string().contains("Buffer::unlink"), "{error}");
            Buffer::unlink(name).unwrap();
            assert!(!name.exists());
        });
    }
}

fn all_memory_locked(name: &Name) {
    for flags in [libc::MCL_FUTURE, libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT] {
        apart(|| {
            if unsafe { libc::mlockall(flags) } != 0 {
                eprintln!("skipped: this user may not lock so much memory");
                return;
            }
            let memory = || fs::metadata(name.path()).unwrap().blocks() * 512;
            let buffer = match Buffer::open(name) {
                Ok(buffer) => buffer,
                Err(error) => {
                    assert!(error.to_string().contains("ulimit -l"), "{error}");
                    eprintln!("skipped: {error}");
                    return;
                }
            };
            assert!(memory() < 2 << 20, "{} bytes of {}", memory(), buffer.capacity());
            let ctx = buffer.context().unwrap();
            drop(ctx.slice_zeroed::<u8>(8 << 20).unwrap());
            assert!(memory() > 8 << 20 && memory() < 16 << 20);
            // Locked memory can be given back.
            assert!(buffer.trim().unwrap() >= 8 << 20);
            assert!(memory() < 4 << 20);
            // Whoever joins fills nothing either.
            let Some(child) = fork() else {
                assert_eq!(unsafe { libc::mlockall(flags) }, 0);
                drop(Buffer::open(name).unwrap());
                end()
            };
            child.succeeds();
            assert!(memory() < 4 << 20);
        });
    }
}

/// As `mlockall(MCL_CURRENT)` leaves it, or a core dump.
fn memory_that_nobody_asked_for(name: &Name) {
    let memory = || fs::metadata(name.path()).unwrap().blocks() * 512;
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    let kept = buffer.context().unwrap().slice_uninit::<u8>(1 << 20).unwrap().fill_with(|_| 9);
    let file = fs::File::options().write(true).open(name.path()).unwrap();
    let end = file.metadata().unwrap().len();
    // Holes that are filled by somebody: inside, and at the very end, where no unit was ever used.
    for offset in [end - (32 << 20), end - 4096] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], offset).unwrap();
    }
    let before = memory();
    assert!(buffer.trim().unwrap() >= 2 * 4096);
    assert!(memory() <= before - 4096, "{} of {before}", memory());
    assert_eq!(buffer.trim().unwrap(), 0);
    assert!(kept.iter().all(|byte| *byte == 9));
    // What is used next is empty, as ever.
    let zeroes = buffer.context().unwrap().slice_zeroed::<u8>(40 << 20).unwrap();
    assert!(zeroes.iter().all(|byte| *byte == 0));
}

/// All of it filled, again and again, while others allocate: what is beyond the frontiers of the tables is returned too, and nobody's page
/// is taken away.
fn a_file_that_is_filled(name: &Name) {
    let memory = || fs::metadata(name.path()).unwrap().blocks() * 512;
    let buffer = Buffer::options().capacity(32 << 20).open(name).unwrap();
    let kept = buffer.context().unwrap().slice_uninit::<u8>(1 << 20).unwrap().fill_with(|_| 9);
    let file = fs::File::options().read(true).write(true).open(name.path()).unwrap();
    let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let (mut hears, mut tells) = pipe().unwrap();
    let (told, says) = pipe().unwrap();
    let Some(peer) = fork() else {
        drop((hears, says));
        let buffer = Buffer::open(name).unwrap();
        // Contexts that come, each with magazines of its own, until all is taken, and go.
        for round in 0_u64.. {
            let ctx = buffer.context().unwrap();
            let sizes = (0..).map(|i| 8 << (i % 12));
            let fill = |len| Some(ctx.slice_uninit::<u64>(len).ok()?.fill_with(|_| round));
            let mine: Vec<_> = sizes.map_while(fill).collect();
            assert!(mine.iter().all(|record| record.iter().all(|word| *word == round)), "round {round}");
            drop((mine, ctx));
            if round == 0 {
                tell(&mut tells);
            }
            if round > 0 && has_news(&told) {
                break;
            }
        }
        end()
    };
    drop((tells, told));
    assert!(hear(&mut hears));
    // As a core dump reads it, or mlockall(2).
    let fill = || {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        let view = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, file.as_raw_fd(), 0) };
        assert_ne!(view, libc::MAP_FAILED);
        (0..size).step_by(4096).for_each(|at| _ = unsafe { view.cast::<u8>().add(at).read_volatile() });
        unsafe { libc::munmap(view, size) };
    };
    for _ in 0..10 {
        fill();
        buffer.trim().unwrap();
    }
    drop(says);
    peer.succeeds();
    common::sound(&buffer);
    buffer.trim().unwrap();
    let before = memory();
    fill();
    let filled = memory();
    let returned = buffer.trim().unwrap();
    let after = memory();
    // All but some room behind the frontiers.
    assert!(returned >= filled - after && after < before + (1 << 20), "{before}, {filled}, {returned}, {after}");
    assert!(kept.iter().all(|byte| *byte == 9));
    drop(kept);
    common::all_free(&buffer);
}

/// Whether something was said, or the other end of the pipe is closed.
fn has_news(pipe: &PipeReader) -> bool {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Bytes that the machine can give, to files in /dev/shm too.
fn free_memory() -> u64 {
    let facts = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = facts.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let available = available.and_then(|number| number.parse::<u64>().ok()).map_or(0, |kib| kib << 10);
    let mut mount: libc::statvfs = unsafe { std::mem::zeroed() };
    let known = unsafe { libc::statvfs(c"/dev/shm".as_ptr(), &raw mut mount) } == 0;
    if known { available.min(mount.f_bavail * mount.f_frsize) } else { 0 }
}

/// One makes a record of 2 GiB. A peer makes records meanwhile, each of new memory, and can be killed.
fn nobody_waits_for_anothers_reservation(name: &Name) {
    const RECORDS: u32 = 20;
    // Wherever the peer's records lie, there are 2 GiB in one piece.
    let buffer = Buffer::options().capacity(8 << 30).open(name).unwrap();
    let limit = buffer.stats().unwrap().memory_limit_bytes.unwrap_or(u64::MAX);
    if free_memory().min(limit) < 6 << 30 {
        eprintln!("skipped: this takes 3 GiB of memory, of 6 that are free");
        return;
    }
    // By address, and by descriptor.
    for old_kernel in [false, true] {
        if old_kernel {
            unsafe { std::env::set_var("IPC_BUFFER_NO_POPULATE", "1") };
        }
        let (mut makes, mut comes) = pipe().unwrap();
        let Some(large) = fork() else {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            tell(&mut comes);
            let record = ctx.slice_uninit::<u8>(2 << 30);
            tell(&mut comes);
            std::mem::forget(record.unwrap());
            end()
        };
        let (mut counts, mut counted) = pipe().unwrap();
        let Some(peer) = fork() else {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            let within = ctx.within(Duration::from_millis(10));
            for _ in 0..=RECORDS {
                std::mem::forget(within.slice_uninit::<u8>(200_000));
                tell(&mut counted);
            }
            loop {
                std::thread::park();
            }
        };
        drop((comes, counted));
        assert!(hear(&mut makes) && hear(&mut counts));
        let mut made = 0;
        while made < RECORDS && !has_news(&makes) {
            made += u32::from(has_news(&counts) && counts.read(&mut [0]).unwrap() == 1);
        }
        peer.kill();
        let is_over = has_news(&makes);
        assert!(made == RECORDS && !is_over, "{made} records by the time of the large one, over: {is_over}");
        large.kill();
        buffer.reap().unwrap();
        common::all_free(&buffer);
        buffer.trim().unwrap();
    }
}

/// Mounts `kind` there, for this process alone; false if it may not.
fn mount(kind: &std::ffi::CStr, there: &std::ffi::CStr, flags: libc::c_ulong, options: &std::ffi::CStr) -> bool {
    let none = std::ptr::null();
    let private = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
    };
    let options = options.as_ptr().cast();
    let mounted = private && unsafe { libc::mount(kind.as_ptr(), there.as_ptr(), kind.as_ptr(), flags, options) } == 0;
    if !mounted {
        eprintln!("skipped: {}", std::io::Error::last_os_error());
    }
    mounted
}

fn mounts_of_all_kinds(name: &Name) {
    let fails = |words: &[&str]| {
        let text = Buffer::open(name).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!name.exists());
    };
    apart(|| {
        if mount(c"tmpfs", c"/dev/shm", libc::MS_RDONLY, c"") {
            fails(&["shm_open", "Read-only file system", "mount /dev/shm writable"]);
        }
    });
    apart(|| {
        if mount(c"tmpfs", c"/dev", 0, c"") {
            fails(&["shm_open", "No such file or directory", "mount a tmpfs at /dev/shm"]);
        }
    });
    apart(|| {
        if mount(c"tmpfs", c"/dev/shm", 0, c"nr_inodes=1") {
            fails(&["shm_open", "No space left on device", "inode"]);
        }
    });
    apart(|| {
        if mount(c"tmpfs", c"/dev/shm", 0, c"size=128k") {
            fails(&["no space left in /dev/shm", "mount it larger"]);
        }
    });
    apart(|| {
        // A file system that knows no fallocate and has no limit: memory is asked for by address.
        if mount(c"ramfs", c"/dev/shm", 0, c"") {
            match Buffer::options().capacity(8 << 20).open(name) {
                Ok(buffer) => assert!(buffer.context().unwrap().slice_zeroed::<u8>(1 << 20).is_ok()),
                Err(error) => assert!(error.to_string().contains("mount"), "{error}"),
            }
            assert!(!name.exists());
        }
    });
    // A record that does not fit leaves no memory behind.
    apart(|| {
        if mount(c"tmpfs", c"/dev/shm", 0, c"size=16m") {
            let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
            let memory = || fs::metadata(name.path()).unwrap().blocks() * 512;
            let before = memory();
            let ctx = buffer.context().unwrap();
            assert!(ctx.slice_zeroed::<u8>(40 << 20).is_err());
            assert!(memory() < before + (1 << 20), "{before}, {}", memory());
            assert!(ctx.slice_zeroed::<u8>(8 << 20).is_ok());
        }
    });
}

fn a_control_group_is_read(name: &Name) {
    // Version 1, or version 2.
    let kinds = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    let is_there = |(root, _): &(&str, &str)| fs::exists(format!("{root}/cgroup.procs")).is_ok_and(|there| there);
    let Some((root, file)) = kinds.into_iter().find(is_there) else {
        eprintln!("skipped: there are no control groups");
        return;
    };
    let group = format!("{root}/{}", name.0);
    if fs::create_dir(&group).is_err() || fs::write(format!("{group}/{file}"), "268435456").is_err() {
        let _ = fs::remove_dir(&group);
        eprintln!("skipped: no control group can be made here");
        return;
    }
    let Some(child) = fork() else {
        if fs::write(format!("{group}/cgroup.procs"), std::process::id().to_string()).is_err() {
            eprintln!("skipped: no control group can be entered here");
            end()
        }
        let buffer = Buffer::options().capacity(8 << 20).open(name).unwrap();
        assert_eq!(buffer.stats().unwrap().memory_limit_bytes, Some(256 << 20));
        drop(buffer);
        end()
    };
    let ended = child.wait();
    // Its last process is gone, which takes the kernel a moment to see.
    while fs::remove_dir(&group).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        std::thread::yield_now();
    }
    assert_eq!(ended, scenarios::Ended::Exit(0));
}

fn main_shows_what_helps(name: &Name) {
    let error = Buffer::options().must_exist(true).open(name).unwrap_err();
    let text = error.to_string();
    assert_eq!(format!("{:?}", ipc_buffer::Error::from(error)), text);
}
