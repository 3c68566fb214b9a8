"""Three lines write pages in a random order; OUT says how many each has written.

usage: planted.py copies|new SEED PAGES RUN OUT    a line writes RUN pages in a row, on average
"""
import mmap
import os
import random
import sys

kind, out = sys.argv[1], sys.argv[5]
seed, pages, run = map(int, sys.argv[2:5])
memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
if kind == "copies":
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
chance = random.Random(seed)
weights = [chance.randrange(1, 10) for _ in range(3)]
plan = []
while len(plan) < pages:
    plan += chance.choices(range(3), weights) * (1 + int(chance.expovariate(1 / (run - 1))) if run > 1 else 1)
del plan[pages:]
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
        # Something to do between two pages.
        sum(range(400))


if os.fork() == 0:
    work()
    with open(out, "w") as file:
        print(*written, file=file)
    os._exit(0)
os.wait()
