//! Shared-memory objects by name: open, look at, change the mode of, remove.

use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

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
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(words)
}

/// The user this process acts as.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Eight bytes nobody else has.
pub(crate) fn nonce() -> u64 {
    let mut bytes = [0_u8; 8];
    let random = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK).is_ok();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clock = u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id());
    // Only "told apart" is asked of it: without entropy, time and process id do.
    (if random { u64::from_ne_bytes(bytes) } else { clock }) | 1
}
