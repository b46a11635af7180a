#!/bin/bash
# The tenth empty message queue of default size: "too many open files", with none of them open
#
# Versions   posix_ipc 1.3.2 (PyPI), Linux 6.18 with RLIMIT_MSGQUEUE at its default, 819200 bytes.
# Behaviour  A program makes queues of the default size (10 messages of 8192 bytes) and closes each at once. mq_open of the tenth fails
#            with EMFILE, which posix_ipc puts into words (and no errno): each queue is charged its whole capacity to the user from
#            its making to its unlinking, empty as it is. A hundred more descriptors can be opened at that moment. Unlinking one
#            queue makes room for one.
# Guess      ENOSPC, as mq_open(3) has it for a lack of space; its EMFILE is the limit of descriptors, RLIMIT_NOFILE, alone. The charge
#            is told in getrlimit(2), under RLIMIT_MSGQUEUE, and the error not even there.
# Matters    Queues outlive the processes that made them: after a few crashes, other programs of the same user fail with an error that
#            makes people raise ulimit -n, which does nothing. Look for leftovers in /dev/mqueue; raise ulimit -q.
# Seen       made and closed 9, then: This process already has the maximum number of files open; descriptors still to be had: 100;
#            after one unlink: made
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: posix_ipc==1.3.2
cat >"$dir/queues.py" <<'P'
import os, resource, sys

import posix_ipc

# A user of our own for the count, where we may: others' queues would count as well.
if os.geteuid() == 0:
    os.setuid(61_000 + os.getpid() % 1000)
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (819_200, 819_200))
names = []


def make():
    """Makes one more queue and closes it; the error's text, or "made"."""
    name = f"/finding-{os.getpid()}-{len(names)}"
    try:
        posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=10, max_message_size=8192).close()
    except OSError as error:
        return str(error)
    names.append(name)
    return "made"


try:
    while (end := make()) == "made" and len(names) < 100:
        pass
    made = len(names)
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    posix_ipc.unlink_message_queue(names.pop())
    after = make()
finally:
    for name in names:
        posix_ipc.unlink_message_queue(name)
print(f"made and closed {made}, then: {end}; descriptors still to be had: {len(descriptors)}; after one unlink: {after}")
if (made, after) != (9, "made") or "maximum number of files open" not in end:
    sys.exit("changed")
P
chmod -R go+rX "$dir"
"$dir/venv/bin/python" "$dir/queues.py"
