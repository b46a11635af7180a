#!/bin/bash
# Closing a Python mmap (or SharedMemory) of a file drops every lockf lock that the process holds on the file
#
# Versions   CPython 3.11.7 (3.13 can be told not to: trackfd=False), numpy 2.2.6, Linux 6.18.
# Behaviour  A process opens a segment, locks it with fcntl.lockf, and maps it with mmap.mmap. When the mmap is closed, the lock is gone
#            although the descriptor that took it is open; a peer locks it at once. It needs no close by name: a numpy.memmap of the
#            path that goes out of scope does it, and SharedMemory.close of an attach by name as well. A lock taken with fcntl.flock
#            stays in all three cases.
# Guess      The lock stays until unlocked: unmapping is munmap, which record locks don't know. fcntl(2) warns of closing *descriptors*,
#            but the mmap module keeps a duplicate of the one it was given; the documentation of mmap.mmap says so only where it
#            explains trackfd (3.13), that of lockf and of SharedMemory not at all.
# Matters    "Lock a header, map it, read it, unmap" loses the exclusion in the middle, with no error anywhere. Use flock, or locks
#            of open file descriptions (fcntl.F_OFD_SETLK).
# Seen       mmap.close: lockf lost, flock kept; numpy.memmap gone: lockf lost, flock kept; SharedMemory.close: lockf lost, flock kept
set -euo pipefail
dir=$(mktemp -d)
name=finding-$$
trap 'rm -rf "$dir" "/dev/shm/$name"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: numpy==2.2.6
cat >"$dir/unlocks.py" <<'P'
import fcntl, mmap, os, subprocess, sys
from multiprocessing import resource_tracker, shared_memory

import numpy

name = sys.argv[1]
path = "/dev/shm/" + name
probe = """
import fcntl, sys
try:
    getattr(fcntl, sys.argv[1])(open(sys.argv[2], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("lost")
except OSError:
    print("kept")
"""


def state(kind):
    """Asks another process whether our lock stands in its way."""
    return subprocess.run([sys.executable, "-c", probe, kind, path], capture_output=True, text=True, check=True).stdout.strip()


def with_mmap(fd):
    mmap.mmap(fd, 4096).close()


def with_numpy(fd):
    numpy.memmap(path, dtype="u1", mode="r")


def with_shared_memory(fd):
    segment = shared_memory.SharedMemory(name)
    resource_tracker.unregister("/" + name, "shared_memory")
    segment.close()


os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
os.truncate(path, 4096)
seen = []
for use in with_mmap, with_numpy, with_shared_memory:
    for kind in "lockf", "flock":
        fd = os.open(path, os.O_RDWR)
        getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
        assert state(kind) == "kept"
        use(fd)
        seen.append(state(kind))
        os.close(fd)
print("mmap.close: lockf {}, flock {}; numpy.memmap gone: lockf {}, flock {}; SharedMemory.close: lockf {}, flock {}".format(*seen))
if seen != ["lost", "kept"] * 3:
    sys.exit("changed")
P
"$dir/venv/bin/python" "$dir/unlocks.py" "$name"
