#!/bin/bash
# The last messages of a peer on a SEQPACKET socket come after "connection reset"; on a STREAM socket they come before it
#
# Versions   Linux 6.18, AF_UNIX.
# Behaviour  A peer sends two messages and closes, or dies, with one message of ours unread. On a stream socket recv gives both of its
#            messages and then ECONNRESET. On a SOCK_SEQPACKET socket the first recv gives ECONNRESET, the next two the messages,
#            the fourth the end. Had the peer read all of ours, no error would come on either.
# Guess      The same on both, with the messages first: unix(7) describes SOCK_SEQPACKET as connection-oriented, with message boundaries
#            and in order, and has ECONNRESET for a remote socket that was unexpectedly closed, without a word about what is queued.
# Matters    Sockets of this kind carry the handshake of shared-memory libraries: memfds, eventfds, "detached", the reason of a refusal.
#            A receiver that closes at the first error loses the farewell and the descriptors in it, and only if the peer was slow
#            to read. After ECONNRESET, go on to receive until 0.
# Seen       stream: first, second, ECONNRESET, end; seqpacket: ECONNRESET, first, second, end; all read, seqpacket: first, second, end, end
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/reset.c" <<'C'
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int changed;

static void expect(const char *what, int type, int reads, const char *wanted) {
    int end[2];
    char bytes[8], seen[80] = "";
    if (socketpair(AF_UNIX, type, 0, end) || send(end[0], "ours", 4, 0) != 4) _exit(2);
    if (reads && recv(end[1], bytes, sizeof bytes, 0) != 4) _exit(2);
    if (send(end[1], "first ", 6, 0) != 6 || send(end[1], "second", 6, 0) != 6) _exit(2);
    close(end[1]);
    for (int i = 0; i < 4; i++) {
        ssize_t got = recv(end[0], bytes, 6, MSG_DONTWAIT);
        if (got == 6 && bytes[5] == ' ') got = 5;
        if (i) strcat(seen, ", ");
        if (got < 0) strcat(seen, errno == ECONNRESET ? "ECONNRESET" : "another error");
        else if (got == 0) strcat(seen, "end");
        else strncat(seen, bytes, (size_t)got);
    }
    printf("%s: %s", what, seen);
    changed |= strcmp(seen, wanted) != 0;
}

int main(void) {
    expect("stream", SOCK_STREAM, 0, "first, second, ECONNRESET, end");
    expect("; seqpacket", SOCK_SEQPACKET, 0, "ECONNRESET, first, second, end");
    expect("; all read, seqpacket", SOCK_SEQPACKET, 1, "first, second, end, end");
    puts("");
    if (changed) fprintf(stderr, "changed\n");
    return changed;
}
C
cc -Wall -Werror -o "$dir/reset" "$dir/reset.c"
"$dir/reset"
