#!/bin/bash
# poll says that a Unix datagram socket can be written, sendto says EAGAIN, as often as one asks, unless the socket is connected
#
# Versions   Linux 6.18, AF_UNIX, net.unix.max_dgram_qlen at 10 (its default, and that of each new network namespace). Wants root, or
#            user namespaces open to users, for a namespace of its own.
# Behaviour  A receiver with a bound datagram socket does not read. 11 messages of one byte are taken, whatever SO_SNDBUF says, then
#            sendto gives EAGAIN. On the socket that sends by address, poll goes on to report POLLOUT at once. On a connected
#            socket it does not, and reports it when the receiver has read one.
# Guess      No POLLOUT on either until there is room: poll(2) has it as "writing is now possible", send(2) names select as the way to learn
#            when more can be sent, and unix(7) makes SO_SNDBUF the only limit of these sockets. (poll is given no address to look at,
#            and a full receiver is not the fault of this end's buffer.)
# Matters    "On EAGAIN wait for POLLOUT, send again" is a busy loop here: a sender of descriptors or wake-ups takes a core as long as one
#            receiver is slow or stopped, from which it gets least. Connect a socket for each receiver, or use SOCK_SEQPACKET.
# Seen       by address: 11 taken, then EAGAIN; writable 1000 of 1000 times, EAGAIN 1000 of 1000
#            connected: 11 taken, then EAGAIN; writable 0 of 1000 times, EAGAIN 1000 of 1000; after one was read: writable
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/dgram.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { TIMES = 1000 };

static int changed;

static int writable(int fd) {
    struct pollfd asked = {fd, POLLOUT, 0};
    return poll(&asked, 1, 0) == 1 && asked.revents == POLLOUT;
}

static void expect(const char *what, int connected, int polled) {
    int to = socket(AF_UNIX, SOCK_DGRAM, 0), from = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct sockaddr_un address = {AF_UNIX, ""};
    socklen_t len = sizeof address;
    if (bind(to, (void *)&address, sizeof address.sun_family) || getsockname(to, (void *)&address, &len)) _exit(2);
    if (connected && connect(from, (void *)&address, len)) _exit(2);

    int taken = 0, open = 0, again = 0;
    while (taken < TIMES && sendto(from, "x", 1, 0, (void *)&address, len) == 1) taken++;
    for (int i = 0; i < TIMES; i++) {
        open += writable(from);
        again += sendto(from, "x", 1, 0, (void *)&address, len) < 0 && errno == EAGAIN;
    }
    printf("%s: %d taken, then EAGAIN; writable %d of %d times, EAGAIN %d of %d", what, taken, open, TIMES, again, TIMES);
    char byte;
    if (recv(to, &byte, 1, 0) != 1) _exit(2);
    int after = writable(from);
    puts(connected ? after ? "; after one was read: writable" : "; after one was read: still not" : "");
    changed |= taken != 11 || open != polled || again != TIMES || !after;
}

int main(void) {
    if (unshare(CLONE_NEWNET) && unshare(CLONE_NEWUSER | CLONE_NEWNET)) return puts("skipped: no namespace for the network"), 0;
    expect("by address", 0, TIMES);
    expect("connected", 1, 0);
    if (changed) fprintf(stderr, "changed\n");
    return changed;
}
C
cc -Wall -Werror -o "$dir/dgram" "$dir/dgram.c"
"$dir/dgram"
