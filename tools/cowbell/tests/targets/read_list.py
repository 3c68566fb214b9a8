"""A parent builds 300,000 objects, or READ_LIST_COUNT; its child only looks at them, and copies most of the memory they lie in.

usage: read_list.py VARIANT [FILE]
  list            the child reads a list of strings
  numpy           the child reads a numpy array of the strings' lengths instead
  collect         the child collects garbage over a list of lists
  collect-frozen  the same, and the parent called gc.freeze() before the fork

The child's result and the nanoseconds it took go to FILE, or to standard output.
"""
import gc
import os
import sys
import time

COUNT = int(os.environ.get("READ_LIST_COUNT", 300_000))


def read(data):
    n = 0
    for x in data:
        n += len(x)
    return n


def build(variant):
    if variant == "numpy":
        import numpy

        return numpy.array([len(str(i)) for i in range(COUNT)])
    if variant == "list":
        return [str(i) for i in range(COUNT)]
    return [[i] for i in range(COUNT)]


def work(variant, data):
    if variant == "numpy":
        return int(data.sum())
    if variant == "list":
        return read(data)
    gc.collect()
    return len(data)


def main():
    variant = sys.argv[1]
    data = build(variant)
    if variant == "collect-frozen":
        gc.collect()
        gc.freeze()
    gc.disable()
    out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if len(sys.argv) > 2 else 1
    pid = os.fork()
    if pid == 0:
        start = time.monotonic_ns()
        n = work(variant, data)
        end = time.monotonic_ns()
        os.write(out, b"%d %d\n" % (n, end - start))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


main()
