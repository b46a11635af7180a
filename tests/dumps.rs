//! Core dumps: they don't contain the buffer, and so don't fill it.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // setrlimit, kill

mod common;

use common::{Name, role, start, watchdog};
use ipc_buffer::Buffer;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;

/// A peer dumps core while the name is unlinked, when the kernel takes a shared mapping for anonymous memory, and reads all holes.
#[test]
fn a_dump_fills_no_holes() {
    let _dog = watchdog();
    if let Some((role, name)) = role() {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) }, 0);
        let directory = std::env::temp_dir().join(format!("{name}-{role}"));
        fs::create_dir_all(&directory).unwrap();
        std::env::set_current_dir(&directory).unwrap();
        let buffer = Buffer::options().core_dumps(role == "dumped").open(&name).unwrap();
        Buffer::unlink(&name).unwrap();
        std::mem::forget(buffer);
        std::io::stdout().flush().unwrap();
        unsafe { libc::raise(libc::SIGQUIT) };
        unreachable!("a core is dumped");
    }
    for (role, fills) in [("left-out", false), ("dumped", true)] {
        let name = Name::new("dump");
        let buffer = Buffer::options().capacity(64 << 20).open(&name).unwrap();
        let file = File::open(name.path()).unwrap();
        let memory = || file.metadata().unwrap().blocks() * 512;
        let before = memory();
        let status = start("a_dump_fills_no_holes", role, &name).wait();
        let directory = std::env::temp_dir().join(format!("{}-{role}", name.0));
        let _ = fs::remove_dir_all(directory);
        if status.signal() != Some(libc::SIGQUIT) || !status.core_dumped() {
            eprintln!("skipped: no core is dumped here ({status})");
            return;
        }
        let after = memory();
        if !fills {
            assert!(after < before + (1 << 20), "{before} bytes before, {after} after");
        } else if after >= before + (32 << 20) {
            // What it was asked for; and it can be given back.
            assert!(buffer.trim().unwrap() >= 32 << 20);
        }
        buffer.reap().unwrap();
        common::all_free(&buffer);
    }
}
