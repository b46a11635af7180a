#!/bin/bash
# A ring that is mapped twice, end to end, counts twice in RSS, and as shared memory though one process alone has it
#
# Versions   Linux 6.18.
# Behaviour  A memfd of 64 MiB is mapped twice in a row, so that reads and writes over its end need no split (the "mirrored" or "magic"
#            ring buffer). After one pass over both halves: Rss 128 MiB, and all 128 in smaps' Shared_Dirty, 0 in Private_Dirty.
#            Pss is 64 MiB, which is what the file has. With one mapping all four say 64, and it counts as private.
# Guess      64 MiB, private: proc(5) describes RSS as the pages that the process has in memory, and there are 64 MiB of those; the
#            kernel's own text on smaps has a page as shared when more than one process uses it.
# Matters    RSS is what top, ps, memory watchdogs and the OOM killer's choice go by: a mirrored ring makes a process twice the victim.
#            "Shared" is read as "somebody is attached": not so. What is right is Pss, or st_blocks of the file.
# Seen       mapped once: RSS 64, PSS 64, shared 0, private 64; mirrored: RSS 128, PSS 64, shared 128, private 0 (MiB)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/ring.c" <<'C'
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 64 };
static const size_t LEN = (size_t)MIB << 20;

// Sums the fields over the mappings of the memfd alone.
static void account(long mib[4]) {
    static const char *field[] = {"Rss:", "Pss:", "Shared_Dirty:", "Private_Dirty:"};
    char line[512], name[64];
    long kib = 0;
    int ours = 0;
    memset(mib, 0, 4 * sizeof *mib);
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (smaps && fgets(line, sizeof line, smaps)) {
        if (strchr(line, '-') && strchr(line, '/')) ours = strstr(line, "/memfd:ring") != NULL;
        if (sscanf(line, "%63s %ld kB", name, &kib) != 2 || !ours) continue;
        for (int i = 0; i < 4; i++)
            if (!strcmp(name, field[i])) mib[i] += kib / 1024;
        if (!strcmp(name, "VmFlags:")) ours = 0;
    }
    if (smaps) fclose(smaps);
}

int main(void) {
    int fd = memfd_create("ring", 0);
    char *base = mmap(NULL, 2 * LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fd < 0 || ftruncate(fd, LEN) || base == MAP_FAILED) return 2;
    long once[4], twice[4];
    if (mmap(base, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != base) return 2;
    memset(base, 1, LEN);
    account(once);
    if (mmap(base + LEN, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != base + LEN) return 2;
    memset(base, 2, 2 * LEN);
    account(twice);
    printf("mapped once: RSS %ld, PSS %ld, shared %ld, private %ld; mirrored: RSS %ld, PSS %ld, shared %ld, private %ld (MiB)\n",
           once[0], once[1], once[2], once[3], twice[0], twice[1], twice[2], twice[3]);
    if (memcmp(once, (long[]){MIB, MIB, 0, MIB}, sizeof once) || memcmp(twice, (long[]){2 * MIB, MIB, 2 * MIB, 0}, sizeof twice))
        return fprintf(stderr, "changed\n"), 1;
    return 0;
}
C
cc -Wall -Werror -o "$dir/ring" "$dir/ring.c"
"$dir/ring"
