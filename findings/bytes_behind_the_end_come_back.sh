#!/bin/bash
# Stores behind the end of a segment, in its last page, are seen by peers at once and are contents when the file grows
#
# Versions   Linux 6.18, tmpfs and memfd.
# Behaviour  A segment of 100 bytes is mapped; a store at byte 200 works, as it may. Another mapping sees it. The file then grows by
#            ftruncate, by fallocate or by a write further on: byte 200 of the file is what was stored, for read(2) too. Cutting the
#            file off, by contrast, clears the rest of the page.
# Guess      Zero: truncate(2) has the extended part read as null bytes, and mmap(2) says that the rest of the last page is zeroed when
#            mapped and changes there are not written out to the file. On a disk's file system the kernel keeps to that.
# Matters    Formats that grow a segment and take fresh bytes as zero (counts, heads, "not ready" words) find garbage if anybody's
#            overrun, or wide store at the end, came before. Sizes of whole pages have no such rest.
# Seen       another mapping: 7; grown by ftruncate: 7; by fallocate: 7; by a write behind: 7; cut and grown: 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/end.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SIZE = 100, AT = 200, PAGE = 4096 };

static int fd, changed;

static volatile char *mapped(void) {
    void *base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) _exit(2);
    return base;
}

// A new segment of SIZE bytes with a 7 stored behind its end.
static void make(void) {
    fd = memfd_create("segment", 0);
    if (fd < 0 || ftruncate(fd, SIZE)) _exit(2);
    mapped()[AT] = 7;
}

static void expect(const char *what, int failed, int wanted) {
    char byte = -1;
    if (failed || pread(fd, &byte, 1, AT) != 1) _exit(2);
    printf("; %s: %d", what, byte);
    changed |= byte != wanted;
}

int main(void) {
    make();
    int peer = mapped()[AT];
    printf("another mapping: %d", peer);
    expect("grown by ftruncate", ftruncate(fd, PAGE), 7);
    make();
    expect("by fallocate", fallocate(fd, 0, 0, PAGE), 7);
    make();
    expect("by a write behind", pwrite(fd, "x", 1, 300) != 1, 7);
    make();
    expect("cut and grown", ftruncate(fd, SIZE - 1) || ftruncate(fd, PAGE), 0);
    puts("");
    if (changed || peer != 7) return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/end" "$dir/end.c"
"$dir/end"
