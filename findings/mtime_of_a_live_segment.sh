#!/bin/bash
# A segment in /dev/shm that is written all the time keeps the mtime of the last page's first touch, msync or not
#
# Versions   Linux 6.18, tmpfs and memfd.
# Behaviour  The first store to a page of a shared mapping updates mtime (a page fault). Later stores to it never do, nor does
#            msync(MS_SYNC), nor munmap: tmpfs does not track what is dirty, so no store faults again. A new mapping's first store
#            does. On a disk's file system each msync arms the next update.
# Guess      mmap(2): st_mtime "will be updated after a write to the mapped region, and before a subsequent msync".
# Matters    Tools and scripts that remove what has not changed for hours (tmp cleaners, find -mmin +60 -delete) see busy, long-lived
#            segments as the oldest ones. Monitors that take mtime for a heartbeat see death. Who wants a sign of life stores one in
#            the segment, or holds a lock on the file; futimens on the descriptor works too.
# Seen       first store: updated; second store and msync: not; after munmap: not; store through a new mapping: updated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/mtime.c" <<'C'
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fd;
static struct timespec last;

// Is mtime another one than at the call before? Sleeps, so that whatever comes next falls into another tick.
static int updated(void) {
    struct stat is;
    fstat(fd, &is);
    int differs = is.st_mtim.tv_sec != last.tv_sec || is.st_mtim.tv_nsec != last.tv_nsec;
    last = is.st_mtim;
    usleep(50000);
    return differs;
}

static volatile char *mapped(void) {
    void *base = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) _exit(2);
    return base;
}

int main(void) {
    fd = memfd_create("segment", 0);
    if (fd < 0 || ftruncate(fd, 4096)) return 2;
    volatile char *base = mapped();
    updated();
    *base = 1;
    int first = updated();
    *base = 2;
    if (msync((void *)base, 4096, MS_SYNC)) return 2;
    int second = updated();
    munmap((void *)base, 4096);
    int unmapped = updated();
    *mapped() = 3;
    int anew = updated();
    const char *word[] = {"not", "updated"};
    printf("first store: %s; second store and msync: %s; after munmap: %s; store through a new mapping: %s\n", word[first],
           word[second], word[unmapped], word[anew]);
    if (!first || second || unmapped || !anew) return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/mtime" "$dir/mtime.c"
"$dir/mtime"
