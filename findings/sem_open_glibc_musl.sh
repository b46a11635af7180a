#!/bin/bash
# sem_open("/x") of a musl program and of a glibc program are two semaphores, and musl's is also shm_open("/x")
#
# Versions   musl 1.2.3-1 against glibc 2.36 (both Debian 12), Linux 6.18.
# Behaviour  glibc keeps the named semaphore "/x" in /dev/shm/sem.x, musl in /dev/shm/x. A musl program creates it, a glibc program
#            finds none (ENOENT), and with O_CREAT makes another of its own, without a word. In musl, semaphores and shared memory
#            share one set of names: shm_open("/x", O_EXCL) says EEXIST because of the semaphore, and sem_open("/x") takes a shared
#            memory object of that name, one of a glibc program too, for a semaphore (the first word is its value).
# Guess      One semaphore: sem_overview(7) says that two processes operate on the same one by passing the same name, and that Linux
#            names it sem.somename below /dev/shm. Names of semaphores and of shared memory being two sets is what every program
#            does that calls both "/myapp".
# Matters    An Alpine container beside a Debian one with /dev/shm shared: each side waits on, or believes to own, a semaphore that
#            the other never touches. A file that is opened by its path in /dev/shm is the same for both.
# Seen       musl creates: 7; glibc opens: ENOENT; glibc creates: 7; musl shm_open: EEXIST
#            glibc shm_open and writes 5: 5; musl sem_open of it: 5
set -euo pipefail
dir=$(mktemp -d)
name=/finding-$$
trap 'rm -rf "$dir" "/dev/shm$name" "/dev/shm/sem.${name#/}"' EXIT
cd "$dir"
apt-get download musl-dev=1.2.3-1 >/dev/null 2>&1 || { echo "apt has no musl-dev 1.2.3-1 (apt-get update?)" >&2; exit 2; }
dpkg -x musl-dev_*.deb .

cat >one.c <<'C'
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

// one (create|open|shm) NAME: prints the semaphore's value, or the error.
int main(int argc, char **argv) {
    char what = argv[argc > 2 ? 1 : 0][0];
    sem_t *semaphore = SEM_FAILED;
    int value = 5, file;
    if (what == 'c') semaphore = sem_open(argv[2], O_CREAT | O_EXCL, 0600, 7);
    if (what == 'o') semaphore = sem_open(argv[2], 0);
    if (semaphore != SEM_FAILED) return sem_getvalue(semaphore, &value), printf("%d\n", value), 0;
    if (what == 's' && (file = shm_open(argv[2], O_CREAT | O_EXCL | O_RDWR, 0600)) >= 0)
        return printf("%d\n", ftruncate(file, 4096) == 0 && write(file, &value, sizeof value) ? value : -1), 0;
    puts(errno == ENOENT ? "ENOENT" : errno == EEXIST ? "EEXIST" : "another error");
    return 0;
}
C
cc -O1 -Wall -Werror -pthread -o with_glibc one.c
lib=usr/lib/x86_64-linux-musl
cc -O1 -Wall -Werror -fno-stack-protector -nostdinc -isystem usr/include/x86_64-linux-musl -static -no-pie -nostdlib -o with_musl \
    $lib/crt1.o $lib/crti.o one.c $lib/libc.a $lib/crtn.o

expect() { # WHAT WANTED COMMAND...
    local got
    got=$("${@:3}")
    [ "$got" = "$2" ] || { echo "changed: $1: $got, not $2" >&2; exit 1; }
    echo "$1: $got"
}
expect "musl creates" 7 ./with_musl create $name
expect "glibc opens" ENOENT ./with_glibc open $name
expect "glibc creates" 7 ./with_glibc create $name
expect "musl shm_open" EEXIST ./with_musl shm $name
rm /dev/shm$name
expect "glibc shm_open and writes 5" 5 ./with_glibc shm $name
expect "musl sem_open of it" 5 ./with_musl open $name
