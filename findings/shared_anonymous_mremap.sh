#!/bin/bash
# mremap grows a shared anonymous mapping and says ok, and there is no memory behind the new part
#
# Versions   Linux 6.18.
# Behaviour  MAP_SHARED | MAP_ANONYMOUS of one page, mremap to four: success, and the map shows 16 KiB. The object behind it keeps the
#            size that mmap gave it: MADV_POPULATE_WRITE of the second page, and read(2) into it, fail with EFAULT (a plain store is
#            SIGBUS). A private anonymous mapping grows as one would think.
# Guess      It grows, or mremap fails. mremap(2) "expands an existing memory mapping", compares itself to realloc, and describes a
#            shared one for old_size 0 only; its errors don't know the case. No descriptor is there to ftruncate.
# Matters    Memory shared over a fork (work queues, counters, arenas) that grows by mremap passes until somebody touches the new
#            part. A memfd can grow: ftruncate first, then mremap.
# Seen       shared: mremap ok, populate EFAULT, read(2) EFAULT; private: mremap ok, populate ok; memfd: mremap ok, populate ok
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/grow.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };

static const char *word(int failed) { return failed ? strerrorname_np(errno) : "ok"; }

int main(void) {
    int pipes[2], fd = memfd_create("segment", 0), changed = 0;
    if (fd < 0 || ftruncate(fd, PAGE) || pipe(pipes)) return 2;
    char *base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    base = mremap(base, PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    printf("shared: mremap %s", word(base == MAP_FAILED));
    changed |= base == MAP_FAILED;
    int failed = madvise(base + PAGE, PAGE, MADV_POPULATE_WRITE);
    printf(", populate %s", word(failed));
    changed |= !failed || errno != EFAULT;
    failed = write(pipes[1], "x", 1) != 1 || read(pipes[0], base + PAGE, 1) != 1;
    printf(", read(2) %s", word(failed));
    changed |= !failed || errno != EFAULT;

    base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base = mremap(base, PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    failed = madvise(base + PAGE, PAGE, MADV_POPULATE_WRITE);
    printf("; private: mremap %s, populate %s", word(base == MAP_FAILED), word(failed));
    changed |= failed;

    base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 4 * PAGE)) return 2;
    base = mremap(base, PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    failed = madvise(base + PAGE, PAGE, MADV_POPULATE_WRITE);
    printf("; memfd: mremap %s, populate %s\n", word(base == MAP_FAILED), word(failed));
    changed |= failed;
    if (changed) fprintf(stderr, "changed\n");
    return changed;
}
C
cc -Wall -Werror -o "$dir/grow" "$dir/grow.c"
"$dir/grow"
