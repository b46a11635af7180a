#!/bin/bash
# The attach count of a System V segment counts pieces of mappings: one mprotect of a page makes 1 to 3, for good
#
# Versions   Linux 6.18; Debian 12's ipcs shows the same number as "nattch".
# Behaviour  A process attaches a segment once: 1. It makes one page in the middle read-only: 3, since the mapping is now three
#            areas of memory. It makes the page writable again: still 3, areas with a close hook are not merged. madvise, mlock and
#            munmap of a part do likewise. One shmdt takes all away: 0.
# Guess      1 throughout: shmctl(2) describes shm_nattch as the number of processes that have the segment attached, and shmop(2)
#            lets shmat add one and shmdt take one away. (A second shmat by the same process adds one: that guess holds.)
# Matters    Programs that end as "the last one" (nattch 1) never see it after a guard page, MADV_DONTDUMP or a locked page; and
#            clean-up scripts that compare nattch with a number of processes are wrong in both directions, fork included.
# Seen       attached 1, a page read-only 3, writable again 3, a page locked 5, detached once 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/nattch.c" <<'C'
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>

enum { PAGE = 4096, PAGES = 64 };

static int segment;

static int attaches(void) {
    struct shmid_ds is;
    return shmctl(segment, IPC_STAT, &is) ? -1 : (int)is.shm_nattch;
}

int main(void) {
    segment = shmget(IPC_PRIVATE, PAGES * PAGE, 0600);
    char *base = shmat(segment, NULL, 0);
    if (base == (void *)-1) return 2;
    const int wanted[] = {1, 3, 3, 5, 0};
    int got[5];
    got[0] = attaches();
    mprotect(base + 8 * PAGE, PAGE, PROT_READ);
    got[1] = attaches();
    mprotect(base + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE);
    got[2] = attaches();
    mlock(base + 32 * PAGE, PAGE);
    got[3] = attaches();
    shmdt(base);
    got[4] = attaches();
    shmctl(segment, IPC_RMID, NULL);
    printf("attached %d, a page read-only %d, writable again %d, a page locked %d, detached once %d\n", got[0], got[1], got[2],
           got[3], got[4]);
    if (memcmp(got, wanted, sizeof got)) return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/nattch" "$dir/nattch.c"
"$dir/nattch"
