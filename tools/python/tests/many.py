"""usage: many.py [MILLIONS]: freezes so many million objects, and has a child read them, and another write. Prints time and memory.

A fifth of them are the keys of a dict, and a fifth each the tuples that are its values, and the three items of these:
50 million take 2.8 GiB, and the walk 0.3 more while it lasts.
"""

from __future__ import annotations

import sys
import time

import cowbell_fork
from kit import in_child, private_dirty


def memory_mib(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(what + ":"))


def read(data):
    """Seconds, and MiB newly this process' own."""
    before, started = private_dirty(), time.monotonic()
    for key, (number, text, real) in data.items():
        assert data[key][1] is text
    return time.monotonic() - started, (private_dirty() - before) / 1024


def write(data):
    """Pages copied where each key gets another value, those of the dict's table, and seconds for copied()."""
    for key in data:
        data[key] = None
    started = time.monotonic()
    found = cowbell_fork.copied()
    return found.pages, found.causes.arrays // found.page_size, time.monotonic() - started


def main():
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 50
    started = time.monotonic()
    rows = int(millions * 1e6 / 5)
    data = {f"key {n}": (1_000_000 + n, f"text {n}", n + 0.5) for n in range(rows)}
    print(f"{millions:g} million objects, made in {time.monotonic() - started:.1f} s; RSS {memory_mib('VmRSS'):,.0f} MiB")
    # From here on the peak is the walk's.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory_mib("VmRSS")
    report = cowbell_fork.freeze(data)
    assert report.objects >= rows * 5, report
    peak, after = memory_mib("VmHWM"), memory_mib("VmRSS")
    print(f"frozen in {report.seconds:.1f} s, with {peak - before:,.0f} MiB more at the peak and {after - before:,.0f} afterwards")
    seconds, copied = in_child(read, data)
    print(f"a child reads and looks up all in {seconds:.1f} s, and has {copied:.2f} MiB of its own then")
    assert copied < 1
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, started = memory_mib("VmRSS"), time.monotonic()
    cowbell_fork.count_copies(explain=True)
    took, peak, after = time.monotonic() - started, memory_mib("VmHWM"), memory_mib("VmRSS")
    print(f"recorded for copied() in {took:.1f} s, with {peak - before:,.0f} MiB more at the peak and {after - before:,.0f} afterwards")
    pages, tables, seconds = in_child(write, data)
    print(f"a child has {pages:,} pages copied, {tables:,} of them of the dict's table, and explains that in {seconds:.2f} s")
    print(report)


if __name__ == "__main__":
    main()
