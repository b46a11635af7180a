#!/bin/bash
# ThreadSanitizer reports a correct hand-over as a race, and misses a real race, when two threads use two mappings of one segment
#
# Versions   GCC 12.2.0-14+deb12u1, libtsan2 of the same (Debian 12), Linux 6.18.
# Behaviour  One thread sets a variable and stores 1 to an atomic of the segment with release; another loads it with acquire until it is 1,
#            and reads the variable. Silent if both use one mapping; a data race is reported if each uses its own. Two threads that
#            store to the same int of the segment with nothing between them are reported with one mapping, and not with two. What
#            synchronises, and what was accessed, is kept by virtual address; the two mappings are two memories to it.
# Guess      The same verdict both ways, since it is the same memory; or at most races missed, none made up: Clang's documentation has
#            code that was not instrumented as the source of false reports, and all of this is; its limitations have no mappings.
# Matters    Tests open a segment twice in one process to stand for two processes, so that a sanitizer can see both ends. It then sees
#            neither: the code under test is never checked, and what is reported gets suppressed, or "fixed". Give both ends one mapping
#            in such builds.
# Seen       one mapping: hand-over silent, race reported; two mappings: hand-over reported, race silent
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/ends.c" <<'C'
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct segment {
    atomic_int ready;
    int count;
};

static struct segment *ours, *theirs;
static int handed_over, seen;

static void *receive(void *unused) {
    while (!atomic_load_explicit(&theirs->ready, memory_order_acquire)) {}
    seen = handed_over;
    return unused;
}

static void *store(void *unused) {
    usleep(100000);
    theirs->count = 2;
    return unused;
}

static struct segment *map(int fd) {
    void *base = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) _exit(2);
    return base;
}

// ends (one|two) (hand-over|race)
int main(int argc, char **argv) {
    int fd = memfd_create("segment", 0), races = argc == 3 && strcmp(argv[2], "race") == 0;
    if (argc != 3 || fd < 0 || ftruncate(fd, 4096)) return 2;
    ours = map(fd);
    theirs = strcmp(argv[1], "two") == 0 ? map(fd) : ours;
    pthread_t other;
    if (pthread_create(&other, NULL, races ? store : receive, NULL)) return 2;
    if (races) {
        ours->count = 1;
    } else {
        handed_over = 7;
        atomic_store_explicit(&ours->ready, 1, memory_order_release);
    }
    pthread_join(other, NULL);
    return !races && seen != 7;
}
C
printf 'int main(void) { return 0; }\n' >"$dir/nothing.c"
if ! cc -fsanitize=thread -o "$dir/nothing" "$dir/nothing.c" 2>"$dir/log" || ! "$dir/nothing" 2>"$dir/log"; then
    echo "skipped: $(tail -n 1 "$dir/log")"
    exit 0
fi
cc -g -O1 -Wall -Werror -fsanitize=thread -pthread -o "$dir/ends" "$dir/ends.c"

verdict() { # one|two hand-over|race
    local code=0
    TSAN_OPTIONS=exitcode=66 "$dir/ends" "$1" "$2" 2>"$dir/log" || code=$?
    case $code in
    0) echo silent ;;
    66) grep -q "WARNING: ThreadSanitizer: data race" "$dir/log" && echo reported || echo "another report" ;;
    *) echo "exit $code" ;;
    esac
}
got="one mapping: hand-over $(verdict one hand-over), race $(verdict one race)"
got+="; two mappings: hand-over $(verdict two hand-over), race $(verdict two race)"
echo "$got"
[ "$got" = "one mapping: hand-over silent, race reported; two mappings: hand-over reported, race silent" ] || { echo changed >&2; exit 1; }
