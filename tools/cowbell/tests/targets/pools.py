"""Children that read what their parent built, made in the ways of Python's library.

usage: pools.py fork | forkserver | futures
Prints the sum that the workers found, and their process ids.
"""
import concurrent.futures
import multiprocessing
import os
import sys

DATA = [str(i) for i in range(40_000)]


def read(part):
    # Each worker waits for the others: none of them shall do the work of two.
    BARRIER.wait(30)
    n = 0
    for x in DATA[part::3]:
        n += len(x)
    return n, os.getpid()


def adopt(barrier):
    global BARRIER
    BARRIER = barrier


def main():
    how = sys.argv[1]
    context = multiprocessing.get_context("forkserver" if how == "forkserver" else "fork")
    barrier = context.Barrier(3)
    if how == "futures":
        with concurrent.futures.ProcessPoolExecutor(3, context, adopt, (barrier,)) as pool:
            found = list(pool.map(read, range(3)))
    else:
        with context.Pool(3, adopt, (barrier,)) as pool:
            found = pool.map(read, range(3), chunksize=1)
            pool.close()
            pool.join()
    print(sum(n for n, _ in found), *sorted(pid for _, pid in found))


if __name__ == "__main__":
    main()
