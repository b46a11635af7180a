#!/bin/bash
# Under QEMU's user mode madvise says 0 to MADV_REMOVE, MADV_DONTFORK and MADV_POPULATE_WRITE, and does none of them
#
# Versions   qemu-user-static 1:7.2+dfsg-7+deb12u18+b3 (Debian 12), qemu-x86_64 on x86-64, Linux 6.18.
# Behaviour  The same program runs natively and under qemu-x86_64. On a shared mapping, MADV_REMOVE leaves contents and memory where they
#            are, MADV_POPULATE_WRITE brings no memory, a child of fork finds a page that was MADV_DONTFORK, and advice number 1234,
#            which no kernel has, is taken as well: 0 each time. fallocate, also to punch a hole, goes to the kernel and works.
# Guess      They work, or fail with EINVAL, as unknown advice does: madvise(2) sets advice that changes what a program sees or may rely on
#            apart from mere hints, and promises EINVAL for what is not valid. Binaries of another architecture run this way in
#            containers (binfmt_misc), and in the tests of whoever cross-compiles.
# Matters    Allocators in shared memory do all three: "returned" memory stays, and is not zero when taken as fresh; "reserved" memory is
#            SIGBUS when the mount is full; children keep what pins a lock. Take POPULATE_WRITE's word only when mincore shows the
#            page; punch by fallocate.
# Seen       native: REMOVE ok, byte 0, KiB 60; POPULATE_WRITE ok, KiB 64; DONTFORK ok, child: no page; 1234 EINVAL; punch ok, KiB 60
#            qemu: REMOVE ok, byte 7, KiB 64; POPULATE_WRITE ok, KiB 0; DONTFORK ok, child: page; 1234 ok; punch ok, KiB 60
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
[ "$(uname -m)" = x86_64 ] || { echo "skipped: not x86-64"; exit 0; }
version=1:7.2+dfsg-7+deb12u18+b3
apt-get download qemu-user-static=$version >/dev/null 2>&1 || { echo "apt has no qemu-user-static $version (apt-get update?)" >&2; exit 2; }
dpkg --fsys-tarfile qemu-user-static_*.deb | tar -x ./usr/bin/qemu-x86_64-static
cat >advice.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, LEN = 16 * PAGE, POPULATE_WRITE = 23, UNKNOWN = 1234 };

static int fd;

static char *segment(void) {
    fd = memfd_create("segment", 0);
    if (fd < 0 || ftruncate(fd, LEN)) _exit(2);
    char *base = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) _exit(2);
    return base;
}

static const char *word(int result) { return result ? strerrorname_np(errno) : "ok"; }

static long kib(void) {
    struct stat is;
    if (fstat(fd, &is)) _exit(2);
    return (long)is.st_blocks / 2;
}

// Asks the kernel, which answers EFAULT where no page is mapped.
static int is_mapped(const char *page) {
    int ends[2];
    if (pipe(ends)) _exit(2);
    return write(ends[1], page, 1) == 1;
}

int main(void) {
    char *base = segment();
    memset(base, 7, LEN);
    const char *said = word(madvise(base, PAGE, MADV_REMOVE));
    long left = kib();
    printf("REMOVE %s, byte %d, KiB %ld; ", said, base[0], left);

    base = segment();
    said = word(madvise(base, LEN, POPULATE_WRITE));
    printf("POPULATE_WRITE %s, KiB %ld; ", said, kib());

    said = word(madvise(base, PAGE, MADV_DONTFORK));
    int status;
    pid_t child = fork();
    if (child == 0) _exit(is_mapped(base));
    if (child < 0 || waitpid(child, &status, 0) != child) return 2;
    printf("DONTFORK %s, child: %s; ", said, WEXITSTATUS(status) ? "page" : "no page");
    printf("%d %s; ", UNKNOWN, word(madvise(base + PAGE, PAGE, UNKNOWN)));

    base = segment();
    memset(base, 7, LEN);
    said = word(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
    left = kib();
    printf("punch %s, KiB %ld\n", said, base[0] ? -1 : left);
    return 0;
}
C
cc -Wall -Werror -o advice advice.c

expect() { # WHAT WANTED COMMAND...
    local got
    got=$("${@:3}")
    echo "$1: $got"
    [ "$got" = "$2" ] || { echo changed >&2; exit 1; }
}
expect native "REMOVE ok, byte 0, KiB 60; POPULATE_WRITE ok, KiB 64; DONTFORK ok, child: no page; 1234 EINVAL; punch ok, KiB 60" ./advice
expect qemu "REMOVE ok, byte 7, KiB 64; POPULATE_WRITE ok, KiB 0; DONTFORK ok, child: page; 1234 ok; punch ok, KiB 60" \
    ./usr/bin/qemu-x86_64-static ./advice
