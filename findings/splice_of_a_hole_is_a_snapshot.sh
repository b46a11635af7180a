#!/bin/bash
# Bytes spliced from /dev/shm change with the file until they are read, except where nothing had been stored yet
#
# Versions   Linux 6.18 (splice and sendfile from tmpfs or memfd).
# Behaviour  Three pages of one segment are spliced into a pipe: one was written, one is a hole, one was reserved with fallocate but
#            not written. The owner then stores into all three. The reader of the pipe gets the new bytes of the first, and the old
#            zeros of the others: the pipe refers to the page itself, but for what holds no data yet to the kernel's page of zeros.
# Guess      One or the other for the whole segment, and for reserved memory what holds for written memory. The notes of sendfile(2)
#            ask not to change the file until the data is consumed, so "live"; who tests with a fresh segment sees "snapshot".
# Matters    Zero-copy out of a heap in shared memory (to a log, a socket) is right in the test, where memory is fresh, and sends
#            later contents in production, where blocks are used again. A record must be held until the reader has its bytes.
# Seen       written page: live; hole: snapshot; reserved page: snapshot
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/splice.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };

int main(void) {
    const char *kind[] = {"written page", "hole", "reserved page"};
    const int live[] = {1, 0, 0};
    int fd = memfd_create("segment", 0), pipes[2], changed = 0;
    if (fd < 0 || ftruncate(fd, 3 * PAGE) || pipe(pipes)) return 2;
    if (pwrite(fd, "old!", 4, 0) != 4 || fallocate(fd, 0, 2 * PAGE, PAGE)) return 2;
    for (off64_t at = 0, from; at < 3 * PAGE; at += PAGE)
        if (splice(fd, (from = at, &from), pipes[1], NULL, 4, 0) != 4) return 2;

    for (int i = 0; i < 3; i++)
        if (pwrite(fd, "new!", 4, i * PAGE) != 4) return 2;
    for (int i = 0; i < 3; i++) {
        char got[4];
        if (read(pipes[0], got, 4) != 4) return 2;
        int is_live = memcmp(got, "new!", 4) == 0;
        printf("%s: %s%s", kind[i], is_live ? "live" : "snapshot", i < 2 ? "; " : "\n");
        changed |= is_live != live[i];
    }
    if (changed) fprintf(stderr, "changed\n");
    return changed;
}
C
cc -Wall -Werror -o "$dir/splice" "$dir/splice.c"
"$dir/splice"
