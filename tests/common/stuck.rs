//! A process that sits on a buffer's control lock: played by a descriptor of this one, whose locks are another's to the kernel.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(unsafe_code)] // byte locks

use crate::common::Name;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The control lock is this byte's.
const CONTROL: i64 = 0;
/// Held by who waits for it, and is next.
const NEXT: i64 = 2;

/// Sits on the control lock until it is dropped.
pub struct Holder(File);

fn request(file: &File, command: libc::c_int, byte: i64) -> (libc::c_int, libc::c_int) {
    // SAFETY: plain integers.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).unwrap();
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the descriptor is open, the lock a valid one.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (result, lock.l_type.into())
}

impl Holder {
    pub fn new(name: &Name) -> Self {
        let file = File::options().read(true).write(true).open(name.path()).unwrap();
        assert_eq!(request(&file, libc::F_OFD_SETLK, CONTROL).0, 0, "the control lock is free");
        Self(file)
    }

    /// Whether anybody else waits for the lock.
    pub fn is_waited_for(&self) -> bool {
        let (result, held) = request(&self.0, libc::F_OFD_GETLK, NEXT);
        assert_eq!(result, 0);
        held != libc::F_UNLCK
    }

    /// Returns once somebody waits for the lock.
    pub fn until_waited_for(&self) {
        while !self.is_waited_for() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
