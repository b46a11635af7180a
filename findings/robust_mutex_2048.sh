#!/bin/bash
# A thread that dies holding more than 2048 robust mutexes leaves the oldest ones locked for ever
#
# Versions   glibc 2.36 (Debian 12), Linux 6.18; ROBUST_LIST_LIMIT has been 2048 since robust futexes came (2.6.17).
# Behaviour  A process takes 3000 process-shared robust mutexes and exits. The 2048 that it took last report EOWNERDEAD to whoever
#            locks them next. The 952 that it took first stay locked by nobody: trylock says EBUSY, lock would wait without end.
# Guess      All 3000 report EOWNERDEAD. pthread_mutexattr_setrobust(3) promises it of "a mutex" whose owner died, without a count;
#            pthread_mutex_lock has no error for "one too many", and taking the 2049th one does succeed. The only trace of the limit
#            is a comment in linux/futex.h: it guards the kernel's walk of the dead thread's list against a circle in it.
# Matters    A mutex per record, row or slot in shared memory is fine grained and looks crash-safe. A worker that locks a whole table
#            (a snapshot, a resize, an audit) and is killed meanwhile stalls every peer at the rows it locked first.
#            Who needs more than 2048 at once wants one lock above them, or range locks of a file.
# Seen       taken 3000: EOWNERDEAD 2048 (from 952 to 2999), EBUSY 952 (from 0 to 951)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat >"$dir/robust.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TAKEN = 3000, LIMIT = 2048 };

int main(void) {
    pthread_mutex_t *row = mmap(NULL, TAKEN * sizeof *row, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (row == MAP_FAILED) return perror("mmap"), 2;
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < TAKEN; i++) pthread_mutex_init(&row[i], &kind);

    pid_t holder = fork();
    if (holder == 0) {
        for (int i = 0; i < TAKEN; i++)
            if (pthread_mutex_lock(&row[i])) _exit(1);
        _exit(0);
    }
    int status;
    waitpid(holder, &status, 0);
    if (status) return fprintf(stderr, "changed: a lock was refused\n"), 1;

    for (int i = 0; i < TAKEN; i++) {
        int expected = i < TAKEN - LIMIT ? EBUSY : EOWNERDEAD;
        int got = pthread_mutex_trylock(&row[i]);
        if (got != expected) return fprintf(stderr, "changed: mutex %d gives %s\n", i, strerrorname_np(got)), 1;
    }
    printf("taken %d: EOWNERDEAD %d (from %d to %d), EBUSY %d (from 0 to %d)\n", TAKEN, LIMIT, TAKEN - LIMIT, TAKEN - 1,
           TAKEN - LIMIT, TAKEN - LIMIT - 1);
    return 0;
}
C
cc -Wall -Werror -pthread -o "$dir/robust" "$dir/robust.c"
"$dir/robust"
