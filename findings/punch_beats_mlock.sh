#!/bin/bash
# A hole punched in the file takes pages away from under mlock, which refuses MADV_REMOVE of the same range
#
# Versions   Linux 6.18.
# Behaviour  A process locks a shared mapping. Its own madvise(MADV_REMOVE) is refused (EINVAL, "locked"). fallocate(PUNCH_HOLE) of
#            the same range, by it or by any peer with the file open for writing, returns 0: the locked pages are gone, mincore
#            says so, the next touch is a page fault that must find memory, and VmLck still counts the range in full.
# Guess      EBUSY or EINVAL for both, or pages kept: mlock(2) has the pages "guaranteed to stay in RAM until later unlocked", and
#            madvise(2) calls MADV_REMOVE equivalent to punching a hole, and says it can't be applied to locked pages.
# Matters    Real-time users lock a segment so that no access faults. With a peer's allocator that trims, the guarantee is not theirs
#            to have; and a trim made with MADV_REMOVE fails in the process that locked, and works in all others.
# Seen       locked: 16 of 16 pages, 64 KiB; MADV_REMOVE: EINVAL; punch: ok; 15 of 16 pages, 64 KiB
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/punch.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, LEN = PAGES * PAGE };

static int resident(void *base) {
    unsigned char page[PAGES];
    int count = 0;
    if (mincore(base, LEN, page)) _exit(2);
    for (int i = 0; i < PAGES; i++) count += page[i] & 1;
    return count;
}

static int locked_kib(void) {
    char line[256];
    int kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "VmLck: %d", &kib);
    return kib;
}

int main(void) {
    int fd = memfd_create("segment", 0);
    if (fd < 0 || ftruncate(fd, LEN)) return 2;
    void *base = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED || mlock(base, LEN)) return perror("mlock"), 2;
    int before = resident(base), locked = locked_kib();
    int removed = madvise(base, PAGE, MADV_REMOVE) ? errno : 0;
    int punched = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) ? errno : 0;
    printf("locked: %d of %d pages, %d KiB; MADV_REMOVE: %s; punch: %s; %d of %d pages, %d KiB\n", before, PAGES, locked,
           removed ? strerrorname_np(removed) : "ok", punched ? strerrorname_np(punched) : "ok", resident(base), PAGES, locked_kib());
    int as_seen = before == PAGES && removed == EINVAL && !punched && resident(base) == PAGES - 1 && locked_kib() == locked;
    if (!as_seen) fprintf(stderr, "changed\n");
    return !as_seen;
}
C
cc -Wall -Werror -o "$dir/punch" "$dir/punch.c"
"$dir/punch"
