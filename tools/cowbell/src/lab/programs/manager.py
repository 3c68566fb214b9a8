"""usage: manager.py NUMBERS READS

Reads items of a list, and of a Manager().list() with the same content, in a forked worker: tells the nanoseconds that each read takes.
"""
import multiprocessing
import sys
import time

import lab


def reads(items, times):
    begun = time.perf_counter_ns()
    total = 0
    for at in range(times):
        total += items[at % numbers]
    return (time.perf_counter_ns() - begun) / times, total


def work(results):
    results.send((*reads(plain, 100 * times), *reads(plain, times), *reads(shared, times)))


if __name__ == "__main__":
    numbers, times = int(sys.argv[1]), int(sys.argv[2])
    plain = list(range(numbers))
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        shared = manager.list(plain)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs,))
        process.start()
        theirs.close()
        list_ns, _, _, one, manager_ns, other = ours.recv()
        process.join()
    if one != other:
        sys.exit("the two lists are not the same")
    lab.tell(list_ns=list_ns, manager_ns=manager_ns)
