"""usage: pool.py argument|global|numpy|freeze NUMBERS WORKERS

A multiprocessing.Pool whose workers each add up one large list: sent to them, inherited, as an array, or made immortal.
"""
import multiprocessing
import sys

import lab


def total(data):
    found = int(data.sum()) if way == "numpy" else sum(data)
    meeting.work_is_done()
    return found


def of_argument(job):
    data, _ = job
    return total(data)


def of_global(_):
    return total(DATA)


if __name__ == "__main__":
    way, numbers, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    DATA = [n * 1000 for n in range(numbers)]
    if way == "numpy":
        import numpy

        DATA = numpy.array(DATA)
    elif way == "freeze":
        lab.freeze(DATA)
    context = multiprocessing.get_context("fork")
    meeting = lab.Meeting(context, workers)
    with context.Pool(workers) as pool:
        if way == "argument":
            found = pool.map_async(of_argument, [(DATA, n) for n in range(workers)], 1)
        else:
            found = pool.map_async(of_global, range(workers), 1)
        together = meeting.weigh()
        lab.tell(answer=str(found.get()[0]), together_bytes=together)
        pool.close()
        pool.join()
