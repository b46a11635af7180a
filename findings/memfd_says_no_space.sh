#!/bin/bash
# fstatfs of a memfd says 0 bytes free of 0, and fallocate of 64 MiB in it works
#
# Versions   Linux 6.18; libc's statvfs, Python's os.statvfs and the crates' fstatvfs all show what the kernel says.
# Behaviour  memfds and shared anonymous memory live in a mount of tmpfs of the kernel's own, which has no limit. It reports f_blocks,
#            f_bfree, f_bavail and f_files as 0. A file of /dev/shm reports that mount's limit and what is left of it.
# Guess      The figures of /dev/shm, or of memory: memfd_create(2) says that the file behaves like a regular file, with seals and
#            volatile storage as differences; statfs(2) has f_bavail as the free blocks, and f_type is TMPFS for both.
# Matters    "Is there room? then reserve" is the check before each growth of a segment, since a full /dev/shm is SIGBUS. The same code
#            given a memfd refuses always, or divides by zero for a percentage. Reserve with fallocate and take its error instead.
# Seen       memfd: tmpfs, 0 of 0 blocks free, fallocate of 64 MiB ok; /dev/shm: tmpfs, blocks and free blocks above 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/space.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

int main(void) {
    struct statfs is;
    int fd = memfd_create("segment", 0);
    if (fd < 0 || fstatfs(fd, &is)) return 2;
    int reserved = fallocate(fd, 0, 0, 64 << 20) == 0;
    int none = is.f_type == TMPFS_MAGIC && !is.f_blocks && !is.f_bfree && !is.f_bavail && !is.f_files;
    printf("memfd: %s, %lu of %lu blocks free, fallocate of 64 MiB %s", is.f_type == TMPFS_MAGIC ? "tmpfs" : "not tmpfs",
           (unsigned long)is.f_bavail, (unsigned long)is.f_blocks, reserved ? "ok" : "failed");
    close(fd);

    if (statfs("/dev/shm", &is)) return 2;
    int some = is.f_type == TMPFS_MAGIC && is.f_blocks && is.f_bavail;
    printf("; /dev/shm: %s, blocks and free blocks %s\n", is.f_type == TMPFS_MAGIC ? "tmpfs" : "not tmpfs", some ? "above 0" : "0");
    if (!none || !reserved || !some) return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/space" "$dir/space.c"
"$dir/space"
