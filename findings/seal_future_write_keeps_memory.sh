#!/bin/bash
# Under F_SEAL_FUTURE_WRITE the owner may store zeros, but can't give memory back: a hole is EPERM
#
# Versions   Linux 6.18; the seal is of 5.1.
# Behaviour  With the seal set, the owner's older mapping stays writable, as promised. madvise(MADV_REMOVE) through that very mapping
#            is refused with EPERM, and so is fallocate(PUNCH_HOLE). Memory can be added still (plain fallocate), and be taken away
#            by cutting the file off (ftruncate) and growing it again, which loses all that lies behind and raises SIGBUS in peers.
# Guess      MADV_REMOVE works: fcntl(2) says the contents "can still be modified via shared writable mappings" made before,
#            and the effect of MADV_REMOVE is zeros through such a mapping. The errors of madvise(2) have EPERM for HWPOISON only.
# Matters    The seal is made for "one writes, the others read". An allocator in such a segment can never trim: what was used once
#            stays allocated until the file goes. Who needs both keeps read-only descriptors instead of the seal.
# Seen       store: ok; MADV_REMOVE: EPERM; punch: EPERM; more memory: ok; KiB before and after: 64 68
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/seal.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, LEN = 16 * PAGE };

static long kib(int fd) {
    struct stat is;
    fstat(fd, &is);
    return (long)is.st_blocks / 2;
}

static void expect(const char *what, int result, int wanted) {
    int got = result ? errno : 0;
    printf("%s: %s; ", what, got ? strerrorname_np(got) : "ok");
    if (got != wanted) fprintf(stderr, "changed: %s: %s\n", what, strerror(got)), _exit(1);
}

int main(void) {
    int fd = memfd_create("segment", MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, LEN)) return 2;
    char *base = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return 2;
    memset(base, 1, LEN);
    long before = kib(fd);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)) return perror("seal"), 2;

    base[PAGE] = 2;
    char back;
    expect("store", pread(fd, &back, 1, PAGE) != 1 || back != 2, 0);
    expect("MADV_REMOVE", madvise(base + PAGE, PAGE, MADV_REMOVE), EPERM);
    expect("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE), EPERM);
    expect("more memory", fallocate(fd, 0, LEN, PAGE), 0);
    printf("KiB before and after: %ld %ld\n", before, kib(fd));
    return kib(fd) == before + 4 ? 0 : 1;
}
C
cc -Wall -Werror -o "$dir/seal" "$dir/seal.c"
"$dir/seal"
