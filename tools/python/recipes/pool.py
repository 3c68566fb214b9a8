"""multiprocessing.Pool with fork.   usage: python3 pool.py [--plain] [COUNT]"""

import multiprocessing
import os
import sys

import cowbell_fork
from work import load, read, show

COUNT = next((int(arg) for arg in sys.argv[1:] if arg.isdigit()), 1_000_000)


def job(handle):
    return os.getpid(), read(handle.get())


if __name__ == "__main__":
    data = load(COUNT)
    if "--plain" not in sys.argv:
        cowbell_fork.freeze(data)  # before the pool is made
    handle = cowbell_fork.share(data)  # what is sent to the workers in place of the data
    with multiprocessing.get_context("fork").Pool(2) as pool:
        workers = {}
        for pid, mib in pool.map(job, [handle] * 4, chunksize=1):
            workers[pid] = max(mib, workers.get(pid, 0))
    show("Pool, plain" if "--plain" in sys.argv else "Pool, frozen", workers)
