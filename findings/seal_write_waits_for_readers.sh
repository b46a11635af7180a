#!/bin/bash
# F_SEAL_WRITE is refused because of readers: a read-only mapping, or bytes that lie unread in a pipe
#
# Versions   Linux 6.18; memfd seals are of 3.17.
# Behaviour  A memfd whose writer has unmapped and closed its own mapping can't be sealed against writing (EBUSY) as long as a peer
#            maps it PROT_READ, MAP_SHARED through the descriptor it was sent, or as long as pages of it lie in a pipe by splice or
#            sendfile. A mapping through a read-only descriptor (/proc/self/fd/N opened O_RDONLY) does not stand in the way.
# Guess      The seal is set: nobody can write. fcntl(2) gives EBUSY for "writable, shared" mappings only, and none is. But the kernel
#            counts mappings that mprotect could make writable, which is each shared one through a descriptor open for writing;
#            and it waits (some 150 ms, then EBUSY) for references to pages, which it can't tell from a writer's.
# Matters    Fill, send, seal is the natural order for handing over an immutable buffer, and a fast receiver makes it fail now and
#            then. Seal before sending; or send a descriptor that is open for reading only.
# Seen       mapped by a reader: EBUSY; in a pipe: EBUSY; mapped through a read-only descriptor: ok
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/seal.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int filled(void) {
    int fd = memfd_create("message", MFD_ALLOW_SEALING);
    if (fd < 0 || write(fd, "hello", 5) != 5) _exit(2);
    return fd;
}

static void expect(const char *what, int fd, int wanted) {
    int got = fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) ? errno : 0;
    printf("%s: %s%s", what, got ? strerrorname_np(got) : "ok", wanted ? "; " : "\n");
    fflush(stdout);
    if (got != wanted) fprintf(stderr, "changed: %s: %s\n", what, strerror(got)), _exit(1);
}

int main(void) {
    int fd = filled();
    void *view = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED) return 2;
    expect("mapped by a reader", fd, EBUSY);
    munmap(view, 4096);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)) return fprintf(stderr, "not the mapping's fault\n"), 1;

    int pipes[2];
    off64_t at = 0;
    char bytes[5];
    fd = filled();
    if (pipe(pipes) || splice(fd, &at, pipes[1], NULL, 5, 0) != 5) return 2;
    expect("in a pipe", fd, EBUSY);
    if (read(pipes[0], bytes, 5) != 5) return 2;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)) return fprintf(stderr, "not the pipe's fault\n"), 1;

    char path[64];
    fd = filled();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, open(path, O_RDONLY), 0) == MAP_FAILED) return 2;
    expect("mapped through a read-only descriptor", fd, 0);
    return 0;
}
C
cc -Wall -Werror -o "$dir/seal" "$dir/seal.c"
"$dir/seal"
