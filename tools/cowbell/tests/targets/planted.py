"""Three lines copy pages in a random order; standard output says how many each has copied.

usage: planted.py SEED PAGES OUT
"""
import mmap
import os
import random
import sys

seed, pages, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(memory), mmap.PAGESIZE):
    memory[at] = 1
chance = random.Random(seed)
weights = [chance.randrange(1, 10) for _ in range(3)]
plan = chance.choices(range(3), weights, k=pages)
written = [0, 0, 0]


def work():
    for page, line in enumerate(plan):
        at = page * mmap.PAGESIZE
        if line == 0:
            memory[at] = 2  # first
        elif line == 1:
            memory[at] = 2  # second
        else:
            memory[at] = 2  # third
        written[line] += 1
        # Something to do between two copies.
        sum(range(400))


if os.fork() == 0:
    work()
    with open(out, "w") as file:
        print(*written, file=file)
    os._exit(0)
os.wait()
