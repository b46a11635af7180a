//! Shared-memory objects by name: open, look at, change the mode of, remove.

#![allow(unsafe_code)]

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

const DIRECTORY: &str = "/dev/shm/";

/// What tells one file from another, as long as either is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// What fstat(2) says of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) identity: Identity,
    pub(crate) size: u64,
    pub(crate) user: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// File type bits.
    pub(crate) is_file: bool,
}

fn facts(stat: &fs::Stat) -> Facts {
    Facts {
        identity: Identity { device: stat.st_dev, inode: stat.st_ino },
        size: u64::try_from(stat.st_size).unwrap_or(0),
        user: stat.st_uid,
        mode: stat.st_mode & 0o7777,
        is_file: fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile,
    }
}

fn path(name: &str) -> String {
    format!("{DIRECTORY}{name}")
}

/// Opens an existing object for reading and writing; never follows a link, never waits for a pipe.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(fs::open(path(name), flags, Mode::empty())?)
}

/// What is open behind `fd`.
pub(crate) fn stat(fd: impl AsFd) -> io::Result<Facts> {
    Ok(facts(&fs::fstat(fd)?))
}

/// What the name leads to now, without following a link.
pub(crate) fn stat_name(name: &str) -> io::Result<Facts> {
    Ok(facts(&fs::statat(CWD, path(name), AtFlags::SYMLINK_NOFOLLOW)?))
}

/// Removes the name.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    Ok(fs::unlink(path(name))?)
}

/// Sets the permission bits, whatever the umask.
pub(crate) fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

/// Reads the eight-byte words at the start of the file, as far as it has them.
pub(crate) fn read_words<const N: usize>(fd: impl AsFd) -> io::Result<[u64; N]> {
    let mut words = [0_u64; N];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pread(fd.as_fd(), &mut bytes[at..], at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(words)
}

/// What an error of opening, sizing or mapping means to a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    Denied,
    Link,
    Directory,
    Special,
    NoSpace,
    Other,
}

/// See [`Reason`].
pub(crate) fn reason(error: &io::Error) -> Reason {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => Reason::Denied,
        Some(Errno::LOOP) => Reason::Link,
        Some(Errno::ISDIR) => Reason::Directory,
        Some(Errno::NXIO) => Reason::Special,
        Some(Errno::NOSPC | Errno::NOMEM) => Reason::NoSpace,
        _ => Reason::Other,
    }
}

/// Closes a descriptor that stays in somebody's `ManuallyDrop`.
///
/// # Safety
/// `fd` is open, the caller's, and never used again.
pub(crate) unsafe fn close(fd: RawFd) {
    // SAFETY: by the caller.
    unsafe { rustix::io::close(fd) };
}
