#!/bin/bash
# Python's struct.pack_into zeroes the whole range before it stores a field, and leaves it half zero when a value is refused
#
# Versions   CPython 3.11.7; the same in 3.8.18, 3.12.1 and 3.13.0; Linux 6.18.
# Behaviour  A segment holds three counters of 8 bytes: 1 2 3. The same values are packed into it anew. After the first store, and before
#            the second, a peer reads 1 0 0, in native ("QQQ") and in standard ("<QQQ") order. If the second value is a string,
#            struct.error is raised and the segment keeps 1 0 0. Assignments through memoryview.cast("Q") pass through neither.
# Guess      Each field goes from its old value to its new one, and a call that raises has changed nothing: the documentation has pack_into
#            "pack the values" and "write the packed bytes into the writable buffer", which reads as first the one, then the other.
# Matters    Headers in multiprocessing.shared_memory are written with pack_into as a matter of course. A magic number, a version or an
#            offset that never changes reads as 0 for a moment at each update: "not ready yet", "start anew", "at the front". Pack
#            into bytes of your own first, and store alone the field that others wait for.
# Seen       QQQ, while packing: 1 0 0, after an error: 1 0 0; <QQQ, while packing: 1 0 0, after an error: 1 0 0;
#            memoryview, while storing: 1 2 3, after an error: 1 2 3
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/pack.py" <<'P'
import struct, subprocess, sys
from multiprocessing import shared_memory

segment = shared_memory.SharedMemory(create=True, size=24)


def peer():
    """What another process reads in the segment."""
    path = "/dev/shm/" + segment.name
    return " ".join(subprocess.run(["od", "-A", "n", "-t", "u8", path], capture_output=True, text=True, check=True).stdout.split())


class Look:
    """The number 2; a peer looks on when it is asked for."""

    def __index__(self):
        self.seen = peer()
        return 2


def with_pack_into(form):
    return lambda *values: struct.pack_into(form, segment.buf, 0, *values)


def with_memoryview(*values):
    with segment.buf.cast("Q") as view:
        for at, value in enumerate(values):
            view[at] = value


seen = []
try:
    for store in with_pack_into("QQQ"), with_pack_into("<QQQ"), with_memoryview:
        look = Look()
        store(1, 2, 3)
        store(1, look, 3)
        assert peer() == "1 2 3"
        try:
            store(1, "two", 3)
        except (struct.error, TypeError):
            seen += [look.seen, peer()]
finally:
    segment.close()
    segment.unlink()
print("QQQ, while packing: {}, after an error: {}; <QQQ, while packing: {}, after an error: {};\n"
      "memoryview, while storing: {}, after an error: {}".format(*seen))
if seen != ["1 0 0"] * 4 + ["1 2 3"] * 2:
    sys.exit("changed")
P
python3 "$dir/pack.py"
