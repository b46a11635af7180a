#!/bin/bash
# fuser and lsof say that nobody uses a segment which a process maps and writes, once that process's main thread has ended
#
# Versions   psmisc 23.6-1, lsof 4.95.0-1 (both Debian 12), Linux 6.18.
# Behaviour  A process maps a segment, starts a thread that writes to it, and its main thread calls pthread_exit. The process lives:
#            the segment changes, a pidfd is not readable, waitpid has nothing. Its /proc/PID says "Z (zombie)", maps is empty, and
#            fd leads nowhere, because these files speak of the main thread alone. fuser and lsof exit with 1 and name nobody.
#            /proc/PID/task/TID/maps of a thread that lives lists the mapping.
# Guess      The process is shown: proc(5) warns that fd, exe, cwd, root and task are not available then (task is), and says of maps only
#            that it has the regions that are mapped; the memory is the process's, not a thread's. fuser(1) and lsof(8) have no word
#            of it. pthread_exit(3) recommends this way to end main, so that other threads can continue.
# Matters    "Remove what fuser finds unused" is how clean-up scripts take crash leftovers out of /dev/shm: this one is in use. Watchdogs
#            that take state Z for death give a living writer's role away. Ask a lock on the file, or a pidfd; or look at every thread.
# Seen       main stays: S, maps 1, threads' maps 1, fuser 0, lsof 0, still writing, pidfd says alive
#            main ends: Z, maps 0, threads' maps 1, fuser 1, lsof 1, still writing, pidfd says alive
set -euo pipefail
dir=$(mktemp -d)
segment=/dev/shm/finding-$$
child=
trap '[ -z "$child" ] || kill -9 "$child"; rm -rf "$dir" "$segment"' EXIT
(
    cd "$dir"
    apt-get download psmisc=23.6-1 lsof=4.95.0-1 >/dev/null 2>&1 ||
        { echo "apt has no psmisc 23.6-1 or lsof 4.95.0-1 (apt-get update?)" >&2; exit 2; }
    for package in *.deb; do dpkg -x "$package" .; done
)
cat >"$dir/beat.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void *beat(void *count) {
    do ++*(volatile int *)count;
    while (usleep(1000) == 0);
    return NULL;
}

static volatile int *map(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, PAGE)) _exit(2);
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || close(fd)) _exit(2);
    return at;
}

// beat (stays|ends) SEGMENT: writes to it for ever. beat look SEGMENT PID: whether it is written, and what a pidfd says.
int main(int argc, char **argv) {
    pthread_t thread;
    volatile int *count = map(argv[argc > 2 ? 2 : 0]);
    if (strcmp(argv[1], "look") == 0) {
        int before = *count;
        struct pollfd pidfd = {(int)syscall(SYS_pidfd_open, atoi(argv[3]), 0), POLLIN, 0};
        for (int i = 0; i < 100 && *count == before; i++) usleep(100000);
        printf("%s, pidfd says %s\n", *count != before ? "still writing" : "silent", poll(&pidfd, 1, 0) == 0 ? "alive" : "dead");
        return 0;
    }
    if (pthread_create(&thread, NULL, beat, (void *)count)) return 2;
    if (strcmp(argv[1], "ends") == 0) pthread_exit(NULL);
    return pthread_join(thread, NULL);
}
C
cc -Wall -Werror -pthread -o "$dir/beat" "$dir/beat.c"

code() { # COMMAND...: its exit code
    "$@" >/dev/null 2>&1 && echo 0 || echo $?
}
expect() { # WHAT STATE WANTED
    "$dir/beat" "$1" "$segment" &
    child=$!
    local got state=
    for _ in {1..100}; do
        state=$(awk '$1 == "State:" { print $2 }' "/proc/$child/status")
        [ "$state" != "$2" ] || [ ! -s "$segment" ] || ! cat /proc/"$child"/task/*/maps 2>/dev/null | grep -q "$segment" || break
        sleep 0.1
    done
    got="$state, maps $(grep -c "$segment" "/proc/$child/maps" || true)"
    got+=", threads' maps $(cat /proc/"$child"/task/*/maps | grep "$segment" | sort -u | wc -l)"
    got+=", fuser $(code "$dir/bin/fuser" "$segment"), lsof $(code "$dir/usr/bin/lsof" "$segment")"
    got+=", $("$dir/beat" look "$segment" "$child")"
    echo "main $1: $got"
    kill -9 "$child"
    wait "$child" 2>/dev/null || true
    child=
    [ "$got" = "$3" ] || { echo changed >&2; exit 1; }
}
expect stays S "S, maps 1, threads' maps 1, fuser 0, lsof 0, still writing, pidfd says alive"
expect ends Z "Z, maps 0, threads' maps 1, fuser 1, lsof 1, still writing, pidfd says alive"
