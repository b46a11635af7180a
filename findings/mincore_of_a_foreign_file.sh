#!/bin/bash
# mincore says that every page is resident, holes too, to a process that may read the file but not write it
#
# Versions   Linux 6.18 (so since 5.2, when mincore stopped to tell others' page cache). Wants root, to become another user.
# Behaviour  A 1 MiB file in /dev/shm has one page of memory behind it. Its owner's mincore counts 1 of 256 pages. A process of
#            another user, which the mode (0644) lets read and map the file, gets 0 from mincore and 256 of 256 pages.
# Guess      1, or an error. mincore(2) says that a bit is set if the page is resident in memory, else clear; neither its errors nor
#            its notes know of permission.
# Matters    A monitor with a user of its own maps segments read-only and reports how much of them is in memory, what was trimmed,
#            or whether to look at a page (a look at a hole allocates it): it sees full segments and never knows. st_blocks and
#            SEEK_DATA tell the truth to everyone who has the file open.
# Seen       owner: 1 of 256; reader of another user: 256 of 256; st_blocks for that reader: 8
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "wants root, to become another user" >&2; exit 2; }
dir=$(mktemp -d)
file=/dev/shm/finding-$$
trap 'rm -rf "$dir" "$file"' EXIT
cat >"$dir/mincore.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, NOBODY = 65534 };

static int resident(int fd) {
    unsigned char page[PAGES];
    int count = 0;
    void *base = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED || mincore(base, PAGES * PAGE, page)) return -1;
    for (int i = 0; i < PAGES; i++) count += page[i] & 1;
    return count;
}

int main(int argc, char **argv) {
    int fd = open(argv[argc - 1], O_RDWR | O_CREAT | O_EXCL, 0644);
    if (fd < 0 || fchmod(fd, 0644) || ftruncate(fd, PAGES * PAGE) || pwrite(fd, "x", 1, 0) != 1) return 2;
    int owner = resident(fd);
    struct stat is;
    if (setgid(NOBODY) || setuid(NOBODY)) return 2;
    fd = open(argv[argc - 1], O_RDONLY);
    int reader = resident(fd);
    if (fstat(fd, &is)) return 2;
    printf("owner: %d of %d; reader of another user: %d of %d; st_blocks for that reader: %d\n", owner, PAGES, reader, PAGES,
           (int)is.st_blocks);
    if (owner != 1 || reader != PAGES || is.st_blocks != 8) return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/mincore" "$dir/mincore.c"
"$dir/mincore" "$file"
