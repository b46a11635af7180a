#!/bin/bash
# A robust mutex whose owner dies under QEMU's user mode stays locked: no EOWNERDEAD, though making and locking it said 0
#
# Versions   qemu-user-static 1:7.2+dfsg-7+deb12u18+b3 (Debian 12), qemu-x86_64 on x86-64, glibc 2.36, Linux 6.18.
# Behaviour  A process locks a process-shared robust mutex in a file and ends with it. If it ran natively, the next trylock, by a native
#            or an emulated process, gives EOWNERDEAD. If it ran under qemu-x86_64, trylock gives EBUSY to both, for ever: the emulator
#            answers set_robust_list with ENOSYS, so the kernel has no list to walk when the process dies, and glibc does not tell.
# Guess      EOWNERDEAD, or ENOTSUP where the mutex is made robust or set up: pthread_mutexattr_setrobust(3) has no way to say that the
#            robustness can't be had, and pthread_mutex_init may fail. Plain mutexes across processes work under the emulator.
# Matters    Tests of crash recovery on another architecture (cross-compiled, run by binfmt_misc) wait for ever at the first killed owner,
#            or are taken for a fault of that architecture; an emulated container beside native ones stalls them all when it is killed.
#            Locks of open file descriptions go with their holder under the emulator, too.
# Seen       owner native: native EOWNERDEAD, emulated EOWNERDEAD; owner emulated: native EBUSY, emulated EBUSY
#            lock of an open file description, owner emulated: native free, emulated free
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
[ "$(uname -m)" = x86_64 ] || { echo "skipped: not x86-64"; exit 0; }
version=1:7.2+dfsg-7+deb12u18+b3
apt-get download qemu-user-static=$version >/dev/null 2>&1 || { echo "apt has no qemu-user-static $version (apt-get update?)" >&2; exit 2; }
dpkg --fsys-tarfile qemu-user-static_*.deb | tar -x ./usr/bin/qemu-x86_64-static
cat >mutex.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// mutex own FILE: makes a mutex in the file, locks it and the file's first byte, and dies. mutex look FILE: prints what trylock says.
// mutex lock FILE: prints whether the first byte is locked.
int main(int argc, char **argv) {
    int fd = open(argv[argc - 1], O_RDWR | O_CREAT, 0600);
    if (argc != 3 || fd < 0 || ftruncate(fd, 4096)) return 2;
    pthread_mutex_t *mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mutex == MAP_FAILED) return 2;
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    if (strcmp(argv[1], "own") == 0) {
        pthread_mutexattr_t kind;
        if (pthread_mutexattr_init(&kind) || pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED)) return 2;
        if (pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST)) return puts("not robust"), 1;
        if (pthread_mutex_init(mutex, &kind)) return puts("not made"), 1;
        if (pthread_mutex_trylock(mutex)) return puts("not locked"), 1;
        _exit(fcntl(fd, F_OFD_SETLK, &byte) ? 2 : 0);
    }
    if (strcmp(argv[1], "lock") == 0) {
        if (fcntl(fd, F_OFD_GETLK, &byte)) return 2;
        puts(byte.l_type == F_UNLCK ? "free" : "locked");
        return 0;
    }
    int got = pthread_mutex_trylock(mutex);
    puts(got ? strerrorname_np(got) : "0");
    // A dead owner's mutex that is ours now goes with this process, and is the next one's in the same way.
    return 0;
}
C
cc -Wall -Werror -pthread -o mutex mutex.c
qemu=./usr/bin/qemu-x86_64-static

expect() { # WHAT WANTED GOT
    echo "$1: $3"
    [ "$2" = "$3" ] || { echo changed >&2; exit 1; }
}
./mutex own native
expect "owner native" "native EOWNERDEAD, emulated EOWNERDEAD" "native $(./mutex look native), emulated $($qemu ./mutex look native)"
$qemu ./mutex own emulated
expect "owner emulated" "native EBUSY, emulated EBUSY" "native $(./mutex look emulated), emulated $($qemu ./mutex look emulated)"
expect "lock of an open file description, owner emulated" "native free, emulated free" \
    "native $(./mutex lock emulated), emulated $($qemu ./mutex lock emulated)"
