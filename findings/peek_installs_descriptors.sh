#!/bin/bash
# Each MSG_PEEK at a message with descriptors installs them anew: peek for the length, receive, and one has leaked
#
# Versions   Linux 6.18, AF_UNIX.
# Behaviour  A message that carries one memfd is peeked at three times with room for ancillary data: three new descriptors are open
#            in the receiver, and the receive that takes the message adds a fourth, all of the same file. A peek without a control
#            buffer installs nothing.
# Guess      No descriptor before the message is taken. recv(2) says that a peek returns data without removing it from the queue;
#            unix(7) says of SCM_RIGHTS that descriptors are passed, and has no word about peeking.
# Matters    "Peek for the length, then receive into a buffer of that size" is the idiom for datagrams, and the way segments and
#            eventfds travel. Written with one msghdr for both calls it leaks a descriptor a message, until the table is full and
#            the kernel drops descriptors in silence (MSG_CTRUNC).
# Seen       three peeks: 3 descriptors; receive: 1 more; files behind them: 1; peek without a control buffer: 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/peek.py" <<'P'
import os, socket, sys

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
segment = os.memfd_create("segment")
room = socket.CMSG_SPACE(4)


def take(flags, room=room):
    """Receives once; the descriptors that came."""
    _, ancillary, _, _ = theirs.recvmsg(16, room, flags)
    return [int.from_bytes(data, sys.byteorder) for _, _, data in ancillary]


socket.send_fds(ours, [b"message"], [segment])
opened = len(os.listdir("/proc/self/fd"))
without = take(socket.MSG_PEEK, 0)
grown = len(os.listdir("/proc/self/fd")) - opened
peeked = [fd for _ in range(3) for fd in take(socket.MSG_PEEK)]
taken = take(0)
files = {os.fstat(fd).st_ino for fd in peeked + taken}
print(
    f"three peeks: {len(set(peeked))} descriptors; receive: {len(taken)} more; "
    f"files behind them: {len(files)}; peek without a control buffer: {grown}"
)
if (len(set(peeked)), len(taken), len(files), without, grown) != (3, 1, 1, [], 0):
    sys.exit("changed")
P
python3 "$dir/peek.py"
