"""joblib over processes that are forked from this one.   usage: python3 joblib_workers.py [--plain] [COUNT]

joblib's own backend, loky, starts its workers afresh: they inherit nothing. Its backend `multiprocessing` forks them.
"""

import multiprocessing
import os
import sys

import cowbell_fork
from joblib import Parallel, delayed, parallel_config
from work import load, read, show

COUNT = next((int(arg) for arg in sys.argv[1:] if arg.isdigit()), 1_000_000)


def job(handle):
    return os.getpid(), read(handle.get())


if __name__ == "__main__":
    # The default until 3.13.
    multiprocessing.set_start_method("fork")
    data = load(COUNT)
    if "--plain" not in sys.argv:
        cowbell_fork.freeze(data)  # before Parallel runs
    handle = cowbell_fork.share(data)
    workers = {}
    with parallel_config(backend="multiprocessing", n_jobs=2):
        for pid, mib in Parallel()(delayed(job)(handle) for _ in range(4)):
            workers[pid] = max(mib, workers.get(pid, 0))
    show("joblib, " + ("plain" if "--plain" in sys.argv else "frozen"), workers)
