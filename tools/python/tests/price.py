"""usage: price.py [MIB]: what counting costs a child, beside a child that does not count. Best of nine, in turn;
in brackets the largest."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time

import cowbell_fork

PAGE = mmap.PAGESIZE


def child(data, pages, counts):
    """Seconds that the fork took, up to the child's first line; that a written page took; and that copied() took."""
    reader, writer = os.pipe()
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        forked = time.perf_counter()
        for at in range(0, len(data), PAGE):
            data[at] = 2
        written = time.perf_counter()
        if counts:
            assert cowbell_fork.copied().pages >= pages
        ended = time.perf_counter()
        os.write(writer, struct.pack("3d", forked - started, (written - forked) / pages, ended - written))
        os._exit(0)
    os.waitpid(pid, 0)
    figures = struct.unpack("3d", os.read(reader, 24))
    os.close(reader), os.close(writer)
    return figures


def block(data, pages, lines):
    """Seconds to begin a watched block, for each page that it copies, and to end it; whether lines were told."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        watched = cowbell_fork.watch(lines=lines)
        started = time.perf_counter()
        watched.__enter__()
        begun = time.perf_counter()
        for at in range(0, len(data), PAGE):
            data[at] = 2
        written = time.perf_counter()
        watched.__exit__(None, None, None)
        ended = time.perf_counter()
        assert watched.copied.pages >= pages
        times = begun - started, (written - begun) / pages, ended - written, bool(watched.lines)
        os.write(writer, struct.pack("4d", *times))
        os._exit(0)
    assert os.wait()[1] == 0
    figures = struct.unpack("4d", os.read(reader, 32))
    os.close(reader), os.close(writer)
    return figures


def main():
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    pages = (mib << 20) // PAGE
    data = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE)
    data.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, len(data), PAGE):
        data[at] = 1
    # Once asked for, each fork counts: those that do not come first.
    rounds = [child(data, pages, False) for _ in range(9)]
    plain, plain_most = ([of(times) for times in zip(*rounds)] for of in (min, max))
    cowbell_fork.count_copies()
    rounds = [child(data, pages, True) for _ in range(9)]
    counted, counted_most = ([of(times) for times in zip(*rounds)] for of in (min, max))
    print(f"fork, {mib} MiB shared: {plain[0] * 1e3:.1f} ms ({plain_most[0] * 1e3:.1f}), counting {counted[0] * 1e3:.1f} ms ({counted_most[0] * 1e3:.1f}):",
          f"{(counted[0] - plain[0]) / mib * 1e6:.0f} us more for each MiB")
    print(f"a page copied by a loop in Python: {plain[1] * 1e6:.2f} us ({plain_most[1] * 1e6:.2f}), counting {counted[1] * 1e6:.2f} us ({counted_most[1] * 1e6:.2f}):",
          f"{counted[1] / plain[1]:.2f} times")
    print(f"copied(), with {pages:,} pages copied: {counted[2] * 1e3:.1f} ms ({counted_most[2] * 1e3:.1f})")
    without = [min(times) for times in zip(*(block(data, pages, False) for _ in range(9)))]
    rounds = [block(data, pages, True) for _ in range(9)]
    with_lines = [sorted(times)[4] for times in zip(*rounds)]
    print(f"watch(): {without[0] * 1e3:.0f} ms to begin, {without[2] * 1e3:.0f} ms to end; with lines, medians, {with_lines[0] * 1e3:.0f} and",
          f"{with_lines[2] * 1e3:.0f} ms, and a page copied takes {with_lines[1] / without[1]:.2f} times as long;",
          f"lines were told in {sum(told for *_, told in rounds):.0f} of 9 rounds")


if __name__ == "__main__":
    main()
