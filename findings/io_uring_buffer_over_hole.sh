#!/bin/bash
# After a hole is punched, io_uring reads into a registered buffer of /dev/shm succeed and the data is nowhere
#
# Versions   io-uring 0.7.16, libc 0.2.189 (crates), Linux 6.18.
# Behaviour  A process registers a shared mapping as fixed buffer. Somebody punches a hole in the file (as an allocator that trims
#            does) and the page is reserved and used anew. READ_FIXED into it then reports all its bytes as read; mapping and file
#            hold what was stored there last. The ring wrote into the page that was taken out, and pins it until the buffer is
#            unregistered, though st_blocks fell at the punch.
# Guess      Data in the mapping, or EFAULT. register_buffers of the crate asks that address and length stay valid until they are
#            unregistered, and they are: the mapping is never touched. io_uring_register(2) says that buffers "are locked in memory",
#            which reads as if no page could be taken away, as with mlock and MADV_REMOVE (EINVAL).
# Matters    Registering the whole segment once is what one does for zero-copy I/O, and any peer that may write the file may punch
#            it. The same holds for whatever pins pages for long: RDMA regions, AF_XDP's umem, VFIO. Register after the last trim,
#            register anew after each, or keep registered ranges from being trimmed.
# Seen       read 5 bytes of "fresh"; mapping holds "later", file holds "later"; blocks before, punched, refilled: 128 120 128
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'T'
[package]
name = "hole"
version = "0.1.0"
edition = "2021"

[dependencies]
io-uring = "=0.7.16"
libc = "=0.2.189"

[workspace]
T
cat >"$dir/src/main.rs" <<'R'
use io_uring::{opcode, types::Fd, IoUring};
use std::{fs::File, io::Write, os::fd::*, os::unix::fs::FileExt, os::unix::fs::MetadataExt};

const PAGE: usize = 4096;
const LEN: usize = 16 * PAGE;

fn main() {
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"segment".as_ptr(), 0)) };
    let fd = file.as_raw_fd();
    let blocks = || file.metadata().unwrap().blocks();
    let base = unsafe {
        assert_eq!(libc::fallocate(fd, 0, 0, LEN as i64), 0);
        libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(base, libc::MAP_FAILED);
    let mut seen = vec![blocks()];

    let mut ring = IoUring::new(2).expect("io_uring");
    let buffer = libc::iovec { iov_base: base, iov_len: LEN };
    unsafe { ring.submitter().register_buffers(&[buffer]).expect("registered") };

    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(unsafe { libc::fallocate(fd, punch, PAGE as i64, PAGE as i64) }, 0);
    seen.push(blocks());
    assert_eq!(unsafe { libc::fallocate(fd, 0, 0, LEN as i64) }, 0);
    seen.push(blocks());
    let record = unsafe { base.cast::<u8>().add(PAGE) };
    unsafe { record.copy_from_nonoverlapping(b"later".as_ptr(), 5) };

    let (from, mut to) = std::io::pipe().unwrap();
    to.write_all(b"fresh").unwrap();
    let read = opcode::ReadFixed::new(Fd(from.as_raw_fd()), record, 5, 0).build();
    unsafe { ring.submission().push(&read).unwrap() };
    ring.submit_and_wait(1).unwrap();
    let result = ring.completion().next().unwrap().result();

    let mapped: [u8; 5] = unsafe { record.cast::<[u8; 5]>().read_volatile() };
    let mut filed = [0; 5];
    file.read_exact_at(&mut filed, PAGE as u64).unwrap();
    let text = |bytes: [u8; 5]| String::from_utf8_lossy(&bytes).into_owned();
    println!(
        "read {result} bytes of \"fresh\"; mapping holds {:?}, file holds {:?}; blocks before, punched, refilled: {} {} {}",
        text(mapped), text(filed), seen[0], seen[1], seen[2]
    );
    if (result, &mapped, &filed) != (5, b"later", b"later") || seen != [128, 120, 128] {
        eprintln!("changed");
        std::process::exit(1);
    }
}
R
CARGO_TARGET_DIR="$dir/target" cargo run -q --manifest-path "$dir/Cargo.toml"
