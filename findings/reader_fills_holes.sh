#!/bin/bash
# A process with read permission alone fills a sparse segment with memory by looking at it: which looks do, and which don't
#
# Versions   Linux 6.18, tmpfs and memfd.
# Behaviour  On a sparse file through a descriptor open for reading only: pread, sendfile, SEEK_DATA and mincore leave it as it is. A
#            load through a PROT_READ mapping allocates the page in the file, for good and for everybody; so does a load through a
#            private mapping, write(2) out of the mapping, a peer's or debugger's process_vm_readv, and MADV_POPULATE_READ, while
#            MADV_WILLNEED does nothing.
# Guess      Nothing is allocated by reading: anonymous memory maps one shared page of zeros, and a reader can't change a file that it
#            has not opened for writing. mmap(2), tmpfs(5) and memfd_create(2) don't say.
# Matters    Inspectors, checksums and debuggers that scan a mostly empty segment make it use all of its size, against the mount's
#            limit and their own memory control group, and the owner's st_blocks grows with no store. Scan with pread, or SEEK_DATA.
# Seen       pread 0, sendfile 0, SEEK_DATA 0, mincore 0, MADV_WILLNEED 0, load 4, private load 8, write(2) from it 12,
#            process_vm_readv 16, MADV_POPULATE_READ 1024, all in KiB
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/look.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, LEN = 1 << 20 };

static int file, changed;

static void expect(const char *look, long kib) {
    struct stat is;
    fstat(file, &is);
    printf("%s %ld, ", look, (long)is.st_blocks / 2);
    changed |= is.st_blocks / 2 != kib;
}

int main(void) {
    static char bytes[LEN], path[64];
    static unsigned char page[LEN / PAGE];
    int pipes[2], owner = memfd_create("segment", 0);
    if (owner < 0 || ftruncate(owner, LEN) || pipe(pipes)) return 2;
    snprintf(path, sizeof path, "/proc/self/fd/%d", owner);
    file = open(path, O_RDONLY);
    close(owner);
    if (pread(file, bytes, LEN, 0) != LEN) return 2;
    expect("pread", 0);
    if (sendfile(pipes[1], file, &(off_t){0}, PAGE) != PAGE || read(pipes[0], bytes, PAGE) != PAGE) return 2;
    expect("sendfile", 0);
    lseek(file, 0, SEEK_DATA);
    expect("SEEK_DATA", 0);
    volatile char *base = mmap(NULL, LEN, PROT_READ, MAP_SHARED, file, 0);
    volatile char *private = mmap(NULL, LEN, PROT_READ, MAP_PRIVATE, file, 0);
    if (base == MAP_FAILED || private == MAP_FAILED || mincore((void *)base, LEN, page)) return 2;
    expect("mincore", 0);
    madvise((void *)base, LEN, MADV_WILLNEED);
    expect("MADV_WILLNEED", 0);
    (void)base[0];
    expect("load", 4);
    (void)private[8 * PAGE];
    expect("private load", 8);
    if (write(pipes[1], (void *)(base + 16 * PAGE), PAGE) != PAGE) return 2;
    expect("write(2) from it", 12);
    struct iovec to = {bytes, PAGE}, from = {(void *)(base + 32 * PAGE), PAGE};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != PAGE) return 2;
    expect("process_vm_readv", 16);
    if (madvise((void *)base, LEN, MADV_POPULATE_READ)) return 2;
    expect("MADV_POPULATE_READ", 1024);
    puts("all in KiB");
    if (changed) fprintf(stderr, "changed\n");
    return changed;
}
C
cc -Wall -Werror -o "$dir/look" "$dir/look.c"
"$dir/look"
