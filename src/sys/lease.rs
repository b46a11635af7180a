//! Byte locks that die with their holder: Linux open-file-description locks.
//!
//! Promises: a lock belongs to the open file description, so the kernel drops it when the last descriptor of that
//! description is closed and the last mapping made through it is gone, which every kind of death does, in any pid namespace. Refuses: to tell who holds a byte; that
//! is written in the segment, for people.
//!
//! # Sources
//! fcntl_locking(2), "Open file description locks". Threads of one process share a description and therefore never
//! exclude each other here; a process-local mutex comes first.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn request(kind: libc::c_int, byte: u64) -> libc::flock64 {
    // SAFETY: `flock64` is plain integers; all zeroes is a valid value.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    // The constants are small on every Linux target; their C type differs from the field's.
    lock.l_type = i16::try_from(kind).unwrap_or(i16::MAX);
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = i64::try_from(byte).unwrap_or(i64::MAX);
    lock.l_len = 1;
    lock
}

fn fcntl(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock64) -> io::Result<()> {
    loop {
        // SAFETY: `fd` is open for the call, `lock` is a valid flock64 that the kernel may write.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes `byte` exclusively, or says false at once if another description holds it.
pub(crate) fn try_take(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    match fcntl(fd, libc::F_OFD_SETLK, &mut request(libc::F_WRLCK, byte)) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives `byte` back.
pub(crate) fn release(fd: BorrowedFd<'_>, byte: u64) {
    let _ = fcntl(fd, libc::F_OFD_SETLK, &mut request(libc::F_UNLCK, byte));
}

/// Whether another description holds `byte`. An error reads as "held": who cannot be judged is alive.
pub(crate) fn held_elsewhere(fd: BorrowedFd<'_>, byte: u64) -> bool {
    is_held(fd, request(libc::F_WRLCK, byte)).unwrap_or(true)
}

/// Whether another description is known to hold `byte`.
pub(crate) fn known_elsewhere(fd: BorrowedFd<'_>, byte: u64) -> bool {
    is_held(fd, request(libc::F_WRLCK, byte)).unwrap_or(false)
}

/// As [`held_elsewhere`], of any byte from `byte` on.
pub(crate) fn any_held_elsewhere(fd: BorrowedFd<'_>, byte: u64) -> bool {
    // A length of 0 means to the end.
    is_held(fd, libc::flock64 { l_len: 0, ..request(libc::F_WRLCK, byte) }).unwrap_or(true)
}

fn is_held(fd: BorrowedFd<'_>, mut lock: libc::flock64) -> io::Result<bool> {
    fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}
