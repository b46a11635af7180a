#!/bin/bash
# A process-shared recursive mutex is held by two processes at once when they run in two pid namespaces
#
# Versions   glibc 2.36 (Debian 12), Linux 6.18. Wants root, or user namespaces open to users.
# Behaviour  glibc knows a mutex's owner by its thread id as the owner's own pid namespace counts it. The first process of a
#            container is 1, and so it is in the next container. What process 1 of one holds is thus "mine already" to process 1 of
#            another: trylock of a recursive mutex, plain or robust, returns 0 and both are inside; a timed lock of an error-checking
#            one, or a timed read lock of an rwlock held for writing, gives EDEADLK to a caller that holds nothing.
# Guess      EBUSY and ETIMEDOUT for everyone, as processes of other ids get. pthread_mutexattr_setpshared(3) offers such a mutex to
#            all threads that reach its memory, those of other processes included; pid_namespaces(7) has no word about mutexes.
# Matters    Containers that share /dev/shm or a tmpfs volume are the usual way to share memory between them, and the main process
#            of each is number 1. It is exclusion that breaks, in silence, with nobody dead. A normal mutex asks for no owner and
#            is safe here; so are locks of open file descriptions.
# Seen       held by a 1; outside: EBUSY EBUSY ETIMEDOUT ETIMEDOUT; another namespace's 1: 0 0 EDEADLK EDEADLK
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat >"$dir/ns.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct shared { pthread_mutex_t recursive, robust, checking; pthread_rwlock_t rw; int got[4], as_guessed, as_seen; } *at;

static void make(pthread_mutex_t *mutex, int type, int robust) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_settype(&kind, type);
    pthread_mutexattr_setrobust(&kind, robust);
    pthread_mutex_init(mutex, &kind);
}

static void try_all(void) {
    struct timespec now; // a deadline that has come
    clock_gettime(CLOCK_REALTIME, &now);
    at->got[0] = pthread_mutex_trylock(&at->recursive);
    at->got[1] = pthread_mutex_trylock(&at->robust);
    at->got[2] = pthread_mutex_timedlock(&at->checking, &now);
    at->got[3] = pthread_rwlock_timedrdlock(&at->rw, &now);
}

static int same(const char *who, const int want[4]) {
    const int *got = at->got;
    printf("%s %s %s %s %s", who, strerrorname_np(got[0]), strerrorname_np(got[1]), strerrorname_np(got[2]), strerrorname_np(got[3]));
    return memcmp(got, want, sizeof at->got) == 0;
}

// Waits for a child that runs `f`, as number 1 of a new pid namespace if `inside`.
static void run(int inside, void (*f)(void)) {
    if (fork() == 0) {
        if (inside && unshare(CLONE_NEWPID | (geteuid() ? CLONE_NEWUSER : 0))) perror("unshare"), _exit(2);
        if (fork() == 0) f(), _exit(0);
        wait(NULL), _exit(0);
    }
    wait(NULL);
}

static void hold_while_others_try(void) {
    pthread_mutex_lock(&at->recursive), pthread_mutex_lock(&at->robust);
    pthread_mutex_lock(&at->checking), pthread_rwlock_wrlock(&at->rw);
    run(0, try_all);
    at->as_guessed = same("held by a 1; outside:", (int[]){EBUSY, EBUSY, ETIMEDOUT, ETIMEDOUT});
    run(1, try_all);
    at->as_seen = same("; another namespace's 1:", (int[]){0, 0, EDEADLK, EDEADLK});
    puts(""), fflush(stdout);
}

int main(void) {
    at = mmap(NULL, sizeof *at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    make(&at->recursive, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_STALLED);
    make(&at->robust, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ROBUST);
    make(&at->checking, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_STALLED);
    pthread_rwlockattr_t kind;
    pthread_rwlockattr_init(&kind), pthread_rwlockattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&at->rw, &kind);
    run(1, hold_while_others_try);
    if (!at->as_guessed || !at->as_seen) return fprintf(stderr, "changed, or no pid namespace to be had\n"), 1;
    return 0;
}
C
cc -Wall -Werror -pthread -o "$dir/ns" "$dir/ns.c" && "$dir/ns"
